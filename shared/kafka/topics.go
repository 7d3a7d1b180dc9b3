package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TopicMaxBytes is the largest record batch that a topic made by EnsureTopics takes:
// an event of 1 MiB, which is what Knative takes, with room for its attributes and
// for what a dead letter adds to them.
const TopicMaxBytes = 2 << 20

// DefaultMaxBytes is the largest record batch that a topic takes unless it was
// configured otherwise, minus the overhead that the client does not count.
const DefaultMaxBytes = 1_000_012

// EnsureTopics creates the topics that do not exist, with the partitions given for
// each (at least 1) and the replication factor (-1: the cluster's default). Topics
// that exist are left as they are.
func EnsureTopics(ctx context.Context, client *kgo.Client, topics map[string]int32, replication int16) error {
	if len(topics) == 0 {
		return nil
	}
	admin := kadm.NewClient(client)
	names := slices.Sorted(maps.Keys(topics))
	existing, err := admin.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("listing topics: %w", err)
	}
	maxBytes := strconv.Itoa(TopicMaxBytes)
	configs := map[string]*string{"max.message.bytes": &maxBytes}
	for _, name := range names {
		if existing.Has(name) {
			continue
		}
		_, err := admin.CreateTopic(ctx, max(1, topics[name]), replication, configs, name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("creating topic %s: %w", name, err)
		}
	}
	return nil
}

// MaxBytes is the largest record batch that each of the topics takes.
func MaxBytes(ctx context.Context, client *kgo.Client, topics ...string) (map[string]int32, error) {
	limits := make(map[string]int32, len(topics))
	if len(topics) == 0 {
		return limits, nil
	}
	configs, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("describing topics: %w", err)
	}
	for _, topic := range configs {
		if topic.Err != nil {
			return nil, fmt.Errorf("describing topic %s: %w", topic.Name, topic.Err)
		}
		for _, c := range topic.Configs {
			if c.Key != "max.message.bytes" || c.Value == nil {
				continue
			}
			n, err := strconv.ParseInt(*c.Value, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("describing topic %s: reading max.message.bytes: %w", topic.Name, err)
			}
			limits[topic.Name] = int32(n)
		}
	}
	return limits, nil
}

// Lag is how many records the group has not committed yet, for each partition of the
// topics it has to do with.
func Lag(ctx context.Context, client *kgo.Client, group string) (map[string]map[int32]int64, error) {
	lags, err := kadm.NewClient(client).Lag(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("measuring the lag of %s: %w", group, err)
	}
	described, ok := lags[group]
	if !ok {
		return nil, fmt.Errorf("measuring the lag of %s: no such group", group)
	}
	if err := described.Error(); err != nil {
		return nil, fmt.Errorf("measuring the lag of %s: %w", group, err)
	}
	out := map[string]map[int32]int64{}
	for topic, partitions := range described.Lag {
		out[topic] = make(map[int32]int64, len(partitions))
		for p, l := range partitions {
			out[topic][p] = l.Lag
		}
	}
	return out, nil
}

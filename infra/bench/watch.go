package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// watcher sees from outside how far the platform is, at a cost that leaves the cores
// to it: it counts records by the ends of the topics, and takes the time from a raw
// record to its verdict and its features in some partitions only. Sessions are in
// partitions of the same number in all topics.
type watcher struct {
	admin  *kadm.Client
	client *kgo.Client
	source string // of the raw records' events
	topics []string
	stop   context.CancelFunc
	done   chan struct{}

	// before is what there was when the phase began, now what there is beyond it.
	before, now counts
	behind      uint64 // the most raw records without a verdict
	last        time.Time

	mu     sync.Mutex
	err    error
	at     map[topicPartition]int64 // the next offset to be read
	times  map[string]times         // by the verdict's id
	byName map[string]string        // the verdict's id by that of its features
}

type topicPartition struct {
	topic string
	id    int32
}

// counts are the records of topics.
type counts map[string]uint64

func (c counts) verdicts() uint64 { return c[validatedTopic] + c[invalidTopic] }

// times are the timestamps of what belongs together, in milliseconds since the epoch;
// 0 is one that was not read.
type times struct{ raw, verdict, features int64 }

// watchedPartitions are those in which latencies are taken.
var watchedPartitions = []int32{2, 7}

// watch begins to watch the topics of a platform, those of features too if it has
// them.
func watch(brokers, manifests string, features bool) (*watcher, error) {
	graph, err := eventing.Load(manifests)
	if err != nil {
		return nil, err
	}
	w := &watcher{
		done: make(chan struct{}), topics: []string{rawTopic, validatedTopic, invalidTopic},
		at: map[topicPartition]int64{}, times: map[string]times{}, byName: map[string]string{},
	}
	if features {
		w.topics = append(w.topics, featuresTopic)
	}
	for _, s := range graph.KafkaSources {
		if slices.Contains(s.Topics, rawTopic) {
			w.source = eventing.KafkaEventSource(s.Namespace, s.Name, rawTopic)
		}
	}
	if w.source == "" {
		return nil, fmt.Errorf("no KafkaSource in %s reads topic %s", manifests, rawTopic)
	}
	options, err := kafka.Config{Brokers: []string{brokers}, ClientID: "bench"}.Options()
	if err != nil {
		return nil, err
	}
	from := map[string]map[int32]kgo.Offset{}
	for _, topic := range w.topics {
		from[topic] = map[int32]kgo.Offset{}
		for _, id := range watchedPartitions {
			from[topic][id] = kgo.NewOffset().AtStart()
		}
	}
	if w.client, err = kgo.NewClient(append(options, kgo.ConsumePartitions(from), kgo.FetchMinBytes(64<<10))...); err != nil {
		return nil, err
	}
	w.admin = kadm.NewClient(w.client)
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	go func() {
		defer close(w.done)
		for {
			fetches := w.client.PollFetches(ctx)
			if ctx.Err() != nil {
				return
			}
			w.add(fetches)
		}
	}()
	return w, nil
}

// add notes when records were written.
func (w *watcher) add(fetches kgo.Fetches) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := fetches.Err(); err != nil {
		w.err = err
	}
	var id []byte
	fetches.EachRecord(func(r *kgo.Record) {
		w.at[topicPartition{r.Topic, r.Partition}] = r.Offset + 1
		at := r.Timestamp.UnixMilli()
		switch r.Topic {
		case rawTopic:
			id = strconv.AppendInt(append(id[:0], "partition:"...), int64(r.Partition), 10)
			id = strconv.AppendInt(append(id, "/offset:"...), r.Offset, 10)
			verdict := events.ReplyID(w.source, string(id), "validate")
			t := w.times[verdict]
			t.raw = at
			w.times[verdict] = t
		case featuresTopic:
			features := eventID(r)
			if verdict, ok := w.byName[features]; ok {
				t := w.times[verdict]
				t.features = at
				w.times[verdict] = t
			} else {
				w.times[features] = times{features: at}
			}
		default:
			verdict := eventID(r)
			t := w.times[verdict]
			if t.verdict == 0 {
				t.verdict = at
			}
			if r.Topic == validatedTopic && len(w.topics) > 3 {
				features := events.ReplyID(events.FunctionSource+"validate", verdict, "featurize")
				w.byName[features] = verdict
				t.features = max(t.features, w.times[features].features)
				delete(w.times, features)
			}
			w.times[verdict] = t
		}
	})
}

func eventID(r *kgo.Record) string {
	for i := range r.Headers {
		if r.Headers[i].Key == "ce_id" {
			return string(r.Headers[i].Value)
		}
	}
	return ""
}

// ends asks for the ends of the topics.
func (w *watcher) ends(ctx context.Context) (counts, kadm.ListedOffsets, error) {
	listed, err := w.admin.ListEndOffsets(ctx, w.topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing the ends of the topics: %w", err)
	}
	sum := counts{}
	listed.Each(func(o kadm.ListedOffset) { sum[o.Topic] += uint64(max(o.Offset, 0)) })
	return sum, listed, nil
}

// reset begins a phase.
func (w *watcher) reset(ctx context.Context) error {
	before, _, err := w.ends(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.times)
	clear(w.byName)
	w.before, w.now, w.behind, w.last = before, counts{}, 0, time.Time{}
	return nil
}

// look counts.
func (w *watcher) look(ctx context.Context) error {
	ends, _, err := w.ends(ctx)
	if err != nil {
		return err
	}
	grown := false
	for topic, n := range ends {
		n -= w.before[topic]
		grown = grown || n != w.now[topic] && topic != rawTopic
		w.now[topic] = n
	}
	if grown {
		w.last = time.Now()
	}
	if raw, verdicts := w.now[rawTopic], w.now.verdicts(); raw > verdicts {
		w.behind = max(w.behind, raw-verdicts)
	}
	return nil
}

// complete tells whether all events that were sent have their verdicts and features.
func (w *watcher) complete(sent uint64) bool {
	return w.now.verdicts() >= sent && (len(w.topics) == 3 || w.now[featuresTopic] >= w.now[validatedTopic])
}

// lastGrowth is when verdicts or features were last seen to come, or from if none have.
func (w *watcher) lastGrowth(from time.Time) time.Time {
	if w.last.IsZero() {
		return from
	}
	return w.last
}

// take reads the watched partitions to their ends and returns the phase's latencies,
// sorted.
func (w *watcher) take(ctx context.Context) (verdicts, features []time.Duration, err error) {
	_, ends, err := w.ends(ctx)
	if err != nil {
		return nil, nil, err
	}
	read := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, topic := range w.topics {
			for _, id := range watchedPartitions {
				if end, ok := ends.Lookup(topic, id); ok && w.at[topicPartition{topic, id}] < end.Offset && w.err == nil {
					return false
				}
			}
		}
		return true
	}
	for deadline := time.Now().Add(stalled); !read(); {
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("the watched partitions were not read in %s", stalled)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.times {
		if t.raw == 0 || t.verdict == 0 {
			continue // its other half is in another partition: it has no session
		}
		verdicts = append(verdicts, time.Duration(t.verdict-t.raw)*time.Millisecond)
		if t.features != 0 {
			features = append(features, time.Duration(t.features-t.raw)*time.Millisecond)
		}
	}
	slices.Sort(verdicts)
	slices.Sort(features)
	return verdicts, features, w.err
}

func (w *watcher) close() {
	w.stop()
	<-w.done
	w.client.Close()
}

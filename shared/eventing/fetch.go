package eventing

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// fetchOptions are the options of everything that reads topics.
//
// What was fetched of a partition is dropped when its reading is stopped, because a
// buffer is full, and fetched again later. So not much more is fetched at a time than a
// buffer takes; records are compressed about by half, and cost memory besides.
func fetchOptions(opts []kgo.Opt, config *Config) []kgo.Opt {
	return append(opts[:len(opts):len(opts)],
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxBytes(4<<20),
		kgo.FetchMaxPartitionBytes(int32(min(max(config.BufferBytes/4, 32<<10), 1<<20))),
		kgo.FetchMaxWait(time.Second),
	)
}

// memberOptions are the options of a member of a consumer group.
func memberOptions(opts []kgo.Opt, config *Config, group string) []kgo.Opt {
	const age = 15 * time.Second // how soon a topic that is made later is read
	return append(fetchOptions(append([]kgo.Opt{kgo.MetadataMaxAge(age)}, opts...), config),
		kgo.ConsumerGroup(group),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(config.SessionTimeout),
		kgo.HeartbeatInterval(config.SessionTimeout/4),
		kgo.RebalanceTimeout(config.DrainTimeout+30*time.Second),
	)
}

// maxPoll bounds the records taken from a client at once, and so how far a buffer can
// overshoot.
const maxPoll = 2000

// poll hands on what the client fetches until hard ends, stopped is closed or the
// client is. Rebalances wait for what is being handed on. Each round ends with a call
// of after.
func poll(hard context.Context, client *kgo.Client, stopped <-chan struct{}, handle func(f *kgo.FetchTopicPartition), after func()) {
	ctx, cancel := context.WithCancel(hard)
	defer cancel()
	go func() {
		select {
		case <-stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		fetches := client.PollRecords(ctx, maxPoll)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			client.AllowRebalance()
			return
		}
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			if errors.Is(f.Err, context.Canceled) {
				f.Err = nil // the client's own doing
			}
			handle(&f)
		})
		after()
		client.AllowRebalance()
	}
}

// fetchTrouble logs failed fetches, which the client tries again, now and then.
type fetchTrouble struct{ logged time.Time }

func (t *fetchTrouble) note(log *slog.Logger, f *kgo.FetchTopicPartition) {
	var loss *kgo.ErrDataLoss
	if errors.As(f.Err, &loss) {
		log.Error("Kafka lost records", "topic", f.Topic, "partition", f.Partition, "error", f.Err)
	} else if time.Since(t.logged) > quiet {
		t.logged = time.Now()
		log.Warn("fetching failed, it is tried again", "topic", f.Topic, "partition", f.Partition, "error", f.Err)
	}
}

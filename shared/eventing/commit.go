package eventing

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const commitTimeout = 5 * time.Second

// commitOffsets commits as the client's group member and reports every refusal,
// also that of a single partition.
func commitOffsets(ctx context.Context, client *kgo.Client, offsets map[string]map[int32]kgo.EpochOffset) error {
	var failed error
	client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, res *kmsg.OffsetCommitResponse, err error) {
		failed = refusal(res, err)
	})
	if failed != nil {
		return fmt.Errorf("committing offsets: %w", failed)
	}
	return nil
}

func refusal(res *kmsg.OffsetCommitResponse, err error) error {
	if err != nil {
		return err
	}
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("topic %s, partition %d: %w", t.Topic, p.Partition, err)
			}
		}
	}
	return nil
}

// commits is the committing of one Trigger's offsets.
type commits struct {
	reader       *reader
	subscription *subscription

	// mu lets one commit at a time happen, from the look at the positions to the
	// answer, so that an older position never follows a newer one.
	mu sync.Mutex
	// last is when something was committed.
	last    time.Time
	failing bool
}

// patientCommits is how many intervals a Trigger's commit waits when it has only
// passed over events that it does not want: the restart after a crash looks at them
// again, and that costs little.
const patientCommits = 5

// commitWhenMoved commits once an interval while positions move, and rests while they
// do not.
func (r *reader) commitWhenMoved() {
	interval := r.config.CommitInterval
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-r.stopped:
			return
		case <-r.moved:
		}
		timer.Reset(interval)
		select {
		case <-r.stopped:
			return
		case <-timer.C:
		}
		ctx, cancel := context.WithTimeout(r.hard, commitTimeout)
		if left := r.commit(ctx, r.partitions(), false); left {
			r.nudge()
		}
		cancel()
	}
}

// commit writes the positions of the Triggers in the partitions, as far as they have
// moved, and reports whether something is left to be committed. Unless everything
// is, those of Triggers without effects can wait.
func (r *reader) commit(ctx context.Context, ps []*sharedPartition, everything bool) (left bool) {
	var all sync.WaitGroup
	results := make([]bool, len(r.triggers))
	for i, s := range r.triggers {
		all.Go(func() { results[i] = s.commits.commit(ctx, i, ps, everything) })
	}
	all.Wait()
	for _, l := range results {
		left = left || l
	}
	return left
}

func (c *commits) commit(ctx context.Context, trigger int, ps []*sharedPartition, everything bool) (left bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	acted := false
	moved := make(map[*lane]int64)
	for _, p := range ps {
		l := p.lanes[trigger]
		if p.ended.Load() {
			continue
		}
		acted = l.acted.Swap(false) || acted
		if at := l.position(); at != l.committed {
			moved[l] = at
		}
	}
	if len(moved) == 0 {
		return false
	}
	if !acted && !everything && time.Since(c.last) < patientCommits*c.reader.config.CommitInterval {
		return true
	}
	err := c.write(ctx, moved)
	if err != nil {
		for l := range moved {
			l.acted.Store(true)
		}
		if !c.failing && c.reader.hard.Err() == nil {
			c.subscription.log.Warn("committing offsets failed, it is tried again", "group", c.subscription.group, "error", err)
		}
		c.failing = true
		return true
	}
	for l, at := range moved {
		l.committed = at
	}
	c.failing, c.last = false, time.Now()
	return false
}

// write commits for a group without members.
func (c *commits) write(ctx context.Context, moved map[*lane]int64) error {
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic = c.reader.topic
	for l, at := range moved {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = l.p.id, at
		topic.Partitions = append(topic.Partitions, p)
	}
	id, err := c.reader.topicID(ctx)
	if err != nil {
		return err
	}
	topic.TopicID = id
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group = c.subscription.group
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(ctx, c.reader.client)
	if err := refusal(res, err); err != nil {
		if errors.Is(err, kerr.UnknownTopicID) {
			c.reader.forgetTopicID() // the topic was made anew
		}
		return fmt.Errorf("committing offsets: %w", err)
	}
	return nil
}

// topicID is the topic's id, which newer brokers know it by in commits.
func (r *reader) topicID(ctx context.Context) (kadm.TopicID, error) {
	r.mu.Lock()
	id := r.id
	r.mu.Unlock()
	if id != nil {
		return *id, nil
	}
	metadata, err := kadm.NewClient(r.client).Metadata(ctx, r.topic)
	if err == nil {
		err = metadata.Topics.Error()
	}
	if err != nil {
		return kadm.TopicID{}, fmt.Errorf("looking up topic %s: %w", r.topic, err)
	}
	found := metadata.Topics[r.topic].ID
	r.mu.Lock()
	r.id = &found
	r.mu.Unlock()
	return found, nil
}

func (r *reader) forgetTopicID() {
	r.mu.Lock()
	r.id = nil
	r.mu.Unlock()
}

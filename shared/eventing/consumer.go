package eventing

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// consumer reads topics as a member of a consumer group, makes events of the records
// and hands them, partition by partition, to deliver. It commits only what deliver
// has returned nil for, and nothing of a partition that it has lost.
type consumer struct {
	work
	group  string
	topics []string
	// decode makes the record's event in m, whose Attrs it uses again, and reports
	// whether it is to be delivered.
	decode func(m *events.Message, r *kgo.Record) bool

	// client is set once ready is closed: the group's callbacks may come before.
	client *kgo.Client
	ready  chan struct{}
	// stopped is closed when nothing new is to be begun; hard ends all requests.
	stopped  chan struct{}
	stopOnce sync.Once
	hard     context.Context
	cancel   context.CancelFunc
	polling  sync.WaitGroup

	mu         sync.Mutex
	partitions map[topicPartition]*partition
	// commitMu lets one commit at a time happen, from the look at the positions to
	// the answer, so that an older position never follows a newer one.
	commitMu sync.Mutex
	// scratch and matched belong to the polling goroutine.
	scratch events.Message
	matched []queued
	trouble fetchTrouble
}

type topicPartition struct {
	topic string
	id    int32
}

// start joins the group. Everything else happens on the consumer's own goroutines
// until shut is called.
func (c *consumer) start(opts []kgo.Opt) error {
	c.mu.Lock() // the lag may be asked for already
	c.partitions = map[topicPartition]*partition{}
	c.mu.Unlock()
	c.stopped, c.ready = make(chan struct{}), make(chan struct{})
	c.hard, c.cancel = context.WithCancel(context.Background())
	opts = append(memberOptions(opts, c.config, c.group),
		kgo.ConsumeTopics(c.topics...),
		kgo.OnPartitionsAssigned(c.assigned),
		kgo.OnPartitionsRevoked(c.revoked),
		kgo.OnPartitionsLost(c.lost),
	)
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("making the consumer of group %s: %w", c.group, err)
	}
	c.client = client
	close(c.ready)
	c.polling.Go(c.poll)
	c.polling.Go(c.commitRegularly)
	return nil
}

// shut stops the consumer: what is in flight has until the deadline of ctx, then the
// positions are committed and the group is left.
func (c *consumer) shut(ctx context.Context) {
	c.stopOnce.Do(func() { close(c.stopped) })
	c.polling.Wait()
	c.mu.Lock()
	all := make([]*partition, 0, len(c.partitions))
	for _, p := range c.partitions {
		all = append(all, p)
	}
	c.mu.Unlock()
	c.finish(ctx, all)
	c.cancel()
	c.client.CloseAllowingRebalance()
}

// abandon drops everything as if the process had died: nothing is drained and
// nothing committed. It is for tests.
func (c *consumer) abandon() {
	c.cancel()
	c.stopOnce.Do(func() { close(c.stopped) })
	c.polling.Wait()
	c.mu.Lock()
	for tp, p := range c.partitions {
		p.halt()
		delete(c.partitions, tp)
	}
	c.mu.Unlock()
	c.client.CloseAllowingRebalance()
}

// finish lets the partitions end what they have begun, commits where they got to and
// forgets them.
func (c *consumer) finish(ctx context.Context, ps []*partition) {
	qs := make([]*queue, len(ps))
	for i, p := range ps {
		qs[i] = &p.queue
	}
	drain(ctx, qs)
	commit, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := c.commit(commit, ps); err != nil {
		c.log.Warn("the last positions were not committed, their events come again", "group", c.group, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range ps {
		delete(c.partitions, p.tp)
	}
}

func (c *consumer) assigned(_ context.Context, _ *kgo.Client, added map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for topic, ids := range added {
		for _, id := range ids {
			p := newPartition(c, topicPartition{topic, id})
			c.partitions[p.tp] = p
			go p.run()
		}
	}
}

// taken are the consumer's partitions among those that it no longer has.
func (c *consumer) taken(gone map[string][]int32) []*partition {
	<-c.ready
	c.client.ResumeFetchPartitions(gone) // a pause would outlive the assignment
	c.mu.Lock()
	defer c.mu.Unlock()
	var ps []*partition
	for topic, ids := range gone {
		for _, id := range ids {
			if p := c.partitions[topicPartition{topic, id}]; p != nil {
				ps = append(ps, p)
			}
		}
	}
	return ps
}

// revoked runs before another member gets the partitions.
func (c *consumer) revoked(ctx context.Context, _ *kgo.Client, gone map[string][]int32) {
	ps := c.taken(gone)
	if len(ps) == 0 {
		return
	}
	drain, cancel := context.WithTimeout(ctx, c.config.DrainTimeout)
	defer cancel()
	c.finish(drain, ps)
}

// lost runs when another member may have the partitions already: what is in flight
// is abandoned, and a commit would be wrong.
func (c *consumer) lost(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	for _, p := range c.taken(gone) {
		p.lost.Store(true)
		p.cancel()
		p.halt()
		c.mu.Lock()
		delete(c.partitions, p.tp)
		c.mu.Unlock()
	}
}

func (c *consumer) poll() {
	poll(c.hard, c.client, c.stopped, func(f *kgo.FetchTopicPartition) {
		if f.Err != nil {
			c.trouble.note(c.log, f)
			c.flow.failure.note("fetching " + f.Topic + ": " + f.Err.Error())
		}
		c.mu.Lock()
		p := c.partitions[topicPartition{f.Topic, f.Partition}]
		c.mu.Unlock()
		if p != nil && len(f.Records) > 0 && p.add(f.FetchPartition) {
			p.valve.shut(c.client, p.tp, &p.queue)
		}
	}, func() {})
}

func (c *consumer) commitRegularly() {
	t := time.NewTicker(c.config.CommitInterval)
	defer t.Stop()
	var failing bool
	for {
		select {
		case <-c.stopped:
			return
		case <-t.C:
		}
		c.mu.Lock()
		all := make([]*partition, 0, len(c.partitions))
		for _, p := range c.partitions {
			all = append(all, p)
		}
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(c.hard, commitTimeout)
		err := c.commit(ctx, all)
		cancel()
		if err != nil && !failing && c.hard.Err() == nil {
			c.log.Warn("committing offsets failed, it is tried again", "group", c.group, "error", err)
		}
		failing = err != nil
	}
}

// commit writes the positions of the partitions that have moved.
func (c *consumer) commit(ctx context.Context, ps []*partition) error {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	moved := make(map[*partition]int64)
	for _, p := range ps {
		at, ok := p.position()
		if !ok || at == p.committed || p.lost.Load() {
			continue
		}
		if offsets[p.tp.topic] == nil {
			offsets[p.tp.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.tp.topic][p.tp.id] = kgo.EpochOffset{Epoch: -1, Offset: at}
		moved[p] = at
	}
	if len(moved) == 0 {
		return nil
	}
	if err := commitOffsets(ctx, c.client, offsets); err != nil {
		return err
	}
	for p, at := range moved {
		p.committed = at
	}
	return nil
}

// lag is how many records are still to be done in the consumer's partitions.
func (c *consumer) lag() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum int64
	for _, p := range c.partitions {
		sum += p.lag()
	}
	return sum
}

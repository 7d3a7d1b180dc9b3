package eventing

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// partition is one assignment of a partition to a consumer.
type partition struct {
	queue
	c         *consumer
	tp        topicPartition
	watermark atomic.Int64
	valve     valve

	// lost is set when another member may have the partition.
	lost atomic.Bool
	// committed belongs to the consumer's commitMu.
	committed int64
}

func newPartition(c *consumer, tp topicPartition) *partition {
	p := &partition{c: c, tp: tp, committed: -1}
	p.init(c.hard, &c.work, p.resume)
	return p
}

// add takes the fetched records and reports whether the buffer is full.
func (p *partition) add(f kgo.FetchPartition) bool {
	c, es, fetched := p.c, p.c.matched[:0], 0
	for _, r := range f.Records {
		size := eventSize(r)
		fetched += size
		if c.decode(&c.scratch, r) {
			es = append(es, queued{events.Message{Attrs: slices.Clone(c.scratch.Attrs), Data: c.scratch.Data}, r.Offset, size})
		}
	}
	p.watermark.Store(f.HighWatermark)
	p.queue.add(es, f.Records[len(f.Records)-1].Offset+1, fetched)
	c.flow.received.Add(uint64(len(f.Records)))
	c.flow.matched.Add(uint64(len(es)))
	clear(es)
	c.matched = es
	return p.full()
}

func (p *partition) lag() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.lag(p.watermark.Load())
}

// resume lets fetching go on when there is room again.
func (p *partition) resume() {
	if p.roomy() {
		p.valve.open(p.c.client, p.tp)
	}
}

// valve stops and resumes the fetching of one partition. The zero valve is open.
type valve struct {
	mu     sync.Mutex
	closed bool
}

// shut stops the fetching unless there is room in the queue in the meantime.
func (v *valve) shut(client *kgo.Client, tp topicPartition, q *queue) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed && q.full() {
		client.PauseFetchPartitions(map[string][]int32{tp.topic: {tp.id}})
		v.closed = true
	}
}

func (v *valve) open(client *kgo.Client, tp topicPartition) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		client.ResumeFetchPartitions(map[string][]int32{tp.topic: {tp.id}})
		v.closed = false
	}
}

// forget takes the valve for open again: the client no longer has the partition.
func (v *valve) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = false
}

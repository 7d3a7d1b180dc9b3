package eventing

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// partition is one assignment of a partition to this consumer: what has been read of
// it, what is being delivered and where it is done up to.
type partition struct {
	c  *consumer
	tp topicPartition
	// ctx ends the requests of the partition; stopping only keeps new ones from
	// beginning.
	ctx      context.Context
	cancel   context.CancelFunc
	stopping chan struct{}
	haltOnce sync.Once
	// done is closed when the worker and all its deliveries have ended.
	done chan struct{}
	// wake tells the worker to look again.
	wake chan struct{}

	mu sync.Mutex
	// queue are the events that wait; the first one has the number head.
	queue []queued
	head  uint64
	// bytes are those of all events that wait or are under way.
	bytes     int
	tracker   tracker
	flying    int
	watermark int64

	// pauseMu orders pauses and resumes; it is taken before mu.
	pauseMu sync.Mutex
	paused  bool

	// lost is set when another member may have the partition.
	lost atomic.Bool
	// committed belongs to the consumer's commitMu.
	committed int64
}

type queued struct {
	m    events.Message
	size int
}

func newPartition(c *consumer, tp topicPartition) *partition {
	p := &partition{
		c: c, tp: tp, stopping: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1), committed: -1,
	}
	p.ctx, p.cancel = context.WithCancel(c.hard)
	return p
}

// eventOverhead is what an event in memory costs besides its bytes.
const eventOverhead = 256

// add takes the fetched records and reports whether the buffer is full.
func (p *partition) add(f kgo.FetchPartition) bool {
	c, scratch := p.c, &p.c.scratch
	matched := 0
	p.mu.Lock()
	for _, r := range f.Records {
		if !c.decode(scratch, r) {
			continue
		}
		matched++
		size := len(r.Key) + len(r.Value) + eventOverhead
		for i := range r.Headers {
			size += len(r.Headers[i].Value)
		}
		p.tracker.begin(r.Offset)
		p.queue = append(p.queue, queued{events.Message{Attrs: slices.Clone(scratch.Attrs), Data: scratch.Data}, size})
		p.bytes += size
	}
	p.tracker.skip(f.Records[len(f.Records)-1].Offset + 1)
	p.watermark = f.HighWatermark
	full := p.bytes > c.config.BufferBytes
	p.mu.Unlock()
	c.flow.received.Add(uint64(len(f.Records)))
	c.flow.matched.Add(uint64(matched))
	if matched > 0 {
		p.nudge()
	}
	return full
}

func (p *partition) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *partition) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes > p.c.config.BufferBytes
}

func (p *partition) position() (int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.position()
}

func (p *partition) lag() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.tracker.position()
	if !ok {
		return 0
	}
	return max(0, p.watermark-at)
}

// halt keeps new deliveries from beginning and ends the waits for retries.
func (p *partition) halt() { p.haltOnce.Do(func() { close(p.stopping) }) }

// batch is a run of events that are delivered together.
type batch struct {
	ms    []events.Message
	first uint64
	bytes int
}

// take removes the next events from the queue, within the bounds of a batch, into
// ms. The caller holds mu and has seen that the queue is not empty.
func (p *partition) take(ms []events.Message) batch {
	b := batch{ms: ms[:0], first: p.head}
	for len(b.ms) < len(p.queue) && len(b.ms) < p.c.batchEvents {
		q := &p.queue[len(b.ms)]
		if len(b.ms) > 0 && b.bytes+q.size > p.c.batchBytes {
			break
		}
		b.ms = append(b.ms, q.m)
		b.bytes += q.size
	}
	clear(p.queue[:len(b.ms)]) // so that what has been delivered can be freed
	p.queue = p.queue[len(b.ms):]
	if len(p.queue) == 0 {
		p.queue = nil
	}
	p.head += uint64(len(b.ms))
	return b
}

// finish marks the batch as done and lets fetching go on when there is room again.
func (p *partition) finish(b batch) {
	p.mu.Lock()
	p.tracker.finish(b.first, len(b.ms))
	p.bytes -= b.bytes
	room := p.bytes < p.c.config.BufferBytes/2
	p.mu.Unlock()
	if !room {
		return
	}
	p.pauseMu.Lock()
	defer p.pauseMu.Unlock()
	if p.paused {
		p.c.client.ResumeFetchPartitions(map[string][]int32{p.tp.topic: {p.tp.id}})
		p.paused = false
	}
}

// run delivers until the partition is halted.
func (p *partition) run() {
	defer close(p.done)
	if p.c.ordered {
		p.runOrdered()
	} else {
		p.runUnordered()
	}
}

func (p *partition) scope() scope { return scope{p.ctx, p.stopping} }

// runOrdered has one delivery under way at a time. What arrives meanwhile is the
// next one, so batches grow with the load and need no timer.
func (p *partition) runOrdered() {
	var ms []events.Message
	for p.scope().err() == nil {
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.mu.Unlock()
			select {
			case <-p.wake:
			case <-p.stopping:
			case <-p.ctx.Done():
			}
			continue
		}
		b := p.take(ms)
		p.mu.Unlock()
		if p.c.deliver(p.scope(), b.ms) != nil {
			return
		}
		p.finish(b)
		clear(b.ms)
		ms = b.ms
	}
}

const (
	// overdue is how long a delivery may be under way before the next one of an
	// unordered partition begins although its batch is not full.
	overdue = 5 * time.Millisecond
	// maxWindow bounds how many events an unordered partition goes on beyond one that
	// is stuck; a restart repeats them.
	maxWindow = 10_000
)

// runUnordered has several deliveries under way. The next one begins when none is
// under way, when it would be a full batch, or when the last one takes its time:
// then a slow event does not hold up the others, and a quick subscriber still gets
// batches.
func (p *partition) runUnordered() {
	var deliveries sync.WaitGroup
	defer deliveries.Wait()
	late := false
	timer := time.NewTimer(overdue)
	defer timer.Stop()
	for p.scope().err() == nil {
		p.mu.Lock()
		begin := len(p.queue) > 0 && p.flying < p.c.config.InFlight && p.head-p.tracker.first < maxWindow &&
			(p.flying == 0 || late || len(p.queue) >= p.c.batchEvents)
		if !begin {
			p.mu.Unlock()
			select {
			case <-p.wake:
			case <-timer.C:
				late = true
			case <-p.stopping:
			case <-p.ctx.Done():
			}
			continue
		}
		b := p.take(nil)
		p.flying++
		p.mu.Unlock()
		late = false
		timer.Reset(overdue)
		deliveries.Go(func() {
			err := p.c.deliver(p.scope(), b.ms)
			if err == nil {
				p.finish(b)
			}
			p.mu.Lock()
			p.flying--
			p.mu.Unlock()
			p.nudge()
		})
	}
}

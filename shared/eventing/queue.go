package eventing

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// work is how the events of a source or Trigger are delivered.
type work struct {
	config  *Config
	log     *slog.Logger
	flow    *flow
	ordered bool
	// batchEvents and batchBytes bound a delivery.
	batchEvents, batchBytes int
	deliver                 func(s scope, ms []events.Message) error
}

// queue holds what has been read of one partition for one source or Trigger, delivers
// it, and knows up to where it is done.
type queue struct {
	*work
	// finished is called, without locks, whenever events have had their effects.
	finished func()
	// ctx ends the requests; stopping only keeps new ones from beginning.
	ctx      context.Context
	cancel   context.CancelFunc
	stopping chan struct{}
	haltOnce sync.Once
	// done is closed when the worker and all its deliveries have ended.
	done chan struct{}
	// wake tells the worker to look again.
	wake chan struct{}

	mu sync.Mutex
	// waiting are the events that wait; the first one has the number head.
	waiting []queued
	head    uint64
	// bytes are those of all events that wait or are under way.
	bytes   int
	tracker tracker
	flying  int
}

type queued struct {
	m      events.Message
	offset int64
	size   int
}

// init makes the queue ready for run. Its requests end with ctx.
func (q *queue) init(ctx context.Context, w *work, finished func()) {
	q.work, q.finished = w, finished
	q.stopping, q.done, q.wake = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	q.ctx, q.cancel = context.WithCancel(ctx)
}

// eventOverhead is what an event in memory costs besides its bytes.
const eventOverhead = 256

func eventSize(r *kgo.Record) int {
	size := len(r.Key) + len(r.Value) + eventOverhead
	for i := range r.Headers {
		size += len(r.Headers[i].Value)
	}
	return size
}

// own gives the event memory of its own. Until then it keeps all that was fetched
// together with it.
func (e *queued) own() {
	n := 0
	for i := range e.m.Attrs {
		n += len(e.m.Attrs[i].Value)
	}
	var text strings.Builder
	text.Grow(n)
	attrs := make([]events.Attr, len(e.m.Attrs))
	for i, a := range e.m.Attrs {
		from := text.Len()
		text.WriteString(a.Value)
		attrs[i] = events.Attr{Name: a.Name, Value: text.String()[from:]}
	}
	e.m.Attrs = attrs
	if e.m.Data != nil {
		e.m.Data = append(make([]byte, 0, len(e.m.Data)), e.m.Data...)
	}
}

// add takes the events of records that were fetched together, in their order. All
// records before the offset end have been seen with them, of fetched bytes in all.
func (q *queue) add(es []queued, end int64, fetched int) {
	size := 0
	for i := range es {
		size += es[i].size
	}
	q.mu.Lock()
	if len(es) > 0 && q.bytes > 0 && size < fetched/2 {
		// They will wait, and what was fetched with them would wait in memory, too,
		// uncounted.
		for i := range es {
			es[i].own()
		}
	}
	for i := range es {
		q.tracker.begin(es[i].offset)
	}
	q.waiting = append(q.waiting, es...)
	q.bytes += size
	q.tracker.skip(end)
	q.mu.Unlock()
	if len(es) > 0 {
		q.nudge()
	}
}

func (q *queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) full() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes > q.config.BufferBytes
}

// roomy reports whether the queue is empty enough for reading to go on.
func (q *queue) roomy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes < q.config.BufferBytes/2
}

// position is the offset that can be committed, and whether there is one.
func (q *queue) position() (int64, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tracker.position()
}

// halt keeps new deliveries from beginning and ends the waits for retries.
func (q *queue) halt() { q.haltOnce.Do(func() { close(q.stopping) }) }

// drain lets the queues end what they have begun, for as long as ctx allows.
func drain(ctx context.Context, qs []*queue) {
	for _, q := range qs {
		q.halt()
	}
	for _, q := range qs {
		select {
		case <-q.done:
		case <-ctx.Done():
			q.cancel()
			<-q.done
		}
		q.cancel()
	}
}

// batch is a run of events that are delivered together.
type batch struct {
	ms    []events.Message
	first uint64
	bytes int
}

// take removes the next events from the queue, within the bounds of a batch, into
// ms. The caller holds mu and has seen that the queue is not empty.
func (q *queue) take(ms []events.Message) batch {
	b := batch{ms: ms[:0], first: q.head}
	for len(b.ms) < len(q.waiting) && len(b.ms) < q.batchEvents {
		e := &q.waiting[len(b.ms)]
		if len(b.ms) > 0 && b.bytes+e.size > q.batchBytes {
			break
		}
		b.ms = append(b.ms, e.m)
		b.bytes += e.size
	}
	clear(q.waiting[:len(b.ms)]) // so that what has been delivered can be freed
	q.waiting = q.waiting[len(b.ms):]
	if len(q.waiting) == 0 {
		q.waiting = nil
	}
	q.head += uint64(len(b.ms))
	return b
}

// finish marks the batch as done.
func (q *queue) finish(b batch) {
	q.mu.Lock()
	q.tracker.finish(b.first, len(b.ms))
	q.bytes -= b.bytes
	q.mu.Unlock()
	q.finished()
}

// run delivers until the queue is halted.
func (q *queue) run() {
	defer close(q.done)
	if q.ordered {
		q.runOrdered()
	} else {
		q.runUnordered()
	}
}

func (q *queue) scope() scope { return scope{q.ctx, q.stopping} }

// runOrdered has one delivery under way at a time. What arrives meanwhile is the
// next one, so batches grow with the load and need no timer.
func (q *queue) runOrdered() {
	var ms []events.Message
	for q.scope().err() == nil {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.mu.Unlock()
			select {
			case <-q.wake:
			case <-q.stopping:
			case <-q.ctx.Done():
			}
			continue
		}
		b := q.take(ms)
		q.mu.Unlock()
		if q.deliver(q.scope(), b.ms) != nil {
			return
		}
		q.finish(b)
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
func (q *queue) runUnordered() {
	var deliveries sync.WaitGroup
	defer deliveries.Wait()
	late := false
	timer := time.NewTimer(overdue)
	defer timer.Stop()
	for q.scope().err() == nil {
		q.mu.Lock()
		begin := len(q.waiting) > 0 && q.flying < q.config.InFlight && q.head-q.tracker.first < maxWindow &&
			(q.flying == 0 || late || len(q.waiting) >= q.batchEvents)
		if !begin {
			q.mu.Unlock()
			select {
			case <-q.wake:
			case <-timer.C:
				late = true
			case <-q.stopping:
			case <-q.ctx.Done():
			}
			continue
		}
		b := q.take(nil)
		q.flying++
		q.mu.Unlock()
		late = false
		timer.Reset(overdue)
		deliveries.Go(func() {
			err := q.deliver(q.scope(), b.ms)
			if err == nil {
				q.finish(b)
			}
			q.mu.Lock()
			q.flying--
			q.mu.Unlock()
			q.nudge()
		})
	}
}

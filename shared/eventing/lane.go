package eventing

import (
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// sharedPartition is one assignment of a partition to a reader.
type sharedPartition struct {
	id    int32
	lanes []*lane // by Trigger

	// mu is held while records are handed on. It comes before the locks of queues.
	mu sync.Mutex
	// next is the offset of the first record that has not been handed on.
	next      int64
	watermark int64
	// ended is set when the reader no longer has the partition.
	ended atomic.Bool
	// detached are the lanes that dispatch has detached.
	detached []*lane
}

// lane is the way of one Trigger through one partition. It is attached to the reader,
// or reads for itself, or waits for room to do so.
type lane struct {
	queue
	s *subscription
	p *sharedPartition

	// The Trigger has, under p.mu: seen all records before the offset at, and when it
	// is attached all before p.next.
	at       int64
	attached atomic.Bool // written under p.mu
	// reading is set while the Trigger's catchUp has the lane.
	reading bool
	// turn numbers the times that the catchUp began to read it, under the catchUp's mu.
	turn int
	// watermark is what the catchUp has seen.
	watermark int64
	valve     valve // of the catchUp's fetching

	// acted is set when events have had effects that are not committed; it and
	// committed belong to the subscription's commits.
	acted     atomic.Bool
	committed int64
}

// newLane is a lane that has got to the offset.
func newLane(r *reader, s *subscription, p *sharedPartition, at int64) *lane {
	l := &lane{s: s, p: p, at: at, committed: at}
	l.init(r.hard, &s.work, l.progress)
	l.tracker.skip(at)
	return l
}

// dispatch hands the fetched records to the attached lanes and returns those that had
// to be detached. The caller holds mu.
func (p *sharedPartition) dispatch(r *reader, f *kgo.FetchPartition) []*lane {
	first, end := f.Records[0].Offset, f.Records[len(f.Records)-1].Offset+1
	if first < p.next {
		// The topic was made anew, or cut: what comes now has not been seen.
		for _, l := range p.lanes {
			l.at = min(l.at, first)
		}
	}
	p.watermark, p.detached = f.HighWatermark, p.detached[:0]
	fetched := 0
	for _, rec := range f.Records {
		fetched += len(rec.Value) + eventOverhead
		r.interest.match(&r.scratch, rec, func(i int, e queued) {
			if l := p.lanes[i]; l.attached.Load() && rec.Offset >= l.at {
				r.matched[i] = append(r.matched[i], e)
			}
		})
	}
	p.next = end
	for i, l := range p.lanes {
		if !l.attached.Load() {
			continue
		}
		es := r.matched[i]
		l.s.flow.received.Add(seen(f.Records, l.at))
		if len(es) == 0 {
			continue
		}
		l.s.flow.matched.Add(uint64(len(es)))
		l.add(es, max(l.at, end), fetched)
		clear(es)
		r.matched[i] = es[:0]
		if l.full() {
			l.at = max(l.at, end)
			l.attached.Store(false)
			p.detached = append(p.detached, l)
		}
	}
	return p.detached
}

// seen is how many of the records are new to who has seen all before the offset.
func seen(rs []*kgo.Record, before int64) uint64 {
	if rs[0].Offset >= before {
		return uint64(len(rs))
	}
	n := uint64(0)
	for _, r := range rs {
		if r.Offset >= before {
			n++
		}
	}
	return n
}

// end forgets the partition; what its lanes still do is abandoned.
func (p *sharedPartition) end() {
	p.ended.Store(true)
	for _, l := range p.lanes {
		l.cancel()
		l.halt()
		l.s.catchUp.drop(l)
	}
}

// progress runs when events of the lane have had their effects.
func (l *lane) progress() {
	l.acted.Store(true)
	l.s.commits.reader.nudge()
	if !l.attached.Load() {
		l.resume()
	}
}

// resume lets a detached lane go on when its queue has room: attached, when it has
// seen all that the reader has handed on, else with its own reading.
func (l *lane) resume() {
	if !l.roomy() {
		return
	}
	p := l.p
	p.mu.Lock()
	if p.ended.Load() || l.attached.Load() {
		p.mu.Unlock()
		return
	}
	if l.reading {
		p.mu.Unlock()
		l.s.catchUp.resume(l)
		return
	}
	if l.attach() {
		p.mu.Unlock()
		return
	}
	l.reading = true
	at := l.at
	p.mu.Unlock()
	l.s.catchUp.read(l, at)
}

// attach joins the lane to the reader if it has seen as much. The caller holds p.mu.
func (l *lane) attach() bool {
	if l.at < l.p.next {
		return false
	}
	l.attached.Store(true)
	return true
}

// position is the offset that can be committed.
func (l *lane) position() int64 {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen()
	at, _ := l.tracker.position()
	return at
}

// seen tells the tracker what the reader has handed on, which is all that an attached
// lane has to see. The caller holds the locks of partition and queue.
func (l *lane) seen() {
	if l.attached.Load() {
		l.tracker.skip(max(l.at, l.p.next))
	}
}

// lag is how many events are still to be done, and how many records still to be seen.
func (l *lane) lag() int64 {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen()
	return l.tracker.lag(max(l.p.watermark, l.watermark))
}

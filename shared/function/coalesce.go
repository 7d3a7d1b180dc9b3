package function

import (
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

// unit is what one request hands over: its events stay together and in order.
type unit struct {
	events  []event.Event
	hops    []hop // one an event, or none when nothing is traced
	results []Result

	// wake gets the units to lead when the unit was chosen as the next leader, nil
	// when another leader has set its results. It is made when the unit queues.
	wake chan []*unit
	self [1]*unit // the units of a call that is made for this one alone
}

// coalescer merges units that are in flight at the same time into few calls.
//
// At most limit calls run at one time. A unit that finds one of them free runs at
// once, in its own goroutine, alone: no queue, no hand-over, no timer. A unit that
// does not waits. When a call ends, the oldest waiting unit takes its place and
// everything that waits along, up to maxBatch events. So calls grow exactly as far
// as the handler is slower than the arrivals.
type coalescer struct {
	call     func([]*unit) // sets the results of all units
	limit    int
	maxBatch int
	maxQueue int

	mu      sync.Mutex
	running int
	waiting []*unit // in order of arrival
	queued  int     // events of waiting
}

// do hands the unit over and returns when its results are set, or false at once
// when too many events wait already.
func (c *coalescer) do(u *unit) bool {
	c.mu.Lock()
	if c.running < c.limit {
		c.running++
		c.mu.Unlock()
		u.self[0] = u
		c.lead(u.self[:])
		return true
	}
	// A unit larger than the whole queue is let in when nothing else waits.
	if c.queued > 0 && c.queued+len(u.events) > c.maxQueue {
		c.mu.Unlock()
		return false
	}
	u.wake = make(chan []*unit, 1)
	c.waiting = append(c.waiting, u)
	c.queued += len(u.events)
	c.mu.Unlock()

	if units := <-u.wake; units != nil {
		c.lead(units)
	}
	return true
}

// lead makes one call for the units, of which the caller's is the first, and gives
// its place on.
func (c *coalescer) lead(units []*unit) {
	c.call(units)
	for _, u := range units[1:] {
		u.wake <- nil
	}
	c.mu.Lock()
	next := c.next()
	if next == nil {
		c.running--
	}
	c.mu.Unlock()
	if next != nil {
		next[0].wake <- next
	}
}

// next takes the units of the next call off the queue, nil if none wait.
func (c *coalescer) next() []*unit {
	n, events := 0, 0
	for n < len(c.waiting) && (n == 0 || events+len(c.waiting[n].events) <= c.maxBatch) {
		events += len(c.waiting[n].events)
		n++
	}
	if n == 0 {
		return nil
	}
	c.queued -= events
	if n == len(c.waiting) {
		units := c.waiting
		c.waiting = nil
		return units
	}
	units := c.waiting[:n:n]
	c.waiting = c.waiting[n:]
	return units
}

// overloaded is the answer to what the queue has no room for. One second is the
// least that Retry-After can say.
func overloaded(maxQueue int) error {
	return Overloaded(time.Second, "too many events wait already (MAX_QUEUE is %d)", maxQueue)
}

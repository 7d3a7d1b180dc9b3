package eventing

import (
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// catchUp reads for one Trigger the partitions in which it is detached from the
// Broker's reader, until it has seen there what the reader has. It has clients only
// while it needs them: one, most of the time.
//
// A client drops all that it has fetched, of all partitions, when one is taken out of
// it or moved. Where a Trigger is behind in many partitions and each of them is level
// now and then, nothing would ever be fetched long enough to be used. So a partition
// that is done is only paused while others are being read; if it is behind again
// before they are done, another client reads it.
type catchUp struct {
	reader       *reader
	subscription *subscription

	// mu comes before the locks of partitions and queues.
	mu       sync.Mutex
	readings []*reading
	closed   bool
}

// reading is a client that reads partitions for a catchUp.
type reading struct {
	c      *catchUp
	client *kgo.Client
	// ended is closed when the client's polling goroutine has ended.
	ended chan struct{}

	// Under the catchUp's mu: the lanes being read, and the partitions that the client
	// still has although they are not.
	lanes  map[int32]*lane
	parked []int32
	idle   *time.Timer

	// scratch, matched, touched and trouble belong to the polling goroutine.
	scratch events.Message
	matched []queued
	touched []*lane
	trouble fetchTrouble
}

// linger is how long an idle client is kept: a Trigger that is slow once is often slow
// again soon.
const linger = 5 * time.Second

func (c *catchUp) offsets(l *lane, from int64) map[string]map[int32]kgo.Offset {
	return map[string]map[int32]kgo.Offset{c.reader.topic: {l.p.id: kgo.NewOffset().At(from)}}
}

func (c *catchUp) partition(l *lane) topicPartition { return topicPartition{c.reader.topic, l.p.id} }

// of is what reads the lane, nil when nothing does. The caller holds mu.
func (c *catchUp) of(l *lane) *reading {
	for _, r := range c.readings {
		if r.lanes[l.p.id] == l {
			return r
		}
	}
	return nil
}

// read begins to read the lane's partition from the offset on.
func (c *catchUp) read(l *lane, from int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || l.p.ended.Load() {
		return
	}
	l.turn++
	for _, r := range c.readings {
		if r.lanes[l.p.id] == nil && !slices.Contains(r.parked, l.p.id) {
			r.lanes[l.p.id] = l
			r.client.AddConsumePartitions(c.offsets(l, from))
			return
		}
	}
	opts := c.reader.opts
	client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.ConsumePartitions(c.offsets(l, from)))...)
	if err != nil {
		// The reader's own client was made with the same options.
		c.subscription.log.Error("making a client to catch up with failed", "error", err)
		return
	}
	r := &reading{c: c, client: client, ended: make(chan struct{}), lanes: map[int32]*lane{l.p.id: l}}
	c.readings = append(c.readings, r)
	go func() {
		defer close(r.ended)
		poll(c.reader.hard, client, c.reader.stopped, r.handle, r.join)
	}()
}

// handle takes what was fetched.
func (r *reading) handle(f *kgo.FetchTopicPartition) {
	s := r.c.subscription
	if f.Err != nil {
		r.trouble.note(s.log, f)
		s.flow.failure.note("fetching " + f.Topic + ": " + f.Err.Error())
	}
	turn, l := 0, (*lane)(nil)
	r.c.mu.Lock()
	if l = r.lanes[f.Partition]; l != nil {
		turn = l.turn
	}
	r.c.mu.Unlock()
	if l == nil || len(f.Records) == 0 {
		return
	}
	es, fetched := r.match(f.Records)
	first, end := f.Records[0].Offset, f.Records[len(f.Records)-1].Offset+1
	r.c.mu.Lock()
	if r.lanes[f.Partition] != l || l.turn != turn {
		r.c.mu.Unlock()
		return // it was attached meanwhile
	}
	l.p.mu.Lock()
	r.c.mu.Unlock()
	if !l.reading {
		l.p.mu.Unlock()
		return
	}
	if first < l.at && f.HighWatermark < l.at {
		l.at = first // the topic was made anew, or cut
	}
	// Of what was fetched before the lane was attached and detached again, the lane has
	// seen a part.
	es = slices.DeleteFunc(es, func(e queued) bool { return e.offset < l.at })
	s.flow.received.Add(seen(f.Records, l.at))
	s.flow.matched.Add(uint64(len(es)))
	l.at, l.watermark = max(l.at, end), f.HighWatermark
	l.add(es, l.at, fetched)
	l.p.mu.Unlock()
	clear(es)
	r.matched = es[:0]
	if l.full() {
		r.c.shut(l)
	}
	r.touched = append(r.touched, l)
}

// match are the events of the records that pass the Trigger's filter, and how many
// bytes all records have about.
func (r *reading) match(rs []*kgo.Record) (es []queued, fetched int) {
	es = r.matched
	for _, rec := range rs {
		fetched += len(rec.Value) + eventOverhead
		r.c.subscription.interest.match(&r.scratch, rec, func(_ int, e queued) { es = append(es, e) })
	}
	return es, fetched
}

// join attaches those of the lanes read last that are level with the reader. It runs
// between two polls, so that nothing more of them is under way here.
func (r *reading) join() {
	for _, l := range r.touched {
		r.c.attach(l)
	}
	clear(r.touched)
	r.touched = r.touched[:0]
	r.c.reader.nudge()
}

// attach attaches the lane if it is level with the reader.
func (c *catchUp) attach(l *lane) (attached bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.of(l)
	if r == nil || !l.roomy() {
		return false
	}
	l.p.mu.Lock()
	if attached = l.attach(); attached {
		l.reading = false
	}
	l.p.mu.Unlock()
	if attached {
		r.remove(l)
	}
	return attached
}

// shut stops the reading of a lane that is full.
func (c *catchUp) shut(l *lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.of(l); r != nil {
		l.valve.shut(r.client, c.partition(l), &l.queue)
	}
}

// resume goes on reading a lane that has room again.
func (c *catchUp) resume(l *lane) {
	if c.attach(l) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.of(l); r != nil {
		l.valve.open(r.client, c.partition(l))
	}
}

// drop ends the reading of a lane.
func (c *catchUp) drop(l *lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.of(l); r != nil {
		r.remove(l)
	}
}

// remove takes the lane out. The caller holds mu.
func (r *reading) remove(l *lane) {
	topic := r.c.reader.topic
	delete(r.lanes, l.p.id)
	r.parked = append(r.parked, l.p.id)
	r.client.PauseFetchPartitions(map[string][]int32{topic: {l.p.id}})
	l.valve.forget()
	if len(r.lanes) > 0 {
		return
	}
	r.client.RemoveConsumePartitions(map[string][]int32{topic: slices.Clone(r.parked)})
	r.client.ResumeFetchPartitions(map[string][]int32{topic: r.parked}) // a pause would outlive it
	r.parked = nil
	if r.idle == nil {
		r.idle = time.AfterFunc(linger, r.closeIdle)
	} else {
		r.idle.Reset(linger)
	}
}

func (r *reading) closeIdle() {
	r.c.mu.Lock()
	idle := len(r.lanes) == 0 && slices.Contains(r.c.readings, r)
	if idle {
		r.c.readings = slices.DeleteFunc(r.c.readings, func(other *reading) bool { return other == r })
	}
	r.c.mu.Unlock()
	if idle {
		r.client.Close()
	}
}

// close ends all reading. It returns when nothing more comes.
func (c *catchUp) close() {
	c.mu.Lock()
	c.closed = true
	readings := c.readings
	c.readings = nil
	c.mu.Unlock()
	for _, r := range readings {
		c.mu.Lock()
		r.lanes = nil
		if r.idle != nil {
			r.idle.Stop()
		}
		c.mu.Unlock()
		r.client.Close()
		<-r.ended
	}
}

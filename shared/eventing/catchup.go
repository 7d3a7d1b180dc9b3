package eventing

import (
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// catchUp reads for one Trigger the partitions in which it is detached from the
// Broker's reader, until it has seen there what the reader has. It has a client only
// while it needs one.
type catchUp struct {
	reader       *reader
	subscription *subscription

	// mu comes before the locks of partitions and queues.
	mu     sync.Mutex
	client *kgo.Client
	// ended is closed when the client's polling goroutine has ended.
	ended  chan struct{}
	lanes  map[int32]*lane
	idle   *time.Timer
	closed bool

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

// read begins to read the lane's partition from the offset on.
func (c *catchUp) read(l *lane, from int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || l.p.ended.Load() {
		return
	}
	if c.client != nil {
		c.lanes[l.p.id] = l
		c.client.AddConsumePartitions(c.offsets(l, from))
		return
	}
	opts := c.reader.opts
	client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.ConsumePartitions(c.offsets(l, from)))...)
	if err != nil {
		// The reader's own client was made with the same options.
		c.subscription.log.Error("making a client to catch up with failed", "error", err)
		return
	}
	c.client, c.ended, c.lanes = client, make(chan struct{}), map[int32]*lane{l.p.id: l}
	go func(ended chan struct{}) {
		defer close(ended)
		poll(c.reader.hard, client, c.reader.stopped, func(f *kgo.FetchTopicPartition) { c.handle(client, f) }, c.join)
	}(c.ended)
}

// handle takes what was fetched.
func (c *catchUp) handle(client *kgo.Client, f *kgo.FetchTopicPartition) {
	s := c.subscription
	if f.Err != nil {
		c.trouble.note(s.log, f)
		s.flow.failure.note("fetching " + f.Topic + ": " + f.Err.Error())
	}
	c.mu.Lock()
	l := c.lanes[f.Partition]
	c.mu.Unlock()
	if l == nil || len(f.Records) == 0 {
		return
	}
	es, fetched := c.match(f.Records)
	first, end := f.Records[0].Offset, f.Records[len(f.Records)-1].Offset+1
	l.p.mu.Lock()
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
	c.matched = es[:0]
	if l.full() {
		l.valve.shut(client, topicPartition{f.Topic, f.Partition}, &l.queue)
	}
	c.touched = append(c.touched, l)
}

// match are the events of the records that pass the Trigger's filter, and how many
// bytes all records have about.
func (c *catchUp) match(rs []*kgo.Record) (es []queued, fetched int) {
	es = c.matched
	for _, r := range rs {
		fetched += len(r.Value) + eventOverhead
		c.subscription.interest.match(&c.scratch, r, func(_ int, e queued) { es = append(es, e) })
	}
	return es, fetched
}

// join attaches those of the lanes read last that are level with the reader. It runs
// between two polls, so that nothing more of them is under way here.
func (c *catchUp) join() {
	for _, l := range c.touched {
		c.attach(l)
	}
	clear(c.touched)
	c.touched = c.touched[:0]
	c.reader.nudge()
}

// attach attaches the lane if it is level with the reader.
func (c *catchUp) attach(l *lane) (attached bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[l.p.id] != l || !l.roomy() {
		return false
	}
	l.p.mu.Lock()
	if attached = l.attach(); attached {
		l.reading = false
	}
	l.p.mu.Unlock()
	if attached {
		c.remove(l)
	}
	return attached
}

// resume goes on reading a lane that has room again.
func (c *catchUp) resume(l *lane) {
	if c.attach(l) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[l.p.id] == l {
		l.valve.open(c.client, topicPartition{c.reader.topic, l.p.id})
	}
}

// drop ends the reading of a lane.
func (c *catchUp) drop(l *lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[l.p.id] == l {
		c.remove(l)
	}
}

// remove takes the lane out. The caller holds mu.
func (c *catchUp) remove(l *lane) {
	delete(c.lanes, l.p.id)
	l.valve.open(c.client, topicPartition{c.reader.topic, l.p.id})
	c.client.RemoveConsumePartitions(map[string][]int32{c.reader.topic: {l.p.id}})
	if len(c.lanes) > 0 {
		return
	}
	if c.idle == nil {
		c.idle = time.AfterFunc(linger, c.closeIdle)
	} else {
		c.idle.Reset(linger)
	}
}

func (c *catchUp) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil || len(c.lanes) > 0 {
		return
	}
	c.client.Close()
	c.client = nil
}

// close ends all reading. It returns when nothing more comes.
func (c *catchUp) close() {
	c.mu.Lock()
	c.closed = true
	client, ended := c.client, c.ended
	c.client, c.lanes = nil, nil
	if c.idle != nil {
		c.idle.Stop()
	}
	c.mu.Unlock()
	if client != nil {
		client.Close()
	}
	if ended != nil {
		<-ended
	}
}

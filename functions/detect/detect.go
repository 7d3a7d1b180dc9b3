package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/sink"
)

// retryAfter is when the sender may try again if Redis or the Broker is away.
const retryAfter = time.Second

// detector is the handler. It handles one batch at a time.
type detector struct {
	name    string
	streams map[string]*stream // by contract
	store   *store
	sink    *sink.Sink
	forests *forests
	trainer *trainer
	metrics *metrics
	now     func() time.Time

	work  gate
	cache *cache
}

// stream is a contract and how its records are judged.
type stream struct {
	plan     *anomaly.Plan
	contract *contract.Contract
	reader   *contract.Reader // used by one call at a time
}

func newDetector(name string, contracts *contract.Set, forests *forests, s *store, to *sink.Sink, entities int) (*detector, error) {
	all, err := plans(contracts, forests)
	if err != nil {
		return nil, err
	}
	if entities < 1 {
		return nil, fmt.Errorf("CACHED_ENTITIES=%d: must be at least 1", entities)
	}
	d := &detector{name: name, streams: map[string]*stream{}, store: s, sink: to, forests: forests, now: time.Now,
		work: newGate(), cache: newCache(entities)}
	for contractName, p := range all {
		c, _ := contracts.Contract(contractName)
		d.streams[contractName] = &stream{plan: p, contract: c, reader: c.Reader()}
	}
	d.metrics, err = newMetrics(d.cache)
	return d, err
}

// gate lets one in at a time; who waits can give up.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g gate) leave() { <-g }

// item is an event of the batch that is to be judged.
type item struct {
	at      int // in the batch
	stream  *stream
	reading anomaly.Reading
	entity  *entity
	events  []anomaly.Event
}

// Handle judges the readings of a batch and replies with what they begin and end. All
// of the batch is remembered or nothing.
func (d *detector) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	if err := d.work.enter(ctx); err != nil {
		return failed(results, function.Unavailable(fmt.Errorf("waiting for the batch before: %w", err), retryAfter))
	}
	defer d.work.leave()
	items := make([]item, 0, len(batch))
	for i := range batch {
		switch typ := batch[i].Type(); typ {
		case events.Tick:
			d.trainer.tick()
		case events.ModelPromoted, events.ModelRolledBack:
			results[i].Err = d.forests.reload(ctx, batch[i].Subject())
		default:
			it, err := d.read(&batch[i])
			if err != nil {
				results[i].Err = err
				continue
			}
			if it.stream != nil {
				it.at = i
				items = append(items, it)
			}
		}
	}
	if len(items) == 0 {
		return results
	}
	err := d.judge(ctx, items)
	if err == nil {
		err = d.answer(ctx, batch, items, results)
	}
	if err != nil {
		for i := range items {
			results[items[i].at] = function.Result{Err: function.Unavailable(err, retryAfter)}
		}
	}
	return results
}

func failed(results []function.Result, err error) []function.Result {
	for i := range results {
		results[i].Err = err
	}
	return results
}

// read makes an item of an event; its stream is nil if there is nothing to judge.
func (d *detector) read(e *event.Event) (it item, err error) {
	var name string
	if c, ok := e.Context.(*event.EventContextV1); ok {
		name, _ = c.Extensions[events.Contract].(string) // the SDK would copy all of them
	}
	s := d.streams[name]
	if s == nil {
		if name == "" {
			return it, function.Invalid("extension %s is required: it names the stream contract", events.Contract)
		}
		return it, function.Invalid("there is no contract %q with metrics", name)
	}
	values, err := s.reader.Read(e.Data())
	if err != nil {
		return it, function.Invalid("%w", err)
	}
	if err := s.plan.Fill(&it.reading, values); err != nil {
		return it, function.Invalid("%w", err)
	}
	it.stream = s
	return it, nil
}

// tries is how often a batch is judged anew because another process has written.
const tries = 4

// judge lets all readings be observed and remembers them.
func (d *detector) judge(ctx context.Context, items []item) error {
	var err error
	for range tries {
		if err = d.once(ctx, items); !errors.Is(err, errStale) {
			return err
		}
		d.metrics.stale.Add(ctx, 1)
	}
	return err
}

func (d *detector) once(ctx context.Context, items []item) error {
	touched, err := d.load(ctx, items)
	if err != nil {
		return err
	}
	// What is in memory is ahead of Redis until it is written.
	written := false
	defer func() {
		if !written {
			for _, e := range touched {
				e.state = nil
			}
		}
	}()
	var count counts
	for i := range items {
		it := &items[i]
		var outcome anomaly.Outcome
		var known int
		it.events, outcome, known = it.stream.plan.Observe(it.entity.state, &it.entity.known, &it.reading, it.events[:0])
		count.add(it, outcome, known)
	}
	keys, before, blobs := make([]string, len(touched)), make([]string, len(touched)), make([][]byte, len(touched))
	for i, e := range touched {
		keys[i], before[i] = e.key, e.stored
		e.state.Version++
		e.state.Forget()
		e.blob = e.plan.AppendState(e.blob[:0], e.state)
		blobs[i] = e.blob
	}
	start := time.Now()
	trained, err := d.store.write(ctx, keys, before, blobs)
	d.metrics.roundTrip(ctx, "write", start, err)
	if err != nil {
		return err
	}
	written = true
	for _, e := range touched {
		e.stored = string(e.blob[:anomaly.VersionBytes])
	}
	d.cache.trained = trained
	d.cache.advance(items)
	count.record(ctx, d.metrics)
	return nil
}

// load finds the entities of the items, and reads those that are not in memory.
func (d *detector) load(ctx context.Context, items []item) ([]*entity, error) {
	var touched []*entity
	for i := range items {
		it := &items[i]
		e := d.cache.get(it.stream.plan, it.reading.Entity)
		it.entity = e
		if !e.touched {
			e.touched = true
			touched = append(touched, e)
		}
	}
	var keys []string
	var missing []*entity
	known := map[string][]any{}
	now := d.now()
	for _, e := range touched {
		e.touched = false
		if e.state == nil || e.outdated(d.cache.trained, now) {
			missing = append(missing, e)
			keys = append(keys, e.key, modelKey(e.plan.Contract, e.name))
			known[e.plan.Contract] = append(known[e.plan.Contract], e.name)
		}
	}
	if len(missing) == 0 {
		return touched, nil
	}
	start := time.Now()
	values, err := d.store.read(ctx, keys, known)
	d.metrics.roundTrip(ctx, "read", start, err)
	if err != nil {
		return nil, err
	}
	for i, e := range missing {
		if e.state == nil {
			e.take(ctx, values[2*i])
		}
		d.cache.learn(ctx, e, values[2*i+1])
		e.trained, e.checked = d.cache.trained, now
	}
	return touched, nil
}

// answer makes the replies. An event can be answered with one only; what else there is
// to say of it goes to the Broker first.
func (d *detector) answer(ctx context.Context, batch []event.Event, items []item, results []function.Result) error {
	var more []events.Message
	for i := range items {
		it := &items[i]
		for n := range it.events {
			reply, err := d.reply(&batch[it.at], it, &it.events[n])
			if err != nil {
				return err
			}
			if n == 0 {
				results[it.at].Reply = &reply
				continue
			}
			more = append(more, events.FromEvent(&reply))
		}
	}
	if len(more) == 0 {
		return nil
	}
	return d.sink.Send(ctx, more)
}

// reply makes the event of what happened to an anomaly. Its id is made of the anomaly
// and not of the event that it replies to: the same reading may have come twice from
// where it was measured.
func (d *detector) reply(in *event.Event, it *item, what *anomaly.Event) (event.Event, error) {
	typ := events.AnomalyDetected
	if what.Kind == anomaly.Resolved {
		typ = events.AnomalyResolved
	}
	a := &what.Anomaly
	reply := events.NewReply(in, d.name, typ)
	c := reply.Context.(*event.EventContextV1)
	c.ID = events.ReplyID(it.entity.key, a.Type+"@"+strconv.FormatInt(a.Timestamp.UnixMicro(), 10)+" "+typ+" "+a.Severity, d.name)
	c.Subject = &a.EntityID
	c.Time = &types.Timestamp{Time: it.reading.Time}
	if c.Extensions == nil {
		c.Extensions = map[string]any{}
	}
	c.Extensions[events.Contract] = a.Details.Contract
	c.Extensions["severity"] = a.Severity
	data, err := json.Marshal(a)
	if err != nil {
		return reply, fmt.Errorf("writing an anomaly: %w", err)
	}
	c.DataContentType = &contentType
	reply.DataEncoded = data
	return reply, nil
}

// contentType is shared by all replies; the SDK's setter replaces the pointer.
var contentType = event.ApplicationJSON

// take makes the state of what was read. One that is damaged is dropped: the entity
// begins anew rather than stopping its events for ever.
func (e *entity) take(ctx context.Context, blob string) {
	e.state, e.stored = &anomaly.State{}, ""
	if blob == "" {
		return
	}
	if len(blob) >= anomaly.VersionBytes {
		e.stored = blob[:anomaly.VersionBytes]
	} else {
		e.stored = blob
	}
	s, err := e.plan.ParseState([]byte(blob))
	if err != nil {
		slog.ErrorContext(ctx, "a state is damaged, the entity begins anew", "key", e.key, "error", err)
		return
	}
	e.state = s
}

package eventing

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/events"
)

// outlet is a way to a destination. It tries once.
type outlet interface {
	send(ctx context.Context, ms []events.Message) outcome
	// address is where the events go, for the dead letters.
	address() string
}

// outcome is what became of one attempt.
type outcome struct {
	// err is nil when the destination accepted the events.
	err     error
	replies []events.Message
	// status is the HTTP status of the answer; 0 when there was none.
	status int
	// detail is what the destination said, for the dead letter.
	detail []byte
	// retryAfter is the pause that the destination asked for.
	retryAfter time.Duration
	// patient failures are those of Kafka itself. They are repeated without limit:
	// nothing else could be done with the events either.
	patient bool
	// final failures will not go away by trying again.
	final bool
}

// scope bounds a delivery: requests end with ctx, and nothing new is tried, nor
// waited for, once stop is closed.
type scope struct {
	ctx  context.Context
	stop <-chan struct{}
}

// errStopped means that a delivery was abandoned; the events are not done.
var errStopped = errors.New("delivery stopped")

func (s scope) err() error {
	select {
	case <-s.stop:
		return errStopped
	default:
	}
	if s.ctx.Err() != nil {
		return errStopped
	}
	return nil
}

func (s scope) wait(d time.Duration) error {
	if d <= 0 {
		return s.err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.stop:
	case <-s.ctx.Done():
	}
	return errStopped
}

// delivery brings events to a destination as a delivery spec demands.
type delivery struct {
	outlet outlet
	spec   *Delivery
	// forever is for dead letters: there is nowhere else to go.
	forever bool
	// parallel is how many single events of a broken-up batch may be under way at
	// once; 1 keeps their order.
	parallel int
	// accepted is called with what the destination took and its replies. Its outcome
	// replaces the destination's: a reply that cannot be used is a failed delivery.
	accepted func(s scope, ms, replies []events.Message) (outcome, error)
	// refused is called with the events that nobody will take.
	refused func(s scope, m *events.Message, o outcome) error
	// failed is told of every failed attempt.
	failed func(o outcome, again bool)
	// single is set once the destination has shown that it takes no batches.
	single atomic.Bool
	// refusals counts the events that were refused.
	refusals atomic.Uint64
}

// step is what follows a failed attempt.
type step int

const (
	again  step = iota // the same events after a pause
	halve              // each half for itself
	apart              // each event for itself
	giveUp             // the event is refused
)

// next decides what follows the failed delivery of n events. A batch is broken up
// rather than refused, so that an event that cannot be delivered does not take its
// neighbours along.
func next(o outcome, n int, triesLeft, forever bool) step {
	switch {
	case o.patient:
		return again
	case n > 1 && (o.final || o.status == http.StatusRequestEntityTooLarge || o.status >= 500 && o.status != http.StatusServiceUnavailable):
		return halve
	case n > 1 && retried(o.status) && (triesLeft || forever):
		return again
	case n > 1:
		return apart
	case forever, !o.final && retried(o.status) && triesLeft:
		return again
	default:
		return giveUp
	}
}

// retried are the statuses that Knative retries; 0 is no answer.
func retried(status int) bool {
	switch status {
	case 0, http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

// deliver returns nil when every event has had its effects and errStopped when the
// scope ended before.
func (d *delivery) deliver(s scope, ms []events.Message) error {
	if len(ms) == 0 {
		return nil
	}
	if len(ms) > 1 && d.single.Load() {
		return d.each(s, ms)
	}
	for retry := 1; ; retry++ {
		if err := s.err(); err != nil {
			return err
		}
		o := d.outlet.send(s.ctx, ms)
		if o.err == nil {
			var err error
			if o, err = d.accepted(s, ms, o.replies); err != nil || o.err == nil {
				return err
			}
		}
		if s.ctx.Err() != nil {
			return errStopped // the failure is ours, not the destination's
		}
		triesLeft := d.spec != nil && retry <= d.spec.Retry
		step := next(o, len(ms), triesLeft, d.forever)
		d.failed(o, step == again)
		switch step {
		case again:
			if err := s.wait(d.pause(o, retry)); err != nil {
				return err
			}
		case halve:
			return d.halves(s, ms)
		case apart:
			return d.breakUp(s, ms, o)
		case giveUp:
			d.refusals.Add(1)
			return d.refused(s, &ms[0], o)
		}
	}
}

// patience is the back-off where there is no limit to the retries.
var patience = Delivery{Backoff: 200 * time.Millisecond, Exponential: true}

const maxPatience = 30 * time.Second

func (d *delivery) pause(o outcome, retry int) time.Duration {
	if o.patient || d.forever {
		return min(patience.delay(retry, o.retryAfter), maxPatience)
	}
	return d.spec.delay(retry, o.retryAfter)
}

// halves is for an event that spoils its batch: the others should not wait for all
// its retries unless order demands it.
func (d *delivery) halves(s scope, ms []events.Message) error {
	a, b := ms[:len(ms)/2], ms[len(ms)/2:]
	if d.parallel <= 1 {
		if err := d.deliver(s, a); err != nil {
			return err
		}
		return d.deliver(s, b)
	}
	first := make(chan error, 1)
	go func() { first <- d.deliver(s, a) }()
	second := d.deliver(s, b)
	return errors.Join(<-first, second)
}

// breakUp delivers the events of a refused batch one by one. A destination that says
// 415, or refuses a batch and then takes every event of it, takes no batches: it
// gets none from then on.
func (d *delivery) breakUp(s scope, ms []events.Message, o outcome) error {
	if o.status == http.StatusUnsupportedMediaType {
		d.single.Store(true)
	}
	before := d.refusals.Load()
	err := d.each(s, ms)
	if err == nil && !retried(o.status) && d.refusals.Load() == before {
		d.single.Store(true)
	}
	return err
}

func (d *delivery) each(s scope, ms []events.Message) error {
	if d.parallel <= 1 {
		for i := range ms {
			if err := d.deliver(s, ms[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	var (
		work  sync.WaitGroup
		slots = make(chan struct{}, d.parallel)
		errs  = make([]error, len(ms))
	)
	for i := range ms {
		slots <- struct{}{}
		work.Go(func() {
			errs[i] = d.deliver(s, ms[i:i+1])
			<-slots
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// route is a source or Trigger with everything that its events may need: the way to
// its sink, back to the Broker and to the dead letters.
type route struct {
	flow *flow
	log  *slog.Logger
	main delivery
	// dead is nil when there is no dead-letter sink.
	dead *delivery
	// replies brings the replies to the Broker; nil discards them.
	replies *delivery
	// logged is when a failure was last logged, in Unix nanoseconds: a sink that is
	// away for an hour is not worth a line a retry.
	logged atomic.Int64
}

func newRoute(f *flow, log *slog.Logger, to outlet, spec *Delivery, dead, replies outlet, parallel int) *route {
	r := &route{flow: f, log: log}
	r.main.outlet, r.main.spec, r.main.parallel = to, spec, parallel
	r.main.accepted, r.main.refused, r.main.failed = r.accepted, r.refused, r.failed
	if dead != nil {
		r.dead = &delivery{outlet: dead, spec: spec, forever: true, parallel: parallel, failed: r.failed}
		r.dead.accepted = func(_ scope, ms, _ []events.Message) (outcome, error) {
			f.dead.Add(uint64(len(ms)))
			return outcome{}, nil
		}
	}
	if replies != nil {
		r.replies = &delivery{outlet: replies, spec: spec, parallel: 1, failed: r.failed}
		r.replies.accepted = func(_ scope, ms, _ []events.Message) (outcome, error) {
			f.replies.Add(uint64(len(ms)))
			return outcome{}, nil
		}
		r.replies.refused = func(_ scope, _ *events.Message, o outcome) error { return &replyError{o} }
	}
	return r
}

// replyError is a reply that cannot be kept.
type replyError struct{ outcome outcome }

func (e *replyError) Error() string { return "storing the reply: " + e.outcome.err.Error() }

// deliver brings the events to the sink, their replies to the Broker and what could
// not be delivered to the dead letters; it returns nil when all that has happened.
func (r *route) deliver(s scope, ms []events.Message) error {
	r.flow.inFlight.Add(int64(len(ms)))
	defer r.flow.inFlight.Add(-int64(len(ms)))
	return r.main.deliver(s, ms)
}

// quiet is the pause between two lines of log about the same trouble.
const quiet = 10 * time.Second

func (r *route) failed(o outcome, again bool) {
	if again {
		r.flow.retries.Add(1)
	}
	r.flow.failure.set(o.err.Error())
	if now, last := time.Now().UnixNano(), r.logged.Load(); now-last > int64(quiet) && r.logged.CompareAndSwap(last, now) {
		r.log.Warn("delivery failed", "error", o.err, "retries", r.flow.retries.Load())
	}
}

func (r *route) accepted(s scope, ms, replies []events.Message) (outcome, error) {
	if o, err := r.reply(s, replies); err != nil || o.err != nil {
		return o, err
	}
	r.flow.delivered.Add(uint64(len(ms)))
	r.flow.failure.clear()
	return outcome{}, nil
}

// reply sends replies on: those with an error code are dead letters of this route,
// the others go to the Broker.
func (r *route) reply(s scope, replies []events.Message) (outcome, error) {
	if len(replies) == 0 {
		return outcome{}, nil
	}
	var dead []events.Message
	for i := range replies {
		if replies[i].Get(events.ErrorCode) != "" {
			dead = append(dead, replies[i])
		}
	}
	if len(dead) > 0 {
		if err := r.bury(s, dead); err != nil {
			return outcome{}, err
		}
		live := make([]events.Message, 0, len(replies)-len(dead))
		for i := range replies {
			if replies[i].Get(events.ErrorCode) == "" {
				live = append(live, replies[i])
			}
		}
		replies = live
	}
	if r.replies == nil || len(replies) == 0 {
		return outcome{}, nil
	}
	err := r.replies.deliver(s, replies)
	if refused := (*replyError)(nil); errors.As(err, &refused) {
		// The subscriber did its work, but what it answered cannot be kept.
		return outcome{err: err, status: http.StatusBadGateway, detail: []byte(err.Error()), final: true}, nil
	}
	return outcome{}, err
}

func (r *route) refused(s scope, m *events.Message, o outcome) error {
	letter := events.Message{Attrs: append(make([]events.Attr, 0, len(m.Attrs)+3), m.Attrs...), Data: m.Data}
	letter.Set(events.ErrorDest, r.main.outlet.address())
	status := o.status
	if status == 0 {
		// As Knative does when there was no answer.
		status = http.StatusInternalServerError
	}
	letter.Set(events.ErrorCode, strconv.Itoa(status))
	letter.Set(events.ErrorData, errorData(o.detail))
	return r.bury(s, []events.Message{letter})
}

// bury brings events to the dead-letter sink, whatever it takes.
func (r *route) bury(s scope, ms []events.Message) error {
	log := r.log.With("events", len(ms), "id", ms[0].Get("id"), "source", ms[0].Get("source"),
		"type", ms[0].Get("type"), "code", ms[0].Get(events.ErrorCode), "reason", ms[0].Get(events.ErrorData))
	if r.dead == nil {
		log.Error("events are discarded, there is no dead-letter sink")
		r.flow.discarded.Add(uint64(len(ms)))
		return nil
	}
	log.Warn("events go to the dead-letter sink")
	return r.dead.deliver(s, ms)
}

// maxErrorData is Knative's bound for the extension.
const maxErrorData = 1024

// errorData is what a destination said as an attribute value: as it is when it is
// printable text, else in base64, cut to the bound.
func errorData(detail []byte) string {
	text := strings.TrimSpace(string(detail))
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		if len(text) > maxErrorData {
			text = text[:maxErrorData]
			for !utf8.ValidString(text) {
				text = text[:len(text)-1]
			}
		}
		return text
	}
	return base64.StdEncoding.EncodeToString(detail[:min(len(detail), maxErrorData/4*3)])
}

package function

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
)

// receive is the endpoint of events.
func (s *Server) receive(w http.ResponseWriter, r *http.Request) {
	if err := s.handOver(w, r); err != nil {
		writeError(w, err)
	}
}

// handOver takes the events of a request to the handler and answers, or returns the
// error to answer with.
func (s *Server) handOver(w http.ResponseWriter, r *http.Request) error {
	m, err := modeOf(r.Header)
	if err != nil {
		s.metrics.refused(err)
		return err
	}
	limit, name := s.cfg.MaxBodyBytes, "MAX_BODY_BYTES"
	if m == binary {
		limit, name = s.cfg.MaxEventBytes, "MAX_EVENT_BYTES"
	}
	// An unknown length is taken for the largest.
	size := int64(limit)
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength)
	}
	defer s.bodyBytes.Add(-size)
	if held := s.bodyBytes.Add(size); held > int64(s.cfg.MaxInFlightBytes) {
		err := Overloaded(time.Second, "too many bytes are in flight already (MAX_IN_FLIGHT_BYTES is %d)", s.cfg.MaxInFlightBytes)
		s.metrics.refused(err)
		return err
	}
	d := &delivery{Server: s, header: r.Header}
	body, err := readBody(r, limit, name)
	if err == nil {
		err = d.decode(m, body)
	}
	if err != nil {
		s.metrics.refused(err)
		return err
	}
	n := int64(len(d.messages))
	s.metrics.inFlight.Add(n)
	defer s.metrics.inFlight.Add(-n)

	d.handle()
	defer d.count()
	if m == batched {
		return d.answerBatch(w, r)
	}
	return d.answer(w)
}

// delivery takes one request's events through the handler.
type delivery struct {
	*Server
	header   http.Header
	messages []events.Message
	events   []event.Event // one a message; without context if it has no SDK form
	results  []Result      // one a message
	hops     []hop         // one a message, or none
	outcomes []outcome     // one a message
	unit     unit

	// Room for the one event of most requests.
	one struct {
		message [1]events.Message
		hop     [1]hop
		event   [1]event.Event
		outcome [1]outcome
	}
}

// decode takes the events out of a request's body, which they alias.
func (d *delivery) decode(m mode, body []byte) error {
	var err error
	switch m {
	case batched:
		d.messages, err = events.ParseBatch(body)
	case structured:
		d.messages = d.one.message[:]
		d.messages[0], err = events.ParseJSON(body)
	case binary:
		d.messages = d.one.message[:]
		d.messages[0], err = events.FromHTTP(d.header, body)
	}
	if err != nil {
		return Invalid("invalid CloudEvent: %w", err)
	}
	if n := len(d.messages); n == 1 {
		d.events, d.outcomes = d.one.event[:], d.one.outcome[:]
	} else {
		d.events, d.outcomes = make([]event.Event, n), make([]outcome, n)
	}
	return nil
}

// handle sets the results of all messages.
func (d *delivery) handle() {
	n := len(d.messages)
	var refused []error // one a message, or none
	var convert events.Converter
	good := 0
	for i := range d.messages {
		m := &d.messages[i]
		var err error
		if len(m.Data) > d.cfg.MaxEventBytes {
			err = tooLarge("data of %d bytes is too large (MAX_EVENT_BYTES is %d)", len(m.Data), d.cfg.MaxEventBytes)
		} else if d.events[i], err = convert.Event(m); err != nil {
			err = Invalid("invalid CloudEvent: %w", err)
		}
		if err == nil {
			good++
			continue
		}
		if refused == nil {
			refused = make([]error, n)
		}
		refused[i] = err
	}
	if d.tracer != nil {
		d.hops = d.one.hop[:]
		if n != 1 {
			d.hops = make([]hop, n)
		}
		d.tracer.start(d.header, d.messages, d.hops)
	}
	u := &d.unit
	u.events, u.hops = d.events, d.hops
	if refused != nil {
		u.events, u.hops = nil, nil
		for i, err := range refused {
			if err == nil {
				u.events = append(u.events, d.events[i])
				if d.hops != nil {
					u.hops = append(u.hops, d.hops[i])
				}
			}
		}
	}
	if good > 0 && !d.coalescer.do(u) {
		err := overloaded(d.cfg.MaxQueue)
		u.results = make([]Result, good)
		for i := range u.results {
			u.results[i].Err = err
		}
	}
	if refused == nil {
		d.results = u.results
		return
	}
	d.results = make([]Result, n)
	good = 0
	for i, err := range refused {
		if err != nil {
			d.results[i].Err = err
			continue
		}
		d.results[i] = u.results[good]
		good++
	}
}

// call makes one handler call, or several when the units are more than a batch
// may hold, and sets the units' results.
func (s *Server) call(units []*unit) {
	all, hops := units[0].events, units[0].hops
	if len(units) > 1 {
		all, hops = nil, nil
		for _, u := range units {
			all = append(all, u.events...)
			hops = append(hops, u.hops...)
		}
	}
	var results []Result
	if len(all) <= s.cfg.MaxBatch {
		results = s.contain(all, hops)
	} else {
		results = make([]Result, 0, len(all))
		for from := 0; from < len(all); from += s.cfg.MaxBatch {
			to := min(from+s.cfg.MaxBatch, len(all))
			part := hops
			if hops != nil {
				part = hops[from:to]
			}
			results = append(results, s.contain(all[from:to:to], part)...)
			// The request will be sent again: what comes later must not get ahead of
			// what failed.
			if err := transient(results[from:]); err != nil {
				for range len(all) - to {
					results = append(results, Result{Err: err})
				}
				break
			}
		}
	}
	for _, u := range units {
		n := len(u.events)
		u.results, results = results[:n:n], results[n:]
	}
}

// transient gives an error that makes the sender come again, nil if there is none.
func transient(results []Result) error {
	for i := range results {
		if err := results[i].Err; err != nil && !permanent(Status(err)) {
			return err
		}
	}
	return nil
}

// errPanic marks results of a handler that panicked.
var errPanic = errors.New("handler panicked")

// contain calls the handler, so that an event that makes it panic fails alone:
// the events of a batch are then handled again one by one, which is safe since
// handlers are idempotent.
func (s *Server) contain(batch []event.Event, hops []hop) []Result {
	results, err := s.invoke(batch, hops)
	if err == nil {
		return results
	}
	results = make([]Result, len(batch))
	for i := range batch {
		if len(batch) == 1 || !errors.Is(err, errPanic) {
			results[i].Err = err
			continue
		}
		var alone []hop
		if hops != nil {
			alone = hops[i : i+1]
		}
		one, err := s.invoke(batch[i:i+1:i+1], alone)
		if err != nil {
			results[i].Err = err
			continue
		}
		results[i] = one[0]
	}
	return results
}

// invoke makes one handler call. Its error is a programming error of the handler.
func (s *Server) invoke(batch []event.Event, hops []hop) (results []Result, err error) {
	ctx, cancel := context.WithTimeout(s.calls, s.cfg.HandlerTimeout)
	defer cancel()
	ctx, end := s.tracer.join(ctx, hops)
	defer end()
	start := time.Now()
	defer func() {
		s.metrics.seconds.Note(time.Since(start).Seconds())
		s.metrics.size.Note(float64(len(batch)))
		if p := recover(); p != nil {
			results, err = nil, fmt.Errorf("%w: %v", errPanic, p)
			s.failures.log(slog.LevelError, "handler panicked", "panic", fmt.Sprint(p), "batch", len(batch), "stack", string(debug.Stack()))
		}
	}()
	results = s.handler.Handle(ctx, batch)
	if len(results) != len(batch) {
		s.failures.log(slog.LevelError, "handler returned the wrong number of results, it must be one an event",
			"events", len(batch), "results", len(results))
		return nil, fmt.Errorf("handler returned %d results for %d events", len(results), len(batch))
	}
	return results, nil
}

// reply makes the message of event i's reply, which must be there. An id and a
// source that the handler left out are filled in.
func (d *delivery) reply(i int) (events.Message, error) {
	in := &d.messages[i]
	m := events.FromEvent(d.results[i].Reply)
	for j := range m.Attrs {
		if a := &m.Attrs[j]; a.Value == "" {
			switch a.Name {
			case "id":
				a.Value = events.ReplyID(in.Get("source"), in.Get("id"), d.cfg.Name)
			case "source":
				a.Value = events.FunctionSource + d.cfg.Name
			}
		}
	}
	if err := m.Validate(); err != nil {
		err = fmt.Errorf("handler made an invalid reply: %w", err)
		return events.Message{}, err
	}
	d.hop(i).stamp(&m, d.header)
	return m, nil
}

func (d *delivery) hop(i int) hop {
	if d.hops == nil {
		return hop{}
	}
	return d.hops[i]
}

// settle notes what became of event i.
func (d *delivery) settle(i int, err error, o outcome) {
	d.outcomes[i] = o
	d.hop(i).finish(err, o)
	if err == nil {
		return
	}
	level := slog.LevelDebug
	if o == failed || o == unavailable {
		level = slog.LevelError
	}
	if !d.logger.Enabled(d.calls, level) {
		return
	}
	m := &d.messages[i]
	d.failures.log(level, "event not handled", "outcome", outcomeNames[o], "error", err,
		"id", m.Get("id"), "source", m.Get("source"), "type", m.Get("type"))
}

// answer answers a request of one event.
func (d *delivery) answer(w http.ResponseWriter) error {
	r := &d.results[0]
	if r.Err != nil {
		d.settle(0, r.Err, outcomeOf(Status(r.Err)))
		return r.Err
	}
	if r.Reply == nil {
		d.settle(0, nil, accepted)
		accept(w)
		return nil
	}
	m, err := d.reply(0)
	if err != nil {
		d.settle(0, err, failed)
		return err
	}
	d.settle(0, nil, replied)
	h := w.Header()
	h["Content-Type"] = nil // the server must not guess one
	events.SetHTTP(h, &m)
	h["Content-Length"] = []string{strconv.Itoa(len(m.Data))}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(m.Data) // the sender will deliver again if this is lost
	return nil
}

var emptyBody = []string{"0"}

func accept(w http.ResponseWriter) {
	w.Header()["Content-Length"] = emptyBody
	w.WriteHeader(http.StatusAccepted)
}

// answerBatch answers a batch request: with all replies, among them a dead letter
// for each event that is bad for good, or with an error if any event may fare
// better next time.
func (d *delivery) answerBatch(w http.ResponseWriter, r *http.Request) error {
	replies := make([]events.Message, 0, len(d.messages))
	var worst error
	for i := range d.messages {
		err := d.results[i].Err
		o := accepted
		switch {
		case err != nil:
			status := Status(err)
			o = outcomeOf(status)
			if permanent(status) {
				replies = append(replies, deadLetter(&d.messages[i], status, err, r))
			}
		case d.results[i].Reply != nil:
			var m events.Message
			if m, err = d.reply(i); err != nil {
				o = failed
				break
			}
			replies = append(replies, m)
			o = replied
		}
		d.settle(i, err, o)
		if err != nil && o != invalid {
			worst = moreUrgent(worst, err)
		}
	}
	if worst != nil {
		return worst
	}
	if len(replies) == 0 {
		accept(w)
		return nil
	}
	buffer := buffers.Get().(*[]byte)
	body := events.AppendBatch((*buffer)[:0], replies)
	h := w.Header()
	h["Content-Type"] = []string{events.ContentTypeBatch}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // the sender will deliver again if this is lost
	if cap(body) <= maxPooled {
		*buffer = body
		buffers.Put(buffer)
	}
	return nil
}

// buffers holds the buffers that batch answers are encoded in, up to a size.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const maxPooled = 4 << 20

// moreUrgent chooses the error that answers a batch. A dependency that is down or
// busy goes before a failure: the sender should come again later, not look for the
// culprit now.
func moreUrgent(a, b error) error {
	rank := func(err error) int {
		switch Status(err) {
		case http.StatusServiceUnavailable:
			return 3
		case http.StatusTooManyRequests:
			return 2
		}
		return 1
	}
	if a == nil || rank(b) > rank(a) {
		return b
	}
	_, waitA := classify(a)
	_, waitB := classify(b)
	if rank(a) == rank(b) && waitB > waitA {
		return b
	}
	return a
}

// deadLetter is the event with why and where it failed, as Knative would send it
// to a dead-letter sink.
func deadLetter(m *events.Message, status int, err error, r *http.Request) events.Message {
	dead := events.Message{Attrs: make([]events.Attr, len(m.Attrs), len(m.Attrs)+3), Data: m.Data}
	copy(dead.Attrs, m.Attrs)
	dead.Set(events.ErrorCode, strconv.Itoa(status))
	dead.Set(events.ErrorData, errorLine(err))
	dead.Set(events.ErrorDest, "http://"+r.Host+r.URL.Path)
	return dead
}

// count adds the request's events to the metrics.
func (d *delivery) count() {
	t := tally{instruments: d.metrics, now: time.Now()}
	for i := range d.events {
		t.add(&d.events[i], d.outcomes[i])
	}
	t.flush()
}

// failureLog logs failures, but no more than maxFailuresLogged a second: when
// something is down, thousands fail alike.
type failureLog struct {
	logger  *slog.Logger
	second  atomic.Int64
	logged  atomic.Int64
	skipped atomic.Int64
}

const maxFailuresLogged = 10

func (l *failureLog) log(level slog.Level, text string, args ...any) {
	if !l.logger.Enabled(context.Background(), level) {
		return
	}
	now := time.Now().Unix()
	if last := l.second.Load(); last != now && l.second.CompareAndSwap(last, now) {
		l.logged.Store(0)
	}
	if l.logged.Add(1) > maxFailuresLogged {
		l.skipped.Add(1)
		return
	}
	if n := l.skipped.Swap(0); n > 0 {
		args = append(args, "not_logged_before", n)
	}
	l.logger.Log(context.Background(), level, text, args...) //nolint:sloglint // the callers' texts are static
}

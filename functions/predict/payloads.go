package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/sink"
)

// payloads sends what was asked and answered over HTTP on as events, of KServe's types.
// They wait in memory, up to a bound; when it is reached, requests wait for room and
// are then refused. So everything that was answered is sent, unless the process is
// killed, or the sink says of an event that it will never take it.
type payloads struct {
	to       *sink.Sink
	mode     string
	source   string
	service  string
	room     *room
	patience time.Duration
	counts   *instruments

	queue   chan parcel
	senders sync.WaitGroup
	ctx     context.Context //nolint:containedctx // ends when the tries are to
	stop    context.CancelFunc
}

// What is sent: PAYLOAD_EVENTS.
const (
	payloadsOff      = "off"
	payloadsAll      = "all"
	payloadsRequest  = "request"
	payloadsResponse = "response"
)

// parcel is the events of a request, and the room that they hold.
type parcel struct {
	events []events.Message
	bytes  int64
}

// Sending: so many at a time, of so many events, and so long between tries.
const (
	payloadSenders = 4
	payloadBatch   = 50
	firstRetry     = 100 * time.Millisecond
	longestRetry   = 5 * time.Second
)

// perEvent is about what an event holds besides its body, in bytes.
const perEvent = 1 << 10

func newPayloads(c *Config, function string, counts *instruments) (*payloads, error) {
	to, err := sink.New(c.Sink)
	if err != nil {
		return nil, err
	}
	p := &payloads{
		to: to, mode: c.Payloads, source: events.FunctionSource + function, service: function, counts: counts,
		room: newRoom(c.PayloadBytes), patience: c.PayloadWait,
		// Whoever has room finds a place.
		queue: make(chan parcel, c.PayloadBytes/(2*perEvent)+1),
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for range payloadSenders {
		p.senders.Go(p.send)
	}
	return p, nil
}

// close waits until everything is sent or ctx ends. No request may come after it.
func (p *payloads) close(ctx context.Context) error {
	close(p.queue)
	done := make(chan struct{})
	go func() {
		p.senders.Wait()
		close(done)
	}()
	defer p.stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d bytes of requests and answers were not sent: %w", p.room.held(), ctx.Err())
	}
}

// logged has an endpoint's requests and answers sent.
func (p *payloads) logged(e endpoint) endpoint {
	return func(r *http.Request) (int, any) {
		body, status, err := readBody(r)
		if err != nil {
			return status, map[string]string{"error": err.Error()}
		}
		// Room is taken before the work is done, for the answer too, which is seldom longer
		// than the request.
		need := 2 * int64(len(body)+perEvent)
		if err := p.room.take(r.Context(), need, p.patience); err != nil {
			return http.StatusTooManyRequests, map[string]string{"error": "requests come faster than they can be logged: " + err.Error()}
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		asked := time.Now()
		status, answer := e(r)
		text, ok := answer.(encoded)
		if !ok {
			if text, err = json.Marshal(answer); err != nil {
				text = encoded(`{"error":"the answer cannot be written"}`)
				status = http.StatusInternalServerError
			}
		}
		p.queue <- p.parcel(r, need, asked, body, status, text)
		return status, text
	}
}

func (p *payloads) parcel(r *http.Request, need int64, asked time.Time, body []byte, status int, answer []byte) parcel {
	id := cmp.Or(r.Header.Get("Ce-Id"), r.Header.Get("X-Request-Id"))
	if id == "" {
		id = rand.Text()
	}
	out := parcel{bytes: need}
	add := func(typ, part string, at time.Time, data []byte) {
		m := events.Message{Data: data}
		for _, a := range [][2]string{
			// The id is that of the request, for both, which the source tells apart.
			{"specversion", "1.0"}, {"id", id}, {"source", p.source + "/" + part}, {"type", typ},
			{"time", at.UTC().Format(time.RFC3339Nano)}, {"datacontenttype", "application/json"}, {"subject", r.URL.Path},
			{"inferenceservicename", p.service}, {"component", "predictor"},
		} {
			m.Set(a[0], a[1])
		}
		out.events = append(out.events, m)
	}
	if p.mode != payloadsResponse && json.Valid(body) {
		add(events.InferenceRequest, "request", asked, body)
	}
	// KServe's logger too sends no answers but successful ones.
	if p.mode != payloadsRequest && status == http.StatusOK {
		add(events.InferenceResponse, "response", time.Now(), answer)
	}
	return out
}

// send sends parcels until there are no more.
func (p *payloads) send() {
	for first := range p.queue {
		batch, holds := first.events, first.bytes
	more:
		for len(batch) < payloadBatch {
			select {
			case next, open := <-p.queue:
				if !open {
					break more
				}
				batch, holds = append(batch, next.events...), holds+next.bytes
			default:
				break more
			}
		}
		p.deliver(batch)
		p.room.give(holds)
	}
}

// deliver tries until the sink has all of the events, or has refused some for good.
func (p *payloads) deliver(batch []events.Message) {
	pause := firstRetry
	for len(batch) > 0 {
		err := p.to.Send(p.ctx, batch)
		if err == nil {
			p.counts.payload(p.ctx, "sent", len(batch))
			return
		}
		if answer, ok := errors.AsType[*sink.AnswerError](err); ok && answer.Final() {
			if len(batch) > 1 {
				// One of them is at fault, and must not stop the others.
				for i := range batch {
					p.deliver(batch[i : i+1])
				}
				return
			}
			p.counts.payload(p.ctx, "refused", 1)
			slog.Error("a request or answer is not logged, it was refused", "id", batch[0].Get("id"), "type", batch[0].Get("type"), "error", err.Error())
			return
		}
		slog.Warn("requests and answers wait to be sent", "events", len(batch), "error", err.Error())
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longestRetry)
	}
}

// room is a number of bytes that can be held. What is larger than all of it is taken
// when nothing else is held.
type room struct {
	size int64

	mu    sync.Mutex
	used  int64
	freed chan struct{} // closed when bytes were given back
}

func newRoom(size int64) *room { return &room{size: size, freed: make(chan struct{})} }

func (r *room) held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}

// take holds n bytes, for which it waits for as long as patience.
func (r *room) take(ctx context.Context, n int64, patience time.Duration) error {
	var tired <-chan time.Time
	for {
		r.mu.Lock()
		if r.used == 0 || r.used+n <= r.size {
			r.used += n
			r.mu.Unlock()
			return nil
		}
		freed := r.freed
		r.mu.Unlock()
		if tired == nil {
			t := time.NewTimer(patience)
			defer t.Stop() //nolint:revive // there is one at most
			tired = t.C
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		case <-tired:
			return fmt.Errorf("the %d bytes for them (PAYLOAD_BYTES) were in use for %s", r.size, patience)
		}
	}
}

func (r *room) give(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used -= n
	close(r.freed)
	r.freed = make(chan struct{})
}

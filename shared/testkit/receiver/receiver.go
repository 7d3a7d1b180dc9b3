// Package receiver gives tests a real HTTP server that keeps what is sent to it: the
// Broker of a function that sends events, or a webhook.
package receiver

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/millrace-dev/millrace/shared/events"
)

// Receiver is a server that is closed with its test. It is safe for concurrent use.
type Receiver struct {
	*httptest.Server

	t      testing.TB
	answer func(n int) int

	mu    sync.Mutex
	came  int
	got   []Request
	taken int // events that Take has given
	away  bool
}

// Request is what was sent, and how it was answered.
type Request struct {
	Path   string
	Header http.Header
	Body   []byte
	Status int
}

// Accepted tells whether the sender was told that it has arrived.
func (r *Request) Accepted() bool { return r.Status/100 == 2 }

// New starts a server that answers the n-th request, from 0, with answer(n), which may
// block; without answer with 202.
func New(t testing.TB, answer func(n int) int) *Receiver {
	if answer == nil {
		answer = func(int) int { return http.StatusAccepted }
	}
	r := &Receiver{t: t, answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *Receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender died within it
	}
	r.mu.Lock()
	n, away := r.came, r.away
	if !away {
		r.came++
	}
	r.mu.Unlock()
	status := http.StatusServiceUnavailable
	if !away {
		status = r.answer(n)
	}
	r.mu.Lock()
	r.got = append(r.got, Request{Path: req.URL.Path, Header: req.Header, Body: body, Status: status})
	r.mu.Unlock()
	w.WriteHeader(status)
}

// Away lets all requests be answered with 503 until it is called with false.
func (r *Receiver) Away(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

// Requests are those that were answered so far.
func (r *Receiver) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.got...)
}

// Events are those of all accepted requests, in their order. A request without an event
// fails the test.
func (r *Receiver) Events() []events.Message {
	r.t.Helper()
	var list []events.Message
	for _, req := range r.Requests() {
		if !req.Accepted() {
			continue
		}
		if strings.HasPrefix(req.Header.Get("Content-Type"), events.ContentTypeBatch) {
			batch, err := events.ParseBatch(req.Body)
			if err != nil {
				r.t.Errorf("a batch of events: %v", err)
			}
			list = append(list, batch...)
			continue
		}
		m, err := events.FromHTTP(req.Header, req.Body)
		if err != nil {
			r.t.Errorf("an event: %v", err)
			continue
		}
		list = append(list, m)
	}
	return list
}

// Take is Events without those that it has given before.
func (r *Receiver) Take() []events.Message {
	r.t.Helper()
	list := r.Events()
	r.mu.Lock()
	defer r.mu.Unlock()
	list, r.taken = list[r.taken:], len(list)
	return list
}

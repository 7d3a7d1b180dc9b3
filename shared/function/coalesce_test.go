package function

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
)

// gate is a handler that records its batches and, while it is closed, holds every
// call that begins.
type gate struct {
	mu    sync.Mutex
	calls [][]string
	hold  chan struct{} // one receive lets one call go
	then  Handler
}

func newGate(then Handler) *gate { return &gate{hold: make(chan struct{}), then: then} }

func (g *gate) Handle(ctx context.Context, batch []event.Event) []Result {
	ids := make([]string, len(batch))
	for i := range batch {
		ids[i] = batch[i].ID()
	}
	g.mu.Lock()
	g.calls = append(g.calls, ids)
	g.mu.Unlock()
	select {
	case <-g.hold:
	case <-ctx.Done():
		results := make([]Result, len(batch))
		for i := range results {
			results[i].Err = ctx.Err()
		}
		return results
	}
	return g.then.Handle(ctx, batch)
}

// concurrently serves a request in a goroutine of its own and waits until that
// has come as far as it can, so that requests arrive in order.
func concurrently(s *Server, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	go s.ServeHTTP(w, r)
	synctest.Wait()
	return w
}

func statuses(ws []*httptest.ResponseRecorder) []int {
	codes := make([]int, len(ws))
	for i, w := range ws {
		codes[i] = w.Code
	}
	return codes
}

func TestArrivalsDuringACallShareTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{Concurrency: 1}, g)
		var ws []*httptest.ResponseRecorder
		for i := range 4 {
			ws = append(ws, concurrently(s, binaryRequest(message(strconv.Itoa(i)))))
		}
		ws = append(ws, concurrently(s, batchRequest(messages("a", "b")...)))
		close(g.hold)
		synctest.Wait()
		want := [][]string{{"0"}, {"1", "2", "3", "a", "b"}}
		if diff := cmp.Diff(want, g.calls); diff != "" {
			t.Errorf("calls (-want +got)\n%s", diff)
		}
		for i, w := range ws[:4] {
			if w.Code != 200 || w.Body.String() != fmt.Sprintf(`"%d"`, i) {
				t.Errorf("request %d got %d %s", i, w.Code, w.Body)
			}
		}
		if ws[4].Code != 200 {
			t.Errorf("the batch got %d %s", ws[4].Code, ws[4].Body)
		}
		if s.coalescer.running != 0 || s.coalescer.queued != 0 || s.coalescer.waiting != nil {
			t.Errorf("left over: %+v", s.coalescer)
		}
	})
}

func TestIdleServerHandlesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{}, echo)
		start := time.Now() // of the bubble: it moves only when something waits for it
		for range 3 {
			if r := do(s, binaryRequest(message("1"))); r.StatusCode != 200 {
				t.Errorf("status %d", r.StatusCode)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %s", d)
		}
	})
}

func TestConcurrencyBoundsTheCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{Concurrency: 3}, g)
		for i := range 5 {
			concurrently(s, binaryRequest(message(strconv.Itoa(i))))
		}
		if len(g.calls) != 3 {
			t.Errorf("%d calls at one time, want 3", len(g.calls))
		}
		close(g.hold)
		synctest.Wait()
		if diff := cmp.Diff([][]string{{"0"}, {"1"}, {"2"}, {"3", "4"}}, g.calls); diff != "" {
			t.Errorf("calls (-want +got)\n%s", diff)
		}
	})
}

func TestMaxBatchBoundsACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{Concurrency: 1, MaxBatch: 3}, g)
		var ws []*httptest.ResponseRecorder
		ws = append(ws, concurrently(s, binaryRequest(message("0"))))
		ws = append(ws, concurrently(s, binaryRequest(message("1"))))
		ws = append(ws, concurrently(s, batchRequest(messages("2", "3")...)))
		ws = append(ws, concurrently(s, batchRequest(messages("4", "5")...))) // would make five
		ws = append(ws, concurrently(s, batchRequest(messages("6", "7", "8", "9")...)))
		close(g.hold)
		synctest.Wait()
		want := [][]string{{"0"}, {"1", "2", "3"}, {"4", "5"}, {"6", "7", "8"}, {"9"}}
		if diff := cmp.Diff(want, g.calls); diff != "" {
			t.Errorf("calls (-want +got)\n%s", diff)
		}
		if diff := cmp.Diff([]int{200, 200, 200, 200, 200}, statuses(ws)); diff != "" {
			t.Errorf("statuses (-want +got)\n%s", diff)
		}
	})
}

// The rest of a request that will be sent again must not get ahead of what failed.
func TestCallsOfOneRequestEndWithAFailure(t *testing.T) {
	var calls [][]string
	s := newServer(t, Config{MaxBatch: 2}, HandlerFunc(func(_ context.Context, batch []event.Event) []Result {
		results := make([]Result, len(batch))
		var ids []string
		for i := range batch {
			ids = append(ids, batch[i].ID())
			switch batch[i].ID() {
			case "1":
				results[i].Err = Invalid("bad for good")
			case "3":
				results[i].Err = Unavailable(errors.New("away"), time.Second)
			}
		}
		calls = append(calls, ids)
		return results
	}))
	if w := do(s, batchRequest(messages("0", "1", "2", "3", "4", "5", "6")...)); w.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d", w.StatusCode)
	}
	if diff := cmp.Diff([][]string{{"0", "1"}, {"2", "3"}}, calls); diff != "" {
		t.Errorf("calls (-want +got)\n%s", diff)
	}
}

func TestFullQueueRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{Concurrency: 1, MaxQueue: 3}, g)
		var ws []*httptest.ResponseRecorder
		ws = append(ws, concurrently(s, binaryRequest(message("0"))))
		ws = append(ws, concurrently(s, batchRequest(messages("1", "2", "3", "4")...))) // too many, but nothing else waits
		ws = append(ws, concurrently(s, binaryRequest(message("5"))))
		if w := ws[2]; w.Code != 429 || w.Header().Get("Retry-After") != "1" ||
			w.Body.String() != "too many events wait already (MAX_QUEUE is 3)\n" {
			t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
		}
		close(g.hold)
		synctest.Wait()
		if diff := cmp.Diff([]int{200, 200, 429}, statuses(ws)); diff != "" {
			t.Errorf("statuses (-want +got)\n%s", diff)
		}
		if w := concurrently(s, binaryRequest(message("6"))); w.Code != 200 {
			t.Errorf("afterwards: %d", w.Code)
		}
	})
}

func TestBytesInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{MaxEventBytes: 10, MaxBodyBytes: 10, MaxInFlightBytes: 10, Concurrency: 9}, g)
		held := concurrently(s, binaryRequest(message("12345")))
		refused := concurrently(s, binaryRequest(message("67890")))
		if refused.Code != 429 || refused.Body.String() != "too many bytes are in flight already (MAX_IN_FLIGHT_BYTES is 10)\n" {
			t.Errorf("%d %q", refused.Code, refused.Body)
		}
		close(g.hold)
		synctest.Wait()
		if held.Code != 200 {
			t.Errorf("status %d", held.Code)
		}
		if w := concurrently(s, binaryRequest(message("67890"))); w.Code != 200 {
			t.Errorf("afterwards: %d", w.Code)
		}
	})
}

func TestPanicFailsItsEventOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{Concurrency: 1}, g)
		var ws []*httptest.ResponseRecorder
		for _, id := range []string{"0", "1", "panic", "2"} {
			ws = append(ws, concurrently(s, binaryRequest(message(id))))
		}
		ws = append(ws, concurrently(s, batchRequest(messages("3", "panic")...)))
		ws = append(ws, concurrently(s, batchRequest(messages("4", "5")...)))
		close(g.hold)
		synctest.Wait()
		if diff := cmp.Diff([]int{200, 200, 500, 200, 500, 200}, statuses(ws)); diff != "" {
			t.Errorf("statuses (-want +got)\n%s", diff)
		}
		want := [][]string{{"0"}, {"1", "panic", "2", "3", "panic", "4", "5"}, {"1"}, {"panic"}, {"2"}, {"3"}, {"panic"}, {"4"}, {"5"}}
		if diff := cmp.Diff(want, g.calls); diff != "" {
			t.Errorf("calls (-want +got)\n%s", diff)
		}
	})
}

func TestClientThatGoesAwayDoesNotCancelOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{Concurrency: 1}, g)
		ctx, leave := context.WithCancel(t.Context())
		first := concurrently(s, binaryRequest(message("0")))
		concurrently(s, binaryRequest(message("1")).WithContext(ctx)) // leads the next call
		other := concurrently(s, binaryRequest(message("2")))
		g.hold <- struct{}{}
		synctest.Wait()
		leave()
		synctest.Wait()
		close(g.hold)
		synctest.Wait()
		if first.Code != 200 || other.Code != 200 {
			t.Errorf("statuses %d, %d", first.Code, other.Code)
		}
	})
}

func TestHandlerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(echo)
		s := newServer(t, Config{HandlerTimeout: 7 * time.Second}, g)
		start := time.Now()
		r := do(s, binaryRequest(message("0")))
		if body := text(t, r); r.StatusCode != 503 || body != "context deadline exceeded\n" {
			t.Errorf("%d %q", r.StatusCode, body)
		}
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("after %s", d)
		}
	})
}

// A sender that waits for each answer sees its events handled in its order,
// whatever else is going on.
func TestSequentialSendsKeepTheirOrder(t *testing.T) {
	const senders, sends = 20, 50
	var mu sync.Mutex
	seen := map[string][]string{}
	s := newServer(t, Config{Concurrency: 4, MaxBatch: 7}, HandlerFunc(func(_ context.Context, batch []event.Event) []Result {
		mu.Lock()
		defer mu.Unlock()
		for i := range batch {
			seen[batch[i].Type()] = append(seen[batch[i].Type()], batch[i].ID())
		}
		return make([]Result, len(batch))
	}))
	var senderGroup sync.WaitGroup
	for k := range senders {
		senderGroup.Go(func() {
			for i := 0; i < sends; i += 2 {
				a, b := message(strconv.Itoa(i)), message(strconv.Itoa(i+1))
				a.Set("type", strconv.Itoa(k))
				b.Set("type", strconv.Itoa(k))
				requests := []*http.Request{batchRequest(a, b)}
				if i%4 == 0 {
					requests = []*http.Request{binaryRequest(a), binaryRequest(b)}
				}
				for _, r := range requests {
					if w := do(s, r); w.StatusCode != 202 {
						t.Errorf("status %d", w.StatusCode)
					}
				}
			}
		})
	}
	senderGroup.Wait()
	var want []string
	for i := range sends {
		want = append(want, strconv.Itoa(i))
	}
	for k := range senders {
		if diff := cmp.Diff(want, seen[strconv.Itoa(k)]); diff != "" {
			t.Errorf("sender %d (-want +got)\n%s", k, diff)
		}
	}
}

// Many senders of all kinds against a handler that fails now and then: everyone
// gets the answer to what they sent.
func TestEveryoneGetsTheirOwnAnswer(t *testing.T) {
	s := newServer(t, Config{Concurrency: 2, MaxBatch: 5}, HandlerFunc(func(ctx context.Context, batch []event.Event) []Result {
		if len(batch) == 4 {
			panic(errors.New("a batch of four"))
		}
		return echo.Handle(ctx, batch)
	}))
	var senders sync.WaitGroup
	for k := range 16 {
		senders.Go(func() {
			for i := range 100 {
				id := fmt.Sprintf("%d-%d", k, i)
				if r := do(s, binaryRequest(message(id))); r.StatusCode != 200 || text(t, r) != `"`+id+`"` {
					t.Errorf("%s: status %d", id, r.StatusCode)
				}
			}
		})
	}
	senders.Wait()
}

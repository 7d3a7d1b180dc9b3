package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
)

// receiver takes events as a Broker of Knative's does, one a request, when it is up.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	down   bool
	refuse string            // the id of what it never takes
	got    map[string]string // type and id -> body
	asked  int
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{got: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked++
		switch id := q.Header.Get("Ce-Id"); {
		case r.down:
			w.WriteHeader(http.StatusServiceUnavailable)
		case err != nil || id == "" || id == r.refuse:
			w.WriteHeader(http.StatusBadRequest)
		default:
			r.got[strings.TrimPrefix(q.Header.Get("Ce-Type"), "org.kubeflow.serving.inference.")+" "+id] = string(body)
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// has tells how many events were taken.
func (r *receiver) has() (taken, asked int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got), r.asked
}

// ask is do with a request id.
func ask(t *testing.T, url, id, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Request-Id", id)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(answer)
}

func TestPayloadsAreSentOn(t *testing.T) {
	for mode, want := range map[string]map[string]string{
		payloadsAll:      {"request a": `[{"features":{}}]`, "response a": "answer", "request b": `[{"features":1}]`, "request c": `{"instances":[{}]}`, "response c": "answer"},
		payloadsRequest:  {"request a": `[{"features":{}}]`, "request b": `[{"features":1}]`, "request c": `{"instances":[{}]}`},
		payloadsResponse: {"response a": "answer", "response c": "answer"},
	} {
		t.Run(mode, func(t *testing.T) {
			r := newReceiver(t)
			_, uri := folder(t, modeltest.Shop(t, "1", 0.5))
			s := start(t, Config{URI: uri, Payloads: mode, PayloadBytes: 1 << 20, PayloadWait: patience, Sink: r.URL}, nil)
			s.waitFor(t, s.live, "1")
			r.set(func() { r.refuse = "never" })
			_, a := ask(t, s.url+"/predict", "a", `[{"features":{}}]`)
			if status, body := ask(t, s.url+"/predict", "b", `[{"features":1}]`); status != http.StatusUnprocessableEntity {
				t.Errorf("%d %s", status, body)
			}
			_, _ = ask(t, s.url+"/predict", "never", `[]`)
			_, _ = ask(t, s.url+"/predict", "d", `no JSON`)
			_, c := ask(t, s.url+"/v1/models/purchase_prediction_model:predict", "c", `{"instances":[{}]}`)
			if err := s.payloads.close(t.Context()); err != nil {
				t.Fatal(err)
			}
			for key, answer := range map[string]string{"response a": a, "response c": c} {
				if want[key] != "" {
					want[key] = strings.TrimSpace(answer)
				}
			}
			if diff := cmp.Diff(want, r.got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A receiver that is down makes requests wait, then be refused; what was answered is
// sent once it is up again.
func TestPayloadsPushBackAndLoseNothing(t *testing.T) {
	r := newReceiver(t)
	_, uri := folder(t, modeltest.Shop(t, "1", 0.5))
	s := start(t, Config{URI: uri, Payloads: payloadsAll, PayloadBytes: 40 << 10, PayloadWait: 10 * time.Millisecond, Sink: r.URL}, nil)
	s.waitFor(t, s.live, "1")
	r.set(func() { r.down = true })
	want := map[string]bool{}
	refused := 0
	for i := 0; refused < 3; i++ {
		id := fmt.Sprint(i)
		switch status, body := ask(t, s.url+"/predict", id, `[{"features":{"price":1}}]`); status {
		case http.StatusOK:
			if len(want) > 1000 {
				t.Fatal("nothing pushes back")
			}
			want["request "+id], want["response "+id] = true, true
		case http.StatusTooManyRequests:
			if !strings.Contains(body, "PAYLOAD_BYTES") {
				t.Fatal(body)
			}
			refused++
		default:
			t.Fatal(status, body)
		}
	}
	if len(want) < 20 {
		t.Errorf("only %d events were held before requests were refused", len(want))
	}
	// There is room when the receiver is back.
	r.set(func() { r.down = false })
	s.wait(t, "room for another request", func() bool {
		status, _ := ask(t, s.url+"/predict", "late", `[{"features":{"price":1}}]`)
		return status == http.StatusOK
	})
	want["request late"], want["response late"] = true, true
	s.wait(t, "all events", func() bool {
		taken, _ := r.has()
		return taken == len(want)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range want {
		if _, ok := r.got[id]; !ok {
			t.Errorf("%s is missing", id)
		}
	}
	s.wait(t, "the room", func() bool { return s.payloads.room.held() == 0 })
}

// What cannot be sent before the process ends is told.
func TestPayloadsThatAreLeftAreCounted(t *testing.T) {
	r := newReceiver(t)
	r.set(func() { r.down = true })
	_, uri := folder(t, modeltest.Shop(t, "1", 0.5))
	s := start(t, Config{URI: uri, Payloads: payloadsAll, PayloadBytes: 1 << 20, PayloadWait: time.Second, Sink: r.URL}, nil)
	s.waitFor(t, s.live, "1")
	if status, body := ask(t, s.url+"/predict", "1", `[]`); status != http.StatusOK {
		t.Fatal(status, body)
	}
	s.wait(t, "a try", func() bool { _, asked := r.has(); return asked > 0 })
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.payloads.close(ended); err == nil || !strings.Contains(err.Error(), "bytes of requests and answers were not sent") {
		t.Errorf("%v", err)
	}
}

// Whoever finds no room waits for it.
func TestRoomIsWaitedFor(t *testing.T) {
	r := newRoom(10)
	for _, n := range []int64{100, 4} {
		if err := r.take(t.Context(), n, 0); n == 100 && err != nil || n == 4 && err == nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	took := make(chan error)
	go func() { took <- r.take(t.Context(), 4, patience) }()
	r.give(100)
	if err := <-took; err != nil || r.held() != 4 {
		t.Errorf("%v, %d bytes are held", err, r.held())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.take(ended, 10, patience); err == nil {
		t.Error("a request that is gone got room")
	}
}

func TestPayloadEventsAreKServes(t *testing.T) {
	p := &payloads{mode: payloadsAll, source: "/millrace/predict", service: "predict"}
	r := httptest.NewRequest(http.MethodPost, "/predict", nil)
	r.Header.Set("Ce-Id", "7")
	out := p.parcel(r, 10, time.Date(2026, 11, 22, 2, 41, 0, 0, time.UTC), []byte(`[]`), http.StatusOK, []byte(`{}`))
	if len(out.events) != 2 || string(out.events[0].Data) != `[]` || string(out.events[1].Data) != `{}` {
		t.Fatalf("%+v", out)
	}
	for i, want := range []map[string]string{
		{"type": events.InferenceRequest, "source": "/millrace/predict/request", "time": "2026-11-22T02:41:00Z"},
		{"type": events.InferenceResponse, "source": "/millrace/predict/response"},
	} {
		want["id"], want["subject"], want["inferenceservicename"], want["component"] = "7", "/predict", "predict", "predictor"
		for name, value := range want {
			if got := out.events[i].Get(name); got != value {
				t.Errorf("event %d: %s is %q, want %q", i, name, got, value)
			}
		}
	}
	r.Header.Del("Ce-Id")
	one, two := p.parcel(r, 10, time.Now(), []byte(`[]`), http.StatusOK, nil), p.parcel(r, 10, time.Now(), []byte(`[]`), http.StatusOK, nil)
	if a, b := one.events[0].Get("id"), two.events[0].Get("id"); a == "" || a == b {
		t.Errorf("ids %q and %q of two requests without any", a, b)
	}
}

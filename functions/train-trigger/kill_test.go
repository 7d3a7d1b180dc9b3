package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/testkit/child"
)

// blow kills a process when a request of it comes, before it has its effect or when it
// has had it, and lets the request fail.
type blow struct {
	method, path string // "" for any
	body         string // has to be in it
	after        bool

	mu   sync.Mutex
	kill func() // nil while it is not to come
}

func (b *blow) set(kill func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kill = kill
}

// strikes tells what to do about a request, at most once.
func (b *blow) strikes(r *http.Request, body []byte) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kill == nil || b.method != "" && b.method != r.Method || b.path != "" && !strings.HasSuffix(r.URL.Path, b.path) {
		return nil
	}
	if !bytes.Contains(body, []byte(b.body)) && r.Header.Get("ce-type") != b.body {
		return nil
	}
	kill := b.kill
	b.kill = nil
	return kill
}

// inFront puts the blow between a process and a server.
func (b *blow) inFront(t *testing.T, of http.Handler) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		if _, err := body.ReadFrom(r.Body); err != nil {
			panic(http.ErrAbortHandler) // it was killed while it wrote
		}
		r.Body = http.NoBody
		if body.Len() > 0 {
			r.Body = readCloser{bytes.NewReader(body.Bytes())}
		}
		kill := b.strikes(r, body.Bytes())
		if kill == nil {
			of.ServeHTTP(w, r)
			return
		}
		if b.after {
			of.ServeHTTP(httptest.NewRecorder(), r)
		}
		kill()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// startProcess starts a train-trigger of its own, which can be killed.
func (w *world) startProcess(policies, registry, broker string) *child.Process {
	w.t.Helper()
	return child.Start(w.t, "FUNCTION_NAME=train-trigger", "LOG_LEVEL=warn",
		"DATABASE_URL="+w.db.Config().ConnString(), "MLFLOW_TRACKING_URI="+registry, "K_SINK="+broker, "LEARNING_POLICIES="+policies)
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waited in vain: %s; decisions %v, events %v", what, w.decisions(), w.broker.distinct())
		}
	}
}

// TestKilledProcess kills a train-trigger of its own with kill -9 between any two things
// that last. The next one goes on at its first tick: one run, one decision, the alias
// where it says, and one event, whatever is delivered again.
func TestKilledProcess(t *testing.T) {
	for _, c := range []struct {
		name string
		blow *blow
		// asking: it comes when the run is asked for, not when it has ended.
		asking bool
	}{
		{"asked, not told", &blow{body: events.TrainingRequested}, true},
		{"asked, told, not noted", &blow{body: events.TrainingRequested, after: true}, true},
		{"finished, not judged", &blow{method: http.MethodGet, path: "registered-models/alias"}, false},
		{"being judged", &blow{path: "model-versions/get-download-uri"}, false},
		{"judged, not moved", &blow{method: http.MethodPost, path: "registered-models/alias"}, false},
		{"moved, not noted", &blow{method: http.MethodPost, path: "registered-models/alias", after: true}, false},
		{"moved, not told", &blow{body: events.ModelPromoted}, false},
		{"moved, told, not noted", &blow{body: events.ModelPromoted, after: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.clock = time.Now()
			policies := filepath.Join(t.TempDir(), "policies.yaml")
			const text = "models: {" + shop + ": {rows: {query: SELECT count(*) FROM public.rows WHERE at > $1, first: 10, more: 1000}, deadline: 1h, retry: 1h," +
				" gate: {gain: gain, baseline: baseline}}}\n"
			if err := os.WriteFile(policies, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			registry, broker := c.blow.inFront(t, w.aliases.Config.Handler), c.blow.inFront(t, w.broker.Config.Handler)
			p := w.startProcess(policies, registry, broker)
			take := func(e event.Event) int {
				m := events.FromEvent(&e)
				return p.Post(&m)
			}
			tick := func() int {
				return take(w.event(events.Tick, "/apis/v1/namespaces/millrace/pingsources/learning-tick", "", map[string]any{}))
			}
			killed := make(chan struct{})
			kill := func() {
				p.Kill()
				close(killed)
			}
			again := func() {
				select {
				case <-killed:
				case <-time.After(time.Minute):
					t.Fatal("it was not killed")
				}
				p.Run()
			}
			w.rows(10)
			if c.asking {
				c.blow.set(kill)
				if status := tick(); status != 0 {
					t.Fatalf("it answered %d", status)
				}
				again()
			}
			w.until("a run is asked for", func() bool { tick(); return slices.Contains(w.broker.distinct(), "training.requested") })
			ended := w.ended(w.aliases.add(), 0, "")
			if !c.asking {
				c.blow.set(kill)
				if status := take(ended); status != 0 {
					t.Fatalf("it answered %d", status)
				}
				again()
				if c.name == "finished, not judged" && len(w.decisions()) != 1 {
					t.Errorf("decisions %v before it goes on", w.decisions())
				}
			} else if status := take(ended); status != http.StatusAccepted && status != http.StatusOK && status != http.StatusNoContent {
				t.Fatalf("it answered %d", status)
			}
			// By a tick alone: what was delivered when it died may have been all.
			w.until("the promotion is told", func() bool { tick(); return slices.Contains(w.broker.distinct(), "model.promoted") })
			for range 3 {
				take(ended)
				tick()
			}
			w.want("at the end", []string{"train", "promote 1"}, []string{"training.requested", "model.promoted"}, "1")
			var runs, open, unsent int
			if err := w.db.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE state <> 'judged'), (SELECT count(*) FROM learning.decisions WHERE sent_at IS NULL)
				FROM learning.runs`).Scan(&runs, &open, &unsent); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]int{1, 0, 0}, []int{runs, open, unsent}); diff != "" {
				t.Errorf("runs, open ones, decisions not told (-want +got):\n%s", diff)
			}
		})
	}
}

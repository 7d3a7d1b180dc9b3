package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
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

// program is the built train-trigger.
func program(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("TEST_PROGRAMS"); dir != "" {
		return filepath.Join(dir, "train-trigger")
	}
	file := filepath.Join(t.TempDir(), "train-trigger")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("building it: %v\n%s", err, out)
	}
	return file
}

// process is a train-trigger that runs by itself.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	done chan struct{}
}

func (w *world) startProcess(program, policies, registry, broker string) *process {
	w.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	p := &process{t: w.t, cmd: exec.Command(program), url: "http://127.0.0.1:" + port, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "FUNCTION_NAME=train-trigger", "LISTEN_HOST=127.0.0.1", "PORT="+port, "LOG_LEVEL=warn",
		"DATABASE_URL="+w.db.Config().ConnString(), "MLFLOW_TRACKING_URI="+registry, "K_SINK="+broker, "LEARNING_POLICIES="+policies)
	p.cmd.Stderr = w.t.Output()
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	w.t.Cleanup(p.kill)
	w.until("it is ready", func() bool {
		resp, err := http.Get(p.url + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// kill is kill -9; it returns when the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// take delivers an event, and gives the status; 0 when it was not answered.
func (p *process) take(e event.Event) int {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.url+"/", bytes.NewReader(e.Data()))
	if err != nil {
		p.t.Fatal(err)
	}
	for name, value := range map[string]string{"specversion": "1.0", "id": e.ID(), "source": e.Source(), "type": e.Type(), "subject": e.Subject()} {
		if value != "" {
			r.Header.Set("ce-"+name, value)
		}
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
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
	program := program(t)
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
			p := w.startProcess(program, policies, registry, broker)
			tick := func() int {
				return p.take(w.event(events.Tick, "/apis/v1/namespaces/millrace/pingsources/learning-tick", "", map[string]any{}))
			}
			again := func() {
				select {
				case <-p.done:
				case <-time.After(time.Minute):
					t.Fatal("it was not killed")
				}
				p = w.startProcess(program, policies, registry, broker)
			}
			w.rows(10)
			if c.asking {
				c.blow.set(p.kill)
				if status := tick(); status != 0 {
					t.Fatalf("it answered %d", status)
				}
				again()
			}
			w.until("a run is asked for", func() bool { tick(); return slices.Contains(w.broker.distinct(), "training.requested") })
			ended := w.ended(w.aliases.add(), 0, "")
			if !c.asking {
				c.blow.set(p.kill)
				if status := p.take(ended); status != 0 {
					t.Fatalf("it answered %d", status)
				}
				again()
				if c.name == "finished, not judged" && len(w.decisions()) != 1 {
					t.Errorf("decisions %v before it goes on", w.decisions())
				}
			} else if status := p.take(ended); status != http.StatusAccepted && status != http.StatusOK && status != http.StatusNoContent {
				t.Fatalf("it answered %d", status)
			}
			// By a tick alone: what was delivered when it died may have been all.
			w.until("the promotion is told", func() bool { tick(); return slices.Contains(w.broker.distinct(), "model.promoted") })
			for range 3 {
				p.take(ended)
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

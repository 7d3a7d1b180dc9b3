package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/testkit/child"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) {
	if !child.Main(main) {
		pgtest.Main(m)
	}
}

const shop = "purchase_prediction_model"

// aliases is the part of a registry that decisions need: versions with bundles, and
// one alias a model. make test-learning holds train-trigger to a real one.
type aliases struct {
	*httptest.Server
	t testing.TB

	mu     sync.Mutex
	folder map[string]string // of a version
	alias  string
	moves  int
	away   bool
}

func startAliases(t testing.TB) *aliases {
	a := &aliases{t: t, folder: map[string]string{}}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// add makes a version of a bundle, which change may spoil.
func (a *aliases) add(change ...func(modeltest.Files)) string {
	a.t.Helper()
	f := modeltest.Shop(a.t, "", float32(len(a.folder)))
	for _, c := range change {
		c(f)
	}
	folder := a.t.TempDir()
	for name, data := range f {
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	version := fmt.Sprint(len(a.folder) + 1)
	a.folder[version] = folder
	return version
}

func (a *aliases) current() (version string, moves int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.alias, a.moves
}

func (a *aliases) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *aliases) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	missing := func() {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"not found"}`)
	}
	show := func(version string) {
		if a.folder[version] == "" {
			missing()
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"model_version": map[string]any{"name": shop, "version": version, "status": "READY"}})
	}
	if a.away {
		http.Error(w, "away", http.StatusBadGateway)
		return
	}
	switch strings.TrimPrefix(r.URL.Path, "/api/2.0/mlflow/") {
	case "registered-models/alias":
		if r.Method == http.MethodGet {
			show(a.alias)
			return
		}
		var in struct{ Version string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			a.t.Error(err)
		}
		if a.folder[in.Version] == "" {
			missing()
			return
		}
		a.alias = in.Version
		a.moves++
		_, _ = io.WriteString(w, "{}")
	case "model-versions/get":
		show(r.URL.Query().Get("version"))
	case "model-versions/get-download-uri":
		_ = json.NewEncoder(w).Encode(map[string]any{"artifact_uri": "file://" + a.folder[r.URL.Query().Get("version")]})
	default:
		a.t.Errorf("asked for %s", r.URL)
		missing()
	}
}

// broker takes events.
type broker struct {
	*httptest.Server

	mu   sync.Mutex
	got  []events.Message
	away bool
}

func startBroker(t testing.TB) *broker {
	b := &broker{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if err != nil || b.away {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		if strings.HasPrefix(r.Header.Get("Content-Type"), events.ContentTypeBatch) {
			ms, err := events.ParseBatch(body)
			if err != nil {
				t.Error(err)
			}
			b.got = append(b.got, ms...)
			return
		}
		m, err := events.FromHTTP(r.Header, body)
		if err != nil {
			t.Error(err)
		}
		b.got = append(b.got, m)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *broker) set(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

// distinct are the types of the events that came, by id once each, in their order.
func (b *broker) distinct() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var types []string
	seen := map[string]bool{}
	for i := range b.got {
		if id := b.got[i].Get("id"); !seen[id] {
			seen[id] = true
			types = append(types, strings.TrimSuffix(strings.TrimPrefix(b.got[i].Get("type"), "dev.millrace."), ".v1"))
		}
	}
	return types
}

// last is the newest event of a type.
func (b *broker) last(t testing.TB, typ string) (events.Message, map[string]any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.got) - 1; i >= 0; i-- {
		if b.got[i].Get("type") == typ {
			var data map[string]any
			if err := json.Unmarshal(b.got[i].Data, &data); err != nil {
				t.Fatal(err)
			}
			return b.got[i], data
		}
	}
	t.Fatalf("there is no event %s", typ)
	return events.Message{}, nil
}

// world is everything around a learner. start makes another learner in it, as after a
// death.
type world struct {
	*learner
	t        *testing.T
	aliases  *aliases
	broker   *broker
	clock    time.Time
	policy   *policy
	sequence int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := warehouse.Config{URL: pgtest.URL(t), MaxConns: 8}.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, aliases: startAliases(t), broker: startBroker(t), clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.policy = &policy{
		Rows: &rowsPolicy{Query: "SELECT count(*) FROM rows WHERE at > $1", First: 10, More: 100, OnGold: true}, Drift: true,
		Cooldown: 10 * time.Minute, DriftCooldown: time.Minute, Deadline: 30 * time.Minute, Retry: time.Minute,
		Request: map[string]any{"trials": 3}, DriftRequest: map[string]any{"max_rows": 5}, SinceDrift: true, Gate: gate{Gain: "gain", Baseline: "baseline"},
	}
	// Without its schema no table of the tests is found; see warehouse.Config.Open.
	w.policy.Rows.Query = "SELECT count(*) FROM public.rows WHERE at > $1"
	if _, err := db.Exec(t.Context(), `CREATE TABLE public.rows (at timestamptz)`); err != nil {
		t.Fatal(err)
	}
	client, err := registry.Config{URL: w.aliases.URL}.Connect()
	if err != nil {
		t.Fatal(err)
	}
	to, err := sink.New(w.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	w.learner = &learner{
		db: db, registry: client, sink: to, policies: map[string]*policy{shop: w.policy}, function: "train-trigger", alias: "current",
		now: func() time.Time { return w.clock }, reached: func(string) error { return nil },
	}
	return w
}

// again makes a learner that remembers nothing, on what the other has left.
func (w *world) again() {
	w.learner = &learner{
		db: w.db, registry: w.registry, sink: w.sink, policies: w.policies, function: w.function, alias: w.alias,
		now: w.now, reached: func(string) error { return nil },
	}
}

func (w *world) rows(n int) {
	w.t.Helper()
	if _, err := w.db.Exec(w.t.Context(), `INSERT INTO public.rows SELECT $2 FROM generate_series(1, $1)`, n, w.clock); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) event(typ, source, subject string, data any) event.Event {
	w.t.Helper()
	w.sequence++
	e := event.New()
	e.SetID(fmt.Sprint(w.sequence))
	e.SetSource(source)
	e.SetType(typ)
	e.SetSubject(subject)
	if err := e.SetData(event.ApplicationJSON, data); err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) handle(e event.Event) error {
	_, err := w.Handle(w.t.Context(), e)
	return err
}

func (w *world) must(e event.Event) {
	w.t.Helper()
	if err := w.handle(e); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tickAt(after time.Duration) {
	w.t.Helper()
	w.clock = w.clock.Add(after)
	w.must(w.event(events.Tick, "/apis/v1/namespaces/millrace/pingsources/learning-tick", "", map[string]any{}))
}

func (w *world) driftEvent() event.Event {
	return w.event(events.DriftDetected, "/millrace/drift", shop, map[string]any{"model": shop, "window_start": driftFrom})
}

// driftFrom is when the windows of all drift events began.
const driftFrom = "2026-01-02T02:00:00Z"

// ended is the trainer's answer to the last request.
func (w *world) ended(version string, gain float64, serving string) event.Event {
	w.t.Helper()
	m, _ := w.broker.last(w.t, events.TrainingRequested)
	data := map[string]any{
		"model": shop, "version": version, "run_id": "r" + version,
		"metrics": map[string]any{"gain": map[string]any{"value": gain}, "baseline": map[string]any{"value": 0.5}},
		"request": map[string]any{"source": m.Get("source"), "id": m.Get("id")},
	}
	if serving != "" {
		data["champion"] = map[string]any{"version": serving}
	}
	return w.event(events.TrainingCompleted, "/millrace/training", shop, data)
}

func (w *world) failedEvent(reason string, transient bool) event.Event {
	w.t.Helper()
	m, _ := w.broker.last(w.t, events.TrainingRequested)
	return w.event(events.TrainingFailed, "/millrace/training", shop, map[string]any{
		"model": shop, "reason": reason, "message": "because", "transient": transient,
		"request": map[string]any{"source": m.Get("source"), "id": m.Get("id")},
	})
}

// decisions are what was decided, oldest first.
func (w *world) decisions() []string {
	w.t.Helper()
	rows, err := w.db.Query(w.t.Context(), `SELECT decision || coalesce(' ' || version, '') FROM learning.decisions ORDER BY decision_id`)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, text)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// corrupt cuts the model of a bundle short.
func corrupt(f modeltest.Files) { f[model.XGBoostFile] = f[model.XGBoostFile][:50] }

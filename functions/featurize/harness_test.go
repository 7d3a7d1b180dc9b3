package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// childVariable makes the test program the function itself, as a process that can be
// killed.
const childVariable = "FEATURIZE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		main()
		return
	}
	pgtest.Main(m)
}

// harness is the whole function behind its HTTP server, with a Redis of its own.
type harness struct {
	t      testing.TB
	url    string
	redis  *redistest.Server
	store  *online.Store
	filler *filler

	access function.Access
	origin string // whose pages may use the API
}

// start starts the function; db may be nil.
func start(t testing.TB, db *warehouse.DB) *harness {
	t.Helper()
	h := &harness{t: t, redis: redistest.Start(t)}
	h.serve(db)
	return h
}

func onlineConfig(url string) online.Config {
	return online.Config{URL: url, PoolSize: 16, Timeout: 10 * time.Second, FeatureTTL: 24 * time.Hour, SessionTTL: 24 * time.Hour}
}

func (h *harness) serve(db *warehouse.DB) {
	t := h.t
	t.Helper()
	var err error
	if h.store, err = onlineConfig(h.redis.URL).Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.store.Close() })
	m, err := newMetrics()
	if err != nil {
		t.Fatal(err)
	}
	h.filler = newFiller(t.Context(), h.store, db, m, slog.New(slog.DiscardHandler))
	f := &featurizer{name: "featurize", store: h.store, filler: h.filler, metrics: m, now: time.Now}
	api, err := newAPI(APIConfig{MaxEntities: 1000, MaxBody: 1 << 20, AllowOrigin: h.origin}, h.store, h.filler, m)
	if err != nil {
		t.Fatal(err)
	}
	server, err := function.New(function.Config{Name: "featurize"}, f, function.WithReady(h.filler.ready),
		function.WithAccess(h.access), function.WithRoutes(api.routes), function.WithOpenRoutes(api.openRoutes))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(server)
	t.Cleanup(s.Close)
	h.url = s.URL
}

func openWarehouse(t testing.TB) *warehouse.DB {
	t.Helper()
	db, err := warehouse.Config{URL: pgtest.URL(t), MaxConns: 4}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// post sends JSON and gives the status and body of the answer.
func (h *harness) post(path, body string) (int, string) {
	h.t.Helper()
	resp, err := http.Post(h.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

var day = time.Date(2019, 10, 6, 10, 0, 0, 0, time.UTC)

func shopEvent(session string, seconds int, user, product int64) features.Event {
	return features.Event{
		Time: day.Add(time.Duration(seconds) * time.Second), Type: "view", Session: session, UserID: user, ProductID: product,
		CategoryCode: "appliances.kitchen.hood", Brand: "xiaomi", Price: float64(10 + seconds),
	}
}

// verdict is the event as validate replies it.
func verdict(e *features.Event) string {
	row := map[string]any{
		"event_time": e.Time.Format("2006-01-02 15:04:05 UTC"), "event_type": e.Type, "product_id": e.ProductID, "category_id": 2053013558920217191,
		"category_code": nil, "brand": nil, "price": e.Price, "user_id": e.UserID, "user_session": e.Session,
	}
	if e.CategoryCode != "" {
		row["category_code"] = e.CategoryCode
	}
	if e.Brand != "" {
		row["brand"] = e.Brand
	}
	payload, _ := json.Marshal(row)
	op := ""
	if e.Op != "" {
		op = fmt.Sprintf(`,"op":%q`, e.Op)
	}
	return `{"schema":{"type":"struct","fields":[]},"payload":` + string(payload) + op +
		`,"valid":"VALID","error_message":null,"error_type":null,"metadata":{"processed_at":"2025-01-07T09:00:00.000001"}}`
}

// validated makes the CloudEvent of an event. Its id is the event's, so that the
// same event twice is a redelivery.
func validated(e *features.Event) event.Event {
	ev := event.New()
	ev.SetID(fmt.Sprintf("%x%s", e.Hash(), e.Op))
	ev.SetSource("/millrace/validate")
	ev.SetType(events.BehaviorValidated)
	ev.SetTime(e.Time)
	ev.SetExtension(events.PartitionKey, e.Session)
	_ = ev.SetData(event.ApplicationJSON, json.RawMessage(verdict(e)))
	return ev
}

// send delivers events as one batch and gives the status and the replies.
func (h *harness) send(list ...event.Event) (int, []event.Event) {
	h.t.Helper()
	body, err := json.Marshal(list)
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.Post(h.url, events.ContentTypeBatch, strings.NewReader(string(body)))
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	var replies []event.Event
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&replies); err != nil {
			h.t.Fatal(err)
		}
	}
	return resp.StatusCode, replies
}

func ready(t testing.TB, e event.Event) features.Ready {
	t.Helper()
	r, err := features.ParseReady(e.Data())
	if err != nil {
		t.Fatalf("%v: %s", err, e.Data())
	}
	return r
}

// waitFor waits until a condition is met.
func waitFor(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

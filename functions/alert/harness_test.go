package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/testkit/child"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) {
	if !child.Main(main) {
		pgtest.Main(m)
	}
}

func database(t testing.TB) *warehouse.DB {
	t.Helper()
	db, err := warehouse.Config{URL: pgtest.URL(t), MaxConns: 8}.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// make an alerter of the rules that ship, with sinks at addresses.
func start(t testing.TB, db *warehouse.DB, addresses map[string]string) *alerter {
	t.Helper()
	r, err := openRules("", func(name string) string { return addresses[name] })
	if err != nil {
		t.Fatal(err)
	}
	return startWith(t, db, r)
}

func startWith(t testing.TB, db *warehouse.DB, r *rules) *alerter {
	t.Helper()
	a, err := newAlerter(&Config{Function: function.Config{Name: "alert"}, Lease: time.Minute, Retention: time.Hour}, r, db)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var began = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// make an event, s seconds after it all began.
func newEvent(typ, id, subject string, s int, data string) event.Event {
	e := event.New()
	e.SetID(id)
	e.SetSource("/test")
	e.SetType(typ)
	if subject != "" {
		e.SetSubject(subject)
	}
	e.SetTime(began.Add(time.Duration(s) * time.Second))
	_ = e.SetData(event.ApplicationJSON, []byte(data))
	return e
}

func invalidEvent(id, errorType string) event.Event {
	e := newEvent(events.BehaviorInvalid, id, "", 0, fmt.Sprintf(`{"schema":{},"payload":{"price":0},"valid":"INVALID","error_message":"Price should be greater than 0","error_type":%q,"metadata":{}}`, errorType))
	e.SetExtension(events.Contract, "shop-clickstream")
	return e
}

func anomalyEvent(id, entity, anomaly, level string, s int) event.Event {
	return newEvent(events.AnomalyDetected, id, "", s, fmt.Sprintf(
		`{"timestamp":"x","entity_type":"server","entity_id":%q,"anomaly_type":%q,"severity":%q,"anomaly_score":0.7,"details":{"contract":"datacenter-server"},"resolved":false,"resolved_at":null}`, entity, anomaly, level))
}

func overEvent(id, entity, anomaly string, s int) event.Event {
	e := anomalyEvent(id, entity, anomaly, "low", s)
	e.SetType(events.AnomalyResolved)
	return e
}

func tickEvent() event.Event {
	e := newEvent(events.Tick, fmt.Sprint(time.Now().UnixNano()), "", 0, `{}`)
	e.SetSource("/apis/v1/namespaces/millrace/pingsources/alerts-tick")
	return e
}

// handle gives the replies' alerts by the place of their events, "" for none.
func handle(t testing.TB, a *alerter, batch ...event.Event) []string {
	t.Helper()
	results := a.Handle(t.Context(), batch)
	out := make([]string, len(batch))
	for i, r := range results {
		if r.Err != nil {
			t.Fatalf("event %d: %v", i, r.Err)
		}
		if r.Reply != nil {
			var data struct {
				ID   int64  `json:"alert_id"`
				Rule string `json:"rule"`
			}
			if err := json.Unmarshal(r.Reply.Data(), &data); err != nil {
				t.Fatal(err)
			}
			out[i] = fmt.Sprintf("%s %d", data.Rule, data.ID)
		}
	}
	return out
}

// rowsOf gives rows as texts joined by spaces.
func rowsOf(t testing.TB, db *warehouse.DB, sql string, args ...any) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		parts := make([]string, len(values))
		for i, v := range values {
			parts[i] = fmt.Sprint(v)
		}
		out = append(out, strings.Join(parts, " "))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func fine(int) int { return http.StatusOK }

// bodies are the requests that a sink got, as path and body.
func bodies(r *receiver.Receiver) (list []string) {
	for _, req := range r.Requests() {
		list = append(list, req.Path+" "+string(req.Body))
	}
	return list
}

// deliveries counts what a sink accepted, by delivery.
func deliveries(r *receiver.Receiver) map[string]int {
	keys := map[string]int{}
	for _, req := range r.Requests() {
		if req.Accepted() {
			keys[req.Header.Get("Idempotency-Key")]++
		}
	}
	return keys
}

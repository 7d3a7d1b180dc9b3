package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

// The models of servers are trained when somebody asks for it over HTTP, when the last is
// a day old, and for their rows, by the policies that ship.
func TestModelsOfServers_areTrainedOnDemandAndBySchedule(t *testing.T) {
	for _, name := range []string{"power_prediction_model", "server_anomaly_model"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			builtin, err := readPolicies("")
			if err != nil {
				t.Fatal(err)
			}
			w.policies = map[string]*policy{name: builtin[name]}
			w.again()
			mux := http.NewServeMux()
			newAPI(w.learner, "").routes(mux)
			server := httptest.NewServer(mux)
			defer server.Close()
			demand := func() int {
				t.Helper()
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/train", strings.NewReader(`{"model":"`+name+`","reason":"new racks"}`))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				response, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = response.Body.Close()
				return response.StatusCode
			}
			asked := func() int {
				n := 0
				for _, typ := range w.broker.distinct() {
					if typ == "training.requested" {
						n++
					}
				}
				return n
			}
			last := func(n int, reason string) {
				t.Helper()
				if got := asked(); got != n {
					t.Fatalf("asked for %d runs, want %d", got, n)
				}
				m, data := w.broker.last(t, events.TrainingRequested)
				text, _ := data["reason"].(string)
				if m.Get("subject") != name || data["model"] != name || !strings.HasPrefix(text, reason) || data["max_rows"] != 100000.0 || data["since"] != nil {
					t.Errorf("asked for %v of %s, want reason %q", data, m.Get("subject"), reason)
				}
			}
			end := func() {
				t.Helper()
				m, _ := w.broker.last(t, events.TrainingRequested)
				w.must(w.event(events.TrainingFailed, "/millrace/training", name, map[string]any{"model": name, "reason": "one_class", "message": "no", "transient": false,
					"request": map[string]any{"source": m.Get("source"), "id": m.Get("id")}}))
			}
			w.tickAt(time.Second)
			if asked() != 0 {
				t.Fatal("a run was asked for without rows")
			}
			if status := demand(); status != http.StatusAccepted {
				t.Fatalf("asking for a run is answered with %d", status)
			}
			last(1, "demand: new racks")
			if status := demand(); status != http.StatusConflict {
				t.Errorf("asking for a second at the same time is answered with %d", status)
			}
			end()

			if _, err := w.db.Exec(t.Context(), `UPDATE learning.models SET trained_until = $2, failures = 0 WHERE model = $1`, name, w.clock); err != nil {
				t.Fatal(err)
			}
			w.tickAt(23*time.Hour + 59*time.Minute)
			if got := asked(); got != 1 {
				t.Fatalf("asked for %d runs before the day was over", got)
			}
			w.tickAt(time.Minute)
			last(2, "schedule: ")
			w.tickAt(time.Minute)
			if got := asked(); got != 2 {
				t.Errorf("asked for %d runs while one is open", got)
			}
			end()

			// Half a million readings later.
			if _, err := w.db.Exec(t.Context(), `UPDATE learning.models SET trained_until = $2, failures = 0 WHERE model = $1`, name, w.clock); err != nil {
				t.Fatal(err)
			}
			w.policies[name].Rows.More = 1000 // the number is what counts, not its size
			if _, err := w.db.Exec(t.Context(), `INSERT INTO public.server_metrics ("timestamp", server_id) SELECT $1::timestamptz + n * interval '1 ms', 'srv-' || n FROM generate_series(1, 1000) n`, w.clock); err != nil {
				t.Fatal(err)
			}
			w.tickAt(11 * time.Minute)
			last(3, "rows: ")
		})
	}
}

// Drift of a version that another has replaced leads to nothing, whether it was told of
// while that was being trained or comes late.
func TestDrift_ofAVersionThatWasReplacedAsksForNothing(t *testing.T) {
	w := newWorld(t)
	drifted := func(version string) {
		t.Helper()
		w.must(w.event(events.DriftDetected, "/millrace/drift", shop, map[string]any{"model": shop, "model_version": version, "window_start": driftFrom}))
	}
	w.rows(10)
	w.tickAt(time.Second)
	drifted("starter")
	w.must(w.ended(w.aliases.add(), 0, ""))
	w.tickAt(time.Hour)
	drifted("starter")
	w.want("the first", []string{"train", "promote 1"}, []string{"training.requested", "model.promoted"}, "1")
	drifted("1")
	w.want("drift of the first", []string{"train", "promote 1", "train"}, []string{"training.requested", "model.promoted", "training.requested"}, "1")
}

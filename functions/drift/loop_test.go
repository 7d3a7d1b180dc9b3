package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
)

// Servers take more power for the same work: drift notices it in the errors of the
// model's predictions, and train-trigger, the real program, asks for a run because of it.
func TestDrift_leadsToTraining(t *testing.T) {
	if testing.Short() {
		t.Skip("builds train-trigger")
	}
	program := filepath.Join(t.TempDir(), "train-trigger")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../train-trigger").CombinedOutput(); err != nil {
		t.Fatalf("building train-trigger: %v\n%s", err, out)
	}
	b := receiver.New(t, nil)
	base := &baseline{version: "1", rows: 50_000, training: model.Training{From: live.AddDate(0, 0, -1), To: live, Rows: 50_000},
		features: []model.Feature{{Name: "cpu_usage_percent", Type: model.Float}},
		known:    []model.Distribution{{Name: "cpu_usage_percent", Edges: []float64{30}, Counts: []int64{25_000, 25_000}}},
		score:    model.Distribution{Name: "power", Edges: []float64{250}, Counts: []int64{25_000, 25_000}},
		residual: &model.Residuals{Rows: []int64{1000}, Levels: []float64{0.05, 0.5, 0.95}, Quantiles: [][]float64{{-10, 0, 10}}}}
	m, db := start(t, b, known{"power_prediction_model": base}, func(p *plan) {
		only(p, "power_prediction_model")
		p.Window, p.Every, p.Hold, p.MinRows = 20*time.Second, 5*time.Second, 2, 100
	})
	// A registry that has no model yet answers so.
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"no such model"}`))
	}))
	defer registry.Close()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program)
	cmd.Env = append(os.Environ(), "FUNCTION_NAME=train-trigger", "LISTEN_HOST=127.0.0.1", "PORT="+port, "DATABASE_URL="+db.Config().ConnString(),
		"MLFLOW_TRACKING_URI="+registry.URL, "K_SINK="+b.URL)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	post := func(msg *events.Message) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:"+port+"/", bytes.NewReader(msg.Data))
		if err != nil {
			t.Fatal(err)
		}
		events.SetHTTP(req.Header, msg)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}

	change := datacenter.Drift{Kind: datacenter.PowerDrift, At: live, Size: 0.3}
	servers(t, db, sim(t, change), live.Add(-40*time.Second), live.Add(time.Minute), 5*time.Second)
	calm := sim(t, datacenter.Drift{})
	// The model predicts what was right before.
	var r datacenter.ServerReading
	for at := live.Add(-40 * time.Second); at.Before(live.Add(time.Minute)); at = at.Add(5 * time.Second) {
		for i := range calm.Config().Servers {
			calm.Server(i, at, &r)
			if _, err := db.Exec(t.Context(), `INSERT INTO public.predictions ("timestamp", model, entity, model_version, prediction, actual, error, details, predicted_at)
				SELECT "timestamp", 'power_prediction_model', server_id, '1', $1, power_consumption_watts, 0, '{}', now() FROM public.server_metrics WHERE server_id = $2 AND "timestamp" = $3`,
				r.Values[len(r.Values)-1], r.Server, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	var found *events.Message
	var after time.Duration
	for at := live.Add(-15 * time.Second); found == nil && !at.After(live.Add(time.Minute)); at = at.Add(5 * time.Second) {
		if err := tick(t, m, at); err != nil {
			t.Fatal(err)
		}
		for _, m := range b.Take() {
			if m.Get("type") == events.DriftDetected {
				found, after = &m, at.Sub(live)
			}
		}
	}
	if found == nil || found.Get("subject") != "power_prediction_model" || after <= 0 {
		t.Fatalf("detected after %s: %v", after, found)
	}
	t.Logf("drift detected %s after it began", after)
	until("train-trigger", func() bool { return post(found) == http.StatusAccepted || post(found) == http.StatusOK })
	asked := 0
	until("training.requested", func() bool {
		ids := map[string]bool{}
		for _, m := range b.Events() {
			if m.Get("type") == events.TrainingRequested && m.Get("subject") == "power_prediction_model" {
				ids[m.Get("id")] = true
			}
		}
		asked = len(ids)
		return asked > 0
	})
	// However often the event comes, one run.
	for range 3 {
		post(found)
	}
	if got := rowsOf(t, db, `SELECT asked_for, count(*) FROM learning.runs WHERE model = 'power_prediction_model' GROUP BY 1`); fmt.Sprint(got) != "[drift 1]" || asked != 1 {
		t.Errorf("runs: %v, asked for %d times", got, asked)
	}
}

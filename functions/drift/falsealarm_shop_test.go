package main

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// TestShop_hasNoFalseAlarms takes the purchase model that ships through hours of the
// simulated shop, which is the one that it was trained on: features as they are served,
// its predictions of them, and a tick each time that a window ends, with the plan that
// ships. It must not be announced once that data has drifted, which is what training
// would follow. Then the shop sells electronics alone, and that has to be noticed.
//
// SHOP_HOURS=20 looks at so many hours; without it, at one.
func TestShop_hasNoFalseAlarms(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the load generator")
	}
	hours := 1
	if v := os.Getenv("SHOP_HOURS"); v != "" {
		var err error
		if hours, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	b := receiver.New(t, nil)
	m, db := start(t, b, &bundles{alias: "current", data: "kodata"}, func(p *plan) { only(p, "purchase_prediction_model") })
	base, err := m.bundles.of(t.Context(), m.plan.Models[0])
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := model.Load(t.Context(), model.Folder("kodata/purchase"))
	if err != nil {
		t.Fatal(err)
	}
	// A window before the first tick, and two hours of other goods.
	s := &shopping{t: t, db: db, bundle: bundle, version: base.version, ranks: map[string]int64{}}
	change := live.Add(time.Duration(hours+1) * time.Hour)
	s.fill(hours+3, func(e *features.Event) bool {
		return e.Time.Before(change) || strings.HasPrefix(e.CategoryCode, "electronics.")
	})
	furthest := map[string]float64{} // of each column that counts, as a share of its limit
	count := func(from, to time.Time) (windows, judged, over int, largest float64, alarms []time.Time) {
		for at := from; !at.After(to); at = at.Add(m.plan.Every) {
			if err := tick(t, m, at); err != nil {
				t.Fatal(err)
			}
			var r Report
			if err := db.QueryRow(t.Context(), `SELECT report FROM drift.windows ORDER BY window_end DESC LIMIT 1`).Scan(&r); err != nil {
				t.Fatal(err)
			}
			windows++
			if r.Judged {
				judged++
			}
			if r.Over {
				over++
			}
			largest = max(largest, r.Share)
			for _, c := range r.Columns {
				if c.Ignored == "" {
					furthest[c.Name] = max(furthest[c.Name], math.Round(100*c.Score/c.Limit)/100)
				}
			}
			if r.State == detected {
				alarms = append(alarms, at)
			}
		}
		return windows, judged, over, largest, alarms
	}
	windows, judged, over, largest, alarms := count(live.Add(time.Hour), change)
	t.Logf("%d hours of the shop, %d events, %d of carts: %d windows of %s, %d judged, %d over the limits, largest share %.2f, %d drifts detected; furthest, as shares of the limits: %v",
		hours, s.events, s.carts, windows, m.plan.Window, judged, over, largest, len(alarms), furthest)
	if len(alarms) > 0 || judged < windows || over > 0 {
		t.Errorf("of data that has not drifted: %d windows judged of %d, %d over the limits, drift detected at %v", judged, windows, over, alarms)
	}
	if got := toldOf(b); len(got) != windows {
		t.Errorf("told of %v in %d windows", got, windows)
	}
	_, _, over, largest, alarms = count(change.Add(m.plan.Every), change.Add(2*time.Hour))
	t.Logf("electronics alone: %d windows over the limits, largest share %.2f, drift detected at %v", over, largest, alarms)
	if len(alarms) != 1 {
		t.Errorf("of data that has drifted: %d drifts were detected", len(alarms))
	}
}

// shopping fills the tables that the purchase model is watched by.
type shopping struct {
	t       *testing.T
	db      *warehouse.DB
	bundle  *model.Bundle
	version string
	ranks   map[string]int64 // of sessions

	events, carts int
}

// fill has the load generator print hours of the shop's events from live
// on, and writes the features of those carts that are wanted as they are served, and their
// predictions.
func (s *shopping) fill(hours int, wanted func(e *features.Event) bool) {
	s.t.Helper()
	const perSecond = 8
	program := filepath.Join(s.t.TempDir(), "loadgen")
	if out, err := exec.CommandContext(s.t.Context(), "go", "build", "-o", program, "../../infra/loadgen").CombinedOutput(); err != nil {
		s.t.Fatalf("building the load generator: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(s.t.Context(), program, "shop", "-stdout", "-rate", "0", "-bad", "0", "-progress", "0", "-density", strconv.Itoa(perSecond),
		"-start", live.Format(time.RFC3339), "-count", strconv.Itoa(hours*3600*perSecond), "-report", filepath.Join(s.t.TempDir(), "report.json"))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var rows, predictions [][]any
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e, err := features.ParseEvent(lines.Bytes())
		if err != nil {
			s.t.Fatal(err)
		}
		s.events++
		s.ranks[e.Session]++
		if e.Type != "cart" || !wanted(&e) {
			continue
		}
		s.carts++
		hash := e.Hash()
		ready := features.OfEvent(&e, hash, s.ranks[e.Session], e.Time)
		row := []any{hash[:], e.UserID, e.ProductID, e.Time, e.Time, e.Time, e.Type, e.Session}
		known := map[string]model.Value{}
		for i, f := range features.All() {
			v := ready.Features[i]
			row = append(row, v.Any())
			if _, ok := s.bundle.Index(f.Name); ok {
				known[f.Name] = value(v)
			}
		}
		rows = append(rows, row)
		encoded, score := make([]float64, len(s.bundle.Features.Features)), make([]float64, 1)
		if err := s.bundle.Row(encoded, known); err != nil {
			s.t.Fatal(err)
		}
		if err := s.bundle.Model.Predict(score, encoded); err != nil {
			s.t.Fatal(err)
		}
		predictions = append(predictions, []any{e.Time, "purchase_prediction_model", strconv.Itoa(s.carts), s.version, score[0], "{}", e.Time})
	}
	if err := cmd.Wait(); err != nil || lines.Err() != nil {
		s.t.Fatalf("the load generator: %v, %v: %s", err, lines.Err(), said.Bytes())
	}
	columns := []string{"record_hash", "user_id", "product_id", "event_timestamp", "processed_at", "created_timestamp", "event_type", "user_session"}
	for _, f := range features.All() {
		columns = append(columns, f.Name)
	}
	if _, err := s.db.CopyFrom(s.t.Context(), pgx.Identifier{"feature_store", "streaming_features"}, columns, pgx.CopyFromRows(rows)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.db.CopyFrom(s.t.Context(), pgx.Identifier{"public", "predictions"},
		[]string{"timestamp", "model", "entity", "model_version", "prediction", "details", "predicted_at"}, pgx.CopyFromRows(predictions)); err != nil {
		s.t.Fatal(err)
	}
}

// value is a feature as models take it.
func value(v features.Value) model.Value {
	switch x := v.Any().(type) {
	case int64:
		return model.Number(float64(x))
	case float64:
		return model.Number(x)
	case string:
		return model.Text(x)
	}
	return model.Value{}
}

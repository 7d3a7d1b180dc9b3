package main

import (
	"testing"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/model"
)

// The power model that ships, on the servers that it was trained on, after that: while
// nothing has drifted its intervals hold what they should, also while anomalies come and
// go; and when the same work takes a tenth more power, they do not.
func TestErrors_ofTheModelThatShips(t *testing.T) {
	b, err := model.Load(t.Context(), model.Folder("kodata/power"))
	if err != nil {
		t.Fatal(err)
	}
	// The recipe of the bundle: configuration dev, seed 1, history until then.
	live := time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	within := func(change datacenter.Drift, hours int) (least float64) {
		c, err := datacenter.Named("dev", "h")
		if err != nil {
			t.Fatal(err)
		}
		c.LiveFrom, c.Drift = live, change
		sim, err := datacenter.New(c)
		if err != nil {
			t.Fatal(err)
		}
		least = 1
		row, out := make([]float64, b.Model.Features()), make([]float64, 1)
		var r datacenter.ServerReading
		for h := range hours {
			p := &predictions{}
			from := live.Add(time.Duration(3*h) * time.Hour)
			for at := from; at.Before(from.Add(time.Hour)); at = at.Add(10 * time.Second) {
				for i := range c.Servers {
					sim.Server(i, at, &r)
					if r.Anomaly != nil {
						continue // as queryPredictions does with what detectors have found
					}
					values := map[string]model.Value{"server_id": model.Text(r.Server)}
					actual := 0.0
					for k, name := range datacenter.ServerMetrics {
						if name == "power_consumption_watts" {
							actual = r.Values[k]
						} else if _, ok := b.Index(name); ok {
							values[name] = model.Number(r.Values[k])
						}
					}
					if err := b.Row(row, values); err != nil {
						t.Fatal(err)
					}
					if err := b.Model.Predict(out, row); err != nil {
						t.Fatal(err)
					}
					p.predicted, p.actual = append(p.predicted, out[0]), append(p.actual, actual)
				}
			}
			e := judgeErrors(p, b.Baseline.Residuals)
			least = min(least, e.Within)
		}
		return least
	}
	calm := within(datacenter.Drift{}, 56)
	moved := within(datacenter.Drift{Kind: datacenter.PowerDrift, At: live, Size: 0.1}, 1)
	t.Logf("actual values in the interval of 90 %%: at least %.1f %% in each of 56 hours without drift, %.1f %% when power is up by a tenth; limit %.0f %%", 100*calm, 100*moved, 100*coverageLimit)
	if calm < coverageLimit || moved >= coverageLimit {
		t.Errorf("%.3f without drift, %.3f with one, of a limit of %v", calm, moved, coverageLimit)
	}
}

package main

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/model"
)

// simulated is a datacenter and what it is trained on: days of history in steps of the
// generator's backfill, and then the present.
type simulated struct {
	sim      *datacenter.Sim
	live     time.Time
	interval time.Duration
	list     []column
	rng      *rand.Rand
}

func simulate(t testing.TB, name, set string, seed uint64, change datacenter.Drift) *simulated {
	t.Helper()
	c, err := datacenter.Named(name, set)
	if err != nil {
		t.Fatal(err)
	}
	c.Seed = seed
	// All hours of the day and all days of the week get their turn.
	c.LiveFrom = time.Date(2026, 3, 16, 0, 0, 0, 0, time.UTC).Add(time.Duration(seed*2477%10080) * time.Minute)
	if change.Kind != datacenter.NoDrift {
		change.At = c.LiveFrom
		c.Drift = change
	}
	s := &simulated{live: c.LiveFrom, interval: c.Interval, rng: rand.New(rand.NewPCG(seed, 1))}
	if s.sim, err = datacenter.New(c); err != nil {
		t.Fatal(err)
	}
	for _, m := range datacenter.ServerMetrics {
		s.list = append(s.list, column{name: m})
	}
	return s
}

// rows reads readings of windows, at steps, about limit of them.
func (s *simulated) rows(windows []window, step time.Duration, limit int) *table {
	with, without := &table{columns: make([]values, len(s.list))}, &table{columns: make([]values, len(s.list))}
	servers := s.sim.Config().Servers
	all := 0
	for _, w := range windows {
		all += int(w.length()/step) * servers
	}
	keep := float64(limit) / float64(max(all, 1))
	var r datacenter.ServerReading
	for _, w := range windows {
		for at := w.From.Truncate(step).Add(step); at.Before(w.To); at = at.Add(step) {
			for i := range servers {
				if s.rng.Float64() >= keep {
					continue
				}
				s.sim.Server(i, at, &r)
				for _, t := range []*table{with, without} {
					if r.Anomaly != nil && t == without {
						continue
					}
					t.rows++
					for k, v := range r.Values {
						t.columns[k].numbers = append(t.columns[k].numbers, v)
					}
				}
			}
		}
	}
	// As read does with what detectors have found; here, with the truth.
	if float64(with.rows-without.rows) <= maxOdd*float64(with.rows) {
		return without
	}
	return with
}

// judge measures one window of the present as measure does, with the simulation in
// place of the tables.
func (s *simulated) judge(p *plan, w *watched, now window, history int) *Report {
	r := &Report{From: now.From, To: now.To}
	past := window{s.live.AddDate(0, 0, -history), s.live}
	current := s.rows([]window{now}, s.interval, p.MaxRows)
	r.Rows = current.rows
	if r.Rows < p.MinRows {
		return r
	}
	parts := now.slices(past)
	if len(parts) < fewestDays {
		parts = pieces(parts, 4)
	}
	var days []*table
	for _, part := range parts {
		days = append(days, s.rows([]window{part}, max(s.interval, 30*time.Second), referenceRows/len(parts)))
	}
	reference := newHistory(days)
	// As of a baseline of many rows: distances decide.
	r.ReferenceRows = 1_000_000
	results := r.judgeColumns(w, nil, s.list, current, reference, p.limits())
	r.conclude(p, results)
	return r
}

// bundle is a baseline as the trainer writes it: a sample of the history's rows, with
// their times.
func (s *simulated) bundle(history, rows int) *baseline {
	const step = 5 * time.Minute
	var r datacenter.ServerReading
	b := &baseline{rows: 1_000_000, known: make([]model.Distribution, len(s.list))}
	for range rows {
		at := s.live.Add(-time.Duration(s.rng.IntN(history*int(24*time.Hour/step))) * step)
		s.sim.Server(s.rng.IntN(s.sim.Config().Servers), at, &r)
		for k, v := range r.Values {
			b.known[k].Sample = append(b.known[k].Sample, v)
			b.known[k].SampleTimes = append(b.known[k].SampleTimes, at.Unix())
		}
	}
	return b
}

// What is known of the training data by the bundle's sample alone tells data of the same
// hours from data that has drifted, and where the sample has hardly any of that time
// nothing is said.
func TestSampleOfABundle_isComparedByTheHour(t *testing.T) {
	p, err := openPlan(&Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.MaxRows = 1500 // as good, and faster to simulate
	w := &watched{Name: "server_metrics", Seasonal: true}
	judge := func(s *simulated, b *baseline, now window) *Report {
		r := &Report{From: now.From, To: now.To, ReferenceRows: b.rows}
		current := s.rows([]window{now}, s.interval, p.MaxRows)
		results := r.judgeColumns(w, b, s.list, current, nil, p.limits())
		r.conclude(p, results)
		return r
	}
	hours := func(s *simulated, b *baseline) (over, ignored int, largest float64) {
		for h := 0; h < 24; h += 3 {
			from := s.live.Add(time.Duration(h) * time.Hour)
			r := judge(s, b, window{from, from.Add(time.Hour)})
			if r.Over {
				over++
			}
			if r.Counted == 0 {
				ignored++
			}
			largest = max(largest, r.Share)
		}
		return over, ignored, largest
	}
	for seed := range uint64(1) {
		s := simulate(t, "normal", "h", seed, datacenter.Drift{})
		over, ignored, largest := hours(s, s.bundle(8, 6000))
		t.Logf("nothing has drifted: %d of 8 hours over the limits, %d without a verdict, largest share %.2f", over, ignored, largest)
		if over > 0 || ignored == 8 {
			t.Errorf("%d of 8 hours are over the limits, %d without a verdict", over, ignored)
		}
		if _, ignored, _ := hours(s, s.bundle(8, 300)); ignored != 8 {
			t.Errorf("by hardly any rows, %d of 8 hours were judged", 8-ignored)
		}
		s = simulate(t, "normal", "h", seed, datacenter.Drift{Kind: datacenter.WorkloadDrift, Size: 0.8})
		over, ignored, _ = hours(s, s.bundle(8, 6000))
		t.Logf("workload by 80 %%: %d of 8 hours over the limits, %d without a verdict", over, ignored)
		if over < 4 {
			t.Errorf("workload by 80 %%: only %d of 8 hours are over the limits", over)
		}
	}
}

// TestFalseAlarms measures how often data that has not drifted is said to have, with the
// plan that ships: windows over the limits, and drifts detected, by hour of simulated
// time. FALSE_ALARMS=20 looks at 20 hours of each of four datacenters, at whatever times
// of the week; without it, at one of two.
//
// The data has a daily and a weekly cycle, noise that changes over minutes and hours,
// and anomalies; it must not be announced once.
func TestFalseAlarms(t *testing.T) {
	p, err := openPlan(&Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	configs := []struct{ name, set string }{{"normal", "h"}, {"dev", "h"}}
	seeds := 1
	if v := os.Getenv("FALSE_ALARMS"); v != "" {
		if seeds, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
		configs = append(configs, configs[0], configs[1])
		configs[2].name, configs[3].name, configs[3].set = "production", "normal", "s"
	} else {
		p.Every = 10 * time.Minute
	}
	p.MaxRows = 3000 // as good, and faster to simulate
	w := &watched{Name: "server_metrics"}
	for _, config := range configs {
		windows, over, alarms, judged := 0, 0, 0, 0
		largest := 0.0
		shares := map[string]int{}
		for seed := range seeds {
			s := simulate(t, config.name, config.set, uint64(seed), datacenter.Drift{})
			from := s.live.Add(24 * time.Hour) // where anomalies are as often as they will be
			var past []row
			for at := from.Add(p.Every); !at.After(from.Add(time.Hour)); at = at.Add(p.Every) {
				r := s.judge(p, w, window{at.Add(-p.Window), at}, 14)
				follow(r, past, p.Hold)
				past = []row{{to: r.To, consecutive: r.Consecutive, state: r.State}}
				windows++
				if r.Judged {
					judged++
				}
				if r.Over {
					over++
				}
				if r.State == detected {
					alarms++
				}
				largest = max(largest, r.Share)
				for _, c := range r.Columns {
					if c.Drifted {
						shares[c.Name]++
					}
				}
			}
		}
		t.Logf("%-10s set %s: %d hours, %d windows of %s, %d judged: %d over the limits (%.2f %%), largest share %.2f, %d drifts detected; columns %v",
			config.name, config.set, seeds, windows, p.Window, judged, over, 100*float64(over)/float64(windows), largest, alarms, shares)
		if alarms > 0 {
			t.Errorf("%s, set %s: %d drifts were detected in %d hours of data that has not drifted", config.name, config.set, alarms, seeds)
		}
	}
}

// A drift of the workload is found, and how soon.
func TestInjectedDrift_isDetected(t *testing.T) {
	p, err := openPlan(&Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.MaxRows = 3000
	w := &watched{Name: "server_metrics"}
	for _, c := range []struct {
		kind datacenter.DriftKind
		size float64
	}{{datacenter.WorkloadDrift, 0.3}, {datacenter.WorkloadDrift, 0.6}} {
		var took []time.Duration
		const seeds = 2
		for seed := range uint64(seeds) {
			s := simulate(t, "normal", "h", seed, datacenter.Drift{Kind: c.kind, Size: c.size})
			var past []row
			for at := s.live.Add(p.Every); !at.After(s.live.Add(3 * time.Hour)); at = at.Add(p.Every) {
				r := s.judge(p, w, window{at.Add(-p.Window), at}, 14)
				follow(r, past, p.Hold)
				past = []row{{to: r.To, consecutive: r.Consecutive, state: r.State}}
				if r.State == detected {
					took = append(took, at.Sub(s.live))
					break
				}
			}
		}
		t.Logf("%s by %.0f %%: detected in %d of %d, after %v", c.kind, 100*c.size, len(took), seeds, took)
		if len(took) < seeds {
			t.Errorf("%s by %.0f %% was not detected", c.kind, 100*c.size)
		}
	}
}

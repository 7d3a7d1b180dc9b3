package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBuiltinPoliciesAreRight(t *testing.T) {
	all, err := readPolicies("")
	if err != nil {
		t.Fatal(err)
	}
	if all["purchase_prediction_model"] == nil {
		t.Error("there is none for the shop's model")
	}
}

func TestWrongPoliciesAreNamed(t *testing.T) {
	const good = "models:\n  m:\n    deadline: 1m\n    retry: 1s\n"
	for _, c := range []struct{ name, text, says string }{
		{"nothing", "", "models is empty"},
		{"no model", "models: {}", "models is empty"},
		{"unknown field", good + "    cooldwn: 1m\n", "cooldwn"},
		{"no duration", good + "    every: often\n", "often"},
		{"no deadline", "models:\n  m:\n    retry: 1s\n", "model m: deadline"},
		{"no retry", "models:\n  m:\n    deadline: 1m\n", "model m: retry"},
		{"negative", good + "    cooldown: -1m\n", "must not be negative"},
		{"empty model", "models:\n  m:\n", "model m: is empty"},
		{"rows without query", good + "    rows: {first: 1, more: 1}\n", "query is required"},
		{"request that names the model", good + "    request: {model: other}\n", "request.model"},
		{"tolerance", good + "    gate: {tolerance: -1}\n", "gate.tolerance"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "policies.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readPolicies(file); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
	if _, err := readPolicies(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "LEARNING_POLICIES") {
		t.Errorf("%v", err)
	}
}

func TestDue(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	p := policy{
		Rows: &rowsPolicy{Query: "q", First: 100, More: 1000}, Every: 24 * time.Hour, Drift: true,
		Cooldown: 10 * time.Minute, DriftCooldown: 2 * time.Minute, Deadline: time.Hour, Retry: time.Minute,
	}
	drift := &want{For: forDrift, Source: "/s", ID: "1"}
	retry := &want{For: forRetry, Source: "/s", ID: "1"}
	trained := func(d time.Duration) memory {
		return memory{TrainedUntil: ago(d), Requested: ago(d), Ended: ago(d - time.Minute)}
	}
	with := func(m memory, change func(*memory)) memory { change(&m); return m }
	for _, c := range []struct {
		name   string
		m      memory
		rows   int64
		policy func(*policy)
		want   string
	}{
		{"nothing there", memory{}, 0, nil, ""},
		{"too few for the first", memory{}, 99, nil, ""},
		{"enough for the first", memory{}, 100, nil, forRows},
		{"too few for another", trained(time.Hour), 999, nil, ""},
		{"enough for another", trained(time.Hour), 1000, nil, forRows},
		{"enough, in the cool-down", trained(9 * time.Minute), 5000, nil, ""},
		{"at the end of the cool-down", trained(10 * time.Minute), 5000, nil, forRows},
		{"a run is open", with(trained(time.Hour), func(m *memory) { m.Open = true; m.Wanted = drift }), 5000, nil, ""},
		{"no policy about rows", trained(time.Hour), 5000, func(p *policy) { p.Rows = nil }, ""},
		{"the schedule", trained(24 * time.Hour), 0, nil, forSchedule},
		{"the schedule, nothing trained yet", memory{}, 0, nil, ""},
		{"no schedule", trained(240 * time.Hour), 0, func(p *policy) { p.Every = 0 }, ""},
		{"drift", with(trained(time.Hour), func(m *memory) { m.Wanted = drift }), 0, nil, forDrift},
		{"drift before the first model", memory{Wanted: drift}, 0, nil, forDrift},
		{"drift in the cool-down of rows", with(trained(5*time.Minute), func(m *memory) { m.Wanted = drift }), 0, nil, forDrift},
		{"drift in its own", with(trained(time.Minute), func(m *memory) { m.Wanted = drift }), 0, nil, ""},
		{"after a failure, too early", with(trained(time.Hour), func(m *memory) { m.Failures, m.Ended, m.Wanted = 1, ago(59*time.Second), retry }), 5000, nil, ""},
		{"after a failure", with(trained(time.Hour), func(m *memory) { m.Failures, m.Ended, m.Wanted = 1, ago(time.Minute), retry }), 0, nil, forRetry},
		{"after three, too early", with(trained(time.Hour), func(m *memory) { m.Failures, m.Ended, m.Wanted = 3, ago(239*time.Second), retry }), 0, nil, ""},
		{"after three", with(trained(time.Hour), func(m *memory) { m.Failures, m.Ended, m.Wanted = 3, ago(4*time.Minute), retry }), 0, nil, forRetry},
		{"after very many", with(trained(time.Hour), func(m *memory) { m.Failures, m.Ended, m.Wanted = 900, ago(time.Hour), retry }), 0, nil, forRetry},
		{"the first failed for good, more rows came", memory{Requested: ago(time.Minute), Ended: ago(time.Minute), Failures: 1}, 100, nil, forRows},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p
			if c.policy != nil {
				c.policy(&p)
			}
			what, why, err := p.due(c.m, now, func() (int64, error) { return c.rows, nil })
			if err != nil || what != c.want || (why == "") != (what == "") {
				t.Errorf("%q, %q, %v, want %q", what, why, err, c.want)
			}
		})
	}
	if _, _, err := p.due(memory{}, now, func() (int64, error) { return 0, errors.New("no table") }); err == nil {
		t.Error("rows that cannot be counted are no error")
	}
}

func TestRestDoublesUpToAnHour(t *testing.T) {
	p := policy{Retry: time.Minute}
	for failures, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 6: 32 * time.Minute, 7: time.Hour, 500: time.Hour} {
		if got := p.pause(failures); got != want {
			t.Errorf("after %d: %s, want %s", failures, got, want)
		}
	}
}

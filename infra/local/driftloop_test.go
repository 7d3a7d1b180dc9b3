package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

const (
	powerModel   = "power_prediction_model"
	anomalyModel = "server_anomaly_model"
)

// driftPolicies train on the whole history first, and then for drift alone, on about the
// rows that have come since: 80 servers report each second.
func driftPolicies() string {
	text := "models:\n"
	for _, m := range []struct{ name, tolerance string }{{powerModel, "0.05"}, {anomalyModel, "0.02"}} {
		text += `
  ` + m.name + `:
    rows: {query: 'SELECT count(*) FROM public.server_metrics WHERE "timestamp" > $1', first: 65000, more: 1000000000}
    drift: true
    deadline: 10m
    retry: 1s
    request: {trials: 4, bootstrap: 50}
    drift_request: {max_rows: 1200}
    since_drift: true
    gate: {gain: champion_gain, tolerance: ` + m.tolerance + `, baseline: baseline_gain}
`
	}
	return text
}

// TestDriftLoop changes how busy the servers of a simulated datacenter are, and follows
// what comes of it through the whole platform: drift is measured and detected, both
// models of servers are trained on what has come since, judged and promoted, and
// predictions and detection go on with the new versions.
func TestDriftLoop(t *testing.T) {
	if os.Getenv("TEST_DRIFT_LOOP") == "" {
		t.Skip("TEST_DRIFT_LOOP is not set: no Python environment of the trainer (make test-drift-loop makes one)")
	}
	policies := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, policies, driftPolicies())
	p := newPlatform(t, "NO_LEARNING=", "LEARNING_POLICIES="+policies,
		"DRIFT_WINDOW=10s", "DRIFT_EVERY=5s", "DRIFT_HOLD=2", "DRIFT_MIN_ROWS=100", "DRIFT_LAG=1s",
		"MILLRACE_FUNCTIONS=validate,store,predict-power,detect,drift,train-trigger,alert,deadletter")
	p.start()
	p.needDatabase()
	told := p.follow()

	// Days of history, and the present, which is as the past.
	calm := p.startServers()
	models := []string{powerModel, anomalyModel}
	serving := map[string]string{}
	for _, m := range models {
		told.await(t, "the first version of "+m, func(e *aboutModel) bool { return e.is(events.ModelPromoted, m) })
	}
	p.awaitIdle(t)
	for _, m := range models {
		serving[m] = told.last(events.ModelPromoted, m).Version
		calm := told.await(t, "a calm window of "+m, func(e *aboutModel) bool {
			return e.is(events.DriftMeasured, m) && e.Measured == serving[m] && e.State == "stable" && !e.Over && e.Reference != ""
		})
		t.Logf("%-24s version %s serves, and a window of it was compared with %s", m, serving[m], calm.Reference)
	}
	p.awaitServed(t, serving)

	// More work for all servers, from a moment on.
	calm.stop()
	moment := time.Now().Add(2 * time.Second).UTC().Truncate(time.Second)
	p.startServers("-drift", "workload", "-drift-size", "0.8", "-drift-at", moment.Format(time.RFC3339))
	injected := told.firstReading(t, moment)
	next := map[string]string{}
	for _, m := range models {
		last := injected
		hop := func(what string, wanted func(e *aboutModel) bool) aboutModel {
			t.Helper()
			e := told.await(t, m+": "+what, func(e *aboutModel) bool { return e.at.After(injected) && wanted(e) })
			t.Logf("%-24s %-24s after %5.1f s", m, what, e.at.Sub(injected).Seconds())
			if e.at.Before(last) {
				t.Errorf("%s: %s came %s before what it follows from", m, what, last.Sub(e.at))
			}
			last = e.at
			return e
		}
		hop("is over the limits", func(e *aboutModel) bool { return e.is(events.DriftMeasured, m) && e.Measured == serving[m] && e.Over })
		hop("drift is detected", func(e *aboutModel) bool { return e.is(events.DriftDetected, m) && e.Measured == serving[m] })
		hop("training is asked for", func(e *aboutModel) bool {
			return e.is(events.TrainingRequested, m) && strings.HasPrefix(e.Reason, "drift:")
		})
		next[m] = hop("is trained", func(e *aboutModel) bool { return e.is(events.TrainingCompleted, m) }).Version
		judged := hop("is judged", func(e *aboutModel) bool {
			return (e.is(events.ModelPromoted, m) || e.is(events.ModelKept, m)) && e.Version == next[m]
		})
		if judged.Type != events.ModelPromoted {
			t.Fatalf("%s: version %s is not served: %s", m, next[m], judged.Reason)
		}
		t.Logf("%-24s version %s: %s", m, next[m], judged.Reason)
		if m == powerModel {
			hop("predicts", func(e *aboutModel) bool { return e.is(events.PredictionMade, m) && e.Measured == next[m] })
		}
	}
	p.awaitServed(t, next)
	t.Logf("%-24s %-24s after %5.1f s at most", anomalyModel, "detects", time.Since(injected).Seconds())

	db := p.database(databaseName)
	eventually(t, "predictions of the new version are stored", func() bool {
		var n int
		err := db.QueryRow(running(t), `SELECT count(*) FROM public.predictions WHERE model = $1 AND model_version = $2`, powerModel, next[powerModel]).Scan(&n)
		return err == nil && n > 0
	}, p.out.String)
	// It was told of, and is over for the models.
	for _, m := range models {
		eventually(t, "the alert of "+m+" has ended", func() bool {
			var n int
			err := db.QueryRow(running(t), `SELECT count(*) FROM alerts.alerts WHERE rule LIKE 'drift%' AND labels::text LIKE '%' || $1 || '%' AND state = 'resolved'`, m).Scan(&n)
			return err == nil && n > 0
		}, p.out.String)
	}
	if s, err := p.askStatus(); err != nil || s.DeadLetters != 0 {
		t.Errorf("%d dead letters, %v", s.DeadLetters, err)
	}
	p.stop()
}

// servers is a running generator of readings.
type servers struct {
	t    *testing.T
	cmd  *exec.Cmd
	errs *bytes.Buffer
	done chan error
}

// startServers starts 80 servers, or lets them go on where they were stopped.
func (p *platformProcess) startServers(more ...string) *servers {
	p.t.Helper()
	s := &servers{t: p.t, errs: &bytes.Buffer{}, done: make(chan error, 1)}
	s.cmd = exec.Command(filepath.Join(bin(p.t), "loadgen"), append([]string{
		"datacenter", "-brokers", p.brokers(), "-config", "normal", "-servers", "80", "-services", "0", "-interval", "1s", "-anomaly-types", "none",
		// Both a workday and a weekend have days alike among those that are trained on.
		"-backfill-days", "9", "-backfill-interval", "15m", "-resume", filepath.Join(p.state, "servers.json"), "-progress", "0",
	}, more...)...)
	s.cmd.Env = cleanEnv()
	s.cmd.Stdout, s.cmd.Stderr = &bytes.Buffer{}, s.errs
	if err := s.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	p.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	return s
}

func (s *servers) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case err := <-s.done:
		if err != nil {
			s.t.Fatalf("the generator: %v\n%s", err, s.errs)
		}
	case <-time.After(patience):
		s.t.Fatalf("the generator does not stop\n%s", s.errs)
	}
}

// servedVersion asks a function for the version of a model that it works with.
func (p *platformProcess) servedVersion(function, model string) string {
	s, ok := p.process(function)
	if !ok {
		return ""
	}
	resp, err := http.Get("http://" + s.Address + "/models?entity=none")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var answer struct {
		Models  []struct{ Model, Version string }
		Forests []struct{ Model, Version string }
	}
	if json.NewDecoder(resp.Body).Decode(&answer) != nil {
		return ""
	}
	for _, m := range answer.Models {
		if m.Model == model && m.Version != "" {
			return m.Version
		}
	}
	for _, f := range answer.Forests {
		if f.Model == model {
			return f.Version
		}
	}
	return ""
}

// awaitServed waits until the functions work with versions of their models.
func (p *platformProcess) awaitServed(t *testing.T, versions map[string]string) {
	t.Helper()
	for model, function := range map[string]string{powerModel: "predict-power", anomalyModel: "detect"} {
		eventually(t, function+" works with version "+versions[model], func() bool { return p.servedVersion(function, model) == versions[model] }, p.out.String)
	}
}

// awaitIdle waits until no run of training is open or wanted.
func (p *platformProcess) awaitIdle(t *testing.T) {
	t.Helper()
	db := p.database(databaseName)
	defer func() { _ = db.Close(running(t)) }()
	open := ""
	eventually(t, "no training is under way", func() bool {
		err := db.QueryRow(running(t), `SELECT coalesce((SELECT string_agg(model, ' ') FROM learning.runs WHERE state IN ('requested', 'completed')), '') ||
			coalesce((SELECT string_agg(model, ' ') FROM learning.models WHERE wanted_for IS NOT NULL), '')`).Scan(&open)
		return err == nil && open == ""
	}, func() string { return open })
}

// aboutModel is an event of the Broker that is about a model.
type aboutModel struct {
	Type, Subject string
	at            time.Time // when the Broker had it

	Version   string `json:"version"`
	Measured  string `json:"model_version"`
	State     string `json:"state"`
	Over      bool   `json:"over"`
	Reason    string `json:"reason"`
	Reference string `json:"reference"`
	Name      string `json:"model_name"`
}

func (e *aboutModel) is(typ, subject string) bool { return e.Type == typ && e.Subject == subject }

// followed are the events of the Broker that are about models, of predictions the first
// of each version, and when the first reading of each moment was sent.
type followed struct {
	mu       sync.Mutex
	events   []aboutModel
	versions map[string]bool      // of which there are predictions
	readings map[string]time.Time // by the time that they tell
}

// follow reads the Broker's topic and that of readings.
func (p *platformProcess) follow() *followed {
	f := &followed{versions: map[string]bool{}, readings: map[string]time.Time{}}
	const readings = "datacenter-metrics"
	client := p.kafka(kgo.ConsumeTopics("knative-broker-millrace-default", readings), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	go func() {
		for {
			fetches := client.PollFetches(p.t.Context())
			if p.t.Context().Err() != nil || fetches.IsClientClosed() {
				return
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if r.Topic == readings {
					f.reading(r)
				} else if m, ok := kafka.FromRecord(r); ok {
					f.event(&m, r.Timestamp)
				}
			})
		}
	}()
	return f
}

func (f *followed) reading(r *kgo.Record) {
	var told struct{ Timestamp string }
	if json.Unmarshal(r.Value, &told) != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if was, ok := f.readings[told.Timestamp]; !ok || r.Timestamp.Before(was) {
		f.readings[told.Timestamp] = r.Timestamp
	}
}

func (f *followed) event(m *events.Message, at time.Time) {
	e := aboutModel{Type: m.Get("type"), Subject: m.Get("subject"), at: at}
	switch e.Type {
	case events.DriftMeasured, events.DriftDetected, events.TrainingRequested, events.TrainingCompleted, events.TrainingFailed, events.ModelPromoted, events.ModelKept, events.PredictionMade:
	default:
		return
	}
	if json.Unmarshal(m.Data, &e) != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.Type == events.PredictionMade {
		e.Subject = e.Name
		if f.versions[e.Name+" "+e.Measured] {
			return
		}
		f.versions[e.Name+" "+e.Measured] = true
	}
	f.events = append(f.events, e)
}

// await waits for an event, the first of those that are wanted.
func (f *followed) await(t *testing.T, what string, wanted func(e *aboutModel) bool) aboutModel {
	t.Helper()
	// Training takes a busy machine minutes.
	for deadline := time.Now().Add(7 * patience); ; time.Sleep(20 * time.Millisecond) {
		f.mu.Lock()
		for i := range f.events {
			if wanted(&f.events[i]) {
				e := f.events[i]
				f.mu.Unlock()
				return e
			}
		}
		f.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s\n%s", what, f)
		}
	}
}

// last is the newest event of a type about a model, which there is.
func (f *followed) last(typ, subject string) aboutModel {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range slices.Backward(f.events) {
		if e.is(typ, subject) {
			return e
		}
	}
	return aboutModel{}
}

// String lists the newest of what has come of models.
func (f *followed) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, e := range f.events[max(0, len(f.events)-60):] {
		fmt.Fprintf(&b, "%s %s %s %s%s %s over %v %s %s\n", e.at.Format(time.TimeOnly), e.Type, e.Subject, e.Version, e.Measured, e.State, e.Over, e.Reason, e.Reference)
	}
	return b.String()
}

// firstReading waits for the first reading of a moment or after it, and gives when it was
// sent.
func (f *followed) firstReading(t *testing.T, moment time.Time) time.Time {
	t.Helper()
	var sent time.Time
	eventually(t, "a reading of "+moment.String(), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for text, at := range f.readings {
			if told, err := time.Parse(time.RFC3339Nano, text); err == nil && !told.Before(moment) && (sent.IsZero() || at.Before(sent)) {
				sent = at
			}
		}
		return !sent.IsZero()
	}, func() string { return "" })
	return sent
}

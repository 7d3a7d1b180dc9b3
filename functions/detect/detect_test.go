package main

import (
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
)

// live is a day of the past, so that nothing depends on the clock.
var live = time.Date(2026, 3, 12, 9, 0, 0, 0, time.UTC)

func small(t testing.TB, servers int) datacenter.Config {
	t.Helper()
	cfg, err := datacenter.Named("normal", "h")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Servers, cfg.Services, cfg.LiveFrom = servers, 0, live
	return cfg
}

// readings are the events of all servers for some ticks, and the truth about them.
func (h *harness) readings(cfg datacenter.Config, from, ticks int) (list []event.Event, truth []datacenter.Episode) {
	h.t.Helper()
	sim, err := datacenter.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	var r datacenter.ServerReading
	for k := from; k < from+ticks; k++ {
		for i := range cfg.Servers {
			sim.Server(i, live.Add(time.Duration(k)*cfg.Interval), &r)
			list = append(list, h.validated(r.AppendJSON(nil)))
		}
	}
	return list, sim.Episodes(live, live.Add(time.Duration(from+ticks)*cfg.Interval))
}

// trained brings a history and waits until all metrics are judged by a season.
func (h *harness) trained(cfg datacenter.Config) {
	h.t.Helper()
	first, _ := h.readings(cfg, 0, 1)
	h.deliver(first)
	if list, by := h.models(); len(list) != by["warming"] || len(list) == 0 {
		h.t.Fatalf("before there is a history: %v", by)
	}
	h.backfill(cfg, 4)
	h.wait("all metrics have a model", func() bool {
		h.tick()
		list, by := h.models()
		return len(list) == by["seasonal"]+by["level"] && by["seasonal"] > 0
	})
}

// Metrics are learnt from history and judged: anomalies are told once, with their end,
// and the replies carry what Triggers filter on.
func TestFromHistoryToAnomaly(t *testing.T) {
	t.Parallel()
	h := start(t)
	cfg := small(t, 2)
	h.trained(cfg)
	list, truth := h.readings(cfg, 1, 1500)
	for batch := range slices.Chunk(list, 100) {
		h.deliver(batch)
	}
	h.check(t, truth)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.told {
		if e.Subject() == "" && e.Time().IsZero() {
			continue // it came by the Broker, of which the harness keeps the data alone
		}
		if e.Extensions()["partitionkey"] != e.Subject() || e.Extensions()["contract"] != "datacenter-server" || e.Extensions()["severity"] == nil {
			t.Errorf("attributes: %s", e)
		}
	}
}

// check compares what was told with the truth.
func (h *harness) check(t *testing.T, truth []datacenter.Episode) {
	t.Helper()
	rows := h.anomalies()
	wrong := 0
	times := map[string]int{}
	for key, a := range rows {
		at := slices.IndexFunc(truth, func(e datacenter.Episode) bool {
			return e.Entity == a.EntityID && slices.Contains(e.Type.Metrics(), a.Details.Metric) && !a.Timestamp.Before(e.Start) && a.Timestamp.Before(e.End)
		})
		if at < 0 {
			wrong++
			continue
		}
		// Once for each metric, unless it was over in between: a leak may waver.
		times[truth[at].Entity+" "+truth[at].Start.String()+" "+a.Type]++
		if a.EntityType != "server" || !strings.HasPrefix(a.Type, "stl_zscore_") {
			t.Errorf("%s: %+v", key, a)
		}
		if a.Resolved != (a.ResolvedAt != nil) {
			t.Errorf("%s: %+v", key, a)
		}
	}
	found := 0
	for _, e := range truth {
		if times[e.Entity+" "+e.Start.String()+" stl_zscore_"+e.Type.Metrics()[0]] > 0 {
			found++
		}
	}
	for what, n := range times {
		if n > 2 {
			t.Errorf("%s was told as %d anomalies", what, n)
		}
	}
	if len(truth) < 3 || found < len(truth)-1 || wrong > 6 { // of 30 metrics with a short history
		t.Errorf("%d of %d anomalies were found, %d are wrong", found, len(truth), wrong)
	}
}

// Deliveries that come twice, late and in another order, to a process that is killed
// while Redis is killed too: no anomaly is lost, and none is told as two.
func TestAnomaliesSurviveKillsAndStorms(t *testing.T) {
	t.Parallel()
	calm := start(t)
	cfg := small(t, 3)
	calm.trained(cfg)
	list, truth := calm.readings(cfg, 1, 1200)
	for batch := range slices.Chunk(list, 300) {
		calm.deliver(batch)
	}
	calm.check(t, truth)

	h := start(t)
	h.trained(cfg)
	rng := rand.New(rand.NewPCG(1, 1))
	// Two of five come twice, and each of them up to six places of its server away.
	type delivery struct {
		place float64
		e     event.Event
	}
	var storm []delivery
	for i, e := range list {
		for n := 0; n == 0 || n == 1 && rng.IntN(5) < 2; n++ {
			storm = append(storm, delivery{float64(i) + 18*rng.Float64(), e})
		}
	}
	slices.SortStableFunc(storm, func(a, b delivery) int {
		switch {
		case a.place < b.place:
			return -1
		case a.place > b.place:
			return 1
		}
		return 0
	})
	n := 0
	for batch := range slices.Chunk(storm, 100) {
		events := make([]event.Event, len(batch))
		for i := range batch {
			events[i] = batch[i].e
		}
		n++
		switch n % 12 {
		case 4: // in the middle of a batch
			go func(p interface{ Kill() error }) {
				time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond) // when does not matter
				_ = p.Kill()
			}(h.cmd.Process)
			h.send(events)
			h.kill()
			h.run()
		case 8:
			h.redis.Kill()
			if h.send(events) {
				t.Fatal("a batch was taken without Redis")
			}
			h.redis.Restart()
		}
		h.deliver(events)
	}
	h.check(t, truth)

	// The same anomalies as in calm, but for where exactly they begin.
	want, got := count(calm), count(h)
	for what, n := range want {
		if got[what] != n {
			t.Errorf("%s: %d, in calm %d", what, got[what], n)
		}
	}
	for what := range got {
		if want[what] == 0 {
			t.Errorf("%s: %d, in calm none", what, got[what])
		}
	}
}

// count counts anomalies by whose and what they are.
func count(h *harness) map[string]int {
	counts := map[string]int{}
	for _, a := range h.anomalies() {
		if a.Severity == "critical" || a.Severity == "high" { // others depend on a hair
			counts[a.EntityID+" "+a.Type]++
		}
	}
	return counts
}

// Redis loses all: the models in memory judge on, nothing stops.
func TestRedisThatLostItsData(t *testing.T) {
	t.Parallel()
	h := start(t)
	cfg := small(t, 1)
	h.trained(cfg)
	list, _ := h.readings(cfg, 1, 40)
	h.deliver(list[:20])
	h.redis.Flush()
	h.deliver(list[20:])
	h.wait("the models are back", func() bool {
		h.tick() // one that comes while the former trains does nothing
		all, by := h.models()
		return len(all) > 0 && by["warming"] == 0
	})
}

func TestWhatIsNotForDetect(t *testing.T) {
	t.Parallel()
	h := start(t)
	cfg := small(t, 1)
	list, _ := h.readings(cfg, 0, 1)
	good := list[0]
	for name, change := range map[string]func(e *event.Event){
		"no contract":      func(e *event.Event) { e.SetExtension("contract", nil) },
		"unknown contract": func(e *event.Event) { e.SetExtension("contract", "nothing") },
		"no metrics":       func(e *event.Event) { e.SetExtension("contract", "shop-clickstream") },
		"no verdict":       func(e *event.Event) { _ = e.SetData(event.ApplicationJSON, map[string]any{"a": 1}) },
	} {
		bad := good.Clone()
		change(&bad)
		if !h.send([]event.Event{bad, good}) {
			t.Fatalf("%s: one bad event stopped the other", name)
		}
		h.mu.Lock()
		found := false
		for _, e := range h.told {
			found = found || e.Extensions()["knativeerrorcode"] != nil
		}
		h.told = map[string]event.Event{}
		h.mu.Unlock()
		if !found {
			t.Errorf("%s: there is no dead letter", name)
		}
	}
}

// The forest that comes with the program judges until the registry has one.
func TestForestOfTheImage(t *testing.T) {
	t.Parallel()
	folder, err := filepath.Abs("kodata")
	if err != nil {
		t.Fatal(err)
	}
	h := start(t, "KO_DATA_PATH="+folder, "MODEL_FALLBACK_URI=kodata:///forests")
	cfg := small(t, 3)
	list, _ := h.readings(cfg, 0, 1500)
	for batch := range slices.Chunk(list, 500) {
		h.deliver(batch)
	}
	found := 0
	for key, a := range h.anomalies() {
		if a.Type != "isolation_forest" {
			t.Errorf("%s without a history", key)
		}
		if a.Details.Model != "forest starter" || a.Details.TrainedAt == nil {
			t.Errorf("%s: %+v", key, a.Details)
		}
		found++
	}
	if found == 0 {
		t.Error("the forest found nothing")
	}
}

// Two processes get the readings of one server in turns: each sees what the other has
// written, and the anomalies are those of one process.
func TestTwoProcessesAtOneEntity(t *testing.T) {
	t.Parallel()
	one := start(t)
	cfg := small(t, 1)
	one.trained(cfg)
	two := &harness{t: t, redis: one.redis, database: one.database, broker: one.broker, contract: one.contract, told: one.told}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	two.port = listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()
	two.run()
	list, truth := one.readings(cfg, 1, 2000)
	n := 0
	for batch := range slices.Chunk(list, 7) {
		n++
		[]*harness{one, two}[n%2].deliver(batch)
	}
	rows := one.anomalies()
	times := map[string]int{}
	for _, a := range rows {
		for i := range truth {
			if e := &truth[i]; slices.Contains(e.Type.Metrics(), a.Details.Metric) && !a.Timestamp.Before(e.Start) && a.Timestamp.Before(e.End) {
				times[e.Start.String()+a.Type]++
			}
		}
	}
	for what, n := range times {
		if n > 2 {
			t.Errorf("%s was told as %d anomalies", what, n)
		}
	}
	if len(times) == 0 || len(truth) == 0 {
		t.Errorf("of %d anomalies %d were found", len(truth), len(times))
	}
}

package datacenter

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// monday is one, at midnight.
var monday = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

func named(t testing.TB, name string) Config {
	t.Helper()
	c, err := Named(name, "h")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t testing.TB, c Config) *Sim {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// series reads one metric of a server.
func series(s *Sim, i int, metric string, from, until time.Time, step time.Duration) []float64 {
	at := slices.Index(ServerMetrics[:], metric)
	var list []float64
	var r ServerReading
	for t := from; t.Before(until); t = t.Add(step) {
		s.Server(i, t, &r)
		list = append(list, r.Values[at])
	}
	return list
}

func moments(list []float64) (mean, deviation float64) {
	for _, x := range list {
		mean += x / float64(len(list))
	}
	for _, x := range list {
		deviation += (x - mean) * (x - mean) / float64(len(list))
	}
	return mean, math.Sqrt(deviation)
}

func correlation(a, b []float64) float64 {
	ma, da := moments(a)
	mb, db := moments(b)
	var sum float64
	for i := range a {
		sum += (a[i] - ma) * (b[i] - mb) / float64(len(a))
	}
	return sum / da / db
}

// A reading is the same whatever was read before, in whatever steps.
func TestSim_readingsFollowFromTimeAlone(t *testing.T) {
	c := named(t, "chaos")
	c.Servers, c.Services = 7, 5
	c.LiveFrom = monday
	c.Drift = Drift{Kind: WorkloadDrift, At: monday, Over: time.Hour, Size: 0.5}
	line := func(s *Sim, i int, at time.Time) string {
		var server ServerReading
		var service ServiceReading
		s.Server(i%c.Servers, at, &server)
		text := string(server.AppendJSON(nil))
		s.Service(i%c.Services, at, &service)
		return text + string(service.AppendJSON(nil))
	}
	straight := start(t, c)
	for n := range 2000 {
		at := monday.Add(time.Duration(n-1000) * time.Minute)
		want := line(straight, n, at)
		if n%50 != 0 {
			continue
		}
		if got := line(start(t, c), n, at); got != want {
			t.Fatalf("%s: alone %s, in a row %s", at, got, want)
		}
	}
}

func TestSim_metricsFollowDayAndWeek(t *testing.T) {
	c := named(t, "normal")
	c.Anomalies = nil
	s := start(t, c)
	for i := range 5 {
		hour := func(day, hour int, metric string) float64 {
			from := monday.Add(time.Duration(24*day+hour) * time.Hour)
			m, _ := moments(series(s, i, metric, from, from.Add(time.Hour), time.Minute))
			return m
		}
		for _, metric := range []string{"cpu_usage_percent", "power_consumption_watts", "cpu_temperature_celsius", "network_rx_mbps"} {
			if night, noon := hour(1, 2, metric), hour(1, 14, metric); noon < night*1.01 {
				t.Errorf("server %d: %s is %.1f in the afternoon, %.1f at night", i, metric, noon, night)
			}
		}
		if sunday, tuesday := hour(6, 14, "cpu_usage_percent"), hour(1, 14, "cpu_usage_percent"); sunday > tuesday {
			t.Errorf("server %d: CPU is %.1f on a Sunday, %.1f on a Tuesday", i, sunday, tuesday)
		}
	}
}

func TestSim_powerAndTemperatureFollowTheWork(t *testing.T) {
	c := named(t, "normal")
	c.Anomalies = nil
	s := start(t, c)
	for i := range 5 {
		read := func(metric string) []float64 {
			return series(s, i, metric, monday, monday.Add(2*day), 5*time.Minute)
		}
		cpu, power, temperature := read("cpu_usage_percent"), read("power_consumption_watts"), read("cpu_temperature_celsius")
		if a, b, c := correlation(cpu, power), correlation(cpu, temperature), correlation(power, temperature); a < 0.8 || b < 0.6 || c < 0.6 {
			t.Errorf("server %d: correlations of CPU with power %.2f, with temperature %.2f, of these %.2f", i, a, b, c)
		}
		// Used and available memory are of one machine.
		var r ServerReading
		s.Server(i, monday, &r)
		if size := r.Values[2] / (1 - r.Values[1]/100); math.Abs(size/32-math.Round(size/32)) > 0.01 {
			t.Errorf("server %d: %.1f %% used and %.1f GB available make %.1f GB", i, r.Values[1], r.Values[2], size)
		}
	}
}

// A model of history has to hold for the present: as few readings of the present are
// far off as there are of history.
func TestSim_historyAndPresentAreOfTheSameServers(t *testing.T) {
	c := named(t, "normal")
	c.Anomalies, c.LiveFrom = nil, monday
	s := start(t, c)
	for i := range 10 {
		before, sd := moments(series(s, i, "cpu_usage_percent", monday.Add(-2*time.Hour), monday, 5*time.Minute))
		after, _ := moments(series(s, i, "cpu_usage_percent", monday, monday.Add(2*time.Hour), 5*time.Second))
		if math.Abs(before-after) > 2.5*sd {
			t.Errorf("server %d: CPU %.1f ± %.1f before, %.1f after", i, before, sd, after)
		}
	}
}

// The share of time in anomaly is what probability and length make, the history has
// at most its own share, and each enabled type occurs.
func TestSim_anomaliesAreAsOftenAsConfigured(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			c := named(t, name)
			c.LiveFrom = monday
			s := start(t, c)
			share := func(from, until time.Time) float64 {
				var sum time.Duration
				for _, e := range s.Episodes(from, until) {
					if e.OfService {
						continue
					}
					sum += minTime(e.End, until).Sub(maxTime(e.Start, from))
				}
				return sum.Seconds() / until.Sub(from).Seconds() / float64(c.Servers)
			}
			length := 20_000 * c.Interval
			wait, lasts := 1/c.AnomalyProbability, 75.0
			want := lasts / (wait + lasts)
			if name == "chaos" {
				want = 0.66 // the longest do not fit before the next
			}
			if got := share(monday, monday.Add(length)); math.Abs(got-want) > 0.15*want {
				t.Errorf("%.3f of the time is anomalous, want %.3f", got, want)
			}
			if got := share(monday.Add(-length), monday); got > 1.3*DefaultHistoryShare {
				t.Errorf("%.3f of the history is anomalous", got)
			}
			seen := map[Type]int{}
			for _, e := range s.Episodes(monday, monday.Add(length)) {
				seen[e.Type]++
				if e.OfService != e.Type.ofServices() {
					t.Fatalf("%s has %s", e.Entity, e.Type)
				}
			}
			for _, typ := range Types() {
				if (seen[typ] > 0) != slices.Contains(c.Anomalies, typ) {
					t.Errorf("%s occurs %d times", typ, seen[typ])
				}
			}
		})
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// What a reading says to be part of is what Episodes lists, and the metrics that it
// names are those that differ from the same reading without anomalies.
func TestSim_truthNamesWhatChanges(t *testing.T) {
	c := named(t, "normal")
	c.Servers, c.Services = 40, 20
	well := c
	well.Anomalies = nil
	s, calm := start(t, c), start(t, well)
	until := monday.Add(4 * time.Hour)
	all := s.Episodes(monday, until)
	seen := map[Type]bool{}
	for at := monday; at.Before(until); at = at.Add(c.Interval) {
		active := map[string]Episode{}
		for _, e := range all {
			if !at.Before(e.Start) && at.Before(e.End) {
				active[e.Entity] = e
			}
		}
		compare := func(entity string, got *Episode, names []string, values, plain []float64) {
			want, ok := active[entity]
			if (got != nil) != ok || ok && (got.Type != want.Type || !got.Start.Equal(want.Start) || !got.End.Equal(want.End)) {
				t.Fatalf("%s at %s: reading says %v, the list %v", entity, at, got, want)
			}
			for i, name := range names {
				named := ok && slices.Contains(typeMetrics[want.Type], name)
				if values[i] != plain[i] && !named {
					t.Fatalf("%s at %s: %s is %v, without anomaly %v, and the truth is %v", entity, at, name, values[i], plain[i], want)
				}
				if ok && name == typeMetrics[want.Type][0] && values[i] != plain[i] {
					seen[want.Type] = true
				}
			}
		}
		var a, b ServerReading
		for i := range c.Servers {
			s.Server(i, at, &a)
			calm.Server(i, at, &b)
			compare(a.Server, a.Anomaly, ServerMetrics[:], a.Values[:], b.Values[:])
		}
		var x, y ServiceReading
		for i := range c.Services {
			s.Service(i, at, &x)
			calm.Service(i, at, &y)
			compare(x.Service, x.Anomaly, ServiceMetrics[:], x.Values[:], y.Values[:])
		}
	}
	if len(seen) != int(types) {
		t.Errorf("only these types changed anything: %v", seen)
	}
}

func TestSim_aLeakRamps(t *testing.T) {
	c := named(t, "normal")
	c.Anomalies = []Type{MemoryLeak}
	well := c
	well.Anomalies = nil
	s, calm := start(t, c), start(t, well)
	e := s.Episodes(monday, monday.Add(day))[0]
	i := 0
	for s.servers[i].id != e.Entity {
		i++
	}
	step := e.End.Sub(e.Start) / 10
	with := series(s, i, "memory_usage_percent", e.Start, e.End, step)
	without := series(calm, i, "memory_usage_percent", e.Start, e.End, step)
	last := 0.0
	for n := range with {
		factor := with[n] / without[n]
		if factor < last || n == 0 && math.Abs(factor-1) > 0.02 {
			t.Fatalf("the leak's factors: %v of %v", with, without)
		}
		last = factor
	}
	if last < 1.4 {
		t.Errorf("the leak ends at %.2f times", last)
	}
}

func TestSim_driftBeginsAtItsTime(t *testing.T) {
	c := named(t, "normal")
	c.Anomalies = nil
	plain := start(t, c)
	for kind, metric := range map[DriftKind]string{PowerDrift: "power_consumption_watts", WorkloadDrift: "cpu_usage_percent", CoolingDrift: "cpu_temperature_celsius"} {
		c.Drift = Drift{Kind: kind, At: monday.Add(time.Hour), Over: time.Hour, Size: 0.3}
		s := start(t, c)
		ratio := func(from time.Duration) float64 {
			a, _ := moments(series(s, 3, metric, monday.Add(from), monday.Add(from+time.Minute), c.Interval))
			b, _ := moments(series(plain, 3, metric, monday.Add(from), monday.Add(from+time.Minute), c.Interval))
			return a / b
		}
		if before := ratio(59 * time.Minute); before != 1 {
			t.Errorf("%s: %.3f times before it begins", kind, before)
		}
		if half, whole := ratio(90*time.Minute), ratio(3*time.Hour); half < 1.02 || whole < half+0.02 {
			t.Errorf("%s: %.3f times half way, %.3f in the end", kind, half, whole)
		}
	}
}

func TestMessages_areJSONWithTheContractsKeys(t *testing.T) {
	s := start(t, named(t, "dev"))
	var a ServerReading
	var b ServiceReading
	for n := range 500 {
		at := monday.Add(time.Duration(n) * 7 * time.Second)
		s.Server(n%5, at, &a)
		s.Service(n%3, at, &b)
		var server, service map[string]any
		if err := json.Unmarshal(a.AppendJSON(nil), &server); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b.AppendJSON(nil), &service); err != nil {
			t.Fatal(err)
		}
		if len(server) != 15 || len(service) != 13 {
			t.Fatalf("%d and %d keys", len(server), len(service))
		}
		for i, name := range ServerMetrics {
			if server[name] != a.Values[i] {
				t.Fatalf("%s: written %v, read %v", name, server[name], a.Values[i])
			}
		}
		for i, name := range ServiceMetrics {
			if service[name] != b.Values[i] {
				t.Fatalf("%s: written %v, read %v", name, service[name], b.Values[i])
			}
		}
	}
}

func TestNamed_numbers(t *testing.T) {
	for _, c := range []struct {
		name, set string
		want      string
	}{
		{"normal", "h", "100 25 5s 0.002 8"}, {"normal", "s", "10 5 1s 0.02 8"},
		{"chaos", "h", "150 40 1s 0.08 8"}, {"temperature", "h", "80 20 5s 0.01 2"},
		{"network", "h", "120 30 800ms 0.03 3"}, {"production", "h", "300 60 10s 0.001 8"},
		{"production", "s", "20 12 1s 0.01 8"}, {"dev", "h", "5 3 2s 0.02 8"},
	} {
		n, err := Named(c.name, c.set)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(n.Servers, n.Services, n.Interval, n.AnomalyProbability, len(n.Anomalies)); got != c.want {
			t.Errorf("%s of %s: %s, want %s", c.name, c.set, got, c.want)
		}
	}
	for _, bad := range [][2]string{{"calm", "h"}, {"dev", "t"}} {
		if _, err := Named(bad[0], bad[1]); err == nil {
			t.Errorf("%v: no error", bad)
		}
	}
}

func TestTruth_isOneLine(t *testing.T) {
	s := start(t, named(t, "dev"))
	e := s.Episodes(monday, monday.Add(time.Hour))[0]
	var got map[string]any
	if err := json.Unmarshal(e.AppendJSON(nil, 2*time.Second), &got); err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range got {
			if !yield(name) {
				return
			}
		}
	})
	want := []string{"anomaly_type", "end", "entity_id", "entity_type", "interval_seconds", "metrics", "start", "type"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func BenchmarkServer(b *testing.B) {
	s := start(b, named(b, "normal"))
	var r ServerReading
	var buf []byte
	at := monday
	for i := 0; b.Loop(); i++ {
		if i%100 == 0 {
			at = at.Add(5 * time.Second)
		}
		s.Server(i%100, at, &r)
		buf = r.AppendJSON(buf[:0])
	}
}

package anomaly

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 3, 12, 12, 0, 0, 0, time.UTC)

// flat is a plan of one metric of which 0 is expected with deviation 1, so that a value
// is its distance.
func flat() (*Plan, *Entity) {
	p := &Plan{Contract: "test", EntityType: "server", Metrics: []string{"load"},
		Channels: []Channel{{Type: "stl_zscore_load", Metric: "load", Detector: Expectation{}}}, Limits: DefaultLimits(), Training: DefaultTraining()}
	p.Limits.CoolDown, p.Limits.Follow = 12, 1e6*time.Hour
	return p, &Entity{Models: []*Model{{Trained: noon, Step: 5 * time.Minute, Up: 1, Down: 1}}}
}

func reading(i int, value float64) *Reading {
	return &Reading{Time: noon.Add(time.Duration(i) * 5 * time.Second), Entity: "srv-001", Values: []float64{value}}
}

// told is an event in short: what, at which reading, how severe.
func told(events []Event) string {
	var list []string
	for _, e := range events {
		name := map[Kind]string{Detected: "detected", Escalated: "escalated", Resolved: "resolved"}[e.Kind]
		at := e.Anomaly.Timestamp.Sub(noon) / (5 * time.Second)
		if e.Kind == Resolved {
			at = e.Anomaly.ResolvedAt.Sub(noon) / (5 * time.Second)
		}
		list = append(list, fmt.Sprintf("%s@%d %s", name, at, e.Anomaly.Severity))
	}
	return strings.Join(list, ", ")
}

func TestAnomaliesBeginAndEnd(t *testing.T) {
	usual := []float64{0.5, -0.5, 0, 0.5, -0.5, 0}
	many := func(n int, v float64) []float64 {
		list := make([]float64, n)
		for i := range list {
			list[i] = v
		}
		return list
	}
	join := func(parts ...[]float64) (all []float64) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for _, c := range []struct {
		name   string
		change func(l *Limits)
		values []float64
		want   string
	}{
		{"usual readings", nil, join(usual, usual, usual), ""},
		{"one reading", nil, join(usual, []float64{4.5}, usual), "detected@6 critical, resolved@11 critical"},
		{"below as above", nil, join(usual, []float64{-3.2}, usual), "detected@6 high, resolved@11 high"},
		{"two of three are asked for, one is there", func(l *Limits) { l.AlarmPoints, l.AlarmOf = 2, 3 }, join(usual, []float64{9}, usual), ""},
		{"two of three", func(l *Limits) { l.AlarmPoints, l.AlarmOf = 2, 3 }, join(usual, []float64{3.5, 0, 3.5}, usual), "detected@8 high, resolved@13 high"},
		{"two on two sides are no two", func(l *Limits) { l.AlarmPoints, l.AlarmOf = 2, 3 }, join(usual, []float64{3.5, 0, -3.5}, usual), ""},
		{"the warning band needs three in a row", nil, join(usual, []float64{2.2, 2.2, 0, 2.2, 2.2}, usual), ""},
		{"the warning band begins low and rises", nil, join(usual, many(6, 2.5)), "detected@8 low, escalated@8 medium"},
		{"a ramp becomes more severe", nil, join(usual, []float64{2.1, 2.3, 2.5, 2.8, 3.5, 4.5}, usual),
			"detected@8 low, escalated@8 high, escalated@8 critical, resolved@16 critical"},
		{"still warm is not over", nil, join(usual, []float64{5, 0, 0, 2.5, 0, 0, 0, 0}), "detected@6 critical"},
		{"nothing new in the cool-down", nil, join(usual, []float64{3.5}, many(5, 0), []float64{3.5}, many(5, 0)), "detected@6 high, resolved@11 high"},
		{"what is worse, in the cool-down too", nil, join(usual, []float64{3.5}, many(5, 0), []float64{4.5}), "detected@6 high, resolved@11 high, detected@12 critical"},
		{"after the cool-down", nil, join(usual, []float64{3.5}, many(17, 0), []float64{3.5}), "detected@6 high, resolved@11 high, detected@24 high"},
		{"no cool-down", func(l *Limits) { l.CoolDown = 0 }, join(usual, []float64{3.5}, many(5, 0), []float64{3.5}), "detected@6 high, resolved@11 high, detected@12 high"},
		{"what is missing says nothing", nil, join(usual, []float64{math.NaN(), 2.2, math.NaN(), 2.2, math.NaN(), 2.2}), "detected@11 low"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, e := flat()
			if c.change != nil {
				c.change(&p.Limits)
			}
			var s State
			var events []Event
			for i, v := range c.values {
				events, _, _ = p.Observe(&s, e, reading(i, v), events)
				stored(t, p, &s)
			}
			if got := told(events); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// stored replaces a state by what is read of what is written of it.
func stored(t *testing.T, p *Plan, s *State) {
	t.Helper()
	text := p.AppendState(nil, s)
	next, err := p.ParseState(text)
	if err != nil {
		t.Fatal(err)
	}
	if again := p.AppendState(nil, next); !bytes.Equal(text, again) {
		t.Fatalf("what is read of a state and written again is another one:\n%x\n%x", text, again)
	}
	*s = *next
}

func TestGapsPartWhatIsInARow(t *testing.T) {
	p, e := flat()
	var s State
	var events []Event
	for _, i := range []int{0, 1, 2000, 4000} { // hours apart
		events, _, _ = p.Observe(&s, e, reading(i, 2.5), events)
	}
	if len(events) > 0 {
		t.Errorf("%s of readings that are hours apart", told(events))
	}
}

// A ramp of warnings, alarms and their end, whose readings come twice, three times, and
// in another order: the same anomalies, each once.
func TestWhatComesTwiceOrLateChangesNothing(t *testing.T) {
	p, e := flat()
	p.Limits.AlarmPoints, p.Limits.AlarmOf = 2, 3
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		values := make([]float64, 200)
		for i := range values {
			values[i] = rng.NormFloat64() / 3
			if i >= 50 && i < 80 || i >= 140 && i < 170 {
				values[i] = 6 + rng.Float64()
			}
		}
		var s State
		var straight []Event
		for i, v := range values {
			straight, _, _ = p.Observe(&s, e, reading(i, v), straight)
		}
		if got := told(straight); got != "detected@51 critical, resolved@84 critical, detected@141 critical, resolved@174 critical" {
			t.Fatal(got)
		}

		// Each reading goes up to eight places back or forth, and comes up to three times.
		type delivery struct {
			place float64
			i     int
		}
		var list []delivery
		for i := range values {
			for range 1 + rng.IntN(3) {
				list = append(list, delivery{float64(i) + 8*rng.Float64(), i})
			}
		}
		for i := range list {
			for j := i; j > 0 && list[j].place < list[j-1].place; j-- {
				list[j], list[j-1] = list[j-1], list[j]
			}
		}
		var mixed State
		var events []Event
		first := map[string]int{}
		for n, d := range list {
			before := len(events)
			var outcome Outcome
			events, outcome, _ = p.Observe(&mixed, e, reading(d.i, values[d.i]), events)
			if outcome == New {
				first[fmt.Sprint(d.i)]++
			}
			if outcome != New {
				events = events[:before] // what is said again was said
			}
			if n%17 == 0 {
				stored(t, p, &mixed)
			}
		}
		count := map[string]int{}
		for _, v := range events {
			count[v.Anomaly.Timestamp.String()+fmt.Sprint(v.Kind)]++
			if v.Kind == Detected {
				if at := v.Anomaly.Timestamp.Sub(noon) / (5 * time.Second); (at < 51 || at >= 80) && (at < 141 || at >= 170) {
					t.Fatalf("seed %d: detected at %d", seed, at)
				}
			}
		}
		for what, n := range count {
			if n != 1 {
				t.Fatalf("seed %d: %s was said %d times", seed, what, n)
			}
		}
		if len(count) != 4 {
			t.Fatalf("seed %d: %s", seed, told(events))
		}
		for i, n := range first {
			if n != 1 {
				t.Fatalf("seed %d: reading %s was new %d times", seed, i, n)
			}
		}
	}
}

// An answer that got lost is given again, word for word, also by another process, and
// as often as it takes.
func TestSaysTheSameAgain(t *testing.T) {
	p, e := flat()
	var s State
	want, outcome, _ := p.Observe(&s, e, reading(0, 9), nil)
	if outcome != New || told(want) != "detected@0 critical" {
		t.Fatal(outcome, told(want))
	}
	for i := range 40 { // more than are remembered
		if i > 0 {
			if more, _, _ := p.Observe(&s, e, reading(i, 8), nil); len(more) > 0 {
				t.Fatal(told(more))
			}
		}
		stored(t, p, &s)
		got, outcome, _ := p.Observe(&s, e, reading(0, 9), nil)
		if outcome == New {
			t.Fatal("it is new again")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("after %d readings, -want +got:\n%s", i, diff)
		}
	}
	for range keptVersions + 1 {
		s.Version++
		s.Forget()
	}
	if got, _, _ := p.Observe(&s, e, reading(0, 9), nil); len(got) > 0 {
		t.Error("it is said for ever")
	}
}

func TestReadingsOfOneTime(t *testing.T) {
	p, e := flat()
	var s State
	for key, want := range []Outcome{New, New, Duplicate} {
		r := reading(0, 0)
		r.Key = uint32(key % 2)
		if _, got, _ := p.Observe(&s, e, r, nil); got != want {
			t.Errorf("%d: %v, want %v", key, got, want)
		}
	}
}

func TestTheLevelFollows(t *testing.T) {
	p, e := flat()
	p.Limits.Follow = time.Hour
	var s State
	var events []Event
	for i := range 12 * 60 * 48 { // two days at 6: what lasts becomes the usual
		events, _, _ = p.Observe(&s, e, reading(i, 6), events)
	}
	if got := told(events); !strings.HasPrefix(got, "detected@0 critical, resolved@") {
		t.Errorf("%s", got)
	}
	if level := s.channels[0].level; math.Abs(level-6) > 0.1 {
		t.Errorf("the level is %g", level)
	}
}

// What is odd now and then, however often, is odd the next time too, and what is as it
// was before is not.
func TestAnomaliesDoNotBecomeTheUsual(t *testing.T) {
	p, e := flat()
	p.Limits.Follow, p.Limits.Usual = time.Hour, 1.2
	var s State
	var events []Event
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 30_000 { // two thirds of nearly two days
		v := rng.Float64() - 0.5
		if i%100 >= 33 {
			v += 1.5 + 2*rng.Float64() // now below the warning, now above the alarm
		}
		events, _, _ = p.Observe(&s, e, reading(i, v), events)
	}
	for _, event := range events {
		if event.Kind == Detected && event.Anomaly.Details.Z < 0 {
			t.Fatalf("usual readings are odd: %+v", event.Anomaly)
		}
	}
	if level := s.channels[0].level; math.Abs(level) > 0.5 {
		t.Errorf("the level is %g", level)
	}
}

// States that were kept before levels were remembered are read.
func TestStateOfTheFirstFormat(t *testing.T) {
	p, e := flat()
	var s State
	for i := range 4 {
		p.Observe(&s, e, reading(i, float64(i/3)*4.5), nil)
	}
	if s.Open() != 1 {
		t.Fatal("nothing is open")
	}
	now := p.AppendState(nil, &s)
	room := make([]byte, 8)
	binary.LittleEndian.PutUint64(room, math.Float64bits(s.channels[0].before))
	at := bytes.LastIndex(now[:len(now)-1], append([]byte{open}, room...)) + 1
	old := slices.Concat(now[:at], now[at+8:])
	old[VersionBytes] = 1
	got, err := p.ParseState(old)
	if err != nil {
		t.Fatal(err)
	}
	if b := got.channels[0].before; !math.IsNaN(b) {
		t.Errorf("the level before is %g", b)
	}
	var events []Event
	for i := 4; i < 9; i++ {
		events, _, _ = p.Observe(got, e, reading(i, 0), events)
	}
	if got := told(events); got != "resolved@8 critical" {
		t.Errorf("%q", got)
	}
}

func TestRules(t *testing.T) {
	p := &Plan{Metrics: []string{"load"}, Limits: DefaultLimits(), Channels: []Channel{
		{Type: "threshold_above_load", Metric: "load", Rule: true, Detector: Rule{Limit: 90, Score: 0.5}},
		{Type: "threshold_below_load", Metric: "load", Rule: true, Detector: Rule{Limit: 10, Below: true, Score: 0.9}}}}
	var s State
	var events []Event
	for i, v := range []float64{50, 90, 91, 50, 50, 50, 50, 50, 10, 9.9} {
		events, _, _ = p.Observe(&s, &Entity{}, reading(i, v), events)
	}
	if got := told(events); got != "detected@2 medium, resolved@7 medium, detected@9 critical" {
		t.Error(got)
	}
	if d := events[0].Anomaly.Details; d.Actual != 91 || d.Threshold != 90 || d.Model != "rule" {
		t.Errorf("%+v", d)
	}
}

func TestSeverityOfScores(t *testing.T) {
	for score, want := range map[float64]string{0: Low, 0.39: Low, 0.4: Medium, 0.59: Medium, 0.6: High, 0.79: High, 0.8: Critical, 1: Critical} {
		if got := Severity(score); got != want {
			t.Errorf("%g: %s, want %s", score, got, want)
		}
	}
}

// A contract that gets and loses metrics keeps what is known of the others.
func TestStateOutlivesItsChannels(t *testing.T) {
	channel := func(name string, metric int) Channel {
		return Channel{Type: "stl_zscore_" + name, Metric: name, Detector: Expectation{Metric: metric}}
	}
	m := &Model{Trained: noon, Step: time.Minute, Up: 1, Down: 1}
	old := &Plan{Metrics: []string{"a", "b"}, Channels: []Channel{channel("a", 0), channel("b", 1)}, Limits: DefaultLimits()}
	next := &Plan{Metrics: []string{"c", "b"}, Channels: []Channel{channel("c", 0), channel("b", 1)}, Limits: DefaultLimits()}
	var s State
	r := reading(0, 0)
	r.Values = []float64{0, 7}
	old.Observe(&s, &Entity{Models: []*Model{m, m}}, r, nil)
	moved, err := next.ParseState(old.AppendState(nil, &s))
	if err != nil {
		t.Fatal(err)
	}
	if moved.Open() != 1 || moved.channels[1].phase != open || moved.channels[0].phase != quiet {
		t.Errorf("%+v", moved.channels)
	}
}

func FuzzParseState(f *testing.F) {
	p, e := flat()
	var s State
	f.Add([]byte{})
	for i, v := range []float64{0, 9, 9, 0, 0, 0, 0, 0, 0} {
		p.Observe(&s, e, reading(i, v), nil)
		f.Add(p.AppendState(nil, &s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := p.ParseState(text)
		if err != nil {
			return
		}
		again, err := p.ParseState(p.AppendState(nil, s))
		if err != nil {
			t.Fatalf("what was read and written cannot be read: %v", err)
		}
		if !bytes.Equal(p.AppendState(nil, again), p.AppendState(nil, s)) {
			t.Fatal("what was read and written is another state")
		}
		for i := range 40 {
			p.Observe(s, e, reading(i, float64(i%7)), nil)
		}
	})
}

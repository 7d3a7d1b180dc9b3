package anomaly

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// day is the course of a day: the most at 14:00 UTC.
func day(at time.Time) float64 {
	return 50 + 20*math.Cos(float64(at.Sub(at.Truncate(24*time.Hour))-14*time.Hour)/float64(24*time.Hour)*2*math.Pi)
}

// history is days until an end, in steps of five minutes, of n readings each.
func history(end time.Time, days, n int, noise float64, value func(at time.Time) float64) []Bucket {
	rng := rand.New(rand.NewPCG(uint64(days), uint64(n)))
	const step = 5 * time.Minute
	var list []Bucket
	for at := end.Add(-time.Duration(days) * 24 * time.Hour); at.Before(end); at = at.Add(step) {
		b := Bucket{Number: at.UnixNano() / int64(step), N: n, Low: math.Inf(1), High: math.Inf(-1)}
		var sum, squares float64
		for i := range n {
			v := value(at.Add(time.Duration(i)*step/time.Duration(n))) + noise*rng.NormFloat64()
			sum, squares = sum+v, squares+v*v
			b.Low, b.High = min(b.Low, v), max(b.High, v)
		}
		b.Mean = sum / float64(n)
		if n > 1 {
			b.Deviation = math.Sqrt(max(0, squares-sum*b.Mean) / float64(n-1))
		}
		list = append(list, b)
	}
	return list
}

func learn(t testing.TB, list []Bucket) *Model {
	t.Helper()
	m, err := DefaultTraining().Train(list, noon)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// farthestFrom is how far what the model expects of the day after is from what it is.
func farthestFrom(m *Model, value func(time.Time) float64) float64 {
	worst := 0.0
	for i := range 24 * 12 {
		at := m.To.Add(time.Duration(i)*5*time.Minute + 100*time.Second)
		worst = max(worst, math.Abs(m.Level+m.SeasonAt(at)-value(at)))
	}
	return worst
}

// Whenever the history ended, the season is looked up by the time of day.
func TestSeasonIsInPhase(t *testing.T) {
	for _, end := range []time.Time{noon, noon.Add(7*time.Hour + 35*time.Minute), noon.Add(-11 * time.Hour)} {
		m := learn(t, history(end, 7, 1, 1, day))
		if !m.Seasonal() {
			t.Fatal("there is no season")
		}
		if off := farthestFrom(m, day); off > 2 {
			t.Errorf("history until %s: off by %g", end, off)
		}
	}
}

// Half of the steps are missing, and a whole day, and nothing changes but the noise.
func TestHistoryWithGaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var list []Bucket
	for i, b := range history(noon, 14, 1, 1, day) {
		if rng.IntN(2) == 0 && (i < 1000 || i > 1288) {
			list = append(list, b)
		}
	}
	m := learn(t, list)
	if off := farthestFrom(m, day); off > 3 {
		t.Errorf("off by %g", off)
	}
}

// The deviation is that of single readings, whatever the history is made of.
func TestDeviationIsOfSingleReadings(t *testing.T) {
	single := learn(t, history(noon, 14, 1, 2, day))
	means := learn(t, history(noon, 14, 60, 2, day))
	both := learn(t, append(history(noon.Add(-7*24*time.Hour), 7, 1, 2, day), history(noon, 7, 60, 2, day)...))
	for name, m := range map[string]*Model{"single": single, "means": means, "both": both} {
		// Twice that is what usual readings hardly come to: for normal noise of
		// deviation 2 between 3 and 5 of them.
		if m.Up < 2.5 || m.Up > 5.5 || m.Down < 2.5 || m.Down > 5.5 {
			t.Errorf("%s: %g above, %g below", name, m.Up, m.Down)
		}
	}
}

// Anomalies in the history, some hours of them, hide no anomaly.
func TestHistoryWithAnomalies(t *testing.T) {
	clean := learn(t, history(noon, 14, 1, 1, day))
	list := history(noon, 14, 1, 1, day)
	for i := range list {
		if i%700 < 15 { // 2 percent
			list[i].Mean, list[i].Low, list[i].High = list[i].Mean+60, list[i].Low+60, list[i].High+60
		}
	}
	m := learn(t, list)
	if m.Up > 1.5*clean.Up || math.Abs(m.Level-clean.Level) > 2 {
		t.Errorf("%g instead of %g, level %g instead of %g", m.Up, clean.Up, m.Level, clean.Level)
	}
	if off := farthestFrom(m, day); off > 3 {
		t.Errorf("off by %g", off)
	}
}

func TestWeekends(t *testing.T) {
	week := func(at time.Time) float64 {
		if d := at.Weekday(); d == time.Saturday || d == time.Sunday {
			return 50 + 0.3*(day(at)-50)
		}
		return day(at)
	}
	m := learn(t, history(noon, 14, 1, 1, week))
	if m.Week == nil {
		t.Fatal("the week was not learnt")
	}
	if m.Up > 6 {
		t.Errorf("the deviation is %g", m.Up)
	}
}

func TestNoSeasonInNoise(t *testing.T) {
	for _, days := range []int{2, 3, 14} {
		if m := learn(t, history(noon, days, 1, 1, func(time.Time) float64 { return 50 })); m.Seasonal() {
			t.Errorf("of %d days of noise a season was learnt", days)
		}
	}
}

func TestWarmUp(t *testing.T) {
	list := history(noon, 1, 1, 1, day)
	_, err := DefaultTraining().Train(list[:71], noon)
	early, ok := errors.AsType[*WarmUpError](err)
	if !ok || early.Have != 71 || early.Need != 72 {
		t.Fatal(err)
	}
	if m := learn(t, list[:72]); m.Seasonal() {
		t.Error("a season of six hours")
	}
	if m := learn(t, history(noon, 3, 1, 1, day)); !m.Seasonal() {
		t.Error("no season of three days")
	}
}

// A metric that never moves: any move that is not rounding is odd, and nothing is
// divided by zero.
func TestConstantMetric(t *testing.T) {
	m := learn(t, history(noon, 14, 1, 0, func(time.Time) float64 { return 100 }))
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	if d := m.Distance(1); d < 5 {
		t.Errorf("1 of 100 is %g deviations", d)
	}
	c := DefaultTraining()
	c.Floor = 0.5
	zeros, err := c.Train(history(noon, 14, 1, 0, func(time.Time) float64 { return 0 }), noon)
	if err != nil {
		t.Fatal(err)
	}
	if d := zeros.Distance(1); d != 2 {
		t.Errorf("1 of a counter at 0 is %g deviations", d)
	}
}

func TestModelsAreReadAsTheyWereWritten(t *testing.T) {
	names := []string{"a", "b", "c"}
	models := Models{"a": learn(t, history(noon, 14, 1, 1, day)), "c": learn(t, history(noon, 1, 1, 1, day))}
	text := models.Append(nil, names)
	read, err := ParseModels(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(read) != 2 || !bytes.Equal(read.Append(nil, names), text) {
		t.Error("they are others")
	}
	if a, b := read["a"], models["a"]; a.SeasonAt(noon) != b.SeasonAt(noon) || !a.Trained.Equal(b.Trained) || a.Up != b.Up {
		t.Errorf("%+v, %+v", a, b)
	}
	if len(text) > 4000 {
		t.Errorf("%d bytes", len(text))
	}
}

func FuzzParseModels(f *testing.F) {
	names := []string{"a"}
	f.Add([]byte{})
	f.Add(Models{"a": {Trained: noon, From: noon, To: noon, Step: time.Minute, Up: 1, Down: 1, Season: []float32{1, 2}}}.Append(nil, names))
	f.Fuzz(func(t *testing.T, text []byte) {
		ms, err := ParseModels(text)
		if err != nil {
			return
		}
		for _, m := range ms {
			if !finite(m.SeasonAt(noon)) || !finite(m.Distance(1)) {
				t.Fatal("it cannot be judged by")
			}
		}
	})
}

func BenchmarkTrain(b *testing.B) {
	list := history(noon, 14, 1, 1, day)
	for b.Loop() {
		learn(b, list)
	}
}

package stl

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

type golden struct {
	Name   string
	Config struct {
		Period, Seasonal, Trend int
		LowPass                 int  `json:"low_pass"`
		SeasonalDeg             *int `json:"seasonal_deg"`
		TrendDeg                *int `json:"trend_deg"`
		LowPassDeg              *int `json:"low_pass_deg"`
		SeasonalJump            int  `json:"seasonal_jump"`
		TrendJump               int  `json:"trend_jump"`
		LowPassJump             int  `json:"low_pass_jump"`
		Robust                  bool
		Inner                   int `json:"inner_iter"`
		Outer                   int `json:"outer_iter"`
	}
	Y, Trend, Seasonal, Weights []float64
}

func (g *golden) config() Config {
	constant := func(degree *int) bool { return degree != nil && *degree == 0 }
	c := g.Config
	return Config{
		Period: c.Period, Seasonal: c.Seasonal, Trend: c.Trend, LowPass: c.LowPass,
		SeasonalConstant: constant(c.SeasonalDeg), TrendConstant: constant(c.TrendDeg), LowPassConstant: constant(c.LowPassDeg),
		SeasonalJump: c.SeasonalJump, TrendJump: c.TrendJump, LowPassJump: c.LowPassJump,
		Robust: c.Robust, Inner: c.Inner, Outer: c.Outer,
	}
}

func goldens(t testing.TB) []golden {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []golden
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// farthest is the greatest difference of two series, relative to the larger of 1 and
// the values.
func farthest(a, b []float64) float64 {
	worst := 0.0
	for i := range a {
		worst = max(worst, math.Abs(a[i]-b[i])/max(1, math.Abs(b[i])))
		if math.IsNaN(a[i]) {
			return math.Inf(1)
		}
	}
	return worst
}

func TestEqualsStatsmodels(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.Name, func(t *testing.T) {
			r, err := Decompose(g.Y, g.config())
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []struct {
				name      string
				got, want []float64
			}{{"trend", r.Trend, g.Trend}, {"seasonal", r.Seasonal, g.Seasonal}, {"weights", r.Weights, g.Weights}} {
				if len(part.got) != len(part.want) {
					t.Fatalf("%s: %d values, want %d", part.name, len(part.got), len(part.want))
				}
				// Of a constant series the remainders are rounding errors, and so are
				// the weights that are made of them.
				if worst := farthest(part.got, part.want); worst > 1e-8 && (part.name != "weights" || g.Name != "constant series") {
					t.Errorf("%s: off by %g", part.name, worst)
				}
			}
		})
	}
}

// series is some seasons of a day with noise.
func series(n, period int, noise float64, seed uint64) []float64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	y := make([]float64, n)
	for i := range y {
		y[i] = 50 + float64(i)/200 + 10*math.Sin(2*math.Pi*float64(i)/float64(period)) + noise*rng.NormFloat64()
	}
	return y
}

// What is scaled and moved gives a decomposition that is scaled and moved.
func TestFollowsScaleAndOffset(t *testing.T) {
	y := series(400, 24, 1, 2)
	moved := make([]float64, len(y))
	for i, v := range y {
		moved[i] = 3*v + 1000
	}
	c := Config{Period: 24, Robust: true}
	a, err := Decompose(y, c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Decompose(moved, c)
	if err != nil {
		t.Fatal(err)
	}
	for i := range y {
		if math.Abs(3*a.Trend[i]+1000-b.Trend[i]) > 1e-6 || math.Abs(3*a.Seasonal[i]-b.Seasonal[i]) > 1e-6 {
			t.Fatalf("at %d: trend %g and %g, season %g and %g", i, a.Trend[i], b.Trend[i], a.Seasonal[i], b.Seasonal[i])
		}
	}
}

// Gaps, wherever they are and even of days, leave trend and season where they were.
func TestGapsMoveNothing(t *testing.T) {
	whole := series(14*96, 96, 0.5, 3)
	c := Config{Period: 96, Seasonal: 35, Trend: 577, Robust: true, Outer: 3, TrendJump: 10, LowPassJump: 10}
	want, err := Decompose(whole, c)
	if err != nil {
		t.Fatal(err)
	}
	for name, missing := range map[string]func(i int) bool{
		"one":                                  func(i int) bool { return i == 700 },
		"a fifth at random":                    func(i int) bool { return (i*7919)%5 == 0 },
		"half a day":                           func(i int) bool { return i >= 500 && i < 548 },
		"two days":                             func(i int) bool { return i >= 500 && i < 692 },
		"the start":                            func(i int) bool { return i < 60 },
		"the end":                              func(i int) bool { return i >= len(whole)-30 },
		"the same hour each day but the first": func(i int) bool { return i%96 < 4 && i > 96 },
	} {
		t.Run(name, func(t *testing.T) {
			y := make([]float64, len(whole))
			for i, v := range whole {
				if y[i] = v; missing(i) {
					y[i] = math.NaN()
				}
			}
			r, err := Decompose(y, c)
			if err != nil {
				t.Fatal(err)
			}
			for i := range y {
				// Within the noise of a smoothed value, four of its deviations and more.
				if off := math.Abs(r.Trend[i] + r.Seasonal[i] - want.Trend[i] - want.Seasonal[i]); !(off < 1.5) {
					t.Fatalf("at %d: %g instead of %g", i, r.Trend[i]+r.Seasonal[i], want.Trend[i]+want.Seasonal[i])
				}
				if missing(i) && r.Weights[i] != 0 {
					t.Fatalf("the gap at %d has weight %g", i, r.Weights[i])
				}
			}
		})
	}
}

func TestBadParameters(t *testing.T) {
	y := series(100, 10, 1, 1)
	gaps := make([]float64, 100)
	for i := range gaps {
		gaps[i] = math.NaN()
	}
	for _, c := range []struct {
		name string
		y    []float64
		c    Config
		want string
	}{
		{"no period", y, Config{}, "period: must be at least 2, not 0"},
		{"even season", y, Config{Period: 10, Seasonal: 8}, "seasonal: must be odd and at least 3, not 8"},
		{"short trend", y, Config{Period: 10, Trend: 9}, "trend: must be odd and greater than the period, 10, not 9"},
		{"even low pass", y, Config{Period: 10, LowPass: 12}, "low pass: must be odd and greater than the period, 10, not 12"},
		{"jump", y, Config{Period: 10, TrendJump: -1}, "jump: must be at least 1"},
		{"iterations", y, Config{Period: 10, Outer: -1}, "iterations: 5 inner and -1 outer"},
		{"too short", y[:19], Config{Period: 10}, "19 values are less than two seasons of 10"},
		{"only gaps", gaps, Config{Period: 10}, "there are no values, only gaps"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Decompose(c.y, c.c); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// Two weeks of five minutes, as the models of metrics are trained.
func BenchmarkDecompose(b *testing.B) {
	y := series(14*288, 288, 1, 1)
	for name, c := range map[string]Config{
		"exact":  {Period: 288, Seasonal: 289, Trend: 577},
		"robust": {Period: 288, Seasonal: 289, Trend: 577, Robust: true, Outer: 4, TrendJump: 58, LowPassJump: 29},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Decompose(y, c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package drift

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/quick"

	"github.com/google/go-cmp/cmp"
)

func normal(r *rand.Rand, n int, mean float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = mean + r.NormFloat64()
	}
	return out
}

func sorted(values []float64) Sorted {
	s, _ := Sort(values)
	return s
}

func TestSort_isTheSameByDigits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 30 {
		n := radixFrom + r.IntN(5000)
		values := make([]float64, n)
		for i := range values {
			switch r.IntN(6) {
			case 0:
				values[i] = math.Float64frombits(r.Uint64())
			case 1:
				values[i] = float64(r.IntN(10) - 5)
			case 2:
				values[i] = math.NaN()
			default:
				values[i] = r.NormFloat64() * 1e3
			}
		}
		want := slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
		slices.Sort(want)
		got, missing := Sort(values)
		if missing != n-len(want) || !slices.Equal(got, want) {
			t.Fatalf("%d values: %d missing, want %d; sorted alike: %t", n, missing, n-len(want), slices.Equal(got, want))
		}
	}
}

// Distances are distances, whatever the samples.
func TestStatistics_haveTheirProperties(t *testing.T) {
	check := func(seed uint64) bool {
		r := rand.New(rand.NewPCG(seed, 2))
		draw := func() []float64 {
			out := make([]float64, 1+r.IntN(400))
			for i := range out {
				out[i] = math.Round(r.NormFloat64()*float64(1+r.IntN(20))) / float64(1+r.IntN(3))
			}
			return out
		}
		x, y, z := draw(), draw(), draw()
		a, b, c := sorted(x), sorted(y), sorted(z)
		alike := func(u, v float64) bool { return math.Abs(u-v) <= 1e-9*max(1, math.Abs(u)) }
		d, p := KolmogorovSmirnov(a, b)
		e, q := KolmogorovSmirnov(b, a)
		w := Wasserstein(a, b)
		shift, scale := r.NormFloat64()*100, 0.1+r.Float64()*10
		moved := func(s []float64) Sorted {
			out := slices.Clone(s)
			for i := range out {
				out[i] = out[i]*scale + shift
			}
			return sorted(out)
		}
		md, mp := KolmogorovSmirnov(moved(x), moved(y))
		u, v := binned(a, b)
		js := JensenShannon(u, v)
		for name, ok := range map[string]bool{
			"ks is symmetric":                  alike(d, e) && alike(p, q),
			"ks is a share":                    d >= 0 && d <= 1 && p >= 0 && p <= 1,
			"ks of itself is 0":                first(KolmogorovSmirnov(a, a)) == 0,
			"ks ignores the unit":              alike(d, md) && alike(p, mp),
			"wasserstein is symmetric":         alike(w, Wasserstein(b, a)),
			"wasserstein of itself is 0":       Wasserstein(a, a) == 0,
			"wasserstein obeys the triangle":   Wasserstein(a, c) <= w+Wasserstein(b, c)+1e-9,
			"wasserstein has the values' unit": math.Abs(Wasserstein(moved(x), moved(y))-w*scale) < 1e-6*max(1, w*scale),
			"wasserstein of a shift is it":     math.Abs(Wasserstein(a, moved1(x, shift))-math.Abs(shift)) < 1e-9*max(1, math.Abs(shift)),
			"jensen-shannon is within 0 and 1": js >= 0 && js <= 1+1e-12,
			"jensen-shannon is symmetric":      alike(js, JensenShannon(v, u)),
			"jensen-shannon of itself is 0":    JensenShannon(u, u) == 0,
			"psi is not negative":              PSI(shares(u), shares(v)) >= 0,
			"bins hold all":                    sum(u) == float64(len(a)) && sum(v) == float64(len(b)),
		} {
			if !ok {
				t.Errorf("seed %d: %s: no", seed, name)
				return false
			}
		}
		return true
	}
	if err := quick.Check(check, &quick.Config{MaxCount: 300, Rand: nil}); err != nil {
		t.Error(err)
	}
}

func first(a, _ float64) float64 { return a }

func moved1(s []float64, by float64) Sorted {
	out := slices.Clone(s)
	for i := range out {
		out[i] += by
	}
	return sorted(out)
}

func sum(s []float64) (t float64) {
	for _, v := range s {
		t += v
	}
	return t
}

// On undrifted independent data a test at 5 % must be wrong in 5 % of all cases.
func TestTests_areWrongAsOftenAsTheySay(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	const rounds = 2000
	wrong := map[Method]int{}
	for range rounds {
		reference, current := normal(r, 400, 0), normal(r, 300, 0)
		if _, p := KolmogorovSmirnov(sorted(reference), sorted(current)); p < 0.05 {
			wrong[KS]++
		}
		observed, expected := make([]float64, 8), []float64{1e9, 2e9, 3e9, 4e9, 4e9, 3e9, 2e9, 1e9}
		for range 500 {
			at := r.Float64() * 20
			for i, e := range expected {
				if at -= e / 1e9; at < 0 {
					observed[i]++
					break
				}
			}
		}
		if _, p := ChiSquare(observed, expected); p < 0.05 {
			wrong[Chi]++
		}
		var x1, x2 float64
		for range 300 {
			x1 += float64(r.IntN(2))
			x2 += float64(r.IntN(2))
		}
		if _, p := ZTest(x1, 300, x2, 300); p < 0.05 {
			wrong[Z]++
		}
	}
	for m, n := range wrong {
		// Five standard deviations of a binomial; the steps of KS keep it below.
		if share := float64(n) / rounds; share > 0.05+0.025 || share < 0.05-0.025 {
			t.Errorf("%s: wrong in %.1f %% of all cases, says 5 %%", m, 100*share)
		}
	}
}

func TestMeasure_choosesAsEvidently(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	whole := func(n, k int) []float64 {
		out := make([]float64, n)
		for i := range out {
			out[i] = float64(r.IntN(k))
		}
		return out
	}
	samples := func(a, b []float64) *Column { return &Column{Reference: sorted(a), Current: sorted(b)} }
	for name, c := range map[string]struct {
		column  *Column
		method  Method
		drifted bool
	}{
		"numbers, small":               {samples(normal(r, 1000, 0), normal(r, 500, 0)), KS, false},
		"numbers, small, moved":        {samples(normal(r, 1000, 0), normal(r, 500, 1)), KS, true},
		"numbers, large":               {samples(normal(r, 1001, 0), normal(r, 2000, 0)), WassersteinN, false},
		"numbers, large, moved":        {samples(normal(r, 1001, 0), normal(r, 2000, 0.3)), WassersteinN, true},
		"sample of many":               {&Column{Reference: sorted(normal(r, 500, 0)), Current: sorted(normal(r, 500, 0)), ReferenceRows: 9000}, WassersteinN, false},
		"few numbers, small":           {samples(whole(900, 4), whole(900, 4)), Chi, false},
		"few numbers, large":           {samples(whole(5000, 4), whole(5000, 4)), JS, false},
		"two numbers, small":           {samples(whole(900, 2), whole(900, 2)), Z, false},
		"one number":                   {samples(whole(900, 1), whole(900, 1)), Z, false},
		"categories, small":            {&Column{Category: true, ReferenceCounts: []float64{300, 300, 300}, CurrentCounts: []float64{30, 32, 28}}, Chi, false},
		"categories, small, moved":     {&Column{Category: true, ReferenceCounts: []float64{300, 300, 300}, CurrentCounts: []float64{90, 32, 28}}, Chi, true},
		"categories, large":            {&Column{Category: true, ReferenceCounts: []float64{3000, 300, 300}, CurrentCounts: []float64{310, 30, 28}}, JS, false},
		"categories, large, moved":     {&Column{Category: true, ReferenceCounts: []float64{3000, 300, 300}, CurrentCounts: []float64{100, 130, 128}}, JS, true},
		"a category that is new":       {&Column{Category: true, ReferenceCounts: []float64{300, 0}, CurrentCounts: []float64{30, 20}}, Z, true},
		"two categories":               {&Column{Category: true, ReferenceCounts: []float64{300, 200}, CurrentCounts: []float64{30, 20}}, Z, false},
		"bins of numbers":              {&Column{ReferenceCounts: []float64{3000, 3000}, CurrentCounts: []float64{310, 300}}, JS, false},
		"nothing came":                 {samples(normal(r, 100, 0), nil), "", false},
		"no rows in counted reference": {&Column{Category: true, ReferenceCounts: []float64{0, 0}, CurrentCounts: []float64{1, 1}}, "", false},
	} {
		got := Measure(c.column, Limits{})
		if got.Method != c.method || got.Drifted != c.drifted {
			t.Errorf("%s: %s, drifted %t (%v against %v), want %s, %t", name, got.Method, got.Drifted, got.Score, got.Limit, c.method, c.drifted)
		}
	}
	chosen := Measure(samples(normal(r, 2000, 0), normal(r, 2000, 0.3)), Limits{Method: PSIMethod, Distance: 0.9})
	if chosen.Method != PSIMethod || chosen.Limit != 0.9 || chosen.Drifted {
		t.Errorf("with another method: %+v", chosen)
	}
}

func TestMeasure_tellsMissingValues(t *testing.T) {
	c := Column{Reference: Sorted{1, 2}, Current: Sorted{1, 2}, ReferenceAll: 1000, ReferenceMissing: 10, CurrentAll: 200, CurrentMissing: 100}
	got := Measure(&c, Limits{})
	if got.MissingReference != 0.01 || got.MissingCurrent != 0.5 || got.MissingP > 1e-9 {
		t.Errorf("%+v", got)
	}
}

func TestJudge_countsWhatCouldBeCompared(t *testing.T) {
	results := []Result{{Method: KS, Drifted: true}, {Method: JS}, {}, {Method: Z}}
	if diff := cmp.Diff(Dataset{Columns: 3, Drifted: 1, Share: 1.0 / 3}, Judge(results, Limits{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !Judge(results, Limits{Share: 0.3}).Over || !Judge(results[:2], Limits{}).Over || Judge(nil, Limits{}).Over {
		t.Error("shares are judged otherwise")
	}
}

func TestLimits_areChecked(t *testing.T) {
	for _, l := range []Limits{{P: -1}, {P: 2}, {Share: 1.5}, {Distance: math.NaN()}, {Method: "t"}} {
		if l.Check() == nil {
			t.Errorf("%+v was accepted", l)
		}
	}
	if err := (Limits{P: 0.01, Distance: 0.2, Share: 0.3, Method: PSIMethod}).Check(); err != nil {
		t.Error(err)
	}
}

func TestCountByEdges_isTheBaselines(t *testing.T) {
	got := CountByEdges(Sorted{-1, 0, 0, 0.5, 1, 2, 3}, []float64{0, 1, 2.5})
	if diff := cmp.Diff([]float64{3, 2, 1, 1}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// With scores that are true probabilities the estimates are what labels will say.
func TestEstimate_isWhatLabelsSayOfCalibratedScores(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const n = 200_000
	scores := make([]float64, n)
	var loss, brier, right, positives float64
	up, down := []float64{}, []float64{}
	for i := range scores {
		p := 1 / (1 + math.Exp(-1.5*r.NormFloat64()))
		scores[i] = p
		y := 0.0
		if r.Float64() < p {
			y = 1
			up = append(up, p)
		} else {
			down = append(down, p)
		}
		loss -= y*math.Log(p) + (1-y)*math.Log(1-p)
		brier += (p - y) * (p - y)
		positives += y
		if (p >= 0.5) == (y == 1) {
			right++
		}
	}
	// The share of pairs in order.
	a, b := sorted(up), sorted(down)
	var pairs float64
	for i, j := 0, 0; i < len(a); i++ {
		for j < len(b) && b[j] < a[i] {
			j++
		}
		pairs += float64(j)
	}
	got := Estimate(scores, nil)
	for name, v := range map[string][2]float64{
		"auc":       {got.AUC, pairs / float64(len(a)) / float64(len(b))},
		"log loss":  {got.LogLoss, loss / n},
		"brier":     {got.Brier, brier / n},
		"accuracy":  {got.Accuracy, right / n},
		"positives": {got.Positives, positives / n},
	} {
		if math.Abs(v[0]-v[1]) > 0.005 {
			t.Errorf("%s: estimated %v, labels say %v", name, v[0], v[1])
		}
	}
	if e := Estimate(nil, nil); e.Rows != 0 || !math.IsNaN(e.AUC) {
		t.Errorf("of nothing: %+v", e)
	}
	if e := Estimate([]float64{1, 1, math.NaN()}, nil); e.Rows != 2 || e.LogLoss != 0 || !math.IsNaN(e.AUC) {
		t.Errorf("of certainties: %+v", e)
	}
}

// A million values against as many.
func BenchmarkMillion(b *testing.B) {
	r := rand.New(rand.NewPCG(4, 4))
	x, y := normal(r, 1_000_000, 0), normal(r, 1_000_000, 0.01)
	s, u := sorted(x), sorted(y)
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"sort", func() { Sort(y) }},
		{"ks", func() { KolmogorovSmirnov(s, u) }},
		{"wasserstein", func() { NormedWasserstein(s, u) }},
		{"jensenshannon+psi", func() { p, q := binned(s, u); JensenShannon(p, q); PSI(shares(p), shares(q)) }},
		{"estimate", func() { Estimate(x, nil) }},
		{"all, sorting included", func() {
			c := Column{Reference: s, Current: sorted(y)}
			Measure(&c, Limits{})
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				c.do()
			}
		})
	}
}

// The exact p-value takes longest of all for two samples at its bound.
func BenchmarkExactP(b *testing.B) {
	x, y := sorted(walk(10_000, 1)), sorted(walk(9_999, 2))
	for b.Loop() {
		KolmogorovSmirnov(x, y)
	}
}

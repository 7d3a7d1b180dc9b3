package drift

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"
)

// result is what scipy gave for two samples or counts.
type result struct {
	Name               string
	Reference, Current []float64
	KS                 [2]float64
	Wasserstein        float64
	Normed             float64
	JensenShannon      float64
	PSI                float64
	ChiSquare          [2]*float64
	// Of samples that both sides make.
	N1, N2       int
	Shift, Scale float64
}

type golden struct {
	Scipy, Numpy string
	Samples      []result
	Walks        []result
	Counts       []result
	Kolmogorov   [][3]float64
	Chi2         [][3]float64
	Z            [][6]float64
}

func load(t testing.TB) *golden {
	t.Helper()
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	g := &golden{}
	if err := json.Unmarshal(data, g); err != nil {
		t.Fatal(err)
	}
	return g
}

// tolerance is relative above 1 and absolute below.
const tolerance = 1e-9

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.IsInf(want, 1) && math.IsInf(got, 1) {
		return
	}
	if d := math.Abs(got - want); !(d <= tolerance*max(1, math.Abs(want))) {
		t.Errorf("%s: got %.17g, scipy has %.17g, off by %.3g", what, got, want, d)
	}
}

func orInf(v *float64) float64 {
	if v == nil {
		return math.Inf(1)
	}
	return *v
}

// walk is golden.py's.
func walk(n int, seed uint64) []float64 {
	out := make([]float64, n)
	for i := range out {
		seed = seed*6364136223846793005 + 1442695040888963407
		out[i] = float64(seed>>11) / (1 << 53)
	}
	return out
}

func compare(t *testing.T, r *result, reference, current []float64) {
	t.Helper()
	a, _ := Sort(reference)
	b, _ := Sort(current)
	d, p := KolmogorovSmirnov(a, b)
	near(t, r.Name+": ks", d, r.KS[0])
	near(t, r.Name+": ks p", p, r.KS[1])
	near(t, r.Name+": wasserstein", Wasserstein(a, b), r.Wasserstein)
	near(t, r.Name+": normed wasserstein", NormedWasserstein(a, b), r.Normed)
	x, y := binned(a, b)
	near(t, r.Name+": jensen-shannon", JensenShannon(x, y), r.JensenShannon)
	near(t, r.Name+": psi", PSI(shares(x), shares(y)), r.PSI)
	chi, chiP := ChiSquare(y, x)
	near(t, r.Name+": chi-square", chi, orInf(r.ChiSquare[0]))
	near(t, r.Name+": chi-square p", chiP, orInf(r.ChiSquare[1]))
}

func TestSamplesEqualScipy(t *testing.T) {
	for _, r := range load(t).Samples {
		compare(t, &r, r.Reference, r.Current)
	}
}

func TestLargeSamplesEqualScipy(t *testing.T) {
	for _, r := range load(t).Walks {
		b := walk(r.N2, 2)
		for i := range b {
			b[i] = b[i]*r.Scale + r.Shift
		}
		compare(t, &r, walk(r.N1, 1), b)
	}
}

func TestCountsEqualScipy(t *testing.T) {
	for _, r := range load(t).Counts {
		c := Column{Category: true, ReferenceCounts: r.Reference, CurrentCounts: r.Current}
		all, _ := c.byCounts()
		near(t, r.Name+": jensen-shannon", all[0].Value, r.JensenShannon)
		near(t, r.Name+": psi", all[1].Value, r.PSI)
		near(t, r.Name+": chi-square", all[2].Value, orInf(r.ChiSquare[0]))
		near(t, r.Name+": chi-square p", all[2].P, orInf(r.ChiSquare[1]))
	}
}

func TestDistributionsEqualScipy(t *testing.T) {
	g := load(t)
	for _, k := range g.Kolmogorov {
		near(t, fmt.Sprintf("kstwo.sf(%v, %v)", k[1], k[0]), clip(kolmogorov(int(k[0]), k[1])), k[2])
	}
	for _, c := range g.Chi2 {
		near(t, fmt.Sprintf("chi2.sf(%v, %v)", c[1], c[0]), gammaQ(c[0]/2, c[1]/2), c[2])
	}
	for _, z := range g.Z {
		s, p := ZTest(z[0], z[1], z[2], z[3])
		near(t, fmt.Sprintf("z of %v", z[:4]), s, z[4])
		near(t, fmt.Sprintf("p of z of %v", z[:4]), p, z[5])
	}
}

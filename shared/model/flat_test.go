package model

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

// TestFlatEqualsLeaves holds the walking of trees here to that of package leaves, bit
// by bit, on the trained models and on forests of any shape, with every way to treat
// what is missing.
func TestFlatEqualsLeaves(t *testing.T) {
	names, err := filepath.Glob("testdata/models/*.gz")
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, name := range names {
		name, suffix, _ := strings.Cut(strings.TrimSuffix(filepath.Base(name), ".gz"), ".")
		parse, ok := map[string]func([]byte) (*forest, error){"json": parseXGBoost, "txt": parseLightGBM}[suffix]
		if !ok {
			continue
		}
		f, err := parse(unzip(t, name+"."+suffix))
		if err != nil {
			t.Fatal(err)
		}
		if equalsLeaves(t, name, f, drawRows(5, 501)) {
			compared++
		}
	}
	if compared < 10 {
		t.Errorf("only %d of the trained models were compared", compared)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		f := &forest{features: 1 + random.IntN(12), groups: 1 + random.IntN(3), average: random.IntN(2) == 0}
		f.bias = make([]float64, f.groups)
		for range f.groups * random.IntN(12) {
			f.trees = append(f.trees, randomTree(random, f.features, random.IntN(70)))
		}
		if len(f.trees) == 0 {
			continue
		}
		if err := f.check(); err != nil {
			t.Fatal(err)
		}
		rows := make([]float64, f.features*(1+random.IntN(11)))
		for i := range rows {
			rows[i] = randomValue(random)
		}
		if !equalsLeaves(t, "a random forest", f, rows) {
			t.Fatal("a forest without categories was not flattened")
		}
	}
}

func equalsLeaves(t *testing.T, name string, f *forest, rows []float64) bool {
	t.Helper()
	flat, ok := flatten(f)
	if !ok {
		return false
	}
	trees, err := f.build()
	if err != nil {
		t.Fatal(err)
	}
	n := len(rows) / f.features
	rows = rows[:n*f.features]
	got, want := make([]float64, n*f.groups), make([]float64, n*f.groups)
	flat.sums(got, rows, f.features, make([]float64, lanes*len(flat.columns)))
	for i := range n {
		if err := trees.Predict(rows[i*f.features:(i+1)*f.features], 0, want[i*f.groups:(i+1)*f.groups]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range want {
		if math.Float64bits(got[i]) != math.Float64bits(want[i]) {
			t.Fatalf("%s: sum %d is %v, leaves has %v", name, i, got[i], want[i])
		}
	}
	return true
}

// values are those on which nodes are easily wrong.
var values = []float64{math.NaN(), 0, math.Copysign(0, -1), 1e-36, -1e-36, 1e-35, -1e-35, 1, -1, 0.5, math.MaxFloat32, -math.MaxFloat32}

func randomValue(random *rand.Rand) float64 {
	if random.IntN(2) == 0 {
		return values[random.IntN(len(values))]
	}
	return float64(random.IntN(9)-4) / 2
}

// randomTree grows a tree at random leaves, so that some ways are long.
func randomTree(random *rand.Rand, features, splits int) tree {
	t := tree{leaf: []float64{random.NormFloat64()}}
	for n := range splits {
		leaf := random.IntN(len(t.leaf))
		for _, children := range [][]int32{t.left, t.right} {
			for i, c := range children {
				if c == int32(^leaf) {
					children[i] = int32(n)
				}
			}
		}
		threshold := randomValue(random)
		switch {
		case math.IsNaN(threshold):
			threshold = math.Inf(1)
		case random.IntN(20) == 0:
			threshold = math.Inf(-1)
		}
		t.feature = append(t.feature, int32(random.IntN(features)))
		t.threshold = append(t.threshold, threshold)
		t.decision = append(t.decision, uint8(random.IntN(3)<<2|random.IntN(2)<<1))
		t.left = append(t.left, int32(^leaf))
		t.right = append(t.right, int32(^len(t.leaf)))
		t.leaf = append(t.leaf, random.NormFloat64())
	}
	return t
}

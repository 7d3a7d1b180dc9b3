package model

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
)

const fixtureFeatures = 8

// drawRows draws the rows of testdata/fixtures.py: ties on thresholds, small whole
// numbers, and a tenth of the values missing.
func drawRows(seed uint64, count int) []float64 {
	next := func() uint64 {
		seed += 0x9E3779B97F4A7C15
		z := seed
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		return z ^ z>>31
	}
	rows := make([]float64, count*fixtureFeatures)
	for i := range rows {
		missing := (next()>>32)%10 == 0
		v := next()
		unit := float64(v>>40) / (1 << 24)
		var x float64
		switch i % fixtureFeatures {
		case 0:
			x = float64(v % 10)
		case 1:
			x = float64(v%200_000) / 100
		case 2:
			x = float64(v%8) - 1
		case 3:
			x = unit*2 - 1
		case 4:
			x = float64(v % 50)
		case 5:
			x = float64(v%1000) / 8
		case 6:
			x = unit * unit * unit * 1000
		case 7:
			x = float64(v % 2)
		}
		rows[i] = float64(float32(x))
		if missing {
			rows[i] = math.NaN()
		}
	}
	return rows
}

func unzip(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "models", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if data, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	return data
}

// expected reads what the training library predicts.
func expected(t testing.TB, name string) (rows int, margins, predictions []float64) {
	t.Helper()
	data := unzip(t, name+".expected")
	size := int(binary.LittleEndian.Uint32(data))
	rows = int(binary.LittleEndian.Uint32(data[4:]))
	data = data[8:]
	values := make([]float64, len(data)/size)
	for i := range values {
		if size == 4 {
			values[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
		} else {
			values[i] = math.Float64frombits(binary.LittleEndian.Uint64(data[8*i:]))
		}
	}
	return rows, values[:len(values)/2], values[len(values)/2:]
}

func fixture(t testing.TB, name, suffix string, transform *Transform, wide bool) *Model {
	t.Helper()
	parse := parseXGBoost
	if suffix == "txt" {
		parse = parseLightGBM
	}
	f, err := parse(unzip(t, name+"."+suffix))
	if err != nil {
		t.Fatal(err)
	}
	m, err := newModel(f, transform, wide)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEqualsTrainingLibrary holds every kind of model against the library that made
// it. XGBoost sums in float32, so its margins are allowed what that loses: two parts
// in a million of the margin, or of 1 for smaller ones.
func TestEqualsTrainingLibrary(t *testing.T) {
	const float32Sums, float64Sums = 2e-6, 1e-12
	for _, c := range []struct {
		name, suffix string
		transform    *Transform
		wide         bool // LightGBM's own models
		whole        bool // without missing values
		margin       float64
		prediction   float64
	}{
		{name: "squarederror", suffix: "json", margin: float32Sums, prediction: float32Sums},
		{name: "binary", suffix: "json", margin: float32Sums, prediction: 3.6e-7},
		{name: "poisson", suffix: "json", margin: float32Sums, prediction: float32Sums},
		{name: "tweedie", suffix: "json", margin: float32Sums, prediction: float32Sums},
		{name: "softprob", suffix: "json", margin: float32Sums, prediction: 3.6e-7},
		{name: "dart", suffix: "json", margin: float32Sums, prediction: 3.6e-7},
		{name: "parallel", suffix: "json", margin: float32Sums, prediction: 3.6e-7},
		{name: "exact", suffix: "json", margin: float32Sums, prediction: 3.6e-7},
		{name: "constant", suffix: "json", margin: float32Sums, prediction: float32Sums},
		{name: "forest", suffix: "txt", transform: &Transform{Kind: Identity}, margin: 1e-14, prediction: 1e-14},
		{name: "isolation", suffix: "txt", transform: &Transform{Kind: Isolation, MaxSamples: 256}, whole: true, margin: float64Sums, prediction: 1e-15},
		{name: "lightgbm-binary", suffix: "txt", wide: true, margin: float64Sums, prediction: float64Sums},
		{name: "lightgbm-multiclass", suffix: "txt", wide: true, margin: float64Sums, prediction: float64Sums},
		{name: "lightgbm-rf", suffix: "txt", wide: true, margin: float64Sums, prediction: float64Sums},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fixture(t, c.name, c.suffix, c.transform, c.wide)
			n, margins, predictions := expected(t, c.name)
			if len(margins) != n*m.Outputs() {
				t.Fatalf("%d margins for %d rows of %d outputs", len(margins), n, m.Outputs())
			}
			rows := drawRows(2, n)
			if c.whole {
				for i, v := range rows {
					if math.IsNaN(v) {
						rows[i] = 3
					}
				}
			}
			out := make([]float64, len(margins))
			if err := m.Margins(out, rows); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d rows, %d trees: margins within %.2g", n, m.Trees(), near(t, "margin", out, margins, c.margin))
			m.transform.apply(out, m.Outputs()) // as Predict does, without walking the trees again
			t.Logf("predictions within %.2g", near(t, "prediction", out, predictions, c.prediction))
			// Single rows take the same way as batches.
			one := make([]float64, m.Outputs())
			for i := 0; i < n; i += 97 {
				if err := m.Predict(one, rows[i*m.Features():(i+1)*m.Features()]); err != nil {
					t.Fatal(err)
				}
				for j, v := range one {
					if v != out[i*m.Outputs()+j] {
						t.Fatalf("row %d alone: %v, in the batch %v", i, v, out[i*m.Outputs()+j])
					}
				}
			}
		})
	}
}

// near returns the largest difference, relative to the larger of want and 1.
func near(t *testing.T, what string, got, want []float64, limit float64) float64 {
	t.Helper()
	worst := 0.0
	for i := range want {
		d := math.Abs(got[i]-want[i]) / max(1, math.Abs(want[i]))
		if !(d <= limit) { // also when it is NaN
			t.Fatalf("%s %d: %v, want %v: off by %g", what, i, got[i], want[i], d)
		}
		worst = max(worst, d)
	}
	return worst
}

func TestPredictAllocatesNothing(t *testing.T) {
	m := fixture(t, "softprob", "json", nil, false)
	rows, out := drawRows(3, 100), make([]float64, 300)
	if n := testing.AllocsPerRun(100, func() {
		if err := m.Predict(out, rows); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPredictRefusesOtherLengths(t *testing.T) {
	m := fixture(t, "squarederror", "json", nil, false)
	for _, c := range []struct{ out, rows int }{{1, 7}, {1, 9}, {2, 8}, {0, 8}, {1, 0}} {
		if err := m.Predict(make([]float64, c.out), make([]float64, c.rows)); err == nil {
			t.Errorf("%d values into room for %d: no error", c.rows, c.out)
		}
	}
	if err := m.Predict(nil, nil); err != nil {
		t.Errorf("no rows: %v", err)
	}
}

func BenchmarkPredict(b *testing.B) {
	m := fixture(b, "binary", "json", nil, false)
	for _, c := range []struct {
		name string
		rows int
	}{{"single", 1}, {"batch=10", 10}, {"batch=100", 100}, {"batch=1000", 1000}} {
		b.Run(c.name, func(b *testing.B) {
			const all = 10_000
			rows, out := drawRows(2, all), make([]float64, c.rows)
			step, at := c.rows*m.Features(), 0
			b.ReportAllocs()
			for b.Loop() {
				if err := m.Predict(out, rows[at:at+step]); err != nil {
					b.Fatal(err)
				}
				if at += step; at == len(rows) {
					at = 0
				}
			}
			b.ReportMetric(float64(b.N*c.rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

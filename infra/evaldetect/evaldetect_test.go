package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
)

// A slice of what `make eval-detect` measures, so that it cannot rot unseen. The bounds
// are below what was measured, since a few false alarms weigh much in a small slice.
func TestDetectionIsAsGoodAsItWas(t *testing.T) {
	t.Parallel()
	forest, err := filepath.Abs("../training/starter/anomaly")
	if err != nil {
		t.Fatal(err)
	}
	for name, least := range map[string]float64{"normal": 0.85, "production": 0.85} {
		o, err := evaluate(name, scope{seed: 1, servers: 4, services: 2, live: 24 * time.Hour, readings: 3000, forest: forest,
			start: time.Date(2026, 3, 12, 9, 0, 0, 0, time.UTC)})
		if err != nil {
			t.Fatal(err)
		}
		if f1 := o.total.f1(); !(f1 >= least) || o.total.episodes < 10 {
			t.Errorf("%s: F1 %.3f of %d anomalies, want %.2f", name, f1, o.total.episodes, least)
		}
		for _, typ := range datacenter.Types() {
			if v := o.types[typ]; v.episodes > 0 && v.recall() < 0.5 {
				t.Errorf("%s: %s: %d of %d are found", name, typ, v.found, v.episodes)
			}
		}
		if delay := o.total.delay(); !(delay < 5) {
			t.Errorf("%s: a median delay of %g readings", name, delay)
		}
	}
}

// By NAB's rules, by hand: 1000 readings, so that the first 150 do not count, and a
// window of 100.
func TestNABScore(t *testing.T) {
	windows := [][2]int{{500, 599}}
	late := (2/(1+math.Exp(-5*0.5)) - 1) / (2/(1+math.Exp(-5)) - 1)
	for _, c := range []struct {
		name   string
		alarms []int
		want   float64
	}{
		{"nothing", nil, -1},
		{"at the first reading", []int{500}, 1},
		{"in the middle", []int{550}, late},
		{"the earliest counts", []int{550, 500, 599}, 1},
		{"in the probation", []int{10, 149, 500}, 1},
		{"before the window", []int{200, 500}, 1 - 0.11},
		{"just behind the window", []int{500, 600}, 1 + 0.11*(2/(1+math.Exp(5.0/99))-1)},
		{"far behind", []int{500, 990}, 1 - 0.11},
	} {
		if raw, _, _, _ := nabScore(1000, windows, c.alarms); math.Abs(raw-c.want) > 1e-9 {
			t.Errorf("%s: %g, want %g", c.name, raw, c.want)
		}
	}
	perfect := []nabResult{{raw: 1, found: 1}, {raw: 0}}
	if got := normalised(perfect); got != 100 {
		t.Errorf("perfect is %g", got)
	}
	if got := normalised([]nabResult{{raw: -1, missed: 1}}); got != 0 {
		t.Errorf("nothing is %g", got)
	}
}

// The numbers are those of the authors' package, vus 0.0.6, for the same series
// (RangeAUC_volume_opt, its last value).
func TestVUS(t *testing.T) {
	const n = 400
	scores := make([]float64, n)
	for i := range scores {
		scores[i] = float64((i*7919)%1009) / 1009
		if i >= 100 && i < 118 {
			scores[i]++
		}
		if i >= 300 && i < 330 {
			scores[i] += 0.4
		}
	}
	windows := [][2]int{{105, 124}, {310, 339}}
	for window, want := range map[int]float64{0: 0.45905011127186307, 10: 0.5278334559069081, 100: 0.7840500549239352} {
		if got := vusPR(scores, windows, window); math.Abs(got-want) > 1e-9 {
			t.Errorf("window %d: %.12f, want %.12f", window, got, want)
		}
	}
}

// A folder as NAB's is read and reported; without one that is said.
func TestReport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var csv strings.Builder
	csv.WriteString("timestamp,value\n")
	at := time.Date(2014, 4, 1, 0, 0, 0, 0, time.UTC)
	for i := range 1500 {
		value := 50 + float64(i*7919%13)
		if i >= 1200 && i < 1210 {
			value = 400
		}
		csv.WriteString(at.Add(time.Duration(i)*5*time.Minute).Format(nabTime) + "," + number(value, 2) + "\n")
	}
	begin, end := at.Add(1150*5*time.Minute), at.Add(1300*5*time.Minute)
	const label = "2006-01-02 15:04:05.000000"
	for name, text := range map[string]string{"a.csv": csv.String(), "windows.json": `{"a.csv":[["` + begin.Format(label) + `","` + end.Format(label) + `"]]}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	args := []string{"-only", "dev", "-servers", "1", "-services", "1", "-readings", "200", "-forest", "", "-nab"}
	if err := run(t.Context(), append(args, dir), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "a.csv                                               1      1      0") {
		t.Errorf("%s", &out)
	}
	out.Reset()
	if err := run(t.Context(), append(args, ""), &out); err != nil || !strings.Contains(out.String(), "NAB: skipped") {
		t.Errorf("%v\n%s", err, &out)
	}
}

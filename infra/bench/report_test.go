package main

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseBenchmark(t *testing.T) {
	r, ok := parseBenchmark("BenchmarkCheck/connect-2  \t 1000\t  812.5 ns/op\t 830.1 MB/s\t 1230000 events/s\t  24.0 times_python\t 48 B/op\t 2 allocs/op\n")
	if !ok || r.Name != "Check/connect, 24 times_python" || r.get("ns/op") != 812.5 || r.get(colRate) != 1230000 || r.get("allocs/op") != 2 {
		t.Errorf("row %+v, %t", r, ok)
	}
	if r, ok := parseBenchmark("BenchmarkX-2 10 5 ns/op"); !ok || !math.IsNaN(r.get("MB/s")) {
		t.Errorf("row %+v, %t: what was not measured is not NaN", r, ok)
	}
	for _, line := range []string{"ok  \tpackage\t1.2s", "pkg: x", "BenchmarkX-2", "Benchmark of something else here"} {
		if _, ok := parseBenchmark(line); ok {
			t.Errorf("%q is taken for a result", line)
		}
	}
}

func TestBenchmarked_skipsNestedModules(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{
		"go.mod":            "module x",
		"a/a_test.go":       "package a\n\nfunc BenchmarkOne(b *testing.B) {}\n\nfunc BenchmarkTwo(b *testing.B) {}\n",
		"b/b_test.go":       "package b\n\n// func BenchmarkNone\n",
		"nested/go.mod":     "module y",
		"nested/n_test.go":  "package n\n\nfunc BenchmarkThree(b *testing.B) {}\n",
		".hidden/h_test.go": "package h\n\nfunc BenchmarkFour(b *testing.B) {}\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	packages, count, err := benchmarked(root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"./a"}, packages); diff != "" || count != 2 {
		t.Errorf("%d benchmarks, packages (-want +got):\n%s", count, diff)
	}
}

func TestReport_comparesWithTheBudgets(t *testing.T) {
	r := report{began: time.Now(), Sections: []section{{Title: "a table", Rows: []row{{ID: "http-single", Name: "single"}, {ID: "e2e-paced", Name: "paced"}}}}}
	r.Sections[0].Rows[0].add(colRate, 30_000)
	r.Sections[0].Rows[0].add(colP99, math.NaN())
	r.Sections[0].Rows[1].add(colRate, 5000)
	r.Sections[0].Rows[1].add(colP99, 251)
	r.finish()
	verdicts := map[string]string{}
	for _, b := range r.Budgets {
		verdicts[b.id] = b.Verdict
	}
	if verdicts["http-single"] != "must reached" || verdicts["e2e-paced"] != "SHORT" || verdicts["reference"] != "not measured" {
		t.Errorf("verdicts %v", verdicts)
	}
	var text bytes.Buffer
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a table", "30,000", "251", "single", "SHORT"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report does not contain %q:\n%s", want, text.String())
		}
	}
	path := filepath.Join(t.TempDir(), "report.json")
	if err := r.writeJSON(path); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(content) || !bytes.Contains(content, []byte(`"value": null`)) {
		t.Errorf("JSON: %s", content)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 5: "5", 1234567: "1,234,567", -1000: "-1,000", 123.4: "123", 12.34: "12.3", 1.234: "1.23", 0.001: "0.00"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
	if got := number(math.NaN()); got != "-" {
		t.Errorf("NaN is written %q", got)
	}
}

// This process is its own specimen.
func TestUsage_ofThisProcess(t *testing.T) {
	u, err := processUsage(os.Getpid())
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	if u.rss < megabyte || u.peak < u.rss || u.cpu < 0 {
		t.Errorf("usage %+v", u)
	}
	tree, err := treeUsage(os.Getpid())
	if err != nil || total(tree).rss < u.rss/2 || tree[processName(os.Getpid())].rss == 0 {
		t.Errorf("tree %+v, %v; the process alone %+v", tree, err, u)
	}
	if all := machineCPU(); all < u.cpu {
		t.Errorf("the machine has used %v, this process %v of it", all, u.cpu)
	}
}

func TestRun_mistakesAreExplained(t *testing.T) {
	for args, want := range map[string]string{
		"walk":                     `there is no part "walk"; parts are go, http, e2e, datacenter, reference, telemetry`,
		"-bin /nowhere http":       "there is no program /nowhere/loadgen; run make build",
		"-bin /nowhere e2e":        "there is no program /nowhere/millrace; run make build",
		"-bin /nowhere -bogus e2e": "flag provided but not defined",
		"-bin /nowhere reference":  "there is no program /nowhere/loadgen",
		"-e2e-part some e2e":       `-e2e-part "some" is none of datacenter, all, features, spine`,
	} {
		var out, log bytes.Buffer
		err := run(t.Context(), strings.Fields(args), &out, &log)
		if err == nil || !strings.Contains(log.String()+err.Error(), want) {
			t.Errorf("%s: %v, %s, want something with %q", args, err, log.String(), want)
		}
	}
}

// Of 100 draws the interval covers the true median 95 times in 100, or a little more.
func TestMedianBetween(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	covered := 0
	const rounds = 2000
	for range rounds {
		values := make([]float64, 100)
		for i := range values {
			values[i] = random.ExpFloat64()
		}
		if from, to := medianBetween(values); from <= math.Ln2 && math.Ln2 <= to {
			covered++
		}
	}
	if share := float64(covered) / rounds; share < 0.94 || share > 0.98 {
		t.Errorf("it covers the median in %.3f of all cases", share)
	}
	if from, to := medianBetween([]float64{3, 1, 2}); from != 1 || to != 3 {
		t.Errorf("of three values it is %v to %v", from, to)
	}
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// goBenchmarks runs the benchmarks of the packages that have some, shortly: the
// numbers tell orders of magnitude and changes, not the last per cent.
func (b *bench) goBenchmarks(ctx context.Context) ([]section, error) {
	packages, count, err := benchmarked(b.root)
	if err != nil {
		return nil, err
	}
	// About a minute for all, whatever their number.
	each := min(time.Minute/time.Duration(max(count, 1)*2), 300*time.Millisecond)
	args := append([]string{"test", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", each.String()}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.root
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, runErr := cmd.Output()
	s := section{Title: fmt.Sprintf("Go benchmarks, %s each (go %s)", each, strings.Join(args[:5], " "))}
	module := ""
	for line := range strings.Lines(string(out)) {
		if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "pkg: "); ok {
			module = pkg[strings.LastIndex(pkg, "millrace/")+len("millrace/"):]
		}
		if r, ok := parseBenchmark(line); ok {
			r.Name = module + " " + r.Name
			s.Rows = append(s.Rows, r)
		}
	}
	if runErr != nil {
		runErr = fmt.Errorf("%w\n%s%s", runErr, tail(out, 20), tail(failed.Bytes(), 20))
	}
	return []section{s}, runErr
}

var benchmarkFunc = regexp.MustCompile(`(?m)^func Benchmark\w+\(`)

// benchmarked lists the packages of the module that have benchmarks, and how many
// functions there are. Nested modules are left out.
func benchmarked(root string) (packages []string, count int, err error) {
	found := map[string]int{}
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path == root {
				return nil
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := len(benchmarkFunc.FindAll(content, -1)); n > 0 {
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			found["./"+filepath.ToSlash(folder)] += n
		}
		return nil
	})
	for folder, n := range found {
		packages = append(packages, folder)
		count += n
	}
	sort.Strings(packages)
	return packages, count, err
}

// parseBenchmark reads a line such as
//
//	BenchmarkCheck/connect-2  1000  812.5 ns/op  830.1 MB/s  1230000 events/s  0 B/op  0 allocs/op
func parseBenchmark(line string) (row, bool) {
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
		return row{}, false
	}
	values := map[string]float64{}
	for i := 2; i+1 < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return row{}, false
		}
		values[fields[i+1]] = v
	}
	name := strings.TrimPrefix(fields[0], "Benchmark")
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		name = name[:i]
	}
	r := row{Name: name}
	for _, column := range []string{"ns/op", "MB/s", colRate, "B/op", "allocs/op"} {
		v, ok := values[column]
		if !ok {
			v = math.NaN()
		}
		delete(values, column)
		r.add(column, v)
	}
	// Units of a benchmark's own have no column.
	for _, unit := range slices.Sorted(maps.Keys(values)) {
		r.Name += fmt.Sprintf(", %s %s", number(values[unit]), unit)
	}
	return r, true
}

// tail is the last lines of an output.
func tail(out []byte, lines int) string {
	all := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n") + "\n"
}

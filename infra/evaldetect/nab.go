package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/shared/anomaly"
)

// series is one series of the Numenta Anomaly Benchmark.
type series struct {
	name   string
	times  []time.Time
	values []float64
	// windows are the first and last places of what is labelled as an anomaly.
	windows [][2]int
}

const nabTime = "2006-01-02 15:04:05"

// readNAB reads all series of a folder: CSV files, and windows.json with their labels
// by file name.
func readNAB(dir string) ([]series, error) {
	text, err := os.ReadFile(filepath.Join(dir, "windows.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the labels: %w", err)
	}
	var labels map[string][][2]string
	if err := json.Unmarshal(text, &labels); err != nil {
		return nil, fmt.Errorf("reading windows.json: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.csv"))
	if err != nil {
		return nil, err
	}
	var all []series
	for _, file := range files {
		name := filepath.Base(file)
		windows, ok := labels[name]
		if !ok {
			return nil, fmt.Errorf("windows.json has nothing of %s", name)
		}
		s, err := readSeries(file)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		for _, w := range windows {
			from, err1 := time.Parse("2006-01-02 15:04:05.000000", w[0])
			to, err2 := time.Parse("2006-01-02 15:04:05.000000", w[1])
			if err1 != nil || err2 != nil {
				return nil, fmt.Errorf("windows.json: %s: %v is no window", name, w)
			}
			first := sort.Search(len(s.times), func(i int) bool { return !s.times[i].Before(from) })
			last := sort.Search(len(s.times), func(i int) bool { return s.times[i].After(to) }) - 1
			if first > last {
				return nil, fmt.Errorf("windows.json: %s: nothing is in window %v", name, w)
			}
			s.windows = append(s.windows, [2]int{first, last})
		}
		slices.SortFunc(s.windows, func(a, b [2]int) int { return a[0] - b[0] })
		s.name = name
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there are no series in %s", dir)
	}
	return all, nil
}

func readSeries(file string) (s series, err error) {
	f, err := os.Open(file)
	if err != nil {
		return s, err
	}
	defer func() { _ = f.Close() }()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return s, err
	}
	for i, row := range rows[min(1, len(rows)):] {
		at, err := time.Parse(nabTime, row[0])
		if err != nil {
			return s, fmt.Errorf("row %d: %w", i+1, err)
		}
		value, err := strconv.ParseFloat(row[1], 64)
		if err != nil {
			return s, fmt.Errorf("row %d: %w", i+1, err)
		}
		s.times, s.values = append(s.times, at), append(s.values, value)
	}
	return s, nil
}

// detectNAB gives a series to the detector as it would come: readings one after the
// other, a model every three hours from what was until then. alarms are the readings by which
// an anomaly was detected; distances are how odd each reading was.
func detectNAB(s *series) (alarms []int, distances []float64, err error) {
	plan := metricPlan("nab", "value")
	var state anomaly.State
	entity := anomaly.Entity{Models: make([]*anomaly.Model, 1)}
	var buckets []anomaly.Bucket
	var events []anomaly.Event
	distances = make([]float64, len(s.values))
	training := plan.Training
	var next time.Time
	for i, v := range s.values {
		at := s.times[i]
		if !at.Before(next) {
			next = at.Add(3 * time.Hour)
			from := at.Add(-history).UnixNano() / int64(training.Step)
			for len(buckets) > 0 && buckets[0].Number < from {
				buckets = buckets[1:]
			}
			if entity.Models[0], err = train(training, buckets, at); err != nil {
				return nil, nil, err
			}
		}
		r := anomaly.Reading{Time: at, Key: uint32(i), Entity: s.name, Values: []float64{v}}
		events, _, _ = plan.Observe(&state, &entity, &r, events[:0])
		for _, e := range events {
			if e.Kind == anomaly.Detected {
				alarms = append(alarms, i)
			}
		}
		distances[i] = state.Strength(0)
		number := at.UnixNano() / int64(training.Step)
		if n := len(buckets); n > 0 && buckets[n-1].Number == number {
			b := &buckets[n-1]
			b.Mean = (b.Mean*float64(b.N) + v) / float64(b.N+1)
			b.N, b.Low, b.High = b.N+1, min(b.Low, v), max(b.High, v)
			continue
		}
		buckets = append(buckets, anomaly.Bucket{Number: number, N: 1, Mean: v, Low: v, High: v})
	}
	return alarms, distances, nil
}

// NAB's standard profile.
const (
	weightFalse  = 0.11
	weightMissed = 1.0
)

// nabScore is the raw score of a series: of each window its earliest alarm, the more
// the earlier, and less for each false alarm, the more the farther it is behind a
// window. Nothing counts in the first 15 percent.
func nabScore(n int, windows [][2]int, alarms []int) (raw float64, found, missed, wrong int) {
	probation := min(n*15/100, 750)
	sigmoid := func(x float64) float64 {
		if x >= 3 {
			return -1
		}
		return 2/(1+math.Exp(5*x)) - 1
	}
	full := sigmoid(-1)
	best := make([]float64, len(windows))
	hit := make([]bool, len(windows))
	for _, a := range alarms {
		if a < probation {
			continue
		}
		inside, before := -1, -1
		for w, span := range windows {
			if a >= span[0] && a <= span[1] {
				inside = w
			}
			if a > span[1] {
				before = w
			}
		}
		switch {
		case inside >= 0:
			span := windows[inside]
			position := -float64(span[1]-a+1) / float64(span[1]-span[0]+1)
			best[inside], hit[inside] = max(best[inside], sigmoid(position)/full), true
		case before >= 0:
			span := windows[before]
			raw += weightFalse * sigmoid(float64(a-span[1])/max(float64(span[1]-span[0]), 1))
			wrong++
		default:
			raw -= weightFalse
			wrong++
		}
	}
	for w, span := range windows {
		switch {
		case span[1] < probation:
		case hit[w]:
			raw += best[w]
			found++
		default:
			raw -= weightMissed
			missed++
		}
	}
	return raw, found, missed, wrong
}

// nabResult is what came out for one series.
type nabResult struct {
	series               *series
	raw                  float64
	found, missed, wrong int
	vus                  float64 // NaN without labels
}

// normalised is NAB's score of many series: 0 for saying nothing, 100 for all windows
// at their first reading and nothing else.
func normalised(results []nabResult) float64 {
	var raw, windows float64
	for _, r := range results {
		raw += r.raw
		windows += float64(r.found + r.missed)
	}
	null := -weightMissed * windows
	return 100 * (raw - null) / (windows - null)
}

func evaluateNAB(dir string) ([]nabResult, error) {
	all, err := readNAB(dir)
	if err != nil {
		return nil, err
	}
	var results []nabResult
	for i := range all {
		s := &all[i]
		alarms, distances, err := detectNAB(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		r := nabResult{series: s, vus: vusPR(distances, s.windows, vusWindow)}
		r.raw, r.found, r.missed, r.wrong = nabScore(len(s.values), s.windows, alarms)
		results = append(results, r)
	}
	return results, nil
}

func reportNAB(dir string, w io.Writer) error {
	results, err := evaluateNAB(dir)
	if err != nil {
		return err
	}
	var vus float64
	var labelled, wrong int
	fmt.Fprintf(w, "%-45s %7s %6s %6s %9s %7s\n", "NAB series", "windows", "found", "false", "raw score", "VUS-PR")
	for _, r := range results {
		fmt.Fprintf(w, "%-45s %7d %6d %6d %9.2f %7s\n", r.series.name, len(r.series.windows), r.found, r.wrong, r.raw, number(r.vus, 3))
		wrong += r.wrong
		if !math.IsNaN(r.vus) {
			vus, labelled = vus+r.vus, labelled+1
		}
	}
	fmt.Fprintf(w, "NAB, standard profile, thresholds as contracts have them by default: %.1f, with %d false alarms; VUS-PR (softened by up to %d readings) %.3f on average\n",
		normalised(results), wrong, vusWindow, vus/float64(labelled))
	return nil
}

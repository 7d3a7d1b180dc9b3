package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is everything that was measured.
type report struct {
	Commit   string    `json:"commit"`
	Time     time.Time `json:"time"`
	CPU      string    `json:"cpu"`
	Cores    int       `json:"cores"`
	Go       string    `json:"go"`
	Seconds  float64   `json:"seconds"`
	Load     string    `json:"load_average_before"`
	Sections []section `json:"sections"`
	Budgets  []budget  `json:"budgets"`
	began    time.Time
}

// section is one table.
type section struct {
	Title string   `json:"title"`
	Rows  []row    `json:"rows"`
	Notes []string `json:"notes,omitempty"`
}

// row is one measurement; all rows of a section have the same columns.
type row struct {
	// ID names the row for the comparison with the budgets, if it takes part.
	ID     string  `json:"id,omitempty"`
	Name   string  `json:"name"`
	Values []value `json:"values"`
}

// value is one number with its unit in the name. NaN is a number that is not
// known; it is left out of the JSON.
type value struct {
	Name  string  `json:"name"`
	Value float64 `json:"-"`
	JSON  any     `json:"value"`
}

func (r *row) add(name string, v float64) {
	x := value{Name: name, Value: v}
	if !math.IsNaN(v) && !math.IsInf(v, 0) {
		x.JSON = v
	}
	r.Values = append(r.Values, x)
}

func (r *row) get(name string) float64 {
	for _, v := range r.Values {
		if v.Name == name {
			return v.Value
		}
	}
	return math.NaN()
}

// Columns that more than one table has. The cores that other programs kept busy
// meanwhile tell how much a row is worth.
const (
	colRate   = "events/s"
	colP50    = "p50 ms"
	colP99    = "p99 ms"
	colMax    = "max ms"
	colCPU    = "CPU s/M events"
	colLoader = "loader CPU s/M"
	colRSS    = "RSS MB"
	colPeak   = "peak RSS MB"
	colErrors = "errors"
	colOthers = "others' cores"
	colStart  = "ms to first 200"
	colIdle   = "idle RSS MB"
	colRatio  = "times the reference per CPU-second"
)

// budget compares a measurement with what design.md asks for.
type budget struct {
	What     string   `json:"what"`
	Must     float64  `json:"must"`
	Aim      float64  `json:"aim"`
	Measured *float64 `json:"measured"` // null: not measured in this run
	Verdict  string   `json:"verdict"`

	id, column string
	atMost     bool
}

// budgets are the lines of the budget table that the measured parts bear on.
func budgets() []budget {
	return []budget{
		{What: "validate over HTTP, single binary events, events/s", Must: 25_000, Aim: 40_000, id: "http-single", column: colRate},
		{What: "validate over HTTP, batches of 100, events/s", Must: 80_000, Aim: 200_000, id: "http-batch", column: colRate},
		{What: "validate in process against Python, per CPU-second, times", Must: 20, Aim: 50, id: "reference", column: colRatio},
		{What: "raw topic to verdict topic in the runner, as fast as possible, events/s", Must: 10_000, Aim: 25_000, id: "e2e-fast", column: colRate},
		{What: "raw topic to verdict topic at 5,000/s, p99 ms", Must: 250, Aim: 250, id: "e2e-paced", column: colP99, atMost: true},
		{What: "reading to the row of its anomaly at 2,000/s, p99 ms", Must: 1000, Aim: 250, id: "datacenter-live", column: "anomaly " + colP99, atMost: true},
		{What: "function start to first 200, ms", Must: 100, Aim: 50, id: "function", column: colStart, atMost: true},
		{What: "idle memory of a function, MB", Must: 30, Aim: 20, id: "function", column: colIdle, atMost: true},
		{What: "whole local platform, peak memory at 10,000/s, MB", Must: 700, Aim: 400, id: "e2e-sustained", column: colPeak, atMost: true},
	}
}

func newReport(ctx context.Context, root string) *report {
	r := &report{Time: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: cpuModel(), began: time.Now()}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	// Without git, or outside of a checkout, the commit is just not told.
	if out, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--always", "--dirty").Output(); err == nil {
		r.Commit = strings.TrimSpace(string(out))
	}
	return r
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(info)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return ""
}

// finish draws the comparison from what was measured.
func (r *report) finish() {
	r.Seconds = time.Since(r.began).Seconds()
	for _, b := range budgets() {
		for _, s := range r.Sections {
			for i := range s.Rows {
				if s.Rows[i].ID != b.id {
					continue
				}
				if v := s.Rows[i].get(b.column); !math.IsNaN(v) {
					b.Measured = &v
				}
			}
		}
		b.Verdict = b.verdict()
		r.Budgets = append(r.Budgets, b)
	}
}

func (b *budget) verdict() string {
	reached := func(want float64) bool {
		if b.atMost {
			return *b.Measured <= want
		}
		return *b.Measured >= want
	}
	switch {
	case b.Measured == nil:
		return "not measured"
	case reached(b.Aim):
		return "aim reached"
	case reached(b.Must):
		return "must reached"
	default:
		return "SHORT"
	}
}

func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "\nMillrace %s, %s, %d cores (%s), %s, load before %s, took %.0f s\n",
		r.Commit, r.Time.Format(time.DateTime), r.Cores, r.CPU, r.Go, r.Load, r.Seconds)
	for _, s := range r.Sections {
		if err := s.print(w); err != nil {
			return err
		}
	}
	fmt.Fprint(w, "\nAgainst the budgets\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "must\taim\tmeasured\tverdict\t  what\n")
	for _, b := range r.Budgets {
		measured := math.NaN()
		if b.Measured != nil {
			measured = *b.Measured
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t  %s\n", number(b.Must), number(b.Aim), number(measured), b.Verdict, b.What)
	}
	return t.Flush()
}

func (s *section) print(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n", s.Title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if len(s.Rows) > 0 {
		for _, v := range s.Rows[0].Values {
			fmt.Fprintf(t, "%s\t", v.Name)
		}
		fmt.Fprint(t, "\n")
	}
	for _, row := range s.Rows {
		for _, v := range row.Values {
			fmt.Fprintf(t, "%s\t", number(v.Value))
		}
		// Names come last: they are long and of all lengths.
		fmt.Fprintf(t, "  %s\n", row.Name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, note := range s.Notes {
		fmt.Fprintf(w, "  %s\n", note)
	}
	return nil
}

// number writes a number with three or more digits that mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case v == math.Trunc(v) && a < 1e15:
		return thousands(int64(v))
	case a >= 100:
		return thousands(int64(math.Round(v)))
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func thousands(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func (r *report) writeJSON(path string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644)
}

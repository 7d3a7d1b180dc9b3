package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/drift"
	"github.com/millrace-dev/millrace/shared/model"
)

// Report is all that is known of one window of a model, and what its page shows.
type Report struct {
	Model   string    `json:"model"`
	Kind    string    `json:"kind"` // model or stream
	Version string    `json:"model_version"`
	From    time.Time `json:"window_start"`
	To      time.Time `json:"window_end"`
	Rows    int       `json:"rows"`
	// Reference says in words what was compared with.
	Reference     string `json:"reference"`
	ReferenceRows int64  `json:"reference_rows"`
	// Judged is false when there was too little to judge.
	Judged      bool         `json:"judged"`
	Columns     []Column     `json:"columns"`
	Share       float64      `json:"drift_share"`
	ShareLimit  float64      `json:"drift_share_limit"`
	Counted     int          `json:"counted_columns"`
	Drifted     int          `json:"drifted_columns"`
	Performance *Performance `json:"estimated_performance,omitempty"`
	Errors      *Errors      `json:"errors,omitempty"`
	Over        bool         `json:"over"`
	Reasons     []string     `json:"reasons"`
	Consecutive int          `json:"consecutive"`
	State       string       `json:"state"`
	// Past are the shares of the windows before, the oldest first.
	Past []Past `json:"past,omitempty"`
}

// Past is a former window.
type Past struct {
	To    time.Time `json:"window_end"`
	Share float64   `json:"drift_share"`
	State string    `json:"state"`
}

// Column is a measured column.
type Column struct {
	Name    string  `json:"name"`
	Kind    string  `json:"kind"` // feature or score
	Type    string  `json:"type"` // number or category
	Method  string  `json:"method,omitempty"`
	Score   float64 `json:"score"`
	Limit   float64 `json:"limit"`
	Drifted bool    `json:"drifted"`
	// Ignored says why it does not count, "" if it does.
	Ignored    string      `json:"ignored,omitempty"`
	Statistics []Statistic `json:"statistics"`
	// Missing are shares of missing values.
	MissingReference float64 `json:"missing_reference"`
	MissingCurrent   float64 `json:"missing_current"`
	MissingP         float64 `json:"missing_p"`
	// Bins are what is drawn, as shares.
	Labels         []string  `json:"labels"`
	ReferenceShare []float64 `json:"reference_share"`
	CurrentShare   []float64 `json:"current_share"`
}

// Statistic is one measured number of a column.
type Statistic struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	P     *float64 `json:"p_value,omitempty"`
}

// Performance is a classifier's by its scores alone, now and in the reference.
type Performance struct {
	Current   Estimate  `json:"current"`
	Reference *Estimate `json:"reference,omitempty"`
}

// Estimate is drift.Performance in JSON, which has no NaN.
type Estimate struct {
	Rows     int      `json:"rows"`
	AUC      *float64 `json:"auc,omitempty"`
	LogLoss  float64  `json:"log_loss"`
	Brier    float64  `json:"brier"`
	Accuracy float64  `json:"accuracy"`
	Positive float64  `json:"positive_share"`
}

// Errors are a regression's.
type Errors struct {
	Rows int     `json:"rows"`
	Mean float64 `json:"mean_error"` // actual - predicted
	MAE  float64 `json:"mean_absolute_error"`
	// Within is the share of actual values in the interval that should hold 90 %.
	Within  float64 `json:"within_interval_90"`
	Limit   float64 `json:"limit"`
	Drifted bool    `json:"drifted"`
}

const (
	// coverage is what an interval should hold, and coverageLimit the share below which
	// that is no longer so: as many outside as inside. The errors of a server's rows have
	// much in common for hours, so of five servers 65 % were seen in an hour in which
	// nothing had drifted (TestErrors_ofTheModelThatShips).
	coverage      = 0.9
	coverageLimit = 0.5
	// referenceRows is how many rows of the table a window is compared with at most.
	referenceRows = 5000
	// minReference is how many there must be, or others are taken.
	minReference = 200
)

// measure compares a window with the baseline. It returns nil when there is nothing to
// compare. b is nil for a stream.
func measure(ctx context.Context, tx pgx.Tx, p *plan, w *watched, b *baseline, now window) (*Report, error) {
	r := &Report{Model: w.Name, Kind: w.kind(), From: now.From, To: now.To, Columns: []Column{}, Reasons: []string{}}
	list := make([]column, len(w.metrics))
	for i, name := range w.metrics {
		list[i].name = name
	}
	// Not what came just before: once drifted, it would say that drift is usual.
	past := window{now.From.AddDate(0, 0, -p.StreamDays), now.From.Add(-time.Hour)}
	if b != nil {
		var err error
		if list, err = columnsOf(b.features); err != nil {
			return nil, err
		}
		r.Version, past = b.version, window{b.training.From.UTC(), b.training.To.UTC()}
	}
	current, err := read(ctx, tx, w, list, []window{now}, p.MaxRows)
	if err != nil {
		return nil, err
	}
	r.Rows = current.rows
	if current.rows < p.MinRows {
		r.Reasons = append(r.Reasons, fmt.Sprintf("%d rows are too few to judge, %d are wanted", current.rows, p.MinRows))
		r.State = stable
		return r, nil
	}
	var reference *history
	if w.Seasonal {
		if reference, err = readHistory(ctx, tx, w, list, now, past, current.rows); err != nil {
			return nil, err
		}
	}
	switch {
	case reference != nil:
		r.Reference = fmt.Sprintf("the same hours of former days, %d rows of %s to %s", reference.all.rows, past.From.Format(time.DateTime), past.To.Format(time.DateTime))
		// What is asked is the size of all of the reference. Rows of one server are not
		// independent, and tests, which believe that they are, would find drift each hour:
		// distances decide.
		r.ReferenceRows = max(int64(reference.all.rows), fewestForDistances)
		if b != nil {
			r.ReferenceRows = max(b.rows, fewestForDistances)
		}
	case b != nil:
		r.ReferenceRows, r.Reference = b.rows, "the training data, by the sample in the bundle"
	default:
		r.Reasons = append(r.Reasons, "there are no rows of former days to compare with")
		r.State = stable
		return r, nil
	}
	results := r.judgeColumns(w, b, list, current, reference, p.limits())
	if w.Scores {
		d, err := r.judgeScores(ctx, tx, p, w, b, now)
		if err != nil {
			return nil, err
		}
		results = append(results, d...)
	}
	r.conclude(p, results)
	return r, nil
}

// judgeColumns measures the columns, and returns the results of those that count.
func (r *Report) judgeColumns(w *watched, b *baseline, list []column, current *table, reference *history, limits drift.Limits) (results []drift.Result) {
	for i, c := range list {
		var known *model.Distribution
		if b != nil {
			known = &b.known[i]
		}
		var before *values
		limits := limits
		ignored := w.Ignore[c.name]
		switch {
		case reference != nil:
			before = &reference.all.columns[i]
			limits.Distance = max(limits.Distance, drift.DefaultDistance, slack*reference.usual(i))
		case w.Seasonal:
			var days []values
			if known != nil {
				days = ofTheHour(known, window{r.From, r.To})
			}
			if days == nil {
				ignored = cmp.Or(ignored, "it may follow the hours, and there are too few rows of this time of the day to compare with")
				break
			}
			limits.Distance = max(limits.Distance, drift.DefaultDistance, slack*usual(days))
		}
		d, out := compare(c, &current.columns[i], before, known, window{r.From, r.To}, r.ReferenceRows, limits)
		out.Kind, out.Ignored = "feature", ignored
		r.Columns = append(r.Columns, out)
		if out.Ignored == "" {
			results = append(results, d)
		}
	}
	return results
}

// conclude says what the columns and the errors come to.
func (r *Report) conclude(p *plan, results []drift.Result) {
	verdict := drift.Judge(results, p.limits())
	r.Judged, r.Share, r.Counted, r.Drifted = true, verdict.Share, verdict.Columns, verdict.Drifted
	if r.ShareLimit = p.Share; r.ShareLimit == 0 {
		r.ShareLimit = drift.DefaultShare
	}
	if verdict.Over {
		r.Over = true
		r.Reasons = append(r.Reasons, fmt.Sprintf("%d of %d columns have drifted", verdict.Drifted, verdict.Columns))
	}
	if e := r.Errors; e != nil && e.Drifted {
		r.Over = true
		r.Reasons = append(r.Reasons, fmt.Sprintf("only %.0f %% of the actual values are where 90 %% should be", 100*e.Within))
	}
}

// history is what was read of former days, together and by day.
type history struct {
	all  *table
	days []*table
}

// newHistory joins days.
func newHistory(days []*table) *history {
	h := &history{all: &table{}, days: days}
	for _, d := range days {
		h.all.rows += d.rows
		if h.all.columns == nil {
			h.all.columns = make([]values, len(d.columns))
		}
		for i := range d.columns {
			h.all.columns[i].join(&d.columns[i])
		}
	}
	return h
}

func (v *values) join(o *values) {
	v.numbers = append(v.numbers, o.numbers...)
	v.missing += o.missing
	if v.counts == nil && o.counts != nil {
		v.counts = make([]float64, len(o.counts))
	}
	for i, n := range o.counts {
		v.counts[i] += n
	}
}

// usual is how far days without drift are from each other in a column: the largest
// distance of one of them from all others. Ten servers differ from one day to the next
// by more than a hundred do, and what a limit should be nobody can know beforehand.
func usual(days []values) float64 {
	worst := 0.0
	for i := range days {
		var rest values
		for j := range days {
			if j != i {
				rest.join(&days[j])
			}
		}
		one := &days[i]
		var d float64
		if one.counts != nil {
			d = drift.JensenShannon(rest.counts, one.counts)
		} else {
			a, _ := drift.Sort(rest.numbers)
			b, _ := drift.Sort(one.numbers)
			d = drift.NormedWasserstein(a, b)
		}
		if !math.IsNaN(d) {
			worst = max(worst, d)
		}
	}
	return worst
}

// usual is that of a column of the history.
func (h *history) usual(column int) float64 {
	days := make([]values, len(h.days))
	for i, d := range h.days {
		days[i] = d.columns[column]
	}
	return usual(days)
}

const (
	// slack is by how much a window must be further away than the furthest of a few
	// days that have not drifted.
	slack = 1.25
	// fewestDays are wanted to know what is usual; fewer are cut in pieces.
	fewestDays = 3
	// fewestForDistances are the rows of a reference from which distances decide.
	fewestForDistances = 1001
)

// readHistory reads rows of a range at the window's time of the day, nil if there are
// too few.
func readHistory(ctx context.Context, tx pgx.Tx, w *watched, list []column, now, past window, rows int) (*history, error) {
	if !past.To.After(past.From) {
		return nil, nil
	}
	parts := now.slices(past)
	if len(parts) < fewestDays {
		parts = pieces(parts, 4)
	}
	var days []*table
	for _, part := range parts {
		t, err := read(ctx, tx, w, list, thin([]window{part}, now, rows, maxScan/len(parts)), referenceRows/len(parts))
		if err != nil {
			return nil, err
		}
		if t.rows > 0 {
			days = append(days, t)
		}
	}
	if h := newHistory(days); h.all.rows >= minReference {
		return h, nil
	}
	return nil, nil
}

// pieces cuts windows.
func pieces(list []window, n int) (out []window) {
	for _, w := range list {
		step := w.length() / time.Duration(n)
		for i := range n {
			out = append(out, window{w.From.Add(time.Duration(i) * step), w.From.Add(time.Duration(i+1) * step)})
		}
	}
	return out
}

// compare measures one column: against rows of the table if there are any, else against
// the bundle's distribution.
func compare(c column, current, before *values, known *model.Distribution, now window, rows int64, limits drift.Limits) (drift.Result, Column) {
	d := drift.Column{Name: c.name, Category: c.places != nil, ReferenceRows: rows}
	out := Column{Name: c.name, Type: "number"}
	d.CurrentMissing, d.CurrentAll = current.missing, current.missing+float64(len(current.numbers))+total(current.counts)
	if before != nil {
		d.ReferenceMissing, d.ReferenceAll = before.missing, before.missing+float64(len(before.numbers))+total(before.counts)
	} else {
		d.ReferenceMissing, d.ReferenceAll = float64(known.Missing), float64(known.Missing)+totalCounts(known.Counts)
	}
	switch {
	case c.places != nil:
		out.Type = "category"
		d.CurrentCounts = current.counts
		if before != nil {
			d.ReferenceCounts = before.counts
		} else {
			d.ReferenceCounts = floats(known.Counts)
		}
		out.drawCategories(c, d.ReferenceCounts, d.CurrentCounts)
	case before != nil:
		d.Reference, _ = drift.Sort(before.numbers)
		d.Current, _ = drift.Sort(current.numbers)
		out.drawNumbers(d.Reference, d.Current)
	case len(known.Sample) > 0:
		sample := known.Sample
		if days := ofTheHour(known, now); days != nil {
			sample = nil
			for i := range days {
				sample = append(sample, days[i].numbers...)
			}
		}
		d.Reference, _ = drift.Sort(sample)
		d.Current, _ = drift.Sort(current.numbers)
		out.drawNumbers(d.Reference, d.Current)
	default:
		s, _ := drift.Sort(current.numbers)
		d.ReferenceCounts, d.CurrentCounts = floats(known.Counts), drift.CountByEdges(s, known.Edges)
		out.drawEdges(known.Edges, d.ReferenceCounts, d.CurrentCounts)
	}
	if before == nil {
		limits.Distance = math.Hypot(cmp.Or(limits.Distance, drift.DefaultDistance), chance(&d))
	}
	result := drift.Measure(&d, limits)
	out.fill(&result)
	return result, out
}

// together is how many rows say as much as one that is independent: those of a session
// are of one customer, and those of a server of one hour.
const together = 2

// chance is how far from each other two samples of one distribution hardly ever are. A
// thousand carts of a hundred brands are 0.15 from the twelve thousand of the training
// data, where a limit of 0.1 means drift: the mean of that distance is known, and three
// standard deviations are added.
func chance(c *drift.Column) float64 {
	if c.Reference != nil {
		return 2 * math.Sqrt(together*(1/float64(max(1, len(c.Reference)))+1/float64(max(1, len(c.Current)))))
	}
	values := -1.0
	for i, n := range c.ReferenceCounts {
		if n > 0 || c.CurrentCounts[i] > 0 {
			values++
		}
	}
	values = max(0, values)
	rows := 1/max(1, total(c.ReferenceCounts)) + 1/max(1, total(c.CurrentCounts))
	return math.Sqrt(together * rows * (values + 3*math.Sqrt(2*values)) / 8 / math.Ln2)
}

// ofTheHour are the values of a sample that are of the window's time of the day, by day;
// where those are few, with the hours around it, and nil where those are few too, or
// nobody knows of which time the values are.
func ofTheHour(d *model.Distribution, now window) []values {
	for _, around := range []time.Duration{0, 30 * time.Minute, 90 * time.Minute} {
		near := window{now.From.Add(-around), now.To.Add(around)}
		byDay, n := map[int64][]float64{}, 0
		for i, at := range d.SampleTimes {
			if near.at(time.Unix(at, 0).UTC()) {
				byDay[at/86400] = append(byDay[at/86400], d.Sample[i])
				n++
			}
		}
		if n < minReference {
			continue
		}
		days := make([]values, 0, len(byDay))
		for _, day := range slices.Sorted(maps.Keys(byDay)) {
			days = append(days, values{numbers: byDay[day]})
		}
		return days
	}
	return nil
}

// judgeScores measures the predictions: their distribution, where it does not follow the
// hours, and what is known of how good they are.
func (r *Report) judgeScores(ctx context.Context, tx pgx.Tx, p *plan, w *watched, b *baseline, now window) ([]drift.Result, error) {
	found, err := readPredictions(ctx, tx, w, b.version, now, p.MaxRows, p.MinRows)
	if err != nil {
		return nil, err
	}
	if len(found.scores) < p.MinRows {
		return nil, nil
	}
	current, limits := values{numbers: found.scores}, p.limits()
	ignored := ""
	switch {
	case len(w.Ignore) > 0:
		ignored = "predictions follow features that do not count: " + strings.Join(slices.Sorted(maps.Keys(w.Ignore)), ", ")
	case w.Seasonal:
		if days := ofTheHour(&b.score, now); days != nil {
			limits.Distance = max(limits.Distance, drift.DefaultDistance, slack*usual(days))
		} else {
			ignored = "predictions follow the hours, and the bundle has too few scores of this time of the day"
		}
	}
	d, out := compare(column{name: b.score.Name}, &current, nil, &b.score, now, b.rows, limits)
	out.Kind, out.Ignored = "score", ignored
	r.Columns = append(r.Columns, out)
	if w.Classifier {
		r.Performance = &Performance{Current: estimate(found.scores)}
		if len(b.score.Sample) > 0 {
			e := estimate(b.score.Sample)
			r.Performance.Reference = &e
		}
	}
	if w.Regression && len(found.actual) >= p.MinRows {
		r.Errors = judgeErrors(found, b.residual)
	}
	if out.Ignored != "" {
		return nil, nil
	}
	return []drift.Result{d}, nil
}

// judgeErrors tells whether actual values are still where the bundle says.
func judgeErrors(p *predictions, known *model.Residuals) *Errors {
	e := &Errors{Rows: len(p.actual), Limit: coverageLimit}
	var sum, size float64
	within := 0
	for i, actual := range p.actual {
		sum, size = sum+actual-p.predicted[i], size+math.Abs(actual-p.predicted[i])
		if known == nil {
			continue
		}
		if low, high := known.Interval(p.predicted[i], coverage); actual >= low && actual <= high {
			within++
		}
	}
	n := float64(len(p.actual))
	e.Mean, e.MAE, e.Within = sum/n, size/n, float64(within)/n
	e.Drifted = known != nil && e.Within < e.Limit
	return e
}

func estimate(scores []float64) Estimate {
	p := drift.Estimate(scores, nil)
	e := Estimate{Rows: p.Rows, LogLoss: p.LogLoss, Brier: p.Brier, Accuracy: p.Accuracy, Positive: p.Positives}
	if !math.IsNaN(p.AUC) {
		e.AUC = &p.AUC
	}
	return e
}

func (c *Column) fill(r *drift.Result) {
	// What JSON cannot write comes of numbers that are too large to be subtracted.
	c.Method, c.Limit, c.Drifted = string(r.Method), min(r.Limit, math.MaxFloat64), r.Drifted
	if r.Method != "" && !math.IsNaN(r.Score) {
		c.Score = min(r.Score, math.MaxFloat64)
	}
	c.MissingReference, c.MissingCurrent, c.MissingP = r.MissingReference, r.MissingCurrent, r.MissingP
	c.Statistics = []Statistic{}
	for _, s := range r.Statistics {
		if math.IsNaN(s.Value) {
			continue
		}
		v := Statistic{Name: string(s.Method), Value: min(s.Value, math.MaxFloat64)}
		if !math.IsNaN(s.P) {
			v.P = &s.P
		}
		c.Statistics = append(c.Statistics, v)
	}
}

const (
	// drawnBins are the bars of a histogram, drawnValues those of categories.
	drawnBins   = 24
	drawnValues = 11
)

// drawNumbers counts both samples by intervals between the 1st and the 99th percentile;
// the first and last bars have what is beyond.
func (c *Column) drawNumbers(reference, current drift.Sorted) {
	both, _ := drift.Sort(slices.Concat(reference, current))
	if len(both) == 0 {
		return
	}
	low, high := both[len(both)/100], both[len(both)-1-len(both)/100]
	if low == high {
		low, high = low-0.5, high+0.5
	}
	edges := make([]float64, drawnBins-1)
	for i := range edges {
		edges[i] = low + (high-low)*float64(i+1)/drawnBins
	}
	c.drawEdges(edges, drift.CountByEdges(reference, edges), drift.CountByEdges(current, edges))
}

func (c *Column) drawEdges(edges, reference, current []float64) {
	c.Labels = make([]string, len(edges)+1)
	for i := range c.Labels {
		switch {
		case len(edges) == 0:
			c.Labels[i] = "all"
		case i == 0:
			c.Labels[i] = fmt.Sprintf("up to %.4g", edges[0])
		case i == len(edges):
			c.Labels[i] = fmt.Sprintf("above %.4g", edges[i-1])
		default:
			c.Labels[i] = fmt.Sprintf("%.4g to %.4g", edges[i-1], edges[i])
		}
	}
	c.ReferenceShare, c.CurrentShare = share(reference), share(current)
}

// drawCategories draws the most frequent values and all others together.
func (c *Column) drawCategories(of column, reference, current []float64) {
	names := make([]string, len(of.places)+1)
	for name, at := range of.places {
		names[at] = name
	}
	names[len(of.places)] = "(other values)"
	order := make([]int, len(of.places))
	for i := range order {
		order[i] = i
	}
	r, n := share(reference), share(current)
	slices.SortStableFunc(order, func(a, b int) int {
		switch x, y := r[a]+n[a], r[b]+n[b]; {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	others := []int{len(of.places)}
	if len(order) > drawnValues {
		others = append(others, order[drawnValues:]...)
		order = order[:drawnValues]
	}
	var ro, no float64
	for _, at := range others {
		ro, no = ro+r[at], no+n[at]
	}
	for _, at := range order {
		c.Labels, c.ReferenceShare, c.CurrentShare = append(c.Labels, names[at]), append(c.ReferenceShare, r[at]), append(c.CurrentShare, n[at])
	}
	c.Labels, c.ReferenceShare, c.CurrentShare = append(c.Labels, "(others)"), append(c.ReferenceShare, ro), append(c.CurrentShare, no)
}

func share(counts []float64) []float64 {
	out := slices.Clone(counts)
	if sum := total(counts); sum > 0 {
		for i := range out {
			out[i] /= sum
		}
	}
	return out
}

func total(list []float64) (sum float64) {
	for _, v := range list {
		sum += v
	}
	return sum
}

func totalCounts(list []int64) (sum float64) {
	for _, v := range list {
		sum += float64(v)
	}
	return sum
}

func floats(list []int64) []float64 {
	out := make([]float64, len(list))
	for i, v := range list {
		out[i] = float64(v)
	}
	return out
}

package drift

import (
	"cmp"
	"fmt"
	"math"
)

// Method is a way to compare two columns.
type Method string

// The methods. Those of Tests give a p-value that drift makes small, the others a
// distance that drift makes large.
const (
	KS           Method = "ks"
	WassersteinN Method = "wasserstein" // normed by the reference's deviation
	JS           Method = "jensenshannon"
	PSIMethod    Method = "psi"
	Chi          Method = "chisquare"
	Z            Method = "z"
)

// Test tells methods that give a p-value from those that give a distance.
func (m Method) Test() bool { return m == KS || m == Chi || m == Z }

// Default limits: evidently, StatTest.default_threshold and the registered tests.
const (
	DefaultP        = 0.05
	DefaultDistance = 0.1
	// DefaultShare of the columns makes a data set's drift (evidently:
	// DataDriftPreset, drift_share).
	DefaultShare = 0.5
	// smallReference is the most rows of a reference to which tests apply.
	smallReference = 1000
	// fewValues is the most distinct values of a column of numbers that is taken for a
	// category.
	fewValues = 5
)

// Limits replace the defaults where they are not 0.
type Limits struct {
	P        float64
	Distance float64
	Share    float64
	// Method, if set, decides for all columns that have it.
	Method Method
}

func (l Limits) of(m Method) float64 {
	if m.Test() {
		return cmp.Or(l.P, DefaultP)
	}
	return cmp.Or(l.Distance, DefaultDistance)
}

// Column is one column of a reference and of what is compared with it: either Reference
// and Current, of numbers, or the two Counts. A column of numbers whose reference is
// known by bins alone has the bins' counts.
type Column struct {
	Name string
	// Category tells columns of categories; with counts, it is false for bins of
	// numbers.
	Category bool

	// Reference and Current are the values, those that are missing left out.
	Reference, Current Sorted
	// ReferenceCounts and CurrentCounts are numbers of rows by category or bin.
	ReferenceCounts, CurrentCounts []float64

	// ReferenceRows is the number of rows of the whole reference, of which Reference may
	// be a sample: it decides on the method. 0: those that are there.
	ReferenceRows int64
	// Missing values and all rows of both.
	ReferenceMissing, ReferenceAll, CurrentMissing, CurrentAll float64
}

// Statistic is one measured number.
type Statistic struct {
	Method Method
	Value  float64
	// P is the p-value of a test, NaN of a distance.
	P float64
}

// score is what is compared with the limit.
func (s Statistic) score() float64 {
	if s.Method.Test() {
		return s.P
	}
	return s.Value
}

// Result is what became of a column.
type Result struct {
	Name string
	// Statistics are all that apply to the column, in a fixed order.
	Statistics []Statistic
	// Method decides, by Score against Limit. It is "" when there was nothing to
	// compare.
	Method       Method
	Score, Limit float64
	Drifted      bool
	// MissingReference and MissingCurrent are shares of missing values, MissingP the
	// p-value of their being the same.
	MissingReference, MissingCurrent, MissingP float64
}

// Measure compares a column by all methods that apply, and decides by one of them.
func Measure(c *Column, limits Limits) Result {
	r := Result{Name: c.Name, Score: math.NaN(), MissingP: 1}
	if c.ReferenceAll > 0 && c.CurrentAll > 0 {
		r.MissingReference, r.MissingCurrent = c.ReferenceMissing/c.ReferenceAll, c.CurrentMissing/c.CurrentAll
		_, r.MissingP = ZTest(c.ReferenceMissing, c.ReferenceAll, c.CurrentMissing, c.CurrentAll)
	}
	var method Method
	if c.ReferenceCounts != nil {
		r.Statistics, method = c.byCounts()
	} else {
		r.Statistics, method = c.bySamples()
	}
	if limits.Method != "" {
		for _, s := range r.Statistics {
			if s.Method == limits.Method {
				method = s.Method
			}
		}
	}
	for _, s := range r.Statistics {
		if s.Method == method {
			r.Method, r.Score, r.Limit = method, s.score(), limits.of(method)
			r.Drifted = method.Test() && r.Score < r.Limit || !method.Test() && r.Score >= r.Limit
		}
	}
	return r
}

func (c *Column) small(rows int) bool {
	if c.ReferenceRows > 0 {
		return c.ReferenceRows <= smallReference
	}
	return rows <= smallReference
}

// bySamples measures numbers.
func (c *Column) bySamples() (all []Statistic, decides Method) {
	if len(c.Reference) == 0 || len(c.Current) == 0 {
		return nil, ""
	}
	few := distinct(c.Reference, c.Current, fewValues+1)
	r, n := binned(c.Reference, c.Current)
	d, p := KolmogorovSmirnov(c.Reference, c.Current)
	chi, chiP := ChiSquare(n, r)
	all = []Statistic{
		{KS, d, p},
		{WassersteinN, NormedWasserstein(c.Reference, c.Current), math.NaN()},
		{JS, JensenShannon(r, n), math.NaN()},
		{PSIMethod, PSI(shares(r), shares(n)), math.NaN()},
		{Chi, chi, chiP},
	}
	small := c.small(len(c.Reference))
	switch {
	case !small && few > fewValues:
		return all, WassersteinN
	case !small:
		return all, JS
	case few > fewValues:
		return all, KS
	case few > 2:
		return all, Chi
	}
	return append(all, proportion(r, n)), Z
}

// byCounts measures categories, and numbers by their bins.
func (c *Column) byCounts() (all []Statistic, decides Method) {
	var r, n []float64
	var rows, current float64
	for i, x := range c.ReferenceCounts {
		if y := c.CurrentCounts[i]; x > 0 || y > 0 {
			r, n = append(r, x), append(n, y)
			rows, current = rows+x, current+y
		}
	}
	if rows == 0 || current == 0 {
		return nil, ""
	}
	chi, chiP := ChiSquare(n, r)
	all = []Statistic{
		{JS, JensenShannon(r, n), math.NaN()},
		{PSIMethod, PSI(shares(r), shares(n)), math.NaN()},
		{Chi, chi, chiP},
	}
	switch {
	case !c.small(int(rows)):
		return all, JS
	case len(r) > 2 || !c.Category:
		return all, Chi
	}
	return append(all, proportion(r, n)), Z
}

// proportion is the z-test of two values, or of one.
func proportion(r, n []float64) Statistic {
	if len(r) < 2 {
		return Statistic{Z, 0, 1}
	}
	z, p := ZTest(r[1], r[0]+r[1], n[1], n[0]+n[1])
	return Statistic{Z, z, p}
}

// Dataset is the verdict on all columns.
type Dataset struct {
	Columns, Drifted int
	Share            float64
	// Over tells whether the share reaches the limit.
	Over bool
}

// Judge counts the columns that have drifted, of those that could be compared.
func Judge(results []Result, limits Limits) Dataset {
	var d Dataset
	for i := range results {
		if results[i].Method == "" {
			continue
		}
		d.Columns++
		if results[i].Drifted {
			d.Drifted++
		}
	}
	if d.Columns > 0 {
		d.Share = float64(d.Drifted) / float64(d.Columns)
		d.Over = d.Share >= cmp.Or(limits.Share, DefaultShare)
	}
	return d
}

// Check tells whether the limits make sense.
func (l Limits) Check() error {
	for _, v := range []struct {
		name  string
		value float64
		max   float64
	}{{"p", l.P, 1}, {"distance", l.Distance, math.Inf(1)}, {"share", l.Share, 1}} {
		if v.value < 0 || v.value > v.max || math.IsNaN(v.value) {
			return fmt.Errorf("%s: %v is out of range", v.name, v.value)
		}
	}
	switch l.Method {
	case "", KS, WassersteinN, JS, PSIMethod, Chi, Z:
		return nil
	}
	return fmt.Errorf("method: %q is none of ks, wasserstein, jensenshannon, psi, chisquare, z", l.Method)
}

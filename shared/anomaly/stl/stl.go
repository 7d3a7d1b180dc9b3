// Package stl splits a time series into trend, season and remainder by loess: STL of
// Cleveland, Cleveland, McRae and Terpenning (1990), as in netlib's program and in
// statsmodels, whose results it gives to rounding. Beyond these it takes series with
// gaps: a value that is NaN has no weight and is not looked at.
package stl

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Config are the parameters of a decomposition, named as in statsmodels. Zero fields
// take its defaults.
type Config struct {
	// Period is the number of values in a season, at least 2.
	Period int
	// Seasonal, Trend and LowPass are the lengths of the smoothers, odd. By default 7,
	// the odd number after 1.5*Period/(1-1.5/Seasonal), and the one after Period.
	Seasonal, Trend, LowPass int
	// SeasonalDegree, TrendDegree and LowPassDegree are 1, or 0 if Constant says so.
	SeasonalConstant, TrendConstant, LowPassConstant bool
	// SeasonalJump and so on are by how many values the smoothers go on; in between
	// is drawn a straight line. By default 1.
	SeasonalJump, TrendJump, LowPassJump int
	// Robust gives outliers less weight: Inner is then 2 and Outer 15 by default,
	// else 5 and 0.
	Robust bool
	// Inner is how often season and trend are fitted in a pass, Outer how many more
	// passes follow with new weights.
	Inner, Outer int
}

func (c Config) complete() (Config, error) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	odd := func(n int) int { return n + 1 - n%2 }
	if c.Period < 2 {
		return c, fmt.Errorf("period: must be at least 2, not %d", c.Period)
	}
	def(&c.Seasonal, 7)
	if c.Seasonal < 3 || c.Seasonal%2 == 0 {
		return c, fmt.Errorf("seasonal: must be odd and at least 3, not %d", c.Seasonal)
	}
	def(&c.Trend, odd(int(math.Ceil(1.5*float64(c.Period)/(1-1.5/float64(c.Seasonal))))))
	def(&c.LowPass, odd(c.Period+1))
	for name, n := range map[string]int{"trend": c.Trend, "low pass": c.LowPass} {
		if n < 3 || n%2 == 0 || n <= c.Period {
			return c, fmt.Errorf("%s: must be odd and greater than the period, %d, not %d", name, c.Period, n)
		}
	}
	for _, jump := range []*int{&c.SeasonalJump, &c.TrendJump, &c.LowPassJump} {
		def(jump, 1)
		if *jump < 1 {
			return c, fmt.Errorf("jump: must be at least 1, not %d", *jump)
		}
	}
	if c.Robust {
		def(&c.Inner, 2)
		def(&c.Outer, 15)
	} else {
		def(&c.Inner, 5)
	}
	if c.Inner < 1 || c.Outer < 0 {
		return c, fmt.Errorf("iterations: %d inner and %d outer are not possible", c.Inner, c.Outer)
	}
	return c, nil
}

// Result is a decomposition: Trend[i] + Seasonal[i] + the remainder is the value, for
// gaps as well, whose remainder nobody knows. Weights are those of the last pass,
// 0 for outliers and gaps.
type Result struct {
	Trend, Seasonal, Weights []float64
}

// Decompose splits y, of which at least two seasons are needed. y is not changed.
func Decompose(y []float64, c Config) (Result, error) {
	c, err := c.complete()
	if err != nil {
		return Result{}, err
	}
	if len(y) < 2*c.Period {
		return Result{}, fmt.Errorf("%d values are less than two seasons of %d", len(y), c.Period)
	}
	d := newDecomposition(y, c)
	if d.present == 0 {
		return Result{}, errors.New("there are no values, only gaps")
	}
	for pass := 0; ; pass++ {
		for range c.Inner {
			d.step()
		}
		if pass == c.Outer {
			return Result{Trend: d.trend, Seasonal: d.season, Weights: d.weights}, nil
		}
		d.reweigh()
		d.weighted = true
	}
}

// decomposition is the work on one series. Indices into series count from 0;
// positions in the smoothers' formulas from 1, as in the paper.
type decomposition struct {
	Config
	y       []float64 // gaps are filled with a line between their neighbours
	gap     []bool    // nil if there is none
	present int
	// weighted says that weights are to be used: in the first pass only for gaps.
	weighted               bool
	trend, season, weights []float64

	w1, w2, w3 []float64 // as long as the series and two seasons
	sub, subW  []float64 // of one place in the season
	subFit     []float64
	local      []float64 // weights of one fit
}

func newDecomposition(y []float64, c Config) *decomposition {
	n := len(y)
	long := n + 2*c.Period
	each := n/c.Period + 4
	d := &decomposition{
		Config: c, y: y, present: n,
		trend: make([]float64, n), season: make([]float64, n), weights: make([]float64, n),
		w1: make([]float64, long), w2: make([]float64, long), w3: make([]float64, long),
		sub: make([]float64, each), subW: make([]float64, each), subFit: make([]float64, each),
		local: make([]float64, long),
	}
	for i := range d.weights {
		d.weights[i] = 1
	}
	if slices.ContainsFunc(y, math.IsNaN) {
		d.fill()
	}
	return d
}

// fill marks gaps. What they are filled with has no weight; it only stands where
// a smoother finds nothing at all within its reach.
func (d *decomposition) fill() {
	d.y, d.gap, d.weighted, d.present = slices.Clone(d.y), make([]bool, len(d.y)), true, 0
	last := -1
	for i, v := range d.y {
		if math.IsNaN(v) {
			d.gap[i], d.weights[i] = true, 0
			continue
		}
		d.present++
		for j := last + 1; j < i; j++ {
			d.y[j] = v
			if last >= 0 {
				d.y[j] = d.y[last] + (v-d.y[last])*float64(j-last)/float64(i-last)
			}
		}
		last = i
	}
	for j := last + 1; j < len(d.y) && last >= 0; j++ {
		d.y[j] = d.y[last]
	}
}

// step fits the season to what the trend leaves, and the trend to what the season
// leaves.
func (d *decomposition) step() {
	n, np := len(d.y), d.Period
	for i, v := range d.y {
		d.w1[i] = v - d.trend[i]
	}
	d.seasonal(d.w1[:n], d.w2)
	// The season without what is slower than it.
	average(d.w3, d.w2, n+2*np, np)
	average(d.w1, d.w3, n+np+1, np)
	average(d.w3, d.w1, n+2, 3)
	d.loess(d.w3[:n], d.w1, nil, d.LowPass, d.LowPassJump, !d.LowPassConstant)
	for i := range d.season {
		d.season[i] = d.w2[np+i] - d.w1[i]
	}
	for i, v := range d.y {
		d.w1[i] = v - d.season[i]
	}
	d.loess(d.w1[:n], d.trend, d.use(d.weights), d.Trend, d.TrendJump, !d.TrendConstant)
}

func (d *decomposition) use(weights []float64) []float64 {
	if d.weighted {
		return weights
	}
	return nil
}

// seasonal smooths the values of each place in the season among themselves, and goes
// one season beyond both ends.
func (d *decomposition) seasonal(y, to []float64) {
	n, np := len(y), d.Period
	for j := range np {
		k := (n-j-1)/np + 1
		for i := range k {
			d.sub[i], d.subW[i] = y[i*np+j], d.weights[i*np+j]
		}
		values, weights := d.sub[:k], d.use(d.subW)
		d.loess(values, d.subFit[1:], weights, d.Seasonal, d.SeasonalJump, !d.SeasonalConstant)
		var ok bool
		if d.subFit[0], ok = d.fit(values, weights, d.Seasonal, 0, 1, min(d.Seasonal, k), !d.SeasonalConstant); !ok {
			d.subFit[0] = d.subFit[1]
		}
		if d.subFit[k+1], ok = d.fit(values, weights, d.Seasonal, float64(k+1), max(1, k-d.Seasonal+1), k, !d.SeasonalConstant); !ok {
			d.subFit[k+1] = d.subFit[k]
		}
		for m := range k + 2 {
			to[m*np+j] = d.subFit[m]
		}
	}
}

// loess smooths y into to by local fits over span values.
func (d *decomposition) loess(y, to, weights []float64, span, jump int, line bool) {
	n := len(y)
	if n < 2 {
		to[0] = y[0]
		return
	}
	jump = min(jump, n-1)
	left, right := 1, min(span, n)
	half := (span + 1) / 2
	at := func(x int) {
		var ok bool
		if to[x-1], ok = d.fit(y, weights, span, float64(x), left, right, line); !ok {
			to[x-1] = y[x-1]
		}
	}
	last := 1
	for i := 1; i <= n; i += jump {
		switch {
		case span >= n:
		case jump == 1:
			if i > half && right != n {
				left, right = left+1, right+1
			}
		case i < half:
			left, right = 1, span
		case i >= n-half+1:
			left, right = n-span+1, n
		default:
			left, right = i-half+1, span+i-half
		}
		at(i)
		last = i
	}
	if jump == 1 {
		return
	}
	between := func(a, b int) {
		step := (to[b-1] - to[a-1]) / float64(b-a)
		for j := a + 1; j < b; j++ {
			to[j-1] = to[a-1] + step*float64(j-a)
		}
	}
	for i := 1; i <= n-jump; i += jump {
		between(i, i+jump)
	}
	if last != n {
		at(n)
		between(last, n)
	}
}

// fit gives the local fit at x over the positions left to right. It is not ok when
// nothing there has a weight.
func (d *decomposition) fit(y, weights []float64, span int, x float64, left, right int, line bool) (float64, bool) {
	n := len(y)
	h := max(x-float64(left), float64(right)-x)
	if span > n {
		h += float64((span - n) / 2)
	}
	h9, h1 := 0.999*h, 0.001*h
	w, values := d.local[:right-left+1], y[left-1:right]
	var sum float64
	for i := range w {
		w[i] = 0
		r := math.Abs(float64(left+i) - x)
		if r > h9 {
			continue
		}
		v := 1.0
		if r > h1 {
			q := r / h
			q = 1 - q*q*q
			v = q * q * q
		}
		if weights != nil {
			v *= weights[left-1+i]
		}
		w[i] = v
		sum += v
	}
	if sum <= 0 {
		return 0, false
	}
	for i := range w {
		w[i] /= sum
	}
	if h > 0 && line {
		var mean, spread float64
		for i, v := range w {
			mean += v * float64(left+i)
		}
		for i, v := range w {
			off := float64(left+i) - mean
			spread += v * off * off
		}
		if math.Sqrt(spread) > 0.001*float64(n-1) {
			slope := (x - mean) / spread
			for i := range w {
				w[i] *= slope*(float64(left+i)-mean) + 1
			}
		}
	}
	var out float64
	for i, v := range w {
		out += v * values[i]
	}
	return out, true
}

// reweigh gives each value the weight that its remainder leaves it.
func (d *decomposition) reweigh() {
	r := d.w1[:len(d.y)]
	sorted := d.w2[:0]
	for i, v := range d.y {
		r[i] = math.Abs(v - d.trend[i] - d.season[i])
		if len(d.gap) == 0 || !d.gap[i] {
			sorted = append(sorted, r[i])
		}
	}
	slices.Sort(sorted)
	six := 3 * (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2])
	for i, v := range r {
		switch {
		case len(d.gap) > 0 && d.gap[i]:
			d.weights[i] = 0
		case v <= 0.001*six:
			d.weights[i] = 1
		case v <= 0.999*six:
			q := v / six
			q = 1 - q*q
			d.weights[i] = q * q
		default:
			d.weights[i] = 0
		}
	}
}

// average is the moving average of span values of the first n of y.
func average(to, y []float64, n, span int) {
	var sum float64
	for _, v := range y[:span] {
		sum += v
	}
	to[0] = sum / float64(span)
	for i := range n - span {
		sum += y[span+i] - y[i]
		to[i+1] = sum / float64(span)
	}
}

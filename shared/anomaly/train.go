package anomaly

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/millrace-dev/millrace/shared/anomaly/stl"
)

// Bucket is what a metric was in one step of time: the mean of its readings, how many
// there were, the least and the greatest of them, and their standard deviation (0 of
// one reading).
//
// Models are trained on means and judge single readings, which vary more. So they
// have to know the extremes as well: a history of single readings, of means of sixty,
// or first one and then the other gives the same deviations.
type Bucket struct {
	// Number counts steps from the start of 1970.
	Number          int64
	N               int
	Mean, Low, High float64
	Deviation       float64
}

// Training says how models are made.
type Training struct {
	// Step is the width of a bucket, Period the length of a season.
	Step, Period time.Duration
	// Least is how many buckets a model is made of at least; before there are as many,
	// the metric is in its warm-up and not judged.
	Least int
	// Floor is a deviation that is nothing, whatever the history: half a unit of what
	// is counted.
	Floor float64
	// Margin is how far beyond what usual readings reached the warning band begins, as a
	// factor; 0 is 1.
	Margin float64
}

// WarmUpError says that there is not enough history for a model yet.
type WarmUpError struct{ Have, Need int }

func (e *WarmUpError) Error() string {
	return fmt.Sprintf("warming up: %d of %d steps with readings", e.Have, e.Need)
}

// Numbers of the training.
const (
	// normal makes a robust standard deviation of a median deviation.
	normal = 1.4826
	// evident, in robust deviations, is what no noise is: an excursion of the history
	// that gets there is taken for an anomaly and tells nothing of the noise, unless
	// excursions are so many (share of the buckets) that they are how the metric is.
	evident = 8.0
	share   = 0.03
	// beyond is where excursions begin.
	beyond = 3.0
	// warn is the distance that usual readings shall not come to.
	warn = 2.0
	// better is the share of the level's deviation that the season's has to be below,
	// for the season to be worth its noise.
	better = 0.9
)

// Train makes the model of one metric of buckets in ascending order. The error is a
// *WarmUpError while the history is too short.
func (c Training) Train(buckets []Bucket, now time.Time) (*Model, error) {
	if len(buckets) < max(c.Least, 2) {
		return nil, &WarmUpError{len(buckets), max(c.Least, 2)}
	}
	first, last := buckets[0].Number, buckets[len(buckets)-1].Number
	n := int(last-first) + 1
	m := &Model{
		Trained: now, Points: len(buckets), Step: c.Step,
		From: time.Unix(0, first*int64(c.Step)).UTC(), To: time.Unix(0, (last+1)*int64(c.Step)).UTC(),
	}
	y := make([]float64, n)
	for i := range y {
		y[i] = math.NaN()
	}
	for i := range buckets {
		y[buckets[i].Number-first] = buckets[i].Mean
	}

	plain := c.level(y)
	residual, level := plain.residual(y), plain
	period := int(c.Period / c.Step)
	if seasons := float64(len(buckets)) / float64(period); seasons >= 2 {
		d, err := c.decompose(y, period, first)
		if err != nil {
			return nil, fmt.Errorf("training: %w", err)
		}
		// A season of few was fitted to their noise as well, and is off by that
		// elsewhere.
		d.excess = math.Sqrt((seasons + 1) / (seasons - 1))
		r := d.residual(y)
		// Robust weights fit a few values closer still.
		if robust(r)*d.excess*(1+1/seasons) < better*robust(residual) {
			residual, level = r, d
			m.Season, m.Week = d.season, d.week
		}
	}
	m.Level = level.trend[n-1]
	m.Up, m.Down = c.spread(buckets, residual, level, first)
	return m, nil
}

// fitted is what a way of looking at the history expects of each step.
type fitted struct {
	trend, expected []float64
	season, week    []float32
	// excess is by how much the residuals are too small.
	excess float64
}

func (f *fitted) residual(y []float64) []float64 {
	r := make([]float64, len(y))
	for i, v := range y {
		r[i] = v - f.expected[i]
	}
	return r
}

// level expects the median of the day before, or of what there is of it.
func (c Training) level(y []float64) *fitted {
	width := max(int(c.Period/c.Step)/2, 6)
	f := &fitted{trend: make([]float64, len(y)), excess: 1}
	var window []float64
	last := 0.0
	const every = 6
	for i := 0; i < len(y); i += every {
		window = window[:0]
		for _, v := range y[max(0, i-width):min(len(y), i+width+1)] {
			if !math.IsNaN(v) {
				window = append(window, v)
			}
		}
		if len(window) > 0 {
			last = middle(window)
		}
		for j := i; j < min(i+every, len(y)); j++ {
			f.trend[j] = last
		}
	}
	f.expected = f.trend
	return f
}

// decompose splits by STL. The season is the same each day, and the trend as slow as
// the history allows: whatever is quicker, a reading's level follows as it comes.
func (c Training) decompose(y []float64, period int, first int64) (*fitted, error) {
	odd := func(n int) int { return n + 1 - n%2 }
	trend := odd(2 * period)
	if len(y) >= 14*period {
		trend = odd(7 * period)
	}
	d, err := stl.Decompose(y, stl.Config{
		Period: period, Seasonal: odd(10*len(y)/period + 1), Trend: trend, SeasonalConstant: true,
		TrendJump: max(1, trend/10), LowPassJump: max(1, period/10), Robust: true, Inner: 1, Outer: 4,
	})
	if err != nil {
		return nil, err
	}
	f := &fitted{trend: d.Trend, expected: make([]float64, len(y)), excess: 1}
	for i := range y {
		f.expected[i] = d.Trend[i] + d.Seasonal[i]
	}
	season := make([]float32, period)
	for i := range season {
		season[i] = float32(d.Seasonal[len(y)-period+i])
	}
	f.season = inPhase(season, first+int64(len(y)-period))
	if c.Period == 24*time.Hour && c.Step <= time.Hour && len(y) >= 14*period-1 {
		f.addWeek(y, first, c.Step)
	}
	return f, nil
}

// inPhase counts the season from the start of 1970.
func inPhase(season []float32, end int64) []float32 {
	turned := make([]float32, len(season))
	for i, v := range season {
		turned[(end+int64(i))%int64(len(season))] = v
	}
	return turned
}

// addWeek learns what the day leaves to the hours of the week, of two weeks or more,
// if it is worth it.
func (f *fitted) addWeek(y []float64, first int64, step time.Duration) {
	const hours = 7 * 24
	var by [hours][]float64
	hour := func(i int) int64 { return (first + int64(i)) * int64(step) / int64(time.Hour) % hours }
	left := f.residual(y)
	for i, v := range left {
		if !math.IsNaN(v) {
			by[hour(i)] = append(by[hour(i)], v)
		}
	}
	week := make([]float32, hours)
	for h, values := range &by {
		if len(values) == 0 {
			return
		}
		week[h] = float32(middle(values))
	}
	expected := make([]float64, len(y))
	for i := range expected {
		at := time.Unix(0, (first+int64(i))*int64(step)+int64(step)/2)
		expected[i] = f.expected[i] + cyclic(week, time.Hour, at)
	}
	if next := (&fitted{expected: expected}).residual(y); robust(next) < better*robust(left) {
		f.week, f.expected = week, expected
	}
}

// spread is the deviation of single readings, above and below what is expected.
func (c Training) spread(buckets []Bucket, residual []float64, f *fitted, first int64) (up, down float64) {
	s := robust(residual)
	var within []float64
	for i := range buckets {
		if buckets[i].N > 1 {
			within = append(within, buckets[i].Deviation)
		}
	}
	if len(within)*4 > len(buckets) {
		s = math.Hypot(s, middle(within))
	}
	// A metric that never moves has no deviation; what is odd about it then is a
	// change that is not rounding.
	level := math.Abs(f.trend[len(f.trend)-1])
	s = max(s, 1e-3*level, 1e-6, c.Floor)

	highs, lows := make([]float64, len(buckets)), make([]float64, len(buckets))
	for i := range buckets {
		e := f.expected[buckets[i].Number-first]
		highs[i], lows[i] = (buckets[i].High-e)/s, (e-buckets[i].Low)/s
	}
	unit := f.excess * s
	margin := cmp.Or(c.Margin, 1)
	return unit * max(1, margin*reach(highs)/warn), unit * max(1, margin*reach(lows)/warn)
}

// reach is how far, in robust deviations, usual readings come.
func reach(r []float64) float64 {
	usual := slices.Clone(r)
	for i := 0; i < len(r); {
		if r[i] <= beyond {
			i++
			continue
		}
		j, peak := i, 0.0
		for ; j < len(r) && r[j] > beyond; j++ {
			peak = max(peak, r[j])
		}
		if peak > evident {
			for k := i; k < j; k++ {
				usual[k] = math.Inf(1)
			}
		}
		i = j
	}
	slices.Sort(usual)
	odd := len(usual)
	for odd > 0 && math.IsInf(usual[odd-1], 1) {
		odd--
	}
	if float64(len(usual)-odd) > share*float64(len(usual)) {
		all := slices.Clone(r)
		slices.Sort(all)
		return all[int(float64(len(all)-1)*(1-share))]
	}
	return usual[max(0, odd-1-len(usual)/4000)]
}

// robust is the robust standard deviation about the median.
func robust(r []float64) float64 {
	values := make([]float64, 0, len(r))
	for _, v := range r {
		if !math.IsNaN(v) {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return 0
	}
	m := middle(values)
	for i, v := range values {
		values[i] = math.Abs(v - m)
	}
	return normal * middle(values)
}

// middle is the median. It sorts the values.
func middle(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

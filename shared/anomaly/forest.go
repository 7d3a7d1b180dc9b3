package anomaly

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-dev/millrace/shared/model"
)

// Forest judges whole readings by an isolation forest, whose version may be replaced
// at any time.
type Forest struct {
	current atomic.Pointer[forest]
}

// forest is one version.
type forest struct {
	bundle  *model.Bundle
	version string
	// median is the score of a usual row, and deviation the robust one of those that are
	// odder: what a twentieth of the rows exceeds, as of a normal distribution. Rarer
	// scores may be anomalies of the history.
	median, deviation float64
	rows              sync.Pool
}

// Use takes a version into service. The error says why it cannot be judged by, and
// leaves the one that there is.
func (f *Forest) Use(b *model.Bundle, version string) error {
	if b.Model.Outputs() != 1 {
		return fmt.Errorf("model %s %s: %d outputs, a forest has one", b.Manifest.Name, version, b.Model.Outputs())
	}
	const twentieth = 1.6449 // deviations from the median
	median, low := quantile(&b.Baseline.Score, 0.5), quantile(&b.Baseline.Score, 0.05)
	deviation := (median - low) / twentieth
	if !(deviation > 0) {
		return fmt.Errorf("model %s %s: baseline.json has no usable distribution of the score", b.Manifest.Name, version)
	}
	f.current.Store(&forest{bundle: b, version: version, median: median, deviation: deviation})
	return nil
}

// quantile is the border of the intervals that a share of the counted rows is nearest
// to; NaN without any.
func quantile(d *model.Distribution, share float64) float64 {
	var total int64
	for _, n := range d.Counts {
		total += n
	}
	var sum int64
	best, off := math.NaN(), math.Inf(1)
	for i, edge := range d.Edges {
		sum += d.Counts[i]
		if o := math.Abs(float64(sum)/float64(total) - share); o < off {
			best, off = edge, o
		}
	}
	return best
}

// Version is the one in service, "" if there is none.
func (f *Forest) Version() (version string, trained time.Time) {
	if c := f.current.Load(); c != nil {
		return c.version, c.bundle.Manifest.CreatedAt
	}
	return "", time.Time{}
}

func (f *Forest) of(metrics []string) Detector { return &isolation{forest: f, metrics: metrics} }

// isolation is the forest for the metrics of one plan.
type isolation struct {
	forest  *Forest
	metrics []string
	// columns are the places of a version's features among the metrics.
	columns atomic.Pointer[columns]
}

type columns struct {
	of *forest
	at []int // -1: the plan has no such metric
}

func (d *isolation) placed(f *forest) *columns {
	if c := d.columns.Load(); c != nil && c.of == f {
		return c
	}
	c := &columns{of: f}
	for i := range f.bundle.Features.Features {
		at := -1
		for m, name := range d.metrics {
			if name == f.bundle.Features.Features[i].Name {
				at = m
			}
		}
		c.at = append(c.at, at)
	}
	d.columns.Store(c)
	return c
}

// Judge implements Detector. The level follows an entity that is always a little odd,
// so that it does not stay an anomaly for ever.
func (d *isolation) Judge(l *Limits, _ *Entity, r *Reading, level float64, since time.Duration) Judgement {
	f := d.forest.current.Load()
	if f == nil {
		return Judgement{Level: level}
	}
	room, _ := f.rows.Get().(*[]float64)
	if room == nil {
		room = new([]float64)
	}
	defer f.rows.Put(room)
	row := (*room)[:0]
	for _, at := range d.placed(f).at {
		v := math.NaN()
		if at >= 0 {
			v = r.Values[at]
		}
		row = append(row, v)
	}
	*room = row
	var out [1]float64
	if err := f.bundle.Model.Predict(out[:], row); err != nil || math.IsNaN(out[0]) {
		return Judgement{Level: level}
	}
	odd := (f.median - out[0]) / f.deviation
	if math.IsNaN(level) {
		level = 0
	}
	j := Judgement{
		Known: true, Distance: max(0, odd-max(0, level)), Actual: out[0], Expected: f.median - level*f.deviation,
		Trend: level, Threshold: l.Alarm, Model: "forest " + f.version, Trained: f.bundle.Manifest.CreatedAt, Level: level,
	}
	if since > 0 {
		pull := min(odd, l.Warn) - level
		j.Level += pull * -math.Expm1(-float64(min(since, time.Minute))/float64(l.Follow))
	}
	return j
}

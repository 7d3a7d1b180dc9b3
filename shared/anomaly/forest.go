package anomaly

import (
	"fmt"
	"math"
	"sort"
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
	rows    sync.Pool
}

// Use takes a version into service. The error says why it cannot be judged by, and
// leaves the one that there is.
func (f *Forest) Use(b *model.Bundle, version string) error {
	if len(b.Baseline.Tail) < 2 {
		return fmt.Errorf("model %s %s: baseline.json has no tail, which says how rare scores are", b.Manifest.Name, version)
	}
	if b.Model.Outputs() != 1 {
		return fmt.Errorf("model %s %s: %d outputs, a forest has one", b.Manifest.Name, version, b.Model.Outputs())
	}
	f.current.Store(&forest{bundle: b, version: version})
	return nil
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
	rare := rarity(f.bundle.Baseline.Tail, out[0])
	if math.IsNaN(level) {
		level = 0
	}
	j := Judgement{
		Known: true, Distance: max(0, rare-level), Actual: out[0], Expected: f.bundle.Baseline.Tail[len(f.bundle.Baseline.Tail)-1].Score,
		Trend: level, Threshold: l.Alarm, Model: "forest " + f.version, Trained: f.bundle.Manifest.CreatedAt, Level: level,
	}
	if since > 0 {
		pull := min(rare, l.Warn) - level
		j.Level += pull * -math.Expm1(-float64(min(since, time.Minute))/float64(l.Follow))
	}
	return j
}

// rarity makes a distance of a score: 3 where one of ten thousand usual rows is as odd,
// 0.75 for each tenth. Beyond the rarest share that is known the line goes on.
func rarity(tail []model.Tail, score float64) float64 {
	distance := func(share float64) float64 { return -0.75 * math.Log10(share) }
	last := tail[len(tail)-1]
	if score >= last.Score {
		return 0
	}
	// The first whose score is not below.
	i := max(1, sort.Search(len(tail), func(i int) bool { return tail[i].Score >= score }))
	a, b := tail[i-1], tail[i]
	if b.Score <= a.Score {
		return distance(a.Share)
	}
	part := (score - a.Score) / (b.Score - a.Score)
	return distance(a.Share) + part*(distance(b.Share)-distance(a.Share))
}

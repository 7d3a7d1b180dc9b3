package telemetry

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Hot are the metrics that are noted with every event: an instrument of the SDK finds
// the series of its labels, and locks it, each time, which for some of them together is
// several percent of what an event costs. Here a series is kept by who notes, and noting
// is an atomic addition. They are read as the SDK's are, by all of its readers.
//
// A nil Hot, and whatever comes of it, notes nothing. All methods are safe for concurrent
// use.
type Hot struct {
	scope string
	began time.Time

	mu      sync.Mutex
	metrics []interface {
		read(at [2]time.Time) metricdata.Metrics
	}
}

// NewHot makes metrics of a scope, which Produce tells.
func NewHot(scope string) *Hot { return &Hot{scope: scope, began: time.Now()} }

// described is what all metrics have.
type described struct{ name, unit, about string }

// HotCounter is a counter. Its Series are what is added to.
type HotCounter struct {
	described
	series series[*Count]
}

// HotHistogram is a histogram. Its Series are what values are noted in.
type HotHistogram struct {
	described
	bounds []float64
	series series[*Buckets]
}

// series are those of a metric, by their labels. There are maxSeries at most: what comes
// after them is one.
type series[S any] struct {
	mu   sync.Mutex
	sets []attribute.Set
	all  []S
}

func (s *series[S]) of(set attribute.Set, empty func() S) S {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.IndexFunc(s.sets, func(known attribute.Set) bool { return known.Equals(&set) })
	if at < 0 && len(s.sets) >= maxSeries-1 {
		set = attribute.NewSet(attribute.Bool("otel.metric.overflow", true))
		at = slices.IndexFunc(s.sets, func(known attribute.Set) bool { return known.Equals(&set) })
	}
	if at >= 0 {
		return s.all[at]
	}
	s.sets, s.all = append(s.sets, set), append(s.all, empty())
	return s.all[len(s.all)-1]
}

// Counter makes a counter. Its unit is as UCUM has it.
func (h *Hot) Counter(name, unit, about string) *HotCounter {
	if h == nil {
		return nil
	}
	c := &HotCounter{described: described{name, unit, about}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.metrics = append(h.metrics, c)
	return c
}

// Histogram makes a histogram of buckets with these upper bounds, in order.
func (h *Hot) Histogram(name, unit, about string, bounds ...float64) *HotHistogram {
	if h == nil {
		return nil
	}
	g := &HotHistogram{described: described{name, unit, about}, bounds: bounds}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.metrics = append(h.metrics, g)
	return g
}

// Series gives the series of these labels, to be kept: finding it takes long.
func (c *HotCounter) Series(labels ...attribute.KeyValue) *Count {
	if c == nil {
		return nil
	}
	return c.series.of(attribute.NewSet(labels...), func() *Count { return new(Count) })
}

// Series gives the series of these labels, to be kept: finding it takes long.
func (g *HotHistogram) Series(labels ...attribute.KeyValue) *Buckets {
	if g == nil {
		return nil
	}
	return g.series.of(attribute.NewSet(labels...), func() *Buckets {
		return &Buckets{bounds: g.bounds, counts: make([]atomic.Uint64, len(g.bounds)+1)}
	})
}

// Count is a series of a counter.
type Count struct{ n atomic.Int64 }

// Add adds n, which must not be negative.
func (c *Count) Add(n int64) {
	if c != nil {
		c.n.Add(n)
	}
}

// Buckets is a series of a histogram.
type Buckets struct {
	bounds []float64
	counts []atomic.Uint64
	sum    atomic.Uint64 // the bits of a float64
}

// Note adds a value to its bucket, whose upper bound it may be.
func (b *Buckets) Note(v float64) {
	if b == nil {
		return
	}
	at := 0
	for at < len(b.bounds) && v > b.bounds[at] {
		at++
	}
	b.counts[at].Add(1)
	for {
		old := b.sum.Load()
		if b.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Produce reads all series in which something was noted, for the SDK's readers.
func (h *Hot) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := [2]time.Time{h.began, time.Now()}
	scope := metricdata.ScopeMetrics{Scope: instrumentation.Scope{Name: h.scope}}
	for _, m := range h.metrics {
		scope.Metrics = append(scope.Metrics, m.read(at))
	}
	return []metricdata.ScopeMetrics{scope}, nil
}

func (c *HotCounter) read(at [2]time.Time) metricdata.Metrics {
	data := metricdata.Sum[int64]{Temporality: metricdata.CumulativeTemporality, IsMonotonic: true}
	c.series.mu.Lock()
	defer c.series.mu.Unlock()
	for i, s := range c.series.all {
		if n := s.n.Load(); n > 0 {
			data.DataPoints = append(data.DataPoints, metricdata.DataPoint[int64]{
				Attributes: c.series.sets[i], StartTime: at[0], Time: at[1], Value: n})
		}
	}
	return metricdata.Metrics{Name: c.name, Description: c.about, Unit: c.unit, Data: data}
}

func (g *HotHistogram) read(at [2]time.Time) metricdata.Metrics {
	data := metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality}
	g.series.mu.Lock()
	defer g.series.mu.Unlock()
	for i, s := range g.series.all {
		p := metricdata.HistogramDataPoint[float64]{Attributes: g.series.sets[i], StartTime: at[0], Time: at[1],
			Bounds: g.bounds, BucketCounts: make([]uint64, len(s.counts)), Sum: math.Float64frombits(s.sum.Load())}
		for b := range s.counts {
			p.BucketCounts[b] = s.counts[b].Load()
			p.Count += p.BucketCounts[b]
		}
		if p.Count > 0 {
			data.DataPoints = append(data.DataPoints, p)
		}
	}
	return metricdata.Metrics{Name: g.name, Description: g.about, Unit: g.unit, Data: data}
}

package function

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// outcome is what became of an event, for the metrics.
type outcome int

const (
	replied     outcome = iota // handled, with a reply
	accepted                   // handled, nothing to reply
	invalid                    // refused for good
	overload                   // 429
	unavailable                // 503
	failed                     // 500
	outcomes
)

var outcomeNames = [outcomes]string{"replied", "accepted", "invalid", "overloaded", "unavailable", "failed"}

func outcomeOf(status int) outcome {
	switch {
	case permanent(status):
		return invalid
	case status == http.StatusTooManyRequests:
		return overload
	case status == http.StatusServiceUnavailable:
		return unavailable
	}
	return failed
}

// maxTypes bounds the event types that get time series of their own.
const maxTypes = 64

// instruments is the one metric set of all functions. Attribute sets are made
// once a type, counts are added once a request and type.
type instruments struct {
	events   metric.Int64Counter
	seconds  metric.Float64Histogram
	lag      metric.Float64Histogram
	size     metric.Int64Histogram
	inFlight atomic.Int64
	ready    atomic.Int64 // nanoseconds from the process's start to its first readiness; 0: not yet

	types atomic.Pointer[map[string]*typeSeries] // copied on write
	mu    sync.Mutex                             // of the writers
	other *typeSeries
}

// typeSeries holds the attributes of one event type.
type typeSeries struct {
	outcomes [outcomes][]metric.AddOption
	lag      []metric.RecordOption
}

func newTypeSeries(typ string) *typeSeries {
	name := attribute.String("type", typ)
	s := &typeSeries{lag: []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(name))}}
	for o, text := range outcomeNames {
		set := attribute.NewSet(name, attribute.String("outcome", text))
		s.outcomes[o] = []metric.AddOption{metric.WithAttributeSet(set)}
	}
	return s
}

func newInstruments(provider metric.MeterProvider) (*instruments, error) {
	m := provider.Meter("github.com/millrace-dev/millrace/shared/function")
	i := &instruments{other: newTypeSeries("other")}
	i.types.Store(&map[string]*typeSeries{})
	var err error
	if i.events, err = m.Int64Counter("function.events",
		metric.WithDescription("Events by type and outcome.")); err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	if i.seconds, err = m.Float64Histogram("function.handling",
		metric.WithUnit("s"), metric.WithDescription("Duration of a handler call, whatever its batch size."),
		metric.WithExplicitBucketBoundaries(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
			0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)); err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	if i.lag, err = m.Float64Histogram("function.event.lag",
		metric.WithUnit("s"), metric.WithDescription("Age of an event, by its time attribute, when it was handled."),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
			10, 30, 60, 300, 1800, 3600, 86400)); err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	if i.size, err = m.Int64Histogram("function.batch.size",
		metric.WithDescription("Events of a handler call."),
		metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)); err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	_, err = m.Int64ObservableUpDownCounter("function.events.in_flight",
		metric.WithDescription("Events that were received and not answered yet."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(i.inFlight.Load())
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	_, err = m.Float64ObservableGauge("function.start", metric.WithUnit("s"),
		metric.WithDescription("From the start of the process until it was ready for the first time, which is its share of a cold start."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			if took := time.Duration(i.ready.Load()); took > 0 {
				o.Observe(took.Seconds())
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	return i, nil
}

// began is close to when the process began: nothing but Go's own start is before it.
var began = time.Now()

// series finds the series of a type. Unknown types get their own as long as there
// is room and the event was not refused: senders must not choose the labels.
func (i *instruments) series(typ string, o outcome) *typeSeries {
	known := *i.types.Load()
	if s, ok := known[typ]; ok {
		return s
	}
	if o == invalid || len(known) >= maxTypes {
		return i.other
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	known = *i.types.Load()
	if s, ok := known[typ]; ok {
		return s
	}
	if len(known) >= maxTypes {
		return i.other
	}
	s := newTypeSeries(typ)
	grown := maps.Clone(known)
	grown[typ] = s
	i.types.Store(&grown)
	return s
}

// tally adds up the events of one request before they are counted.
type tally struct {
	*instruments
	now    time.Time
	series *typeSeries
	typ    string
	counts [outcomes]int64
}

func (t *tally) add(e *event.Event, o outcome) {
	var typ string
	var at time.Time
	if c, ok := e.Context.(*event.EventContextV1); ok {
		typ = c.Type
		if c.Time != nil {
			at = c.Time.Time
		}
	}
	if t.series == nil || typ != t.typ {
		t.flush()
		t.series, t.typ = t.instruments.series(typ, o), typ
	}
	t.counts[o]++
	if !at.IsZero() {
		t.lag.Record(context.Background(), max(0, t.now.Sub(at).Seconds()), t.series.lag...)
	}
}

func (t *tally) flush() {
	if t.series == nil {
		return
	}
	for o, n := range t.counts {
		if n > 0 {
			t.events.Add(context.Background(), n, t.series.outcomes[o]...)
		}
	}
	t.counts = [outcomes]int64{}
}

// refused counts a request that was no event, or events that were not let in.
func (i *instruments) refused(err error) {
	o := outcomeOf(Status(err))
	i.events.Add(context.Background(), 1, i.other.outcomes[o]...)
}

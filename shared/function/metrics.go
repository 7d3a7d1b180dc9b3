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

	"github.com/millrace-dev/millrace/shared/telemetry"
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

// instruments is the one metric set of all functions. Series are found once a type,
// counts are added once a request and type.
type instruments struct {
	events   *telemetry.HotCounter
	seconds  *telemetry.Buckets
	lag      *telemetry.HotHistogram
	size     *telemetry.Buckets
	inFlight atomic.Int64
	ready    atomic.Int64 // nanoseconds from the process's start to its first readiness; 0: not yet

	types atomic.Pointer[map[string]*typeSeries] // copied on write
	mu    sync.Mutex                             // of the writers
	other *typeSeries
}

// typeSeries holds the series of one event type.
type typeSeries struct {
	outcomes [outcomes]*telemetry.Count
	lag      *telemetry.Buckets
}

func (i *instruments) newTypeSeries(typ string) *typeSeries {
	name := attribute.String("type", typ)
	s := &typeSeries{lag: i.lag.Series(name)}
	for o, text := range outcomeNames {
		s.outcomes[o] = i.events.Series(name, attribute.String("outcome", text))
	}
	return s
}

func newInstruments(provider metric.MeterProvider, hot *telemetry.Hot) (*instruments, error) {
	i := &instruments{
		events: hot.Counter("function.events", "", "Events by type and outcome."),
		lag: hot.Histogram("function.event.lag", "s", "Age of an event, by its time attribute, when it was handled.",
			0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 86400),
		seconds: hot.Histogram("function.handling", "s", "Duration of a handler call, whatever its batch size.",
			0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30).Series(),
		size: hot.Histogram("function.batch.size", "", "Events of a handler call.", 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000).Series(),
	}
	i.other = i.newTypeSeries("other")
	i.types.Store(&map[string]*typeSeries{})
	m := provider.Meter("github.com/millrace-dev/millrace/shared/function")
	_, err := m.Int64ObservableUpDownCounter("function.events.in_flight",
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
	s := i.newTypeSeries(typ)
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
		t.series.lag.Note(max(0, t.now.Sub(at).Seconds()))
	}
}

func (t *tally) flush() {
	if t.series == nil {
		return
	}
	for o, n := range t.counts {
		if n > 0 {
			t.series.outcomes[o].Add(n)
		}
	}
	t.counts = [outcomes]int64{}
}

// refused counts a request that was no event, or events that were not let in.
func (i *instruments) refused(err error) {
	o := outcomeOf(Status(err))
	i.other.outcomes[o].Add(1)
}

package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// instruments are the function's own metrics. Predictions and scores are counted by
// version and by its role, so that canary and shadow can be compared with live.
type instruments struct {
	predictions metric.Int64Counter
	scores      metric.Float64Histogram
	seconds     metric.Float64Histogram
	lookups     metric.Int64Counter
	loads       metric.Int64Counter
	dropped     metric.Int64Counter
	failed      metric.Int64Counter
	differences metric.Float64Histogram
	payloads    metric.Int64Counter
}

// versionCounts are the attributes of a version's series.
type versionCounts struct{ attributes metric.MeasurementOption }

func newInstruments() (*instruments, error) {
	m := otel.Meter("github.com/millrace-dev/millrace/functions/predict")
	var i instruments
	// Tenths for probabilities, more for values such as watts.
	values := []float64{0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 10, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1000}
	for _, make := range []func() error{
		func() (err error) {
			i.predictions, err = m.Int64Counter("predict.predictions", metric.WithUnit("{prediction}"),
				metric.WithDescription("Predictions by model, version and role (live, canary, shadow)."))
			return
		},
		func() (err error) {
			i.scores, err = m.Float64Histogram("predict.score", metric.WithExplicitBucketBoundaries(values...),
				metric.WithDescription("Predicted values by model, version and role; of several classes the last one's."))
			return
		},
		func() (err error) {
			i.seconds, err = m.Float64Histogram("predict.request", metric.WithUnit("s"),
				metric.WithExplicitBucketBoundaries(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
				metric.WithDescription("Seconds that HTTP requests took, by protocol, http.route, http.request.method and http.response.status_code."))
			return
		},
		func() (err error) {
			i.lookups, err = m.Int64Counter("predict.lookups", metric.WithUnit("{entity}"),
				metric.WithDescription("Entities looked up in the online store, by what was found."))
			return
		},
		func() (err error) {
			i.loads, err = m.Int64Counter("predict.loads", metric.WithUnit("{load}"),
				metric.WithDescription("Model versions that were loaded, or failures that were new, by role."))
			return
		},
		func() (err error) {
			i.dropped, err = m.Int64Counter("predict.shadow.dropped", metric.WithUnit("{prediction}"),
				metric.WithDescription("Items that the shadow did not see since it was busy."))
			return
		},
		func() (err error) {
			i.failed, err = m.Int64Counter("predict.shadow.failed", metric.WithUnit("{prediction}"),
				metric.WithDescription("Items that the shadow could not predict."))
			return
		},
		func() (err error) {
			i.differences, err = m.Float64Histogram("predict.shadow.difference",
				metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1),
				metric.WithDescription("How far the shadow's predictions are from those that were given."))
			return
		},
		func() (err error) {
			i.payloads, err = m.Int64Counter("predict.payloads", metric.WithUnit("{event}"),
				metric.WithDescription("Requests and answers that were sent on as events, or refused by who was to get them."))
			return
		},
	} {
		if err := make(); err != nil {
			return nil, fmt.Errorf("making metrics: %w", err)
		}
	}
	return &i, nil
}

// served tells which versions the slots serve, and since when.
func served(slots func() []*slot) error {
	_, err := otel.Meter("github.com/millrace-dev/millrace/functions/predict").Float64ObservableGauge("predict.model.loaded.timestamp", metric.WithUnit("s"),
		metric.WithDescription("Since when a version serves here, by model, version and role, as Unix time."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			for _, s := range slots() {
				if v := s.current.Load(); v != nil {
					o.Observe(float64(v.loaded.UnixMilli())/1000, v.counts.attributes)
				}
			}
			return nil
		}))
	if err != nil {
		return fmt.Errorf("making metrics: %w", err)
	}
	return nil
}

func (i *instruments) version(role string, v *version) versionCounts {
	return versionCounts{metric.WithAttributeSet(attribute.NewSet(
		attribute.String("model", v.name), attribute.String("version", v.version), attribute.String("role", role)))}
}

func (i *instruments) predicted(ctx context.Context, v *version, out []float64) {
	n := v.outputs()
	i.predictions.Add(ctx, int64(len(out)/n), v.counts.attributes)
	for at := n - 1; at < len(out); at += n {
		i.scores.Record(ctx, out[at], v.counts.attributes)
	}
}

func (i *instruments) compared(ctx context.Context, v *version, out, given []float64) {
	for at := range out {
		i.differences.Record(ctx, math.Abs(out[at]-given[at]), v.counts.attributes)
	}
}

func (i *instruments) shadowDropped(ctx context.Context, n int) { i.dropped.Add(ctx, int64(n)) }

func (i *instruments) shadowFailed(ctx context.Context, v *version, n int) {
	i.failed.Add(ctx, int64(n), v.counts.attributes)
}

func (i *instruments) load(ctx context.Context, role, outcome string) {
	i.loads.Add(ctx, 1, metric.WithAttributes(attribute.String("role", role), attribute.String("outcome", outcome)))
}

func (i *instruments) looked(ctx context.Context, status string, n int) {
	if n > 0 {
		i.lookups.Add(ctx, int64(n), metric.WithAttributes(attribute.String("status", status)))
	}
}

func (i *instruments) payload(ctx context.Context, outcome string, n int) {
	i.payloads.Add(ctx, int64(n), metric.WithAttributes(attribute.String("outcome", outcome)))
}

// requests notes the requests of one route, by what the semantic conventions of HTTP say.
type requests struct {
	seconds metric.Float64Histogram
	labels  []attribute.KeyValue
	ok      metric.MeasurementOption // of a 200, which nearly all are
}

func (i *instruments) route(pattern, protocol string) *requests {
	method, route, _ := strings.Cut(pattern, " ")
	r := &requests{seconds: i.seconds, labels: []attribute.KeyValue{
		attribute.String("protocol", protocol), attribute.String("http.request.method", method), attribute.String("http.route", route)}}
	r.ok = r.of(http.StatusOK)
	return r
}

func (r *requests) of(status int) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(append(slices.Clone(r.labels), attribute.Int("http.response.status_code", status))...))
}

func (r *requests) done(ctx context.Context, status int, start time.Time) {
	labels := r.ok
	if status != http.StatusOK {
		labels = r.of(status)
	}
	r.seconds.Record(ctx, time.Since(start).Seconds(), labels)
}

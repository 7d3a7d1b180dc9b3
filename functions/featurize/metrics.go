package main

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/online"
)

// metrics are what the runtime cannot know of this function's events and requests.
type metrics struct {
	events       metric.Int64Counter
	written      metric.Int64Counter
	freshness    metric.Float64Histogram
	redis        metric.Float64Histogram
	materialized metric.Int64Counter
	fills        metric.Int64Counter
	requests     metric.Float64Histogram
}

func newMetrics() (*metrics, error) {
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/featurize")
	m := &metrics{}
	var err error
	counter := func(name, unit, text string) (c metric.Int64Counter) {
		if err == nil {
			c, err = meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(text))
		}
		return c
	}
	seconds := func(name, text string, bounds ...float64) (h metric.Float64Histogram) {
		if err == nil {
			h, err = meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), metric.WithExplicitBucketBoundaries(bounds...))
		}
		return h
	}
	m.events = counter("featurize.events", "{event}", "Events whose features were written or were there already.")
	m.written = counter("featurize.features.written", "{entity}", "Entities whose features changed in the online store, by who wrote them (stream, warehouse, push).")
	m.materialized = counter("featurize.materialized", "{event}", "Events that were read from the warehouse to fill the online store.")
	m.fills = counter("featurize.fills", "{fill}", "Times that an empty online store was filled: after the first, it had lost its data.")
	m.freshness = seconds("featurize.freshness", "From the time of an event until its features were online.",
		0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 86400)
	m.redis = seconds("featurize.redis", "Round trips to Redis, by what for and outcome.",
		0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
	m.requests = seconds("featurize.request", "Requests to the feature API, by http.route, http.request.method and http.response.status_code.",
		0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
	if err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) featurized(ctx context.Context, entries []online.Entry, now time.Time) {
	m.events.Add(ctx, int64(len(entries)))
	for i := range entries {
		m.freshness.Record(ctx, now.Sub(entries[i].Event.Time).Seconds())
	}
}

// Attribute sets are made once.
var (
	byWriter   = map[string]metric.MeasurementOption{}
	byTrip     = map[string][2]metric.MeasurementOption{}
	writers    = []string{"stream", "warehouse", "push"}
	operations = []string{"put", "get", "push"}
)

func init() {
	for _, name := range writers {
		byWriter[name] = metric.WithAttributeSet(attribute.NewSet(attribute.String("by", name)))
	}
	for _, name := range operations {
		of := func(outcome string) metric.MeasurementOption {
			return metric.WithAttributeSet(attribute.NewSet(attribute.String("operation", name), attribute.String("outcome", outcome)))
		}
		byTrip[name] = [2]metric.MeasurementOption{of("ok"), of("error")}
	}
}

func (m *metrics) wrote(ctx context.Context, by string, entities int) {
	m.written.Add(ctx, int64(entities), byWriter[by])
}

func (m *metrics) roundTrip(ctx context.Context, operation string, start time.Time, err error) {
	outcome := 0
	if err != nil {
		outcome = 1
	}
	m.redis.Record(ctx, time.Since(start).Seconds(), byTrip[operation][outcome])
}

package main

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/anomaly"
)

// metrics are what the runtime cannot know of readings and models.
type metrics struct {
	readings, anomalies, unjudged, stale, trainings metric.Int64Counter
	redis, trainSeconds                             metric.Float64Histogram
}

func newMetrics(c *cache) (*metrics, error) {
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/detect")
	m := &metrics{}
	var err error
	counter := func(name, unit, text string) (c metric.Int64Counter) {
		if err == nil {
			c, err = meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(text))
		}
		return c
	}
	m.readings = counter("detect.readings", "{reading}", "Readings, by contract and outcome (new, duplicate, late).")
	m.anomalies = counter("detect.anomalies", "{event}", "What was said of anomalies, by contract, kind (detected, escalated, resolved) and severity.")
	m.unjudged = counter("detect.unjudged", "{reading}", "Readings of which some detector could say nothing, by contract: in the warm-up, or without a value.")
	m.stale = counter("detect.stale", "{batch}", "Batches that were judged anew since another process had written the same states.")
	m.trainings = counter("detect.models.trained", "{model}", "Models that were learnt from history, by outcome of the training.")
	seconds := func(name, text string, bounds ...float64) (h metric.Float64Histogram) {
		if err == nil {
			h, err = meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), metric.WithExplicitBucketBoundaries(bounds...))
		}
		return h
	}
	m.redis = seconds("detect.redis", "Round trips to Redis, by what for and outcome.",
		0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
	m.trainSeconds = seconds("detect.training", "Trainings.", 0.1, 0.5, 1, 2.5, 5, 10, 20, 45, 90)
	if err == nil {
		_, err = meter.Float64ObservableGauge("detect.model.age", metric.WithUnit("s"),
			metric.WithDescription("Age of the oldest model in use, by contract."),
			metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
				for contract, s := range c.summary(time.Now()) {
					o.Observe(s.oldest.Seconds(), metric.WithAttributes(attribute.String("contract", contract)))
				}
				return nil
			}))
	}
	if err == nil {
		_, err = meter.Int64ObservableGauge("detect.metrics", metric.WithUnit("{metric}"),
			metric.WithDescription("Metrics of the entities in memory, by contract and how they are judged (seasonal, level, warming)."),
			metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
				for contract, s := range c.summary(time.Now()) {
					for status, n := range s.status {
						o.Observe(int64(n), metric.WithAttributes(attribute.String("contract", contract), attribute.String("status", status)))
					}
				}
				return nil
			}))
	}
	if err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	return m, nil
}

// summary is how the entities of a contract are judged.
type summary struct {
	oldest time.Duration
	status map[string]int
}

func (c *cache) summary(now time.Time) map[string]summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]summary{}
	for k, e := range c.by {
		s, ok := all[k.contract]
		if !ok {
			s.status = map[string]int{"seasonal": 0, "level": 0, "warming": 0}
		}
		for i := range e.plan.Metrics {
			if !e.plan.Learnt[i] {
				continue
			}
			var m *anomaly.Model
			if len(e.known.Models) > 0 {
				m = e.known.Models[i]
			}
			s.status[status(m)]++
			if m != nil {
				s.oldest = max(s.oldest, now.Sub(m.Trained))
			}
		}
		all[k.contract] = s
	}
	return all
}

// status says how a metric is judged.
func status(m *anomaly.Model) string {
	switch {
	case m == nil:
		return "warming"
	case m.Seasonal():
		return "seasonal"
	}
	return "level"
}

var outcomes = [...]string{anomaly.New: "new", anomaly.Duplicate: "duplicate", anomaly.Late: "late"}

var kinds = [...]string{anomaly.Detected: "detected", anomaly.Escalated: "escalated", anomaly.Resolved: "resolved"}

// counts are what a batch adds to the counters.
type counts struct {
	readings map[readingKind]int64
	unjudged map[string]int64
	said     map[saidKind]int64
}

type readingKind struct {
	contract string
	outcome  anomaly.Outcome
}

type saidKind struct {
	contract, severity string
	kind               anomaly.Kind
}

func (c *counts) add(it *item, outcome anomaly.Outcome, known int) {
	if c.readings == nil {
		c.readings, c.unjudged, c.said = map[readingKind]int64{}, map[string]int64{}, map[saidKind]int64{}
	}
	name := it.stream.plan.Contract
	c.readings[readingKind{name, outcome}]++
	if outcome != anomaly.New {
		return
	}
	if known < len(it.stream.plan.Channels) {
		c.unjudged[name]++
	}
	for _, e := range it.events {
		c.said[saidKind{name, e.Anomaly.Severity, e.Kind}]++
	}
}

func (c *counts) record(ctx context.Context, m *metrics) {
	for k, n := range c.readings {
		m.readings.Add(ctx, n, metric.WithAttributes(attribute.String("contract", k.contract), attribute.String("outcome", outcomes[k.outcome])))
	}
	for contract, n := range c.unjudged {
		m.unjudged.Add(ctx, n, metric.WithAttributes(attribute.String("contract", contract)))
	}
	for k, n := range c.said {
		m.anomalies.Add(ctx, n, metric.WithAttributes(attribute.String("contract", k.contract),
			attribute.String("kind", kinds[k.kind]), attribute.String("severity", k.severity)))
	}
}

func (m *metrics) roundTrip(ctx context.Context, operation string, start time.Time, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.redis.Record(ctx, time.Since(start).Seconds(), metric.WithAttributes(attribute.String("operation", operation), attribute.String("outcome", outcome)))
}

func (m *metrics) training(ctx context.Context, start time.Time, models int, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.trainings.Add(ctx, int64(models), metric.WithAttributes(attribute.String("outcome", outcome)))
	m.trainSeconds.Record(ctx, time.Since(start).Seconds(), metric.WithAttributes(attribute.String("outcome", outcome)))
}

package main

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are lake's own; those of its events are the runtime's.
type metrics struct {
	records, duplicates, objects, bytes metric.Int64Counter
	seconds                             metric.Float64Histogram
}

func newMetrics(d *Drainer) (*metrics, error) {
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/lake")
	m := &metrics{}
	var err error
	for _, c := range []struct {
		counter    *metric.Int64Counter
		name, unit string
		text       string
	}{
		{&m.records, "lake.records", "{record}", "Records that were added to the lake."},
		{&m.duplicates, "lake.duplicates", "{record}", "Records that were dropped because the lake has their event."},
		{&m.objects, "lake.objects", "{object}", "Objects that were written, each replacement counted."},
		{&m.bytes, "lake.written", "By", "Bytes of the objects that were written."},
	} {
		if *c.counter, err = meter.Int64Counter(c.name, metric.WithUnit(c.unit), metric.WithDescription(c.text)); err != nil {
			return nil, fmt.Errorf("making metric %s: %w", c.name, err)
		}
	}
	m.seconds, err = meter.Float64Histogram("lake.drain.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of drains that found something new."),
		metric.WithExplicitBucketBoundaries(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 240))
	if err != nil {
		return nil, fmt.Errorf("making metric lake.drain.duration: %w", err)
	}
	_, err = meter.Int64ObservableGauge("lake.lag", metric.WithUnit("{record}"),
		metric.WithDescription("Offsets that were not in the lake after the last drain."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			for id, s := range d.states {
				o.Observe(max(s.end-s.offset, 0), metric.WithAttributes(
					attribute.String("topic", id.topic), attribute.Int("partition", int(id.partition))))
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("making metric lake.lag: %w", err)
	}
	_, err = meter.Int64ObservableCounter("lake.lost", metric.WithUnit("{record}"),
		metric.WithDescription("Offsets that Kafka deleted before they were drained."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			o.Observe(d.lost)
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("making metric lake.lost: %w", err)
	}
	return m, nil
}

func (m *metrics) partition(ctx context.Context, d *partitionDrain) {
	topic := metric.WithAttributes(attribute.String("topic", d.src.topic))
	m.records.Add(ctx, d.count.Records, topic)
	m.duplicates.Add(ctx, d.count.Duplicates, topic)
	m.objects.Add(ctx, d.count.Objects, topic)
	m.bytes.Add(ctx, d.count.Bytes, topic)
}

func (m *metrics) drained(ctx context.Context, took time.Duration) {
	m.seconds.Record(ctx, took.Seconds())
}

package eventing

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Instrument reports what stats gives, usually Engine.Stats, to the meter whenever
// metrics are collected, with the kind, namespace and name of each source, Trigger and
// sink as attributes.
func Instrument(m metric.Meter, stats func() Stats) error {
	var failed error
	counter := func(name, what string) metric.Int64ObservableCounter {
		c, err := m.Int64ObservableCounter(name, metric.WithDescription(what), metric.WithUnit("{event}"))
		if err != nil {
			failed = err
		}
		return c
	}
	gauge := func(name, what, unit string) metric.Int64ObservableGauge {
		g, err := m.Int64ObservableGauge(name, metric.WithDescription(what), metric.WithUnit(unit))
		if err != nil {
			failed = err
		}
		return g
	}
	received := counter("eventing.received", "Events read by a source or Trigger.")
	matched := counter("eventing.matched", "Events that passed the filter.")
	delivered := counter("eventing.delivered", "Events that the sink or subscriber accepted.")
	replies := counter("eventing.replies", "Replies that were stored.")
	retries := counter("eventing.retries", "Deliveries that were repeated.")
	dead := counter("eventing.dead_lettered", "Events that the dead-letter sink accepted.")
	dropped := counter("eventing.discarded", "Events that had no dead-letter sink to go to.")
	written := counter("eventing.written", "Events written to a sink's topic.")
	accepted := counter("eventing.accepted", "Events accepted over HTTP.")
	flying := gauge("eventing.in_flight", "Events that are with the subscriber or wait for a retry.", "{event}")
	lag := gauge("eventing.lag", "Events still to be done, and records still to be looked at for more of them.", "{event}")
	failing := gauge("eventing.failing", "How long deliveries have been failing.", "s")
	if failed != nil {
		return fmt.Errorf("making the eventing metrics: %w", failed)
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := stats()
		for _, f := range append(s.Sources, s.Triggers...) {
			at := labels(f.Kind, f.Namespace, f.Name, "")
			o.ObserveInt64(received, int64(f.Received), at)
			o.ObserveInt64(matched, int64(f.Matched), at)
			o.ObserveInt64(delivered, int64(f.Delivered), at)
			o.ObserveInt64(replies, int64(f.Replies), at)
			o.ObserveInt64(retries, int64(f.Retries), at)
			o.ObserveInt64(dead, int64(f.DeadLettered), at)
			o.ObserveInt64(dropped, int64(f.Discarded), at)
			o.ObserveInt64(flying, f.InFlight, at)
			o.ObserveInt64(lag, f.Lag, at)
			seconds := int64(0)
			if !f.FailingSince.IsZero() {
				seconds = int64(time.Since(f.FailingSince).Seconds())
			}
			o.ObserveInt64(failing, seconds, at)
		}
		for _, k := range s.Sinks {
			o.ObserveInt64(written, int64(k.Written), labels(k.Kind, k.Namespace, k.Name, k.Topic))
		}
		for _, b := range s.Brokers {
			o.ObserveInt64(accepted, int64(b.Accepted), labels(b.Kind, b.Namespace, b.Name, ""))
		}
		return nil
	}, received, matched, delivered, replies, retries, dead, dropped, written, accepted, flying, lag, failing)
	if err != nil {
		return fmt.Errorf("making the eventing metrics: %w", err)
	}
	return nil
}

func labels(kind, namespace, name, topic string) metric.MeasurementOption {
	at := []attribute.KeyValue{attribute.String("kind", kind), attribute.String("namespace", namespace), attribute.String("name", name)}
	if topic != "" {
		at = append(at, attribute.String("topic", topic))
	}
	return metric.WithAttributes(at...)
}

package main

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are what the runtime cannot know of decisions. Why each was taken is in
// learning.decisions.
type metrics struct{ decisions metric.Int64Counter }

func newMetrics(models []string) (*metrics, error) {
	m := &metrics{}
	var err error
	if m.decisions, err = otel.Meter("github.com/millrace-dev/millrace/functions/train-trigger").Int64Counter("learning.decisions",
		metric.WithUnit("{decision}"),
		metric.WithDescription("Decisions that had their effect and were told, by model and decision: train, promote, keep, rollback, give up.")); err != nil {
		return nil, fmt.Errorf("making metric learning.decisions: %w", err)
	}
	// A rate is told from nothing only by a counter that began at 0.
	for _, model := range models {
		for _, decision := range []string{"train", "promote", "keep", "rollback", "give up"} {
			m.decided(context.Background(), model, decision, 0)
		}
	}
	return m, nil
}

func (m *metrics) decided(ctx context.Context, model, decision string, n int64) {
	if m != nil {
		m.decisions.Add(ctx, n, metric.WithAttributes(attribute.String("model", model), attribute.String("decision", decision)))
	}
}

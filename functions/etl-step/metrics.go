package main

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/quality"
)

// metrics are what the runtime cannot know of steps. Which object and why is in etl.runs
// and etl.quality_reports.
type metrics struct {
	seconds metric.Float64Histogram
	rows    metric.Int64Counter
	checks  metric.Int64Counter
}

func newMetrics() (*metrics, error) {
	m := &metrics{}
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/etl-step")
	var err error
	if m.seconds, err = meter.Float64Histogram("etl.step", metric.WithUnit("s"),
		metric.WithDescription("Runs of steps, by step and the state that they ended in: succeeded, stopped, refused, failed."),
		metric.WithExplicitBucketBoundaries(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)); err != nil {
		return nil, fmt.Errorf("making metric etl.step: %w", err)
	}
	if m.rows, err = meter.Int64Counter("etl.rows", metric.WithUnit("{row}"),
		metric.WithDescription("Rows that steps wrote, by step.")); err != nil {
		return nil, fmt.Errorf("making metric etl.rows: %w", err)
	}
	if m.checks, err = meter.Int64Counter("etl.checks", metric.WithUnit("{check}"),
		metric.WithDescription("Quality checks of reports that were kept, by layer and outcome: passed, failed, and blocked for those that stopped a load.")); err != nil {
		return nil, fmt.Errorf("making metric etl.checks: %w", err)
	}
	// A rate is told from nothing only by a counter that began at 0.
	for _, layer := range suiteNames {
		for _, outcome := range []string{"passed", "failed", "blocked"} {
			m.checks.Add(context.Background(), 0, metric.WithAttributes(attribute.String("layer", layer), attribute.String("outcome", outcome)))
		}
	}
	return m, nil
}

func (m *metrics) ran(ctx context.Context, step, state string, rows int64, began time.Time) {
	name := attribute.String("step", step)
	m.seconds.Record(ctx, time.Since(began).Seconds(), metric.WithAttributes(name, attribute.String("state", state)))
	m.rows.Add(ctx, rows, metric.WithAttributes(name))
}

func (m *metrics) checked(ctx context.Context, layer string, blocked int, r *quality.Report) {
	for outcome, n := range map[string]int{"passed": r.Statistics.Successful, "failed": r.Statistics.Unsuccessful - blocked, "blocked": blocked} {
		m.checks.Add(ctx, int64(n), metric.WithAttributes(attribute.String("layer", layer), attribute.String("outcome", outcome)))
	}
}

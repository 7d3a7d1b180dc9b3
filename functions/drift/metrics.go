package main

import (
	"context"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// maxColumns bounds the columns of a model that have series of their own: how many a
// model has is for who trained it to say. All of them are in drift.measurements.
const maxColumns = 100

// metrics are the latest windows that this process measured, by model.
type metrics struct {
	mu     sync.Mutex
	latest map[string]*Report
}

// note remembers a window. The models are those of the plan.
func (m *metrics) note(r *Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.latest == nil {
		m.latest = map[string]*Report{}
	}
	m.latest[r.Model] = r
}

func (m *metrics) register() error {
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/drift")
	share, err := meter.Float64ObservableGauge("drift.share", metric.WithUnit("1"),
		metric.WithDescription("Share of the columns that drifted in the latest window, by model."))
	if err != nil {
		return fmt.Errorf("making metric drift.share: %w", err)
	}
	score, err := meter.Float64ObservableGauge("drift.score",
		metric.WithDescription("How far a column is from its baseline in the latest window, by model, column and method; above drift.limit, or below it where the method is a p-value, it has drifted."))
	if err != nil {
		return fmt.Errorf("making metric drift.score: %w", err)
	}
	limit, err := meter.Float64ObservableGauge("drift.limit",
		metric.WithDescription("What drift.score is compared with, by model, column and method."))
	if err != nil {
		return fmt.Errorf("making metric drift.limit: %w", err)
	}
	state, err := meter.Int64ObservableGauge("drift.detected",
		metric.WithDescription("Whether a model drifts since it was detected, by model: 1 or 0."))
	if err != nil {
		return fmt.Errorf("making metric drift.detected: %w", err)
	}
	end, err := meter.Float64ObservableGauge("drift.window.timestamp", metric.WithUnit("s"),
		metric.WithDescription("End of the latest window, by model, as Unix time."))
	if err != nil {
		return fmt.Errorf("making metric drift.window.timestamp: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for name, r := range m.latest {
			model := attribute.String("model", name)
			of := metric.WithAttributes(model)
			on := int64(0)
			if r.State == detected || r.State == drifting {
				on = 1
			}
			o.ObserveInt64(state, on, of)
			o.ObserveFloat64(end, float64(r.To.UnixMilli())/1000, of)
			if !r.Judged {
				continue
			}
			o.ObserveFloat64(share, r.Share, of)
			for i := range min(len(r.Columns), maxColumns) {
				c := &r.Columns[i]
				if c.Method == "" {
					continue
				}
				column := metric.WithAttributes(model, attribute.String("column", c.Name), attribute.String("method", c.Method))
				o.ObserveFloat64(score, c.Score, column)
				o.ObserveFloat64(limit, c.Limit, column)
			}
		}
		return nil
	}, share, score, limit, state, end)
	if err != nil {
		return fmt.Errorf("observing drift: %w", err)
	}
	return nil
}

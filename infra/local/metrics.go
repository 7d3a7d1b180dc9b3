package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// instrument makes the metrics of the event graph, which are sent over OTLP too where
// OTEL_EXPORTER_OTLP_ENDPOINT says so.
func instrument(ctx context.Context, stats func() eventing.Stats) (handler http.Handler, stop func(context.Context) error, err error) {
	// Set-up makes its logger everybody's, and standard error is the live screen.
	before := slog.Default()
	t, err := telemetry.Setup(ctx, "runner")
	slog.SetDefault(before)
	if err != nil {
		return nil, nil, fmt.Errorf("setting up telemetry: %w", err)
	}
	if err := eventing.Instrument(t.Meters.Meter("runner"), stats); err != nil {
		return nil, nil, fmt.Errorf("making the metrics: %w", err)
	}
	return t.MetricsHandler(), t.Shutdown, nil
}

// targetGroup is what Prometheus scrapes, in the form of its HTTP service discovery.
type targetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// targets are the runner and the functions that run.
func (c *collector) targets() []targetGroup {
	groups := []targetGroup{}
	for _, p := range c.latest().Processes {
		function := slices.ContainsFunc(c.parts.platform.services, func(s service) bool { return s.name == p.Name })
		if p.Name == "runner" || function && p.PID != 0 {
			groups = append(groups, targetGroup{[]string{p.Address}, map[string]string{"service_name": p.Name}})
		}
	}
	return groups
}

func (c *collector) serveTargets(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(c.targets())
}

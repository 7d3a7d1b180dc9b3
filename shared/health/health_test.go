package health

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// gauges are the values of the metrics by name.
func gauges(t *testing.T, reader sdkmetric.Reader) map[string]float64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Gauge[int64]:
				got[m.Name] = float64(d.DataPoints[0].Value)
			case metricdata.Gauge[float64]:
				got[m.Name] = d.DataPoints[0].Value
			}
		}
	}
	return got
}

func TestSinceWhen(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	s := &Store{name: Redis}
	s.instrument(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test"))
	if got := gauges(t, reader); len(got) != 0 {
		t.Errorf("metrics before anything was noted: %v", got)
	}
	if s.Well() {
		t.Error("that it is well from the beginning is no news")
	}
	began, _ := s.State()

	asked := began.Since.Add(10 * time.Second)
	refused := errors.New("connection refused")
	if !s.FailedSince(asked, refused) || s.FailedSince(asked.Add(time.Second), errors.New("no route")) {
		t.Error("only the first failure is news")
	}
	got, _ := s.State()
	if diff := cmp.Diff(State{Name: "redis", Since: asked, Error: "no route"}, got); diff != "" {
		t.Errorf("away (-want +got):\n%s", diff)
	}
	want := map[string]float64{"millrace.store.up": 0, "millrace.store.changed.timestamp": float64(asked.UnixMilli()) / 1000}
	if diff := cmp.Diff(want, gauges(t, reader)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}

	again := asked.Add(51 * time.Second)
	if !s.note(true, again, "") || s.Well() {
		t.Error("that it is well again is news once")
	}
	got, _ = s.State()
	if diff := cmp.Diff(State{Name: "redis", Up: true, Since: again, AwaySeconds: 51}, got, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("well again (-want +got):\n%s", diff)
	}
	if got := gauges(t, reader)["millrace.store.up"]; got != 1 {
		t.Errorf("up is %v", got)
	}

	// What was asked before it was well says nothing of how long it is away now.
	s.FailedSince(asked, refused)
	if got, _ := s.State(); !got.Since.Equal(again) {
		t.Errorf("away since %s, want %s", got.Since, again)
	}
}

func TestOneStoreAName(t *testing.T) {
	if Of(Kafka) != Of(Kafka) || Of(Kafka) == Of(S3) { //nolint:staticcheck // SA4000: it is what is tested
		t.Error("a store is not told by its name")
	}
}

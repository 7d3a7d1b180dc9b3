package telemetry

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

func TestMetricsOfTheServiceAndTheProcess(t *testing.T) {
	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, set)
	if set.Traces != nil {
		t.Error("traces without a collector")
	}
	counter, err := otel.Meter("test").Int64Counter("things.done")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)

	w := httptest.NewRecorder()
	set.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := w.Body.String()
	for _, want := range []string{
		"things_done_total 3\n",
		`target_info{service_name="svc",service_version="` + BuildVersion() + `"} 1`,
		"process_resident_memory_bytes ",
		"go_goroutines ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("lacks %q:\n%s", want, body)
		}
	}
}

func TestCollectorGetsSpansMetricsAndLogs(t *testing.T) {
	var mu sync.Mutex
	paths := map[string]int{}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		paths[r.URL.Path]++
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)

	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	if set.Traces == nil {
		t.Fatal("no traces with a collector")
	}
	_, span := otel.Tracer("test").Start(t.Context(), "work", trace.WithNewRoot())
	span.End()
	counter, err := otel.Meter("test").Int64Counter("things.done")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	set.Logger.Info("something happened")
	shutdown(t, set) // flushes

	mu.Lock()
	defer mu.Unlock()
	if paths["/v1/traces"] == 0 || paths["/v1/metrics"] == 0 || paths["/v1/logs"] == 0 {
		t.Errorf("the collector got %v", paths)
	}
}

// A collector that is down delays the end of a process by no more than the
// caller allows.
func TestShutdownIsBounded(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := set.Shutdown(ctx); err == nil || !strings.HasPrefix(err.Error(), "flushing telemetry: ") {
		t.Errorf("error %v", err)
	}
	shutdown(t, set) // once more does nothing
}

func TestLogLevel(t *testing.T) {
	t.Setenv("LOG_LEVEL", "warn")
	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, set)
	if set.Logger.Enabled(t.Context(), slog.LevelInfo) || !set.Logger.Enabled(t.Context(), slog.LevelWarn) {
		t.Error("LOG_LEVEL=warn has no effect")
	}
	t.Setenv("LOG_LEVEL", "chatty")
	if _, err := Setup(t.Context(), "svc"); err == nil || err.Error() != `LOG_LEVEL="chatty": must be debug, info, warn or error` {
		t.Errorf("error %v", err)
	}
}

func TestBuildVersion(t *testing.T) {
	if BuildVersion() == "" {
		t.Error("empty")
	}
	Version = "v1.2.3"
	defer func() { Version = "" }()
	if got := BuildVersion(); got != "v1.2.3" {
		t.Errorf("version %s", got)
	}
}

func shutdown(t *testing.T, set *Telemetry) {
	t.Helper()
	if err := set.Shutdown(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestSampling(t *testing.T) {
	for _, tt := range []struct {
		name, arg string
		want      Sampling
		err       string
	}{
		{want: Sampling{Ratio: defaultRatio, PerSecond: defaultPerSecond}},
		{name: "parentbased_traceidratio", arg: "0.25", want: Sampling{Ratio: 0.25}},
		{name: "parentbased_traceidratio", want: Sampling{Ratio: 1}},
		{name: "parentbased_always_on", arg: "0.25", want: Sampling{Ratio: 1}},
		{name: "parentbased_always_off"},
		{name: "always_on", want: Sampling{Ratio: 1, BySDK: true}},
		{name: "traceidratio", arg: "0.5", want: Sampling{Ratio: 0.5, BySDK: true}},
		{name: "parentbased_traceidratio", arg: "5", err: `OTEL_TRACES_SAMPLER_ARG="5": must be a number from 0 to 1`},
		{name: "traceidratio", arg: "NaN", err: `OTEL_TRACES_SAMPLER_ARG="NaN": must be a number from 0 to 1`},
		{name: "sometimes", err: `OTEL_TRACES_SAMPLER="sometimes": must be always_on, always_off, traceidratio or one of them after parentbased_`},
	} {
		t.Setenv("OTEL_TRACES_SAMPLER", tt.name)
		t.Setenv("OTEL_TRACES_SAMPLER_ARG", tt.arg)
		got, err := sampling()
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%s %s: error %v", tt.name, tt.arg, err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s %s: %+v, %v", tt.name, tt.arg, got, err)
		}
	}
}

func TestDisabledLeavesLogsOnly(t *testing.T) {
	t.Setenv("OTEL_SDK_DISABLED", "true")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, set) // nothing is sent, so nothing fails
	counter, err := otel.Meter("test").Int64Counter("things.done")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	w := httptest.NewRecorder()
	set.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if set.Traces != nil || w.Code != http.StatusOK || w.Body.Len() > 0 {
		t.Errorf("traces %v, metrics %d %q", set.Traces, w.Code, w.Body)
	}
}

// A label that is fed from input cannot fill the memory of a process, nor Prometheus.
func TestSeriesAreBounded(t *testing.T) {
	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, set)
	counter, err := otel.Meter("test").Int64Counter("things.seen")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxSeries {
		counter.Add(t.Context(), 1, metric.WithAttributes(attribute.Int("who", i)))
	}
	w := httptest.NewRecorder()
	set.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	series, sum := 0, 0
	for line := range strings.Lines(w.Body.String()) {
		if labels, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && strings.HasPrefix(labels, "things_seen_total{") {
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			series, sum = series+1, sum+n
		}
	}
	if series > maxSeries || sum != 3*maxSeries {
		t.Errorf("%d series that add up to %d, want at most %d and %d", series, sum, maxSeries, 3*maxSeries)
	}
	if !strings.Contains(w.Body.String(), `otel_metric_overflow="true"`) {
		t.Error("what is above the bound is not told")
	}
}

func TestHotMetricsAreReadLikeOthers(t *testing.T) {
	set, err := Setup(t.Context(), "svc")
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, set)
	count := set.Hot.Counter("things.done", "", "Things.")
	count.Series(attribute.String("type", "a")).Add(2)
	count.Series(attribute.String("type", "a")).Add(1)
	count.Series(attribute.String("type", "never"))
	took := set.Hot.Histogram("things.took", "s", "Things.", 0.1, 1).Series()
	for _, v := range []float64{0.05, 0.1, 0.5, 3} {
		took.Note(v)
	}
	many := set.Hot.Counter("things.seen", "", "Things.")
	for i := range 3 * maxSeries {
		many.Series(attribute.Int("who", i)).Add(1)
	}
	w := httptest.NewRecorder()
	set.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := w.Body.String()
	for _, want := range []string{
		"things_done_total{type=\"a\"} 3\n",
		"things_took_seconds_bucket{le=\"0.1\"} 2\n", "things_took_seconds_bucket{le=\"1\"} 3\n", "things_took_seconds_bucket{le=\"+Inf\"} 4\n",
		"things_took_seconds_sum 3.65\n", "things_took_seconds_count 4\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("lacks %q", want)
		}
	}
	if strings.Contains(body, "never") {
		t.Error("a series in which nothing was noted is told")
	}
	if n := strings.Count(body, "\nthings_seen_total{"); n != maxSeries {
		t.Errorf("%d series, want %d", n, maxSeries)
	}

	// Nothing comes of nil.
	var none *Hot
	none.Counter("a.b", "", "").Series().Add(1)
	none.Histogram("a.b", "", "").Series().Note(1)
}

// Package telemetry sets a process up to be observed: JSON logs, metrics for
// Prometheus to scrape, and traces, metrics and logs over OTLP when a collector is
// configured.
//
// It uses OpenTelemetry's SDK as it is. knative.dev/pkg/observability wraps the same
// SDK, but is configured by a ConfigMap, exports metrics either to Prometheus or over
// OTLP, and serves them from the process-wide registry on a port of its own; a
// function has one port and no ConfigMap. This package defines no application metric;
// packages make theirs from otel.Meter. Without OTEL_EXPORTER_OTLP_ENDPOINT nothing
// is sent anywhere and spans are not recorded at all.
//
// With a collector every event that its sender traces is traced, and one in a hundred
// of those that nobody decided about: see Sampling.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Version is the build's version, stamped by the linker:
//
//	go build -ldflags "-X github.com/millrace-dev/millrace/shared/telemetry.Version=v1.2.3"
var Version = ""

// BuildVersion is Version, or what the Go toolchain knows of the build: the
// revision it was made from, else "devel".
func BuildVersion() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return s.Value[:12]
			}
		}
	}
	return "devel"
}

// Telemetry is a process's set-up. All fields are ready for use.
type Telemetry struct {
	Logger *slog.Logger
	Meters metric.MeterProvider
	// Hot is nil when OpenTelemetry is disabled.
	Hot *Hot
	// Traces is nil when no collector is configured.
	Traces trace.TracerProvider
	// Sampling says which events Traces gets to see.
	Sampling Sampling

	registry *prometheus.Registry
	shutdown []func(context.Context) error
}

// Setup makes the telemetry of the service and installs it as the process-wide
// default of slog and OpenTelemetry.
//
// It reads LOG_LEVEL (debug, info, warn or error; info by default), OTEL_SDK_DISABLED
// (true leaves nothing but the logs on standard error), OTEL_TRACES_SAMPLER and, through
// the exporters, OpenTelemetry's other OTEL_* variables. A collector that cannot be
// reached is no error; what cannot be sent is dropped.
func Setup(ctx context.Context, service string) (*Telemetry, error) {
	level, err := logLevel()
	if err != nil {
		return nil, err
	}
	local := slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}).WithAttrs([]slog.Attr{slog.String("service", service)})
	handler := local
	t := &Telemetry{registry: prometheus.NewRegistry()}
	if disabled() {
		t.Logger, t.Meters = slog.New(local), noop.NewMeterProvider()
		otel.SetMeterProvider(t.Meters)
		slog.SetDefault(t.Logger)
		return t, nil
	}
	t.registry.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics()),
	)
	t.Hot = NewHot("github.com/millrace-dev/millrace/shared/telemetry")
	res := resource.NewSchemaless(
		attribute.String("service.name", service),
		attribute.String("service.version", BuildVersion()),
	)
	exporter, err := promexporter.New(
		promexporter.WithRegisterer(t.registry),
		promexporter.WithoutScopeInfo(),
		promexporter.WithProducer(t.Hot),
	)
	if err != nil {
		return nil, fmt.Errorf("making the Prometheus exporter: %w", err)
	}
	metrics := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(exporter), sdkmetric.WithCardinalityLimit(maxSeries)}
	if collector() {
		sender, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("making the OTLP metric exporter: %w", err)
		}
		metrics = append(metrics, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(sender, sdkmetric.WithProducer(t.Hot))))

		spans, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("making the OTLP trace exporter: %w", err)
		}
		options := []sdktrace.TracerProviderOption{sdktrace.WithResource(res), sdktrace.WithBatcher(spans, waiting()...)}
		if t.Sampling, err = sampling(); err != nil {
			return nil, err
		}
		if !t.Sampling.BySDK {
			options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
		}
		traces := sdktrace.NewTracerProvider(options...)
		t.Traces = traces
		t.shutdown = append(t.shutdown, traces.Shutdown)
		otel.SetTracerProvider(traces)
		otel.SetTextMapPropagator(propagation.TraceContext{})

		records, err := otlploghttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("making the OTLP log exporter: %w", err)
		}
		logs := sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(sdklog.NewBatchProcessor(records)))
		t.shutdown = append(t.shutdown, logs.Shutdown)
		handler = slog.NewMultiHandler(handler, atLevel{otelslog.NewHandler(service, otelslog.WithLoggerProvider(logs)), level})
	}
	t.Logger = slog.New(handler)
	meters := sdkmetric.NewMeterProvider(metrics...)
	t.Meters = meters
	t.shutdown = append(t.shutdown, meters.Shutdown)

	otel.SetMeterProvider(meters)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		// Not over OTLP, which may be what does not work.
		slog.New(local).Warn("telemetry", "error", err)
	}))
	slog.SetDefault(t.Logger)
	return t, nil
}

// MetricsHandler serves the metrics in Prometheus's text format.
func (t *Telemetry) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Shutdown sends what is still buffered and stops the exporters. It gives up when
// ctx ends.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, f := range t.shutdown {
		errs = append(errs, f(ctx))
	}
	t.shutdown = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("flushing telemetry: %w", err)
	}
	return nil
}

// spansWait is how long a span waits for others to be sent with. What waits is looked at by
// every garbage collection: at the SDK's 5 s that was what tracing added most to, in a
// profile of validate.
const spansWait = time.Second

// waiting is how spans wait to be sent, where the environment does not say it.
func waiting() []sdktrace.BatchSpanProcessorOption {
	if os.Getenv("OTEL_BSP_SCHEDULE_DELAY") != "" {
		return nil
	}
	return []sdktrace.BatchSpanProcessorOption{sdktrace.WithBatchTimeout(spansWait)}
}

// maxSeries bounds the series of one metric in one process, whatever its labels are fed
// from: what comes after them is one series with the label otel_metric_overflow.
const maxSeries = 1000

// Sampling is how spans are chosen that are recorded. What has a parent goes by its
// parent, and what a function made without one begins no trace: a trace is there from its
// first span to its last or not at all.
type Sampling struct {
	// Ratio is the share of the traces that begin here which are recorded, 0 to 1.
	Ratio float64
	// PerSecond is how many traces a process begins in a second at most; 0 is no limit.
	PerSecond float64
	// BySDK leaves every decision to the SDK's sampler: OTEL_TRACES_SAMPLER asks for
	// one that is not parent-based. It costs a span for each event that is looked at.
	BySDK bool
}

// These keep traces below a few percent of what handling an event costs, alone and at a
// function's full speed: a recorded span costs as much as some events.
const (
	defaultRatio     = 0.01
	defaultPerSecond = 50
)

// sampling reads OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. Unlike the SDK it
// refuses what it does not understand.
func sampling() (Sampling, error) {
	name, arg := os.Getenv("OTEL_TRACES_SAMPLER"), strings.TrimSpace(os.Getenv("OTEL_TRACES_SAMPLER_ARG"))
	ratio := 1.0
	if arg != "" && strings.HasSuffix(name, "traceidratio") {
		var err error
		if ratio, err = strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
			return Sampling{}, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG=%q: must be a number from 0 to 1", arg)
		}
	}
	switch name {
	case "":
		return Sampling{Ratio: defaultRatio, PerSecond: defaultPerSecond}, nil
	case "parentbased_traceidratio":
		return Sampling{Ratio: ratio}, nil
	case "parentbased_always_on":
		return Sampling{Ratio: 1}, nil
	case "parentbased_always_off":
		return Sampling{}, nil
	case "always_on", "always_off", "traceidratio":
		return Sampling{Ratio: ratio, BySDK: true}, nil
	}
	return Sampling{}, fmt.Errorf("OTEL_TRACES_SAMPLER=%q: must be always_on, always_off, traceidratio or one of them after parentbased_", name)
}

// disabled tells whether OpenTelemetry is to be left out, as its specification says.
func disabled() bool { return strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") }

// collector tells whether an OTLP endpoint is configured.
func collector() bool { return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" }

// logLevel is what LOG_LEVEL says.
func logLevel() (level slog.Level, err error) {
	if text := strings.TrimSpace(os.Getenv("LOG_LEVEL")); text != "" {
		if err := level.UnmarshalText([]byte(text)); err != nil {
			return 0, fmt.Errorf("LOG_LEVEL=%q: must be debug, info, warn or error", text)
		}
	}
	return level, nil
}

// atLevel leaves out what is below a level, which the bridge to OTLP knows nothing of.
type atLevel struct {
	slog.Handler
	level slog.Level
}

func (h atLevel) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level && h.Handler.Enabled(ctx, level)
}

func (h atLevel) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLevel{h.Handler.WithAttrs(attrs), h.level}
}

func (h atLevel) WithGroup(name string) slog.Handler {
	return atLevel{h.Handler.WithGroup(name), h.level}
}

package function

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/millrace-dev/millrace/shared/telemetry"
)

// BenchmarkTelemetry tells what metrics and traces add to an event, without a network
// and a Collector.
func BenchmarkTelemetry(b *testing.B) {
	metered := func(o *options) { o.hot = telemetry.NewHot("test") }
	traced := func(ratio float64) Option {
		return func(o *options) {
			metered(o)
			o.traces = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())),
				sdktrace.WithBatcher(tracetest.NewNoopExporter()))
			o.sampling = telemetry.Sampling{Ratio: ratio}
		}
	}
	for _, size := range []struct {
		name  string
		batch int
	}{{"single", 1}, {"batch=100", 100}} {
		for _, bench := range []struct {
			name   string
			option Option
		}{
			{"off", func(*options) {}},
			{"metrics", metered},
			{"traces=0", traced(0)},
			{"traces=0.01", traced(0.01)},
			{"traces=1", traced(1)},
		} {
			b.Run(size.name+"/"+bench.name, func(b *testing.B) {
				s := newServer(b, Config{}, reflectAll, bench.option)
				r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw(clickstream(size.batch)...))))
				if err != nil {
					b.Fatal(err)
				}
				body, err := io.ReadAll(r.Body)
				if err != nil {
					b.Fatal(err)
				}
				w := &discardWriter{header: http.Header{}}
				b.ReportAllocs()
				b.ResetTimer()
				before := cpu()
				for range b.N {
					r.Body = io.NopCloser(bytes.NewReader(body))
					clear(w.header)
					s.ServeHTTP(w, r)
				}
				if w.status >= 300 {
					b.Fatalf("status %d", w.status)
				}
				b.ReportMetric(float64(cpu()-before)/float64(b.N*size.batch), "cpu-ns/event")
			})
		}
	}
}

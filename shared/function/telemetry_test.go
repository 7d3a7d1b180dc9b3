package function

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

const (
	originTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	hopTrace    = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	originID    = "0af7651916cd43dd8448eb211c80319c"
	hopID       = "4bf92f3577b34da6a3ce929d0e0e4736"
)

func recorded() (Option, *tracetest.SpanRecorder) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	return func(o *options) { o.traces, o.sampling = provider, telemetry.Sampling{Ratio: 1} }, recorder
}

func TestSpanContinuesTheEventsTrace(t *testing.T) {
	for _, tt := range []struct {
		name              string
		extension, header string
		trace, link       string
	}{
		{name: "extension", extension: originTrace, trace: originID},
		{name: "header", header: hopTrace, trace: hopID},
		{name: "both", extension: originTrace, header: hopTrace, trace: originID, link: hopID},
		{name: "the same twice", extension: originTrace, header: originTrace, trace: originID},
		{name: "broken extension", extension: "nonsense", header: hopTrace, trace: hopID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			traced, recorder := recorded()
			var seen trace.SpanContext
			s := newServer(t, Config{}, HandlerFunc(func(ctx context.Context, batch []event.Event) []Result {
				seen = trace.SpanContextFromContext(ctx)
				return echo.Handle(ctx, batch)
			}), traced)
			m := message("1")
			m.Set("traceparent", tt.extension)
			request := binaryRequest(m)
			if tt.header != "" {
				request.Header.Set("traceparent", tt.header)
			}
			r := do(s, request)
			spans := recorder.Ended()
			if len(spans) != 1 {
				t.Fatalf("%d spans", len(spans))
			}
			span := spans[0]
			if got := span.SpanContext().TraceID().String(); got != tt.trace {
				t.Errorf("trace %s, want %s", got, tt.trace)
			}
			if !seen.Equal(span.SpanContext()) {
				t.Errorf("the handler saw %v, the span is %v", seen, span.SpanContext())
			}
			var link string
			for _, l := range span.Links() {
				link += l.SpanContext.TraceID().String()
			}
			if link != tt.link {
				t.Errorf("links to %q, want %q", link, tt.link)
			}
			want := fmt.Sprintf("00-%s-%s-01", tt.trace, span.SpanContext().SpanID())
			if got := r.Header.Get("Ce-Traceparent"); got != want {
				t.Errorf("the reply carries %s, want %s", got, want)
			}
		})
	}
}

func TestOneSpanAnEventOfABatch(t *testing.T) {
	traced, recorder := recorded()
	s := newServer(t, Config{}, echo, traced)
	ms := messages("1", "invalid", "2")
	ms[0].Set("traceparent", originTrace)
	ms[1].Set("traceparent", hopTrace)
	replies, err := events.ParseBatch([]byte(text(t, do(s, batchRequest(ms...)))))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	links := 0
	for _, span := range recorder.Ended() {
		if span.Name() == "process test batch" {
			links = len(span.Links())
			continue
		}
		for _, a := range span.Attributes() {
			if a.Key == "cloudevents.event_id" {
				status[a.Value.AsString()] = span.Status().Code.String()
			}
		}
	}
	if diff := cmp.Diff(map[string]string{"1": "Unset", "invalid": "Error", "2": "Unset"}, status); diff != "" {
		t.Errorf("spans (-want +got)\n%s", diff)
	}
	if links != 3 {
		t.Errorf("the call's span links to %d events", links)
	}
	if got := replies[0].Get("traceparent"); got[3:35] != originID {
		t.Errorf("the reply carries %s", got)
	}
}

// What a function decides about a trace that begins with it, all after it keep to.
func TestSamplingIsDecidedOnce(t *testing.T) {
	const unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for _, tt := range []struct {
		name     string
		sampling telemetry.Sampling
		source   string
		parent   string
		recorded bool
	}{
		{"a root of a ratio of none", telemetry.Sampling{}, "/test", "", false},
		{"a root of a ratio of all", telemetry.Sampling{Ratio: 1}, "/test", "", true},
		{"a root that a function made", telemetry.Sampling{Ratio: 1}, "/millrace/validate", "", false},
		{"a root that a function made, left to the SDK", telemetry.Sampling{Ratio: 1, BySDK: true}, "/millrace/validate", "", true},
		{"a sampled parent", telemetry.Sampling{}, "/millrace/validate", originTrace, true},
		{"a parent that is not", telemetry.Sampling{Ratio: 1}, "/test", unsampled, false},
		{"a parent that is not, left to the SDK", telemetry.Sampling{Ratio: 1, BySDK: true}, "/test", unsampled, true},
	} {
		for _, where := range []string{"extension", "header"} {
			t.Run(tt.name+" in the "+where, func(t *testing.T) {
				traced, recorder := recorded()
				s := newServer(t, Config{}, echo, traced, func(o *options) {
					o.sampling = tt.sampling
					if tt.sampling.BySDK {
						o.traces = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithSampler(sdktrace.AlwaysSample()))
					}
				})
				m := message("1")
				m.Set("source", tt.source)
				if where == "extension" {
					m.Set("traceparent", tt.parent)
				}
				request := binaryRequest(m)
				if where == "header" && tt.parent != "" {
					request.Header.Set("traceparent", tt.parent)
				}
				got := do(s, request).Header.Get("Ce-Traceparent")
				if n := len(recorder.Ended()); n > 0 != tt.recorded {
					t.Errorf("%d spans", n)
				}
				switch sampled, known := flag(got); {
				case !tt.recorded:
					if got != tt.parent {
						t.Errorf("the reply carries %q, though no span was made", got)
					}
				case !known || !sampled:
					t.Errorf("the reply carries %q", got)
				case tt.parent != "" && got[3:35] != originID:
					t.Errorf("the reply is of another trace: %q", got)
				}
			})
		}
	}
}

func TestTracesOfASecondAreBounded(t *testing.T) {
	traced, recorder := recorded()
	s := newServer(t, Config{}, echo, traced, func(o *options) {
		o.sampling = telemetry.Sampling{Ratio: 1, PerSecond: 0.001} // the next is due in a quarter of an hour
	})
	for i := range 20 {
		do(s, binaryRequest(message(strconv.Itoa(i))))
	}
	m := message("traced")
	m.Set("traceparent", originTrace)
	do(s, binaryRequest(m))
	var got []string
	for _, span := range recorder.Ended() {
		for _, a := range span.Attributes() {
			if a.Key == "cloudevents.event_id" {
				got = append(got, a.Value.AsString())
			}
		}
	}
	// What began elsewhere is not bounded here.
	if diff := cmp.Diff([]string{"0", "traced"}, got); diff != "" {
		t.Errorf("recorded (-want +got)\n%s", diff)
	}
}

func TestFlagOfTraceContexts(t *testing.T) {
	for parent, want := range map[string][2]bool{
		originTrace:             {true, true},
		originTrace[:54] + "0":  {false, true},
		originTrace[:53] + "ff": {true, true},
		originTrace[:53] + "fe": {false, true},
		originTrace[:54]:        {},
		"":                      {},
		"nonsense":              {},
		"00-00000000000000000000000000000000-b7ad6b7169203331-01": {},
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01": {},
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": {},
	} {
		if sampled, known := flag(parent); sampled != want[0] || known != want[1] {
			t.Errorf("%q: sampled %t, known %t", parent, sampled, known)
		}
	}
}

func TestTraceContextPassesThroughUntraced(t *testing.T) {
	s := newServer(t, Config{}, echo)
	m := message("1")
	request := binaryRequest(m)
	request.Header.Set("traceparent", hopTrace)
	request.Header.Set("tracestate", "a=b")
	r := do(s, request)
	if tp, ts := r.Header.Get("Ce-Traceparent"), r.Header.Get("Ce-Tracestate"); tp != hopTrace || ts != "a=b" {
		t.Errorf("header: reply carries %q, %q", tp, ts)
	}
	m.Set("traceparent", originTrace)
	request = binaryRequest(m)
	request.Header.Set("traceparent", hopTrace)
	r = do(s, request)
	if tp := r.Header.Get("Ce-Traceparent"); tp != originTrace {
		t.Errorf("extension and header: reply carries %q", tp)
	}
}

func TestMetrics(t *testing.T) {
	hot := telemetry.NewHot("test")
	reader := sdkmetric.NewManualReader(sdkmetric.WithProducer(hot))
	s := newServer(t, Config{}, echo, func(o *options) {
		o.meters, o.hot = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)), hot
	})
	aged := message("1")
	aged.Set("time", time.Now().Add(-45*time.Second).Format(time.RFC3339Nano))
	odd := message("invalid")
	odd.Set("type", "made up by a sender")
	do(s, batchRequest(aged, message("quiet"), odd))
	do(s, binaryRequest(message("unavailable")))
	do(s, binaryRequest(message("panic")))
	notAnEvent := binaryRequest(message("1"))
	notAnEvent.Header = http.Header{}
	do(s, notAnEvent)

	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	var all []metricdata.Metrics
	for _, scope := range got.ScopeMetrics {
		all = append(all, scope.Metrics...)
	}
	for _, m := range all {
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				counts[m.Name+label(p.Attributes)] = p.Value
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				counts[m.Name+label(p.Attributes)] = int64(p.Count)
				if m.Name == "function.batch.size" {
					counts[m.Name] = int64(p.Sum)
				}
				if m.Name == "function.event.lag" && (p.Sum < 45 || p.Sum > 60) {
					t.Errorf("lag %g s", p.Sum)
				}
			}
		}
	}
	want := map[string]int64{
		"function.events in replied":     1,
		"function.events in accepted":    1,
		"function.events other invalid":  2,
		"function.events in unavailable": 1,
		"function.events in failed":      1,
		"function.event.lag in":          1,
		"function.handling":              3,
		"function.batch.size":            5,
		"function.events.in_flight":      0,
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func label(set attribute.Set) string {
	var text string
	for _, name := range []attribute.Key{"type", "outcome"} {
		if v, ok := set.Value(name); ok {
			text += " " + v.AsString()
		}
	}
	return text
}

func TestTypesWithSeriesOfTheirOwnAreBounded(t *testing.T) {
	s := newServer(t, Config{}, echo)
	for i := range 2 * maxTypes {
		m := message("1")
		m.Set("type", fmt.Sprint("type", i))
		do(s, binaryRequest(m))
	}
	if n := len(*s.metrics.types.Load()); n != maxTypes {
		t.Errorf("%d types, want %d", n, maxTypes)
	}
}

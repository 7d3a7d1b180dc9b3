package function

import (
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

const (
	traceParent = "traceparent"
	traceState  = "tracestate"
	// As http.Header has them, which its Get would make of the above for every event.
	traceParentHeader = "Traceparent"
	traceStateHeader  = "Tracestate"
)

// tracer makes one span of each event that is sampled. Without a provider (no
// collector is configured) it is nil, and the trace context of an event only passes
// through.
type tracer struct {
	trace.Tracer
	sampling telemetry.Sampling
	limit    *rate.Limiter // of traces that begin here; nil is none
	name     string        // of spans
	// fixed are the attributes that all spans have, by the semantic conventions of
	// messaging: what is received is from a broker, over HTTP.
	fixed []attribute.KeyValue
}

func newTracer(p trace.TracerProvider, sampling telemetry.Sampling, function string) *tracer {
	if p == nil {
		return nil
	}
	var limit *rate.Limiter
	if sampling.PerSecond > 0 {
		limit = rate.NewLimiter(rate.Limit(sampling.PerSecond), int(math.Ceil(sampling.PerSecond)))
	}
	return &tracer{
		p.Tracer("github.com/millrace-dev/millrace/shared/function"), sampling, limit, "process " + function,
		[]attribute.KeyValue{
			attribute.String("messaging.system", "knative"),
			attribute.String("messaging.operation.name", "process"),
			attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", function),
		},
	}
}

var w3c propagation.TraceContext

// carrier reads the distributed tracing extension.
type carrier struct{ m *events.Message }

func (c carrier) Get(key string) string { return c.m.Get(key) }
func (c carrier) Set(key, value string) { c.m.Set(key, value) }
func (c carrier) Keys() []string        { return []string{traceParent, traceState} }

// hop is an event's way through this function.
type hop struct {
	span trace.Span // nil when it is not recorded
}

// start starts the hops of a request's events, one each. The parent of an event's span is the
// event's own trace context, which tells where the event came from; the request's,
// which tells who carried it, is linked. Without the former the latter is the parent.
// A parent that is not sampled costs a look at its flags, and no parent a random
// number: at thousands of events a second nearly all are one or the other.
func (t *tracer) start(h http.Header, ms []events.Message, hops []hop) {
	header := h.Get(traceParentHeader)
	for i := range ms {
		if !t.sampling.BySDK {
			sampled, known := flag(ms[i].Get(traceParent))
			if !known {
				sampled, known = flag(header)
			}
			if !known {
				sampled = t.draw(&ms[i])
			}
			if !sampled {
				continue
			}
		}
		hops[i].span = t.span(h, &ms[i])
	}
}

// draw decides about a trace that would begin with an event. None begins with an event that
// a function made: the function has decided, against it, by letting it go without a context.
// Telling that by a context of its own on nearly every event costs more than all else here.
func (t *tracer) draw(m *events.Message) bool {
	if strings.HasPrefix(m.Get("source"), events.FunctionSource) {
		return false
	}
	return rand.Float64() < t.sampling.Ratio && (t.limit == nil || t.limit.Allow()) //nolint:gosec // not a secret
}

func (t *tracer) span(h http.Header, m *events.Message) trace.Span {
	carried := trace.SpanContextFromContext(w3c.Extract(context.Background(), propagation.HeaderCarrier(h)))
	parent := trace.SpanContextFromContext(w3c.Extract(context.Background(), carrier{m}))
	id := m.Get("id")
	attributes := append(t.fixed[:len(t.fixed):len(t.fixed)],
		attribute.String("messaging.message.id", id),
		attribute.String("cloudevents.event_id", id),
		attribute.String("cloudevents.event_source", m.Get("source")),
		attribute.String("cloudevents.event_spec_version", m.Get("specversion")),
		attribute.String("cloudevents.event_type", m.Get("type")),
	)
	if subject := m.Get("subject"); subject != "" {
		attributes = append(attributes, attribute.String("cloudevents.event_subject", subject))
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attributes...)}
	switch {
	case !parent.IsValid():
		parent = carried
	case carried.IsValid() && carried.SpanID() != parent.SpanID():
		options = append(options, trace.WithLinks(trace.Link{SpanContext: carried}))
	}
	_, span := t.Start(trace.ContextWithRemoteSpanContext(context.Background(), parent), t.name, options...)
	return span
}

// contextLen is the length of a traceparent of version 00:
//
//	00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
const contextLen = 55

// flag tells whether the span of a traceparent is sampled, and whether it has one that
// its trace can be known by. The SDK's propagator judges the rest when it is.
func flag(parent string) (sampled, known bool) {
	if len(parent) < contextLen || parent[2] != '-' || parent[35] != '-' || parent[52] != '-' ||
		parent[3:35] == "00000000000000000000000000000000" || parent[36:52] == "0000000000000000" {
		return false, false
	}
	for i := range contextLen {
		c := parent[i]
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false, false
		}
	}
	digit := parent[54]
	if digit >= 'a' {
		digit -= 'a' - 10
	}
	return digit&1 == 1, true
}

// join gives a handler call its context: the span of its only event that is recorded,
// or, where there are several, a span of the call's own that is linked with those of
// all of them. end ends the latter.
func (t *tracer) join(ctx context.Context, hops []hop) (_ context.Context, end func()) {
	if t == nil {
		return ctx, func() {}
	}
	var recorded []trace.Span
	for _, h := range hops {
		if h.span != nil && h.span.IsRecording() {
			recorded = append(recorded, h.span)
		}
	}
	switch len(recorded) {
	case 0:
		if len(hops) == 1 && hops[0].span != nil {
			// What the handler starts is not recorded either.
			return trace.ContextWithSpan(ctx, hops[0].span), func() {}
		}
		return ctx, func() {}
	case 1:
		return trace.ContextWithSpan(ctx, recorded[0]), func() {}
	}
	links := make([]trace.Link, len(recorded))
	for i, span := range recorded {
		links[i] = trace.Link{SpanContext: span.SpanContext()}
	}
	ctx, span := t.Start(ctx, t.name+" batch", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithLinks(links...), trace.WithAttributes(t.fixed...),
		trace.WithAttributes(attribute.Int("messaging.batch.message_count", len(hops))))
	return ctx, func() { span.End() }
}

// finish ends the event's span and tells whether it failed, and how.
func (h hop) finish(err error, o outcome) {
	if h.span == nil {
		return
	}
	if err != nil {
		h.span.SetStatus(codes.Error, errorLine(err))
		h.span.SetAttributes(attribute.String("error.type", outcomeNames[o]))
	}
	h.span.End()
}

// stamp puts the trace context on a reply: the span's, or the one that came with the request
// unless the reply has one already.
func (h hop) stamp(reply *events.Message, header http.Header) {
	if h.span != nil {
		w3c.Inject(trace.ContextWithSpan(context.Background(), h.span), carrier{reply})
		return
	}
	if parent := header.Get(traceParentHeader); parent != "" && reply.Get(traceParent) == "" {
		reply.Set(traceParent, parent)
		reply.Set(traceState, header.Get(traceStateHeader))
	}
}

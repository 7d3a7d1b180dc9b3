package function

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace-dev/millrace/shared/events"
)

const (
	traceParent = "traceparent"
	traceState  = "tracestate"
)

// tracer makes one span an event. Without a provider (no collector is configured)
// it is nil, and the trace context of an event only passes through.
type tracer struct {
	trace.Tracer
	function string
}

func newTracer(p trace.TracerProvider, function string) *tracer {
	if p == nil {
		return nil
	}
	return &tracer{p.Tracer("github.com/millrace-dev/millrace/shared/function"), function}
}

var w3c propagation.TraceContext

// carrier reads the distributed tracing extension.
type carrier struct{ m *events.Message }

func (c carrier) Get(key string) string { return c.m.Get(key) }
func (c carrier) Set(key, value string) { c.m.Set(key, value) }
func (c carrier) Keys() []string        { return []string{traceParent, traceState} }

// start starts the event's span. Its parent is the event's own trace context,
// which tells where the event came from; the request's, which tells who carried it,
// is linked. Without the former the latter is the parent.
func (t *tracer) start(h http.Header, m *events.Message) trace.Span {
	carried := trace.SpanContextFromContext(w3c.Extract(context.Background(), propagation.HeaderCarrier(h)))
	parent := trace.SpanContextFromContext(w3c.Extract(context.Background(), carrier{m}))
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("cloudevents.event_id", m.Get("id")),
			attribute.String("cloudevents.event_source", m.Get("source")),
			attribute.String("cloudevents.event_type", m.Get("type")),
		),
	}
	switch {
	case !parent.IsValid():
		parent = carried
	case carried.IsValid() && carried.SpanID() != parent.SpanID():
		options = append(options, trace.WithLinks(trace.Link{SpanContext: carried}))
	}
	_, span := t.Start(trace.ContextWithRemoteSpanContext(context.Background(), parent), t.function, options...)
	return span
}

// join gives a handler call its context: the span of its only event, or a span of
// the call's own that is linked with those of all its events. end ends the latter.
func (t *tracer) join(ctx context.Context, spans []trace.Span) (_ context.Context, end func()) {
	switch {
	case t == nil || len(spans) == 0:
		return ctx, func() {}
	case len(spans) == 1:
		return trace.ContextWithSpan(ctx, spans[0]), func() {}
	}
	var links []trace.Link
	for _, s := range spans {
		if s.IsRecording() {
			links = append(links, trace.Link{SpanContext: s.SpanContext()})
		}
	}
	if len(links) == 0 {
		return ctx, func() {}
	}
	ctx, span := t.Start(ctx, t.function+" batch", trace.WithNewRoot(), trace.WithLinks(links...))
	return ctx, func() { span.End() }
}

// finish ends the event's span and tells whether it failed.
func finish(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, errorLine(err))
	}
	span.End()
}

// stamp puts the trace context on a reply: the span's, or, when this process makes
// no spans, the one that came with the request unless the reply has it already.
func stamp(reply *events.Message, span trace.Span, h http.Header) {
	if span != nil {
		w3c.Inject(trace.ContextWithSpan(context.Background(), span), carrier{reply})
		return
	}
	if parent := h.Get(traceParent); parent != "" && reply.Get(traceParent) == "" {
		reply.Set(traceParent, parent)
		reply.Set(traceState, h.Get(traceState))
	}
}

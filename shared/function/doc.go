// Package function is the runtime of every Millrace function: it receives
// CloudEvents over HTTP, hands them to a Handler in batches, and answers with the
// replies. It is not a client: a function replies, or uses the client of whatever
// it writes to, and never needs the address of a broker.
//
// A main is two lines around Run:
//
//	func run(ctx context.Context) error {
//		var cfg function.Config
//		if err := envconfig.Process("", &cfg); err != nil {
//			return fmt.Errorf("reading the environment: %w", err)
//		}
//		return function.Run(ctx, cfg, function.Each(greet))
//	}
//
// # Requests
//
// POST / takes an event in the binary or structured mode or a batch of them, over
// HTTP/1.1 or HTTP/2 without TLS. One event is answered with 200 and the reply in
// binary mode, or with 202 when there is none. A batch is answered with 200 and the
// batch of all replies, in the order of their events, or with 202 when there are
// none. GET /healthz, /readyz and /metrics are for the platform.
//
// # Calls
//
// Handler calls are made at once while fewer than Config.Concurrency run. When all
// of them are busy, arrivals wait and go together into the next call, up to
// Config.MaxBatch events. So an idle function adds no latency, and a busy one calls
// its database once for hundreds of requests. The default is one call a CPU: fewer
// would leave CPUs idle when the handler computes, more would only make the batches
// smaller when it waits.
//
// The events of one batch request stay together, in order, in one call, unless they
// are more than MaxBatch; then they make several calls, one after the other, until
// one of them asks the sender to come again. A sender that waits for each answer
// before it sends the next event of a key therefore has its events handled in order.
// Requests that are in flight at the same time have no order.
//
// A call does not end when a client goes away; its context ends after
// Config.HandlerTimeout, or when draining takes too long.
//
// # Errors
//
// What an error means to the sender is decided here alone:
//
//	Invalid, or the request is no valid CloudEvent   400  give up
//	not a CloudEvent, unknown event format           415  give up
//	event or body too large                          413  give up
//	request too slow to arrive                       408  retry
//	Overloaded, queue or memory bound reached        429  retry after a while
//	Unavailable, context deadline or cancellation    503  retry after a while
//	any other error, panic, wrong number of results  500  retry
//
// The body is one line that says what is wrong. A sender that gives up passes the
// event to its dead-letter sink.
//
// In a batch the events are answered together: an event that is bad for good becomes
// a dead letter among the replies (the event itself with knativeerrorcode,
// knativeerrordata and knativeerrordest), any other error fails the whole batch,
// which is then sent again. When a handler panics on several events they are handled
// again one by one, so that only the culprit fails. Both rely on handlers being
// idempotent.
//
// # Access
//
// The function's own routes are open, unless WithAccess guards them: by tokens (401
// without one) and by a rate for each token or address (429). The guard stands before
// all routes but those of the platform and of WithOpenRoutes, whatever the path looks
// like, and for whichever of the two ways a request is served. Events are not guarded;
// Access.Only refuses them, for a Service that can be reached from outside.
//
// # Telemetry
//
// Each event has a span when a collector is configured (see package telemetry). Its
// parent is the event's distributed tracing extension, a traceparent header is
// linked (or is the parent where there is no extension), and the reply carries the
// span on. An event that comes without either may begin a trace, unless a function made
// it: whether an event is traced is decided once, by the first function that gets it.
// The context of a call holds the span of its only event, or a span that links to all
// its events'. Without a collector trace context passes through.
//
// The metrics are function_events_total by type and outcome, function_handling_seconds
// and function_batch_size (one observation a call), function_event_lag_seconds by
// type, and function_events_in_flight. Types beyond the first 64, and unknown ones
// of refused events, are counted as "other".
package function

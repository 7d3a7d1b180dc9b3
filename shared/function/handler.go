package function

import (
	"context"

	"github.com/cloudevents/sdk-go/v2/event"
)

// Handler does a function's work on a batch of events.
//
// Handle returns exactly one Result an event, in the order of the batch. It must
// be safe for concurrent use and idempotent: an event may come again, alone or
// with others, and must then have the same effect and the same reply.
//
// The context carries the deadline of the call. Events may be kept after Handle has
// returned, but one of them holds the memory of the whole request that it came with.
type Handler interface {
	Handle(ctx context.Context, batch []event.Event) []Result
}

// Result is what became of one event: a reply, an error, or neither when the
// event needed no answer. Reply is ignored when Err is set.
type Result struct {
	Reply *event.Event
	Err   error
}

// HandlerFunc makes a Handler of a batch function.
type HandlerFunc func(ctx context.Context, batch []event.Event) []Result

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, batch []event.Event) []Result { return f(ctx, batch) }

// Each makes a Handler of a function of one event. The events of a batch are
// handled one after the other, in order.
func Each(f func(ctx context.Context, e event.Event) (*event.Event, error)) Handler {
	return HandlerFunc(func(ctx context.Context, batch []event.Event) []Result {
		results := make([]Result, len(batch))
		for i, e := range batch {
			reply, err := f(ctx, e)
			results[i] = Result{Reply: reply, Err: err}
		}
		return results
	})
}

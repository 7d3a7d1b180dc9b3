package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/online"
)

// retryAfter is when the sender may try again if Redis or the warehouse is away.
const retryAfter = time.Second

// featurizer is the handler.
type featurizer struct {
	name    string
	store   *online.Store
	filler  *filler
	metrics *metrics
	now     func() time.Time
}

// Handle writes the features of all events of the batch in one round trip, and
// replies to each with its features. Deleted rows have no features and no reply.
//
// All of the batch or nothing is written, so that after a failure, when the batch
// comes again, its events still get their ranks in order.
func (f *featurizer) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	entries := make([]online.Entry, 0, len(batch))
	at := make([]int, 0, len(batch)) // of the entries in the batch
	for i := range batch {
		switch typ := batch[i].Type(); typ {
		case events.BehaviorValidated:
			e, err := features.ParseEvent(batch[i].Data())
			switch {
			case err != nil:
				results[i].Err = function.Invalid("%w", err)
			case e.Op != "d":
				entries, at = append(entries, online.Entry{Event: e, Hash: e.Hash()}), append(at, i)
			}
		case events.Tick:
			f.filler.tick()
		default:
			results[i].Err = function.Invalid("there are no features of events of type %q, only of %q", typ, events.BehaviorValidated)
		}
	}
	if len(entries) == 0 {
		return results
	}
	ranks, err := f.put(ctx, entries)
	if err != nil {
		for _, i := range at {
			results[i].Err = function.Unavailable(err, retryAfter)
		}
		return results
	}
	now := f.now()
	for n, i := range at {
		ready := features.OfEvent(&entries[n].Event, entries[n].Hash, ranks[n], now)
		results[i].Reply = f.reply(&batch[i], &ready)
	}
	f.metrics.featurized(ctx, entries, now)
	return results
}

// put writes the entries, after it has filled a Redis that is empty.
func (f *featurizer) put(ctx context.Context, entries []online.Entry) ([]int64, error) {
	for tries := 0; ; tries++ {
		start := time.Now()
		ranks, written, err := f.store.Put(ctx, entries)
		f.metrics.roundTrip(ctx, "put", start, err)
		switch {
		case err == nil:
			f.metrics.wrote(ctx, "stream", written)
			return ranks, nil
		case !errors.Is(err, online.ErrEmpty) || tries > 0:
			return nil, err
		}
		if err := f.filler.fill(ctx); err != nil {
			return nil, fmt.Errorf("filling the online store: %w", err)
		}
	}
}

// reply makes the event of an event's features. It carries the event's time and
// session on: the latter as partitionkey, which keeps the order of sessions. What kind
// of event it is, is an extension too.
func (f *featurizer) reply(e *event.Event, ready *features.Ready) *event.Event {
	reply := events.NewReply(e, f.name, events.FeaturesReady)
	c := reply.Context.(*event.EventContextV1)
	if c.Extensions == nil {
		c.Extensions = make(map[string]any, 2)
	}
	if c.Extensions[events.PartitionKey] == nil {
		c.Extensions[events.PartitionKey] = ready.UserSession
	}
	// For Triggers: they cannot filter on what is in the data.
	c.Extensions[events.EventType] = ready.EventType
	c.DataContentType = &contentType
	reply.DataEncoded = ready.AppendJSON(make([]byte, 0, 640))
	return &reply
}

// contentType is shared by all replies; the SDK's setter replaces the pointer.
var contentType = event.ApplicationJSON

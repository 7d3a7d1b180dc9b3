package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/model"
)

// prediction is the data of dev.millrace.prediction.made.v1. Its key is model_name,
// user_id, product_id and event_timestamp, or record_hash alone.
type prediction struct {
	ModelName      string    `json:"model_name"`
	ModelVersion   string    `json:"model_version"`
	UserID         int64     `json:"user_id"`
	ProductID      int64     `json:"product_id"`
	UserSession    string    `json:"user_session"`
	EventType      string    `json:"event_type"`
	EventTimestamp time.Time `json:"event_timestamp"`
	RecordHash     string    `json:"record_hash"`
	// Prediction is a number, or one a class.
	Prediction  any       `json:"prediction"`
	PredictedAt time.Time `json:"predicted_at"`
}

// Handle replies to events with features with their predictions, and looks for
// another model version when an event says that there is one.
func (p *predictor) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	calls := map[*version]*call{}
	for i := range batch {
		switch typ := batch[i].Type(); typ {
		case events.FeaturesReady:
			results[i].Err = p.collect(&batch[i], i, calls)
		case events.ModelPromoted, events.ModelRolledBack:
			results[i].Err = p.reload(ctx, batch[i].Subject())
		default:
			results[i].Err = function.Invalid("events of type %q are not predicted for, only %s", typ, events.FeaturesReady)
		}
	}
	for v, c := range calls {
		p.answer(ctx, v, c, batch, results)
	}
	return results
}

// call is the events of a batch that one version predicts for.
type call struct {
	at    []int // in the batch
	ready []features.Ready
}

// collect sorts an event to the version that predicts for it.
func (p *predictor) collect(e *event.Event, at int, calls map[*version]*call) error {
	ready, err := features.ParseReady(e.Data())
	if err != nil {
		return function.Invalid("%w", err)
	}
	if !slices.Contains(p.eventTypes, ready.EventType) {
		return nil
	}
	v := p.pickFor(e.ID())
	if v == nil {
		return function.Unavailable(p.noModel(), time.Second)
	}
	if v.shop == nil {
		return function.Invalid("feature %q of model %s %s is not among the event's", v.foreign, v.name, v.version)
	}
	c := calls[v]
	if c == nil {
		c = &call{}
		calls[v] = c
	}
	c.at, c.ready = append(c.at, at), append(c.ready, ready)
	return nil
}

func (p *predictor) answer(ctx context.Context, v *version, c *call, batch []event.Event, results []function.Result) {
	in := make(entities, len(c.ready))
	for i := range c.ready {
		in[i] = c.ready[i].Features
	}
	out, err := p.serve(ctx, v, in)
	if bad, ok := errors.AsType[*itemError](err); ok {
		// One event must not stop the others: it goes, and they are tried again.
		results[c.at[bad.item]].Err = function.Invalid("predicting with %s %s: %w", v.name, v.version, bad.err)
		c.at = slices.Delete(c.at, bad.item, bad.item+1)
		c.ready = slices.Delete(c.ready, bad.item, bad.item+1)
		if len(c.at) > 0 {
			p.answer(ctx, v, c, batch, results)
		}
		return
	}
	if err != nil {
		for _, at := range c.at {
			results[at].Err = err
		}
		return
	}
	now := time.Now().UTC()
	for i, at := range c.at {
		r := &c.ready[i]
		data, err := json.Marshal(prediction{
			ModelName: v.name, ModelVersion: v.version,
			UserID: r.UserID, ProductID: r.ProductID, UserSession: r.UserSession,
			EventType: r.EventType, EventTimestamp: r.EventTimestamp, RecordHash: fmt.Sprintf("%x", r.RecordHash),
			Prediction: one(out, v.outputs(), i), PredictedAt: now,
		})
		if err != nil {
			results[at].Err = fmt.Errorf("writing a prediction: %w", err)
			continue
		}
		reply := events.NewReply(&batch[at], p.function, events.PredictionMade)
		if results[at].Err = reply.SetData(event.ApplicationJSON, data); results[at].Err == nil {
			results[at].Reply = &reply
		}
	}
}

// one is the prediction of item i: a number, or a list of one a class.
func one(out []float64, outputs, i int) any {
	if outputs == 1 {
		return out[i]
	}
	return out[i*outputs : (i+1)*outputs]
}

// reload looks for another version at once. name is the model's, or empty. A bundle
// that is bad makes the event a dead letter, which says why; what else fails is to be
// tried again, and polling goes on anyway.
func (p *predictor) reload(ctx context.Context, name string) error {
	for _, s := range p.slots() {
		if v := s.current.Load(); name != "" && v != nil && v.name != name {
			continue
		}
		err := s.check(ctx)
		if invalid, ok := errors.AsType[*model.InvalidError](err); ok {
			return function.Invalid("the promoted model is not served: %w", invalid)
		}
		if err != nil {
			return function.Unavailable(err, time.Second)
		}
	}
	return nil
}

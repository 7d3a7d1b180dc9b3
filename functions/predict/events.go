package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/model"
)

// prediction is the data of dev.millrace.prediction.made.v1, whatever was predicted
// for. Its key is model_name, entity_id and timestamp.
type prediction struct {
	ModelName    string `json:"model_name"`
	ModelVersion string `json:"model_version"`
	// EntityID is whom it is about: user and product as "512900744:1306133" of an event
	// of the shop, the entity of its contract (the server) of a metric event.
	EntityID string `json:"entity_id"`
	// Timestamp is when what was predicted for happened.
	Timestamp time.Time `json:"timestamp"`
	// Prediction is a number, or one a class.
	Prediction any `json:"prediction"`
	// Actual is what the event itself says of the target, if it does; Error is
	// prediction - actual, and ErrorPercent 100 * |error| / |actual|, null where actual
	// is 0.
	Actual       *float64 `json:"actual"`
	Error        *float64 `json:"error"`
	ErrorPercent *float64 `json:"error_percent"`
	// Confidence, 0 to 1, is what Bundle.Confidence says; null where it does not.
	Confidence *float64 `json:"confidence"`
	// Low and High are an interval that holds most actual values, see there too.
	Low         *float64  `json:"low,omitempty"`
	High        *float64  `json:"high,omitempty"`
	PredictedAt time.Time `json:"predicted_at"`

	*Shopped        // of an event of the shop
	Contract string `json:"contract,omitempty"` // of a metric event
}

// Shopped is the event of the shop that was predicted for.
type Shopped struct {
	UserID      int64  `json:"user_id"`
	ProductID   int64  `json:"product_id"`
	UserSession string `json:"user_session"`
	EventType   string `json:"event_type"`
	RecordHash  string `json:"record_hash"`
}

// Handle replies to events with features, and to metric events, with their
// predictions, and looks for another model version when an event says that there is
// one.
func (p *predictor) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	calls := map[callKey]*call{}
	for i := range batch {
		switch typ := batch[i].Type(); typ {
		case events.FeaturesReady, events.MetricValidated:
			results[i].Err = p.collect(&batch[i], i, calls)
		case events.ModelPromoted, events.ModelRolledBack:
			results[i].Err = p.reload(ctx, batch[i].Subject())
		default:
			results[i].Err = function.Invalid("events of type %q are not predicted for, only %s and %s", typ, events.FeaturesReady, events.MetricValidated)
		}
	}
	for key, c := range calls {
		p.answer(ctx, key.version, c, batch, results)
	}
	return results
}

// callKey tells the calls of a batch apart: one version predicts for one type.
type callKey struct {
	version *version
	typ     string
}

// call is the events of a batch that one version predicts for.
type call struct {
	at   []int // in the batch
	made []prediction
	// One of them has the features.
	entities entities
	fields   fields
}

func (c *call) inputs() inputs {
	if c.fields != nil {
		return c.fields
	}
	return c.entities
}

// remove takes an event out.
func (c *call) remove(i int) {
	c.at, c.made = slices.Delete(c.at, i, i+1), slices.Delete(c.made, i, i+1)
	// The shadow may have the inputs: they are not changed.
	if c.fields != nil {
		c.fields = slices.Concat(c.fields[:i], c.fields[i+1:])
	} else {
		c.entities = slices.Concat(c.entities[:i], c.entities[i+1:])
	}
}

// collect sorts an event to the version that predicts for it.
func (p *predictor) collect(e *event.Event, at int, calls map[callKey]*call) error {
	var made prediction
	var vector features.Vector
	var values map[string]model.Value
	var err error
	if e.Type() == events.FeaturesReady {
		var wanted bool
		if made, vector, wanted, err = p.readFeatures(e); err == nil && !wanted {
			return nil
		}
	} else {
		made, values, err = readMetrics(e)
	}
	if err != nil {
		return function.Invalid("%w", err)
	}
	v := p.pickFor(e.ID())
	if v == nil {
		return function.Unavailable(p.noModel(), time.Second)
	}
	key := callKey{v, e.Type()}
	c := calls[key]
	if c == nil {
		c = &call{}
		calls[key] = c
	}
	if values == nil {
		if v.shop == nil {
			return function.Invalid("feature %q of model %s %s is not among the event's", v.foreign, v.name, v.version)
		}
		c.entities = append(c.entities, vector)
	} else {
		if !slices.ContainsFunc(v.bundle.Features.Features, func(f model.Feature) bool { return !values[f.Name].Missing() }) {
			return function.Invalid("the event has none of the features of model %s %s, which are %s", v.name, v.version,
				strings.Join(v.bundle.Features.Names(), ", "))
		}
		if actual := values[v.bundle.Features.Target].Float(); !math.IsNaN(actual) {
			made.Actual = &actual
		}
		c.fields = append(c.fields, values)
	}
	made.ModelName, made.ModelVersion = v.name, v.version
	c.at, c.made = append(c.at, at), append(c.made, made)
	return nil
}

// readFeatures reads an event of the shop with its features, and tells whether it is
// one that is predicted for.
func (p *predictor) readFeatures(e *event.Event) (made prediction, v features.Vector, wanted bool, err error) {
	ready, err := features.ParseReady(e.Data())
	if err != nil || !slices.Contains(p.eventTypes, ready.EventType) {
		return made, v, false, err
	}
	made = prediction{
		EntityID:  strconv.FormatInt(ready.UserID, 10) + ":" + strconv.FormatInt(ready.ProductID, 10),
		Timestamp: ready.EventTimestamp,
		Shopped: &Shopped{UserID: ready.UserID, ProductID: ready.ProductID, UserSession: ready.UserSession,
			EventType: ready.EventType, RecordHash: hex.EncodeToString(ready.RecordHash[:])},
	}
	return made, ready.Features, true, nil
}

// readMetrics reads a metric event as validate makes it. Its entity is its partition
// key, and its time that of the event.
func readMetrics(e *event.Event) (made prediction, values map[string]model.Value, err error) {
	var verdict struct {
		Payload map[string]scalar `json:"payload"`
	}
	if err := json.Unmarshal(e.Data(), &verdict); err != nil {
		return made, nil, fmt.Errorf("reading the verdict: %w", err)
	}
	if len(verdict.Payload) == 0 {
		return made, nil, errors.New("reading the verdict: field payload should be an object with metrics")
	}
	extensions := e.Extensions()
	made.EntityID, _ = extensions[events.PartitionKey].(string)
	if made.EntityID == "" {
		return made, nil, fmt.Errorf("extension %s is required: it names the entity", events.PartitionKey)
	}
	if made.Timestamp = e.Time().UTC(); made.Timestamp.IsZero() {
		return made, nil, errors.New("attribute time is required: it says when the metrics were measured")
	}
	made.Contract, _ = extensions[events.Contract].(string)
	values = make(map[string]model.Value, len(verdict.Payload))
	for name, value := range verdict.Payload {
		values[name] = value.Value
	}
	return made, values, nil
}

// scalar is a member of a payload. Objects and lists, which no model takes, count as
// missing.
type scalar struct{ model.Value }

func (s *scalar) UnmarshalJSON(b []byte) error {
	if b[0] == '{' || b[0] == '[' {
		return nil
	}
	return s.Value.UnmarshalJSON(b)
}

func (p *predictor) answer(ctx context.Context, v *version, c *call, batch []event.Event, results []function.Result) {
	out, err := p.serve(ctx, v, c.inputs())
	if bad, ok := errors.AsType[*itemError](err); ok {
		// One event must not stop the others: it goes, and they are tried again.
		results[c.at[bad.item]].Err = function.Invalid("predicting with %s %s: %w", v.name, v.version, bad.err)
		if c.remove(bad.item); len(c.at) > 0 {
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
		made := &c.made[i]
		made.PredictedAt = now
		made.judge(v, out[i*v.outputs():(i+1)*v.outputs()])
		data, err := json.Marshal(made)
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

// judge fills in the prediction, how sure it is and how far off it was.
func (p *prediction) judge(v *version, out []float64) {
	p.Prediction = one(out, len(out), 0)
	if c, ok := v.bundle.Confidence(out); ok {
		p.Confidence = &c.Share
		if !math.IsNaN(c.Low) {
			p.Low, p.High = &c.Low, &c.High
		}
	}
	if p.Actual == nil || len(out) != 1 {
		return
	}
	off := out[0] - *p.Actual
	p.Error = &off
	if *p.Actual != 0 {
		percent := 100 * math.Abs(off) / math.Abs(*p.Actual)
		p.ErrorPercent = &percent
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

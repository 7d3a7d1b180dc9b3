package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
)

// validator is the handler. A record's verdict depends on nothing but its bytes
// and, for processed_at, the clock.
type validator struct {
	name      string
	contracts *contract.Set
	labels    map[*contract.Contract]label
	now       func() time.Time
	verdicts  verdictCounter
}

// label is what names a contract in its verdicts, made once.
type label struct {
	schema *types.URI
	name   any
}

func newValidator(name string, contracts *contract.Set, now func() time.Time) (*validator, error) {
	v := &validator{name: name, contracts: contracts, now: now, labels: map[*contract.Contract]label{}}
	for _, c := range contracts.Contracts() {
		schema := types.ParseURI(c.DataSchema())
		if schema == nil {
			return nil, fmt.Errorf("contract %s: %s is not a URI", c.Name, c.DataSchema())
		}
		v.labels[c] = label{schema, c.Name}
	}
	return v, nil
}

// Handle gives every event of the batch its verdict, in order.
func (v *validator) Handle(_ context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	count := v.verdicts.batch()
	now := v.now()
	for i := range batch {
		stream, err := v.stream(&batch[i])
		if err != nil {
			results[i].Err = err
			continue
		}
		verdict := stream.Check(batch[i].Data(), now)
		count.add(&verdict)
		if verdict.Outcome != contract.Skipped {
			results[i].Reply = v.reply(&batch[i], &verdict)
		}
	}
	count.record()
	return results
}

// stream finds by which contracts an event is judged: by the topic if it is a raw
// Kafka record, else by its type. An event that was made for one of our contracts
// says so by its dataschema, and is judged by that one. The error is for the dead
// letters: the event is not at fault, but nothing here can judge it.
func (v *validator) stream(e *event.Event) (*contract.Stream, error) {
	c := attributes(e)
	if c.Type == events.KafkaRecord {
		topic := c.Source.Fragment
		if topic == "" {
			return nil, function.Invalid("looking for the contract of a Kafka record: its source %q names no topic after a #", c.Source.String())
		}
		if s, ok := v.contracts.ByTopic(topic); ok {
			return s, nil
		}
		return nil, function.Invalid("there is no contract for topic %q, only for: %s", topic, strings.Join(v.contracts.Topics(), ", "))
	}
	s, ok := v.contracts.ByType(c.Type)
	if !ok {
		return nil, function.Invalid("there is no contract for events of type %q, only for: %s; and for Kafka records of topics: %s",
			c.Type, strings.Join(v.contracts.Types(), ", "), strings.Join(v.contracts.Topics(), ", "))
	}
	if c.DataSchema == nil {
		return s, nil
	}
	name, ours := strings.CutPrefix(c.DataSchema.String(), contract.SchemaPrefix)
	if !ours {
		return s, nil
	}
	if s, ok = s.Of(name); !ok {
		return nil, function.Invalid("the event's dataschema names contract %q, which is not one for events of type %q", name, c.Type)
	}
	return s, nil
}

// reply makes the verdict's event. Its time is when it happened as the record says,
// else that of the raw event; its key is the record's entity, else the raw event's
// key. What triggers filter on is in extensions.
func (v *validator) reply(e *event.Event, verdict *contract.Verdict) *event.Event {
	reply := events.NewReply(e, v.name, verdict.Type)
	c := attributes(&reply)
	// The SDK's setters would check and copy each of these again.
	if c.Extensions == nil {
		c.Extensions = make(map[string]any, 4)
	}
	for _, x := range [...]struct{ name, value string }{
		{events.PartitionKey, verdict.Key},
		{events.Op, verdict.Op},
		{events.LSN, verdict.LSN},
	} {
		if x.value != "" {
			c.Extensions[x.name] = x.value
		}
	}
	if verdict.Contract != nil {
		label := v.labels[verdict.Contract]
		c.Extensions[events.Contract], c.DataSchema = label.name, label.schema
	}
	if !verdict.Time.IsZero() {
		c.Time = &types.Timestamp{Time: verdict.Time}
	}
	c.DataContentType = &contentType
	reply.DataEncoded = verdict.Body
	return &reply
}

// contentType is shared by all replies; the SDK's setter replaces the pointer.
var contentType = event.ApplicationJSON

func attributes(e *event.Event) *event.EventContextV1 {
	if c, ok := e.Context.(*event.EventContextV1); ok {
		return c
	}
	return e.Context.AsV1()
}

// serveContracts shows which contracts are in force.
func (v *validator) serveContracts(w http.ResponseWriter, _ *http.Request) {
	type shown struct {
		Name     string   `json:"name"`
		File     string   `json:"file"`
		Kind     string   `json:"kind"`
		Topics   []string `json:"topics,omitempty"`
		Types    []string `json:"types,omitempty"`
		Verdicts []string `json:"verdicts"`
		Fields   []string `json:"fields"`
	}
	list := []shown{}
	for _, c := range v.contracts.Contracts() {
		s := shown{Name: c.Name, File: c.File(), Kind: string(c.Kind), Topics: c.Topics, Types: c.Types,
			Verdicts: []string{c.Verdicts.Valid, c.Verdicts.Invalid}}
		for i := range c.Fields {
			s.Fields = append(s.Fields, c.Fields[i].Name+" "+string(c.Fields[i].Type))
		}
		list = append(list, s)
	}
	w.Header().Set("Content-Type", event.ApplicationJSON)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(list) // a client that is gone needs no answer
}

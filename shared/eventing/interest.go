package eventing

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// interest finds the Triggers whose filters an event passes. It looks at the type
// first: most events interest few of a Broker's Triggers, and one that interests none
// is not even decoded. Triggers are known by their number. It is safe for concurrent
// use.
type interest struct {
	filters []Filter
	// byType are the Triggers that may want an event of the type, in ascending order.
	byType map[string][]int
	// others are those that may want any other type.
	others []int
	all    []int
}

func newInterest(filters ...Filter) *interest {
	x := &interest{filters: filters, byType: map[string][]int{}}
	bounds := make([][]string, len(filters))
	for i, f := range filters {
		x.all = append(x.all, i)
		types, bounded := f.Types()
		if !bounded {
			x.others = append(x.others, i)
			continue
		}
		bounds[i] = types
		for _, typ := range types {
			x.byType[typ] = nil
		}
	}
	for typ := range x.byType {
		for i := range filters {
			if slices.Contains(bounds[i], typ) || slices.Contains(x.others, i) {
				x.byType[typ] = append(x.byType[typ], i)
			}
		}
	}
	return x
}

// match calls found for each Trigger that wants the event which the record holds. It
// decodes into scratch, whose Attrs it uses again.
func (x *interest) match(scratch *events.Message, r *kgo.Record, found func(trigger int, e queued)) {
	candidates := x.of(kafka.Type(r))
	if len(candidates) == 0 || !kafka.Decode(scratch, r) {
		return
	}
	var e queued
	for _, i := range candidates {
		if !x.filters[i].Match(scratch) {
			continue
		}
		if e.size == 0 {
			e = queued{events.Message{Attrs: slices.Clone(scratch.Attrs), Data: scratch.Data}, r.Offset, eventSize(r)}
		}
		found(i, e)
	}
}

// of are the Triggers that may want an event of the type; known is false when the
// type is not known yet.
func (x *interest) of(typ string, known bool) []int {
	if !known {
		return x.all
	}
	if found, ok := x.byType[typ]; ok {
		return found
	}
	return x.others
}

// Types are the only types of which events can pass the filter, when it has such a
// bound.
func (f Filter) Types() (types []string, bounded bool) {
	if f.root == nil {
		return nil, false
	}
	return typesOf(f.root)
}

func typesOf(c condition) (types []string, bounded bool) {
	switch c := c.(type) {
	case *comparison:
		for i, name := range c.names {
			if name == "type" && c.equal && c.values[i] != "" {
				return []string{c.values[i]}, true
			}
		}
	case conjunction:
		for _, sub := range c {
			if types, bounded := typesOf(sub); bounded {
				return types, true
			}
		}
	case disjunction:
		// Without alternatives it says nothing, which lets everything pass.
		for _, sub := range c {
			some, bounded := typesOf(sub)
			if !bounded {
				return nil, false
			}
			types = append(types, some...)
		}
		return types, len(c) > 0
	}
	return nil, false
}

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/events"
)

// choose keeps the functions with these names, and of the event graph what has still
// something to do: Triggers to the others go, Triggers whose events only the others
// emit, and sources and sinks that only such Triggers used. A function that dead
// letters go to is always kept. It returns the names of those that are not kept.
//
// Topics stay as they are, and what has run before goes on where it was when it is
// chosen again.
func (p *platform) choose(names []string) (others []string, err error) {
	known := make([]string, len(p.services))
	for i, s := range p.services {
		known[i] = s.name
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no function %q to run (--functions, MILLRACE_FUNCTIONS); there are %s", name, strings.Join(known, ", "))
		}
	}
	var kept, gone []service
	for _, s := range p.services {
		if slices.Contains(names, s.name) || p.takesDeadLetters(s) {
			kept = append(kept, s)
		} else {
			gone, others = append(gone, s), append(others, s.name)
		}
	}
	p.services = kept
	p.reduceGraph(kept, gone)
	return others, nil
}

func (p *platform) takesDeadLetters(s service) bool {
	takes := func(d *eventing.Delivery) bool {
		return d != nil && d.DeadLetterSink != nil && s.is(*d.DeadLetterSink)
	}
	return slices.ContainsFunc(p.graph.Triggers, func(t *eventing.Trigger) bool { return takes(t.Delivery) }) ||
		slices.ContainsFunc(p.graph.KafkaSources, func(k *eventing.KafkaSource) bool { return takes(k.Delivery) })
}

// is reports whether the destination is the function.
func (s *service) is(to eventing.Destination) bool {
	return to.Kind == eventing.ToService && to.Namespace == s.namespace && to.Name == s.name
}

// reduceGraph takes out of the graph what has nothing to do without the functions that
// are gone.
func (p *platform) reduceGraph(kept, gone []service) {
	g := p.graph
	runs := func(to eventing.Destination) bool {
		return to.Kind != eventing.ToService || slices.ContainsFunc(kept, func(s service) bool { return s.is(to) })
	}
	// What no function emits comes from outside.
	emitted := func(typ string) bool {
		by := func(s service) bool { return slices.Contains(s.emits, typ) }
		return slices.ContainsFunc(kept, by) || !slices.ContainsFunc(gone, by)
	}
	before := g.Triggers
	g.Triggers = slices.DeleteFunc(slices.Clone(before), func(t *eventing.Trigger) bool {
		types, bounded := t.Filter.Types()
		return !runs(t.Subscriber) || bounded && !slices.ContainsFunc(types, emitted)
	})
	// Those that had no Trigger before are not for this to judge.
	wanted := func(takes func(*eventing.Trigger) bool) bool {
		return slices.ContainsFunc(g.Triggers, takes) || !slices.ContainsFunc(before, takes)
	}
	source := func(to eventing.Destination, typ, source string) bool {
		m := events.Message{Attrs: []events.Attr{{Name: "type", Value: typ}, {Name: "source", Value: source}}}
		return runs(to) && wanted(func(t *eventing.Trigger) bool {
			return to.Kind == eventing.ToBroker && to.Namespace == t.Namespace && to.Name == t.Broker && t.Filter.Match(&m)
		})
	}
	g.PingSources = slices.DeleteFunc(g.PingSources, func(s *eventing.PingSource) bool {
		return !source(s.Sink, events.Tick, s.Source())
	})
	g.KafkaSources = slices.DeleteFunc(g.KafkaSources, func(s *eventing.KafkaSource) bool {
		return !slices.ContainsFunc(s.Topics, func(topic string) bool {
			return source(s.Sink, events.KafkaRecord, eventing.KafkaEventSource(s.Namespace, s.Name, topic))
		})
	})
	g.KafkaSinks = slices.DeleteFunc(g.KafkaSinks, func(s *eventing.KafkaSink) bool {
		return !wanted(func(t *eventing.Trigger) bool {
			return t.Subscriber.Kind == eventing.ToKafkaSink && t.Subscriber.Namespace == s.Namespace && t.Subscriber.Name == s.Name
		})
	})
}

// needs reports whether a function cannot do without the variable, which a Secret has.
func (p *platform) needs(name string) bool {
	return slices.ContainsFunc(p.services, func(s service) bool {
		return slices.ContainsFunc(s.env, func(v variable) bool { return v.name == name && !v.optional })
	})
}

package eventing

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	cesql "github.com/cloudevents/sdk-go/sql/v2"
	cesqlparser "github.com/cloudevents/sdk-go/sql/v2/parser"
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
)

// Filter decides which events a Trigger sends. The zero Filter passes all. It is
// safe for concurrent use.
type Filter struct{ root condition }

// Match reports whether the event passes. A filter that cannot be evaluated for the
// event does not let it pass.
func (f Filter) Match(m *events.Message) bool {
	return f.root == nil || f.root.test(m) != fails
}

// verdict has three values because Knative's does: an empty filter neither passes
// nor fails, and its negation does neither as well.
type verdict int8

const (
	says verdict = iota // nothing
	passes
	fails
)

func verdictOf(ok bool) verdict {
	if ok {
		return passes
	}
	return fails
}

type condition interface {
	test(m *events.Message) verdict
}

// filters compiles the Trigger's filters; spec.filters replaces spec.filter.
func (d *document) filters(s *triggerSpec) Filter {
	if len(s.Filters) > 0 {
		return Filter{d.list("spec.filters", s.Filters)}
	}
	if s.Filter == nil || len(s.Filter.Attributes) == 0 {
		return Filter{}
	}
	d.attributeNames("spec.filter.attributes", s.Filter.Attributes, true)
	var c comparison
	for _, name := range slices.Sorted(maps.Keys(s.Filter.Attributes)) {
		c.add(name, s.Filter.Attributes[name])
	}
	c.compare, c.equal = equalOrAny, true
	return Filter{&c}
}

// list is a conjunction: spec.filters and all.
func (d *document) list(field string, specs []filterSpec) condition {
	var all conjunction
	for i := range specs {
		if c := d.filter(fmt.Sprintf("%s[%d]", field, i), &specs[i]); c != nil {
			all = append(all, c)
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return all
}

func (d *document) filter(field string, s *filterSpec) condition {
	var found []condition
	compare := func(dialect string, want map[string]string, equal bool, f func(got, want string) bool) {
		if len(want) == 0 {
			return
		}
		d.attributeNames(field+"."+dialect, want, false)
		c := &comparison{compare: f, equal: equal}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			c.add(name, want[name])
		}
		found = append(found, c)
	}
	compare("exact", s.Exact, true, func(got, want string) bool { return got == want })
	compare("prefix", s.Prefix, false, strings.HasPrefix)
	compare("suffix", s.Suffix, false, strings.HasSuffix)
	if len(s.All) > 0 {
		found = append(found, d.list(field+".all", s.All))
	}
	if len(s.Any) > 0 {
		var alternatives disjunction
		for i := range s.Any {
			if c := d.filter(fmt.Sprintf("%s.any[%d]", field, i), &s.Any[i]); c != nil {
				alternatives = append(alternatives, c)
			}
		}
		found = append(found, alternatives)
	}
	if s.Not != nil {
		found = append(found, negation{d.filter(field+".not", s.Not)})
	}
	if s.CESQL != "" {
		expr, err := parseCESQL(s.CESQL)
		if err != nil {
			d.fail(field+".cesql", "is not a CloudEvents SQL expression: %v", err)
		}
		found = append(found, query{expr})
	}
	switch len(found) {
	case 0:
		return nil
	case 1:
		return found[0]
	default:
		d.fail(field, "has several dialects, a filter can have one")
		return nil
	}
}

// parseCESQL parses an expression; the parser panics on some wrong ones.
func parseCESQL(text string) (expr cesql.Expression, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("parsing %q: %v", text, r)
		}
	}()
	expr, err = cesqlparser.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parsing %q: %w", text, err)
	}
	return expr, nil
}

func (d *document) attributeNames(field string, attributes map[string]string, emptyMeansAny bool) {
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		if !attributeName.MatchString(name) {
			d.fail(field, "%q is not the name of an attribute", name)
		}
		if attributes[name] == "" && !emptyMeansAny {
			d.fail(field, "%s has an empty value", name)
		}
	}
}

// comparison compares attributes with strings; all have to compare well.
type comparison struct {
	names, values []string
	compare       func(got, want string) bool
	// equal says that compare lets nothing but the value pass, unless that is empty.
	equal bool
}

func (c *comparison) add(name, value string) {
	if name == "schemaurl" { // its name before CloudEvents 1.0
		name = "dataschema"
	}
	c.names, c.values = append(c.names, name), append(c.values, value)
}

func (c *comparison) test(m *events.Message) verdict {
	for i, name := range c.names {
		got := m.Get(name)
		if got == "" || !c.compare(got, c.values[i]) {
			return fails
		}
	}
	return passes
}

// equalOrAny is the comparison of filter.attributes, where "" stands for any value.
func equalOrAny(got, want string) bool { return want == "" || got == want }

type conjunction []condition

func (c conjunction) test(m *events.Message) verdict {
	v := says
	for _, sub := range c {
		if v = sub.test(m); v == fails {
			break
		}
	}
	return v
}

type disjunction []condition

func (c disjunction) test(m *events.Message) verdict {
	v := says
	for _, sub := range c {
		if v = sub.test(m); v == passes {
			break
		}
	}
	return v
}

type negation struct{ of condition }

func (n negation) test(m *events.Message) verdict {
	if n.of == nil {
		return says
	}
	switch n.of.test(m) {
	case passes:
		return fails
	case fails:
		return passes
	default:
		return says
	}
}

// query is a CloudEvents SQL expression.
type query struct{ expr cesql.Expression }

func (q query) test(m *events.Message) (v verdict) {
	// An expression that the evaluator cannot survive is one that did not match.
	defer func() {
		if recover() != nil {
			v = fails
		}
	}()
	head := events.Message{Attrs: m.Attrs}
	var e event.Event
	e, err := head.Event()
	if err != nil {
		return fails
	}
	result, err := q.expr.Evaluate(e)
	if err != nil {
		return fails
	}
	ok, isBool := result.(bool)
	return verdictOf(isBool && ok)
}

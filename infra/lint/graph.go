package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	cesql "github.com/cloudevents/sdk-go/sql/v2/parser"
	"github.com/cloudevents/sdk-go/v2/event"
	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// Annotations by which manifests say what no field of theirs says. Each holds
// event types separated by spaces.
const (
	// emitsAnnotation, on what runs code: the types it may reply with or send.
	emitsAnnotation = "millrace.dev/emits"
	// terminalAnnotation, beside it: those of its types that nothing consumes yet.
	terminalAnnotation = "millrace.dev/terminal"
	// acceptsAnnotation, on a Broker: the types that clients may post to it.
	acceptsAnnotation = "millrace.dev/accepts"
	// causesAnnotation, beside emitsAnnotation, on what is several steps of one chain:
	// a line "<type> -> <types>" for each type that comes, with those of the emitted
	// ones that may follow. Without it any may follow any.
	causesAnnotation = "millrace.dev/causes"

	orderAnnotation = "kafka.eventing.knative.dev/delivery.order"

	kafkaRecordType = "dev.knative.kafka.event"
	pingType        = "dev.knative.sources.ping"
)

// Shape is what is known about a kind of event before any event exists: some of
// its attributes. What is not in it can be anything.
type Shape map[string]string

func (s Shape) String() string { return s["type"] }

// Node emits events into the Broker, or is what a Trigger delivers to, or both.
type Node struct {
	// Key is kind and name, "Service/validate".
	Key    string
	Shapes []Shape
	// Causes holds for each type that comes those that may follow; nil when any may.
	Causes map[string][]string
	// Manifest is nil for the clients that post to the Broker.
	Manifest *Manifest
}

// Graph is who emits what and which Trigger takes it where.
type Graph struct {
	nodes    map[string]*Node
	triggers []*Manifest
	terminal map[string]*Manifest // type -> who declares it
	all      map[string]*Manifest
	problems []Problem
}

const clients = "Client/clients"

// NewGraph reads the graph out of a set of manifests.
func NewGraph(ms []*Manifest) *Graph {
	g := &Graph{nodes: map[string]*Node{}, terminal: map[string]*Manifest{}, all: map[string]*Manifest{}}
	for _, m := range ms {
		if m.Object == nil {
			continue
		}
		if other, ok := g.all[m.key()]; ok {
			g.problems = append(g.problems, m.problem("metadata.name", "is defined twice, also in %s", other.File))
		}
		g.all[m.key()] = m
		annotations := m.Meta.GetAnnotations()
		emits, isNode := annotations[emitsAnnotation]
		if isNode {
			n := g.node(m.key(), m)
			for _, typ := range strings.Fields(emits) {
				n.Shapes = append(n.Shapes, Shape{"type": typ, "source": "/millrace/" + m.Name})
			}
			g.readCauses(n, annotations[causesAnnotation])
		}
		for _, typ := range strings.Fields(annotations[terminalAnnotation]) {
			g.terminal[typ] = m
		}
		switch o := m.Object.(type) {
		case *eventingv1.Broker:
			for _, typ := range strings.Fields(annotations[acceptsAnnotation]) {
				n := g.node(clients, nil)
				n.Shapes = append(n.Shapes, Shape{"type": typ})
			}
		case *eventingv1.Trigger:
			g.triggers = append(g.triggers, m)
		case *KafkaSource:
			n := g.node(m.key(), m)
			for _, topic := range o.Spec.Topics {
				n.Shapes = append(n.Shapes, Shape{"type": kafkaRecordType,
					"source": fmt.Sprintf("/apis/v1/namespaces/%s/kafkasources/%s#%s", o.Namespace, o.Name, topic)})
			}
		case *sourcesv1.PingSource:
			n := g.node(m.key(), m)
			n.Shapes = append(n.Shapes, Shape{"type": pingType,
				"source": fmt.Sprintf("/apis/v1/namespaces/%s/pingsources/%s", o.Namespace, o.Name)})
		}
	}
	slices.SortFunc(g.triggers, func(a, b *Manifest) int { return strings.Compare(a.Name, b.Name) })
	g.followTopics()
	return g
}

// readCauses reads the annotation. A type may have several lines.
func (g *Graph) readCauses(n *Node, text string) {
	for line := range strings.Lines(text) {
		cause, effects, ok := strings.Cut(line, "->")
		cause = strings.TrimSpace(cause)
		if !ok || cause == "" || strings.ContainsAny(cause, " \t") {
			g.problems = append(g.problems, n.Manifest.problem("metadata.annotations["+causesAnnotation+"]",
				"%q must be a type, an arrow -> and types", strings.TrimSpace(line)))
			continue
		}
		if n.Causes == nil {
			n.Causes = map[string][]string{}
		}
		n.Causes[cause] = append(n.Causes[cause], strings.Fields(effects)...)
	}
}

func (g *Graph) node(key string, m *Manifest) *Node {
	n, ok := g.nodes[key]
	if !ok {
		n = &Node{Key: key, Manifest: m}
		g.nodes[key] = n
	}
	return n
}

// followTopics lets a KafkaSource emit what KafkaSinks write to its topics: a
// record that is a CloudEvent comes out as that event. Repeated until nothing is
// added, since one topic may feed another.
func (g *Graph) followTopics() {
	for again := true; again; {
		again = false
		for _, source := range g.all {
			s, ok := source.Object.(*KafkaSource)
			if !ok {
				continue
			}
			n := g.nodes[source.key()]
			for _, shape := range g.writtenTo(s.Spec.Topics) {
				if !slices.ContainsFunc(n.Shapes, func(have Shape) bool { return maps.Equal(have, shape) }) {
					n.Shapes, again = append(n.Shapes, shape), true
				}
			}
		}
	}
}

func (g *Graph) writtenTo(topics []string) []Shape {
	var shapes []Shape
	for _, t := range g.triggers {
		sink, ok := g.all[subscriber(t)]
		if !ok {
			continue
		}
		if k, ok := sink.Object.(*KafkaSink); ok && slices.Contains(topics, k.Spec.Topic) {
			for _, n := range g.sorted() {
				shapes = append(shapes, g.taken(t, n)...)
			}
		}
	}
	return shapes
}

func (g *Graph) sorted() []*Node {
	return slices.SortedFunc(maps.Values(g.nodes), func(a, b *Node) int { return strings.Compare(a.Key, b.Key) })
}

// taken gives the shapes of n that may pass the Trigger's filter.
func (g *Graph) taken(t *Manifest, n *Node) []Shape {
	var shapes []Shape
	for _, s := range n.Shapes {
		if match(t.Object.(*eventingv1.Trigger).Spec, s) != no {
			shapes = append(shapes, s)
		}
	}
	return shapes
}

// subscriber is the key of the object that a Trigger delivers to.
func subscriber(t *Manifest) string {
	return destination(&t.Object.(*eventingv1.Trigger).Spec.Subscriber)
}

// destination is the key of the object that a Destination refers to, "" for a URI.
func destination(d *duckv1.Destination) string {
	if d == nil || d.Ref == nil {
		return ""
	}
	return d.Ref.Kind + "/" + d.Ref.Name
}

// Check finds what is wrong with the graph as a whole. Its manifests have to be
// valid, each by itself. The graph of an overlay may lack sources that a filter
// names, and the rest has to hold all the same.
func (g *Graph) Check(overlay bool) []Problem {
	problems := slices.Clone(g.problems)
	for _, m := range g.all {
		problems = append(problems, g.checkReferences(m)...)
		problems = append(problems, checkDelivery(m)...)
	}
	problems = append(problems, g.checkConsumers()...)
	if !overlay {
		problems = append(problems, g.checkFilters()...)
	}
	problems = append(problems, g.checkCauses(overlay)...)
	problems = append(problems, g.checkCycles()...)
	return problems
}

// checkReferences requires whatever is referred to, so that a misspelt name is
// found before events vanish.
func (g *Graph) checkReferences(m *Manifest) []Problem {
	var problems []Problem
	need := func(path string, d *duckv1.Destination) {
		if d == nil {
			return
		}
		if key := destination(d); key != "" && (g.all[key] == nil || g.all[key].APIVersion != d.Ref.APIVersion) {
			problems = append(problems, m.problem(path+".ref.name", "there is no %s of %s", name(key), d.Ref.APIVersion))
		}
		if d.Ref != nil && d.Ref.Namespace != "" && d.Ref.Namespace != m.Meta.GetNamespace() {
			problems = append(problems, m.problem(path+".ref.namespace", "must be %s like the referring object's", m.Meta.GetNamespace()))
		}
	}
	switch o := m.Object.(type) {
	case *eventingv1.Broker:
		if o.Spec.Delivery != nil {
			need("spec.delivery.deadLetterSink", o.Spec.Delivery.DeadLetterSink)
		}
	case *eventingv1.Trigger:
		if g.all["Broker/"+o.Spec.Broker] == nil {
			problems = append(problems, m.problem("spec.broker", "there is no Broker %s", o.Spec.Broker))
		}
		need("spec.subscriber", &o.Spec.Subscriber)
		if o.Spec.Delivery != nil {
			need("spec.delivery.deadLetterSink", o.Spec.Delivery.DeadLetterSink)
		}
		if svc := g.all[subscriber(m)]; svc != nil && svc.APIVersion == "serving.knative.dev/v1" {
			if _, ok := svc.Meta.GetAnnotations()[emitsAnnotation]; !ok {
				problems = append(problems, svc.problem("metadata.annotations", "%s is missing: say what %s replies with, or %q if nothing", emitsAnnotation, svc.Name, ""))
			}
		}
	case *KafkaSource:
		need("spec.sink", &o.Spec.Sink)
		if o.Spec.Delivery != nil {
			need("spec.delivery.deadLetterSink", o.Spec.Delivery.DeadLetterSink)
		}
	case *sourcesv1.PingSource:
		need("spec.sink", &o.Spec.Sink)
	case *sourcesv1.SinkBinding:
		need("spec.sink", &o.Spec.Sink)
		if key := o.Spec.Subject.Kind + "/" + o.Spec.Subject.Name; o.Spec.Subject.Name != "" && g.all[key] == nil {
			problems = append(problems, m.problem("spec.subject.name", "there is no %s %s", o.Spec.Subject.Kind, o.Spec.Subject.Name))
		}
	}
	return problems
}

// checkDelivery requires a complete delivery spec. Without retry an event is
// discarded at the first failure, without a delay the retries come at once, and
// whatever a Trigger's delivery leaves out is not taken from the Broker's.
func checkDelivery(m *Manifest) []Problem {
	var d *eventingduckv1.DeliverySpec
	switch o := m.Object.(type) {
	case *eventingv1.Broker:
		d = o.Spec.Delivery
	case *eventingv1.Trigger:
		d = o.Spec.Delivery
		if order, ok := m.Meta.GetAnnotations()[orderAnnotation]; ok && order != "ordered" && order != "unordered" {
			return []Problem{m.problem("metadata.annotations["+orderAnnotation+"]", "must be ordered or unordered, not %q", order)}
		}
	case *KafkaSource:
		d = o.Spec.Delivery
	default:
		return nil
	}
	if d == nil {
		return []Problem{m.problem("spec.delivery", "missing: events would be discarded at the first failure")}
	}
	var problems []Problem
	require := func(ok bool, field, why string) {
		if !ok {
			problems = append(problems, m.problem("spec.delivery."+field, "missing: %s", why))
		}
	}
	require(d.Retry != nil && *d.Retry > 0, "retry", "the first failure would be the last")
	require(d.BackoffPolicy != nil, "backoffPolicy", "say exponential or linear")
	require(d.BackoffDelay != nil, "backoffDelay", "retries would follow each other at once")
	require(d.Timeout != nil, "timeout", "a subscriber that hangs would hold its events for ever")
	require(d.DeadLetterSink != nil, "deadLetterSink", "what can not be delivered would be lost")
	return problems
}

// checkConsumers requires a Trigger for every type that is emitted, or the
// statement that there is none.
func (g *Graph) checkConsumers() []Problem {
	var problems []Problem
	for _, n := range g.sorted() {
		for _, s := range n.Shapes {
			i := slices.IndexFunc(g.triggers, func(t *Manifest) bool {
				return match(t.Object.(*eventingv1.Trigger).Spec, s) != no
			})
			at, path := n.Manifest, "metadata.annotations["+emitsAnnotation+"]"
			if at == nil {
				at, path = g.broker(), "metadata.annotations["+acceptsAnnotation+"]"
			} else if s["type"] == kafkaRecordType || s["type"] == pingType {
				path = "spec"
			}
			owner, terminal := g.terminal[s["type"]]
			switch {
			case i < 0 && !terminal:
				problems = append(problems, at.problem(path, "no Trigger takes %s from %s; add one, or name it in %s", s, n.label(), terminalAnnotation))
			case i >= 0 && terminal:
				problems = append(problems, owner.problem("metadata.annotations["+terminalAnnotation+"]", "%s is not terminal, Trigger %s takes it", s, g.triggers[i].Name))
			}
		}
	}
	for typ, m := range g.terminal {
		if !slices.ContainsFunc(g.shapes(), func(s Shape) bool { return s["type"] == typ }) {
			problems = append(problems, m.problem("metadata.annotations["+terminalAnnotation+"]", "nothing emits %s", typ))
		}
	}
	return problems
}

func (g *Graph) broker() *Manifest {
	for _, m := range g.all {
		if m.Kind == "Broker" {
			return m
		}
	}
	return &Manifest{}
}

func (g *Graph) shapes() []Shape {
	var all []Shape
	for _, n := range g.sorted() {
		all = append(all, n.Shapes...)
	}
	return all
}

// checkFilters requires that each type and source that a filter names is one that
// somebody emits: a misspelt one would only ever show as missing events.
func (g *Graph) checkFilters() []Problem {
	var problems []Problem
	for _, t := range g.triggers {
		spec := t.Object.(*eventingv1.Trigger).Spec
		if !slices.ContainsFunc(g.shapes(), func(s Shape) bool { return match(spec, s) != no }) {
			problems = append(problems, t.problem("spec.filters", "no event that anything emits passes"))
			continue
		}
		for _, leaf := range leaves(spec) {
			if leaf.attr != "type" && leaf.attr != "source" {
				continue
			}
			known := slices.ContainsFunc(g.shapes(), func(s Shape) bool {
				v, ok := s[leaf.attr]
				return ok && leaf.test(v, leaf.want)
			})
			if !known {
				problems = append(problems, t.problem(leaf.path, "nothing emits an event whose %s %s %q", leaf.attr, leaf.verb, leaf.want))
			}
		}
	}
	return problems
}

// checkCauses requires of an annotation that it leaves nothing out: each type that a
// Trigger delivers has a line, and each type that is emitted follows one. What it says
// beyond that would be out of date; but an overlay may lack what a line is about.
func (g *Graph) checkCauses(overlay bool) []Problem {
	var problems []Problem
	for _, n := range g.sorted() {
		if n.Causes == nil {
			continue
		}
		report := func(format string, args ...any) {
			problems = append(problems, n.Manifest.problem("metadata.annotations["+causesAnnotation+"]", format, args...))
		}
		comes := map[string]bool{}
		for _, t := range g.triggers {
			if subscriber(t) != n.Key {
				continue
			}
			for _, from := range g.sorted() {
				for _, s := range g.taken(t, from) {
					if _, ok := n.Causes[s["type"]]; !ok && !comes[s["type"]] {
						report("has no line for %s, which Trigger %s delivers", s, t.Name)
					}
					comes[s["type"]] = true
				}
			}
		}
		follows := map[string]bool{}
		for _, cause := range slices.Sorted(maps.Keys(n.Causes)) {
			if !comes[cause] && !overlay {
				report("nothing delivers %s", cause)
			}
			for _, effect := range n.Causes[cause] {
				if !slices.ContainsFunc(n.Shapes, func(s Shape) bool { return s["type"] == effect }) {
					report("%s is not among the types of %s", effect, emitsAnnotation)
				}
				follows[effect] = true
			}
		}
		for _, s := range n.Shapes {
			if !follows[s["type"]] {
				report("%s follows nothing", s)
			}
		}
	}
	return problems
}

// place is where an event can be on its way: at a node, having come there as a type.
// The type is left out where it does not matter to what may follow.
type place struct{ key, typ string }

// checkCycles refuses a way by which an event could cause itself again. The Kafka
// Broker counts no hops: such an event would go round for ever.
func (g *Graph) checkCycles() []Problem {
	const (
		unseen = iota
		open
		done
	)
	state := map[place]int{}
	type step struct {
		from place
		how  string
	}
	var path []step
	var problems []Problem
	var visit func(at place)
	visit = func(at place) {
		state[at] = open
		for _, e := range g.edges(at) {
			path = append(path, step{at, e.how})
			switch state[e.to] {
			case open:
				start := slices.IndexFunc(path, func(s step) bool { return s.from == e.to })
				var b strings.Builder
				for _, s := range path[start:] {
					fmt.Fprintf(&b, "%s -[%s]-> ", name(s.from.key), s.how)
				}
				problems = append(problems, e.trigger.problem("spec.filters", "closes a cycle, in which an event would go round for ever: %s%s", b.String(), name(e.to.key)))
			case unseen:
				visit(e.to)
			}
			path = path[:len(path)-1]
		}
		state[at] = done
	}
	for _, n := range g.sorted() {
		if n.Causes == nil && state[place{key: n.Key}] == unseen {
			visit(place{key: n.Key})
		}
		for _, cause := range slices.Sorted(maps.Keys(n.Causes)) {
			if at := (place{n.Key, cause}); state[at] == unseen {
				visit(at)
			}
		}
	}
	return problems
}

// edge is one way on from a place: a Trigger for what is emitted there, or a topic.
type edge struct {
	to      place
	how     string
	trigger *Manifest
}

func (g *Graph) edges(at place) []edge {
	var edges []edge
	if n := g.nodes[at.key]; n != nil {
		for _, t := range g.triggers {
			to := place{key: subscriber(t)}
			typed := g.nodes[to.key] != nil && g.nodes[to.key].Causes != nil
			for _, s := range g.taken(t, n) {
				if n.Causes != nil && !slices.Contains(n.Causes[at.typ], s["type"]) {
					continue
				}
				if typed {
					to.typ = s["type"]
				}
				edges = append(edges, edge{to, s.String() + ", Trigger " + t.Name, t})
				if !typed {
					break // another type leads to the same place
				}
			}
		}
	}
	// From a KafkaSink the way goes on through the topic.
	if m := g.all[at.key]; m != nil {
		if sink, ok := m.Object.(*KafkaSink); ok {
			for _, n := range g.sorted() {
				if n.Manifest == nil {
					continue
				}
				if s, ok := n.Manifest.Object.(*KafkaSource); ok && slices.Contains(s.Spec.Topics, sink.Spec.Topic) {
					edges = append(edges, edge{place{key: n.Key}, "topic " + sink.Spec.Topic, n.Manifest})
				}
			}
		}
	}
	return edges
}

func name(key string) string { return strings.Replace(key, "/", " ", 1) }

func (n *Node) label() string {
	if n.Key == clients {
		return "clients"
	}
	return name(n.Key)
}

// answer is what can be said of a filter when some attributes are not known.
type answer int

const (
	no answer = iota
	maybe
	yes
)

func match(spec eventingv1.TriggerSpec, s Shape) answer {
	if len(spec.Filters) > 0 {
		return matchAll(spec.Filters, s)
	}
	if spec.Filter == nil {
		return yes
	}
	result := yes
	for attr, want := range spec.Filter.Attributes {
		if want != eventingv1.TriggerAnyFilter {
			result = min(result, matchAttr(s, attr, want, equal))
		}
	}
	return result
}

func matchAll(fs []eventingv1.SubscriptionsAPIFilter, s Shape) answer {
	result := yes
	for _, f := range fs {
		result = min(result, matchOne(f, s))
	}
	return result
}

func matchOne(f eventingv1.SubscriptionsAPIFilter, s Shape) answer {
	result := yes
	for _, d := range dialects(f) {
		for attr, want := range d.attrs {
			result = min(result, matchAttr(s, attr, want, d.test))
		}
	}
	if len(f.All) > 0 {
		result = min(result, matchAll(f.All, s))
	}
	if len(f.Any) > 0 {
		best := no
		for _, one := range f.Any {
			best = max(best, matchOne(one, s))
		}
		result = min(result, best)
	}
	if f.Not != nil {
		result = min(result, yes-matchOne(*f.Not, s))
	}
	if f.CESQL != "" {
		result = min(result, matchCESQL(f.CESQL, s))
	}
	return result
}

// matchCESQL evaluates the expression on an event that has the known attributes
// only. An error means that an unknown one was needed, and so does EXISTS.
func matchCESQL(text string, s Shape) answer {
	expr, err := cesql.Parse(text)
	if err != nil {
		return no // not reached: admit refuses the Trigger
	}
	e := event.New()
	e.SetID("1")
	e.SetType(s["type"])
	e.SetSource(s["source"])
	if s["source"] == "" {
		e.SetSource("/unknown")
	}
	v, err := expr.Evaluate(e)
	if err != nil || s["source"] == "" || strings.Contains(strings.ToUpper(text), "EXISTS") {
		return maybe
	}
	if v == true {
		return yes
	}
	return no
}

func matchAttr(s Shape, attr, want string, test func(v, want string) bool) answer {
	v, known := s[attr]
	switch {
	case !known:
		return maybe
	case test(v, want):
		return yes
	}
	return no
}

func equal(v, want string) bool { return v == want }

// dialect is one of the filter dialects that compare attributes with texts.
type dialect struct {
	name, verb string
	attrs      map[string]string
	test       func(v, want string) bool
}

func dialects(f eventingv1.SubscriptionsAPIFilter) []dialect {
	return []dialect{
		{"exact", "is", f.Exact, equal},
		{"prefix", "begins with", f.Prefix, strings.HasPrefix},
		{"suffix", "ends with", f.Suffix, strings.HasSuffix},
	}
}

// leaf is one attribute comparison in a filter.
type leaf struct {
	path, attr, verb, want string
	test                   func(v, want string) bool
}

// leaves lists the comparisons that an event has to satisfy, not those under "not".
func leaves(spec eventingv1.TriggerSpec) []leaf {
	var all []leaf
	var walk func(fs []eventingv1.SubscriptionsAPIFilter, path string)
	walk = func(fs []eventingv1.SubscriptionsAPIFilter, path string) {
		for i, f := range fs {
			at := fmt.Sprintf("%s[%d]", path, i)
			for _, d := range dialects(f) {
				for _, attr := range slices.Sorted(maps.Keys(d.attrs)) {
					all = append(all, leaf{at + "." + d.name + "." + attr, attr, d.verb, d.attrs[attr], d.test})
				}
			}
			walk(f.All, at+".all")
			walk(f.Any, at+".any")
		}
	}
	walk(spec.Filters, "spec.filters")
	if len(spec.Filters) == 0 && spec.Filter != nil {
		for _, attr := range slices.Sorted(maps.Keys(spec.Filter.Attributes)) {
			if want := spec.Filter.Attributes[attr]; want != eventingv1.TriggerAnyFilter {
				all = append(all, leaf{"spec.filter.attributes." + attr, attr, "is", want, equal})
			}
		}
	}
	return all
}

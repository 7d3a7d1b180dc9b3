package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// The graph stands in the README between these two lines.
const (
	beginMark = "<!-- graph: written by `go run . -write` in infra/lint -->"
	endMark   = "<!-- end of graph -->"
)

// Markdown draws the graph: a diagram of what goes from where to where, and a
// table of the Triggers. The same manifests give the same text.
func (g *Graph) Markdown() string {
	var b strings.Builder
	b.WriteString("```mermaid\nflowchart LR\n")
	lines := map[string]bool{}
	draw := func(format string, args ...any) { lines[fmt.Sprintf(format, args...)] = true }
	for _, n := range g.sorted() {
		g.drawNode(n, draw)
		for _, t := range g.triggers {
			if taken := g.taken(t, n); len(taken) > 0 {
				draw("%s -->|\"%s\"| %s", id(n.Key), labels(taken), id(subscriber(t)))
				g.drawTarget(subscriber(t), draw)
			}
		}
		for _, s := range n.Shapes {
			if _, ok := g.terminal[s["type"]]; ok {
				draw("%s -->|\"%s\"| nobody(( ))", id(n.Key), labels([]Shape{s}))
			}
		}
	}
	if sink := g.deadLetterSink(); sink != "" {
		draw("failed([\"what a Trigger or source could not deliver\"]) -.-> %s", id(sink))
		g.drawTarget(sink, draw)
	}
	for _, m := range g.all {
		if o, ok := m.Object.(*sourcesv1.SinkBinding); ok {
			draw("%s -.->|\"sends\"| broker([\"Broker %s\"])", id(o.Spec.Subject.Kind+"/"+o.Spec.Subject.Name), destinationName(o))
		}
	}
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		b.WriteString("  " + line + "\n")
	}
	b.WriteString("```\n\n| Trigger | takes | delivers to | order | tries, back-off, timeout |\n| --- | --- | --- | --- | --- |\n")
	for _, t := range g.triggers {
		o := t.Object.(*eventingv1.Trigger)
		var takes []string
		for _, n := range g.sorted() {
			for _, s := range g.taken(t, n) {
				takes = append(takes, s.describe())
			}
		}
		slices.Sort(takes)
		order := t.Meta.GetAnnotations()[orderAnnotation]
		if order == "" {
			order = "unordered"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", t.Name, strings.Join(slices.Compact(takes), "<br>"), name(subscriber(t)), order, describeDelivery(o.Spec.Delivery))
	}
	return b.String()
}

func (g *Graph) drawNode(n *Node, draw func(string, ...any)) {
	if n.Manifest == nil {
		draw("%s([clients])", id(n.Key))
		return
	}
	switch o := n.Manifest.Object.(type) {
	case *KafkaSource:
		for _, topic := range o.Spec.Topics {
			draw("%s[(\"%s\")] --> %s", id("topic/"+topic), topic, id(n.Key))
		}
		draw("%s>\"%s\"]", id(n.Key), n.Manifest)
	case *sourcesv1.PingSource:
		draw("%s>\"%s, %s\"]", id(n.Key), n.Manifest, o.Spec.Schedule)
	case *servingv1.Service:
		draw("%s[\"%s\"]", id(n.Key), n.Manifest.Name)
	default:
		draw("%s[\"%s\"]", id(n.Key), n.Manifest)
	}
}

// drawTarget draws what is only delivered to.
func (g *Graph) drawTarget(key string, draw func(string, ...any)) {
	m := g.all[key]
	if m == nil || g.nodes[key] != nil {
		return
	}
	if k, ok := m.Object.(*KafkaSink); ok {
		draw("%s>\"%s\"] --> %s[(\"%s\")]", id(key), m, id("topic/"+k.Spec.Topic), k.Spec.Topic)
		return
	}
	draw("%s[\"%s\"]", id(key), m)
}

func (g *Graph) deadLetterSink() string {
	for _, t := range g.triggers {
		if d := t.Object.(*eventingv1.Trigger).Spec.Delivery; d != nil {
			return destination(d.DeadLetterSink)
		}
	}
	return ""
}

func destinationName(b *sourcesv1.SinkBinding) string {
	if b.Spec.Sink.Ref == nil {
		return ""
	}
	return b.Spec.Sink.Ref.Name
}

func id(key string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, key)
}

func labels(shapes []Shape) string {
	var all []string
	for _, s := range shapes {
		all = append(all, strings.TrimPrefix(s["type"], "dev.millrace."))
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "<br>")
}

// describe names the type and, where it says nothing, what tells it apart.
func (s Shape) describe() string {
	if s["type"] == kafkaRecordType {
		_, topic, _ := strings.Cut(s["source"], "#")
		return "`" + s["type"] + "` of `" + topic + "`"
	}
	return "`" + s["type"] + "`"
}

func describeDelivery(d *eventingduckv1.DeliverySpec) string {
	if d == nil || d.Retry == nil || d.BackoffPolicy == nil || d.BackoffDelay == nil || d.Timeout == nil {
		return "incomplete"
	}
	return fmt.Sprintf("%d, %s from %s, %s", *d.Retry, *d.BackoffPolicy, *d.BackoffDelay, *d.Timeout)
}

// WriteReadme replaces the graph in a README.
func WriteReadme(file string, g *Graph) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading README: %w", err)
	}
	before, _, after, err := cutGraph(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(before+g.Markdown()+after), 0o644)
}

// cutGraph splits a README around its graph.
func cutGraph(text string) (before, graph, after string, err error) {
	return cut(text, beginMark, endMark)
}

// cut splits a text around what is between two lines.
func cut(text, begin, end string) (before, between, after string, err error) {
	i := strings.Index(text, begin)
	j := strings.Index(text, end)
	if i < 0 || j < i {
		return "", "", "", fmt.Errorf("the lines %q and %q are not there", begin, end)
	}
	i += len(begin) + 1
	return text[:i], text[i:j], text[j:], nil
}

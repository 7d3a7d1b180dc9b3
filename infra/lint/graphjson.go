package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
)

// drawing is the graph as the console draws it: who there is, and which events go
// from where to where.
type drawing struct {
	Nodes []drawnNode `json:"nodes"`
	Edges []drawnEdge `json:"edges"`
}

// drawnNode is a function, a source, a sink, a topic, or the clients. Key is kind and
// name, "Service/validate".
type drawnNode struct {
	Key      string `json:"key"`
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Schedule string `json:"schedule,omitempty"`
}

// drawnEdge is what one Trigger takes of one emitter, or what passes between a topic
// and its source or sink, which has no Trigger.
type drawnEdge struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Trigger string   `json:"trigger,omitempty"`
	Types   []string `json:"types,omitempty"`
}

// JSON is the graph for the console. The same manifests give the same text.
func (g *Graph) JSON() ([]byte, error) {
	nodes := map[string]drawnNode{}
	var edges []drawnEdge
	add := func(key string) {
		if _, known := nodes[key]; known {
			return
		}
		kind, name, _ := strings.Cut(key, "/")
		n := drawnNode{Key: key, Kind: kind, Name: name}
		if m := g.all[key]; m != nil {
			switch o := m.Object.(type) {
			case *sourcesv1.PingSource:
				n.Schedule = o.Spec.Schedule
			case *KafkaSink:
				topic := "topic/" + o.Spec.Topic
				nodes[topic] = drawnNode{Key: topic, Kind: "topic", Name: o.Spec.Topic}
				edges = append(edges, drawnEdge{From: key, To: topic})
			case *KafkaSource:
				for _, t := range o.Spec.Topics {
					topic := "topic/" + t
					nodes[topic] = drawnNode{Key: topic, Kind: "topic", Name: t}
					edges = append(edges, drawnEdge{From: topic, To: key})
				}
			}
		}
		nodes[key] = n
	}
	for _, n := range g.sorted() {
		add(n.Key)
		for _, t := range g.triggers {
			if taken := g.taken(t, n); len(taken) > 0 {
				add(subscriber(t))
				var types []string
				for _, s := range taken {
					types = append(types, s["type"])
				}
				slices.Sort(types)
				edges = append(edges, drawnEdge{From: n.Key, To: subscriber(t), Trigger: t.Name, Types: slices.Compact(types)})
			}
		}
	}
	d := drawing{Edges: edges}
	for _, n := range nodes {
		d.Nodes = append(d.Nodes, n)
	}
	slices.SortFunc(d.Nodes, func(a, b drawnNode) int { return strings.Compare(a.Key, b.Key) })
	slices.SortFunc(d.Edges, func(a, b drawnEdge) int {
		return strings.Compare(a.From+" "+a.To+" "+a.Trigger, b.From+" "+b.To+" "+b.Trigger)
	})
	text, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		return nil, fmt.Errorf("writing the graph: %w", err)
	}
	return append(text, '\n'), nil
}

// consoleGraph is where the console has its graph from, in the repository.
const consoleGraph = "functions/console/graph.json"

// WriteJSON writes the graph for the console.
func WriteJSON(file string, g *Graph) error {
	text, err := g.JSON()
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

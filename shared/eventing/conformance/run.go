package conformance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Driver executes cases somewhere.
type Driver interface {
	// Has reports whether the feature is there; cases that need another are skipped.
	Has(Feature) bool
	// Start makes the case's subscribers and applies its manifests, with a Broker
	// named default, in a place of their own, and returns when all is ready. What it
	// makes is gone at the end of the test.
	Start(t *testing.T, c Case) Run
}

// Run is a case being executed.
type Run interface {
	// Send gives the event to the Broker and returns when it is accepted.
	Send(ctx context.Context, e Event) error
	// Produce writes the record to Kafka.
	Produce(ctx context.Context, r Record) error
	// Deliveries are what the subscriber has got up to now.
	Deliveries(ctx context.Context, subscriber string) ([]Delivery, error)
	// Settle returns when nothing more will be delivered.
	Settle(ctx context.Context) error
}

// patience is how long a case may take. A case that holds takes much less.
const patience = 60 * time.Second

// Test runs the table against the driver.
func Test(t *testing.T, d Driver) {
	for _, c := range Table() {
		t.Run(c.Name, func(t *testing.T) {
			for _, f := range c.Needs {
				if !d.Has(f) {
					t.Skipf("there is no %s", f)
				}
			}
			run(t, d, c)
		})
	}
}

func run(t *testing.T, d Driver, c Case) {
	t.Helper()
	r := d.Start(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, e := range c.Send {
		if err := r.Send(ctx, e.withDefaults()); err != nil {
			t.Fatalf("sending %s: %v", e.ID, err)
		}
	}
	for _, rec := range c.Produce {
		if err := r.Produce(ctx, rec); err != nil {
			t.Fatalf("producing: %v", err)
		}
	}
	if err := r.Settle(ctx); err != nil {
		t.Errorf("waiting for the end of the deliveries: %v", err)
	}
	for name := range c.Subscribers {
		got, err := r.Deliveries(ctx, name)
		if err != nil {
			t.Fatalf("asking subscriber %s: %v", name, err)
		}
		for _, problem := range c.check(name, got) {
			t.Errorf("subscriber %s: %s", name, problem)
		}
	}
}

func (e Event) withDefaults() Event {
	if e.Source == "" {
		e.Source = "/conformance"
	}
	if e.Type == "" {
		e.Type = "test"
	}
	if e.Data == "" {
		e.Data = "{}"
	}
	return e
}

// check compares what the subscriber got with what it should have.
func (c Case) check(subscriber string, got []Delivery) []string {
	var problems []string
	want := c.Accepted[subscriber]
	var accepted []Delivery
	attempts := map[string]int{}
	for _, d := range got {
		attempts[d.Attributes["id"]]++
		repeated := slices.ContainsFunc(accepted, func(a Delivery) bool {
			return a.Attributes["id"] == d.Attributes["id"] && a.Attributes["source"] == d.Attributes["source"]
		})
		if d.Status < 300 && !repeated {
			accepted = append(accepted, d)
		}
	}
	for id, n := range c.Attempts[subscriber] {
		if attempts[id] != n {
			problems = append(problems, fmt.Sprintf("%s was delivered %d times, want %d", id, attempts[id], n))
		}
	}
	left := slices.Clone(accepted)
	for i, w := range want {
		at := slices.IndexFunc(left, w.is)
		if at < 0 || c.InOrder && at != 0 {
			problems = append(problems, fmt.Sprintf("event %d, %v, is missing or not in its place; accepted were: %s", i, w, list(accepted)))
			continue
		}
		left = slices.Delete(left, at, at+1)
	}
	if len(left) > 0 {
		problems = append(problems, "accepted besides what was expected: "+list(left))
	}
	return problems
}

func (g Got) is(d Delivery) bool {
	for name, want := range g {
		got := d.Attributes[name]
		if name == "data" {
			got = d.Data
		}
		if want == "*" && got == "" || want != "*" && got != want {
			return false
		}
	}
	return true
}

func list(ds []Delivery) string {
	if len(ds) == 0 {
		return "none"
	}
	texts := make([]string, 0, len(ds))
	for _, d := range ds {
		texts = append(texts, fmt.Sprintf("%v %s", d.Attributes, d.Data))
	}
	return strings.Join(texts, "; ")
}

// Expand replaces the ${name} in a text of the case.
func Expand(text string, values map[string]string) string {
	pairs := make([]string, 0, 2*len(values))
	for name, value := range values {
		pairs = append(pairs, "${"+name+"}", value)
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

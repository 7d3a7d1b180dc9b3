package main

import (
	"context"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/contract"
)

// verdictCounter counts verdicts by contract, verdict and class of error; the
// runtime counts events, and cannot know what is in a reply.
type verdictCounter struct {
	counter metric.Int64Counter
	// options holds the attributes of each combination that was seen, a few dozen:
	// to make them costs more than to count.
	options sync.Map // of combination to []metric.AddOption
}

// combination is what tells the time series of the metric apart.
type combination struct {
	contract *contract.Contract
	outcome  contract.Outcome
	error    string // class of error, of which the contract package has a fixed list
}

func newVerdictCounter() (*verdictCounter, error) {
	counter, err := otel.Meter("github.com/millrace-dev/millrace/functions/validate").Int64Counter("validate.verdicts",
		metric.WithUnit("{record}"), metric.WithDescription("Records by contract and verdict (VALID, INVALID, SKIPPED)."))
	if err != nil {
		return nil, fmt.Errorf("making metric validate.verdicts: %w", err)
	}
	return &verdictCounter{counter: counter}, nil
}

// counts are the verdicts of one batch, which meet few combinations: they are added
// to the metric once each.
type counts struct {
	*verdictCounter
	seen []count
}

type count struct {
	combination
	n int64
}

func (c *verdictCounter) batch() counts { return counts{verdictCounter: c} }

func (c *counts) add(v *contract.Verdict) {
	is := combination{v.Contract, v.Outcome, v.ErrorType}
	for i := range c.seen {
		if s := &c.seen[i]; s.combination == is {
			s.n++
			return
		}
	}
	c.seen = append(c.seen, count{is, 1})
}

func (c *counts) record(ctx context.Context) {
	for i := range c.seen {
		c.counter.Add(ctx, c.seen[i].n, c.attributes(c.seen[i].combination)...)
	}
}

func (c *verdictCounter) attributes(of combination) []metric.AddOption {
	if o, ok := c.options.Load(of); ok {
		return o.([]metric.AddOption)
	}
	name := "none"
	if of.contract != nil {
		name = of.contract.Name
	}
	o, _ := c.options.LoadOrStore(of, []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(
		attribute.String("contract", name), attribute.String("verdict", of.outcome.String()), attribute.String("error_type", of.error)))})
	return o.([]metric.AddOption)
}

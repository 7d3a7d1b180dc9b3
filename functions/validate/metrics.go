package main

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/contract"
)

// verdictCounter counts verdicts by contract, verdict and class of error; the
// runtime counts events, and cannot know what is in a reply.
type verdictCounter struct{ counter metric.Int64Counter }

func newVerdictCounter() (*verdictCounter, error) {
	counter, err := otel.Meter("github.com/millrace-dev/millrace/functions/validate").Int64Counter("validate.verdicts",
		metric.WithUnit("{record}"), metric.WithDescription("Records by contract and verdict (VALID, INVALID, SKIPPED)."))
	if err != nil {
		return nil, fmt.Errorf("making metric validate.verdicts: %w", err)
	}
	return &verdictCounter{counter}, nil
}

// counts are the verdicts of one batch, which meet few combinations: they are added
// to the metric once each.
type counts struct {
	counter metric.Int64Counter
	seen    []count
}

type count struct {
	contract *contract.Contract
	outcome  contract.Outcome
	error    string
	n        int64
}

func (c *verdictCounter) batch() *counts { return &counts{counter: c.counter} }

func (c *counts) add(v *contract.Verdict) {
	for i := range c.seen {
		if s := &c.seen[i]; s.contract == v.Contract && s.outcome == v.Outcome && s.error == v.ErrorType {
			s.n++
			return
		}
	}
	c.seen = append(c.seen, count{v.Contract, v.Outcome, v.ErrorType, 1})
}

func (c *counts) record(ctx context.Context) {
	for _, s := range c.seen {
		name := "none"
		if s.contract != nil {
			name = s.contract.Name
		}
		c.counter.Add(ctx, s.n, metric.WithAttributeSet(attribute.NewSet(
			attribute.String("contract", name), attribute.String("verdict", s.outcome.String()), attribute.String("error_type", s.error))))
	}
}

package main

import (
	"sync"

	"go.opentelemetry.io/otel/attribute"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// verdictCounter counts verdicts by contract, verdict and class of error; the
// runtime counts events, and cannot know what is in a reply. The zero counter counts
// nothing.
type verdictCounter struct {
	counter *telemetry.HotCounter
	// series holds that of each combination that was seen, a few dozen: to find one of the
	// metric's costs more than to count.
	series sync.Map // of combination to *telemetry.Count
}

// combination is what tells the time series of the metric apart.
type combination struct {
	contract *contract.Contract
	outcome  contract.Outcome
	error    string // class of error, of which the contract package has a fixed list
}

// metrics makes the counter one of the function's metrics. It is called before the first
// record comes.
func (c *verdictCounter) metrics(hot *telemetry.Hot) {
	c.counter = hot.Counter("validate.verdicts", "{record}", "Records by contract and verdict (VALID, INVALID, SKIPPED).")
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

func (c *counts) record() {
	for i := range c.seen {
		c.of(c.seen[i].combination).Add(c.seen[i].n)
	}
}

func (c *verdictCounter) of(is combination) *telemetry.Count {
	if known, ok := c.series.Load(is); ok {
		return known.(*telemetry.Count)
	}
	name := "none"
	if is.contract != nil {
		name = is.contract.Name
	}
	// Whoever asks for these labels gets the same one.
	one := c.counter.Series(attribute.String("contract", name), attribute.String("verdict", is.outcome.String()), attribute.String("error_type", is.error))
	c.series.Store(is, one)
	return one
}

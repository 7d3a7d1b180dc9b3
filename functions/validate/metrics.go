package main

import (
	"maps"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// verdictCounter counts verdicts by contract, verdict and class of error; the
// runtime counts events, and cannot know what is in a reply. The zero counter counts
// nothing.
type verdictCounter struct {
	counter *telemetry.HotCounter
	// series are those of each combination that was seen, a few dozen, in a map that is
	// not changed: to find one of the metric's costs more than to count.
	series atomic.Pointer[map[combination]*telemetry.Count]
	mu     sync.Mutex // of those that make a new map
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
	if known := c.series.Load(); known != nil {
		if one, ok := (*known)[is]; ok {
			return one
		}
	}
	name := "none"
	if is.contract != nil {
		name = is.contract.Name
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[combination]*telemetry.Count{}
	if had := c.series.Load(); had != nil {
		known = maps.Clone(*had)
	}
	known[is] = c.counter.Series(attribute.String("contract", name), attribute.String("verdict", is.outcome.String()), attribute.String("error_type", is.error))
	c.series.Store(&known)
	return known[is]
}

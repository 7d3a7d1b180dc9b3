// Etl-step brings lake objects into the warehouse, one step an event: bronze,
// silver, gold and check. Which step is told by the event's type, and the reply is
// the event of the next one, so that Triggers chain them. On a tick it sweeps: it
// compares the lake with what was loaded and sends the events that were lost.
//
// A step works on one object and is one transaction. It does what of the object is
// to be done at that step, whatever the event says, so events may come again, late,
// in any order and at the same time: gold is a function of the objects in the lake.
// It holds no state of its own and no more than a line of an object at a time.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what etl-step reads from the environment.
type Config struct {
	Function  function.Config
	S3        lake.Config
	Warehouse warehouse.Config
	Sweep     SweepConfig

	// Reports is the bucket of the quality reports. It must not be one whose objects
	// cause steps.
	Reports string `envconfig:"ETL_REPORTS_BUCKET" default:"quality-reports-bucket"`
	// Suites is a file of quality checks that replaces the built-in ones.
	Suites string `envconfig:"ETL_SUITES"`
}

// stepsAtOnce is the default of CONCURRENCY. A step is a transaction, and gold has a turn
// of its own: with two others it keeps two CPUs busy. With three it gets too little of
// them and is alone at the end: a million events then take 56 to 60 s instead of 53.
const stepsAtOnce = 2

// calls bounds the calls that are taken from the Broker at a time.
const calls = 64

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "etl-step:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "etl-step")
	c.Function.MaxBatch = 1
	// Steps limit themselves. Calls that wait for their turn hold their event and no more.
	atOnce := cmp.Or(c.Function.Concurrency, stepsAtOnce)
	c.Function.Concurrency = calls
	c.Function.HandlerTimeout = cmp.Or(c.Function.HandlerTimeout, 4*time.Minute)
	if int(c.Warehouse.MaxConns) < 2*(atOnce+1) {
		return fmt.Errorf("DATABASE_MAX_CONNS=%d: must be at least %d, since a step and its note in etl.runs take one each, and to the CONCURRENCY=%d one of gold comes",
			c.Warehouse.MaxConns, 2*(atOnce+1), atOnce)
	}
	store, err := c.S3.Connect()
	if err != nil {
		return err
	}
	db, err := c.Warehouse.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	s, err := NewSteps(db, store, c.Function.Name, c.Reports, c.Suites, atOnce)
	if err != nil {
		return err
	}
	if c.Sweep.Sink != "" {
		if s.sweeper, err = newSweeper(s, c.Sweep); err != nil {
			return err
		}
	}
	return function.Run(ctx, c.Function, function.Each(s.Handle), function.WithReady(s.Ready))
}

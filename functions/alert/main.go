// Alert tells people what the other functions found: invalid events, anomalies, drift,
// training that failed and batches that were stopped.
//
// Rules (rules.yaml, or a file of one's own) say which events concern whom, how they
// group and how severe they are. An alert is a row of alerts.alerts: it is raised once
// for a group, goes on while events come, and is resolved by an event that says so or
// by quiet. Its event comes again with the same reply; the transaction that opens it
// also writes what is to be sent to whom, so an alert is told of even if the process
// dies at once, and a receiver that is away holds up nothing but itself.
package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what alert reads from the environment. Addresses and tokens of sinks are in
// variables that the rules file names.
type Config struct {
	Function  function.Config
	Warehouse warehouse.Config

	// RulesFile is a file of rules that takes the place of the embedded one.
	RulesFile string `envconfig:"ALERT_RULES"`
	// Lease is how long a delivery belongs to the process that sends it; longer than a
	// sink's timeout.
	Lease time.Duration `envconfig:"ALERT_LEASE" default:"1m"`
	// Retention is how long resolved alerts are kept.
	Retention time.Duration `envconfig:"ALERT_RETENTION" default:"2160h"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "alert:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "alert")
	// One transaction at a time makes the largest groups; a tick that waits for a sink
	// must not hold it up.
	c.Function.Concurrency = cmp.Or(c.Function.Concurrency, 2)
	c.Function.MaxBatch = cmp.Or(c.Function.MaxBatch, 5000)
	rules, err := openRules(c.RulesFile, os.Getenv)
	if err != nil {
		return err
	}
	if c.Lease < 2*sinkTimeout {
		return fmt.Errorf("ALERT_LEASE=%s: must be at least %s, twice what a sink may take", c.Lease, 2*sinkTimeout)
	}
	db, err := c.Warehouse.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	a, err := newAlerter(&c, rules, db)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	done := a.start(ctx)
	err = function.Run(ctx, c.Function, a, function.WithReady(db.Ready), function.WithRoutes(func(mux *http.ServeMux) {
		mux.HandleFunc("GET /alerts", a.serveAlerts)
		mux.HandleFunc("GET /alerts/{id}", a.serveAlert)
	}))
	stop()
	<-done
	return err
}

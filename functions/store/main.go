// Store writes what events say into tables, one row an event: the features as they
// were served, readings, predictions and anomalies. Readings, and whatever else has a
// stream contract that names a table, need no code: the table is made from the
// contract. Each other kind of event is one more table in tables.go.
//
// A call is one transaction for all of its events, so that a hundred events cost one
// commit. A row that is there already stays as it is, by its natural key, so events
// may come again; the row of an anomaly takes up what is new. While the database is away
// events are pushed back.
//
// On a tick it compares a portion of the features as served with the same features
// recomputed from gold, refreshes the hourly aggregates, and deletes what is older than
// it is to be kept.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what store reads from the environment.
type Config struct {
	Function  function.Config
	Warehouse warehouse.Config
	Upkeep    UpkeepConfig
	// ContractsDir is a folder with contracts over those that ship, the same as
	// validate's.
	ContractsDir string `envconfig:"CONTRACTS_DIR"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "store:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "store")
	// A call that commits waits for the disk: the next one may be copying meanwhile.
	c.Function.Concurrency = cmp.Or(c.Function.Concurrency, 2)
	c.Function.MaxBatch = cmp.Or(c.Function.MaxBatch, 5000)
	if err := c.Upkeep.check(); err != nil {
		return err
	}
	contracts, err := contract.Open(c.ContractsDir)
	if err != nil {
		return fmt.Errorf("loading contracts: %w", err)
	}
	db, err := c.Warehouse.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	s, err := newStorage(db, tables, contracts, c.Upkeep)
	if err != nil {
		return err
	}
	return function.Run(ctx, c.Function, s, function.WithReady(s.ready))
}

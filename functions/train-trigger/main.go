// Train-trigger decides when a model is trained and whether what came of it is served.
//
// It asks for a run of the trainer when there are enough new rows, when drift was
// detected, when a schedule says so or somebody asks over HTTP; judges the model that
// came of it against the one that serves, on the same later window; moves the
// registry's alias or keeps it, and says why. It rolls back over HTTP.
//
// Every decision is a row of learning.decisions and an event. The row is written
// before anything is done and the event sent after it; both are gone on with at the
// next tick, event or request wherever the process died. So a decision has its effect
// once and is told at least once, always with the same id.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what train-trigger reads from the environment. S3_* are read when
// S3_ENDPOINT is set: for a registry whose artifacts are in an object store.
type Config struct {
	Function  function.Config
	Warehouse warehouse.Config

	// TrackingURI is the registry, an MLflow server.
	TrackingURI string `envconfig:"MLFLOW_TRACKING_URI" required:"true"`
	// Alias of a model names the version that serves.
	Alias string `envconfig:"MODEL_ALIAS" default:"current"`
	// Policies is a file that replaces the built-in policies of all models.
	Policies string `envconfig:"LEARNING_POLICIES"`
	// Sink is the Broker's address, which a SinkBinding sets.
	Sink string `envconfig:"K_SINK" required:"true"`
	// Token is what POST /train and POST /rollback have to show in their Authorization
	// header, with or without "Bearer " before it. Without it, anybody who reaches the
	// port may.
	Token string `envconfig:"LEARNING_TOKEN"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "train-trigger:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "train-trigger")
	// A call waits for the database and the registry, mostly.
	c.Function.MaxBatch = 1
	c.Function.Concurrency = cmp.Or(c.Function.Concurrency, 4)
	c.Function.HandlerTimeout = cmp.Or(c.Function.HandlerTimeout, time.Minute)
	if int(c.Warehouse.MaxConns) < 2*c.Function.Concurrency {
		return fmt.Errorf("DATABASE_MAX_CONNS=%d: must be at least twice CONCURRENCY=%d", c.Warehouse.MaxConns, c.Function.Concurrency)
	}
	if c.Alias == "" {
		return errors.New("MODEL_ALIAS: must not be empty")
	}
	policies, err := readPolicies(c.Policies)
	if err != nil {
		return err
	}
	to, err := sink.New(c.Sink)
	if err != nil {
		return err
	}
	rc := registry.Config{URL: c.TrackingURI}
	if os.Getenv("S3_ENDPOINT") != "" {
		var s3 lake.Config
		if err := envconfig.Process("", &s3); err != nil {
			return fmt.Errorf("reading the environment: %w", err)
		}
		if rc.Store, err = s3.Connect(); err != nil {
			return err
		}
	}
	reg, err := rc.Connect()
	if err != nil {
		return fmt.Errorf("MLFLOW_TRACKING_URI: %w", err)
	}
	db, err := c.Warehouse.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	counts, err := newMetrics(slices.Collect(maps.Keys(policies)))
	if err != nil {
		return err
	}
	l := &learner{
		metrics: counts,
		db:      db, registry: reg, sink: to, policies: policies,
		function: c.Function.Name, alias: c.Alias, now: time.Now, reached: func(string) error { return nil },
	}
	a := newAPI(l, c.Token)
	return function.Run(ctx, c.Function, function.Each(l.Handle), function.WithReady(db.Ready), function.WithRoutes(a.routes))
}

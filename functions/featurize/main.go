// Featurize turns validated events into online features, and serves them.
//
// An event's features are written to the online store with the event's rank in its
// session, one script and one round trip a batch, and then replied as
// features.ready. Deliveries of a session have to be in order; they may repeat.
// On a tick, and on POST /materialize, what the warehouse knows and the stream has
// not brought is filled in. See api.go for the feature API.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what featurize reads from the environment.
type Config struct {
	Function function.Config
	Online   online.Config
	API      APIConfig
	// Access guards the feature API, but not its description.
	Access function.Access

	// DatabaseURL is the warehouse, from which the online store is filled; without
	// it there is no materialisation, and a Redis that has lost its data begins anew.
	DatabaseURL string `envconfig:"DATABASE_URL"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "featurize:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "featurize")
	store, err := c.Online.Open()
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	var db *warehouse.DB
	if c.DatabaseURL != "" {
		if db, err = (warehouse.Config{URL: c.DatabaseURL, MaxConns: 4}).Open(ctx); err != nil {
			return err
		}
		defer db.Close()
	}
	m, err := newMetrics()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	filler := newFiller(ctx, store, db, m, slog.Default())
	f := &featurizer{name: c.Function.Name, store: store, filler: filler, metrics: m, now: time.Now}
	api, err := newAPI(c.API, store, filler, m)
	if err != nil {
		return err
	}
	return function.Run(ctx, c.Function, f,
		function.WithReady(filler.ready),
		function.WithAccess(c.Access),
		function.WithRoutes(api.routes),
		function.WithOpenRoutes(api.openRoutes))
}

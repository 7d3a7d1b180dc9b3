// Drift measures, each time that a clock's event wakes it, how far what models get today
// is from what they were trained on, and what streams bring from what they brought.
//
// The rows of a window are read from the warehouse and compared with the baseline of the
// version that serves, by package drift. What comes of it is a row a window, one a
// statistic, a report that people can read, the event drift.measured, and drift.detected
// when it holds for several windows: once for a version, until it is resolved.
//
// A window follows from the event's time alone and is measured once; its events and its
// report are sent until they have arrived.
package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what drift reads from the environment. S3_* are read when S3_ENDPOINT is
// set; without it reports are in the warehouse and on GET /reports alone.
type Config struct {
	Function  function.Config
	Warehouse warehouse.Config

	// Sink is where events go.
	Sink string `envconfig:"K_SINK" required:"true"`
	// TrackingURI is the registry, an MLflow server; empty: the fallbacks alone.
	TrackingURI string `envconfig:"MLFLOW_TRACKING_URI"`
	// Alias names the versions that serve.
	Alias string `envconfig:"MODEL_ALIAS" default:"current"`
	// Data is the folder with the fallbacks' bundles; ko sets it.
	Data string `envconfig:"KO_DATA_PATH"`
	// Bucket is where reports are written.
	Bucket string `envconfig:"DRIFT_BUCKET" default:"drift-reports"`

	// ContractsDir is a folder of contract files over those that ship.
	ContractsDir string `envconfig:"CONTRACTS_DIR"`
	// Models is a file that takes the place of models.yaml; the others replace its
	// fields.
	Models  string        `envconfig:"DRIFT_MODELS"`
	Every   time.Duration `envconfig:"DRIFT_EVERY"`
	Window  time.Duration `envconfig:"DRIFT_WINDOW"`
	Hold    int           `envconfig:"DRIFT_HOLD"`
	MinRows int           `envconfig:"DRIFT_MIN_ROWS"`
	// Lag is how old the end of a window is at least, so that its rows are there.
	Lag time.Duration `envconfig:"DRIFT_LAG" default:"10s"`
	// Retention is how long windows are kept.
	Retention time.Duration `envconfig:"DRIFT_RETENTION" default:"720h"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "drift:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "drift")
	// Ticks that come while one is worked on are one next call.
	c.Function.Concurrency = 1
	c.Function.HandlerTimeout = cmp.Or(c.Function.HandlerTimeout, 2*time.Minute)
	contracts, err := contract.Open(c.ContractsDir)
	if err != nil {
		return fmt.Errorf("loading contracts: %w", err)
	}
	p, err := openPlan(&c, contracts.Contracts())
	if err != nil {
		return err
	}
	out, err := sink.New(c.Sink)
	if err != nil {
		return err
	}
	var store *lake.Store
	if os.Getenv("S3_ENDPOINT") != "" {
		var s3 lake.Config
		if err := envconfig.Process("", &s3); err != nil {
			return fmt.Errorf("reading the environment: %w", err)
		}
		if store, err = s3.Connect(); err != nil {
			return err
		}
	}
	b := &bundles{alias: c.Alias, data: c.Data}
	if c.TrackingURI != "" {
		if b.registry, err = (registry.Config{URL: c.TrackingURI, Store: store}).Connect(); err != nil {
			return fmt.Errorf("MLFLOW_TRACKING_URI: %w", err)
		}
	}
	db, err := c.Warehouse.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	m := &monitor{name: c.Function.Name, plan: p, db: db, bundles: b, sink: out, store: store, bucket: c.Bucket, lag: c.Lag, retention: c.Retention}
	if err := m.metrics.register(); err != nil {
		return err
	}
	return function.Run(ctx, c.Function, m, function.WithReady(db.Ready), function.WithRoutes(func(mux *http.ServeMux) {
		mux.HandleFunc("GET /reports", m.serveReports)
		mux.HandleFunc("GET /reports/{report...}", m.serveReport)
	}))
}

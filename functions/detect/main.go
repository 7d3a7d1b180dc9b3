// Detect tells what is out of the ordinary in metrics: for each metric.validated event
// what it begins or ends comes back as anomaly.detected and anomaly.resolved.
//
// How a reading is judged is in package anomaly. Here the models are learnt from the
// history in PostgreSQL, on a tick and in the background; models and what is remembered
// of each entity are kept in Redis. What is remembered is read once and then written in
// one round trip a batch, by a script that first compares the versions, so that two
// processes that meet at one entity do not overwrite each other.
//
// Models do not expire: an old one judges on, its level follows the readings, and its
// age is shown by GET /models and as a metric.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what detect reads from the environment.
type Config struct {
	Function function.Config
	Redis    RedisConfig
	Forest   ForestConfig

	// ContractsDir is a folder of contract files over the embedded ones, see validate.
	ContractsDir string `envconfig:"CONTRACTS_DIR"`
	// DatabaseURL is where the history is. Without it no models are learnt, and those
	// that are in Redis judge on.
	DatabaseURL string `envconfig:"DATABASE_URL"`
	// Sink is the Broker's address, which a SinkBinding sets: an event that is answered
	// with more than one event has the others sent there.
	Sink string `envconfig:"K_SINK" required:"true"`
	// Retrain is after how long a model of a long history is made anew; one of a short
	// history after an eighth of that.
	Retrain time.Duration `envconfig:"RETRAIN_AFTER" default:"6h"`
	// TrainBudget is how long the work of one tick may take, the rest is the next one's.
	TrainBudget time.Duration `envconfig:"TRAIN_BUDGET" default:"45s"`
	// Entities is of how many entities models and states are kept in memory.
	Entities int `envconfig:"CACHED_ENTITIES" default:"2000"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "detect:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "detect")
	// One call at a time: it has all that came meanwhile, and what is remembered of an
	// entity has one owner.
	c.Function.Concurrency = 1
	contracts, err := contract.Open(c.ContractsDir)
	if err != nil {
		return fmt.Errorf("loading contracts: %w", err)
	}
	to, err := sink.New(c.Sink)
	if err != nil {
		return err
	}
	store, err := c.Redis.open()
	if err != nil {
		return err
	}
	defer store.close()
	var db *warehouse.DB
	if c.DatabaseURL != "" {
		if db, err = (warehouse.Config{URL: c.DatabaseURL, MaxConns: 2}).Open(ctx); err != nil {
			return err
		}
		defer db.Close()
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	forests, err := newForests(&c.Forest, contracts)
	if err != nil {
		return err
	}
	d, err := newDetector(c.Function.Name, contracts, forests, store, to, c.Entities)
	if err != nil {
		return err
	}
	d.trainer = &trainer{ctx: ctx, db: db, detector: d, retrain: c.Retrain, budget: c.TrainBudget, log: slog.Default(), now: time.Now}
	forests.start(ctx)
	return function.Run(ctx, c.Function, d, function.WithReady(store.ping),
		function.WithRoutes(func(mux *http.ServeMux) { mux.HandleFunc("GET /models", d.serveModels) }))
}

// plans makes the plan of every contract that has metrics.
func plans(contracts *contract.Set, forests *forests) (map[string]*anomaly.Plan, error) {
	all := map[string]*anomaly.Plan{}
	for _, c := range contracts.Contracts() {
		p, err := anomaly.NewPlan(c, forests.of(c))
		if err != nil {
			return nil, err
		}
		if p != nil {
			all[c.Name] = p
		}
	}
	return all, nil
}

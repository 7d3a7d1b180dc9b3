// Validate judges raw records by their stream contracts and replies to each with
// one verdict. It has no state and talks to nothing; see package contract for the
// rules, and its README for what becomes of odd input.
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
)

// Config is what validate reads from the environment.
type Config struct {
	function.Config

	// ContractsDir is a folder of contract files, usually a mounted ConfigMap: a
	// file with the name of an embedded contract replaces it, others are added.
	// Empty: the embedded contracts alone. Read at the start only.
	ContractsDir string `envconfig:"CONTRACTS_DIR"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "validate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Name = cmp.Or(c.Name, "validate")
	contracts, err := contract.Open(c.ContractsDir)
	if err != nil {
		return fmt.Errorf("loading contracts: %w", err)
	}
	v, err := newValidator(c.Name, contracts, time.Now)
	if err != nil {
		return err
	}
	return function.Run(ctx, c.Config, v, function.WithMetrics(v.verdicts.metrics), function.WithRoutes(func(mux *http.ServeMux) {
		mux.HandleFunc("GET /contracts", v.serveContracts)
	}))
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/infra/local/internal/cdc"
	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/kafka"
)

const cdcAbout = `Captures the changes of a PostgreSQL table and publishes them to Kafka as Debezium
does. It reads DATABASE_URL and KAFKA_BROKERS. The server needs wal_level=logical.`

// runCDC is the command cdc.
func runCDC(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("cdc", flag.ContinueOnError)
	cfg := cdc.Config{DatabaseURL: os.Getenv("DATABASE_URL"), Log: slog.New(slog.NewTextHandler(stderr, nil))}
	fs.StringVar(&cfg.Table, "table", "public.events", "table to capture, as schema.table; waited for when missing")
	fs.StringVar(&cfg.Prefix, "prefix", "tracking_postgres_cdc", "first part of the topic's name: prefix.schema.table")
	fs.StringVar(&cfg.Slot, "slot", "millrace_cdc", "replication slot, made when missing; lower case letters, digits and underscores")
	fs.StringVar(&cfg.Publication, "publication", "millrace_cdc", "publication, made when missing")
	if done, err := parse(fs, args, cdcAbout, stdout, stderr); done {
		return err
	}
	if cfg.DatabaseURL == "" {
		return errors.New("DATABASE_URL is not set: name the database, as in postgres://user:password@host:5432/shop")
	}
	var brokers kafka.Config
	if err := envconfig.Process("", &brokers); err != nil {
		return fmt.Errorf("reading the Kafka settings: %w", err)
	}
	brokers.ClientID = "millrace-cdc"
	var err error
	if cfg.Kafka, err = brokers.Options(); err != nil {
		return err
	}
	return cdc.Run(whileParentLives(ctx), cfg)
}

// cdcSpec captures the changes of a table of the own database. One that the user
// named may not allow it: it needs wal_level=logical.
func (w *parts) cdcSpec() (supervise.Spec, bool, error) {
	if w.database.server == nil {
		return supervise.Spec{}, false, nil
	}
	spec, err := w.embedded("cdc", []string{
		"GOGC=50", "DATABASE_URL=" + w.database.url, "KAFKA_BROKERS=" + strings.Join(w.kafka.Brokers, ","),
	}, nil, nil)
	return spec, true, err
}

const (
	// rowProducer is the name, among the parts, of the producer that writes rows for
	// cdc to capture.
	rowProducer = "loadgen-rows"
	// rowsPerSecond is enough to see the path live; the table keeps every row.
	rowsPerSecond = "5"
)

// rowProducerSpec is a second shop, whose customers are others than the first one's,
// that writes into the table which cdc captures.
func (w *parts) rowProducerSpec() (supervise.Spec, bool, error) {
	if w.database.server == nil || w.opts.noLoad {
		return supervise.Spec{}, false, nil
	}
	folder := w.state.join("data", producer)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return supervise.Spec{}, false, fmt.Errorf("making the producer's folder: %w", err)
	}
	return supervise.Spec{
		Name: rowProducer, Path: filepath.Join(w.opts.bin, producer),
		Args: []string{
			"shop", "-to", "postgres", "-rate", rowsPerSecond, "-seed", "2",
			"-cdc-updates", "0.1", "-cdc-deletes", "0.05", "-resume", filepath.Join(folder, "rows.json"),
		},
		Env: append(baseEnv(), "DATABASE_URL="+w.database.url), StopTimeout: 15 * time.Second,
	}, true, nil
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/infra/local/internal/cdc"
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

// Deadletter keeps the events that could not be delivered or were refused, says
// why, and sends them back to the Broker when it is told to.
//
// Every event that it is sent becomes one object: see keyOf for its name. What was
// replayed stays, marked as such, until it is deleted. How long objects live is a
// lifecycle rule of the bucket.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "deadletter:", err)
		os.Exit(1)
	}
}

// Config is what deadletter reads from the environment.
type Config struct {
	Function function.Config
	S3       lake.Config

	// Bucket is where the events are kept; it is created when missing.
	Bucket string `envconfig:"DEADLETTER_BUCKET" default:"dead-letters"`
	// Sink is where replays are sent, the Broker's address. A SinkBinding sets it.
	// Without it events are kept but cannot be replayed.
	Sink string `envconfig:"K_SINK"`
}

func (c Config) check() error {
	if c.Bucket == "" {
		return errors.New("DEADLETTER_BUCKET: must not be empty")
	}
	if c.Sink == "" {
		return nil
	}
	u, err := url.Parse(c.Sink)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("K_SINK %q: want an http or https URL", c.Sink)
	}
	return nil
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "deadletter")
	if err := c.check(); err != nil {
		return err
	}
	store, err := c.S3.Connect()
	if err != nil {
		return err
	}
	k, err := newKeeper(store, c.Bucket, c.Sink)
	if err != nil {
		return err
	}
	var reached atomic.Bool
	return function.Run(ctx, c.Function, k,
		function.WithRoutes(k.routes),
		// Met once the store has answered. That it went away later is told to each
		// sender, so that what it sends is tried again.
		function.WithReady(func(ctx context.Context) error {
			if reached.Load() {
				return nil
			}
			err := store.Reach(ctx, c.Bucket)
			reached.Store(err == nil)
			return err
		}))
}

// Relay moves events between Kafka and HTTP in batches, for a cluster without
// KafkaSource and KafkaSink, or with more load than one request an event can carry.
//
// It reads topics as a member of a consumer group, makes of each record the event
// that a KafkaSource would make, posts them to its sink in batches, and writes the
// sink's replies to topics by their type. A POST to it writes events to topics in the
// same way, so that it can be a Trigger's subscriber in place of a KafkaSink. Offsets
// are committed after the effects; what cannot be delivered goes to the dead-letter
// sink. All of that is package eventing: the local runner and the relay are the same
// engine. See Config for its settings.
//
// It is a Deployment and no Knative Service, since nothing calls it when there is
// work: deployment.yaml, with scaledobject.yaml for KEDA.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", c.Port))
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	return serve(ctx, c, l)
}

// serve relays until ctx ends, drains and returns nil. It closes the listener.
func serve(ctx context.Context, c Config, l net.Listener) (err error) {
	defer func() { _ = l.Close() }() // the server has closed it unless it never began
	config, err := c.engine()
	if err != nil {
		return err
	}
	t, err := telemetry.Setup(ctx, c.Name)
	if err != nil {
		return fmt.Errorf("setting up telemetry: %w", err)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.DrainTimeout+5*time.Second)
	defer cancel()
	defer func() { err = errors.Join(err, t.Shutdown(end)) }()
	config.Logger = t.Logger
	engine, err := eventing.New(config)
	if err != nil {
		return fmt.Errorf("making the engine: %w", err)
	}
	if err := eventing.Instrument(t.Meters.Meter("relay"), engine.Stats); err != nil {
		return fmt.Errorf("making the metrics: %w", err)
	}
	server := &http.Server{
		Handler: c.routes(engine, t.MetricsHandler()), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if err := engine.Run(ctx); err != nil {
		_ = server.Close()
		return fmt.Errorf("relaying: %w", err)
	}
	if err := server.Shutdown(end); err != nil {
		return fmt.Errorf("stopping the server: %w", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// Ingest takes the notifications of an object store, as MinIO and others POST them
// to a webhook, and sends each of their records to the Broker as a CloudEvent, by
// the CloudEvents adapter for AWS S3.
//
// It keeps nothing: a notification is answered with success only after the Broker
// has taken all of its events, and with 503 before that, so that the sender, which
// has the queue, sends it again. Events of a notification that comes again have the
// same ids.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/sink"
)

// Config is what ingest reads from the environment.
type Config struct {
	Function function.Config
	// Sink is the Broker's address, which a SinkBinding sets.
	Sink string `envconfig:"K_SINK" required:"true"`
	// Token is what the sender has to show in its Authorization header, with or
	// without "Bearer " before it.
	Token string `envconfig:"INGEST_TOKEN" required:"true"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "ingest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "ingest")
	to, err := sink.New(c.Sink)
	if err != nil {
		return err
	}
	w, err := newWebhook(to, c.Token)
	if err != nil {
		return err
	}
	return function.Run(ctx, c.Function, function.Each(refuse), function.WithRoutes(w.routes))
}

// refuse answers what is posted to the address for CloudEvents.
func refuse(_ context.Context, _ event.Event) (*event.Event, error) {
	return nil, function.Invalid("notifications are taken at %s; no CloudEvent is", path)
}

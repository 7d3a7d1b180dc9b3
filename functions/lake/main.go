// Lake moves what is new in Kafka topics into objects, each time an event wakes it.
//
// It belongs to no consumer group: it reads partitions from the offsets that are
// committed for its group up to their ends, writes objects, and commits when they
// are durable. See layout for which record is in which object and progress for what
// is remembered. It gives no replies.
package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/kelseyhightower/envconfig"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/kafka"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "lake:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "lake")
	c.Function.HandlerTimeout = cmp.Or(c.Function.HandlerTimeout, c.MaxDrain+30*time.Second)
	// Ticks that come while a drain runs wait and become one next drain.
	c.Function.Concurrency = 1
	if err := c.check(); err != nil {
		return err
	}
	store, err := c.S3.Connect()
	if err != nil {
		return err
	}
	opts, err := c.Kafka.Options()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(append(opts, clientOptions...), kgo.WithHooks(kafka.Answers()))...)
	if err != nil {
		return fmt.Errorf("configuring the Kafka client: %w", err)
	}
	defer client.Close()
	d, err := NewDrainer(client, store, c)
	if err != nil {
		return err
	}
	return function.Run(ctx, c.Function, handler(d),
		function.WithReady(d.ready()),
		function.WithRoutes(func(mux *http.ServeMux) { mux.HandleFunc("GET /lake/status", d.serveStatus) }))
}

// clientOptions make requests to a Kafka that is away fail soon: the sender of the
// tick is told to come again, rather than kept waiting.
var clientOptions = []kgo.Opt{
	kgo.DialTimeout(3 * time.Second),
	kgo.RetryTimeout(8 * time.Second),
	kgo.RequestRetries(3),
	// Each drain asks anew which topics and leaders there are.
	kgo.MetadataMinAge(100 * time.Millisecond),
}

// retryAfter is when the sender of a tick may try again.
const retryAfter = 10 * time.Second

// handler drains once for all events of a batch, whatever they are.
func handler(d *Drainer) function.Handler {
	return function.HandlerFunc(func(ctx context.Context, batch []event.Event) []function.Result {
		results := make([]function.Result, len(batch))
		if err := d.Drain(ctx); err != nil {
			for i := range results {
				results[i].Err = function.Unavailable(fmt.Errorf("draining: %w", err), retryAfter)
			}
		}
		return results
	})
}

// ready is met once both Kafka and the store have answered. That they went away
// later is told to each tick.
func (d *Drainer) ready() func(context.Context) error {
	var reached atomic.Bool
	return func(ctx context.Context) error {
		if reached.Load() {
			return nil
		}
		if err := d.kafka.Ping(ctx); err != nil {
			return fmt.Errorf("reaching Kafka: %w", err)
		}
		if err := d.store.Reach(ctx, d.routes[0].Bucket); err != nil {
			return err
		}
		reached.Store(true)
		return nil
	}
}

// Console serves a page that shows the platform: the event graph with what flows
// through it, the health of its parts, invalid events, predictions, anomalies, drift,
// models, dead letters, and what became of one event.
//
// It only reads, but for what people ask for by a button: replaying a dead letter,
// promoting a model's version and rolling it back, which it hands to the functions
// whose work that is. Each source that it reads is optional; a view says which one it
// lacks, or which one does not answer and since when. Nothing is read while nobody
// looks.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Config is what console reads from the environment.
type Config struct {
	Function function.Config

	// StatusURL is where the local runner tells its status. On a cluster there is
	// none, and PrometheusURL takes its place.
	StatusURL     string `envconfig:"STATUS_URL"`
	PrometheusURL string `envconfig:"PROMETHEUS_URL"`
	// Kafka is where the Broker keeps events, in BrokerTopic; without brokers a story is
	// told from what is stored alone.
	Kafka       kafka.Config
	BrokerTopic string `envconfig:"BROKER_TOPIC" default:"knative-broker-millrace-default"`
	// DatabaseURL is the warehouse.
	DatabaseURL string `envconfig:"DATABASE_URL"`
	// TrackingURI is the model registry.
	TrackingURI string `envconfig:"MLFLOW_TRACKING_URI"`
	// The functions whose answers are passed on.
	DeadLetterURL   string `envconfig:"DEADLETTER_URL"`
	TrainTriggerURL string `envconfig:"TRAIN_TRIGGER_URL"`
	DriftURL        string `envconfig:"DRIFT_URL"`
	// TrainTriggerToken is sent to train-trigger.
	TrainTriggerToken string `envconfig:"TRAIN_TRIGGER_TOKEN"`

	// Token is what somebody must know to change something. Without one nothing can
	// be changed, unless the console is reachable from its own machine alone.
	Token string `envconfig:"CONSOLE_TOKEN"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "console:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "console")
	con, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer con.close()
	return function.Run(ctx, c.Function, refuse, function.WithRoutes(con.routes))
}

// refuse answers events: the console takes none.
var refuse = function.HandlerFunc(func(_ context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	for i := range results {
		results[i].Err = function.Invalid("console takes no events")
	}
	return results
})

// open checks the configuration and connects to nothing.
func (c Config) open(ctx context.Context) (*console, error) {
	con := &console{
		status: c.StatusURL, prometheus: c.PrometheusURL, kafka: c.Kafka, brokerTopic: c.BrokerTopic,
		deadletter: c.DeadLetterURL, trainer: c.TrainTriggerURL, trainerToken: c.TrainTriggerToken, drift: c.DriftURL,
		token: c.Token, loopback: c.Function.Host == "127.0.0.1" || c.Function.Host == "::1",
		http: newClient(), watch: newWatch(time.Now),
	}
	for name, address := range map[string]string{
		"STATUS_URL": c.StatusURL, "PROMETHEUS_URL": c.PrometheusURL, "DEADLETTER_URL": c.DeadLetterURL,
		"TRAIN_TRIGGER_URL": c.TrainTriggerURL, "DRIFT_URL": c.DriftURL,
	} {
		if address == "" {
			continue
		}
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%s: must be like http://host:port", name)
		}
	}
	var err error
	if c.DatabaseURL != "" {
		if con.db, err = (warehouse.Config{URL: c.DatabaseURL, MaxConns: 4}).Open(ctx); err != nil {
			return nil, err
		}
	}
	if c.TrackingURI != "" {
		if con.registry, err = (registry.Config{URL: c.TrackingURI, Timeout: patience}).Connect(); err != nil {
			return nil, errors.Join(errors.New("MLFLOW_TRACKING_URI"), err)
		}
	}
	return con, nil
}

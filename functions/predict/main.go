// Predict serves one model: over HTTP as POST /predict with features looked up in the
// online store or given, by the Open Inference Protocol and KServe's first protocol,
// and for events with features, to which it replies with predictions.
//
// The model is a bundle (see package model) in a folder, an object store or behind an
// alias of an MLflow registry. Another version is picked up while serving, by polling
// and by event: it takes the place of the old one in one step, after all of it was
// read and checked, and a request is answered by one version throughout. A bundle
// that is bad is reported and never replaces a good one. The former version stays in
// memory, so that going back to it is immediate.
//
// While the registry has never answered, or has no such alias yet, a stand-in is served:
// the last version that it gave, if that is kept in a folder, or a bundle that comes
// with the image. So there are predictions from the first second on, and after a start
// without the registry.
//
// What is asked over HTTP and answered can be sent on, as events of KServe's types, by
// way of a SinkBinding (PAYLOAD_EVENTS). That is off unless it is wanted: it doubles the
// traffic, and requests are refused while the Broker does not keep up.
//
// A second version can get a share of the requests (canary), and a third a copy of
// all of them whose answers are only counted (shadow).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/online"
)

// Config is what predict reads from the environment. S3_*, REDIS_* and FEATURE_TTL
// are read where they are needed: for s3:// and when REDIS_URL is set.
type Config struct {
	Function function.Config
	// Access guards what is asked over HTTP, but not the description and whether the
	// function is well.
	Access function.Access

	// URI is where the bundle is: file:///folder, s3://bucket/prefix, or, in the image,
	// kodata:///folder. The bundle there may be replaced by another, bundle.json last.
	URI string `envconfig:"MODEL_URI"`
	// Name and Alias say instead which version of a registered model to serve: the
	// one that the alias points to, whichever that is at the time.
	Name  string `envconfig:"MODEL_NAME"`
	Alias string `envconfig:"MODEL_ALIAS" default:"current"`
	// TrackingURI is the registry, an MLflow server.
	TrackingURI string `envconfig:"MLFLOW_TRACKING_URI"`

	// FallbackURI is a bundle to serve while the above has never given one: when the
	// registry does not answer at the start, has no such alias yet, or what it points
	// to is bad. "" is none.
	FallbackURI string `envconfig:"MODEL_FALLBACK_URI"`
	// Cache is a folder of this process that keeps the last version that was loaded,
	// which goes before FallbackURI. "" is none.
	Cache string `envconfig:"MODEL_CACHE"`
	// Patience is how long a start waits for an answer before it serves a stand-in.
	Patience time.Duration `envconfig:"MODEL_PATIENCE" default:"1s"`

	// Poll is how often is looked for another version.
	Poll time.Duration `envconfig:"MODEL_POLL" default:"500ms"`

	// CanaryURI, or CanaryAlias of the same registered model, is a version that gets
	// CanaryPercent of the requests; 0 to 100.
	CanaryURI     string `envconfig:"CANARY_URI"`
	CanaryAlias   string `envconfig:"CANARY_ALIAS"`
	CanaryPercent int    `envconfig:"CANARY_PERCENT" default:"0"`
	// ShadowURI, or ShadowAlias, is a version that predicts along without being
	// heard.
	ShadowURI   string `envconfig:"SHADOW_URI"`
	ShadowAlias string `envconfig:"SHADOW_ALIAS"`

	// Payloads are sent to Sink: "all" requests that are answered over HTTP and the
	// answers, those of "request" or "response" alone, or "off". They are a copy of
	// everything, so they are off unless somebody wants them.
	Payloads string `envconfig:"PAYLOAD_EVENTS" default:"off"`
	// PayloadBytes is how much of them may wait to be sent; requests that find no room
	// for PayloadWait are answered with 429.
	PayloadBytes int64         `envconfig:"PAYLOAD_BYTES" default:"33554432"`
	PayloadWait  time.Duration `envconfig:"PAYLOAD_WAIT" default:"1s"`
	// Sink is where they go, which a SinkBinding says.
	Sink string `envconfig:"K_SINK"`

	// EventTypes are the shop's event types that are predicted for when an event has
	// features: those that the model was trained on.
	EventTypes []string `envconfig:"EVENT_TYPES" default:"cart"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "predict:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	c.Function.Name = cmp.Or(c.Function.Name, "predict")
	if err := c.check(); err != nil {
		return err
	}
	var store lookup
	if os.Getenv("REDIS_URL") != "" {
		var oc online.Config
		if err := envconfig.Process("", &oc); err != nil {
			return fmt.Errorf("reading the environment: %w", err)
		}
		s, err := oc.Open()
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		store = s
	}
	p, err := newPredictor(&c, store)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p.start(ctx)
	err = function.Run(ctx, c.Function, p, function.WithReady(p.ready), function.WithAccess(c.Access),
		function.WithRoutes(p.routes), function.WithOpenRoutes(p.openRoutes), function.WithQuickPosts("/predict", "/v1/models/", "/v2/models/"))
	if p.payloads != nil {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainPayloads)
		defer cancel()
		err = errors.Join(err, p.payloads.close(limit))
	}
	return err
}

// drainPayloads is how long requests and answers may take to be sent at the end.
const drainPayloads = 10 * time.Second

func (c *Config) check() error {
	switch {
	case c.URI == "" && c.Name == "":
		return errors.New("MODEL_URI or MODEL_NAME: one is required")
	case c.URI != "" && c.Name != "":
		return errors.New("MODEL_URI and MODEL_NAME: only one may be set")
	case c.Name != "" && c.TrackingURI == "":
		return errors.New("MLFLOW_TRACKING_URI: required with MODEL_NAME")
	case c.Poll < 10*time.Millisecond:
		return fmt.Errorf("MODEL_POLL=%s: must be at least 10ms", c.Poll)
	case c.CanaryPercent < 0 || c.CanaryPercent > 100:
		return fmt.Errorf("CANARY_PERCENT=%d: must be between 0 and 100", c.CanaryPercent)
	case c.CanaryPercent > 0 && c.CanaryURI == "" && c.CanaryAlias == "":
		return errors.New("CANARY_PERCENT: needs CANARY_URI or CANARY_ALIAS")
	}
	for _, v := range []struct{ what, uri, alias string }{{"CANARY", c.CanaryURI, c.CanaryAlias}, {"SHADOW", c.ShadowURI, c.ShadowAlias}} {
		if v.uri != "" && v.alias != "" {
			return fmt.Errorf("%s_URI and %s_ALIAS: only one may be set", v.what, v.what)
		}
		if v.alias != "" && c.Name == "" {
			return fmt.Errorf("%s_ALIAS: needs MODEL_NAME", v.what)
		}
	}
	switch c.Payloads {
	case payloadsOff:
	case payloadsAll, payloadsRequest, payloadsResponse:
		if c.Sink == "" || c.PayloadBytes < 1 {
			return fmt.Errorf("PAYLOAD_EVENTS=%s: needs K_SINK, and PAYLOAD_BYTES above 0", c.Payloads)
		}
	default:
		return fmt.Errorf("PAYLOAD_EVENTS=%q: want %s, %s, %s or %s", c.Payloads, payloadsOff, payloadsAll, payloadsRequest, payloadsResponse)
	}
	for _, t := range c.EventTypes {
		if strings.TrimSpace(t) == "" {
			return errors.New("EVENT_TYPES: has an empty one")
		}
	}
	return nil
}

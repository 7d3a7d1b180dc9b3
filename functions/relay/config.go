package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// Config is the relay's environment.
type Config struct {
	// Port serves POST /, /healthz, /readyz and /metrics.
	Port int `envconfig:"PORT" default:"8080"`

	Kafka kafka.Config

	// Topics are read, separated by commas. Without any, the relay only writes.
	Topics []string `envconfig:"RELAY_TOPICS"`
	// Group is the consumer group.
	Group string `envconfig:"RELAY_GROUP"`
	// InitialOffset is where a new group begins: earliest or latest.
	InitialOffset string `envconfig:"RELAY_INITIAL_OFFSET" default:"earliest"`
	// Ordered keeps the order of each partition: one request of it at a time, and an
	// event waits for the retries of the one before it. Otherwise up to InFlight
	// requests of a partition are under way.
	Ordered  bool `envconfig:"RELAY_ORDERED" default:"true"`
	InFlight int  `envconfig:"RELAY_IN_FLIGHT" default:"16"`
	// Namespace and Name make the source of the events, as a KafkaSource of that name
	// would: /apis/v1/namespaces/<namespace>/kafkasources/<name>#<topic>.
	Namespace string `envconfig:"RELAY_NAMESPACE" default:"millrace"`
	Name      string `envconfig:"RELAY_NAME" default:"relay"`

	// Sink is the address that the events are posted to. A SinkBinding sets it, and
	// Overrides, the extensions to set, in Knative's form.
	Sink      string `envconfig:"K_SINK"`
	Overrides string `envconfig:"K_CE_OVERRIDES"`
	// BatchEvents and BatchBytes bound a request. 1 event sends no batches; a sink that
	// does not take them is found out and gets single events too.
	BatchEvents int `envconfig:"RELAY_BATCH_EVENTS" default:"200"`
	BatchBytes  int `envconfig:"RELAY_BATCH_BYTES" default:"1048576"`

	// Routes are the topics of replies, and of events that are posted to the relay:
	// type=topic, separated by commas. The type * stands for all others, the topic -
	// for none: such events are dropped. Without a topic for its type an event is
	// refused, and the event that it replies to goes to the dead-letter sink.
	Routes []string `envconfig:"RELAY_ROUTES"`
	// ReplySink is an address that gets the replies in place of topics, such as that
	// of a Broker. With neither it nor Routes replies are dropped.
	ReplySink string `envconfig:"RELAY_REPLY_SINK"`
	// Partitions and Replication are those of topics in Routes that do not exist yet;
	// a Replication of -1 leaves it to the cluster.
	Partitions  int32 `envconfig:"RELAY_PARTITIONS" default:"12"`
	Replication int16 `envconfig:"RELAY_REPLICATION" default:"-1"`
	// Structured writes records in the structured content mode in place of the binary.
	Structured bool `envconfig:"RELAY_STRUCTURED"`

	// Retry, BackoffPolicy (exponential or linear), BackoffDelay and Timeout are those
	// of a Knative delivery.
	Retry         int           `envconfig:"RELAY_RETRY" default:"10"`
	BackoffPolicy string        `envconfig:"RELAY_BACKOFF_POLICY" default:"exponential"`
	BackoffDelay  time.Duration `envconfig:"RELAY_BACKOFF_DELAY" default:"200ms"`
	Timeout       time.Duration `envconfig:"RELAY_TIMEOUT" default:"30s"`
	// DeadLetterSink is the address, or DeadLetterTopic the topic, of what could not be
	// delivered. One of them is needed to read topics.
	DeadLetterSink  string `envconfig:"RELAY_DEAD_LETTER_SINK"`
	DeadLetterTopic string `envconfig:"RELAY_DEAD_LETTER_TOPIC"`

	// DrainTimeout is what deliveries under way are given at SIGTERM. Keep it below the
	// pod's grace period.
	DrainTimeout time.Duration `envconfig:"RELAY_DRAIN_TIMEOUT" default:"20s"`
	// SessionTimeout is how soon another pod takes over from one that died.
	SessionTimeout time.Duration `envconfig:"RELAY_SESSION_TIMEOUT" default:"10s"`
}

const (
	routerName     = "routes"
	deadLetterName = "dead-letters"
)

// engine checks the settings and makes the graph that they describe.
func (c Config) engine() (eventing.Config, error) {
	g := &eventing.Graph{}
	topics, err := parseRoutes(c.Routes)
	if err != nil {
		return eventing.Config{}, err
	}
	if len(topics) > 0 {
		g.Routers = append(g.Routers, &eventing.Router{
			Object: c.object(routerName), Topics: topics, Partitions: c.Partitions, Replication: c.Replication, Structured: c.Structured,
		})
	}
	if len(c.Topics) > 0 {
		source, err := c.source(len(topics) > 0)
		if err != nil {
			return eventing.Config{}, err
		}
		g.KafkaSources = append(g.KafkaSources, source)
		if c.DeadLetterTopic != "" {
			g.KafkaSinks = append(g.KafkaSinks, &eventing.KafkaSink{
				Object: c.object(deadLetterName), Topic: c.DeadLetterTopic, Partitions: c.Partitions, Replication: c.Replication, Structured: c.Structured,
			})
		}
	}
	if len(c.Topics) == 0 && len(topics) == 0 {
		return eventing.Config{}, errors.New("there is nothing to do: neither RELAY_TOPICS nor RELAY_ROUTES is set")
	}
	return eventing.Config{
		Graph: g, Kafka: c.Kafka, BatchEvents: c.BatchEvents, BatchBytes: c.BatchBytes, InFlight: c.InFlight,
		DrainTimeout: c.DrainTimeout, SessionTimeout: c.SessionTimeout,
	}, nil
}

func (c Config) object(name string) eventing.Object {
	return eventing.Object{Namespace: c.Namespace, Name: name, Position: "the environment"}
}

// source is the reading side.
func (c Config) source(routes bool) (*eventing.KafkaSource, error) {
	s := &eventing.KafkaSource{Object: c.object(c.Name), Topics: c.Topics, Group: c.Group, Ordered: c.Ordered}
	switch c.InitialOffset {
	case "earliest":
		s.FromEarliest = true
	case "latest":
	default:
		return nil, fmt.Errorf("RELAY_INITIAL_OFFSET is %q, it has to be earliest or latest", c.InitialOffset)
	}
	if c.Group == "" {
		return nil, errors.New("RELAY_GROUP is missing")
	}
	sink, err := address("K_SINK", c.Sink)
	if err != nil {
		return nil, err
	}
	s.Sink = sink
	if c.Overrides != "" {
		var overrides struct {
			Extensions map[string]string `json:"extensions"`
		}
		if err := json.Unmarshal([]byte(c.Overrides), &overrides); err != nil {
			return nil, fmt.Errorf("reading K_CE_OVERRIDES: %w", err)
		}
		s.Extensions = overrides.Extensions
	}
	switch {
	case routes && c.ReplySink != "":
		return nil, errors.New("RELAY_ROUTES and RELAY_REPLY_SINK are both set, replies can go to one of them")
	case routes:
		s.Replies = &eventing.Destination{Kind: eventing.ToRouter, Namespace: c.Namespace, Name: routerName}
	case c.ReplySink != "":
		replies, err := address("RELAY_REPLY_SINK", c.ReplySink)
		if err != nil {
			return nil, err
		}
		s.Replies = &replies
	}
	s.Delivery, err = c.delivery()
	return s, err
}

func (c Config) delivery() (*eventing.Delivery, error) {
	d := &eventing.Delivery{Retry: c.Retry, Timeout: c.Timeout, Backoff: c.BackoffDelay}
	switch c.BackoffPolicy {
	case "exponential":
		d.Exponential = true
	case "linear":
	default:
		return nil, fmt.Errorf("RELAY_BACKOFF_POLICY is %q, it has to be exponential or linear", c.BackoffPolicy)
	}
	if c.Retry < 0 || c.BackoffDelay < 0 || c.Timeout < 0 {
		return nil, errors.New("RELAY_RETRY, RELAY_BACKOFF_DELAY and RELAY_TIMEOUT cannot be negative")
	}
	switch {
	case c.DeadLetterSink != "" && c.DeadLetterTopic != "":
		return nil, errors.New("RELAY_DEAD_LETTER_SINK and RELAY_DEAD_LETTER_TOPIC are both set")
	case c.DeadLetterTopic != "":
		d.DeadLetterSink = &eventing.Destination{Kind: eventing.ToKafkaSink, Namespace: c.Namespace, Name: deadLetterName}
	case c.DeadLetterSink != "":
		dead, err := address("RELAY_DEAD_LETTER_SINK", c.DeadLetterSink)
		if err != nil {
			return nil, err
		}
		d.DeadLetterSink = &dead
	default:
		return nil, errors.New("neither RELAY_DEAD_LETTER_SINK nor RELAY_DEAD_LETTER_TOPIC is set: what cannot be delivered would be lost")
	}
	return d, nil
}

func address(name, value string) (eventing.Destination, error) {
	if value == "" {
		return eventing.Destination{}, fmt.Errorf("%s is missing", name)
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return eventing.Destination{}, fmt.Errorf("%s is %q, it has to be an http or https address", name, value)
	}
	return eventing.Destination{Kind: eventing.ToURI, URI: value}, nil
}

func parseRoutes(routes []string) (map[string]string, error) {
	topics := make(map[string]string, len(routes))
	for _, r := range routes {
		typ, topic, ok := strings.Cut(strings.TrimSpace(r), "=")
		if !ok || typ == "" || topic == "" {
			return nil, fmt.Errorf("RELAY_ROUTES has %q, it has to be type=topic", r)
		}
		if _, twice := topics[typ]; twice {
			return nil, fmt.Errorf("RELAY_ROUTES has two topics for the type %q", typ)
		}
		topics[typ] = topic
	}
	return topics, nil
}

// routes are what the relay serves.
func (c Config) routes(engine *eventing.Engine, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := engine.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.Handle("GET /metrics", metrics)
	if len(c.Routes) > 0 {
		ingress := engine.Handler()
		path := "/routers/" + c.Namespace + "/" + routerName
		mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
			r.URL.Path = path
			ingress.ServeHTTP(w, r)
		})
	}
	return mux
}

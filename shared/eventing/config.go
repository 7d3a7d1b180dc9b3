package eventing

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// Config is what an Engine needs. Only Graph, Kafka and, when the graph refers to
// Services or JobSinks, Service and Job have to be set.
type Config struct {
	// Graph is the event graph to execute.
	Graph *Graph
	// Kafka is the cluster that holds the topics of everything in the graph. The
	// bootstrapServers of the manifests are those of another place and not used.
	Kafka kafka.Config
	// KafkaOptions are added to every client's options.
	KafkaOptions []kgo.Opt
	// Service is the address of a Knative Service. It is asked before every request,
	// so that a Service may move, and has to be fast and safe for concurrent use.
	Service func(namespace, name string) (url string, err error)
	// Job starts a JobSink's job for an event, or does nothing when a job of that
	// name has been started before. The event counts as delivered when it returns nil.
	Job func(ctx context.Context, sink *JobSink, name string, event events.Message) error
	// Logger gets what an operator should know. Nil is slog.Default().
	Logger *slog.Logger

	// Partitions of the topics that the engine creates, where the manifests do not
	// say it. Default 12.
	Partitions int32
	// Replication factor of the topics that the engine creates, where the manifests
	// do not say it. Default: the Kafka cluster's default.
	Replication int16

	// BatchEvents and BatchBytes bound a request to a subscriber. Default 200 events,
	// 1 MiB of data. BatchEvents of 1 sends single events only.
	BatchEvents int
	BatchBytes  int
	// InFlight bounds the requests in flight for a partition of an unordered Trigger
	// or source. Default 16.
	InFlight int
	// BufferBytes bounds what is read ahead of a partition's deliveries. Default 1 MiB.
	BufferBytes int
	// Timeout bounds a request where the delivery has none. Default 10 minutes, as in
	// Knative's data plane.
	Timeout time.Duration

	// MaxEventBytes bounds an event at the ingress. Default 1 MiB, as in Knative.
	MaxEventBytes int64
	// MaxBatchBytes bounds a batch at the ingress. Default 16 MiB.
	MaxBatchBytes int64
	// AckTimeout is how long the ingress waits for Kafka before it answers 503.
	// Default 5 s.
	AckTimeout time.Duration

	// CommitInterval is how often offsets are committed. A crash repeats about that
	// much work. Default 200 ms.
	CommitInterval time.Duration
	// SessionTimeout is how long Kafka waits for a consumer that died before it gives
	// its partitions away. Default 10 s.
	SessionTimeout time.Duration
	// Clock is what PingSources go by. Nil is the system's.
	Clock Clock
	// DrainTimeout is how long Run goes on with what is in flight when its context is
	// done, and how long a rebalance waits for it. Default 10 s.
	DrainTimeout time.Duration
}

func (c Config) withDefaults() (Config, error) {
	if c.Graph == nil {
		return c, errors.New("no event graph")
	}
	if len(c.Graph.JobSinks) > 0 && c.Job == nil {
		return c, errors.New("the graph has a JobSink and there is nothing to start jobs with")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	if c.Replication == 0 {
		c.Replication = -1
	}
	setDefault(&c.Partitions, 12)
	setDefault(&c.BatchEvents, 200)
	setDefault(&c.BatchBytes, 1<<20)
	setDefault(&c.InFlight, 16)
	setDefault(&c.BufferBytes, 1<<20)
	setDefault(&c.Timeout, 10*time.Minute)
	setDefault(&c.MaxEventBytes, 1<<20)
	setDefault(&c.MaxBatchBytes, 16<<20)
	setDefault(&c.AckTimeout, 5*time.Second)
	setDefault(&c.CommitInterval, 200*time.Millisecond)
	setDefault(&c.SessionTimeout, 10*time.Second)
	setDefault(&c.DrainTimeout, 10*time.Second)
	return c, nil
}

func setDefault[T int | int16 | int32 | int64 | time.Duration](v *T, value T) {
	if *v == 0 {
		*v = value
	}
}

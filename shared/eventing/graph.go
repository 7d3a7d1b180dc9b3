package eventing

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Graph is an event graph as the manifests describe it, with Knative's defaults
// filled in and every reference checked. It is not changed after Load.
type Graph struct {
	Brokers      []*Broker
	Triggers     []*Trigger
	KafkaSources []*KafkaSource
	KafkaSinks   []*KafkaSink
	PingSources  []*PingSource
	JobSinks     []*JobSink
	SinkBindings []*SinkBinding
	// Routers are no Knative objects and come from no manifest: who makes a graph by
	// hand uses them in place of one KafkaSink a topic.
	Routers []*Router
	// Services are the Knative Services among the manifests. They are not
	// executed; when there are any, a reference to another one is an error.
	Services []*Service
}

// Object is what all objects of a graph have.
type Object struct {
	Namespace, Name string
	// Position is the file and line at which the object begins.
	Position string
}

// Broker is a Kafka topic that Triggers read.
type Broker struct {
	Object
	// Topic is knative-broker-<namespace>-<name>, as Knative names it, unless the
	// annotation kafka.eventing.knative.dev/external.topic says otherwise.
	Topic string
	// Partitions and Replication come from the Broker's ConfigMap when it is among
	// the manifests, else they are 0: the engine's defaults.
	Partitions  int32
	Replication int16
	Delivery    *Delivery
}

// Group is the consumer group in which engines share the Broker's partitions. Nothing
// is committed to it.
func (b *Broker) Group() string { return "knative-broker-" + b.Namespace + "-" + b.Name }

// Trigger sends the events of a Broker that pass its filter to its subscriber.
type Trigger struct {
	Object
	Broker     string
	Filter     Filter
	Subscriber Destination
	// Delivery is the Trigger's own or, when it has none at all, the Broker's. Nil
	// means one attempt, and then the event is discarded.
	Delivery *Delivery
	// Ordered is one request in flight a partition; an event waits for the one
	// before it, and for that one's retries.
	Ordered bool
}

// Group is the consumer group that the Trigger's offsets are committed to, named as
// Knative names it. It has no members.
func (t *Trigger) Group() string { return "knative-trigger-" + t.Namespace + "-" + t.Name }

// KafkaSource turns the records of topics into events.
type KafkaSource struct {
	Object
	Topics []string
	Group  string
	// FromEarliest is where a group without offsets begins: at the first record,
	// else at the end.
	FromEarliest bool
	Ordered      bool
	Sink         Destination
	Delivery     *Delivery
	Extensions   map[string]string
	// Replies is where the sink's replies go. Nil discards them, as Knative does;
	// manifests cannot say anything else.
	Replies *Destination
}

// Router writes events to topics by their type.
type Router struct {
	Object
	// Topics are the topics by event type; the type "*" stands for all others. The
	// topic "-" discards events. An event of a type without a topic is refused.
	Topics map[string]string
	// Partitions and Replication are those of topics that the engine has to create; 0
	// means the engine's defaults.
	Partitions  int32
	Replication int16
	Structured  bool
}

// KafkaSink writes the events it is sent to a topic.
type KafkaSink struct {
	Object
	Topic string
	// Partitions and Replication are those of the topic if the engine has to create
	// it; 0 means the engine's defaults.
	Partitions  int32
	Replication int16
	// Structured content mode puts the whole event as JSON into the record's value;
	// binary mode puts the attributes into headers.
	Structured bool
}

// PingSource sends one event at each time of its schedule.
type PingSource struct {
	Object
	// Schedule is a cron expression of five or six fields (seconds first) or a
	// descriptor such as @hourly, with its time zone as a CRON_TZ= prefix.
	Schedule    string
	ContentType string
	Data        []byte
	Sink        Destination
	Extensions  map[string]string
}

// Source is the event source attribute of the PingSource's events.
func (p *PingSource) Source() string {
	return "/apis/v1/namespaces/" + p.Namespace + "/pingsources/" + p.Name
}

// JobSink starts one job an event.
type JobSink struct {
	Object
	job ast.Node
}

// Decode fills v, a pointer, from spec.job (a batch/v1 Job without its name). Fields
// that v does not have are ignored.
func (j *JobSink) Decode(v any) error { return decodeLoosely(j.job, v) }

// SinkBinding gives a workload the address of its sink in the environment variable
// K_SINK.
type SinkBinding struct {
	Object
	SubjectKind      string
	SubjectNamespace string
	SubjectName      string
	SubjectLabels    map[string]string
	Sink             Destination
	Extensions       map[string]string
}

// Service is a Knative Service that is among the manifests.
type Service struct {
	Object
	Labels map[string]string
}

// DestinationKind says what a Destination is.
type DestinationKind string

// The kinds of destinations. All but ToRouter and ToURI are kinds of manifests.
const (
	ToBroker    DestinationKind = "Broker"
	ToService   DestinationKind = "Service"
	ToKafkaSink DestinationKind = "KafkaSink"
	ToJobSink   DestinationKind = "JobSink"
	ToRouter    DestinationKind = "Router"
	ToURI       DestinationKind = "URI"
)

// Destination is where events go: an object of the graph, a Service or a URI.
type Destination struct {
	Kind            DestinationKind
	Namespace, Name string
	// URI is the absolute address of a ToURI; for the others it is a reference that
	// is resolved against the object's address.
	URI string
}

// String is the destination as it stands in messages: Kind namespace/name, or the
// address.
func (d Destination) String() string {
	if d.Kind == ToURI {
		return d.URI
	}
	return string(d.Kind) + " " + d.Namespace + "/" + d.Name
}

// Delivery is what happens when a delivery fails.
type Delivery struct {
	// Retry is how often a failed delivery is repeated.
	Retry int
	// Timeout bounds each request; 0 means the engine's default.
	Timeout time.Duration
	// Exponential doubles the delay at each retry; otherwise it grows linearly.
	Exponential bool
	// Backoff is the delay before the first retry; 0 means none.
	Backoff time.Duration
	// RetryAfterMax bounds what a Retry-After header can ask for. Nil means the
	// engine's bound; 0 means that the header is ignored.
	RetryAfterMax *time.Duration
	// Structured sends single events in structured content mode.
	Structured bool
	// DeadLetterSink gets what could not be delivered. Nil: it is discarded.
	DeadLetterSink *Destination
}

// delay is the pause before the nth retry, counted from 1, when the subscriber asked
// for retryAfter (0: it did not ask).
func (d *Delivery) delay(n int, retryAfter time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	pause := d.Backoff
	if d.Exponential {
		for i := 1; i < n && pause < maxBackoff; i++ {
			pause *= 2
		}
	} else {
		pause *= time.Duration(n)
	}
	pause = min(pause, maxBackoff)
	limit := maxRetryAfter
	if d.RetryAfterMax != nil {
		limit = *d.RetryAfterMax
	}
	return max(pause, min(retryAfter, limit))
}

const (
	// maxBackoff keeps a long exponential series from overflowing, and from sleeping
	// through a day.
	maxBackoff = time.Hour
	// maxRetryAfter bounds Retry-After where the manifest does not.
	maxRetryAfter = 10 * time.Minute
)

// Addresses resolves destinations to URLs.
type Addresses struct {
	// Ingress is the base URL at which Engine.Handler is served.
	Ingress string
	// Service is the address of a Knative Service.
	Service func(namespace, name string) (string, error)
}

// URL is the address at which the destination accepts events.
func (a Addresses) URL(d Destination) (string, error) {
	var base string
	switch d.Kind {
	case ToURI:
		return d.URI, nil
	case ToService:
		if a.Service == nil {
			return "", fmt.Errorf("no addresses for %s", d)
		}
		var err error
		if base, err = a.Service(d.Namespace, d.Name); err != nil {
			return "", fmt.Errorf("finding the address of %s: %w", d, err)
		}
	default:
		if a.Ingress == "" {
			return "", fmt.Errorf("no ingress address for %s", d)
		}
		var err error
		if base, err = url.JoinPath(a.Ingress, ingressPath(d)); err != nil {
			return "", fmt.Errorf("joining the ingress address: %w", err)
		}
	}
	return resolveReference(base, d.URI)
}

// ingressPath is where Engine.Handler accepts events for the object.
func ingressPath(d Destination) string {
	switch d.Kind {
	case ToKafkaSink:
		return "/kafkasinks/" + d.Namespace + "/" + d.Name
	case ToJobSink:
		return "/jobsinks/" + d.Namespace + "/" + d.Name
	case ToRouter:
		return "/routers/" + d.Namespace + "/" + d.Name
	default:
		return "/" + d.Namespace + "/" + d.Name
	}
}

func resolveReference(base, ref string) (string, error) {
	if ref == "" {
		return base, nil
	}
	b, err := url.Parse(base)
	if err != nil {
		return "", fmt.Errorf("parsing address: %w", err)
	}
	r, err := url.Parse(ref)
	if err != nil {
		return "", fmt.Errorf("parsing uri: %w", err)
	}
	return b.ResolveReference(r).String(), nil
}

// Binding is what a SinkBinding puts into its subject's environment.
type Binding struct {
	// Sink is K_SINK.
	Sink string
	// Overrides is K_CE_OVERRIDES, a JSON object, "" when there are none.
	Overrides string
}

// Binding returns what the graph's SinkBinding for the Knative Service gives it, and
// whether there is one.
func (g *Graph) Binding(namespace, service string, a Addresses) (Binding, bool, error) {
	for _, b := range g.SinkBindings {
		if b.SubjectKind != "Service" || b.SubjectNamespace != namespace || !g.selects(b, namespace, service) {
			continue
		}
		sink, err := a.URL(b.Sink)
		if err != nil {
			return Binding{}, false, fmt.Errorf("%s: SinkBinding %s: %w", b.Position, b.Name, err)
		}
		out := Binding{Sink: sink}
		if len(b.Extensions) > 0 {
			overrides, err := json.Marshal(map[string]any{"extensions": b.Extensions})
			if err != nil {
				return Binding{}, false, fmt.Errorf("encoding overrides: %w", err)
			}
			out.Overrides = string(overrides)
		}
		return out, true, nil
	}
	return Binding{}, false, nil
}

func (g *Graph) selects(b *SinkBinding, namespace, service string) bool {
	if b.SubjectName != "" {
		return b.SubjectName == service
	}
	for _, s := range g.Services {
		if s.Namespace != namespace || s.Name != service {
			continue
		}
		for k, v := range b.SubjectLabels {
			if s.Labels[k] != v {
				return false
			}
		}
		return true
	}
	return false
}

// Topics are the topics that the graph writes to and their partitions; 0 means the
// engine's default. The topics of KafkaSources are not among them: their producers
// own them.
func (g *Graph) Topics() map[string]int32 {
	topics := make(map[string]int32, len(g.Brokers)+len(g.KafkaSinks))
	for _, b := range g.Brokers {
		topics[b.Topic] = b.Partitions
	}
	for _, s := range g.KafkaSinks {
		topics[s.Topic] = s.Partitions
	}
	for _, r := range g.Routers {
		for _, topic := range r.Topics {
			if topic != discarded {
				topics[topic] = r.Partitions
			}
		}
	}
	return topics
}

func (g *Graph) broker(namespace, name string) *Broker {
	for _, b := range g.Brokers {
		if b.Namespace == namespace && b.Name == name {
			return b
		}
	}
	return nil
}

func (g *Graph) kafkaSink(namespace, name string) *KafkaSink {
	for _, s := range g.KafkaSinks {
		if s.Namespace == namespace && s.Name == name {
			return s
		}
	}
	return nil
}

func (g *Graph) jobSink(namespace, name string) *JobSink {
	for _, s := range g.JobSinks {
		if s.Namespace == namespace && s.Name == name {
			return s
		}
	}
	return nil
}

var errNoManifests = errors.New("no event graph: the manifests hold no Broker, source, sink or Trigger")

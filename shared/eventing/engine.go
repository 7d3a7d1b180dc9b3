package eventing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/kafka"
)

// Engine executes a graph. Its methods are safe for concurrent use; Run may be
// called once.
type Engine struct {
	config    Config
	log       *slog.Logger
	kafkaOpts []kgo.Opt
	transport *http.Transport

	topics    map[string]*topicOutlet
	jobs      map[string]*jobOutlet
	routers   map[string]*routerOutlet
	ingresses map[string]*ingress
	// inputs are the consumers of the sources and the readers of the Brokers, in the
	// order in which they start.
	inputs  []input
	readers map[string]*reader // by Broker
	pingers []*pinger
	// order keeps Stats in the order of the manifests.
	sources, triggers []*flow
	lags              map[*flow]func() int64
	inOrder           []*ingress

	// producer is nil until Kafka has been reached.
	producer       atomic.Pointer[kgo.Client]
	produceContext context.Context
	produceCancel  context.CancelFunc
	ready          atomic.Bool
	// limits are the largest batches that topics take.
	limits sync.Map
	// killed makes Run end as if the process had died. It is for tests.
	killed chan struct{}
}

// input reads topics and has what it reads delivered.
type input interface {
	start(opts []kgo.Opt) error
	shut(ctx context.Context)
	abandon()
}

type sinkCounter struct {
	n       atomic.Uint64
	failure failure
}

// New checks the configuration against the graph and makes an engine; nothing runs
// before Run, and Handler answers 503 until then.
func New(c Config) (*Engine, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("making the engine: %w", err)
	}
	opts, err := c.Kafka.Options()
	if err != nil {
		return nil, fmt.Errorf("making the engine: %w", err)
	}
	e := &Engine{
		config: c, log: c.Logger, kafkaOpts: append(opts, c.KafkaOptions...), transport: newTransport(),
		topics: map[string]*topicOutlet{}, jobs: map[string]*jobOutlet{}, routers: map[string]*routerOutlet{}, ingresses: map[string]*ingress{},
		readers: map[string]*reader{}, lags: map[*flow]func() int64{}, killed: make(chan struct{}),
	}
	e.produceContext, e.produceCancel = context.WithCancel(context.Background())
	if err := e.build(); err != nil {
		return nil, fmt.Errorf("making the engine: %w", err)
	}
	return e, nil
}

// build makes the parts of the engine from those of the graph.
func (e *Engine) build() error {
	g := e.config.Graph
	for _, b := range g.Brokers {
		to := Destination{Kind: ToBroker, Namespace: b.Namespace, Name: b.Name}
		e.addTopic(to, b.Topic, false, b.Object)
	}
	for _, s := range g.KafkaSinks {
		to := Destination{Kind: ToKafkaSink, Namespace: s.Namespace, Name: s.Name}
		e.addTopic(to, s.Topic, s.Structured, s.Object)
	}
	for _, r := range g.Routers {
		to := Destination{Kind: ToRouter, Namespace: r.Namespace, Name: r.Name}
		out := newRouterOutlet(e, to, r)
		e.routers[to.String()] = out
		e.addIngress(to, r.Object, out)
	}
	for _, s := range g.JobSinks {
		to := Destination{Kind: ToJobSink, Namespace: s.Namespace, Name: s.Name}
		j := &jobOutlet{to: to, sink: s, start: e.config.Job}
		e.jobs[to.String()] = j
		e.addIngress(to, s.Object, j)
	}
	for _, s := range g.KafkaSources {
		if err := e.addSource(s); err != nil {
			return fmt.Errorf("%s: KafkaSource %s: %w", s.Position, s.Name, err)
		}
	}
	for _, p := range g.PingSources {
		if err := e.addPing(p); err != nil {
			return fmt.Errorf("%s: PingSource %s: %w", p.Position, p.Name, err)
		}
	}
	for _, t := range g.Triggers {
		if err := e.addTrigger(t); err != nil {
			return fmt.Errorf("%s: Trigger %s: %w", t.Position, t.Name, err)
		}
	}
	return nil
}

func (e *Engine) addTopic(to Destination, topic string, structured bool, o Object) {
	t := &topicOutlet{engine: e, to: to, topic: topic, structured: structured}
	e.topics[to.String()] = t
	e.addIngress(to, o, t)
}

func (e *Engine) addIngress(to Destination, o Object, out outlet) {
	in := &ingress{kind: string(to.Kind), object: o, outlet: out}
	e.ingresses[ingressPath(to)] = in
	e.inOrder = append(e.inOrder, in)
}

// outlet is the way to the destination.
func (e *Engine) outlet(to Destination, spec *Delivery) (outlet, error) {
	switch to.Kind {
	case ToBroker, ToKafkaSink:
		return e.topics[to.String()], nil
	case ToJobSink:
		return e.jobs[to.String()], nil
	case ToRouter:
		return e.routers[to.String()], nil
	default:
		h := &httpOutlet{to: to, addresses: Addresses{Service: e.config.Service}, timeout: e.config.Timeout, client: e.transport}
		if spec != nil {
			h.structured = spec.Structured
			if spec.Timeout > 0 {
				h.timeout = spec.Timeout
			}
		}
		if _, err := h.url(); err != nil {
			return nil, err
		}
		return h, nil
	}
}

// route is the route of a source or Trigger; replies may be nil.
func (e *Engine) route(kind string, o Object, to Destination, spec *Delivery, replies outlet, parallel int) (*route, error) {
	main, err := e.outlet(to, spec)
	if err != nil {
		return nil, err
	}
	var dead outlet
	if spec != nil && spec.DeadLetterSink != nil {
		if dead, err = e.outlet(*spec.DeadLetterSink, spec); err != nil {
			return nil, fmt.Errorf("dead-letter sink: %w", err)
		}
	}
	f := &flow{kind: kind, object: o}
	log := e.log.With("kind", kind, "namespace", o.Namespace, "name", o.Name)
	return newRoute(f, log, main, spec, dead, replies, parallel), nil
}

// work is the delivery of a source's or Trigger's events over its route.
func (e *Engine) work(r *route, ordered bool, to Destination) work {
	w := work{
		config: &e.config, log: r.log, flow: r.flow, ordered: ordered,
		batchEvents: e.config.BatchEvents, batchBytes: e.config.BatchBytes, deliver: r.deliver,
	}
	if to.Kind == ToBroker || to.Kind == ToKafkaSink {
		// Kafka takes batches of its own size.
		w.batchEvents = max(w.batchEvents, topicBatch)
	}
	return w
}

// topicBatch is how many events are written to a topic before their acknowledgements
// are waited for.
const topicBatch = 1000

func (e *Engine) parallel(ordered bool) int {
	if ordered {
		return 1
	}
	return e.config.InFlight
}

func (e *Engine) addSource(s *KafkaSource) error {
	spec := orKnative(s.Delivery)
	var replies outlet
	if s.Replies != nil {
		var err error
		if replies, err = e.outlet(*s.Replies, spec); err != nil {
			return fmt.Errorf("replies: %w", err)
		}
	}
	r, err := e.route("KafkaSource", s.Object, s.Sink, spec, replies, e.parallel(s.Ordered))
	if err != nil {
		return err
	}
	e.sources = append(e.sources, r.flow)
	c := &consumer{work: e.work(r, s.Ordered, s.Sink), group: s.Group, topics: s.Topics, decode: newRecordDecoder(s).decode}
	e.inputs = append(e.inputs, c)
	e.lags[r.flow] = c.lag
	return nil
}

// orKnative is the delivery of a source that has none of its own.
func orKnative(d *Delivery) *Delivery {
	if d != nil {
		return d
	}
	return &Delivery{Retry: 10, Exponential: true, Backoff: 200 * time.Millisecond}
}

func (e *Engine) addPing(p *PingSource) error {
	schedule, err := cronParser.Parse(p.Schedule)
	if err != nil {
		return fmt.Errorf("parsing the schedule: %w", err)
	}
	r, err := e.route("PingSource", p.Object, p.Sink, orKnative(nil), nil, 1)
	if err != nil {
		return err
	}
	e.sources = append(e.sources, r.flow)
	e.pingers = append(e.pingers, &pinger{source: p, schedule: schedule, clock: e.config.Clock, flow: r.flow, log: r.log, deliver: r.deliver})
	return nil
}

func (e *Engine) addTrigger(t *Trigger) error {
	b := e.config.Graph.broker(t.Namespace, t.Broker)
	if b == nil {
		return fmt.Errorf("there is no Broker %s/%s", t.Namespace, t.Broker)
	}
	broker := e.topics[Destination{Kind: ToBroker, Namespace: b.Namespace, Name: b.Name}.String()]
	r, err := e.route("Trigger", t.Object, t.Subscriber, t.Delivery, broker, e.parallel(t.Ordered))
	if err != nil {
		return err
	}
	e.triggers = append(e.triggers, r.flow)
	in := e.readers[broker.to.String()]
	if in == nil {
		in = &reader{
			config: &e.config, group: b.Group(), topic: b.Topic,
			log: e.log.With("kind", "Broker", "namespace", b.Namespace, "name", b.Name),
		}
		e.readers[broker.to.String()] = in
		e.inputs = append(e.inputs, in)
	}
	number := in.add(e.work(r, t.Ordered, t.Subscriber), t.Group(), t.Filter)
	e.lags[r.flow] = func() int64 { return in.lag(number) }
	return nil
}

// Run connects to Kafka, creates the topics that are missing, and executes the graph
// until ctx is done. Then it begins nothing new, waits for what is in flight for at
// most Config.DrainTimeout, commits, and returns nil. It returns an error when the
// graph cannot be set up; while Kafka is away it waits.
func (e *Engine) Run(ctx context.Context) error {
	defer e.produceCancel()
	producer, err := e.connect(ctx)
	if errors.Is(err, errStopped) {
		return nil
	}
	if err != nil {
		return err
	}
	defer e.transport.CloseIdleConnections()
	defer producer.Close()
	defer e.ready.Store(false)
	for i, in := range e.inputs {
		if err := in.start(e.kafkaOpts); err != nil {
			e.shut(context.WithoutCancel(ctx), e.inputs[:i])
			return fmt.Errorf("starting: %w", err)
		}
	}
	e.ready.Store(true)
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var pings sync.WaitGroup
	for _, p := range e.pingers {
		pings.Go(func() { p.run(scope{hard, ctx.Done()}) })
	}
	e.log.Info("eventing is running", "brokers", len(e.config.Graph.Brokers), "triggers", len(e.triggers), "sources", len(e.sources))
	select {
	case <-ctx.Done():
	case <-e.killed:
		cancel()
		for _, in := range e.inputs {
			in.abandon()
		}
		return nil
	}
	drain, stop := context.WithTimeout(hard, e.config.DrainTimeout)
	defer stop()
	context.AfterFunc(drain, cancel)
	e.shut(drain, e.inputs)
	pings.Wait()
	if err := producer.Flush(drain); err != nil && producer.BufferedProduceRecords() > 0 {
		e.log.Warn("some events were not acknowledged by Kafka before the end", "events", producer.BufferedProduceRecords())
	}
	return nil
}

func (e *Engine) shut(ctx context.Context, ins []input) {
	var all sync.WaitGroup
	for _, in := range ins {
		all.Go(func() { in.shut(ctx) })
	}
	all.Wait()
}

// connect reaches Kafka and prepares it: the topics and where the groups begin. It
// returns errStopped when ctx ends before.
func (e *Engine) connect(ctx context.Context) (*kgo.Client, error) {
	for try := 1; ; try++ {
		setup, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := e.prepare(setup)
		cancel()
		if err == nil {
			return e.newProducer()
		}
		if ctx.Err() != nil {
			return nil, errStopped
		}
		if try == 1 || try%20 == 0 {
			e.log.Warn("Kafka is not ready, waiting for it", "brokers", e.config.Kafka.Brokers, "error", err)
		}
		if err := (scope{ctx, nil}).wait(min(patience.delay(try, 0), 2*time.Second)); err != nil {
			return nil, err
		}
	}
}

// maxBuffered bounds what waits to be written to Kafka; writing more waits.
const maxBuffered = 64 << 20

func (e *Engine) newProducer() (*kgo.Client, error) {
	client, err := kgo.NewClient(append(e.kafkaOpts[:len(e.kafkaOpts):len(e.kafkaOpts)],
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.SnappyCompression()),
		kgo.ProducerBatchMaxBytesFn(e.maxBytes),
		kgo.MaxBufferedRecords(50_000),
		kgo.MaxBufferedBytes(maxBuffered),
	)...)
	if err != nil {
		return nil, fmt.Errorf("making the Kafka client: %w", err)
	}
	e.producer.Store(client)
	return client, nil
}

func (e *Engine) maxBytes(topic string) int32 {
	if n, ok := e.limits.Load(topic); ok {
		if n, ok := n.(int32); ok {
			return n
		}
	}
	return kafka.DefaultMaxBytes
}

func (e *Engine) prepare(ctx context.Context) error {
	client, err := kgo.NewClient(e.kafkaOpts...)
	if err != nil {
		return fmt.Errorf("making the Kafka client: %w", err)
	}
	defer client.Close()
	if err := client.Ping(ctx); err != nil {
		return fmt.Errorf("reaching Kafka: %w", err)
	}
	g := e.config.Graph
	names := make([]string, 0, len(g.Brokers)+len(g.KafkaSinks))
	ensure := func(topic string, partitions int32, replication int16) error {
		if partitions == 0 {
			partitions = e.config.Partitions
		}
		if replication == 0 {
			replication = e.config.Replication
		}
		names = append(names, topic)
		return kafka.EnsureTopics(ctx, client, map[string]int32{topic: partitions}, replication)
	}
	for _, b := range g.Brokers {
		if err := ensure(b.Topic, b.Partitions, b.Replication); err != nil {
			return err
		}
	}
	for _, s := range g.KafkaSinks {
		if err := ensure(s.Topic, s.Partitions, s.Replication); err != nil {
			return err
		}
	}
	for _, r := range g.Routers {
		for _, topic := range r.Topics {
			if topic == discarded {
				continue
			}
			if err := ensure(topic, r.Partitions, r.Replication); err != nil {
				return err
			}
		}
	}
	limits, err := kafka.MaxBytes(ctx, client, names...)
	if err != nil {
		return err
	}
	for topic, n := range limits {
		// The client counts a little less than the broker measures.
		e.limits.Store(topic, max(512, n-1024))
	}
	// A client that has just learned that topics do not exist believes it for a while.
	fresh, err := kgo.NewClient(e.kafkaOpts...)
	if err != nil {
		return fmt.Errorf("making the Kafka client: %w", err)
	}
	defer fresh.Close()
	admin := kadm.NewClient(fresh)
	for _, r := range e.readers {
		if err := r.prepare(ctx, admin); err != nil {
			return err
		}
	}
	for _, s := range g.KafkaSources {
		if s.FromEarliest {
			continue
		}
		if err := beginAtEnd(ctx, admin, s.Topics, s.Group); err != nil {
			return fmt.Errorf("preparing KafkaSource %s: %w", s.Name, err)
		}
	}
	return nil
}

// backlogged reports whether so much waits for Kafka that more should not be taken
// in: what is taken in while Kafka is away stays in memory.
func (e *Engine) backlogged() bool {
	client := e.producer.Load()
	return client != nil && client.BufferedProduceBytes() > maxBuffered/2
}

// kill ends Run as if the process had died.
func (e *Engine) kill() { close(e.killed) }

// Ready returns nil once the graph is executed, and why not before.
func (e *Engine) Ready(ctx context.Context) error {
	client := e.producer.Load()
	if !e.ready.Load() || client == nil {
		return errors.New("the engine is starting or has ended")
	}
	if err := client.Ping(ctx); err != nil {
		return fmt.Errorf("reaching Kafka: %w", err)
	}
	return nil
}

// Stats is a snapshot of what the engine has done.
func (e *Engine) Stats() Stats {
	s := Stats{Ready: e.ready.Load()}
	for _, in := range e.inOrder {
		if in.kind == string(ToBroker) || in.accepted.Load()+in.rejected.Load()+in.refused.Load() > 0 {
			s.Brokers = append(s.Brokers, IngressStats{
				Kind: in.kind, Namespace: in.object.Namespace, Name: in.object.Name,
				Accepted: in.accepted.Load(), Rejected: in.rejected.Load(), Refused: in.refused.Load(),
			})
		}
		switch out := in.outlet.(type) {
		case *topicOutlet:
			_, last := out.failure.get()
			s.Sinks = append(s.Sinks, SinkStats{Kind: in.kind, Namespace: in.object.Namespace, Name: in.object.Name, Topic: out.topic, Written: out.written.Load(), LastError: last})
		case *routerOutlet:
			for _, t := range out.topics {
				_, last := t.failure.get()
				s.Sinks = append(s.Sinks, SinkStats{Kind: in.kind, Namespace: in.object.Namespace, Name: in.object.Name, Topic: t.topic, Written: t.written.Load(), LastError: last})
			}
		case *jobOutlet:
			_, last := out.started.failure.get()
			s.Sinks = append(s.Sinks, SinkStats{Kind: in.kind, Namespace: in.object.Namespace, Name: in.object.Name, Written: out.started.n.Load(), LastError: last})
		}
	}
	for _, f := range e.sources {
		s.Sources = append(s.Sources, f.snapshot(e.lag(f)))
	}
	for _, f := range e.triggers {
		s.Triggers = append(s.Triggers, f.snapshot(e.lag(f)))
	}
	return s
}

func (e *Engine) lag(f *flow) int64 {
	if lag := e.lags[f]; lag != nil {
		return lag()
	}
	return 0
}

package eventing

import (
	"sync"
	"sync/atomic"
	"time"
)

// Stats is a snapshot of what the engine has done since it was made. Counters only
// grow; rates are differences of two snapshots. It is cheap enough to be taken many
// times a second.
type Stats struct {
	// Ready is true from when the topics and the consumer groups are set up to the end
	// of Run.
	Ready bool `json:"ready"`
	// Brokers counts what arrived over HTTP at the ingress.
	Brokers  []IngressStats `json:"brokers"`
	Sources  []FlowStats    `json:"sources"`
	Triggers []FlowStats    `json:"triggers"`
	Sinks    []SinkStats    `json:"sinks"`
}

// IngressStats is about the ingress of a Broker or sink.
type IngressStats struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Accepted events are in Kafka. Rejected requests were wrong (4xx), Refused ones
	// could not be stored (503).
	Accepted uint64 `json:"accepted"`
	Rejected uint64 `json:"rejected"`
	Refused  uint64 `json:"refused"`
}

// FlowStats is about one KafkaSource, PingSource or Trigger.
type FlowStats struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Received events were read, Matched ones passed the filter.
	Received uint64 `json:"received"`
	Matched  uint64 `json:"matched"`
	// Delivered events were accepted by the sink or subscriber, Replies came back.
	Delivered uint64 `json:"delivered"`
	Replies   uint64 `json:"replies"`
	// Retries counts repeated requests, of one or many events.
	Retries uint64 `json:"retries"`
	// DeadLettered events were accepted by the dead-letter sink; Discarded ones had
	// no dead-letter sink to go to.
	DeadLettered uint64 `json:"deadLettered"`
	Discarded    uint64 `json:"discarded"`
	// InFlight is how many events are with the subscriber or wait for a retry.
	InFlight int64 `json:"inFlight"`
	// Lag is how many events are still to be done and how many records still to be looked
	// at for more of them, as of the last fetch.
	Lag int64 `json:"lag"`
	// FailingSince is when the deliveries began to fail; zero when the last one
	// succeeded. LastError is the last failure, also after it has passed.
	FailingSince time.Time `json:"failingSince,omitzero"`
	LastError    string    `json:"lastError,omitempty"`
}

// SinkStats is about one KafkaSink or JobSink.
type SinkStats struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Topic     string `json:"topic,omitempty"`
	// Written events are in the topic, or their jobs have been started.
	Written   uint64 `json:"written"`
	LastError string `json:"lastError,omitempty"`
}

// flow is the live form of FlowStats.
type flow struct {
	kind      string
	object    Object
	received  atomic.Uint64
	matched   atomic.Uint64
	delivered atomic.Uint64
	replies   atomic.Uint64
	retries   atomic.Uint64
	dead      atomic.Uint64
	discarded atomic.Uint64
	inFlight  atomic.Int64
	failure   failure
}

// failure is the last error and since when there is one.
type failure struct {
	mu    sync.Mutex
	since time.Time
	last  string
	// failing mirrors since, so that the usual case costs no lock.
	failing atomic.Bool
}

func (f *failure) set(err string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since.IsZero() {
		f.since = time.Now()
	}
	f.last = err
	f.failing.Store(true)
}

// note keeps an error that is no failed delivery.
func (f *failure) note(err string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = err
}

func (f *failure) clear() {
	if !f.failing.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since = time.Time{}
	f.failing.Store(false)
}

func (f *failure) get() (since time.Time, last string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.since, f.last
}

func (f *flow) snapshot(lag int64) FlowStats {
	s := FlowStats{
		Kind: f.kind, Namespace: f.object.Namespace, Name: f.object.Name,
		Received: f.received.Load(), Matched: f.matched.Load(), Delivered: f.delivered.Load(), Replies: f.replies.Load(),
		Retries: f.retries.Load(), DeadLettered: f.dead.Load(), Discarded: f.discarded.Load(),
		InFlight: f.inFlight.Load(), Lag: lag,
	}
	s.FailingSince, s.LastError = f.failure.get()
	return s
}

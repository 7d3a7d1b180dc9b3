package main

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/health"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// Status is the platform at one moment, as GET /status and `status --json` show it.
// Rates are a second's mean over the last few seconds. Counts since start begin
// with the runner, all others with the data.
type Status struct {
	Version string    `json:"version"`
	State   string    `json:"state"` // starting, running, stopping
	Time    time.Time `json:"time"`
	Started time.Time `json:"started"`
	StateIn string    `json:"stateFolder"`
	URLs    []URL     `json:"urls"`

	// Raw, Validated and Invalid sum the topics that sources read, and those that
	// the verdicts are in. InvalidShare is of the last seconds' verdicts, 0 to 1.
	Raw          Rate    `json:"raw"`
	Validated    Rate    `json:"validated"`
	Invalid      Rate    `json:"invalid"`
	InvalidShare float64 `json:"invalidShare"`
	// Predictions are replies to events by functions that predict, since start.
	Predictions Rate `json:"predictions"`

	Topics      []TopicStatus   `json:"topics"`
	Deliveries  []Delivery      `json:"deliveries"`
	Lake        LakeStatus      `json:"lake"`
	Warehouse   WarehouseStatus `json:"warehouse"`
	Features    FeatureStatus   `json:"features"`
	Learning    LearningStatus  `json:"learning"`
	DeadLetters uint64          `json:"deadLettersSinceStart"`
	Processes   []ProcessStatus `json:"processes"`
	// Stores tell of Kafka, S3, Redis and PostgreSQL, of those that are used, whether
	// they answer and since when.
	Stores []health.State `json:"stores"`
	// RSSBytes counts memory that processes of the same program share once.
	RSSBytes int64      `json:"rssBytes"`
	Events   []LogEvent `json:"events"`
	// LeftOut is what this machine cannot run.
	LeftOut []leftOut `json:"leftOut,omitempty"`
	// Problems are what the collector itself could not read.
	Problems []string `json:"problems,omitempty"`
}

// URL is a place to look.
type URL struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Rate is a count and how fast it grows.
type Rate struct {
	Total     int64   `json:"total"`
	PerSecond float64 `json:"perSecond"`
}

// TopicStatus is about a topic. Records are those ever written, kept or not.
type TopicStatus struct {
	Name string `json:"name"`
	// Role is raw, sink or broker.
	Role string `json:"role"`
	Rate
}

// Delivery is about a source or trigger.
type Delivery struct {
	eventing.FlowStats
	PerSecond float64 `json:"perSecond"`
}

// LakeStatus is about the buckets of the lake.
type LakeStatus struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
	// Records are the records that the verdict topics hold up to where the lake has
	// drained them.
	Records   int64     `json:"records"`
	LastWrite time.Time `json:"lastWrite,omitzero"`
}

// ProcessStatus is about a process; the runner is one of them.
type ProcessStatus struct {
	Name       string          `json:"name"`
	State      supervise.State `json:"state"`
	PID        int             `json:"pid,omitempty"`
	Address    string          `json:"address,omitempty"`
	RSSBytes   int64           `json:"rssBytes"`
	CPUPercent float64         `json:"cpuPercent"` // of one CPU
	Restarts   int             `json:"restarts"`
	Since      time.Time       `json:"since,omitzero"`
	Err        string          `json:"error,omitempty"`
}

// LogEvent is something that happened.
type LogEvent struct {
	Time time.Time `json:"time"`
	Part string    `json:"part"`
	Text string    `json:"text"`
	Bad  bool      `json:"bad,omitempty"`
}

// window is how far back rates look: long enough to be calm, short enough to follow.
const window = 5 * time.Second

// meter turns a count that is read now and then into a rate.
type meter struct {
	samples []sample // oldest first
}

type sample struct {
	at    time.Time
	count float64
}

// add takes a reading and returns the rate over the window. A count that went back
// began again.
func (m *meter) add(at time.Time, count float64) float64 {
	if n := len(m.samples); n > 0 && count < m.samples[n-1].count {
		m.samples = m.samples[:0]
	}
	m.samples = append(m.samples, sample{at, count})
	for len(m.samples) > 2 && at.Sub(m.samples[1].at) >= window {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	seconds := at.Sub(first.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	return (count - first.count) / seconds
}

// collector reads the parts about once a second and keeps the latest Status.
type collector struct {
	parts  *parts
	sup    *supervise.Supervisor
	kafka  *kgo.Client
	store  *lake.Store
	engine func() eventing.Stats
	// learning is nil where no models are trained.
	learning func() LearningStatus
	self     int // our process id
	started  time.Time

	mu      sync.Mutex
	status  Status
	state   string
	events  []LogEvent
	meters  map[string]*meter
	ends    kadm.ListedOffsets
	slow    slowStatus
	failing map[string]bool // deliveries that were reported as failing
	onEvent func(LogEvent)
}

// slowStatus is what is measured at leisure.
type slowStatus struct {
	lake      LakeStatus
	warehouse WarehouseStatus
	features  FeatureStatus
	learning  []ModelLearning
}

// keptEvents bounds the events that Status shows.
const keptEvents = 50

func (c *collector) event(part, text string, bad bool) {
	ev := LogEvent{Time: time.Now(), Part: part, Text: text, Bad: bad}
	c.mu.Lock()
	c.events = append(c.events, ev)
	if n := len(c.events) - keptEvents; n > 0 {
		c.events = slices.Clone(c.events[n:])
	}
	c.mu.Unlock()
	if c.onEvent != nil {
		c.onEvent(ev)
	}
}

func (c *collector) setState(state string) {
	c.mu.Lock()
	c.state = state
	c.status.State = state
	c.mu.Unlock()
}

// latest is the newest Status, with the events up to now.
func (c *collector) latest() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.State = c.state
	s.Events = slices.Clone(c.events)
	return s
}

// run collects until ctx ends and calls update after each round.
func (c *collector) run(ctx context.Context, update func(Status)) {
	for _, measure := range []func(context.Context) (func(*slowStatus), error){
		measuring(c.measureLake, func(s *slowStatus, v LakeStatus) { s.lake = v }),
		measuring(c.measureWarehouse, func(s *slowStatus, v WarehouseStatus) { s.warehouse = v }),
		measuring(c.measureFeatures, func(s *slowStatus, v FeatureStatus) { s.features = v }),
		measuring(c.measureLearning, func(s *slowStatus, v []ModelLearning) { s.learning = v }),
	} {
		go c.watch(ctx, measure)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		c.collect(ctx)
		update(c.latest())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sinkRole and its like are the roles of topics.
const (
	rawRole    = "raw"
	sinkRole   = "sink"
	brokerRole = "broker"
)

func (c *collector) roles() map[string]string {
	roles := map[string]string{}
	g := c.parts.platform.graph
	for _, b := range g.Brokers {
		roles[b.Topic] = brokerRole
	}
	for _, s := range g.KafkaSinks {
		roles[s.Topic] = sinkRole
	}
	for _, s := range g.KafkaSources {
		for _, t := range s.Topics {
			roles[t] = rawRole
		}
	}
	return roles
}

func (c *collector) collect(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, 900*time.Millisecond)
	defer cancel()
	var problems []string
	ends, err := kadm.NewClient(c.kafka).ListEndOffsets(ask, slices.Sorted(maps.Keys(c.parts.platform.topics))...)
	if err != nil {
		problems = append(problems, "Kafka does not answer: "+err.Error())
	}
	stats := c.engine()
	processes, rss := c.processes()

	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if err == nil {
		c.ends = ends
	}
	s := Status{
		Version: telemetry.BuildVersion(), State: c.state, Time: now, Started: c.started, StateIn: c.parts.state.path,
		URLs: c.urls(), Lake: c.slow.lake, Warehouse: c.slow.warehouse, Features: c.slow.features,
		Processes: processes, Stores: c.stores(), Problems: problems, LeftOut: c.parts.leftOut,
	}
	s.Learning.State = "off"
	if c.learning != nil {
		s.Learning = c.learning()
	}
	s.Learning.Models = c.slow.learning
	for topic, role := range c.roles() {
		t := TopicStatus{Name: topic, Role: role}
		for _, o := range c.ends[topic] {
			t.Total += max(o.Offset, 0)
		}
		if err == nil {
			t.PerSecond = c.meter("topic "+topic).add(now, float64(t.Total))
		}
		s.Topics = append(s.Topics, t)
		sum := func(r *Rate) { r.Total += t.Total; r.PerSecond += t.PerSecond }
		switch {
		case role == rawRole:
			sum(&s.Raw)
		case role == sinkRole && strings.HasSuffix(topic, ".validated"):
			sum(&s.Validated)
		case role == sinkRole && strings.HasSuffix(topic, ".invalid"):
			sum(&s.Invalid)
		}
	}
	slices.SortFunc(s.Topics, func(a, b TopicStatus) int {
		return cmp.Or(cmp.Compare(roleOrder(a.Role), roleOrder(b.Role)), cmp.Compare(b.Total, a.Total), cmp.Compare(a.Name, b.Name))
	})
	if verdicts := s.Validated.PerSecond + s.Invalid.PerSecond; verdicts > 0 {
		s.InvalidShare = s.Invalid.PerSecond / verdicts
	}
	for _, f := range slices.Concat(stats.Sources, stats.Triggers) {
		d := Delivery{FlowStats: f}
		d.PerSecond = c.meter(f.Kind+" "+f.Name).add(now, float64(f.Delivered))
		if f.Kind == "Trigger" && c.parts.platform.predicts(f.Namespace, f.Name) {
			s.Predictions.Total += int64(f.Replies)
		}
		s.Deliveries = append(s.Deliveries, d)
		s.DeadLetters += f.DeadLettered
	}
	s.Predictions.PerSecond = c.meter("predictions").add(now, float64(s.Predictions.Total))
	s.RSSBytes = rss
	c.status = s
	c.reportFailing(s.Deliveries)
}

// reportFailing turns the beginning and the end of a delivery's trouble into
// events. A single failed attempt is not worth one.
func (c *collector) reportFailing(all []Delivery) {
	const patience = 3 * time.Second
	for _, d := range all {
		name := d.Kind + " " + d.Name
		failing := !d.FailingSince.IsZero() && time.Since(d.FailingSince) > patience
		if failing == c.failing[name] {
			continue
		}
		c.failing[name] = failing
		if failing {
			go c.event(name, "cannot deliver: "+d.LastError, true)
		} else if d.FailingSince.IsZero() {
			go c.event(name, "delivers again", false)
		}
	}
}

func roleOrder(role string) int { return slices.Index([]string{rawRole, sinkRole, brokerRole}, role) }

func (c *collector) meter(name string) *meter {
	m := c.meters[name]
	if m == nil {
		m = &meter{}
		c.meters[name] = m
	}
	return m
}

// processes are all there are, and the memory of all.
func (c *collector) processes() ([]ProcessStatus, int64) {
	all := []ProcessStatus{{Name: "runner", State: supervise.Ready, PID: c.self, Since: c.started, Address: local(c.parts.ports["ingress"])}}
	for _, st := range c.sup.Status() {
		p := ProcessStatus{Name: st.Name, State: st.State, PID: st.PID, Restarts: st.Restarts, Since: st.Since, Err: st.Err}
		if port, ok := c.parts.ports[st.Name]; ok {
			p.Address = local(port)
		}
		all = append(all, p)
	}
	total, shared := int64(0), map[string]int64{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range all {
		p := &all[i]
		if p.PID == 0 {
			continue
		}
		u, err := supervise.UsageOf(p.PID)
		if err != nil {
			continue // it died between the two looks
		}
		p.RSSBytes = u.Own + u.Shared
		p.CPUPercent = math.Max(0, 100*c.meter("cpu "+p.Name).add(time.Now(), u.CPU.Seconds()))
		total += u.Own
		shared[u.Program] = max(shared[u.Program], u.Shared)
	}
	for _, bytes := range shared {
		total += bytes
	}
	return all, total
}

func (c *collector) urls() []URL {
	ingress := "http://" + local(c.parts.ports["ingress"])
	urls := []URL{{"status", ingress + "/status"}}
	// The first is what the screen names.
	if slices.ContainsFunc(c.parts.platform.services, func(s service) bool { return s.name == "console" }) {
		urls = append([]URL{{"console", "http://" + local(c.parts.ports["console"]) + "/console/"}}, urls...)
	}
	for _, b := range c.parts.platform.graph.Brokers {
		urls = append(urls, URL{"broker", ingress + "/" + b.Namespace + "/" + b.Name})
	}
	urls = append(urls, URL{"kafka", strings.Join(c.parts.kafka.Brokers, ",")}, URL{"s3", c.parts.s3.Endpoint})
	if c.parts.redis.url != "" {
		urls = append(urls, URL{"redis", c.parts.redis.address()})
	}
	if c.parts.database.url != "" {
		urls = append(urls, URL{"postgres", c.parts.database.address()})
	}
	if c.parts.learns() {
		urls = append(urls, URL{mlflow, redactedURL(c.parts.registryURL())})
	}
	for _, api := range []struct{ function, name string }{{"featurize", "features"}, {"predict", "predictions"}, {learner, "learning"}} {
		if slices.ContainsFunc(c.parts.platform.services, func(s service) bool { return s.name == api.function }) {
			urls = append(urls, URL{api.name, "http://" + local(c.parts.ports[api.function])})
		}
	}
	return urls
}

// measuring makes of a measurement one that says how to note its result.
func measuring[T any](measure func(context.Context) (T, error), note func(*slowStatus, T)) func(context.Context) (func(*slowStatus), error) {
	return func(ctx context.Context) (func(*slowStatus), error) {
		found, err := measure(ctx)
		return func(s *slowStatus) { note(s, found) }, err
	}
}

// watch measures until ctx ends. What it measures takes the longer the larger a store
// is, so it is done at leisure: at most a twentieth of the time. What fails keeps the
// value before; that a store is away is seen elsewhere.
func (c *collector) watch(ctx context.Context, measure func(context.Context) (func(*slowStatus), error)) {
	for {
		began := time.Now()
		ask, cancel := context.WithTimeout(ctx, time.Minute)
		note, err := measure(ask)
		cancel()
		if err == nil {
			c.mu.Lock()
			note(&c.slow)
			c.mu.Unlock()
		}
		pause := max(3*time.Second, 20*time.Since(began))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

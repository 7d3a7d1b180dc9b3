package conformance

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/millrace-dev/millrace/shared/events"
)

// Script is how a subscriber behaves. The first rule that fits an event decides;
// without one the event is accepted with 202.
type Script struct {
	Rules []Rule `json:"rules,omitempty"`
	// NoBatches makes the subscriber answer batches with 415.
	NoBatches bool `json:"noBatches,omitempty"`
}

// Rule is the answer to some events.
type Rule struct {
	// ID and Type restrict the rule to events that have them; empty is any.
	ID   string `json:"id,omitempty"`
	Type string `json:"type,omitempty"`
	// Attempts is how many deliveries of an event the rule holds for; 0 is all.
	Attempts int `json:"attempts,omitempty"`
	// Status is the answer's; 0 is 202, or 200 with a reply.
	Status     int    `json:"status,omitempty"`
	RetryAfter string `json:"retryAfter,omitempty"`
	Body       string `json:"body,omitempty"`
	// Reply is a reply of this type; its id is the event's with "-reply" after it.
	Reply string `json:"reply,omitempty"`
	// ReplyExtensions are set on the reply.
	ReplyExtensions map[string]string `json:"replyExtensions,omitempty"`
}

// Delivery is an event as a subscriber got it.
type Delivery struct {
	Attributes map[string]string `json:"attributes"`
	Data       string            `json:"data"`
	// Status is what the subscriber answered.
	Status int `json:"status"`
}

// Subscriber is an HTTP handler that behaves like its script and remembers what it
// got. GET answers with all deliveries as JSON, so that it can be asked from outside
// when it runs in a cluster.
type Subscriber struct {
	script Script

	mu         sync.Mutex
	deliveries []Delivery
	attempts   map[string]int
	batches    int
	changed    chan struct{}
}

// NewSubscriber makes a subscriber.
func NewSubscriber(s Script) *Subscriber {
	return &Subscriber{script: s, attempts: map[string]int{}, changed: make(chan struct{})}
}

// Deliveries are all deliveries up to now, refused ones too, in the order of their
// arrival, and a channel that is closed at the next one.
func (s *Subscriber) Deliveries() ([]Delivery, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Delivery(nil), s.deliveries...), s.changed
}

// Batches is how many requests had more than one event.
func (s *Subscriber) Batches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.batches
}

// ServeHTTP implements http.Handler.
func (s *Subscriber) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		all, _ := s.Deliveries()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(all) // the client is gone if it fails
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ms, batch, err := decode(r, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if batch && s.script.NoBatches {
		http.Error(w, "one at a time, please", http.StatusUnsupportedMediaType)
		return
	}
	s.answer(w, ms, batch)
}

func decode(r *http.Request, body []byte) ([]events.Message, bool, error) {
	switch contentType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); contentType {
	case "application/cloudevents-batch+json":
		ms, err := events.ParseBatch(body)
		if err != nil {
			return nil, true, fmt.Errorf("parsing the batch: %w", err)
		}
		return ms, true, nil
	case "application/cloudevents+json":
		m, err := events.ParseJSON(body)
		if err != nil {
			return nil, false, fmt.Errorf("parsing the event: %w", err)
		}
		return []events.Message{m}, false, nil
	}
	m, err := events.FromHTTP(r.Header, body)
	if err != nil {
		return nil, false, fmt.Errorf("reading the event: %w", err)
	}
	return []events.Message{m}, false, nil
}

// answer decides for each event. A batch of which any event is refused is refused
// with that event's answer; it is not counted as a delivery of the others.
func (s *Subscriber) answer(w http.ResponseWriter, ms []events.Message, batch bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if batch {
		s.batches++
	}
	rules := make([]Rule, len(ms))
	refusal := -1
	for i := range ms {
		rules[i] = s.rule(&ms[i])
		if rules[i].Status >= 300 && refusal < 0 {
			refusal = i
		}
	}
	if refusal >= 0 && len(ms) > 1 {
		refuse(w, rules[refusal])
		return
	}
	for i := range ms {
		s.attempts[ms[i].Get("id")]++
		s.deliveries = append(s.deliveries, delivery(&ms[i], rules[i]))
	}
	close(s.changed)
	s.changed = make(chan struct{})
	if refusal >= 0 {
		refuse(w, rules[refusal])
		return
	}
	var replies []events.Message
	for i := range ms {
		if rules[i].Reply != "" {
			replies = append(replies, reply(&ms[i], rules[i]))
		}
	}
	respond(w, rules[0], replies, batch)
}

func (s *Subscriber) rule(m *events.Message) Rule {
	for _, r := range s.script.Rules {
		if r.ID != "" && r.ID != m.Get("id") || r.Type != "" && r.Type != m.Get("type") {
			continue
		}
		if r.Attempts > 0 && s.attempts[m.Get("id")] >= r.Attempts {
			continue
		}
		return r
	}
	return Rule{}
}

func delivery(m *events.Message, r Rule) Delivery {
	d := Delivery{Attributes: make(map[string]string, len(m.Attrs)), Data: string(m.Data), Status: r.Status}
	for _, a := range m.Attrs {
		d.Attributes[a.Name] = strings.Clone(a.Value)
	}
	if d.Status == 0 {
		d.Status = http.StatusAccepted
	}
	return d
}

func reply(m *events.Message, r Rule) events.Message {
	out := events.Message{Data: m.Data}
	out.Set("specversion", "1.0")
	out.Set("id", m.Get("id")+"-reply")
	out.Set("source", "/conformance")
	out.Set("type", r.Reply)
	out.Set("datacontenttype", m.Get("datacontenttype"))
	out.Set(events.PartitionKey, m.Get(events.PartitionKey))
	for name, value := range r.ReplyExtensions {
		out.Set(name, value)
	}
	return out
}

func refuse(w http.ResponseWriter, r Rule) {
	if r.RetryAfter != "" {
		w.Header().Set("Retry-After", r.RetryAfter)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(r.Status)
	_, _ = io.WriteString(w, r.Body)
}

func respond(w http.ResponseWriter, r Rule, replies []events.Message, batch bool) {
	switch {
	case len(replies) == 0 && r.Body != "":
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, r.Body)
	case len(replies) == 0:
		w.WriteHeader(http.StatusAccepted)
	case batch:
		w.Header().Set("Content-Type", "application/cloudevents-batch+json")
		_, _ = w.Write(events.AppendBatch(nil, replies))
	default:
		events.SetHTTP(w.Header(), &replies[0])
		w.Header().Set("Content-Length", strconv.Itoa(len(replies[0].Data)))
		_, _ = w.Write(replies[0].Data)
	}
}

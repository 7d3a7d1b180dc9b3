// Package sink sends events to the address that a SinkBinding puts into K_SINK, for
// the few functions whose events are no replies to one that came.
package sink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/millrace-dev/millrace/shared/events"
)

// timeout bounds one request.
const timeout = 10 * time.Second

// AnswerError is an answer other than success.
type AnswerError struct {
	Status int
	text   string
}

func (e *AnswerError) Error() string { return "the Broker answered " + e.text }

// Final tells that the same event will not be taken later either, by the rule of
// Knative's senders: 4xx but 404, 408, 409 and 429.
func (e *AnswerError) Final() bool {
	switch e.Status {
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	}
	return e.Status/100 == 4
}

// Sink is where events are sent. It is safe for concurrent use.
type Sink struct {
	url    string
	client *http.Client
	// single is set when the sink has refused a batch: Knative's own Brokers take
	// one event a request.
	single atomic.Bool
}

// New checks the address, which is K_SINK's. It sends nothing.
func New(address string) (*Sink, error) {
	if u, err := url.Parse(address); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("K_SINK=%q: want an http or https URL", address)
	}
	return &Sink{
		url:    address,
		client: &http.Client{Timeout: timeout, Transport: &http.Transport{MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Minute}},
	}, nil
}

// Send returns nil when the sink has taken all events. After an error it may have
// taken some of them. It is an *AnswerError if the sink has answered. Events without a
// trace context get that of the span in ctx, which they come from: no other function
// begins a trace with them.
func (s *Sink) Send(ctx context.Context, ms []events.Message) error {
	trace(ctx, ms)
	if len(ms) > 1 && !s.single.Load() {
		h := http.Header{"Content-Type": {events.ContentTypeBatch}}
		status, err := s.post(ctx, h, events.AppendBatch(nil, ms))
		if err == nil {
			return nil
		}
		if status != http.StatusBadRequest && status != http.StatusUnsupportedMediaType {
			return err
		}
		s.single.Store(true)
	}
	for i := range ms {
		h := http.Header{}
		events.SetHTTP(h, &ms[i])
		if _, err := s.post(ctx, h, ms[i].Data); err != nil {
			return err
		}
	}
	return nil
}

func trace(ctx context.Context, ms []events.Message) {
	attributes := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, attributes)
	for i := range ms {
		if ms[i].Get("traceparent") != "" {
			continue
		}
		for name, value := range attributes {
			ms[i].Set(name, value)
		}
	}
}

func (s *Sink) post(ctx context.Context, h http.Header, body []byte) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("addressing the Broker: %w", err)
	}
	req.Header = h
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("sending to the Broker: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode/100 != 2 {
		return resp.StatusCode, &AnswerError{resp.StatusCode, fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(text))}
	}
	return resp.StatusCode, nil
}

package eventing

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// topicOutlet writes events to a topic: a Broker or a KafkaSink.
type topicOutlet struct {
	engine     *Engine
	to         Destination
	topic      string
	structured bool
	written    atomic.Uint64
	failure    failure
}

func (t *topicOutlet) address() string { return "kafka:///" + t.topic }

// send returns when all replicas have the events. Events of one partition key keep
// their order.
func (t *topicOutlet) send(ctx context.Context, ms []events.Message) outcome {
	client := t.engine.producer.Load()
	if client == nil {
		return outcome{err: errors.New("not connected to Kafka yet"), patient: true}
	}
	w := &acks{left: len(ms), done: make(chan struct{})}
	for i := range ms {
		var r *kgo.Record
		if t.structured {
			r = kafka.ToStructuredRecord(t.topic, &ms[i])
		} else {
			r = kafka.ToRecord(t.topic, &ms[i])
		}
		// Not ctx: a record that may have been sent cannot be taken back, and giving up
		// on one would fail its neighbours.
		client.Produce(t.engine.produceContext, r, w.ack) //nolint:contextcheck // see above
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		return outcome{err: fmt.Errorf("writing to topic %s: %w", t.topic, ctx.Err()), patient: true}
	}
	if w.err == nil {
		t.written.Add(uint64(len(ms)))
		t.failure.clear()
		return outcome{}
	}
	o := outcome{err: fmt.Errorf("writing to topic %s: %w", t.topic, w.err), patient: true}
	if errors.Is(w.err, kerr.MessageTooLarge) || errors.Is(w.err, kerr.InvalidRecord) {
		o.patient, o.status, o.detail = false, http.StatusRequestEntityTooLarge, []byte(w.err.Error())
	}
	t.failure.set(o.err.Error())
	return o
}

// acks waits for the acknowledgements of records.
type acks struct {
	mu   sync.Mutex
	left int
	err  error
	done chan struct{}
}

func (a *acks) ack(_ *kgo.Record, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// An error that will stay counts more than one that may pass.
	if err != nil && (a.err == nil || errors.Is(err, kerr.MessageTooLarge)) {
		a.err = err
	}
	if a.left--; a.left == 0 {
		close(a.done)
	}
}

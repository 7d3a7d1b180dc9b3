package eventing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/millrace-dev/millrace/shared/events"
)

// ingress is where events come in over HTTP for one Broker, KafkaSink or JobSink.
type ingress struct {
	kind     string
	object   Object
	outlet   outlet
	accepted atomic.Uint64
	rejected atomic.Uint64
	refused  atomic.Uint64
}

// Handler accepts events: POST /<namespace>/<broker>, and POST /kafkasinks/,
// /jobsinks/ and /routers/<namespace>/<name>. A request is one event in binary or structured mode
// or a batch of them. The answers are
//
//	202  all events are in Kafka, on all replicas (their jobs are started)
//	400  something is wrong with the request; the body says what
//	404  there is no such Broker or sink
//	405  it is not a POST
//	413  an event or the batch is too large
//	503  Kafka cannot be reached in time; the request can be repeated
//
// A batch is accepted or refused as a whole, but after a 503 parts of it may be
// stored, as may a single event: senders repeat it and consumers drop duplicates.
func (e *Engine) Handler() http.Handler { return http.HandlerFunc(e.serveIngress) }

func (e *Engine) serveIngress(w http.ResponseWriter, r *http.Request) {
	in := e.ingresses[strings.TrimSuffix(r.URL.Path, "/")]
	if in == nil {
		http.Error(w, fmt.Sprintf("there is no Broker or sink at %q; the path of a Broker is /<namespace>/<name>", r.URL.Path), http.StatusNotFound)
		return
	}
	if r.Method != http.MethodPost {
		in.rejected.Add(1)
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "events are sent by POST", http.StatusMethodNotAllowed)
		return
	}
	ms, err := e.readEvents(w, r)
	if err != nil {
		in.rejected.Add(1)
		status := http.StatusBadRequest
		if errors.Is(err, errTooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), status)
		return
	}
	var o outcome
	switch {
	case !e.ready.Load():
		o = outcome{err: errors.New("the engine is starting"), patient: true}
	case e.backlogged():
		o = outcome{err: errors.New("too much waits to be written to Kafka"), patient: true}
	default:
		ctx, cancel := context.WithTimeout(r.Context(), e.config.AckTimeout)
		o = in.outlet.send(ctx, ms)
		cancel()
	}
	switch {
	case o.err == nil:
		in.accepted.Add(uint64(len(ms)))
		w.WriteHeader(http.StatusAccepted)
	case !o.patient && o.status >= 400 && o.status < 500:
		in.rejected.Add(1)
		http.Error(w, o.err.Error(), o.status)
	default:
		in.refused.Add(1)
		w.Header().Set("Retry-After", "1")
		http.Error(w, o.err.Error(), http.StatusServiceUnavailable)
	}
}

var errTooLarge = errors.New("too large")

// readEvents reads the request's events; there is at least one, and all are valid.
func (e *Engine) readEvents(w http.ResponseWriter, r *http.Request) ([]events.Message, error) {
	contentType := r.Header.Get("Content-Type")
	media := mediaType(contentType)
	limit := e.config.MaxEventBytes
	switch media {
	case mediaBatch:
		limit = e.config.MaxBatchBytes
	case mediaSingle:
		// JSON with its data in base64 is larger than the data; the event's own bound is
		// checked once it is decoded.
		limit = 2*limit + 64<<10
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, fmt.Errorf("the body has more than %d bytes: %w", tooLarge.Limit, errTooLarge)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	var ms []events.Message
	switch {
	case media == mediaBatch:
		ms, err = events.ParseBatch(body)
		if err == nil && len(ms) == 0 {
			err = errors.New("the batch is empty")
		}
	case media == mediaSingle:
		var m events.Message
		m, err = events.ParseJSON(body)
		ms = []events.Message{m}
	case strings.HasPrefix(media, "application/cloudevents"):
		return nil, fmt.Errorf("the content type %q is not supported; events come in binary mode, as %s or as %s", contentType, mediaSingle, mediaBatch)
	case r.Header["Ce-Specversion"] == nil:
		return nil, fmt.Errorf("this is not a CloudEvent: the content type is %q and there is no ce-specversion header", contentType)
	default:
		var m events.Message
		m, err = events.FromHTTP(r.Header, body)
		ms = []events.Message{m}
	}
	if err != nil {
		return nil, fmt.Errorf("not a valid CloudEvent: %w", err)
	}
	for i := range ms {
		if int64(len(ms[i].Data)) > e.config.MaxEventBytes {
			return nil, fmt.Errorf("event %d has %d bytes of data, at most %d are taken: %w", i, len(ms[i].Data), e.config.MaxEventBytes, errTooLarge)
		}
	}
	return ms, nil
}

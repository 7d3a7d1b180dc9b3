package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/sink"
)

const (
	// path is where notifications are posted.
	path = "/s3"
	// maxBody bounds a notification. MinIO's have one record of about 1 KiB.
	maxBody = 4 << 20
)

// webhook takes notifications and sends events. It is safe for concurrent use.
type webhook struct {
	sink    *sink.Sink
	token   [sha256.Size]byte
	records metric.Int64Counter
}

func newWebhook(to *sink.Sink, token string) (*webhook, error) {
	records, err := otel.Meter("github.com/millrace-dev/millrace/functions/ingest").Int64Counter("ingest.records",
		metric.WithUnit("{record}"), metric.WithDescription("Records of notifications, by what became of them."))
	if err != nil {
		return nil, fmt.Errorf("making metric ingest.records: %w", err)
	}
	return &webhook{sink: to, token: sha256.Sum256([]byte(strings.TrimPrefix(token, "Bearer "))), records: records}, nil
}

func (w *webhook) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+path, w.serve)
	// MinIO asks for nothing but an answer before it sends, and without a token.
	mux.HandleFunc("HEAD "+path, func(http.ResponseWriter, *http.Request) {})
}

func (w *webhook) serve(rw http.ResponseWriter, r *http.Request) {
	if !w.allowed(r) {
		w.count(r.Context(), "unauthorized", 1)
		rw.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(rw, "the Authorization header does not hold the token", http.StatusUnauthorized)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(rw, fmt.Sprintf("more than %d bytes", maxBody), http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		http.Error(rw, "the body could not be read", http.StatusBadRequest)
		return
	}
	var n notification
	if err := json.Unmarshal(body, &n); err != nil {
		http.Error(rw, "not a notification: "+err.Error(), http.StatusBadRequest)
		return
	}
	messages := make([]events.Message, 0, len(n.Records))
	for _, raw := range n.Records {
		m, err := eventOf(raw)
		if err != nil {
			// No answer would make it better, and an error would make a sender with a
			// queue send it for ever, and nothing after it.
			slog.Error("a record of a notification is dropped", "error", err, "record", string(raw[:min(len(raw), 1024)]))
			w.count(r.Context(), "dropped", 1)
			continue
		}
		messages = append(messages, m)
	}
	if err := w.sink.Send(r.Context(), messages); err != nil {
		slog.Warn("the Broker has not taken a notification, the sender is asked to send it again", "error", err)
		w.count(r.Context(), "refused", len(messages))
		rw.Header().Set("Retry-After", "1")
		http.Error(rw, "the Broker has not taken it", http.StatusServiceUnavailable)
		return
	}
	w.count(r.Context(), "sent", len(messages))
}

// allowed compares hashes, so that neither the time nor the length tells anything
// of the token.
func (w *webhook) allowed(r *http.Request) bool {
	got := sha256.Sum256([]byte(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")))
	return subtle.ConstantTimeCompare(got[:], w.token[:]) == 1
}

func (w *webhook) count(ctx context.Context, outcome string, n int) {
	w.records.Add(ctx, int64(n), metric.WithAttributes(attribute.String("outcome", outcome)))
}

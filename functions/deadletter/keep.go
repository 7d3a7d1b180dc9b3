package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
)

const (
	// writers bounds the requests to the store of one batch, and of one page.
	writers = 16
	// maxObject bounds what is read back: an event of 1 MiB, as base64, with its
	// attributes.
	maxObject = 4 << 20
	// retryAfter is when the sender of a dead letter may try again.
	retryAfter = 10 * time.Second
)

// keeper keeps dead letters in a bucket. It is safe for concurrent use.
type keeper struct {
	store  *lake.Store
	bucket string
	sink   string
	client *http.Client

	mu      sync.Mutex
	ensured bool

	stored, replayed metric.Int64Counter
}

func newKeeper(store *lake.Store, bucket, sink string) (*keeper, error) {
	k := &keeper{store: store, bucket: bucket, sink: sink, client: &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: replayers, IdleConnTimeout: time.Minute},
	}}
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/deadletter")
	var err error
	k.stored, err = meter.Int64Counter("deadletter.stored", metric.WithUnit("{event}"),
		metric.WithDescription("Events that were kept, by the status that they failed with."))
	if err != nil {
		return nil, fmt.Errorf("making metric deadletter.stored: %w", err)
	}
	k.replayed, err = meter.Int64Counter("deadletter.replayed", metric.WithUnit("{event}"),
		metric.WithDescription("Events that were sent again, by outcome."))
	if err != nil {
		return nil, fmt.Errorf("making metric deadletter.replayed: %w", err)
	}
	return k, nil
}

// Handle keeps the events; each result is nil only when its event is durable.
func (k *keeper) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	if err := k.ensureBucket(ctx); err != nil {
		for i := range results {
			results[i].Err = function.Unavailable(err, retryAfter)
		}
		return results
	}
	forEach(len(batch), func(i int) {
		m := events.FromEvent(&batch[i])
		if err := k.keep(ctx, &m); err != nil {
			results[i].Err = function.Unavailable(err, retryAfter)
		}
	})
	return results
}

func (k *keeper) keep(ctx context.Context, m *events.Message) error {
	key := keyOf(m)
	p, err := path(key)
	if err != nil {
		return err
	}
	_, err = k.store.Put(ctx, k.bucket, eventsRoot+p, events.AppendJSON(nil, m), events.ContentTypeEvent, nil, lake.Condition{})
	if err != nil {
		if errors.Is(err, lake.ErrNotFound) { // the bucket was deleted
			k.mu.Lock()
			k.ensured = false
			k.mu.Unlock()
		}
		return fmt.Errorf("keeping a dead letter: %w", err)
	}
	code := m.Get(events.ErrorCode)
	k.stored.Add(ctx, 1, metric.WithAttributes(attribute.String("code", label(code))))
	slog.Info("kept a dead letter", "key", key, "id", m.Get("id"), "source", m.Get("source"),
		"type", m.Get("type"), "code", code, "destination", m.Get(events.ErrorDest))
	return nil
}

func (k *keeper) ensureBucket(ctx context.Context) error {
	k.mu.Lock()
	ensured := k.ensured
	k.mu.Unlock()
	if ensured {
		return nil
	}
	created, err := k.store.EnsureBucket(ctx, k.bucket)
	if err != nil {
		return err
	}
	if created {
		slog.Info("created bucket", "bucket", k.bucket)
	}
	k.mu.Lock()
	k.ensured = true
	k.mu.Unlock()
	return nil
}

// forEach calls f for 0..n-1, a few at a time, and returns when all have returned.
func forEach(n int, f func(i int)) { forEachOf(writers, n, f) }

func forEachOf(workers, n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(workers, n) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// letter is a dead letter as it is listed.
type letter struct {
	Key    string `json:"key"`
	ID     string `json:"id"`
	Source string `json:"source"`
	Type   string `json:"type"`
	Time   string `json:"time,omitempty"`
	// Code is the HTTP status that the event was refused with, if it was, and
	// Reason what was said about it.
	Code        string `json:"code,omitempty"`
	Reason      string `json:"reason,omitempty"`
	Destination string `json:"destination,omitempty"`
	// Stored is when the event was kept, for the last time if it came again.
	Stored   time.Time `json:"stored"`
	Replayed *replays  `json:"replayed,omitempty"`

	event events.Message
}

// replays says how often a dead letter was sent again. It is an object beside it.
type replays struct {
	Count int       `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// letter reads a dead letter; lake.ErrNotFound when there is none of this key.
func (k *keeper) letter(ctx context.Context, key string) (letter, error) {
	p, err := path(key)
	if err != nil {
		return letter{}, err
	}
	data, o, err := k.store.Read(ctx, k.bucket, eventsRoot+p, maxObject)
	if err != nil {
		return letter{}, err
	}
	m, err := events.ParseJSON(data)
	if err != nil {
		return letter{}, fmt.Errorf("reading %s/%s: %w", k.bucket, eventsRoot+p, err)
	}
	l := letter{
		Key: key, ID: m.Get("id"), Source: m.Get("source"), Type: m.Get("type"), Time: m.Get("time"),
		Code: m.Get(events.ErrorCode), Reason: reason(m.Get(events.ErrorData)), Destination: m.Get(events.ErrorDest),
		Stored: o.Modified.UTC(), event: m,
	}
	r, _, err := k.replays(ctx, p)
	if err != nil {
		return letter{}, err
	}
	if r.Count > 0 {
		l.Replayed = &r
	}
	return l, nil
}

func (k *keeper) replays(ctx context.Context, path string) (r replays, o lake.Object, err error) {
	data, o, err := k.store.Read(ctx, k.bucket, replaysRoot+path, maxObject)
	if errors.Is(err, lake.ErrNotFound) {
		return replays{}, lake.Object{}, nil
	}
	if err != nil {
		return replays{}, o, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return replays{}, o, fmt.Errorf("reading %s/%s: %w", k.bucket, replaysRoot+path, err)
	}
	return r, o, nil
}

// mark notes one more replay.
func (k *keeper) mark(ctx context.Context, path string, at time.Time) (replays, error) {
	for {
		r, o, err := k.replays(ctx, path)
		if err != nil {
			return r, err
		}
		cond := lake.Condition{Absent: r.Count == 0, ETag: o.ETag}
		if r.Count == 0 {
			r.First = at
		}
		r.Count++
		r.Last = at
		data, err := json.Marshal(r)
		if err != nil {
			return r, fmt.Errorf("encoding replays: %w", err)
		}
		_, err = k.store.Put(ctx, k.bucket, replaysRoot+path, data, "application/json", nil, cond)
		if errors.Is(err, lake.ErrChanged) && ctx.Err() == nil {
			continue // another replay at the same time: count it too
		}
		return r, err
	}
}

// label is the status as a metric may have it: anybody may send a dead letter, with any
// text as its status.
func label(code string) string {
	if n, err := strconv.Atoi(code); err == nil && n >= 100 && n <= 599 && len(code) == 3 {
		return code
	}
	return "other"
}

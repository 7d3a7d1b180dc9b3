package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/millrace-dev/millrace/shared/eventing"
)

// engine runs the event graph in this process and starts it again when it fails,
// as when Kafka stays away for long.
type engine struct {
	config  eventing.Config
	event   func(part, text string, bad bool)
	current atomic.Pointer[eventing.Engine]
	done    chan struct{} // closed when run has returned
}

func newEngine(w *parts, log *slog.Logger, j *jobs, event func(part, text string, bad bool)) *engine {
	return &engine{
		config: eventing.Config{
			Graph: w.platform.graph, Kafka: w.kafka, Service: w.serviceURL, Job: j.accept, Logger: log,
			// One broker: a group whose member was killed is to go on soon.
			SessionTimeout: 6 * time.Second,
			// Dozens of partitions are read at a time in one small process, and a
			// request holds a few hundred kilobytes.
			BufferBytes: 512 << 10,
		},
		event: event,
		done:  make(chan struct{}),
	}
}

// run executes the graph until ctx ends and everything in flight is settled.
func (e *engine) run(ctx context.Context) {
	defer close(e.done)
	const shortest, longest = 200 * time.Millisecond, 10 * time.Second
	pause := shortest
	for ctx.Err() == nil {
		began := time.Now()
		err := e.runOnce(ctx)
		if ctx.Err() != nil {
			if err != nil {
				e.event("engine", "did not stop cleanly: "+err.Error(), true)
			}
			return
		}
		if err == nil {
			err = errors.New("it ended")
		}
		if time.Since(began) > time.Minute {
			pause = shortest
		}
		e.event("engine", "failed and is started again: "+err.Error(), true)
		select {
		case <-time.After(pause):
			pause = min(2*pause, longest)
		case <-ctx.Done():
		}
	}
}

func (e *engine) runOnce(ctx context.Context) error {
	eng, err := eventing.New(e.config)
	if err != nil {
		return err
	}
	e.current.Store(eng)
	return eng.Run(ctx)
}

func (e *engine) stats() eventing.Stats {
	if eng := e.current.Load(); eng != nil {
		return eng.Stats()
	}
	return eventing.Stats{}
}

// ServeHTTP is the ingress of the brokers and sinks.
func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	eng := e.current.Load()
	if eng == nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the event graph is not running yet", http.StatusServiceUnavailable)
		return
	}
	eng.Handler().ServeHTTP(w, r)
}

// check says what makes it impossible to execute the graph at all.
func (e *engine) check() error {
	if _, err := eventing.New(e.config); err != nil {
		return fmt.Errorf("the event graph cannot be executed here: %w", err)
	}
	return nil
}

// waitReady waits until the graph has its topics and groups.
func (e *engine) waitReady(ctx context.Context) error {
	for !e.stats().Ready {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-e.done:
			return errors.New("the event graph ended")
		case <-ctx.Done():
			return errors.New("the event graph did not get ready at Kafka; the end of millrace.log in the log folder says why")
		}
	}
	return nil
}

// serveIngress serves brokers, GET /status, GET /healthz, the event graph's metrics
// under GET /metrics and, for Prometheus to find the functions, GET /targets, until the
// returned function is called.
func serveIngress(l net.Listener, e *engine, c *collector, metrics http.Handler) (stop func(context.Context)) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /targets", c.serveTargets)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(c.latest())
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.Handle("/", e)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
	}
	go func() { _ = srv.Serve(l) }()
	return func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close()
		}
	}
}

// Subscriber is the conformance table's subscribers in a cluster: one server that is
// any number of them, each below a path of its own.
//
//	PUT  /{case}/{name}   makes or replaces a subscriber, the body is its script
//	POST /{case}/{name}   an event for it
//	GET  /{case}/{name}   what it has got
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/millrace-dev/millrace/shared/eventing/conformance"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "subscriber:", err)
		os.Exit(1)
	}
}

func run() error {
	s := &http.Server{Addr: ":8080", Handler: handler(), ReadHeaderTimeout: 10 * time.Second}
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

func handler() http.Handler {
	var subscribers sync.Map // path -> *conformance.Subscriber
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("PUT /{case}/{name}", func(w http.ResponseWriter, r *http.Request) {
		var script conformance.Script
		if err := json.NewDecoder(r.Body).Decode(&script); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		subscribers.Store(r.URL.Path, conformance.NewSubscriber(script))
	})
	mux.HandleFunc("/{case}/{name}", func(w http.ResponseWriter, r *http.Request) {
		s, ok := subscribers.Load(r.URL.Path)
		if !ok {
			// Not 404, which would be retried.
			http.Error(w, "there is no such subscriber", http.StatusGone)
			return
		}
		s.(*conformance.Subscriber).ServeHTTP(w, r)
	})
	return mux
}

package eventing

import (
	"context"
	"net/http"
)

// Engine executes a graph.
type Engine struct{ config Config }

// New checks the configuration and makes an engine; nothing runs before Run.
func New(c Config) (*Engine, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Engine{config: c}, nil
}

// Run executes the graph until ctx is done, then drains and commits.
func (e *Engine) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Handler is the ingress.
func (e *Engine) Handler() http.Handler { return http.NotFoundHandler() }

// Stats is a snapshot.
func (e *Engine) Stats() Stats { return Stats{} }

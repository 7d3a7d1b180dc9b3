package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
)

const (
	deadletterSource = "deadletter"
	trainerSource    = "train-trigger"
	driftSource      = "drift"
)

// actions are what buttons ask for, by path.
func (c *console) actions() map[string]view {
	return map[string]view{
		"deadletters/{key}/replay": c.replay,
		"models/rollback":          c.train("/rollback"),
		"models/train":             c.train("/train"),
	}
}

// deadletters is a page of what could not be delivered.
func (c *console) deadletters(ctx context.Context, r *http.Request) (any, error) {
	if c.deadletter == "" {
		return nil, unset(deadletterSource, "DEADLETTER_URL")
	}
	q := url.Values{"limit": {"50"}}
	for _, name := range []string{"after", "type", "code", "since"} {
		if v := r.URL.Query().Get(name); v != "" {
			q.Set(name, v)
		}
	}
	var page json.RawMessage
	err := c.get(ctx, deadletterSource, c.deadletter+"/deadletters?"+q.Encode(), &page)
	return page, err
}

// replay sends a dead letter again.
func (c *console) replay(ctx context.Context, r *http.Request) (any, error) {
	if c.deadletter == "" {
		return nil, unset(deadletterSource, "DEADLETTER_URL")
	}
	return c.post(ctx, deadletterSource, c.deadletter+"/deadletters/"+url.PathEscape(r.PathValue("key"))+"/replay", nil, "")
}

// train passes a wish on to train-trigger, which decides, and keeps what it decided.
func (c *console) train(at string) view {
	return func(ctx context.Context, r *http.Request) (any, error) {
		if c.trainer == "" {
			return nil, unset(trainerSource, "TRAIN_TRIGGER_URL")
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, &failure{http.StatusBadRequest, "console", fmt.Errorf("reading the request: %w", err)}
		}
		return c.post(ctx, trainerSource, c.trainer+at, body, c.trainerToken)
	}
}

func (c *console) post(ctx context.Context, source, address string, body []byte, token string) (any, error) {
	header := http.Header{"Content-Type": {"application/json"}}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	text, _, err := c.call(ctx, source, http.MethodPost, address, bytes.NewReader(body), header)
	if err != nil {
		return nil, err
	}
	if !json.Valid(text) {
		return map[string]string{"answer": strings.TrimSpace(string(text))}, nil
	}
	return json.RawMessage(text), nil
}

// serveReport passes a drift report on. It is a page of its own, and may load nothing
// but what it brings with it.
func (c *console) serveReport(w http.ResponseWriter, r *http.Request) {
	if c.drift == "" {
		fail(w, unset(driftSource, "DRIFT_URL"))
		return
	}
	name := path.Clean("/" + r.PathValue("name"))
	address := (&url.URL{Path: "/reports" + name}).EscapedPath()
	body, kind, err := c.call(r.Context(), driftSource, http.MethodGet, c.drift+address, nil, nil)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox")
	_, _ = w.Write(body)
}

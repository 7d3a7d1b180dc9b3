package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/online"
)

// Bounds of a request.
const (
	maxBody  = 16 << 20
	maxItems = 10_000
)

// item is one element of POST /predict's body. Either the entity's features are
// looked up, or they are given.
type item struct {
	UserID      *int64                 `json:"user_id"`
	ProductID   *int64                 `json:"product_id"`
	UserSession string                 `json:"user_session"`
	Features    map[string]model.Value `json:"features"`
}

// Statuses of items.
const (
	statusOK       = "OK"
	statusNotFound = "NOT_FOUND"
	statusStale    = "STALE"
)

// itemStatus says what a prediction rests on.
type itemStatus struct {
	Status string `json:"status"`
}

// answer is what POST /predict answers with.
type answer struct {
	// Predictions has a number an item, or a list of one a class.
	Predictions []any  `json:"predictions"`
	Success     bool   `json:"success"`
	Error       string `json:"error,omitempty"`
	// The rest is not in the shape that this endpoint took over.
	ModelName    string       `json:"model_name,omitempty"`
	ModelVersion string       `json:"model_version,omitempty"`
	Items        []itemStatus `json:"items,omitempty"`
}

// detail is a problem of a body, in the shape that FastAPI gives it.
type detail struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
}

func bad(at int, msg string) (int, any) {
	loc := []any{"body"}
	if at >= 0 {
		loc = append(loc, at)
	}
	return http.StatusUnprocessableEntity, map[string]any{"detail": []detail{{loc, msg, "value_error"}}}
}

// postPredict answers POST /predict.
func (p *predictor) postPredict(r *http.Request) (int, any) {
	body, status, err := readBody(r)
	if err != nil {
		if status == http.StatusRequestEntityTooLarge {
			return status, map[string]any{"detail": err.Error()}
		}
		return bad(-1, err.Error())
	}
	items, at, err := parseItems(body)
	if err != nil {
		return bad(at, err.Error())
	}
	v := p.next()
	if v == nil {
		return http.StatusServiceUnavailable, answer{Predictions: []any{}, Error: p.noModel().Error()}
	}
	in := &mixed{named: make(named, len(items)), entities: make(entities, len(items))}
	statuses := make([]itemStatus, len(items))
	var keys []online.Key
	for i := range items {
		statuses[i].Status = statusOK
		if in.named[i] = items[i].Features; in.named[i] == nil {
			keys = append(keys, online.UserProduct(*items[i].UserID, *items[i].ProductID))
		}
	}
	if len(keys) > 0 {
		if v.shop == nil {
			return bad(-1, fmt.Sprintf("feature %q of model %s is not in the online store: give features", v.foreign, v.name))
		}
		if at, err := p.fill(r.Context(), items, keys, in, statuses); err != nil {
			return http.StatusInternalServerError, map[string]any{"detail": fmt.Sprintf(
				"Failed to get features for user_id=%d, product_id=%d: %v", *items[at].UserID, *items[at].ProductID, err)}
		}
	}
	out, err := p.serve(r.Context(), v, in)
	if wrong, ok := errors.AsType[*itemError](err); ok {
		return bad(wrong.item, wrong.err.Error())
	}
	if err != nil {
		return http.StatusOK, answer{Predictions: []any{}, Error: err.Error()}
	}
	a := answer{Predictions: make([]any, len(items)), Success: true, ModelName: v.name, ModelVersion: v.version, Items: statuses}
	for i := range items {
		a.Predictions[i] = one(out, v.outputs(), i)
	}
	return http.StatusOK, a
}

var errNoStore = errors.New("no online store is configured (REDIS_URL); give features")

// fill looks the features of all items without their own up, in one round trip. Of an
// error it tells the first such item.
func (p *predictor) fill(ctx context.Context, items []item, keys []online.Key, in *mixed, statuses []itemStatus) (int, error) {
	rows, err := []online.Row(nil), errNoStore
	if p.store != nil {
		rows, err = p.store.Get(ctx, keys)
	}
	next, seen := 0, map[string]int{}
	for i := range items {
		if in.named[i] != nil {
			continue
		}
		if err != nil {
			return i, err
		}
		row := &rows[next]
		next++
		switch {
		case !row.Found:
			// Nothing is known: the model gets all features missing.
			row.Features = features.Vector{}
			statuses[i].Status = statusNotFound
		case row.Stale:
			statuses[i].Status = statusStale
		}
		in.entities[i] = row.Features
		seen[statuses[i].Status]++
	}
	for status, n := range seen {
		p.counts.looked(ctx, status, n)
	}
	return 0, nil
}

// parseItems reads the body. Of an error it tells the item, or -1.
func parseItems(body []byte) ([]item, int, error) {
	var items []item
	if err := json.Unmarshal(body, &items); err != nil {
		var raw []json.RawMessage
		if json.Unmarshal(body, &raw) != nil {
			return nil, -1, fmt.Errorf("want an array of items: %w", err)
		}
		for i := range raw {
			var one item
			if err := json.Unmarshal(raw[i], &one); err != nil {
				return nil, i, err
			}
		}
		return nil, -1, err
	}
	if len(items) > maxItems {
		return nil, -1, fmt.Errorf("%d items, at most %d are taken", len(items), maxItems)
	}
	if items == nil {
		return nil, -1, errors.New("want an array of items")
	}
	for i := range items {
		switch it := &items[i]; {
		case it.Features != nil:
		case it.UserID == nil:
			return nil, i, errors.New("user_id: required, unless features are given")
		case it.ProductID == nil:
			return nil, i, errors.New("product_id: required, unless features are given")
		}
	}
	return items, -1, nil
}

// readBody reads a request's body within the bound, or says with which status to
// refuse it.
func readBody(r *http.Request) ([]byte, int, error) {
	if r.ContentLength > maxBody {
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body has %d bytes, at most %d are taken", r.ContentLength, maxBody)
	}
	if n := r.ContentLength; n > 0 && n <= 64<<10 {
		body := make([]byte, n)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, http.StatusBadRequest, fmt.Errorf("reading the body: %w", err)
		}
		return body, 0, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("reading the body: %w", err)
	}
	if len(body) > maxBody {
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than the %d bytes that are taken", maxBody)
	}
	return body, 0, nil
}

// endpoint is one route's work: the status and what to write as JSON.
type endpoint func(*http.Request) (int, any)

// adder adds routes to mux that count their requests.
func (p *predictor) adder(mux *http.ServeMux) func(pattern, protocol string, e endpoint) {
	return func(pattern, protocol string, e endpoint) {
		requests := p.counts.route(pattern, protocol)
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			status, body := e(r)
			write(w, status, body)
			requests.done(r.Context(), status, start)
		})
	}
}

// openRoutes adds the routes that ask nobody for a token.
func (p *predictor) openRoutes(mux *http.ServeMux) {
	add := p.adder(mux)
	mux.HandleFunc("GET /openapi.json", static("application/json", openAPI))
	mux.HandleFunc("GET /docs", static("text/html; charset=utf-8", docs))
	add("GET /v2/health/live", "v2", func(*http.Request) (int, any) { return http.StatusOK, map[string]bool{"live": true} })
	add("GET /v2/health/ready", "v2", p.v2Ready)
}

// routes adds the function's other routes.
func (p *predictor) routes(mux *http.ServeMux) {
	add := p.adder(mux)
	logged := func(e endpoint) endpoint {
		if p.payloads == nil {
			return e
		}
		return p.payloads.logged(e)
	}
	add("POST /predict", "predict", logged(p.postPredict))
	add("GET /models", "models", p.getModels)

	for _, model := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		add("GET "+model, "v2", p.v2Model)
		add("GET "+model+"/ready", "v2", p.v2ModelReady)
		add("POST "+model+"/infer", "v2", logged(p.v2Infer))
	}
	add("GET /v2", "v2", p.v2Server)

	add("GET /v1/models", "v1", p.v1Models)
	add("GET /v1/models/{model}", "v1", p.v1Model)
	add("POST /v1/models/{call}", "v1", logged(p.v1Predict))
}

// getModels shows what is served, from where, and what went wrong last.
func (p *predictor) getModels(*http.Request) (int, any) {
	list := []shown{}
	for _, s := range p.slots() {
		list = append(list, s.show())
	}
	return http.StatusOK, map[string]any{"models": list, "canary_percent": p.percent}
}

func write(w http.ResponseWriter, status int, body any) {
	var data []byte
	var err error
	if e, ok := body.(encoded); ok {
		data = e
	} else if data, err = json.Marshal(body); err != nil {
		status, data = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(data)+1))
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // a client that is gone needs no answer
}

package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/online"
)

// The feature API:
//
//	POST /features             features of one user and product
//	POST /get-online-features  Feast's, column-oriented, for many entities
//	POST /push                 Feast's, features that a client has computed
//	POST /materialize          what the warehouse has and the online store has not
//	GET  /openapi.json         all of it, described
//	GET  /docs                 a page to try it
//
// An error is {"detail":"..."}: 422 for a body that breaks a rule, 404 for a view or
// service that does not exist, 413 for too much, 503 with Retry-After when Redis or
// the warehouse is away; 401 and 429 where function.Access asks for a token or bounds
// the rate.

// APIConfig bounds the requests of the feature API.
type APIConfig struct {
	// MaxEntities bounds the entities of one request.
	MaxEntities int `envconfig:"API_MAX_ENTITIES" default:"1000"`
	// MaxBody bounds a request's body, in bytes.
	MaxBody int64 `envconfig:"API_MAX_BODY_BYTES" default:"1048576"`
	// AllowOrigin is sent as Access-Control-Allow-Origin, so that pages of that
	// origin ("*": of any) may use the API from a browser. Empty: only its own.
	AllowOrigin string `envconfig:"API_ALLOW_ORIGIN"`
}

type api struct {
	APIConfig
	store   *online.Store
	filler  *filler
	metrics *metrics
}

func newAPI(c APIConfig, store *online.Store, f *filler, m *metrics) (*api, error) {
	if c.MaxEntities < 1 {
		return nil, fmt.Errorf("API_MAX_ENTITIES=%d: must be at least 1", c.MaxEntities)
	}
	if c.MaxBody < 1 {
		return nil, fmt.Errorf("API_MAX_BODY_BYTES=%d: must be at least 1", c.MaxBody)
	}
	return &api{c, store, f, m}, nil
}

//go:embed openapi.json
var openAPI []byte

//go:embed docs.html
var docs []byte

func (a *api) calls() map[string]func(context.Context, []byte, []byte) ([]byte, error) {
	return map[string]func(context.Context, []byte, []byte) ([]byte, error){
		"/features":            a.features,
		"/get-online-features": a.getOnlineFeatures,
		"/push":                a.push,
		"/materialize":         a.materialize,
	}
}

// routes are those that a token may be asked for.
func (a *api) routes(mux *http.ServeMux) {
	for path, answer := range a.calls() {
		mux.HandleFunc("POST "+path, a.handle(path, answer))
	}
}

// openRoutes are open to everybody. Browsers send no token when they ask whether a page
// may call.
func (a *api) openRoutes(mux *http.ServeMux) {
	if a.AllowOrigin != "" {
		for path := range a.calls() {
			mux.HandleFunc("OPTIONS "+path, a.preflight)
		}
	}
	mux.HandleFunc("GET /openapi.json", static("application/json", openAPI))
	mux.HandleFunc("GET /docs", static("text/html; charset=utf-8", docs))
}

func static(contentType string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'")
		_, _ = w.Write(body) // a client that is gone needs no answer
	}
}

func (a *api) preflight(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", a.AllowOrigin)
	h.Set("Access-Control-Allow-Methods", "POST")
	h.Set("Access-Control-Allow-Headers", "Content-Type, Authorization")
	w.WriteHeader(http.StatusNoContent)
}

// problem is an error with the status that it is answered with.
type problem struct {
	status int
	err    error
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }

// refuse says that a request breaks a rule.
func refuse(format string, args ...any) error {
	return &problem{http.StatusUnprocessableEntity, fmt.Errorf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &problem{http.StatusNotFound, fmt.Errorf(format, args...)}
}

// handle makes a handler of a function from a request's body to the answer's, which
// it appends to dst. An error that is no problem is that of Redis or the warehouse.
func (a *api) handle(path string, answer func(ctx context.Context, body, dst []byte) ([]byte, error)) http.HandlerFunc {
	labels := map[int]metric.MeasurementOption{}
	for _, status := range []int{200, 404, 413, 422, 503} {
		labels[status] = metric.WithAttributeSet(attribute.NewSet(
			attribute.String("http.request.method", http.MethodPost), attribute.String("http.route", path), attribute.Int("http.response.status_code", status)))
	}
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		status := http.StatusOK
		body, err := a.body(w, r)
		var out []byte
		if err == nil {
			out, err = answer(r.Context(), body, nil)
		}
		h := w.Header()
		if err != nil {
			status = http.StatusServiceUnavailable
			if p, ok := errors.AsType[*problem](err); ok {
				status = p.status
			} else {
				h.Set("Retry-After", "1")
			}
			text, _ := json.Marshal(map[string]string{"detail": err.Error()}) // strings have no error
			out = text
		}
		h.Set("Content-Type", "application/json")
		h.Set("Content-Length", strconv.Itoa(len(out)))
		if a.AllowOrigin != "" {
			h.Set("Access-Control-Allow-Origin", a.AllowOrigin)
		}
		w.WriteHeader(status)
		_, _ = w.Write(out) // a client that is gone needs no answer
		a.metrics.requests.Record(r.Context(), time.Since(start).Seconds(), labels[status])
	}
}

func (a *api) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	size := 512
	if r.ContentLength > 0 && r.ContentLength <= a.MaxBody {
		size = int(r.ContentLength) + 1
	}
	body := bytes.NewBuffer(make([]byte, 0, size))
	if _, err := io.Copy(body, http.MaxBytesReader(w, r.Body, a.MaxBody)); err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			return nil, &problem{http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes (API_MAX_BODY_BYTES)", a.MaxBody)}
		}
		return nil, refuse("reading the body: %w", err)
	}
	return body.Bytes(), nil
}

// decode reads a body that has to be an object.
func decode(body []byte, into any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return refuse("the body is empty, it should be a JSON object")
	}
	if err := json.Unmarshal(body, into); err != nil {
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && t.Field != "" {
			return refuse("%s should not be a JSON %s", t.Field, t.Value)
		}
		return refuse("the body should be a JSON object: %w", err)
	}
	return nil
}

func (a *api) get(ctx context.Context, keys []online.Key) ([]online.Row, error) {
	start := time.Now()
	rows, err := a.store.Get(ctx, keys)
	a.metrics.roundTrip(ctx, "get", start, err)
	return rows, err
}

// The defaults of the first version of this API, which its clients know.
const defaultUser, defaultProduct = 530834332, 1005073

// features answers with one-element lists, as Feast's dictionaries are. is_purchased
// is null always: it is what models are to predict, and no feature. What is new to
// the shape are status and event_timestamp.
func (a *api) features(ctx context.Context, body, dst []byte) ([]byte, error) {
	request := struct {
		User    json.RawMessage `json:"user_id"`
		Product json.RawMessage `json:"product_id"`
	}{User: json.RawMessage(strconv.Itoa(defaultUser)), Product: json.RawMessage(strconv.Itoa(defaultProduct))}
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	user, err := parseID("user_id", request.User)
	if err != nil {
		return nil, err
	}
	product, err := parseID("product_id", request.Product)
	if err != nil {
		return nil, err
	}
	rows, err := a.get(ctx, []online.Key{online.UserProduct(user, product)})
	if err != nil {
		return nil, err
	}
	row := &rows[0]
	dst = strconv.AppendInt(append(dst, `{"user_id":[`...), user, 10)
	dst = strconv.AppendInt(append(dst, `],"product_id":[`...), product, 10)
	dst = append(dst, ']')
	for _, place := range [...]int{features.ActivityCount, features.EventWeekday, isPurchased, features.Brand, features.Price,
		features.CategoryCodeLevel1, features.CategoryCodeLevel2} {
		if place == isPurchased {
			dst = append(dst, `,"is_purchased":[null]`...)
			continue
		}
		dst = append(append(append(dst, `,"`...), all[place].Name...), `":[`...)
		dst = append(row.Features[place].AppendJSON(dst), ']')
	}
	dst = append(append(append(dst, `,"status":["`...), rowStatus(row)...), `"],"event_timestamp":[`...)
	if row.Found {
		dst = appendTimestamp(dst, row.EventTime)
	} else {
		dst = append(dst, "null"...)
	}
	return append(dst, "]}\n"...), nil
}

const isPurchased = -1

var all = features.All()

// The statuses of values, as Feast names them.
const (
	present       = "PRESENT"
	nullValue     = "NULL_VALUE"
	unknown       = "NOT_FOUND"
	outsideMaxAge = "OUTSIDE_MAX_AGE"
)

func rowStatus(row *online.Row) string {
	switch {
	case !row.Found:
		return unknown
	case row.Stale:
		return outsideMaxAge
	}
	return present
}

// valueStatus is the status of one feature. A null is a null however old it is.
func valueStatus(row *online.Row, place int) string {
	if row.Found && row.Features[place].Null() {
		return nullValue
	}
	return rowStatus(row)
}

func appendTimestamp(dst []byte, t time.Time) []byte {
	dst = t.AppendFormat(append(dst, '"'), time.RFC3339Nano)
	return append(dst, '"')
}

// parseID reads an integer, quoted or not: JavaScript cannot hold all of them.
func parseID(name string, value []byte) (int64, error) {
	text := value
	if len(text) > 1 && text[0] == '"' {
		text = text[1 : len(text)-1]
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0, refuse("%s should be a 64-bit integer, is %s", name, shorten(value))
	}
	return n, nil
}

// shorten keeps what is quoted in an error short.
func shorten(value []byte) string {
	if len(value) > 40 {
		return string(bytes.ToValidUTF8(value[:40], nil)) + "..."
	}
	return string(value)
}

// materialize materialises now. {"full":true} reads all that is valid still, not
// only what is new.
func (a *api) materialize(ctx context.Context, body, dst []byte) ([]byte, error) {
	var request struct {
		Full bool `json:"full"`
	}
	if len(bytes.TrimSpace(body)) > 0 {
		if err := decode(body, &request); err != nil {
			return nil, err
		}
	}
	m, err := a.filler.materialize(ctx, request.Full)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(m)
	return append(append(dst, text...), '\n'), err
}

package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
)

// newServer makes a server for a test, without logs.
func newServer(t testing.TB, cfg Config, h Handler, opts ...Option) *Server {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	quiet := func(o *options) { o.logger = slog.New(slog.DiscardHandler) }
	s, err := New(cfg, h, append([]Option{quiet}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// message is an event of the id whose data is the id as a JSON string.
func message(id string) events.Message {
	return events.Message{Attrs: []events.Attr{
		{Name: "specversion", Value: "1.0"},
		{Name: "id", Value: id},
		{Name: "source", Value: "/source"},
		{Name: "type", Value: "in"},
		{Name: "datacontenttype", Value: "application/json"},
	}, Data: []byte(`"` + id + `"`)}
}

func messages(ids ...string) []events.Message {
	ms := make([]events.Message, len(ids))
	for i, id := range ids {
		ms[i] = message(id)
	}
	return ms
}

func binaryRequest(m events.Message) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(m.Data)))
	events.SetHTTP(r.Header, &m)
	return r
}

func structuredRequest(m events.Message) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(events.AppendJSON(nil, &m))))
	r.Header.Set("Content-Type", events.ContentTypeEvent+"; charset=UTF-8")
	return r
}

func batchRequest(ms ...events.Message) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(events.AppendBatch(nil, ms))))
	r.Header.Set("Content-Type", events.ContentTypeBatch)
	return r
}

func do(s http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result()
}

func text(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err := errors.Join(err, r.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// echo replies to each event with its data, but to the ids that say otherwise.
var echo = Each(func(_ context.Context, e event.Event) (*event.Event, error) {
	switch e.ID() {
	case "quiet":
		return nil, nil
	case "invalid":
		return nil, fmt.Errorf("looking at it: %w", Invalid("price of %d\nis wrong", -100))
	case "unavailable":
		return nil, fmt.Errorf("storing: %w", Unavailable(errors.New("redis is down"), 1500*time.Millisecond))
	case "overloaded":
		return nil, Overloaded(0, "too much")
	case "untyped":
		return nil, errors.New("disk on fire")
	case "deadline":
		return nil, fmt.Errorf("waiting: %w", context.DeadlineExceeded)
	case "panic":
		panic("oh no")
	}
	r := events.NewReply(&e, "test", "out")
	err := r.SetData("application/json", e.Data())
	return &r, err
})

// replyTo is what echo replies to the message of the id.
func replyTo(id string) events.Message {
	return events.Message{Attrs: []events.Attr{
		{Name: "specversion", Value: "1.0"},
		{Name: "id", Value: events.ReplyID("/source", id, "test")},
		{Name: "source", Value: "/millrace/test"},
		{Name: "type", Value: "out"},
		{Name: "datacontenttype", Value: "application/json"},
	}, Data: []byte(`"` + id + `"`)}
}

func TestSingleEvent(t *testing.T) {
	s := newServer(t, Config{}, echo)
	for name, request := range map[string]func(events.Message) *http.Request{
		"binary": binaryRequest, "structured": structuredRequest,
	} {
		t.Run(name, func(t *testing.T) {
			r := do(s, request(message("1")))
			if r.StatusCode != http.StatusOK {
				t.Fatalf("status %d: %s", r.StatusCode, text(t, r))
			}
			got, err := events.FromHTTP(r.Header, []byte(text(t, r)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(byName(replyTo("1")), byName(got)); diff != "" {
				t.Errorf("reply (-want +got)\n%s", diff)
			}

			r = do(s, request(message("quiet")))
			if body := text(t, r); r.StatusCode != http.StatusAccepted || body != "" {
				t.Errorf("without reply: status %d, body %q", r.StatusCode, body)
			}
		})
	}
}

// byName gives the message's attributes without their order.
func byName(m events.Message) map[string]string {
	all := map[string]string{"data": string(m.Data)}
	for _, a := range m.Attrs {
		all[a.Name] = a.Value
	}
	return all
}

func TestErrorsOfTheHandler(t *testing.T) {
	s := newServer(t, Config{}, echo)
	for _, tt := range []struct {
		id         string
		status     int
		retryAfter string
		body       string
	}{
		{"invalid", 400, "", "looking at it: price of -100 is wrong\n"},
		{"overloaded", 429, "1", "too much\n"},
		{"unavailable", 503, "2", "storing: redis is down\n"},
		{"deadline", 503, "1", "waiting: context deadline exceeded\n"},
		{"untyped", 500, "", "disk on fire\n"},
		{"panic", 500, "", "handler panicked: oh no\n"},
	} {
		t.Run(tt.id, func(t *testing.T) {
			r := do(s, binaryRequest(message(tt.id)))
			if r.StatusCode != tt.status || r.Header.Get("Retry-After") != tt.retryAfter {
				t.Errorf("status %d, Retry-After %q; want %d, %q", r.StatusCode, r.Header.Get("Retry-After"), tt.status, tt.retryAfter)
			}
			if got := text(t, r); got != tt.body {
				t.Errorf("body %q, want %q", got, tt.body)
			}
			if got := r.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type %q", got)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	s := newServer(t, Config{MaxEventBytes: 100, MaxBodyBytes: 1000, MaxInFlightBytes: 1000}, echo)
	large := message("1")
	large.Data = []byte(`"` + strings.Repeat("x", 99) + `"`)
	enormous := message("1")
	enormous.Data = []byte(`"` + strings.Repeat("x", 1000) + `"`)
	change := func(r *http.Request, name, value string) *http.Request {
		if value == "" {
			r.Header.Del(name)
		} else {
			r.Header.Set(name, value)
		}
		return r
	}
	post := func(contentType, body string) *http.Request {
		return change(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)), "Content-Type", contentType)
	}
	unsized := func(r *http.Request) *http.Request {
		r.ContentLength = -1
		return r
	}
	for _, tt := range []struct {
		name   string
		r      *http.Request
		status int
		body   string
	}{
		{"no CloudEvent", post("application/json", "{}"), 415, `not a CloudEvent: no ce- headers, and Content-Type is "application/json"`},
		{"nothing", post("", ""), 415, "not a CloudEvent"},
		{"other format", post("application/cloudevents+avro", ""), 415, `event format "application/cloudevents+avro" is not supported`},
		{"other charset", post("application/cloudevents+json; charset=latin1", ""), 415, `charset "latin1" is not supported`},
		{"malformed type", post("application/cloudevents+json; =", ""), 415, "is malformed"},
		{"no id", change(binaryRequest(message("1")), "Ce-Id", ""), 400, `invalid CloudEvent: attribute "id": required, but missing`},
		{"no specversion", change(binaryRequest(message("1")), "Ce-Specversion", ""), 400, `attribute "specversion": required`},
		{"bad source", change(binaryRequest(message("1")), "Ce-Source", "%25zz"), 400, `attribute "source": must be a URI reference`},
		{"bad time", change(binaryRequest(message("1")), "Ce-Time", "now"), 400, `attribute "time": must be an RFC 3339 time`},
		{"bad JSON", post(events.ContentTypeEvent, "{"), 400, "invalid CloudEvent: JSON text at byte 1"},
		{"bad batch", post(events.ContentTypeBatch, "[{}]"), 400, `invalid CloudEvent: event 0: attribute "specversion": required`},
		{"large binary", binaryRequest(large), 413, "body of 101 bytes is too large (MAX_EVENT_BYTES is 100)"},
		{"large unsized", unsized(binaryRequest(large)), 413, "body is too large (MAX_EVENT_BYTES is 100)"},
		{"large structured", structuredRequest(large), 413, "data of 101 bytes is too large (MAX_EVENT_BYTES is 100)"},
		{"large body", structuredRequest(enormous), 413, "is too large (MAX_BODY_BYTES is 1000)"},
		{"large unsized batch", unsized(batchRequest(enormous)), 413, "body is too large (MAX_BODY_BYTES is 1000)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := do(s, tt.r)
			body := text(t, r)
			if r.StatusCode != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("%d %q, want %d %q", r.StatusCode, body, tt.status, tt.body)
			}
			if strings.Count(body, "\n") != 1 || !strings.HasSuffix(body, "\n") {
				t.Errorf("body %q is not one line", body)
			}
		})
	}
	if n := s.bodyBytes.Load(); n != 0 {
		t.Errorf("%d bytes counted as in flight when nothing is", n)
	}
}

func TestBatch(t *testing.T) {
	s := newServer(t, Config{MaxEventBytes: 100}, echo)
	dead := func(m events.Message, code, reason string) events.Message {
		m.Attrs = append([]events.Attr(nil), m.Attrs...)
		m.Set(events.ErrorCode, code)
		m.Set(events.ErrorData, reason)
		m.Set(events.ErrorDest, "http://example.com/")
		return m
	}
	large, noURI := message("large"), message("nouri")
	large.Data = []byte(`"` + strings.Repeat("x", 99) + `"`)
	noURI.Set("source", "%zz")
	for _, tt := range []struct {
		name   string
		in     []events.Message
		status int
		want   []events.Message
		body   string
	}{
		{name: "replies in order", in: messages("1", "quiet", "2"), status: 200, want: []events.Message{replyTo("1"), replyTo("2")}},
		{name: "no replies", in: messages("quiet", "quiet"), status: 202},
		{name: "empty", status: 202},
		{name: "bad event", in: messages("1", "invalid", "2"), status: 200, want: []events.Message{
			replyTo("1"), dead(message("invalid"), "400", "looking at it: price of -100 is wrong"), replyTo("2")}},
		{name: "events that never reach the handler", in: []events.Message{large, message("1"), noURI}, status: 200, want: []events.Message{
			dead(large, "413", "data of 101 bytes is too large (MAX_EVENT_BYTES is 100)"), replyTo("1"),
			dead(noURI, "400", `invalid CloudEvent: attribute "source": must be a URI reference: parse "%zz": invalid URL escape "%zz"`)}},
		{name: "transient failure", in: messages("1", "unavailable", "2"), status: 503, body: "storing: redis is down\n"},
		{name: "bad and transient", in: messages("invalid", "overloaded"), status: 429, body: "too much\n"},
		{name: "down goes before failed", in: messages("untyped", "overloaded", "unavailable", "untyped"), status: 503, body: "storing: redis is down\n"},
		{name: "failure", in: messages("1", "untyped"), status: 500, body: "disk on fire\n"},
		{name: "panic", in: messages("1", "panic", "2"), status: 500, body: "handler panicked: oh no\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := do(s, batchRequest(tt.in...))
			body := text(t, r)
			if r.StatusCode != tt.status {
				t.Fatalf("status %d: %s", r.StatusCode, body)
			}
			if tt.status != 200 {
				if body != tt.body {
					t.Errorf("body %q, want %q", body, tt.body)
				}
				return
			}
			if got := r.Header.Get("Content-Type"); got != events.ContentTypeBatch {
				t.Errorf("Content-Type %q", got)
			}
			got, err := events.ParseBatch([]byte(body))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("replies (-want +got)\n%s", diff)
			}
		})
	}
}

// A redelivered event gets the same reply, byte for byte.
func TestRedeliveryGetsTheSameReply(t *testing.T) {
	s := newServer(t, Config{}, echo)
	first := text(t, do(s, batchRequest(messages("1", "2")...)))
	if again := text(t, do(s, batchRequest(messages("1", "2")...))); again != first {
		t.Errorf("first %s\nthen %s", first, again)
	}
}

func TestReplyWithoutIDAndSourceIsCompleted(t *testing.T) {
	s := newServer(t, Config{}, Each(func(context.Context, event.Event) (*event.Event, error) {
		r := event.New()
		r.SetType("out")
		return &r, nil
	}))
	r := do(s, binaryRequest(message("1")))
	if got := r.Header.Get("Ce-Id"); got != events.ReplyID("/source", "1", "test") {
		t.Errorf("id %q", got)
	}
	if got := r.Header.Get("Ce-Source"); got != "/millrace/test" {
		t.Errorf("source %q", got)
	}
	if _, ok := r.Header["Content-Type"]; ok && r.Header.Get("Content-Type") != "" {
		t.Errorf("Content-Type %q was made up", r.Header.Get("Content-Type"))
	}
}

func TestMistakesOfTheHandler(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    HandlerFunc
		body string
	}{
		{"no results", func(context.Context, []event.Event) []Result { return nil }, "handler returned 0 results for 1 events\n"},
		{"too many results", func(context.Context, []event.Event) []Result { return make([]Result, 3) }, "handler returned 3 results for 1 events\n"},
		{"invalid reply", func(context.Context, []event.Event) []Result {
			r := event.New()
			return []Result{{Reply: &r}}
		}, "handler made an invalid reply: attribute \"type\": must not be empty\n"},
		{"empty reply", func(context.Context, []event.Event) []Result { return []Result{{Reply: &event.Event{}}} },
			"handler made an invalid reply: attribute \"specversion\": required, but missing\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, request := range []*http.Request{binaryRequest(message("1")), batchRequest(message("1"))} {
				r := do(newServer(t, Config{}, tt.h), request)
				if body := text(t, r); r.StatusCode != 500 || body != tt.body {
					t.Errorf("%d %q, want 500 %q", r.StatusCode, body, tt.body)
				}
			}
		})
	}
}

func TestOtherRoutes(t *testing.T) {
	down := errors.New("no model yet")
	s := newServer(t, Config{Name: "validate"}, echo,
		WithReady(func(context.Context) error { return nil }),
		WithReady(func(context.Context) error { return down }),
		WithRoutes(func(m *http.ServeMux) {
			m.HandleFunc("GET /extra", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "extra\n") })
		}))
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/healthz", 200, "ok\n"},
		{"GET", "/readyz", 503, "not ready: no model yet\n"},
		{"GET", "/extra", 200, "extra\n"},
		{"GET", "/", 200, "validate"},
		{"HEAD", "/", 200, ""},
		{"PUT", "/", 405, "Method Not Allowed\n"},
		{"POST", "/nowhere", 404, "404 page not found\n"},
	} {
		r := do(s, httptest.NewRequest(tt.method, tt.path, nil))
		if body := text(t, r); r.StatusCode != tt.status || !strings.HasPrefix(body, tt.body) {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, r.StatusCode, body, tt.status, tt.body)
		}
	}
	down = nil
	if r := do(s, httptest.NewRequest("GET", "/readyz", nil)); r.StatusCode != 200 {
		t.Errorf("/readyz: %d %s", r.StatusCode, text(t, r))
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Setenv("K_SERVICE", "")
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "FUNCTION_NAME: required"},
		{Config{Name: "x", Port: 70000}, "PORT=70000: must be between 0 and 65535"},
		{Config{Name: "x", MaxBatch: -1}, "MAX_BATCH: must be greater than 0"},
		{Config{Name: "x", MaxInFlightBytes: 1 << 20}, "MAX_IN_FLIGHT_BYTES=1048576: must hold the largest body, 16777216"},
	} {
		if _, err := New(tt.cfg, echo); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
	t.Setenv("K_SERVICE", "from-knative")
	s, err := New(Config{}, echo)
	if err != nil || s.cfg.Name != "from-knative" {
		t.Errorf("%v, %v", s, err)
	}
}

package sink

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/propagation"

	"github.com/millrace-dev/millrace/shared/events"
)

func message(id string) events.Message {
	var m events.Message
	m.Set("specversion", "1.0")
	m.Set("id", id)
	m.Set("source", "/test")
	m.Set("type", "test")
	return m
}

// Brokers that take batches get them; Knative's own, which do not, get events.
func TestSendsInTheWayThatTheBrokerTakes(t *testing.T) {
	for name, c := range map[string]struct {
		batches bool
		want    []string
	}{
		"batches": {true, []string{"1 2", "3 4"}},
		"single":  {false, []string{"1", "2", "3", "4"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			refused := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if r.Header.Get("Content-Type") != events.ContentTypeBatch {
					got = append(got, r.Header.Get("Ce-Id"))
				} else if !c.batches {
					refused++
					w.WriteHeader(http.StatusUnsupportedMediaType)
				} else if ms, err := events.ParseBatch(body); err != nil {
					t.Error(err)
				} else {
					got = append(got, ms[0].Get("id")+" "+ms[1].Get("id"))
				}
			}))
			defer srv.Close()
			s, err := New(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			for _, pair := range [][]events.Message{{message("1"), message("2")}, {message("3"), message("4")}} {
				if err := s.Send(t.Context(), pair); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			if !c.batches && refused != 1 {
				t.Errorf("%d batches were tried, want one", refused)
			}
		})
	}
}

func TestErrorsSayWhatTheBrokerAnswered(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "full", http.StatusTooManyRequests)
	}))
	s, err := New(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), []events.Message{message("1"), message("2")}); err == nil || !strings.Contains(err.Error(), "429 Too Many Requests: full") {
		t.Errorf("error %v", err)
	}
	srv.Close()
	if err := s.Send(t.Context(), []events.Message{message("1")}); err == nil {
		t.Error("no error without a broker")
	}
}

func TestAddressMustBeHTTP(t *testing.T) {
	for _, address := range []string{"", "broker", "ftp://broker", "http://"} {
		if _, err := New(address); err == nil || !strings.HasPrefix(err.Error(), "K_SINK=") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// What is sent in the course of an event goes on in its trace, unless it has another.
func TestSendsTheTraceOn(t *testing.T) {
	const own, its = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	var got []string
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		ms, err := events.ParseBatch(body)
		if err != nil {
			t.Error(err)
		}
		for i := range ms {
			got = append(got, ms[i].Get("traceparent"), ms[i].Get("tracestate"))
		}
	}))
	defer srv.Close()
	s, err := New(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	in := propagation.MapCarrier{"traceparent": its, "tracestate": "a=b"}
	traced := propagation.TraceContext{}.Extract(t.Context(), in)
	for _, ctx := range []context.Context{t.Context(), traced} {
		other := message("2")
		other.Set("traceparent", own)
		if err := s.Send(ctx, []events.Message{message("1"), other}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"", "", own, "", its, "a=b", own, ""}, got); diff != "" {
		t.Errorf("trace contexts (-want +got):\n%s", diff)
	}
}

package function

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
)

// What the CloudEvents SDK sends is understood, and it understands the answers.
func TestTalksWithTheSDK(t *testing.T) {
	in := message("1")
	e, err := in.Event()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(newServer(t, Config{}, echo))
	defer s.Close()
	want := replyTo("1")
	check := func(t *testing.T, replies ...event.Event) {
		t.Helper()
		for i := range replies {
			if diff := cmp.Diff(want, events.FromEvent(&replies[i])); diff != "" {
				t.Errorf("reply %d (-want +got)\n%s", i, diff)
			}
		}
	}
	for name, encode := range map[string]func(*http.Request) error{
		"binary": func(r *http.Request) error {
			return cehttp.WriteRequest(t.Context(), binding.ToMessage(&e), r)
		},
		"structured": func(r *http.Request) error {
			return cehttp.WriteRequest(binding.WithForceStructured(t.Context()), binding.ToMessage(&e), r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := encode(r); err != nil {
				t.Fatal(err)
			}
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = answer.Body.Close() }()
			reply, err := cehttp.NewEventFromHTTPResponse(answer)
			if err != nil {
				t.Fatal(err)
			}
			check(t, *reply)
		})
	}
	t.Run("batch", func(t *testing.T) {
		r, err := cehttp.NewHTTPRequestFromEvents(t.Context(), s.URL, []event.Event{e, e})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Body.Close() }()
		replies, err := cehttp.NewEventsFromHTTPResponse(answer)
		if err != nil {
			t.Fatal(err)
		}
		if len(replies) != 2 {
			t.Fatalf("%d replies", len(replies))
		}
		check(t, replies...)
	})
}

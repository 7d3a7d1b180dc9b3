package function

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/millrace-dev/millrace/shared/events"
)

func TestSmoke(t *testing.T) {
	s, err := New(Config{Name: "echo"}, Each(func(ctx context.Context, e event.Event) (*event.Event, error) {
		if e.ID() == "bad" {
			return nil, Invalid("no good")
		}
		r := events.NewReply(&e, "echo", "out")
		_ = r.SetData("application/json", map[string]int{"a": 1})
		return &r, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	defer srv.Close()
	for _, b := range []string{`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1}`,
		`[{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1},{"specversion":"1.0","id":"bad","source":"/s","type":"t","data":1}]`} {
		ct := events.ContentTypeEvent
		if strings.HasPrefix(b, "[") {
			ct = events.ContentTypeBatch
		}
		r, err := http.Post(srv.URL, ct, strings.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		o, _ := io.ReadAll(r.Body)
		t.Log(r.StatusCode, r.Header, string(o))
	}
}

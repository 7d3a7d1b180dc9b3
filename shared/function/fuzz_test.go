package function

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
)

// Whatever is sent, the handler sees valid events only, and the sender gets one of
// the documented answers, never a server's failure.
func FuzzRequest(f *testing.F) {
	one, two := message("1"), message("2")
	f.Add("application/json", "1.0", "1", "/s", "t", "", `{"a":1}`)
	f.Add(events.ContentTypeEvent, "", "", "", "", "", string(events.AppendJSON(nil, &one)))
	f.Add(events.ContentTypeBatch+"; charset=utf-8", "", "", "", "", "", string(events.AppendBatch(nil, []events.Message{one, two})))
	f.Add("application/cloudevents", "1.0", "%25", "a b", "\"t\"", "%zz", "")
	s := newServer(f, Config{MaxEventBytes: 1000, MaxBodyBytes: 2000}, HandlerFunc(func(_ context.Context, batch []event.Event) []Result {
		results := make([]Result, len(batch))
		for i := range batch {
			if batch[i].ID() == "" || batch[i].Type() == "" || batch[i].SpecVersion() != "1.0" {
				panic("an invalid event: " + batch[i].String())
			}
			r := events.NewReply(&batch[i], "test", "out")
			if err := r.SetData("application/json", batch[i].Data()); err != nil {
				panic(err)
			}
			results[i].Reply = &r
		}
		return results
	}))
	f.Fuzz(func(t *testing.T, contentType, version, id, source, typ, ext, body string) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		for name, value := range map[string]string{
			"Content-Type": contentType, "Ce-Specversion": version, "Ce-Id": id, "Ce-Source": source, "Ce-Type": typ, "Ce-Ext": ext,
		} {
			if value != "" {
				r.Header[name] = []string{value}
			}
		}
		w := do(s, r)
		answer := text(t, w)
		if !slices.Contains([]int{200, 202, 400, 413, 415}, w.StatusCode) {
			t.Fatalf("status %d: %s", w.StatusCode, answer)
		}
		switch {
		case w.StatusCode >= 400:
			if strings.Count(answer, "\n") != 1 || len(answer) > maxErrorText+1 {
				t.Errorf("body %q is not one line", answer)
			}
		case w.StatusCode == 200 && w.Header.Get("Content-Type") == events.ContentTypeBatch:
			if _, err := events.ParseBatch([]byte(answer)); err != nil {
				t.Errorf("answered with a bad batch: %v", err)
			}
		case w.StatusCode == 200:
			if _, err := events.FromHTTP(w.Header, []byte(answer)); err != nil {
				t.Errorf("answered with a bad event: %v", err)
			}
		}
	})
}

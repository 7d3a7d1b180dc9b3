package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The command asks a console and prints a line a hop.
func TestStoryOnTheCommandLine(t *testing.T) {
	answers := map[string]string{
		"/console/api/story?q=id+1": `{"asked":"id 1","hops":[
			{"at":"2026-11-22T12:00:00Z","what":"judged valid","where":"Kafka","data":{"event":{"source":"/millrace/validate","id":"id 1"},"data":{"event_type":"cart","price":9.5}}},
			{"at":"2026-11-22T12:00:12.5Z","what":"reading","where":"PostgreSQL","data":{"server_id":"server-1","details":{"a":1},"prediction":200}}]}`,
		"/console/api/story?q=nobody": `{"asked":"nobody","hops":[],"searchedBack":"2026-11-22T12:00:00Z","unknown":"PostgreSQL: no route"}`,
		"/console/api/story?q=off":    `{"absent":{"source":"PostgreSQL","message":"DATABASE_URL is not set"}}`,
	}
	console := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, answers[r.URL.RequestURI()])
	}))
	defer console.Close()
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC).Local()
	for _, c := range []struct{ asked, want, err string }{
		{"id 1", at.Format(time.DateTime) + ".000      +0 ms  judged valid  Kafka       /millrace/validate id 1  event_type=cart price=9.5\n" +
			at.Add(12500*time.Millisecond).Format(time.DateTime) + ".500      +12 s  reading       PostgreSQL  server_id=server-1 prediction=200\n", ""},
		{"nobody", "not told by PostgreSQL: no route\nNothing is known of nobody; Kafka was searched back to " + at.Format(time.DateTime) + ".\n", ""},
		{"off", "", "the console cannot tell: DATABASE_URL is not set (PostgreSQL)"},
		{"-console=" + console.URL, "", "story needs to know of what"},
	} {
		var out strings.Builder
		err := runStory(t.Context(), []string{c.asked, "--console", console.URL + "/console/"}, &out, io.Discard)
		if err == nil && c.err != "" || err != nil && (c.err == "" || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: error %v, want %q", c.asked, err, c.err)
		}
		if diff := cmp.Diff(c.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.asked, diff)
		}
	}
}

package events

import (
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
)

func TestEventAndBack(t *testing.T) {
	want := Message{Attrs: []Attr{
		{"specversion", "1.0"},
		{"id", "1"},
		{"source", "https://example.com/a%20b?c=d#e"},
		{"type", "t"},
		{"datacontenttype", "application/json"},
		{"dataschema", "https://example.com/schema"},
		{"subject", "sub"},
		{"time", "2026-01-02T03:04:05.678Z"},
		{"lsn", "12"},
		{"partitionkey", "k"},
	}, Data: []byte("{}")}
	e, err := want.Event()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Errorf("the SDK finds it invalid: %v", err)
	}
	if diff := cmp.Diff(want, FromEvent(&e)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := e.Extensions()["partitionkey"]; got != "k" {
		t.Errorf("extension is %v", got)
	}
}

func TestEventRefuses(t *testing.T) {
	for _, name := range []string{"source", "dataschema", "time"} {
		m := Message{Attrs: []Attr{{"specversion", "1.0"}, {"id", "1"}, {"type", "t"}}}
		m.Set(name, "%zz")
		if _, err := m.Event(); err == nil || !strings.Contains(err.Error(), `attribute "`+name+`"`) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// Events of one Converter share what is equal; changing one must not reach another.
func TestConvertedEventsAreIndependent(t *testing.T) {
	ms := []Message{
		{Attrs: []Attr{{"specversion", "1.0"}, {"id", "1"}, {"source", "/s"}, {"type", "t"}, {"datacontenttype", "application/json"}}},
		{Attrs: []Attr{{"specversion", "1.0"}, {"id", "2"}, {"source", "/s"}, {"type", "t"}, {"datacontenttype", "application/json"}}},
	}
	var c Converter
	first, err := c.Event(&ms[0])
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Event(&ms[1])
	if err != nil {
		t.Fatal(err)
	}
	first.SetSource("/other")
	first.SetDataContentType("text/plain")
	first.SetExtension("x", "1")
	if diff := cmp.Diff(ms[1], FromEvent(&second)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestFromEventFormatsExtensions(t *testing.T) {
	e := event.New()
	e.SetID("1")
	e.SetSource("/s")
	e.SetType("t")
	e.SetExtension("a", 5)
	e.SetExtension("b", true)
	e.SetExtension("c", time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600)))
	want := Message{Attrs: []Attr{
		{"specversion", "1.0"}, {"id", "1"}, {"source", "/s"}, {"type", "t"},
		{"a", "5"}, {"b", "true"}, {"c", "2026-01-02T02:04:05Z"},
	}}
	if diff := cmp.Diff(want, FromEvent(&e)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func FuzzURIText(f *testing.F) {
	for _, s := range []string{"/a/b", "//host/x", "/a b", "http://u:p@h/p?q#f", "a:b", "/%2f", "/a:b", "/.//x", "/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		e := event.New()
		e.SetSource(source)
		c := contextOf(&e)
		if got, want := uriText(&c.Source.URL), c.Source.URL.String(); got != want {
			t.Errorf("%q becomes %q, must be %q", source, got, want)
		}
	})
}

func TestReplyID(t *testing.T) {
	// The value is part of what is stored: it must never change.
	const want = "feed226495a4aa580aea3fc3d2f1bce5"
	if got := ReplyID("/s", "1", "validate"); got != want {
		t.Errorf("ReplyID is %s, must be %s", got, want)
	}
	seen := map[string]bool{}
	for _, parts := range [][3]string{{"a", "b", "c"}, {"ab", "", "c"}, {"", "ab", "c"}, {"a", "bc", ""}, {"abc", "", ""}} {
		id := ReplyID(parts[0], parts[1], parts[2])
		if seen[id] {
			t.Errorf("%q has the id of others", parts)
		}
		seen[id] = true
	}
}

func TestNewReply(t *testing.T) {
	in := Message{Attrs: []Attr{
		{"specversion", "1.0"}, {"id", "1"}, {"source", "/s#x"}, {"type", "t"}, {"time", "2026-01-02T03:04:05Z"},
		{"partitionkey", "k"}, {"traceparent", "tp"}, {"tracestate", "ts"}, {"other", "o"},
	}}
	e, err := in.Event()
	if err != nil {
		t.Fatal(err)
	}
	want := Message{Attrs: []Attr{
		{"specversion", "1.0"}, {"id", ReplyID("/s#x", "1", "validate")}, {"source", "/millrace/validate"}, {"type", "out"},
		{"time", "2026-01-02T03:04:05Z"}, {"partitionkey", "k"}, {"traceparent", "tp"}, {"tracestate", "ts"},
	}}
	for range 2 { // a redelivery gives the same reply
		r := NewReply(&e, "validate", "out")
		if diff := cmp.Diff(want, FromEvent(&r)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

package events

import (
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestFromHTTP(t *testing.T) {
	h := http.Header{}
	h.Set("ce-specversion", "1.0")
	h.Set("ce-id", "partition:1/offset:2")
	h.Set("ce-source", "/s#topic")
	h.Set("ce-type", "t")
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80")
	h.Set("ce-partitionkey", "100%")
	h.Set("ce-quoted", `"a \"b\" %2520"`)
	h.Set("ce-half", "%E2%82%AC%4")
	h.Set("Traceparent", "not an attribute")
	got, err := FromHTTP(h, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	want := Message{Attrs: []Attr{
		{"datacontenttype", "application/json; charset=utf-8"},
		{"half", "\u20ac%4"},
		{"id", "partition:1/offset:2"},
		{"partitionkey", "100%"},
		{"quoted", `a "b" %20`},
		{"source", "/s#topic"},
		{"specversion", "1.0"},
		{"subject", "Euro \u20ac \U0001F600"},
		{"type", "t"},
	}, Data: []byte("{}")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestFromHTTPRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(http.Header)
		want   string
	}{
		{"no id", func(h http.Header) { h.Del("Ce-Id") }, `attribute "id": required, but missing`},
		{"empty type", func(h http.Header) { h.Set("Ce-Type", "") }, `attribute "type": must not be empty`},
		{"version", func(h http.Header) { h.Set("Ce-Specversion", "0.3") }, `must be 1.0, not "0.3"`},
		{"given twice", func(h http.Header) { h.Add("Ce-Id", "2") }, `attribute "id": given 2 times`},
		{"given twice, written differently", func(h http.Header) { h["ce-ID"] = []string{"2"} }, `attribute "id": given twice`},
		{"hyphen", func(h http.Header) { h.Set("Ce-A-B", "2") }, `attribute "a-b": a name is lower-case letters and digits`},
		{"reserved name", func(h http.Header) { h.Set("Ce-Data", "2") }, `attribute "data": the name is reserved`},
		{"not UTF-8", func(h http.Header) { h.Set("Ce-X", "%FF") }, `attribute "x": value "%FF" is not UTF-8`},
		{"raw bytes", func(h http.Header) { h.Set("Ce-X", "\xff") }, `is not UTF-8`},
		{"time", func(h http.Header) { h.Set("Ce-Time", "12:00") }, `attribute "time": must be an RFC 3339 time`},
		{"two content types", func(h http.Header) { h["Content-Type"] = []string{"a/b", "c/d"} }, `Content-Type: given 2 times`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"/s"}, "Ce-Type": {"t"}}
			tt.change(h)
			_, err := FromHTTP(h, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestFromHTTPBoundsAttributes(t *testing.T) {
	h := http.Header{}
	for _, a := range "abcdefghijklmnop" {
		for _, b := range "abcdefghijklmnop" {
			h.Set("Ce-"+string(a)+string(b), "1")
		}
	}
	if _, err := FromHTTP(h, nil); err == nil || !strings.Contains(err.Error(), "more than 128 attributes") {
		t.Errorf("error %v", err)
	}
}

// Headers are safe to send: no line breaks, no spaces, ASCII only.
func FuzzHTTPRoundTrip(f *testing.F) {
	f.Add("1", "a b\r\nX-Evil: \u20ac%41\"", "text/plain")
	f.Fuzz(func(t *testing.T, id, ext, contentType string) {
		if id == "" || !utf8.ValidString(id) || !utf8.ValidString(ext) || !utf8.ValidString(contentType) {
			return
		}
		m := Message{Attrs: []Attr{{"ext", ext}, {"id", id}, {"source", "/s"}, {"specversion", "1.0"}, {"type", "t"}}, Data: []byte("x")}
		h := http.Header{}
		SetHTTP(h, &m)
		for name, values := range h {
			for i := range len(values[0]) {
				if c := values[0][i]; c <= ' ' || c > '~' {
					t.Fatalf("header %s holds byte %#x", name, c)
				}
			}
		}
		got, err := FromHTTP(h, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	})
}

func BenchmarkHTTP(b *testing.B) {
	m := testBatch(1, 300)[0]
	h := http.Header{"Host": {"x"}, "User-Agent": {"x"}, "Accept-Encoding": {"gzip"}, "Content-Length": {"300"}}
	SetHTTP(h, &m)
	b.Run("from", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := FromHTTP(h, m.Data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("set", func(b *testing.B) {
		b.ReportAllocs()
		out := http.Header{}
		for b.Loop() {
			SetHTTP(out, &m)
		}
	})
}

package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
)

// required is what every event must have, to build test events from.
const required = `"specversion":"1.0","id":"1","source":"/s","type":"t"`

func TestParseJSON(t *testing.T) {
	base := []Attr{{"specversion", "1.0"}, {"id", "1"}, {"source", "/s"}, {"type", "t"}}
	tests := []struct {
		name string
		in   string
		want []Attr // besides base
		data string
	}{
		{"least", `{` + required + `}`, nil, ""},
		{"space everywhere", " \t\r\n{ " + strings.ReplaceAll(required, ":", "\n:\t") + " } \n", nil, ""},
		{"string extension", `{` + required + `,"partitionkey":"a b"}`, []Attr{{"partitionkey", "a b"}}, ""},
		{"escapes", `{` + required + `,"x":"\"\\\/\b\f\n\r\tA\u00e9\u20ac"}`, []Attr{{"x", "\"\\/\b\f\n\r\tA\u00e9\u20ac"}}, ""},
		{"surrogate pair", `{` + required + `,"x":"\ud83d\ude00!"}`, []Attr{{"x", "\U0001F600!"}}, ""},
		{"escaped name", `{` + required + `,"\u0078":"1"}`, []Attr{{"x", "1"}}, ""},
		{"boolean extension", `{` + required + `,"x":true,"y":false}`, []Attr{{"x", "true"}, {"y", "false"}}, ""},
		{"integer extension", `{` + required + `,"x":-2147483648,"y":2147483647,"z":-0}`,
			[]Attr{{"x", "-2147483648"}, {"y", "2147483647"}, {"z", "0"}}, ""},
		{"null is absent", `{` + required + `,"x":null,"subject":null}`, nil, ""},
		{"empty extension", `{` + required + `,"x":""}`, []Attr{{"x", ""}}, ""},
		{"data byte for byte", `{` + required + `,"data": { "a" : [1.0e+5 , "\u0041"] } }`, nil, `{ "a" : [1.0e+5 , "\u0041"] }`},
		{"data before the rest", `{"data":[],` + required + `}`, nil, `[]`},
		{"data is null", `{` + required + `,"data":null}`, nil, `null`},
		{"data is a JSON string", `{` + required + `,"data":"a\n"}`, nil, `"a\n"`},
		{"data with a JSON suffix", `{` + required + `,"datacontenttype":"application/vnd.x+json; charset=utf-8","data":"a"}`,
			[]Attr{{"datacontenttype", "application/vnd.x+json; charset=utf-8"}}, `"a"`},
		{"data is text", `{"data":"a\n\u00e9",` + required + `,"datacontenttype":"text/plain"}`,
			[]Attr{{"datacontenttype", "text/plain"}}, "a\n\u00e9"},
		{"data_base64", `{` + required + `,"data_base64":"AP8="}`, nil, "\x00\xff"},
		{"data_base64 escaped", `{` + required + `,"data_base64":"\/\/8="}`, nil, "\xff\xff"},
		{"data_base64 of JSON", `{` + required + `,"datacontenttype":"application/json","data_base64":"e30="}`,
			[]Attr{{"datacontenttype", "application/json"}}, "{}"},
		{"lone surrogate in data stays", `{` + required + `,"data":"\ud800"}`, nil, `"\ud800"`},
		{"deepest data", `{` + required + `,"data":` + nested(maxDepth) + `}`, nil, nested(maxDepth)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := Message{Attrs: append(base[:len(base):len(base)], tt.want...)}
			if tt.data != "" {
				want.Data = []byte(tt.data)
			}
			got, err := ParseJSON([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			sortAttrs(want.Attrs)
			sortAttrs(got.Attrs)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func nested(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }

func TestParseJSONRefuses(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"nothing", ``, "an event is a JSON object"},
		{"array", `[]`, "an event is a JSON object"},
		{"string", `"x"`, "an event is a JSON object"},
		{"text after", `{` + required + `} x`, "unexpected text after the end"},
		{"unterminated", `{` + required, "expected ',' or '}'"},
		{"trailing comma", `{` + required + `,}`, "expected a member name"},
		{"no specversion", `{"id":"1","source":"/s","type":"t"}`, `attribute "specversion": required, but missing`},
		{"no id", `{"specversion":"1.0","source":"/s","type":"t"}`, `attribute "id": required, but missing`},
		{"no source", `{"specversion":"1.0","id":"1","type":"t"}`, `attribute "source": required, but missing`},
		{"no type", `{"specversion":"1.0","id":"1","source":"/s"}`, `attribute "type": required, but missing`},
		{"null id", `{"specversion":"1.0","id":null,"source":"/s","type":"t"}`, `attribute "id": required, but missing`},
		{"empty id", `{"specversion":"1.0","id":"","source":"/s","type":"t"}`, `attribute "id": must not be empty`},
		{"empty subject", `{` + required + `,"subject":""}`, `attribute "subject": must not be empty`},
		{"old version", `{"specversion":"0.3","id":"1","source":"/s","type":"t"}`, `attribute "specversion": must be 1.0, not "0.3"`},
		{"number as id", `{"specversion":"1.0","id":1,"source":"/s","type":"t"}`, `attribute "id": must be a string, not 1`},
		{"given twice", `{` + required + `,"x":"1","x":"1"}`, `attribute "x": given twice`},
		{"given twice, once null", `{` + required + `,"x":null,"x":"1"}`, `attribute "x": given twice`},
		{"given twice, once escaped", `{` + required + `,"\u0069d":"2"}`, `attribute "id": given twice`},
		{"data twice", `{` + required + `,"data":1,"data":2}`, "data: given twice"},
		{"data and data_base64", `{` + required + `,"data":1,"data_base64":""}`, "data: given twice"},
		{"upper-case name", `{` + required + `,"Foo":"1"}`, `attribute "Foo": a name is lower-case letters and digits`},
		{"name with a hyphen", `{` + required + `,"a-b":"1"}`, `attribute "a-b": a name is`},
		{"empty name", `{` + required + `,"":"1"}`, `must not be empty`},
		{"object as attribute", `{` + required + `,"x":{}}`, `attribute "x": must be a string, a boolean or an integer`},
		{"array as attribute", `{` + required + `,"x":[1]}`, `attribute "x": must be a string, a boolean or an integer`},
		{"fraction", `{` + required + `,"x":1.5}`, `attribute "x": 1.5 is not an integer of 32 bits`},
		{"large integer", `{` + required + `,"x":2147483648}`, `attribute "x": 2147483648 is not an integer of 32 bits`},
		{"bad time", `{` + required + `,"time":"yesterday"}`, `attribute "time": must be an RFC 3339 time, not "yesterday"`},
		{"text as data of text", `{` + required + `,"datacontenttype":"text/plain","data":{}}`, `data: must be a JSON string when datacontenttype is "text/plain"`},
		{"base64 of no string", `{` + required + `,"data_base64":1}`, "data_base64: must be a string"},
		{"base64 of junk", `{` + required + `,"data_base64":"???"}`, "data_base64: illegal base64"},
		{"lone surrogate", `{` + required + `,"x":"\ud800"}`, `attribute "x": half of a surrogate pair`},
		{"reversed surrogates", `{` + required + `,"x":"\ude00\ud83d"}`, `attribute "x": half of a surrogate pair`},
		{"surrogate and text", `{` + required + `,"x":"\ud800\n"}`, `attribute "x": half of a surrogate pair`},
		{"bad escape", `{` + required + `,"x":"\x41"}`, "bad escape"},
		{"short escape", `{` + required + `,"x":"\u00e"}`, "bad escape"},
		{"control character", "{" + required + ",\"x\":\"a\nb\"}", "control character"},
		{"not UTF-8", "{" + required + ",\"x\":\"\xff\"}", "not UTF-8"},
		{"leading zero", `{` + required + `,"data":01}`, "expected ',' or '}'"},
		{"bare minus", `{` + required + `,"data":-}`, "bad number"},
		{"no fraction", `{` + required + `,"data":1.}`, "bad number"},
		{"no exponent", `{` + required + `,"data":1e}`, "bad number"},
		{"NaN", `{` + required + `,"data":NaN}`, "expected a value"},
		{"wrong literal", `{` + required + `,"data":trux}`, "expected a value"},
		{"crossed brackets", `{` + required + `,"data":[{]}}`, "expected a member name"},
		{"too deep", `{` + required + `,"data":` + nested(maxDepth+1) + `}`, "nested deeper than 512 levels"},
		{"byte order mark", "\ufeff{" + required + "}", "an event is a JSON object"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ParseJSON([]byte(tt.in))
			if err == nil {
				t.Fatalf("accepted as %v", m)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not contain %q", err, tt.want)
			}
		})
	}
}

func TestParseJSONBoundsAttributes(t *testing.T) {
	var b strings.Builder
	for i := range maxAttrs {
		fmt.Fprintf(&b, `,"x%d":"1"`, i)
	}
	_, err := ParseJSON([]byte(`{` + required + b.String() + `}`))
	if err == nil || !strings.Contains(err.Error(), "more than 128 attributes") {
		t.Errorf("error %v", err)
	}
}

func TestParseBatch(t *testing.T) {
	for in, want := range map[string]int{
		`[]`:                   0,
		" [ \n] ":              0, //nolint:gocritic // mapKey: the space is what is read
		`[{` + required + `}]`: 1,
		` [ {` + required + `} , {` + required + `} ]`: 2,
	} {
		ms, err := ParseBatch([]byte(in))
		if err != nil || len(ms) != want {
			t.Errorf("%s: %d events, error %v", in, len(ms), err)
		}
	}
	for in, want := range map[string]string{
		``:                        "a batch is a JSON array",
		`{` + required + `}`:      "a batch is a JSON array",
		`[{` + required + `},]`:   "event 1: JSON text at byte",
		`[{` + required + `}`:     "expected ',' or ']'",
		`[{` + required + `}]]`:   "unexpected text after the end",
		`[null]`:                  "event 0: JSON text at byte 1: an event is a JSON object",
		`[{` + required + `},{}]`: `event 1: attribute "specversion": required`,
	} {
		if _, err := ParseBatch([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", in, err, want)
		}
	}
}

// Messages of one batch share memory; changing one must not reach another.
func TestBatchMessagesAreIndependent(t *testing.T) {
	ms, err := ParseBatch([]byte(`[{` + required + `},{` + required + `},{` + required + `}]`))
	if err != nil {
		t.Fatal(err)
	}
	ms[0].Set("a", "1")
	ms[1].Set("b", "2")
	ms[0].Set("id", "")
	want := Message{Attrs: []Attr{{"specversion", "1.0"}, {"id", "1"}, {"source", "/s"}, {"type", "t"}}}
	if diff := cmp.Diff(want, ms[2]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	want.Set("b", "2")
	if diff := cmp.Diff(want, ms[1]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAppendJSONChoosesTheMember(t *testing.T) {
	for _, tt := range []struct{ contentType, data, want string }{
		{"application/json", `{"a":1}`, `"data":{"a":1}`},
		{"", `[1, 2]`, `"data":[1, 2]`},
		{"application/json", `{"a":1`, `"data_base64":"eyJhIjox"`},
		{"application/json", " 1", `"data_base64":"IDE="`},
		{"application/json", "1 ", `"data_base64":"MSA="`},
		{"application/json", "null", `"data_base64":"bnVsbA=="`},
		{"application/json", "\"\xff\"", `"data_base64":"Iv8i"`},
		{"application/json", nested(maxDepth + 1), `"data_base64":"`},
		{"text/plain", `1`, `"data_base64":"MQ=="`},
	} {
		m := Message{Attrs: []Attr{{"specversion", "1.0"}}, Data: []byte(tt.data)}
		m.Set("datacontenttype", tt.contentType)
		if got := string(AppendJSON(nil, &m)); !strings.Contains(got, tt.want) {
			t.Errorf("%s %q: %s does not contain %s", tt.contentType, tt.data, got, tt.want)
		}
	}
}

func sortAttrs(attrs []Attr) {
	for i := range attrs {
		for j := i; j > 0 && attrs[j].Name < attrs[j-1].Name; j-- {
			attrs[j], attrs[j-1] = attrs[j-1], attrs[j]
		}
	}
}

// Whatever is accepted means to the CloudEvents SDK what it means here, is valid
// JSON to encoding/json, and survives being encoded again.
func FuzzParseJSON(f *testing.F) {
	for _, in := range []string{
		`{` + required + `}`,
		`{` + required + `,"x":"\ud83d\ude00\/","y":-5,"z":true,"subject":null}`,
		`{"data": {"a":[1.5e-3,"\u00e9",{"b":null}]} ,` + required + `,"time":"2026-01-02T03:04:05.678Z"}`,
		`{` + required + `,"datacontenttype":"text/plain","data":"a\n\"b"}`,
		`{` + required + `,"datacontenttype":"application/octet-stream","data_base64":"AP8="}`,
		`{` + required + `,"dataschema":"http://x/y"}`,
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := ParseJSON(in)
		if err != nil {
			return
		}
		if !json.Valid(in) {
			t.Fatalf("accepted what is not JSON")
		}
		again, err := ParseJSON(AppendJSON(nil, &m))
		if err != nil {
			t.Fatalf("encoded to what is refused: %v", err)
		}
		if diff := cmp.Diff(m, again, cmpBytes); diff != "" {
			t.Fatalf("changed by encoding (-before +after)\n%s", diff)
		}

		ours, err := m.Event()
		if err != nil {
			return // a source that is no URI; the SDK checks while it decodes
		}
		if strings.Contains(string(in), `\`) && strings.Contains(string(in), "data_base64") {
			return // the SDK does not unescape base64 that comes before specversion
		}
		var theirs event.Event
		if err := theirs.UnmarshalJSON(in); err != nil {
			t.Fatalf("the SDK refuses it: %v", err)
		}
		if !theirs.DataBase64 && holdsJSON(theirs.DataContentType()) {
			theirs.DataEncoded = bytes.Trim(theirs.DataEncoded, " \t\r\n") // the SDK keeps the space before data
		}
		got, want := FromEvent(&ours), FromEvent(&theirs)
		if diff := cmp.Diff(want, got, cmpBytes); diff != "" {
			t.Fatalf("not what the SDK decodes (-sdk +ours)\n%s", diff)
		}
	})
}

// What the SDK encodes is decoded to the same event.
func FuzzParseSDKJSON(f *testing.F) {
	f.Add("1", "/s", "t", "text/plain", "sub", "v", []byte("data"))
	f.Add("\u00e9\"\\", "http://x/y?z#f", "t", "application/json", "", "\x00\n", []byte(`{"a":1}`))
	f.Fuzz(func(t *testing.T, id, source, typ, contentType, subject, ext string, data []byte) {
		for _, s := range []string{id, source, typ, contentType, subject, ext} {
			if !utf8.ValidString(s) {
				return
			}
		}
		e := event.New()
		e.SetID(id)
		e.SetSource(source)
		e.SetType(typ)
		e.SetSubject(subject)
		e.SetExtension("ext", ext)
		e.SetExtension("number", 7)
		if err := e.SetData(contentType, data); err != nil || e.Validate() != nil {
			return
		}
		text, err := e.MarshalJSON()
		if err != nil {
			return
		}
		m, err := ParseJSON(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		want := FromEvent(&e)
		sortAttrs(want.Attrs)
		sortAttrs(m.Attrs)
		if diff := cmp.Diff(want, m, cmpBytes); diff != "" {
			t.Fatalf("%s (-sdk +ours)\n%s", text, diff)
		}
	})
}

// Any message comes back from its JSON form as it was.
func FuzzJSONRoundTrip(f *testing.F) {
	f.Add("1", "a b\"\\\n\u00e9", "application/json", []byte(`{"a":"b"}`))
	f.Add("1", "\x7f", "", []byte{0xff, 0})
	f.Add("1", "x", "text/plain", []byte(" "))
	f.Fuzz(func(t *testing.T, id, ext, contentType string, data []byte) {
		if id == "" || !utf8.ValidString(id) || !utf8.ValidString(ext) || !utf8.ValidString(contentType) {
			return
		}
		m := Message{Attrs: []Attr{{"specversion", "1.0"}, {"id", id}, {"source", "/s"}, {"type", "t"}, {"ext", ext}}, Data: data}
		m.Set("datacontenttype", contentType)
		batch := []Message{m, m}
		got, err := ParseBatch(AppendBatch(nil, batch))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(batch, got, cmpBytes); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	})
}

// cmpBytes takes no data for empty data.
var cmpBytes = cmp.Comparer(bytes.Equal)

func BenchmarkBatch(b *testing.B) {
	for _, size := range []int{300, 1300} {
		batch := testBatch(100, size)
		body := AppendBatch(nil, batch)
		opaque := testBatch(100, size)
		for i := range opaque {
			opaque[i].Set("datacontenttype", "application/octet-stream")
		}
		encoded := AppendBatch(nil, opaque)
		sdk := make([]event.Event, len(batch))
		for i := range batch {
			sdk[i], _ = batch[i].Event()
		}
		run := func(name string, n int, f func()) {
			b.Run(fmt.Sprintf("%s/data=%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					f()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
			})
		}
		parse := func(body []byte) {
			if _, err := ParseBatch(body); err != nil {
				b.Fatal(err)
			}
		}
		var out []byte
		run("parse", len(body), func() { parse(body) })
		run("append", len(body), func() { out = AppendBatch(out[:0], batch) })
		run("parse base64", len(encoded), func() { parse(encoded) })
		run("append base64", len(encoded), func() { out = AppendBatch(out[:0], opaque) })
		run("to SDK", len(body), func() {
			var c Converter
			for i := range batch {
				if _, err := c.Event(&batch[i]); err != nil {
					b.Fatal(err)
				}
			}
		})
		run("from SDK", len(body), func() {
			for i := range sdk {
				FromEvent(&sdk[i])
			}
		})
		run("SDK parse", len(body), func() {
			var es []event.Event
			if err := json.Unmarshal(body, &es); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// testBatch makes events like those of a KafkaSource, with data of about the size.
func testBatch(n, size int) []Message {
	ms := make([]Message, n)
	for i := range ms {
		data := `{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,"category_id":2053013558920217191,"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"`
		for k := 0; len(data) < size-20; k++ {
			data += fmt.Sprintf(`,"field_%d":"value %d"`, k, k*k)
		}
		ms[i] = Message{Attrs: []Attr{
			{"specversion", "1.0"},
			{"id", fmt.Sprintf("partition:%d/offset:%d", i%12, i)},
			{"source", "/apis/v1/namespaces/millrace/kafkasources/raw#tracking.raw_user_behavior"},
			{"type", KafkaRecord},
			{"datacontenttype", "application/json"},
			{"subject", fmt.Sprintf("partition:%d#%d", i%12, i)},
			{"time", "2026-01-02T03:04:05.678Z"},
			{"partitionkey", "76b918d5-b344-41fc-8632-baf222ec760f"},
		}, Data: []byte(data + "}")}
	}
	return ms
}

package lake

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestKey_isTheSinkConnectorsLayout(t *testing.T) {
	k := Key{Topic: "tracking.user_behavior.validated", Hour: time.Date(2025, 1, 7, 9, 59, 59, 0, time.UTC)}
	want := "topics/tracking.user_behavior.validated/year=2025/month=01/day=07/hour=09/tracking.user_behavior.validated+0+0000000000.json"
	if diff := cmp.Diff(want, k.String()); diff != "" {
		t.Errorf("key (-want +got):\n%s", diff)
	}
}

func TestParseKey(t *testing.T) {
	for _, k := range []Key{
		{Topic: "a", Partition: 11, Hour: HourTime(Hour(1700000000000)), Offset: 42},
		{Topic: "a.b-c_d", Partition: 0, Hour: HourTime(Hour(-1)), Offset: 99999999999},
		{Topic: "a", Partition: 1, Hour: HourTime(Hour(1 << 62)), Offset: 0},
	} {
		got, err := ParseKey(k.String())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(k, got); diff != "" {
			t.Errorf("ParseKey(%s) (-want +got):\n%s", k, diff)
		}
	}
	for text, wantErr := range map[string]string{
		"_checkpoint.json": "does not begin with",
		"topics/a/year=2025/month=01/day=07/a+0+0000000000.json":         "is not topic/",
		"topics/a/year=2025/month=13/day=07/hour=09/a+0+0000000000.json": "has no valid year",
		"topics/a/year=2025/month=01/day=07/hour=09/b+0+0000000000.json": "does not begin with the topic",
		"topics/a/year=2025/month=01/day=07/hour=09/a+0+0000000000.avro": "does not end with .json",
		"topics/a/year=2025/month=01/day=07/hour=09/a+0.json":            "is not topic+partition+offset",
		"topics/a/year=2025/month=01/day=07/hour=09/a+x+0000000000.json": "no valid partition",
		"topics/a/year=2025/month=01/day=07/hour=09/a+0+x.json":          "no valid offset",
		"topics/a/year=2025/month=01/day=07/hour=09/a+0+1.json":          "canonical",
		"topics/a/year=2025/month=01/day=07/hour=09/a+0+-000000001.json": "canonical",
		"topics//year=2025/month=01/day=07/hour=09/+0+0000000000.json":   "canonical",
	} {
		if _, err := ParseKey(text); err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Errorf("ParseKey(%q) = %v, want an error with %q", text, err, wantErr)
		}
	}
}

func TestAppendLine(t *testing.T) {
	h := func(pairs ...string) (hs []kgo.RecordHeader) {
		for i := 0; i < len(pairs); i += 2 {
			hs = append(hs, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return hs
	}
	for _, tt := range []struct {
		name    string
		key     string
		value   []byte
		headers []kgo.RecordHeader
		want    string
	}{
		{"an object keeps its bytes", "", []byte(`{"price":1.50,"id":2053013558920217191}`), h("ce_id", "i", "ce_source", "/s", "ce_type", "t", "content-type", "application/json"),
			`{"price":1.50,"id":2053013558920217191,"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123,"id":"i","source":"/s","type":"t"}}`},
		{"op and lsn", "", []byte(`{"a":1}`), h("ce_id", "i", "ce_op", "d", "ce_lsn", "123"),
			`{"a":1,"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123,"id":"i","op":"d","lsn":"123"}}`},
		{"an empty object", "", []byte(" { \t} "), nil,
			`{ ` + "\t" + `"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"line breaks are compacted away", "", []byte("{\n \"a\" : \"x\\ny\",\r\n\"b\":[1,\n2]}\n"), nil,
			`{"a":"x\ny","b":[1,2],"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"not an object", "", []byte(`[1]`), nil,
			`{"raw_data_base64":"WzFd","_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"broken JSON", "", []byte(`{"a":}`), nil,
			`{"raw_data_base64":"eyJhIjp9","_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"two objects", "", []byte(`{}{}`), nil,
			`{"raw_data_base64":"e317fQ==","_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"not UTF-8", "", []byte("{\"a\":\"\xff\"}"), nil,
			`{"raw_data_base64":"eyJhIjoi/yJ9","_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"empty", "", []byte{}, nil,
			`{"raw_data_base64":"","_kafka":{"partition":3,"offset":7,"timestamp":1700000000123}}`},
		{"tombstone", "k\"1", nil, h("ce_op", "d"),
			`{"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123,"op":"d","tombstone":true,"key":"k\"1"}}`},
		{"tombstone of a binary key", "\xff", nil, nil,
			`{"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123,"tombstone":true,"key_base64":"/w=="}}`},
		{"hostile attributes", "", []byte(`{"a":1}`), h("ce_id", "a\"},\n\x00\xff", "ce_source", "é"),
			`{"a":1,"_kafka":{"partition":3,"offset":7,"timestamp":1700000000123,"id":"a\"},\n\u0000\ufffd","source":"é"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &kgo.Record{Partition: 3, Offset: 7, Timestamp: time.UnixMilli(1700000000123), Value: tt.value, Headers: tt.headers}
			if tt.key != "" {
				r.Key = []byte(tt.key)
			}
			attrs := AttrsOf(r)
			got := string(AppendLine([]byte("before\n"), r, &attrs))
			if diff := cmp.Diff("before\n"+tt.want+"\n", got); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
			var v map[string]any
			if err := json.Unmarshal([]byte(tt.want), &v); err != nil {
				t.Errorf("the line is no JSON object: %v", err)
			}
		})
	}
}

// Whatever the record is, it becomes one line that is one JSON object whose last
// member _kafka names it.
func FuzzAppendLine(f *testing.F) {
	f.Add([]byte(`{"a":1}`), []byte("id"), []byte("/s"), int64(1700000000123))
	f.Add([]byte("{\n}"), []byte("\x00\""), []byte("\xff"), int64(-1))
	f.Add([]byte(`{"_kafka":{"partition":9}}`), []byte(""), []byte(""), int64(0))
	f.Fuzz(func(t *testing.T, value, id, source []byte, ms int64) {
		if ms > 1<<53 || ms < -(1<<53) {
			t.Skip("time.Time")
		}
		r := &kgo.Record{Partition: 1, Offset: 5, Timestamp: time.UnixMilli(ms), Value: value,
			Headers: []kgo.RecordHeader{{Key: "ce_id", Value: id}, {Key: "ce_source", Value: source}}}
		attrs := AttrsOf(r)
		line := string(AppendLine(nil, r, &attrs))
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("not one line: %q", line)
		}
		var got struct {
			Raw   *[]byte `json:"raw_data_base64"`
			Kafka struct {
				Partition, Offset, Timestamp int64
			} `json:"_kafka"`
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if got.Kafka.Partition != 1 || got.Kafka.Offset != 5 || got.Kafka.Timestamp != ms {
			t.Fatalf("names another record: %q", line)
		}
	})
}

func TestHour_staysInFourDigitYears(t *testing.T) {
	for ms, want := range map[int64]string{
		-1:                  "1970-01-01T00",
		-1 << 62:            "1970-01-01T00",
		0:                   "1970-01-01T00",
		3_599_999:           "1970-01-01T00",
		3_600_000:           "1970-01-01T01",
		253402300799999:     "9999-12-31T23",
		253402300800000:     "9999-12-31T23",
		9223372036854775807: "9999-12-31T23",
	} {
		if got := HourTime(Hour(ms)).Format("2006-01-02T15"); got != want {
			t.Errorf("Hour(%d) is %s, want %s", ms, got, want)
		}
	}
}

// read gives what Lines says, one text a record or complaint.
func read(text string) []string {
	var got []string
	for line, err := range Lines("o", strings.NewReader(text)) {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		got = append(got, fmt.Sprintf("%d@%d %.60s", line.Number, line.Offset, line.JSON))
	}
	return got
}

func TestLines(t *testing.T) {
	long := `{"a":"` + strings.Repeat("x", MaxLine) + `"}`
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", nil},
		{"one record", `{"a":1}`, []string{`1@0 {"a":1}`}},
		{"lines", "{\"a\":1}\n{\"b\":2}\n", []string{`1@0 {"a":1}`, `2@8 {"b":2}`}},
		{"no newline at the end, carriage returns, empty lines, byte order mark", "\xef\xbb\xbf{\"a\":1}\r\n\r\n{\"b\":2}", []string{`1@3 {"a":1}`, `3@14 {"b":2}`}},
		{"empty lines before", "\n\n{\"a\":1}\n", []string{`3@2 {"a":1}`}},
		{"a bad line between", "{\"a\":1}\n{\"b\":\n{\"c\":3}\n", []string{`1@0 {"a":1}`, "o: line 2 at byte 8: not JSON: unexpected end of JSON input", `3@14 {"c":3}`}},
		{"a bad first line", "{\"b\":\n{\"c\":3}\n", []string{"o: line 1 at byte 0: not JSON: unexpected end of JSON input", `2@6 {"c":3}`}},
		{"not an object", "1\n\"x\"\n{}\n", []string{"o: line 1 at byte 0: not a JSON object", "o: line 2 at byte 2: not a JSON object", "3@6 {}"}},
		{"not UTF-8", "{\"a\":\"\xff\"}\n{}\n", []string{"o: line 1 at byte 0: not UTF-8, or nested too deep", "2@10 {}"}},
		{"a document on many lines", "{\n \"a\": 1,\n \"b\": {}\n}\n", []string{"1@0 {\n \"a\": 1,\n \"b\": {}\n}"}},
		{"a document and lines behind it", "{\n}\n{\"b\":2}\n{\"c\":3}", []string{"1@0 {\n}", `3@4 {"b":2}`, `4@12 {"c":3}`}},
		{"an array", ` [{"a":1}, {"b":2}]` + "\n", []string{`1@2 {"a":1}`, `2@11 {"b":2}`}},
		{"an array on many lines", "[\n{\"a\":1},\n{\"b\":2}\n]", []string{`1@2 {"a":1}`, `2@11 {"b":2}`}},
		{"an empty array", "[]", nil},
		{"an array with what is no object", `[{"a":1},2,{}]`, []string{`1@1 {"a":1}`, "o: line 2 at byte 9: not a JSON object", "3@11 {}"}},
		{"an array cut short", `[{"a":1},{"b"`, []string{`1@1 {"a":1}`, "o: line 2 at byte 9: the array is cut short"}},
		{"an array not closed", `[{"a":1}`, []string{`1@1 {"a":1}`, "o: line 2 at byte 8: the array is cut short"}},
		{"a broken array", `[{"a":1},}`, []string{`1@1 {"a":1}`, "o: line 2 at byte 9: broken array: invalid character '}' looking for beginning of value; the rest is not read"}},
		{"text behind an array", `[{"a":1}]{}`, []string{`1@1 {"a":1}`, "o: line 2 at byte 9: text behind the array"}},
		{"a long line", "{}\n" + long + "\n{}\n", []string{"1@0 {}", fmt.Sprintf("o: line 2 at byte 3: %d bytes, more than the allowed %d", len(long)+1, MaxLine), fmt.Sprintf("3@%d {}", 3+len(long)+1)}},
		{"a long first line", long + "\n{}\n", []string{fmt.Sprintf("o: line 1 at byte 0: %d bytes, more than the allowed %d", len(long)+1, MaxLine), fmt.Sprintf("2@%d {}", len(long)+1)}},
		{"a long element", "[{}," + long + "]", []string{"1@1 {}", fmt.Sprintf("o: line 2 at byte 4: %d bytes, more than the allowed %d", len(long), MaxLine)}},
		{"a huge element", "[{}," + long[:len(long)-2] + strings.Repeat("y", 1<<17) + "\"}]", []string{"1@1 {}", fmt.Sprintf("o: line 2 at byte 4: an array element of more than the allowed %d bytes; the rest is not read", MaxLine)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, read(tt.text)); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLines_tellsWhereTheStoreFailed(t *testing.T) {
	broken := errors.New("connection reset")
	r := iotest.TimeoutReader(strings.NewReader(strings.Repeat("{\"a\":1}\n", 20000)))
	n := 0
	var last error
	for _, err := range Lines("o", r) {
		if last = err; err == nil {
			n++
		}
	}
	var bad *BadLine
	if last == nil || errors.As(last, &bad) || !errors.Is(last, iotest.ErrTimeout) || !strings.Contains(last.Error(), "reading o at byte") {
		t.Errorf("the last error is %v, want a timeout that names the object; read %d, %v", last, n, broken)
	}
}

func FuzzLines(f *testing.F) {
	for _, s := range []string{"{\n}\n{\"b\":2}", "[{},1]", "{\"a\":\n\n{}\n", "[[", "\xef\xbb\xbf{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		offset := int64(-1)
		for line, err := range Lines("o", strings.NewReader(text)) {
			var bad *BadLine
			if err != nil {
				if !errors.As(err, &bad) {
					t.Fatal(err)
				}
				continue
			}
			if line.Offset <= offset || !strings.HasPrefix(text[line.Offset:], string(line.JSON)) {
				t.Fatalf("record %q is not at byte %d", line.JSON, line.Offset)
			}
			offset = line.Offset
		}
	})
}

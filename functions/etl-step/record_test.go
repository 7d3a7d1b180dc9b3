package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake"
)

// FuzzMembers compares with the standard library on whatever is a valid object, and
// requires that parse survives it.
func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, ` { "a" : [ {"b":"]}\"\\"} , 2 ] , "c" : null , "d":"" } `, `{"a\"b":{"x":[[],{}]},"a":-1.5e3,"t":true}`,
		`{"payload":{"event_time":"2019-10-01 00:00:00 UTC","product_id":"7","price":1e400},"_kafka":{"partition":-1,"tombstone":true}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !events.ValidObject(b) {
			return
		}
		var got []string
		members(b, func(name, value []byte) { got = append(got, string(name)+" "+compact(t, value)) })
		d := json.NewDecoder(bytes.NewReader(b))
		_, _ = d.Token()
		var want []string
		for d.More() {
			before := d.InputOffset()
			if _, err := d.Token(); err != nil {
				return
			}
			name := b[before:d.InputOffset()]
			name = name[bytes.IndexByte(name, '"')+1 : len(name)-1]
			var value json.RawMessage
			if err := d.Decode(&value); err != nil {
				return
			}
			want = append(want, string(name)+" "+compact(t, value))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", b, diff)
		}
		p := parser{}
		if r, err := p.parse(lake.Line{Number: 1, JSON: b}); err == nil {
			appendRecord(nil, 1, r)
		}
	})
}

func compact(t *testing.T, value []byte) string {
	var b bytes.Buffer
	if err := json.Compact(&b, value); err != nil {
		t.Errorf("%q is no value: %v", value, err)
	}
	return b.String()
}

func parse(t *testing.T, text string) (*record, error) {
	t.Helper()
	p := parser{key: lake.Key{Partition: 4, Offset: 100}}
	return p.parse(lake.Line{Number: 3, JSON: []byte(text)})
}

func TestEveryWayToWriteATimeGivesOneHash(t *testing.T) {
	const payload = `{"payload":{"event_time":%s,"event_type":"view","product_id":1,"category_id":"2053013558920217191","price":2.5,"user_id":3,"user_session":"s"}}`
	var first *record
	for _, text := range []string{
		`"2019-10-01 02:30:12 UTC"`, `"2019-10-01T02:30:12Z"`, `"2019-10-01T02:30:12.000000Z"`, `"2019-10-01 02:30:12+0000"`,
		`"2019-10-01 04:30:12.0+02:00"`, `1569897012000000`, `1569897012000`,
	} {
		r, err := parse(t, fmt.Sprintf(payload, text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if want := time.Date(2019, 10, 1, 2, 30, 12, 0, time.UTC); !r.eventTime.value.Equal(want) {
			t.Errorf("%s: %v", text, r.eventTime.value)
		}
		if first == nil {
			first = new(*r)
		}
		if r.hash != first.hash {
			t.Errorf("%s: another hash", text)
		}
		if r.categoryID.value != 2053013558920217191 {
			t.Errorf("category_id %d", r.categoryID.value)
		}
	}
	for _, text := range []string{`"2019-10-01"`, `"2019-13-01 02:30:12 UTC"`, `-1`, `1.5`, `true`, `{}`, `null`, `""`} {
		if _, err := parse(t, fmt.Sprintf(payload, text)); err == nil {
			t.Errorf("%s was taken for a time", text)
		}
	}
}

func TestPlaceOfARecordIsTheLakesOwn(t *testing.T) {
	const payload = `"payload":{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1,"category_id":2,"price":2.5,"user_id":3,"user_session":"s"}`
	for text, want := range map[string][2]int64{
		`{` + payload + `}`: {4, 102},
		`{` + payload + `,"_kafka":{"partition":1,"offset":9}}`:                                                 {1, 9},
		`{"_kafka":{"partition":7,"offset":7},` + payload + `,"_kafka":{"partition":1,"offset":9,"id":"a\"b"}}`: {1, 9},
	} {
		r, err := parse(t, text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := [2]int64{int64(r.partition), r.offset}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

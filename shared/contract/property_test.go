package contract

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Where the reference's rules and ours should agree, every verdict does, text by
// text. Where an exception's text is Python's own, it is an exception for both.
func TestVerdictsAgreeWithTheReference(t *testing.T) {
	lines := records(3000, 2)
	theirs := strings.Split(strings.TrimSuffix(string(reference(t, lines, "--verdicts")), "\n"), "\n")
	if len(theirs) != len(lines) {
		t.Fatalf("%d verdicts for %d records", len(theirs), len(lines))
	}
	stream := topic(t, clickstream)
	kinds := map[string]int{}
	for i, line := range lines {
		v := stream.Check([]byte(line), now)
		ours := v.ErrorMessage
		if v.Outcome == Valid {
			ours = "VALID"
		}
		want := theirs[i]
		if strings.HasPrefix(want, "Processing error: ") && v.ErrorType == ProcessingError {
			want, ours = "Processing error", "Processing error"
		}
		if ours != want {
			t.Fatalf("%q, the reference says %q:\n%s", ours, want, line)
		}
		kinds[ours]++
	}
	if len(kinds) != 10 {
		t.Errorf("the records meet only these verdicts: %v", kinds)
	}
}

// A check depends on nothing but the bytes and the clock: not on what was checked
// before, on whether the schema is known, or on what runs at the same time.
func TestChecksDoNotInfluenceEachOther(t *testing.T) {
	values := append(append(records(300, 3), changes(300, 4, false)...), changes(300, 5, true)...)
	values = append(values, serverRow, applicationRow, "", "null", "{", "\xff", strings.Repeat("[", 1000))
	set := open(t)
	for _, name := range set.Topics() {
		stream, _ := set.ByTopic(name)
		want := make([][]byte, len(values))
		for i, value := range values {
			fresh := &Stream{contracts: stream.contracts, oneOf: stream.oneOf} // knows no schema
			want[i] = fresh.Check([]byte(value), now).Body
		}
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				for n := range values {
					i := (n*7 + worker*131) % len(values)
					value := []byte(values[i])
					got := stream.Check(value, now).Body
					clear(value) // the verdict must not refer to it
					if !bytes.Equal(got, want[i]) {
						t.Errorf("%s: %s\nbecame %s\nwant   %s", name, values[i], got, want[i])
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// White space between tokens, the order of members and escapes in keys make the same
// record, with the same verdict, although they are read in another way.
func TestSpellingDoesNotChangeTheVerdict(t *testing.T) {
	type judged struct {
		topic string
		lines []string
	}
	for _, j := range []judged{
		{clickstream, records(1000, 9)},
		{cdc, changes(500, 10, false)},
		{cdc, changes(500, 11, true)},
		{datacenter, []string{serverRow, applicationRow, with(serverRow, "disk_read_mbps", "0"), with(serverRow, "disk_read_mbps", "0.5"),
			with(serverRow, "disk_read_mbps", "01"), with(serverRow, "disk_read_mbps", "1."), with(serverRow, "disk_read_mbps", "-0.5"),
			with(serverRow, "disk_read_mbps", "1e2"), with(serverRow, "disk_read_mbps", "1.5E-2"), with(serverRow, "disk_read_mbps", "null")}},
	} {
		stream := topic(t, j.topic)
		for _, line := range j.lines {
			want := stream.Check([]byte(line), now)
			for name, spelt := range map[string]string{
				"spaced":  strings.NewReplacer(`{"`, "{\n \"", `":`, `" : `, `,"`, " ,\t\"").Replace(line),
				"escaped": strings.NewReplacer(`"price":`, `"pric\u0065":`, `"rack_id":`, `"rack\u005fid":`, `"timestamp":`, `"\u0074imestamp":`).Replace(line),
			} {
				got := stream.Check([]byte(spelt), now)
				if want.ErrorType == ProcessingError {
					if got.ErrorType != ProcessingError { // the text tells another place
						t.Fatalf("%s: %q, but %q\n%s", name, got.ErrorMessage, want.ErrorMessage, spelt)
					}
					continue
				}
				got.Body, want.Body = nil, nil
				if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Verdict{}, "Contract")); diff != "" || got.Contract != want.Contract {
					t.Fatalf("%s (-want +got):\n%s%s", name, diff, spelt)
				}
			}
		}
	}
}

// Whatever the bytes: no panic, one verdict, whose body is one line of JSON that says
// the same as the verdict and still holds the record.
func FuzzCheck(f *testing.F) {
	for i, r := range append(append(records(20, 6), changes(10, 7, false)...), changes(10, 8, true)...) {
		f.Add([]byte(r), uint8(i))
	}
	for _, s := range []string{serverRow, applicationRow, "", "null", "\ufeff{}", "{\"schema\":{},\"payload\":{}}", `{"op":"d","before":{"price":1e999}}`,
		`{"payload":{"op":"d","before":{},"after":null,"source":{"lsn":-1}}}`, "{\"a\":\n1}", `{"schema":{"fields":[{"name":"a","type":[[["null"]]]}]},"payload":{}}`,
		`{"schema":{"fields":[{"field":"after","fields":[]},{"field":"op"}]},"payload":{"after":{},"op":"c"},"valid":1}`} {
		for topic := range uint8(5) {
			f.Add([]byte(s), topic)
		}
	}
	set := open(f)
	streams := []*Stream{}
	for _, name := range set.Topics() {
		s, _ := set.ByTopic(name)
		streams = append(streams, s)
	}
	for _, name := range set.Types() {
		s, _ := set.ByType(name)
		streams = append(streams, s)
	}
	f.Fuzz(func(t *testing.T, value []byte, which uint8) {
		stream := streams[int(which)%len(streams)]
		before := bytes.Clone(value)
		v := stream.Check(value, now)
		if !bytes.Equal(value, before) {
			t.Fatal("the record was changed")
		}
		if again := stream.Check(value, now); !bytes.Equal(again.Body, v.Body) {
			t.Fatalf("%s\nand then\n%s", v.Body, again.Body)
		}
		if v.Outcome == Skipped {
			if stream.contracts[0].Kind != Debezium || v.Body != nil || v.Type != "" {
				t.Fatalf("skipped: %+v", v)
			}
			return
		}
		b := read(t, v)
		if _, err := json.Marshal(b); err != nil {
			t.Fatal(err)
		}
		switch {
		case v.Outcome == Valid && (b.Valid != "VALID" || v.ErrorType != "" || v.Contract == nil || v.Type != v.Contract.Verdicts.Valid || v.Time.IsZero() && v.Op != "d"):
			t.Fatalf("%+v\n%s", v, v.Body)
		case v.Outcome == Invalid && (b.Valid != "INVALID" || *b.Message != v.ErrorMessage || *b.Type != v.ErrorType || v.ErrorMessage == ""):
			t.Fatalf("%+v\n%s", v, v.Body)
		}
		if v.ErrorType == ProcessingError {
			raw := []byte(*b.RawData)
			if b.RawBase64 != nil {
				raw, _ = base64.StdEncoding.DecodeString(*b.RawBase64)
			}
			if b.RawBytes == nil && !bytes.Equal(raw, value) {
				t.Fatalf("raw data %q of %q", raw, value)
			}
			return
		}
		if len(b.Payload) == 0 || b.Payload[0] != '{' || !json.Valid(value) {
			t.Fatalf("payload %q of %q", b.Payload, value)
		}
	})
}

// The embedded contracts are read anew from arbitrary text without a panic.
func FuzzLoad(f *testing.F) {
	f.Add(good)
	f.Add("name: good\nfields:\n- {name: a, type: int64, min: 1e400}\n")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		set, err := load(map[string]string{"good.yaml": text})
		if err != nil {
			if !strings.HasPrefix(err.Error(), "good.yaml") {
				t.Fatalf("%v does not name the file", err)
			}
			return
		}
		for _, c := range set.Contracts() {
			c.Check([]byte(eventRow), time.Now())
		}
	})
}

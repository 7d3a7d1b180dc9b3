package jsonscan

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// scan reads a whole text.
func scan(text []byte) (Value, *Error) {
	var s Scanner
	s.Reset(text)
	s.Start()
	if s.Err() != nil {
		return Value{}, s.Err()
	}
	v := s.Value()
	s.Finish()
	return v, s.Err()
}

func TestAccepts(t *testing.T) {
	for _, text := range []string{
		`{}`, `[]`, `null`, `true`, `false`, `0`, `-0`, `-1.5e-7`, `1E+2`, `""`, `"a"`,
		" {\t\"a\" :\r\n[ 1 , {} , [ ] ] } ",
		`{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}`,
		`"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"`, `"héé 日本 😀"`, "\"\x7f\"", "\"\ufffd\"",
		`1.7976931348623157e308`, `5e-324`, `1e-999`, strings.Repeat("9", 308),
		strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth),
		`{"` + strings.Repeat("k", 1000) + `":"` + strings.Repeat("v", 100_000) + `"}`,
	} {
		if _, err := scan([]byte(text)); err != nil {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	many := make([]string, 40)
	for i := range many {
		many[i] = strconv.Quote("k"+strconv.Itoa(i)) + ":0"
	}
	manyThenDuplicate := "{" + strings.Join(many, ",") + `,"k7":1}`
	for _, c := range []struct {
		text   string
		fault  Fault
		detail string
	}{
		{``, Syntax, "unexpected end where a value should be at byte 0"},
		{`   `, Syntax, "unexpected end where a value should be at byte 3"},
		{`{`, Syntax, "unexpected end where a key should be at byte 1"},
		{`{"a"`, Syntax, "unexpected end where a colon should be at byte 4"},
		{`{"a":`, Syntax, "unexpected end where a value should be at byte 5"},
		{`{"a":1`, Syntax, "unexpected end where a comma or the end of an object should be at byte 6"},
		{`{"a":1,}`, Syntax, "unexpected '}' where a key should be at byte 7"},
		{`[1,]`, Syntax, "unexpected ']' where a value should be at byte 3"},
		{`[1 2]`, Syntax, "unexpected '2' where a comma or the end of an array should be at byte 3"},
		{`{a:1}`, Syntax, "unexpected 'a' where a key should be at byte 1"},
		{`{'a':1}`, Syntax, "unexpected '\\'' where a key should be at byte 1"},
		{`{"a":1} x`, Syntax, "unexpected 'x' after the end of the value at byte 8"},
		{`{}{}`, Syntax, "unexpected '{' after the end of the value at byte 2"},
		{"\xef\xbb\xbf{}", Syntax, "byte order mark at byte 0"},
		{`NaN`, Syntax, "NaN is not a JSON number at byte 0"},
		{`[Infinity]`, Syntax, "Infinity is not a JSON number at byte 1"},
		{`[-Infinity]`, Syntax, "Infinity is not a JSON number at byte 2"},
		{`nul`, Syntax, "unexpected 'n' where a value should be at byte 0"},
		{`True`, Syntax, "unexpected 'T' where a value should be at byte 0"},
		{`01`, Syntax, "unexpected '1' after the end of the value at byte 1"},
		{`+1`, Syntax, "unexpected '+' where a value should be at byte 0"},
		{`1.`, Syntax, "unexpected end in a number at byte 2"},
		{`.5`, Syntax, "unexpected '.' where a value should be at byte 0"},
		{`1e`, Syntax, "unexpected end in a number at byte 2"},
		{`-`, Syntax, "unexpected end in a number at byte 1"},
		{`"a`, Syntax, "unexpected end in a string at byte 2"},
		{`"a\`, Syntax, "unexpected end in a string at byte 3"},
		{"\"a\nb\"", Syntax, "control character 0x0a in a string at byte 2"},
		{"\"\x00\"", Syntax, "control character 0x00 in a string at byte 1"},
		{`"\x41"`, Syntax, "invalid escape at byte 1"},
		{`"\u12g4"`, Syntax, "invalid escape at byte 1"},
		{`{"a":1,"b":2,"a":3}`, DuplicateKey, `duplicate key "a" at byte 13`},
		{`{"a":1,"\u0061":3}`, DuplicateKey, `duplicate key "a" at byte 7`},
		{`[{"x":{"a":1,"a":1}}]`, DuplicateKey, `duplicate key "a" at byte 13`},
		{manyThenDuplicate, DuplicateKey, `duplicate key "k7" at byte ` + strconv.Itoa(strings.LastIndex(manyThenDuplicate, `"k7"`))},
		{"\"\xff\"", NotUTF8, "invalid UTF-8 at byte 1"},
		{"\"a\xc3\"", NotUTF8, "invalid UTF-8 at byte 2"},
		{"\"\xed\xa0\x80\"", NotUTF8, "invalid UTF-8 at byte 1"}, // a surrogate in UTF-8
		{"\"\xc0\x80\"", NotUTF8, "invalid UTF-8 at byte 1"},     // overlong
		{"\xff", NotUTF8, "invalid UTF-8 at byte 0"},
		{`"\ud800"`, LoneSurrogate, `lone surrogate \ud800 at byte 1`},
		{`"\ude00\ud83d"`, LoneSurrogate, `lone surrogate \ude00 at byte 1`},
		{`"\ud83d\n"`, LoneSurrogate, `lone surrogate \ud83d at byte 1`},
		{`"\u0000"`, EscapedNUL, `escaped NUL \u0000 at byte 1`},
		{`1e999`, NumberRange, "number beyond the range of a double at byte 0"},
		{`[-1e400]`, NumberRange, "number beyond the range of a double at byte 1"},
		{strings.Repeat("9", 400), NumberRange, "number beyond the range of a double at byte 0"},
		{strings.Repeat("[", MaxDepth+1) + strings.Repeat("]", MaxDepth+1), TooDeep, "nested deeper than 64 at byte 64"},
		{strings.Repeat(`{"a":`, 100_000), TooDeep, "nested deeper than 64 at byte 320"},
	} {
		_, err := scan([]byte(c.text))
		switch {
		case err == nil:
			t.Errorf("%.60q: accepted, want %q", c.text, c.detail)
		case err.Fault != c.fault || err.Error() != c.detail:
			t.Errorf("%.60q: fault %d, %q; want %d, %q", c.text, err.Fault, err, c.fault, c.detail)
		}
	}
}

func TestIntTakesCanonicalInt64Only(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true},
		{"-0", 0, true},
		{"2053013558920217191", 2053013558920217191, true},
		{"9223372036854775807", math.MaxInt64, true},
		{"9223372036854775808", 0, false},
		{"-9223372036854775808", math.MinInt64, true},
		{"-9223372036854775809", 0, false},
		{"18446744073709551616", 0, false},
		{strings.Repeat("9", 400), 0, false},
		{"", 0, false}, {"-", 0, false}, {"007", 0, false}, {"-01", 0, false}, {"+1", 0, false},
		{" 1", 0, false}, {"1 ", 0, false}, {"1.0", 0, false}, {"1e3", 0, false}, {"0x10", 0, false}, {"١", 0, false},
	} {
		got, ok := Int([]byte(c.text))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("Int(%q) = %d, %v; want %d, %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

func TestFloatIsCorrectlyRounded(t *testing.T) {
	for _, text := range []string{"0", "-0", "-0.0", "1029.37", "0.1", "-100", "0.30000000000000004", "9007199254740993",
		"123456789012.345", "1e22", "1e23", "5e-324", "1.7976931348623157e308", "0.000000000000001", "999999999999999.9", "9999999999999999"} {
		want, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		got := Float([]byte(text), Value{End: len(text)})
		if got != want || math.Signbit(got) != math.Signbit(want) {
			t.Errorf("Float(%s) = %v, want %v", text, got, want)
		}
	}
}

// What the scanner accepts, encoding/json reads as the same value; what it refuses
// beyond encoding/json, it refuses for one of the named faults.
func FuzzScanAgreesWithEncodingJSON(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00",true,null,{}]}`, `{"a":1,"a":2}`, `"\ud800"`, `1e999`, "\xff", `[[[[]]]]`, ` {"k" : "v"} `, `{"\u0061":0,"b":[]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, fault := scan(text)
		if fault != nil {
			if json.Valid(text) && fault.Fault == Syntax {
				t.Fatalf("%q is JSON, but: %v", text, fault)
			}
			if fault.Offset < 0 || fault.Offset > len(text) {
				t.Fatalf("%q: offset %d", text, fault.Offset)
			}
			return
		}
		if !json.Valid(text) || !utf8.Valid(text) {
			t.Fatalf("%q is accepted but is not JSON in UTF-8", text)
		}
		var want any
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("%q is accepted, but: %v", text, err)
		}
		if trimmed := bytes.Trim(text, " \t\r\n"); !bytes.Equal(trimmed, text[v.Start:v.End]) {
			t.Fatalf("%q: value at %d to %d", text, v.Start, v.End)
		}
		switch v.Kind {
		case String:
			if got := string(Unquote(text, v)); got != want {
				t.Fatalf("%q: text %q, want %q", text, got, want)
			}
		case Number:
			if got := Float(text, v); got != want {
				t.Fatalf("%q: number %v, want %v", text, got, want)
			}
			n, ok := Int(text[v.Start:v.End])
			m, err := strconv.ParseInt(string(text[v.Start:v.End]), 10, 64)
			if ok != (err == nil) || n != m && ok {
				t.Fatalf("%q: integer %d %v, want %d %v", text, n, ok, m, err)
			}
		}
	})
}

func FuzzAppendString(f *testing.F) {
	f.Add([]byte("plain"))
	f.Add([]byte("\x00\x1f\"\\\n\xff\u2028é"))
	f.Fuzz(func(t *testing.T, text []byte) {
		out, exact := AppendString(nil, text)
		var got string
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if exact != (utf8.Valid(text) && !bytes.Contains(text, []byte{0})) {
			t.Fatalf("%q: exact is %v", text, exact)
		}
		if exact && got != string(text) {
			t.Fatalf("%q became %q", text, got)
		}
		if bytes.ContainsAny(out, "\n\r") {
			t.Fatalf("%q is not one line", out)
		}
		if _, err := scan(out); err != nil {
			t.Fatalf("%q is not what the scanner takes: %v", out, err)
		}
	})
}

func BenchmarkScan(b *testing.B) {
	text := []byte(`{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,"category_id":2053013558920217191,` +
		`"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"}`)
	b.Run("scanner", func(b *testing.B) {
		var s Scanner
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			s.Reset(text)
			s.Start()
			if s.Value().Kind != Object || !s.Finish() {
				b.Fatal(s.Err())
			}
		}
	})
	b.Run("json.Valid", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			json.Valid(text)
		}
	})
}

// The short way through an object reads the same values as the general way, and
// fails where that fails.
func FuzzEnterKnownAgrees(f *testing.F) {
	for _, seed := range []string{`{"a":1,"b":"x","c":null}`, `{"a":0.5,"b":"é","c":[]}`, `{"a":"\u0061","b":1e3}`, `{"a":01}`, `{"a":1.}`, `{"b":1,"a":2}`,
		`{}`, `{"a":"unterminated`, `{"a":12345678`, `{"a":1,"b":2,"c":3,"d":4}`, `{"a":nul,"b":1}`, `{"a":1 ,"b":2}`} {
		f.Add([]byte(seed))
	}
	keys := []string{`"a":`, `"b":`, `"c":`}
	f.Fuzz(func(t *testing.T, text []byte) {
		var general Scanner
		general.Reset(text)
		if general.Start() != '{' {
			return
		}
		want := map[string]Value{}
		for more := general.EnterObject(); more; more = general.NextMember() {
			key := string(general.Key())
			if _, twice := want[key]; twice {
				return // which the callers look for
			}
			want[key] = general.Value()
		}

		var short Scanner
		short.Reset(text)
		short.Start()
		values := make([]Value, len(keys))
		got := map[string]Value{}
		n, more := short.EnterKnown(keys, values)
		for i, v := range values[:n] {
			got[keys[i][1:2]] = v
		}
		if n == 0 {
			more = short.EnterObject()
		} else if more {
			more = short.NextMember()
		}
		for ; more; more = short.NextMember() {
			key := string(short.Key())
			got[key] = short.Value()
		}
		if (short.Err() == nil) != (general.Err() == nil) || short.Err() != nil && *short.Err() != *general.Err() {
			t.Fatalf("%q: %v, but %v", text, short.Err(), general.Err())
		}
		if short.Err() == nil && (short.Pos() != general.Pos() || !maps.Equal(got, want)) {
			t.Fatalf("%q: %v up to %d, but %v up to %d", text, got, short.Pos(), want, general.Pos())
		}
	})
}

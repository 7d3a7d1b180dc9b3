package cdc

import (
	"strings"
	"testing"
)

// The values are those that Debezium 3.4 writes for the same column types and
// values; make test-debezium compares them with a real one.
func TestKinds(t *testing.T) {
	for _, c := range []struct {
		name      string
		oid       uint32
		precision int32
		schema    string
		values    map[string]string // JSON by PostgreSQL's text
	}{
		{"boolean", 16, -1, `{"type":"boolean","optional":true,"field":"f"}`, map[string]string{"t": "true", "f": "false"}},
		{"bytea", 17, -1, `{"type":"bytes","optional":true,"field":"f"}`, map[string]string{`\x00ff10`: `"AP8Q"`, `\x`: `""`}},
		{"bigint", 20, -1, `{"type":"int64","optional":true,"field":"f"}`, map[string]string{"2053013558920217191": "2053013558920217191", "-1": "-1"}},
		{"smallint", 21, -1, `{"type":"int16","optional":true,"field":"f"}`, map[string]string{"1": "1"}},
		{"integer", 23, -1, `{"type":"int32","optional":true,"field":"f"}`, map[string]string{"-2147483648": "-2147483648"}},
		{"real", 700, -1, `{"type":"float","optional":true,"field":"f"}`, map[string]string{"1.5": "1.5", "3.4e+38": "3.4e+38"}},
		{"double", 701, -1, `{"type":"double","optional":true,"field":"f"}`,
			map[string]string{"9.99": "9.99", "1e+300": "1e+300", "NaN": `"NaN"`, "Infinity": `"Infinity"`, "-Infinity": `"-Infinity"`}},
		{"numeric", 1700, 655366, `{"type":"double","optional":true,"field":"f"}`,
			map[string]string{"12.30": "12.3", "12345678901234567890.123456789": "1.2345678901234567e+19", "NaN": `"NaN"`}},
		{"text", 25, -1, `{"type":"string","optional":true,"field":"f"}`, map[string]string{"a\"\\\t\x01é": `"a\"\\\t\u0001é"`, "": `""`}},
		{"uuid", 2950, -1, `{"type":"string","optional":true,"name":"io.debezium.data.Uuid","version":1,"field":"f"}`,
			map[string]string{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11": `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`}},
		{"jsonb", 3802, -1, `{"type":"string","optional":true,"name":"io.debezium.data.Json","version":1,"field":"f"}`, map[string]string{`{"a": 1}`: `"{\"a\": 1}"`}},
		{"date", 1082, -1, `{"type":"int32","optional":true,"name":"io.debezium.time.Date","version":1,"field":"f"}`,
			map[string]string{"2019-10-01": "18170", "1900-01-01": "-25567", "12019-10-01": "3670595", "0044-03-15 BC": "-735160", "infinity": "-2147472692"}},
		{"time", 1083, -1, `{"type":"int64","optional":true,"name":"io.debezium.time.MicroTime","version":1,"field":"f"}`,
			map[string]string{"01:02:03.45": "3723450000", "24:00:00": "86400000000"}},
		{"time(3)", 1083, 3, `{"type":"int32","optional":true,"name":"io.debezium.time.Time","version":1,"field":"f"}`, map[string]string{"01:02:03.45": "3723450"}},
		{"timetz", 1266, -1, `{"type":"string","optional":true,"name":"io.debezium.time.ZonedTime","version":1,"field":"f"}`,
			map[string]string{"01:02:03.45+02:30": `"22:32:03.45Z"`, "10:00:00+00": `"10:00:00Z"`}},
		{"timestamp", 1114, -1, `{"type":"int64","optional":true,"name":"io.debezium.time.MicroTimestamp","version":1,"field":"f"}`,
			map[string]string{"2019-10-01 00:00:00.123456": "1569888000123456", "1969-12-31 23:59:59.999999": "-1", "infinity": "9223372036825200000", "-infinity": "-9223372036832400000"}},
		{"timestamp(3)", 1114, 3, `{"type":"int64","optional":true,"name":"io.debezium.time.Timestamp","version":1,"field":"f"}`,
			map[string]string{"2019-10-01 00:00:00.12": "1569888000120", "1969-12-31 23:59:59.999": "-1", "-infinity": "-9223372036832400"}},
		{"timestamptz", 1184, -1, `{"type":"string","optional":true,"name":"io.debezium.time.ZonedTimestamp","version":1,"field":"f"}`,
			map[string]string{"2019-10-01 00:00:00+00": `"2019-10-01T00:00:00.000000Z"`, "2019-09-30 22:00:00.5+00": `"2019-09-30T22:00:00.500000Z"`,
				"0044-03-15 00:00:00+00 BC": `"-0043-03-15T00:00:00.000000Z"`, "12019-10-01 00:00:00+00": `"+12019-10-01T00:00:00.000000Z"`, "infinity": `"infinity"`}},
		{"timestamptz(0)", 1184, 0, `{"type":"string","optional":true,"name":"io.debezium.time.ZonedTimestamp","version":1,"field":"f"}`,
			map[string]string{"2019-10-01 00:00:00+00": `"2019-10-01T00:00:00Z"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, ok := kindOf(c.oid, attribute{OID: c.oid, Precision: c.precision}.precision(), nil)
			if !ok {
				t.Fatal("the type is not known")
			}
			if got := k.schema(`"f"`, true); got != c.schema {
				t.Errorf("schema\n%s, want\n%s", got, c.schema)
			}
			for text, want := range c.values {
				if got, err := k.append(nil, text); err != nil || string(got) != want {
					t.Errorf("%s is written as %s (%v), want %s", text, got, err, want)
				}
			}
			switch c.oid {
			case 16, 20, 21, 23, 25, 2950, 3802: // written as the server sent them
			default:
				if got, err := k.append(nil, "no such value"); err == nil {
					t.Errorf("nonsense is written as %s", got)
				}
			}
		})
	}
}

func TestKinds_enumeration(t *testing.T) {
	k, _ := kindOf(70000, -1, []string{"sad", "very, happy"})
	const want = `{"type":"string","optional":false,"name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":"sad,very, happy"},"field":"m"}`
	if got := k.schema(`"m"`, false); got != want {
		t.Errorf("schema\n%s, want\n%s", got, want)
	}
}

// Columns that cannot be shown are left out, and the rest of the row is there.
func TestRelation_unknownTypes(t *testing.T) {
	r, err := newRelation(names{"p", "s", "t"}, []attribute{
		{Name: "a", OID: 23, Precision: -1, NotNull: true, Key: 1}, {Name: "path", OID: 602, Precision: -1, Key: -1}, {Name: "b", OID: 25, Precision: -1, Key: 0},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.unknown(), " "); got != "path" {
		t.Errorf("left out are %q, want path", got)
	}
	row := []value{{text: "1"}, {text: "((0,0),(1,1))"}, {text: "x"}}
	if got, err := r.appendRow(nil, row); err != nil || string(got) != `{"a":1,"b":"x"}` {
		t.Errorf("row %s (%v)", got, err)
	}
	if got, err := r.appendKey(nil, row); err != nil || string(got) != `{"b":"x","a":1}` {
		t.Errorf("key %s (%v), want its columns in the index's order", got, err)
	}
	if _, err := newRelation(names{"p", "s", "t"}, []attribute{{Name: "path", OID: 602, Precision: -1, Key: -1}}); err == nil {
		t.Error("a table without a column that can be shown is taken")
	}
}

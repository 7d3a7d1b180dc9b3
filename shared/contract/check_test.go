package contract

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// now is when everything in these tests is processed.
var now = time.Date(2026, 11, 22, 2, 41, 0, 123456789, time.UTC)

const processedAt = `{"processed_at":"2026-11-22T02:41:00.123456"}`

func open(t testing.TB) *Set {
	t.Helper()
	set, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func topic(t testing.TB, name string) *Stream {
	t.Helper()
	stream, ok := open(t).ByTopic(name)
	if !ok {
		t.Fatalf("no contract for topic %s", name)
	}
	return stream
}

const (
	clickstream = "tracking.raw_user_behavior"
	cdc         = "tracking_postgres_cdc.public.events"
	datacenter  = "datacenter-metrics"
)

const avroSchema = `{"type":"struct","fields":[{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},` +
	`{"name":"product_id","type":"long"},{"name":"category_id","type":"long"},{"name":"category_code","type":["null","string"],"default":null},` +
	`{"name":"brand","type":["null","string"],"default":null},{"name":"price","type":"double"},{"name":"user_id","type":"long"},{"name":"user_session","type":"string"}]}`

const eventRow = `{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,"category_id":2053013558920217191,` +
	`"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"}`

const serverRow = `{"type":"server_metric","timestamp":"2026-01-24T12:34:56.000000+00:00","server_id":"srv-001","rack_id":"R01","datacenter_zone":"marseille-1",` +
	`"cpu_usage_percent":31.42,"memory_usage_percent":44.1,"memory_available_gb":23.5,"disk_usage_percent":55.3,"disk_read_mbps":20.1,` +
	`"disk_write_mbps":11.7,"network_rx_mbps":150.2,"network_tx_mbps":98.4,"cpu_temperature_celsius":49.8,"power_consumption_watts":251.3}`

const applicationRow = `{"type":"application_metric","timestamp":"2026-01-24T12:34:56.000000+00:00","service_name":"api-gateway-1","server_id":"srv-007",` +
	`"request_rate_per_sec":410.22,"response_time_p50_ms":21.5,"response_time_p95_ms":60.13,"response_time_p99_ms":99.99,"error_rate_percent":0.412,` +
	`"error_count":1,"active_connections":120,"queue_depth":0,"endpoint":"/api/users"}`

func envelope(schema, payload string) string {
	return `{"schema":` + schema + `,"payload":` + payload + `}`
}

// with replaces a field's value in a row; without removes it.
func with(row, field, value string) string {
	start, end := find(row, field)
	return row[:start] + `"` + field + `":` + value + row[end:]
}

func without(row, field string) string {
	start, end := find(row, field)
	if row[end] == ',' {
		return row[:start] + row[end+1:]
	}
	return row[:start-1] + row[end:]
}

func find(row, field string) (start, end int) {
	start = strings.Index(row, `"`+field+`":`)
	if start < 0 {
		panic("no field " + field)
	}
	dec := json.NewDecoder(strings.NewReader(row[start+len(field)+3:]))
	var v json.RawMessage
	if err := dec.Decode(&v); err != nil {
		panic(err)
	}
	return start, start + len(field) + 3 + int(dec.InputOffset())
}

// body is a verdict's body as a reader sees it.
type body struct {
	Schema    json.RawMessage `json:"schema"`
	Payload   json.RawMessage `json:"payload"`
	Valid     string          `json:"valid"`
	Message   *string         `json:"error_message"`
	Type      *string         `json:"error_type"`
	Metadata  json.RawMessage `json:"metadata"`
	RawData   *string         `json:"raw_data"`
	RawBase64 *string         `json:"raw_data_base64"`
	RawBytes  *int            `json:"raw_data_bytes"`
	Op        string          `json:"op"`
	LSN       json.RawMessage `json:"lsn"`
}

func read(t testing.TB, v Verdict) body {
	t.Helper()
	var b body
	if err := json.Unmarshal(v.Body, &b); err != nil {
		t.Fatalf("the verdict is not JSON: %v\n%.300s", err, v.Body)
	}
	if bytes.ContainsAny(v.Body, "\n\r") {
		t.Errorf("the verdict is not one line: %.300q", v.Body)
	}
	return b
}

func TestVerdictEnvelope(t *testing.T) {
	bad := with(eventRow, "price", "-100")
	for _, c := range []struct {
		name, value, want string
	}{
		{"valid", envelope(avroSchema, eventRow),
			`{"schema":` + avroSchema + `,"payload":` + eventRow + `,"valid":"VALID","error_message":null,"error_type":null,"metadata":` + processedAt + `}`},
		{"rule failure", envelope(avroSchema, bad),
			`{"schema":` + avroSchema + `,"payload":` + bad + `,"valid":"INVALID","error_message":"Price should be greater than 0","error_type":"SCHEMA_VALIDATION_ERROR","metadata":{}}`},
		{"unreadable", `{"schema":`,
			`{"raw_data":"{\"schema\":","valid":"INVALID","error_message":"Processing error: unexpected end where a value should be at byte 10","error_type":"PROCESSING_ERROR","metadata":` + processedAt + `}`},
		{"bytes that are not text", "\xff\x00{",
			`{"raw_data":"` + "\ufffd\ufffd" + `{","raw_data_base64":"/wB7","valid":"INVALID","error_message":"Processing error: invalid UTF-8 at byte 0","error_type":"PROCESSING_ERROR","metadata":` + processedAt + `}`},
		{"quoted integer", envelope(avroSchema, with(eventRow, "category_id", `"2053013558920217191"`)),
			`{"schema":` + avroSchema + `,"payload":` + eventRow + `,"valid":"VALID","error_message":null,"error_type":null,"metadata":` + processedAt + `}`},
		{"line breaks become spaces", "{\"schema\":\n" + avroSchema + ",\r\n\"payload\":" + eventRow + "\n}\n",
			`{"schema": ` + avroSchema + `,  "payload":` + eventRow + `,"valid":"VALID","error_message":null,"error_type":null,"metadata":` + processedAt + `}`},
		{"other members are kept, but those of a verdict", `{"schema":` + avroSchema + `,"trace":"t1","valid":"VALID","metadata":{"x":1},"payload":` + eventRow + `}`,
			`{"schema":` + avroSchema + `,"trace":"t1","payload":` + eventRow + `,"valid":"VALID","error_message":null,"error_type":null,"metadata":` + processedAt + `}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := topic(t, clickstream).Check([]byte(c.value), now)
			if diff := cmp.Diff(c.want, string(got.Body)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerdictTellsKeyTimeAndTypes(t *testing.T) {
	stream := topic(t, clickstream)
	want := Verdict{Outcome: Valid, Type: "dev.millrace.behavior.validated.v1", Key: "76b918d5-b344-41fc-8632-baf222ec760f",
		Time: time.Date(2019, 10, 1, 2, 30, 12, 0, time.UTC)}
	check := func(name, value string, want Verdict) {
		t.Run(name, func(t *testing.T) {
			got := stream.Check([]byte(value), now)
			if got.Contract == nil || got.Contract.Name != "shop-clickstream" {
				t.Errorf("contract %v", got.Contract)
			}
			got.Contract, got.Body = nil, nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	check("valid", envelope(avroSchema, eventRow), want)

	want.Outcome, want.Type = Invalid, "dev.millrace.behavior.invalid.v1"
	want.ErrorType, want.ErrorMessage = SchemaValidationError, "Event type should be one of: view, cart, purchase, remove_from_cart"
	check("invalid before the key is reached", envelope(avroSchema, with(eventRow, "event_type", `"look"`)), want)

	want.Time, want.ErrorMessage = time.Time{}, "Field event_time has invalid type"
	check("no time", envelope(avroSchema, with(eventRow, "event_time", `"yesterday"`)), want)

	want.Key, want.ErrorMessage = "", "Field event_time is required"
	check("neither", envelope(avroSchema, without(with(eventRow, "user_session", `7.5`), "event_time")), want)

	check("unreadable", "{", Verdict{Outcome: Invalid, Type: want.Type, ErrorType: ProcessingError,
		ErrorMessage: "Processing error: unexpected end where a key should be at byte 1"})
}

// The rules of the clickstream, one by one: presence, type, value, in the order of
// the contract; "" is valid.
func TestClickstreamRules(t *testing.T) {
	stream := topic(t, clickstream)
	long := strings.Repeat("é", 255)
	for _, c := range []struct{ field, value, want string }{
		{"price", "-100", "Price should be greater than 0"},
		{"price", "0", "Price should be greater than 0"},
		{"price", "-0", "Price should be greater than 0"},
		{"price", "0.0e10", "Price should be greater than 0"},
		{"price", "1e-400", "Price should be greater than 0"}, // rounds to 0
		{"price", "0.01", ""},
		{"price", "5", ""}, // an integer is a double
		{"price", "1e3", ""},
		{"price", "1.7976931348623157e308", ""},
		{"price", strings.Repeat("9", 300), ""},
		{"price", `"5"`, "Field price has invalid type"},
		{"price", "true", "Field price has invalid type"},
		{"price", "null", "Field price has invalid type"},
		{"price", "[1]", "Field price has invalid type"},
		{"price", "{}", "Field price has invalid type"},
		{"event_type", `"cart"`, ""},
		{"event_type", `"purchase"`, ""},
		{"event_type", `"remove_from_cart"`, ""},
		{"event_type", `"vi\u0065w"`, ""},
		{"event_type", `"View"`, "Event type should be one of: view, cart, purchase, remove_from_cart"},
		{"event_type", `""`, "Event type should be one of: view, cart, purchase, remove_from_cart"},
		{"event_type", `1`, "Field event_type has invalid type"},
		{"event_type", `null`, "Field event_type has invalid type"},
		{"product_id", "true", "Field product_id has invalid type"}, // a boolean is not an integer
		{"product_id", "1.0", "Field product_id has invalid type"},
		{"product_id", "1e3", "Field product_id has invalid type"},
		{"product_id", `"1306133"`, "Field product_id has invalid type"}, // quotes are for category_id
		{"product_id", "-0", ""},
		{"product_id", "9223372036854775807", ""},
		{"product_id", "9223372036854775808", "Field product_id has invalid type"},
		{"product_id", "-9223372036854775808", ""},
		{"product_id", "-9223372036854775809", "Field product_id has invalid type"},
		{"product_id", strings.Repeat("9", 200), "Field product_id has invalid type"},
		{"category_id", `"2053013558920217191"`, ""},
		{"category_id", `"-0"`, ""},
		{"category_id", `"20530\u00313558920217191"`, ""},
		{"category_id", `"9223372036854775808"`, "Field category_id has invalid type"},
		{"category_id", `"007"`, "Field category_id has invalid type"},
		{"category_id", `""`, "Field category_id has invalid type"},
		{"category_id", `" 1"`, "Field category_id has invalid type"},
		{"category_id", `"1.0"`, "Field category_id has invalid type"},
		{"category_code", "null", ""},
		{"category_code", `""`, ""},
		{"category_code", `7`, "Field category_code has invalid type"},
		{"brand", "null", ""},
		{"brand", `"` + long + `"`, ""},
		{"brand", `"` + long + `é"`, "Field brand should have at most 255 characters"},
		{"brand", `"` + strings.Repeat(`\u00e9`, 255) + `"`, ""},
		{"user_session", `""`, "Field user_session should have 1 to 255 characters"},
		{"user_session", `null`, "Field user_session has invalid type"},
		{"event_time", `"2019-10-01T02:30:12Z"`, ""},
		{"event_time", `"2019-10-01 02:30:12"`, "Field event_time has invalid type"},
		{"event_time", `1569897012000`, "Field event_time has invalid type"},
	} {
		t.Run(fmt.Sprintf("%s=%.30s", c.field, c.value), func(t *testing.T) {
			checkRule(t, stream, envelope(avroSchema, with(eventRow, c.field, c.value)), c.want)
		})
	}
	for _, f := range []string{"event_time", "event_type", "product_id", "category_id", "category_code", "brand", "price", "user_id", "user_session"} {
		t.Run(f+" absent", func(t *testing.T) { // a nullable field has to be there too
			checkRule(t, stream, envelope(avroSchema, without(eventRow, f)), "Field "+f+" is required")
		})
	}
	t.Run("first failure wins", func(t *testing.T) {
		row := without(with(with(eventRow, "price", "-1"), "event_type", `"x"`), "user_session")
		checkRule(t, stream, envelope(avroSchema, row), "Event type should be one of: view, cart, purchase, remove_from_cart")
	})
	t.Run("fields in any order, with others between", func(t *testing.T) {
		checkRule(t, stream, envelope(avroSchema, `{"x":{"y":[1,2]},"user_session":"s","user_id":1,"price":1,"brand":null,"category_code":null,`+
			`"category_id":1,"product_id":1,"event_type":"view","event_time":"2019-10-01 02:30:12 UTC","z":1}`), "")
	})
}

func checkRule(t *testing.T, stream *Stream, value, want string) {
	t.Helper()
	v := stream.Check([]byte(value), now)
	if v.ErrorMessage != want {
		t.Fatalf("%q, want %q", v.ErrorMessage, want)
	}
	b := read(t, v)
	if want == "" {
		if v.Outcome != Valid || v.ErrorType != "" || b.Valid != "VALID" || b.Message != nil || b.Type != nil || string(b.Metadata) != processedAt {
			t.Errorf("valid, but %+v\n%s", v, v.Body)
		}
		return
	}
	if v.Outcome != Invalid || v.ErrorType != SchemaValidationError || b.Valid != "INVALID" || *b.Message != want || *b.Type != SchemaValidationError || string(b.Metadata) != "{}" {
		t.Errorf("invalid, but %+v\n%s", v, v.Body)
	}
	if b.Payload == nil || b.RawData != nil {
		t.Errorf("payload is not kept: %s", v.Body)
	}
}

// Text that is not one record of JSON.
func TestUnreadableRecords(t *testing.T) {
	stream := topic(t, clickstream)
	good := envelope(avroSchema, eventRow)
	deep := strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70)
	for _, c := range []struct{ name, value, want string }{
		{"empty value", "", "the record is empty"},
		{"white space", " \n", "the record is empty"},
		{"null", "null", "the record is null, not an object"},
		{"array", "[" + good + "]", "the record is an array, not an object"},
		{"number", "12", "the record is a number, not an object"},
		{"string", `"text"`, "the record is a string, not an object"},
		{"truncated", good[:len(good)-1], fmt.Sprintf("unexpected end where a comma or the end of an object should be at byte %d", len(good)-1)},
		{"trailing garbage", good + "x", fmt.Sprintf("unexpected 'x' after the end of the value at byte %d", len(good))},
		{"two records", good + good, fmt.Sprintf("unexpected '{' after the end of the value at byte %d", len(good))},
		{"byte order mark", "\ufeff" + good, "byte order mark at byte 0"},
		{"UTF-16", "\xff\xfe{\x00}\x00", "invalid UTF-8 at byte 0"},
		{"invalid UTF-8 in a value", envelope(avroSchema, with(eventRow, "brand", "\"a\xffb\"")), "invalid UTF-8 at byte "},
		{"NaN", envelope(avroSchema, with(eventRow, "price", "NaN")), "NaN is not a JSON number at byte "},
		{"Infinity", envelope(avroSchema, with(eventRow, "price", "Infinity")), "Infinity is not a JSON number at byte "},
		{"-Infinity", envelope(avroSchema, with(eventRow, "price", "-Infinity")), "Infinity is not a JSON number at byte "},
		{"number beyond a double", envelope(avroSchema, with(eventRow, "price", "1e999")), "number beyond the range of a double at byte "},
		{"integer of 400 digits", envelope(avroSchema, with(eventRow, "product_id", strings.Repeat("7", 400))), "number beyond the range of a double at byte "},
		{"lone surrogate", envelope(avroSchema, with(eventRow, "brand", `"\ud800"`)), `lone surrogate \ud800 at byte `},
		{"escaped NUL", envelope(avroSchema, with(eventRow, "brand", `"a\u0000"`)), `escaped NUL \u0000 at byte `},
		{"line break in a string", envelope(avroSchema, with(eventRow, "brand", "\"a\nb\"")), "control character 0x0a in a string at byte "},
		{"duplicate field", envelope(avroSchema, eventRow[:len(eventRow)-1]+`,"price":5}`), `duplicate key "price" at byte `},
		{"duplicate field by escape", envelope(avroSchema, eventRow[:len(eventRow)-1]+`,"pri\u0063e":5}`), `duplicate key "price" at byte `},
		{"duplicate of an unknown key", envelope(avroSchema, eventRow[:len(eventRow)-1]+`,"x":5,"x":5}`), `duplicate key "x" at byte `},
		{"duplicate deep inside", envelope(avroSchema, eventRow[:len(eventRow)-1]+`,"x":[{"y":1,"y":2}]}`), `duplicate key "y" at byte `},
		{"duplicate payload", `{"schema":` + avroSchema + `,"payload":` + eventRow + `,"payload":{}}`, `duplicate key "payload" at byte `},
		{"duplicate schema", `{"schema":` + avroSchema + `,"schema":` + avroSchema + `,"payload":{}}`, `duplicate key "schema" at byte `},
		{"duplicate in the schema", envelope(`{"fields":[{"name":"a","name":"b","type":"string"}]}`, eventRow), `duplicate key "name" at byte `},
		{"nested too deep", envelope(avroSchema, deep), "nested deeper than 64 at byte "},
		{"a million open arrays", strings.Repeat("[", 1_000_000), "nested deeper than 64 at byte 64"},
		{"no schema", `{"payload":` + eventRow + `}`, "the key schema is missing"},
		{"no payload", `{"schema":` + avroSchema + `}`, "the key payload is missing"},
		{"neither", `{}`, "the key schema is missing"},
		{"plain row on a topic of envelopes", eventRow, "the key schema is missing"},
		{"schema null", envelope("null", eventRow), "schema is null, not an object"},
		{"schema text", envelope(`"x"`, eventRow), "schema is a string, not an object"},
		{"payload null", envelope(avroSchema, "null"), "payload is null, not an object"},
		{"payload array", envelope(avroSchema, "[]"), "payload is an array, not an object"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := stream.Check([]byte(c.value), now)
			want := "Processing error: " + c.want
			if v.Outcome != Invalid || v.ErrorType != ProcessingError || v.ErrorMessage != want &&
				(!strings.HasSuffix(want, " ") || !strings.HasPrefix(v.ErrorMessage, want)) {
				t.Fatalf("%v %s %q, want %q", v.Outcome, v.ErrorType, v.ErrorMessage, want)
			}
			b := read(t, v)
			if *b.Message != v.ErrorMessage || *b.Type != ProcessingError || string(b.Metadata) != processedAt || b.Payload != nil || b.Schema != nil {
				t.Errorf("%s", v.Body)
			}
			if b.RawBytes != nil {
				if *b.RawBytes != len(c.value) || !strings.HasPrefix(c.value, *b.RawData) {
					t.Errorf("cut to %d bytes of %d", len(*b.RawData), *b.RawBytes)
				}
				return
			}
			raw := *b.RawData
			if b.RawBase64 != nil {
				exact, err := base64.StdEncoding.DecodeString(*b.RawBase64)
				if err != nil {
					t.Fatal(err)
				}
				raw = string(exact)
			}
			if raw != c.value {
				t.Errorf("raw data is not the record: %q", raw)
			}
		})
	}
}

func TestLargeRecords(t *testing.T) {
	stream := topic(t, clickstream)
	pad := func(size int) []byte {
		rest := size - len(envelope(avroSchema, eventRow[:len(eventRow)-1]+`,"note":""}`))
		return []byte(envelope(avroSchema, eventRow[:len(eventRow)-1]+`,"note":"`+strings.Repeat("n", rest)+`"}`))
	}
	const broker = 1 << 20
	t.Run("a record of 1,000,000 bytes is valid and its verdict still fits a broker", func(t *testing.T) {
		v := stream.Check(pad(1_000_000), now)
		if v.Outcome != Valid || len(v.Body) > broker-8<<10 {
			t.Fatalf("%v, %s, %d bytes", v.Outcome, v.ErrorMessage, len(v.Body))
		}
	})
	t.Run("MaxValue is checked", func(t *testing.T) {
		if v := stream.Check(pad(MaxValue), now); v.Outcome != Valid || len(v.Body) > maxBody {
			t.Fatalf("%v, %s, %d bytes", v.Outcome, v.ErrorMessage, len(v.Body))
		}
	})
	for name, value := range map[string][]byte{
		"one byte more":               pad(MaxValue + 1),
		"1 MiB":                       pad(broker),
		"8 MiB":                       bytes.Repeat([]byte("é"), 4<<20),
		"cut at a character":          append([]byte("a"), bytes.Repeat([]byte("é"), 1<<19)...),
		"cut at a long character":     append([]byte("ab"), bytes.Repeat([]byte("😀"), 1<<18)...),
		"garbage that doubles":        bytes.Repeat([]byte{0xff}, 1_000_000),
		"control characters, times 6": bytes.Repeat([]byte{1}, 1_000_000),
		"zeros, times 4":              make([]byte, 1_000_000),
	} {
		t.Run(name, func(t *testing.T) {
			v := stream.Check(value, now)
			if v.Outcome != Invalid || v.ErrorType != ProcessingError || len(v.Body) > maxBody {
				t.Fatalf("%v, %s, %d bytes", v.Outcome, v.ErrorMessage, len(v.Body))
			}
			b := read(t, v)
			if b.RawBytes == nil || *b.RawBytes != len(value) {
				t.Fatalf("raw_data_bytes %v, want %d", b.RawBytes, len(value))
			}
			kept := []byte(*b.RawData)
			if b.RawBase64 != nil {
				var err error
				if kept, err = base64.StdEncoding.DecodeString(*b.RawBase64); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.HasPrefix(value, kept) || len(kept) < maxCut-3 {
				t.Errorf("kept %d bytes, which are the start: %v", len(kept), bytes.HasPrefix(value, kept))
			}
		})
	}
}

func TestEmbeddedSchema(t *testing.T) {
	stream := topic(t, clickstream)
	connect := `{"type":"struct","optional":false,"name":"events.Value","fields":[{"type":"string","optional":false,"field":"event_time"},` +
		`{"type":"string","optional":true,"field":"event_type"},{"type":"int64","optional":true,"field":"product_id"},{"type":"int64","optional":true,"field":"category_id"},` +
		`{"type":"string","optional":true,"field":"category_code"},{"type":"string","optional":true,"field":"brand"},{"type":"double","optional":true,"field":"price"},` +
		`{"type":"int64","optional":true,"field":"user_id"},{"type":"string","optional":true,"field":"user_session"}]}`
	const disagrees = "Schema disagrees with contract shop-clickstream: "
	replace := func(old, with string) string {
		if !strings.Contains(avroSchema, old) {
			t.Fatalf("no %s", old)
		}
		return strings.Replace(avroSchema, old, with, 1)
	}
	for _, c := range []struct{ name, schema, want string }{
		{"Avro field list", avroSchema, ""},
		{"Connect field list", connect, ""},
		{"another order, another field", `{"fields":[{"name":"new","type":"bytes"},` + avroSchema[strings.Index(avroSchema, "[")+1:], ""},
		{"union without null", replace(`["null","string"]`, `["string"]`), ""},
		{"null last", replace(`["null","string"]`, `["string","null"]`), ""},
		{"nested types", replace(`{"name":"user_session","type":"string"}`, `{"name":"user_session","type":{"type":"string","logicalType":"uuid"}}`), ""},
		{"nullable where the contract says no: the values decide", replace(`"type":"double"`, `"type":["null","double"]`), ""},
		{"no fields: the references call that valid", `{"type":"struct","fields":[]}`, disagrees + "field event_time is missing"},
		{"no list", `{"type":"struct"}`, disagrees + "it has no list of fields"},
		{"fields is not a list", `{"fields":{"name":"event_time"}}`, disagrees + "it has no list of fields"},
		{"fields of text", `{"fields":["event_time"]}`, disagrees + "it has no list of fields"},
		{"a field is missing", replace(`{"name":"price","type":"double"},`, ``), disagrees + "field price is missing"},
		{"a field has another type", replace(`{"name":"price","type":"double"}`, `{"name":"price","type":"string"}`), disagrees + "field price is string, should be double"},
		{"int for string", replace(`{"name":"event_type","type":"string"}`, `{"name":"event_type","type":"long"}`), disagrees + "field event_type is long, should be string"},
		{"decimal", replace(`{"name":"price","type":"double"}`, `{"name":"price","type":{"type":"bytes","logicalType":"decimal"}}`), disagrees + "field price is bytes (decimal), should be double"},
		{"a member of a union", replace(`["null","string"]`, `["null","string","long"]`), disagrees + "field category_code is long, should be string"},
		{"null only", replace(`["null","string"]`, `"null"`), disagrees + "field category_code has no type"},
		{"a field twice", replace(`{"name":"price","type":"double"}`, `{"name":"price","type":"double"},{"name":"price","type":"double"}`), disagrees + "field price is listed twice"},
		{"time as a number", replace(`{"name":"event_time","type":"string"}`, `{"name":"event_time","type":"long"}`), disagrees + "field event_time is long, should be timestamp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // compared, then known
				checkRule(t, stream, envelope(c.schema, eventRow), c.want)
				checkRule(t, stream, `{"payload":`+eventRow+`,"schema":`+c.schema+`}`, c.want)
			}
		})
	}
	t.Run("a schema is known by all of its bytes", func(t *testing.T) {
		checkRule(t, stream, envelope(avroSchema, eventRow), "")
		checkRule(t, stream, envelope(avroSchema[:len(avroSchema)-1]+`,"x":{}}`, eventRow), "")
		if v := stream.Check([]byte(`{"schema":`+avroSchema+`x,"payload":{}}`), now); v.ErrorType != ProcessingError {
			t.Errorf("%s", v.Body)
		}
	})
	t.Run("ever new schemas do not fill the memory", func(t *testing.T) {
		for i := range 100 {
			checkRule(t, stream, envelope(avroSchema[:len(avroSchema)-1]+`,"version":`+strconv.Itoa(i)+`}`, eventRow), "")
		}
		if n := len(*stream.schemas.known.Load()); n > maxSchemas {
			t.Errorf("%d schemas are kept", n)
		}
	})
}

// A caller over HTTP need not wrap a row in an envelope.
func TestEventsByTypeMayBeBare(t *testing.T) {
	stream, ok := open(t).ByType("dev.millrace.behavior.raw.v1")
	if !ok {
		t.Fatal("no contract")
	}
	for name, value := range map[string]string{"bare": eventRow, "wrapped": envelope(avroSchema, eventRow)} {
		v := stream.Check([]byte(value), now)
		if b := read(t, v); v.Outcome != Valid || string(b.Payload) != eventRow {
			t.Errorf("%s: %s", name, v.Body)
		}
	}
	checkRule(t, stream, with(eventRow, "price", "-1"), "Price should be greater than 0")
	if v := stream.Check([]byte(`{"payload":`+eventRow+`}`), now); v.ErrorMessage != "Processing error: the key schema is missing" {
		t.Errorf("%s", v.ErrorMessage)
	}
}

func TestDatacenterRules(t *testing.T) {
	stream := topic(t, datacenter)
	for _, c := range []struct{ row, field, value, want string }{
		{serverRow, "cpu_usage_percent", "0", ""},
		{serverRow, "cpu_usage_percent", "100", ""},
		{serverRow, "cpu_usage_percent", "100.01", "Field cpu_usage_percent should be between 0 and 100"},
		{serverRow, "memory_usage_percent", "-0.01", "Field memory_usage_percent should be between 0 and 100"},
		{serverRow, "disk_read_mbps", "-1", "Field disk_read_mbps should be at least 0"},
		{serverRow, "cpu_temperature_celsius", "-5.5", ""},
		{serverRow, "server_id", `""`, "Field server_id should have 1 to 50 characters"},
		{serverRow, "rack_id", `"` + strings.Repeat("R", 21) + `"`, "Field rack_id should have at most 20 characters"},
		{serverRow, "timestamp", `"2026-01-24T12:34:56Z"`, ""},
		{serverRow, "timestamp", `"2026-01-24 12:34:56"`, "Field timestamp has invalid type"},
		{applicationRow, "error_count", "1.5", "Field error_count has invalid type"},
		{applicationRow, "error_count", "-1", "Field error_count should be at least 0"},
		{applicationRow, "error_rate_percent", "101", "Field error_rate_percent should be between 0 and 100"},
		{applicationRow, "endpoint", "null", "Field endpoint has invalid type"},
		{serverRow, "type", `"gpu_metric"`, "Type should be one of: application_metric, server_metric"},
		{serverRow, "type", `7`, "Field type has invalid type"},
		{serverRow, "type", `null`, "Field type has invalid type"},
		{serverRow, "type", `"application_metric"`, "Field service_name is required"},
		{serverRow, "type", `"server\u005fmetric"`, ""},
	} {
		t.Run(c.field+"="+c.value, func(t *testing.T) { checkRule(t, stream, with(c.row, c.field, c.value), c.want) })
	}
	for _, row := range []string{serverRow, applicationRow} {
		checkRule(t, stream, row, "")
		var fields map[string]any
		if err := json.Unmarshal([]byte(row), &fields); err != nil {
			t.Fatal(err)
		}
		for f := range fields {
			checkRule(t, stream, without(row, f), "Field "+f+" is required")
		}
	}
	t.Run("the discriminator chooses, wherever it stands", func(t *testing.T) {
		last := without(serverRow, "type")
		v := stream.Check([]byte(last[:len(last)-1]+`,"type":"server_metric"}`), now)
		if v.Outcome != Valid || v.Contract.Name != "datacenter-server" || v.Key != "srv-001" || !v.Time.Equal(time.Date(2026, 1, 24, 12, 34, 56, 0, time.UTC)) {
			t.Errorf("%+v", v)
		}
		v = stream.Check([]byte(applicationRow), now)
		if v.Outcome != Valid || v.Contract.Name != "datacenter-application" || v.Key != "srv-007" {
			t.Errorf("%+v", v)
		}
	})
	t.Run("an unknown type has no contract, and a verdict", func(t *testing.T) {
		v := stream.Check([]byte(with(serverRow, "type", `"gpu_metric"`)), now)
		if v.Contract != nil || v.Type != "dev.millrace.metric.invalid.v1" {
			t.Errorf("%+v", v)
		}
	})
	t.Run("the plain object becomes the payload", func(t *testing.T) {
		v := stream.Check([]byte(serverRow), now)
		want := `{"payload":` + serverRow + `,"valid":"VALID","error_message":null,"error_type":null,"metadata":` + processedAt + `}`
		if diff := cmp.Diff(want, string(v.Body)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func cdcSchema(timeType string) string {
	return `{"type":"struct","fields":[` + timeType + `,{"type":"string","optional":true,"field":"event_type"},{"type":"int64","optional":true,"field":"product_id"},` +
		`{"type":"int64","optional":true,"field":"category_id"},{"type":"string","optional":true,"field":"category_code"},{"type":"string","optional":true,"field":"brand"},` +
		`{"type":"double","optional":true,"field":"price"},{"type":"int64","optional":true,"field":"user_id"},{"type":"string","optional":true,"field":"user_session"}],` +
		`"optional":false,"name":"tracking_postgres_cdc.public.events.Value"}`
}

const (
	zonedField  = `{"type":"string","optional":false,"name":"io.debezium.time.ZonedTimestamp","version":1,"field":"event_time"}`
	microsField = `{"type":"int64","optional":false,"name":"io.debezium.time.MicroTimestamp","version":1,"field":"event_time"}`
	millisField = `{"type":"int64","optional":false,"name":"io.debezium.time.Timestamp","version":1,"field":"event_time"}`
	nanosField  = `{"type":"int64","optional":false,"name":"io.debezium.time.NanoTimestamp","version":1,"field":"event_time"}`
)

// changeSchema is that of Debezium's full envelope.
func changedSchema(row string) string {
	part := func(field string) string { return row[:len(row)-1] + `,"field":"` + field + `"}` }
	return `{"type":"struct","fields":[` + part("before") + `,` + part("after") +
		`,{"type":"struct","fields":[{"type":"int64","optional":true,"field":"lsn"}],"field":"source"},{"type":"string","optional":false,"field":"op"},` +
		`{"type":"int64","optional":true,"field":"ts_ms"}],"optional":false,"name":"tracking_postgres_cdc.public.events.Envelope"}`
}

func changed(op, before, after string) string {
	return `{"before":` + before + `,"after":` + after + `,"source":{"version":"1.9","lsn":24023128,"table":"events"},"op":"` + op + `","ts_ms":1569897012345,"transaction":null}`
}

func TestChangeRecords(t *testing.T) {
	stream := topic(t, cdc)
	row := with(eventRow, "event_time", `"2019-10-01T00:00:00Z"`)
	schema := cdcSchema(zonedField)
	const validated = "dev.millrace.behavior.validated.v1"
	rowOnlyKey := `{"event_time":"2019-10-01T00:00:00Z","event_type":null,"product_id":null,"category_id":0,"category_code":null,"brand":null,"price":0,"user_id":null,"user_session":null}`
	for _, c := range []struct {
		name, value             string
		want                    string // the error, "" for none
		payload, schema, op, ls string
	}{
		{name: "flat with schema", value: envelope(schema, row), payload: row, schema: schema},
		{name: "flat without schema", value: row, payload: row},
		{name: "flat, schema null", value: envelope("null", row), payload: row, schema: "null"},
		{name: "flat, schema left out", value: `{"payload":` + row + `}`, payload: row},
		{name: "flat with op and lsn added by the unwrapping", value: row[:len(row)-1] + `,"__op":"u","__lsn":77}`,
			payload: row[:len(row)-1] + `,"__op":"u","__lsn":77}`, op: "u", ls: "77"},
		{name: "flat, delete rewritten", value: row[:len(row)-1] + `,"__deleted":"true"}`, payload: row[:len(row)-1] + `,"__deleted":"true"}`, op: "d"},
		{name: "flat, not deleted", value: row[:len(row)-1] + `,"__deleted":"false"}`, payload: row[:len(row)-1] + `,"__deleted":"false"}`},
		{name: "create with schema", value: envelope(changedSchema(schema), changed("c", "null", row)), payload: row,
			schema: schema[:len(schema)-1] + `,"field":"after"}`, op: "c", ls: "24023128"},
		{name: "create without schema", value: changed("c", "null", row), payload: row, op: "c", ls: "24023128"},
		{name: "create, schema null", value: envelope("null", changed("c", "null", row)), payload: row, op: "c", ls: "24023128"},
		{name: "update", value: changed("u", with(row, "price", "-1"), row), payload: row, op: "u", ls: "24023128"},
		{name: "snapshot read", value: changed("r", "null", row), payload: row, op: "r", ls: "24023128"},
		{name: "delete with the whole row", value: changed("d", row, "null"), payload: row, op: "d", ls: "24023128"},
		{name: "delete with the key only", value: envelope(changedSchema(schema), changed("d", rowOnlyKey, "null")), payload: rowOnlyKey,
			schema: schema[:len(schema)-1] + `,"field":"after"}`, op: "d", ls: "24023128"},
		{name: "a deleted row breaks no rule about values", value: changed("d", with(row, "price", "-1"), "null"), payload: with(row, "price", "-1"), op: "d", ls: "24023128"},
		{name: "a deleted row still has types", value: changed("d", with(row, "price", `"x"`), "null"), want: "Field price has invalid type",
			payload: with(row, "price", `"x"`), op: "d", ls: "24023128"},
		{name: "no lsn", value: `{"before":null,"after":` + row + `,"source":{"lsn":null},"op":"c"}`, payload: row, op: "c"},
		{name: "invalid row", value: changed("c", "null", with(row, "price", "0")), want: "Price should be greater than 0", payload: with(row, "price", "0"), op: "c", ls: "24023128"},
		{name: "quoted id", value: changed("c", "null", with(row, "category_id", `"2053013558920217191"`)), payload: row, op: "c", ls: "24023128"},
		{name: "optional columns may be absent", value: without(without(row, "brand"), "category_code"), payload: without(without(row, "brand"), "category_code")},
		{name: "create without a row", value: changed("c", "null", "null"), want: "Field after is required", payload: changed("c", "null", "null"), op: "c", ls: "24023128"},
		{name: "delete without a row", value: changed("d", "null", "null"), want: "Field before is required", payload: changed("d", "null", "null"), op: "d", ls: "24023128"},
		{name: "a row that is none", value: changed("c", "null", "7"), want: "Field after has invalid type", payload: changed("c", "null", "7"), op: "c", ls: "24023128"},
		{name: "unknown op", value: changed("x", "null", row), want: "Op should be one of: c, u, d, r", payload: row, ls: "24023128"},
		{name: "op is a number", value: `{"before":null,"after":` + row + `,"op":1}`, want: "Field op has invalid type", payload: row},
		{name: "no op", value: `{"before":null,"after":` + row + `}`, want: "Field op is required", payload: row},
		{name: "the schema is that of a row, the payload a change", value: envelope(schema, changed("c", "null", row)),
			want: "Schema disagrees with the payload: it describes a row, not a change of one", payload: row, schema: schema, op: "c", ls: "24023128"},
		{name: "the schema is that of a change, the payload a row", value: envelope(changedSchema(schema), row),
			want: "Schema disagrees with the payload: it describes a change of a row, not a row", payload: row, schema: changedSchema(schema)},
		{name: "the schema of the row disagrees", value: envelope(changedSchema(strings.Replace(schema, `{"type":"double"`, `{"type":"string"`, 1)), changed("c", "null", row)),
			want: "Schema disagrees with contract shop-cdc: field price is string, should be double", payload: row,
			schema: strings.Replace(schema[:len(schema)-1], `{"type":"double"`, `{"type":"string"`, 1) + `,"field":"after"}`, op: "c", ls: "24023128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 {
				v := stream.Check([]byte(c.value), now)
				checkRule(t, stream, c.value, c.want)
				b := read(t, v)
				if v.Op != c.op || b.Op != c.op || v.LSN != c.ls || string(b.LSN) != c.ls {
					t.Errorf("op %q lsn %q: %s", v.Op, v.LSN, v.Body)
				}
				if diff := cmp.Diff(c.payload, string(b.Payload)); diff != "" {
					t.Errorf("payload (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(c.schema, string(b.Schema)); diff != "" {
					t.Errorf("schema (-want +got):\n%s", diff)
				}
				if c.want == "" && (v.Type != validated || !v.Time.Equal(time.Date(2019, 10, 1, 0, 0, 0, 0, time.UTC))) {
					t.Errorf("%+v", v)
				}
			}
		})
	}
	t.Run("tombstones are skipped", func(t *testing.T) {
		for _, value := range []string{"", "null", " null ", `{"schema":null,"payload":null}`, `{"payload":null}`, envelope(schema, "null")} {
			if v := stream.Check([]byte(value), now); v.Outcome != Skipped || v.Body != nil || v.Type != "" {
				t.Errorf("%q: %+v", value, v)
			}
		}
		if v := stream.Check([]byte(" "), now); v.Outcome != Invalid {
			t.Errorf("white space is %v", v.Outcome)
		}
	})
}

func TestEventTimes(t *testing.T) {
	stream := topic(t, cdc)
	whole := time.Date(2019, 10, 1, 2, 30, 12, 0, time.UTC)
	for _, c := range []struct {
		field, value string
		want         time.Time // zero: invalid
	}{
		{zonedField, `"2019-10-01T02:30:12Z"`, whole},
		{zonedField, `"2019-10-01T02:30:12.25Z"`, whole.Add(250 * time.Millisecond)},
		{zonedField, `"2019-10-01T02:30:12.123456Z"`, whole.Add(123456 * time.Microsecond)},
		{zonedField, `"2019-10-01 02:30:12+0000"`, whole},
		{zonedField, `"2019-10-01 02:30:12+00:00"`, whole},
		{zonedField, `"2019-10-01 09:30:12.5+0700"`, whole.Add(500 * time.Millisecond)},
		{zonedField, `"2019-09-30 23:00:12-0330"`, whole},
		{zonedField, `"2019-10-01 02:30:12 UTC"`, time.Time{}}, // the schema promised a ZonedTimestamp
		{zonedField, `"2019-10-01T02:30:12+0000"`, time.Time{}},
		{zonedField, `"2019-10-01T02:30:12"`, time.Time{}},
		{zonedField, `"2019-02-29T00:00:00Z"`, time.Time{}},
		{zonedField, `"2020-02-29T00:00:00Z"`, time.Date(2020, 2, 29, 0, 0, 0, 0, time.UTC)},
		{zonedField, `"2019-13-01T00:00:00Z"`, time.Time{}},
		{zonedField, `"2019-10-01T24:00:00Z"`, time.Time{}},
		{zonedField, `"2019-10-01T00:00:60Z"`, time.Time{}},
		{zonedField, `"2019-10-01T00:00:00.Z"`, time.Time{}},
		{zonedField, `"2019-10-01T00:00:00.1234567890Z"`, time.Time{}},
		{zonedField, `"0000-10-01T00:00:00Z"`, time.Time{}},
		{zonedField, `"0001-01-01 00:00:00+0001"`, time.Time{}}, // before the year 1 in UTC
		{zonedField, `"9999-12-31 23:59:59-0001"`, time.Time{}},
		{zonedField, `"2019-10-01 02:30:12+2400"`, time.Time{}},
		{zonedField, `""`, time.Time{}},
		{zonedField, `1569897012000`, time.Time{}},
		{microsField, `1569897012000000`, whole},
		{microsField, `1569897012`, time.UnixMicro(1569897012).UTC()},
		{microsField, `-1`, time.Time{}},
		{microsField, `1.5`, time.Time{}},
		{microsField, `"1569897012000000"`, time.Time{}},
		{microsField, `9223372036854775807`, time.Time{}}, // year 294247
		{millisField, `1569897012000`, whole},
		{millisField, `253402300800000`, time.Time{}}, // year 10000
		{millisField, `9223372036854775807`, time.Time{}},
		{``, `1569897012000`, whole},
		{``, `1569897012000000`, whole},
		{``, `0`, time.Unix(0, 0).UTC()},
		{``, `"2019-10-01 02:30:12 UTC"`, whole},
		{``, `"2019-10-01T02:30:12Z"`, whole},
		{``, `true`, time.Time{}},
		{``, `"2019\u002d10-01T02:30:12Z"`, whole},
	} {
		t.Run(c.value, func(t *testing.T) {
			value := with(eventRow, "event_time", c.value)
			if c.field != "" {
				value = envelope(cdcSchema(c.field), value)
			}
			v := stream.Check([]byte(value), now)
			if c.want.IsZero() {
				if v.ErrorMessage != "Field event_time has invalid type" || !v.Time.IsZero() {
					t.Errorf("%q, time %v", v.ErrorMessage, v.Time)
				}
				return
			}
			if v.Outcome != Valid || !v.Time.Equal(c.want) {
				t.Errorf("%q, time %v, want %v", v.ErrorMessage, v.Time, c.want)
			}
		})
	}
	t.Run("nanoseconds", func(t *testing.T) {
		checkRule(t, stream, envelope(cdcSchema(nanosField), with(eventRow, "event_time", "1")),
			"Schema disagrees with contract shop-cdc: field event_time is int64 (io.debezium.time.NanoTimestamp), should be timestamp")
	})
}

// Every day of 400 years is read as the standard library reads it.
func TestCalendar(t *testing.T) {
	for day := time.Date(1900, 1, 1, 23, 59, 59, 0, time.UTC); day.Year() < 2300; day = day.AddDate(0, 0, 1) {
		got, ok := parseText([]byte(day.Format("2006-01-02 15:04:05 UTC")), asUTC)
		if !ok || !got.Equal(day) {
			t.Fatalf("%v became %v, %v", day, got, ok)
		}
	}
	for _, year := range []int{1900, 2000, 2019, 2020} {
		for month := 1; month <= 12; month++ {
			last := time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
			if got := days(year, month); got != last {
				t.Errorf("%d-%d has %d days, not %d", year, month, last, got)
			}
		}
	}
}

func TestSetFindsContracts(t *testing.T) {
	set := open(t)
	var names []string
	for _, c := range set.Contracts() {
		names = append(names, c.Name)
		if c.DataSchema() != "urn:millrace:contract:"+c.Name {
			t.Errorf("%s", c.DataSchema())
		}
	}
	if diff := cmp.Diff([]string{"datacenter-application", "datacenter-server", "shop-cdc", "shop-clickstream"}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{datacenter, clickstream, cdc}, set.Topics()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"dev.millrace.behavior.raw.v1", "dev.millrace.metric.raw.v1"}, set.Types()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, ok := set.ByTopic("nope"); ok {
		t.Error("nope is no topic")
	}
	server, _ := set.Contract("datacenter-server")
	if n := len(server.Metrics()); n != 10 || len(server.Fields) != 15 {
		t.Errorf("%d metrics of %d fields", n, len(server.Fields))
	}
	application, _ := set.Contract("datacenter-application")
	if n := len(application.Metrics()); n != 8 || len(application.Fields) != 13 {
		t.Errorf("%d metrics of %d fields", n, len(application.Fields))
	}
	if !slices.Equal(server.NaturalKey, []string{"server_id", "timestamp"}) {
		t.Errorf("natural key %v", server.NaturalKey)
	}
	stream, _ := set.ByType("dev.millrace.metric.raw.v1")
	alone, ok := stream.Of("datacenter-server")
	if !ok || len(alone.Contracts()) != 1 || alone.Contracts()[0] != server {
		t.Errorf("of datacenter-server: %v", alone)
	}
	if _, ok := stream.Of("shop-cdc"); ok {
		t.Error("shop-cdc takes no metrics")
	}
	if v := server.Check([]byte(applicationRow), now); v.ErrorMessage != "Type should be one of: server_metric" {
		t.Errorf("%q", v.ErrorMessage)
	}
}

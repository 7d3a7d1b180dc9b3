package contract

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// thing is a contract with a field of each type.
const thing = `name: thing
kind: json
topics: [things]
verdicts: {valid: com.example.thing.ok.v1, invalid: com.example.thing.bad.v1}
key: id
eventTime: at
naturalKey: [id, at]
table: things
fields:
  - {name: id, type: string}
  - {name: at, type: timestamp, formats: [rfc3339, millis]}
  - {name: n, type: int64, acceptQuoted: true}
  - {name: x, type: double}
  - {name: on, type: boolean}
  - {name: note, type: string, optional: true, nullable: true}
`

func openOwn(t *testing.T, thing string) (*Set, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thing.yaml"), []byte(thing), 0o600); err != nil {
		t.Fatal(err)
	}
	return Open(dir)
}

// What a verdict was given for is what is read from it.
func TestReader_readsWhatWasChecked(t *testing.T) {
	set, err := openOwn(t, thing)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := set.Contract("thing")
	r := c.Reader()
	for _, test := range []struct{ record, want string }{
		{`{"id":"a","at":"2026-01-24T12:34:56.5+01:00","n":"-42","x":1e3,"on":true,"note":"ü\n\u00e9"}`,
			"a 2026-01-24T11:34:56.5Z -42 1000 true ü\né"},
		{` { "note" : null, "on":false , "x": 7, "n":9223372036854775807,"extra":[{"x":1}],"at":1700000000000,"id":"b" } `,
			"b 2023-11-14T22:13:20Z 9223372036854775807 7 false -"},
		{`{"id":"c","at":"2026-01-24T12:34:56Z","n":0,"x":-0.25,"on":false}`, "c 2026-01-24T12:34:56Z 0 -0.25 false -"},
	} {
		v := c.Check([]byte(test.record), time.Now())
		if v.Outcome != Valid {
			t.Fatalf("%s: %s", test.record, v.ErrorMessage)
		}
		values, err := r.Read(v.Body)
		if err != nil {
			t.Errorf("%s: %v", test.record, err)
			continue
		}
		note := "-"
		if values[5].Present {
			note = string(values[5].Text)
		}
		if got := fmt.Sprint(string(values[0].Text), " ", values[1].Time.Format(time.RFC3339Nano), " ", values[2].Int, " ", values[3].Float, " ", values[4].Bool, " ", note); got != test.want {
			t.Errorf("%s: read %s, want %s", test.record, got, test.want)
		}
	}
}

func TestReader_saysWhatDoesNotFit(t *testing.T) {
	set, err := openOwn(t, thing)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := set.Contract("thing")
	r := c.Reader()
	for body, want := range map[string]string{
		``:                            "reading a verdict: it should be a JSON object with a payload",
		`[1]`:                         "reading a verdict: it should be a JSON object with a payload",
		`{"valid":"VALID"}`:           "reading a verdict: field payload is required",
		`{"payload":3}`:               "reading a verdict: field payload should be an object",
		`{"payload":{"id":`:           "reading a verdict: unexpected end",
		`{"payload":{"id":5}}`:        "field id of the verdict should be of type string, as contract thing says",
		`{"payload":{"id":"\u0000"}}`: "reading a verdict: ",
		`{"payload":{"n":1.5}}`:       "field n of the verdict should be of type int64, as contract thing says",
		`{"payload":{"x":"1"}}`:       "field x of the verdict should be of type double, as contract thing says",
		`{"payload":{"on":1}}`:        "field on of the verdict should be of type boolean, as contract thing says",
		`{"payload":{"at":"today"}}`:  "field at of the verdict should be of type timestamp, as contract thing says",
	} {
		if _, err := r.Read([]byte(body)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
	// What an earlier contract did not have is missing, not wrong.
	values, err := r.Read([]byte(`{"payload":{"id":"a"}}`))
	if err != nil || values[3].Present || !values[0].Present {
		t.Errorf("%v %v", values, err)
	}
}

func TestLoad_tablesThatCannotBe(t *testing.T) {
	for _, test := range []struct{ from, to, want string }{
		{"table: things", "table: Things", `thing.yaml:8:8: table "Things" should be lower-case letters`},
		{"table: things", "table: server_metrics", "table server_metrics is that of"},
		{"naturalKey: [id, at]", "naturalKey: [id]", "table: the naturalKey needs the eventTime at"},
		{"naturalKey: [id, at]", "naturalKey: [id, at, note]", "naturalKey: field note is optional or nullable"},
		{"naturalKey: [id, at]", "naturalKey: [id, at, id]", "naturalKey: field id is named twice"},
		{"name: note", "name: created_at", "field created_at: a stored table has a column of this name already"},
		{"name: note", "name: " + strings.Repeat("n", 64), "has at most 63 bytes"},
		{"kind: json", "kind: debezium", "table: changes of rows are not stored"},
		{"key: id", "key: id\nentity: x", "entity x is a double: an entity is a string or an int64"},
		{"key: id", "key: id\nentity: who", "entity: there is no field who"},
	} {
		_, err := openOwn(t, strings.Replace(thing, test.from, test.to, 1))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.to, err, test.want)
		}
	}
	set, err := openOwn(t, thing)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"thing": "id", "datacenter-application": "service_name", "datacenter-server": "server_id"} {
		if c, _ := set.Contract(name); c.Entity != want {
			t.Errorf("the entity of %s is %s", name, c.Entity)
		}
	}
}

func BenchmarkReader(b *testing.B) {
	set, err := Open("")
	if err != nil {
		b.Fatal(err)
	}
	c, _ := set.Contract("datacenter-server")
	v := c.Check([]byte(`{"type":"server_metric","timestamp":"2026-01-24T12:34:56.000000+00:00","server_id":"srv-001","rack_id":"R01","datacenter_zone":"marseille-1","cpu_usage_percent":31.42,"memory_usage_percent":44.1,"memory_available_gb":23.5,"disk_usage_percent":55.3,"disk_read_mbps":20.1,"disk_write_mbps":11.7,"network_rx_mbps":150.2,"network_tx_mbps":98.4,"cpu_temperature_celsius":49.8,"power_consumption_watts":251.3}`), time.Now())
	r := c.Reader()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Read(v.Body); err != nil {
			b.Fatal(err)
		}
	}
}

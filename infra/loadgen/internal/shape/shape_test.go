package shape

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

var notebook = shop.Product{
	Index: shop.NoIndex, ID: 1306133, CategoryID: 2053013558920217191,
	CategoryCode: "computers.notebook", Brand: "xiaomi", Price: 1029.37,
}

func event() *shop.Event {
	return &shop.Event{
		Time: time.Date(2019, 10, 1, 2, 30, 12, 0, time.UTC).Unix(), Type: shop.View, Product: &notebook,
		User: 512900744, Session: "76b918d5-b344-41fc-8632-baf222ec760f",
	}
}

const connectGolden = `{"schema":{"type":"struct","fields":[` +
	`{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},{"name":"product_id","type":"long"},` +
	`{"name":"category_id","type":"long"},{"name":"category_code","type":["null","string"],"default":null},` +
	`{"name":"brand","type":["null","string"],"default":null},{"name":"price","type":"double"},` +
	`{"name":"user_id","type":"long"},{"name":"user_session","type":"string"}]},` +
	`"payload":{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,"category_id":2053013558920217191,` +
	`"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,` +
	`"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"}}`

func TestAppend_connectGolden(t *testing.T) {
	e := NewEncoder(Connect, Zoned)
	got := string(e.Append(nil, &Change{Op: 'c', After: event()}))
	if diff := cmp.Diff(connectGolden, got); diff != "" {
		t.Errorf("envelope (-want +got):\n%s", diff)
	}
}

func TestAppend_missingTextsAreNull(t *testing.T) {
	ev := event()
	p := notebook
	p.CategoryCode, p.Brand, p.Price = "", "", 20
	ev.Product = &p
	got := string(NewEncoder(Connect, Zoned).Append(nil, &Change{Op: 'c', After: ev}))
	if want := `"category_code":null,"brand":null,"price":20,`; !strings.Contains(got, want) {
		t.Errorf("%s\ndoes not contain %s", got, want)
	}
}

func TestAppend_textsAreQuoted(t *testing.T) {
	ev := event()
	p := notebook
	p.Brand = "o\"neill\\\t\u00e9"
	ev.Product = &p
	var message struct{ Payload struct{ Brand string } }
	if err := json.Unmarshal(NewEncoder(Connect, Zoned).Append(nil, &Change{Op: 'c', After: ev}), &message); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Brand, message.Payload.Brand); diff != "" {
		t.Errorf("brand (-want +got):\n%s", diff)
	}
}

const row = `{"event_time":"2019-10-01T02:30:12Z","event_type":"view","product_id":1306133,"category_id":2053013558920217191,` +
	`"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,` +
	`"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"}`

func TestAppend_cdcFlat(t *testing.T) {
	got := string(NewEncoder(CDCFlat, Zoned).Append(nil, &Change{Op: 'c', After: event()}))
	want := `{"schema":{"type":"struct","fields":[` +
		`{"type":"string","optional":false,"name":"io.debezium.time.ZonedTimestamp","version":1,"field":"event_time"},` +
		`{"type":"string","optional":true,"field":"event_type"},{"type":"int64","optional":true,"field":"product_id"},` +
		`{"type":"int64","optional":true,"field":"category_id"},{"type":"string","optional":true,"field":"category_code"},` +
		`{"type":"string","optional":true,"field":"brand"},{"type":"double","optional":true,"field":"price"},` +
		`{"type":"int64","optional":true,"field":"user_id"},{"type":"string","optional":true,"field":"user_session"}],` +
		`"optional":false,"name":"tracking_postgres_cdc.public.events.Value"},"payload":` + row + `}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

func TestAppend_cdcFull(t *testing.T) {
	cheaper := notebook
	cheaper.Price = 926.43
	after := event()
	after.Product = &cheaper
	for op, c := range map[string]struct {
		change        Change
		before, after string
	}{
		"c": {Change{Op: 'c', After: event(), Position: 2}, "null", row},
		"u": {Change{Op: 'u', Before: event(), After: after, Position: 2}, row, strings.Replace(row, "1029.37", "926.43", 1)},
		"d": {Change{Op: 'd', Before: event(), Position: 2}, row, "null"},
	} {
		got := NewEncoder(CDCFull, Zoned).Append(nil, &c.change)
		var message struct {
			Schema struct {
				Name   string
				Fields []struct {
					Field  string
					Fields []struct{ Field, Name string }
				}
			}
			Payload json.RawMessage
		}
		if err := json.Unmarshal(got, &message); err != nil {
			t.Fatalf("op %s: %v", op, err)
		}
		want := `{"before":` + c.before + `,"after":` + c.after +
			`,"source":{"version":"1.9.7.Final","connector":"postgresql","name":"tracking_postgres_cdc","ts_ms":1569897012000,` +
			`"snapshot":"false","db":"cdc","sequence":"[\"24023440\",\"24023752\"]","schema":"public","table":"events","txId":558,` +
			`"lsn":24023752,"xmin":null},"op":"` + op + `","ts_ms":1569897012250,"transaction":null}`
		if diff := cmp.Diff(want, string(message.Payload)); diff != "" {
			t.Errorf("payload for op %s (-want +got):\n%s", op, diff)
		}
		if message.Schema.Name != "tracking_postgres_cdc.public.events.Envelope" {
			t.Errorf("schema name %q", message.Schema.Name)
		}
		var names []string
		for _, f := range message.Schema.Fields {
			names = append(names, f.Field)
		}
		if diff := cmp.Diff([]string{"before", "after", "source", "op", "ts_ms", "transaction"}, names); diff != "" {
			t.Errorf("schema fields (-want +got):\n%s", diff)
		}
		if got := message.Schema.Fields[1].Fields[0].Name; got != "io.debezium.time.ZonedTimestamp" {
			t.Errorf("logical type of event_time is %q", got)
		}
	}
}

func TestAppend_timeTexts(t *testing.T) {
	for name, want := range map[string]string{
		"zoned":          `"2019-10-01T02:30:12Z"`,
		"zoned-fraction": `"2019-10-01T02:30:12.000000Z"`,
		"space":          `"2019-10-01 02:30:12+0000"`,
		"space-fraction": `"2019-10-01 02:30:12.000000+0000"`,
		"micros":         `1569897012000000`,
		"millis":         `1569897012000`,
	} {
		text, err := ParseTimeText(name)
		if err != nil {
			t.Fatal(err)
		}
		got := string(NewEncoder(CDCFlat, text).Append(nil, &Change{Op: 'c', After: event()}))
		if !strings.Contains(got, `"payload":{"event_time":`+want+`,`) {
			t.Errorf("%s: %s\ndoes not contain %s", name, got, want)
		}
	}
}

func TestAppendRowKey(t *testing.T) {
	got := string(NewEncoder(CDCFlat, Zoned).AppendRowKey(nil, &Change{Op: 'c', After: event()}))
	want := `{"schema":{"type":"struct","fields":[{"type":"string","optional":false,"name":"io.debezium.time.ZonedTimestamp","version":1,"field":"event_time"}],` +
		`"optional":false,"name":"tracking_postgres_cdc.public.events.Key"},"payload":{"event_time":"2019-10-01T02:30:12Z"}}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("key (-want +got):\n%s", diff)
	}
}

func TestChanges_areConsistent(t *testing.T) {
	sim, err := shop.New(shop.Config{Seed: 1, Start: time.Unix(1569888000, 0), Density: 20, Products: 1000, Users: 1000})
	if err != nil {
		t.Fatal(err)
	}
	changes, err := NewChanges(1, 0.1, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	type key struct {
		session string
		time    int64
	}
	table := map[key]float64{}
	ops := map[byte]int{}
	position := uint64(0)
	var ev shop.Event
	for range 20_000 {
		sim.Next(&ev)
		for _, c := range changes.Insert(&ev) {
			ops[c.Op]++
			if c.Position != position {
				t.Fatalf("position %d, want %d", c.Position, position)
			}
			position++
			k := key{c.Row().Session, c.Row().Time}
			if c.Before != nil {
				if price, ok := table[k]; !ok || price != c.Before.Product.Price {
					t.Fatalf("op %c: before has price %v, the table %v (%t)", c.Op, c.Before.Product.Price, price, ok)
				}
			}
			if c.After != nil {
				table[k] = c.After.Product.Price
			} else {
				delete(table, k)
			}
		}
	}
	if ops['c'] != 20_000 || ops['u'] < 1800 || ops['u'] > 2200 || ops['d'] < 850 || ops['d'] > 1150 {
		t.Errorf("ops: %v", ops)
	}
}

// What each bad kind is, seen by a plain JSON reader.
func TestAppendBad_isBadInItsWay(t *testing.T) {
	for _, format := range []Format{Connect, CDCFlat, CDCFull} {
		e := NewEncoder(format, Zoned)
		good := e.Append(nil, &Change{Op: 'c', After: event()})
		for k := Kind(1); int(k) <= Kinds; k++ {
			seen := map[string]bool{}
			for i := range uint64(50) {
				got := e.AppendBad(nil, &Change{Op: 'c', After: event()}, k, rand.NewPCG(i, 0))
				seen[string(got)] = true
				if bytes.Equal(got, good) {
					t.Fatalf("%v %v: the message is the good one", format, k)
				}
				isJSON := json.Valid(got)
				if want := k != mustKind(t, "nan_price") && k != mustKind(t, "malformed_json") &&
					k != mustKind(t, "not_json") && k != mustKind(t, "empty_body"); isJSON != want {
					t.Errorf("%v %v: valid JSON is %t, want %t:\n%s", format, k, isJSON, want, got)
				}
				if utf8.Valid(got) == (k == mustKind(t, "bad_utf8")) {
					t.Errorf("%v %v: valid UTF-8 is %t:\n%s", format, k, utf8.Valid(got), got)
				}
			}
			if varied := k == mustKind(t, "malformed_json") || k == mustKind(t, "missing_field") || k == mustKind(t, "null_field"); varied != (len(seen) > 1) {
				t.Errorf("%v %v: %d different messages", format, k, len(seen))
			}
			if again := e.Append(nil, &Change{Op: 'c', After: event()}); !bytes.Equal(again, good) {
				t.Fatalf("%v %v: spoils later good messages", format, k)
			}
		}
	}
}

func TestAppendBad_kindOneIsTheReferences(t *testing.T) {
	got := string(NewEncoder(Connect, Zoned).AppendBad(nil, &Change{Op: 'c', After: event()}, 1, rand.NewPCG(0, 0)))
	if diff := cmp.Diff(strings.Replace(connectGolden, "1029.37", "-100", 1), got); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

func mustKind(t *testing.T, name string) Kind {
	t.Helper()
	kinds, err := ParseKinds(name, Connect)
	if err != nil {
		t.Fatal(err)
	}
	return kinds[0]
}

func TestParseKinds(t *testing.T) {
	all, err := ParseKinds("all", Connect)
	if err != nil || len(all) != Kinds {
		t.Errorf("all: %v, %v", all, err)
	}
	two, err := ParseKinds("price_zero, price_negative", CDCFlat)
	if diff := cmp.Diff([]Kind{2, 1}, two); diff != "" || err != nil {
		t.Errorf("two kinds: %v (-want +got):\n%s", err, diff)
	}
	if _, err := ParseKinds("price_zero,nonsense", Connect); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("error %v does not name what is wrong", err)
	}
	if cdc, err := ParseKinds("all", CDCFull); err != nil || len(cdc) != Kinds-1 {
		t.Errorf("all of CDC: %v, %v", cdc, err)
	}
	if _, err := ParseKinds("empty_body", CDCFull); err == nil {
		t.Error("an empty body is bad in CDC, want an error")
	}
}

func BenchmarkAppend(b *testing.B) {
	sim, err := shop.New(shop.Config{Seed: 1, Start: time.Unix(1569888000, 0), Density: 20, Products: 20_000, Users: 100_000})
	if err != nil {
		b.Fatal(err)
	}
	for _, format := range []Format{Connect, CDCFlat, CDCFull} {
		b.Run(format.String(), func(b *testing.B) {
			e := NewEncoder(format, Zoned)
			var ev shop.Event
			var buf []byte
			c := Change{Op: 'c', After: &ev}
			b.ReportAllocs()
			for b.Loop() {
				sim.Next(&ev)
				buf = e.Append(buf[:0], &c)
			}
			b.SetBytes(int64(len(buf)))
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

package features

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const verdict = `{"schema":{"type":"struct","fields":[{"name":"payload","type":"string"}]},"payload":{"event_time":"2019-10-06 02:30:12 UTC",
 "event_type":"cart","product_id":1306133,"category_id":2053013558920217191,"category_code":"appliances.kitchen.hood","brand":"xiaomi",
 "price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"},
 "valid":"VALID","error_message":null,"error_type":null,"metadata":{"processed_at":"2025-01-07T09:00:00.000001"}}`

func TestFeaturesOfAVerdict(t *testing.T) {
	e, err := ParseEvent([]byte(verdict))
	if err != nil {
		t.Fatal(err)
	}
	want := Event{
		Time: time.Date(2019, 10, 6, 2, 30, 12, 0, time.UTC), Type: "cart", Session: "76b918d5-b344-41fc-8632-baf222ec760f",
		UserID: 512900744, ProductID: 1306133, CategoryCode: "appliances.kitchen.hood", Brand: "xiaomi", Price: 1029.37,
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got := map[string]any{}
	for i, v := range Of(&e, 3) {
		got[All()[i].Name] = v.Any()
	}
	if diff := cmp.Diff(map[string]any{
		"brand": "xiaomi", "price": 1029.37, "event_weekday": int64(0), // a Sunday
		"category_code_level1": "appliances", "category_code_level2": "kitchen", "activity_count": int64(3),
	}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	ready := OfEvent(&e, e.Hash(), 3, time.Date(2025, 1, 7, 9, 0, 0, 123456000, time.UTC))
	line := `{"event_timestamp":"2019-10-06 02:30:12 UTC","user_id":512900744,"product_id":1306133,` +
		`"user_session":"76b918d5-b344-41fc-8632-baf222ec760f","event_type":"cart","category_code":"appliances.kitchen.hood",` +
		`"brand":"xiaomi","price":1029.37,"event_weekday":0,"category_code_level1":"appliances","category_code_level2":"kitchen",` +
		`"activity_count":3,"record_hash":"` + fmt.Sprintf("%x", e.Hash()) + `","processed_at":"2025-01-07T09:00:00.123456"}`
	if diff := cmp.Diff(line, string(ready.AppendJSON(nil))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatAnEventMustHave(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"payload", `"payload":{`, `"load":{`, "field payload should be an object"},
		{"payload null", `"payload":{"event_time"`, `"payload":null,"x":{"event_time"`, "field payload should be an object"},
		{"time", `2019-10-06 02`, `2019-10-32 02`, "field event_time should be a time"},
		{"month", `2019-10-06 02`, `2019-02-30 02`, "field event_time should be a time"},
		{"no time", `"event_time"`, `"event_tide"`, "field event_time is required"},
		{"type", `"cart"`, `""`, "field event_type is required"},
		{"product", `1306133`, `1.5`, "field product_id should be a 64-bit integer"},
		{"user", `512900744`, `99999999999999999999`, "field user_id should be a 64-bit integer"},
		{"user null", `512900744`, `null`, "field user_id is required"},
		{"session", `"76b918d5-b344-41fc-8632-baf222ec760f"`, `7`, "field user_session should be a string"},
		{"price", `1029.37`, `"1029"`, "field price should be a number"},
		{"infinite price", `1029.37`, `1e999`, "field price should be a number"},
		{"price word", `1029.37`, `Infinity`, "field price should be a number"},
		{"brand", `"xiaomi"`, `{}`, "field brand should be a string"},
		{"not UTF-8", `"xiaomi"`, "\"\xff\"", "field brand should be UTF-8"},
		{"escape", `"xiaomi"`, `"\x"`, "field brand should be a string: "},
		{"op", `"valid":`, `"op":"x","valid":`, `op should be one of: c, r, u, d, is "x"`},
		{"lsn", `"valid":`, `"lsn":-1,"valid":`, "lsn should be a log position"},
		{"cut off", "}\n ]", "", "should be a JSON object"},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := strings.Replace(verdict, c.old, c.new, 1)
			if c.new == "" {
				body = verdict[:len(verdict)/2]
			}
			_, err := ParseEvent([]byte(body))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestDeletedRowNeedsNothing(t *testing.T) {
	e, err := ParseEvent([]byte(`{"payload":{"product_id":7,"brand":null},"op":"d","lsn":18446744073709551615,"valid":"VALID"}`))
	if diff := cmp.Diff(Event{ProductID: 7, Op: "d", LSN: 1<<64 - 1}, e); diff != "" || err != nil {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

// However an event came, from the producer or from a database, its time is the same.
func TestTimesInAllSpellings(t *testing.T) {
	want := time.Date(2019, 10, 1, 2, 30, 12, 500000000, time.UTC)
	for _, s := range []string{
		`"2019-10-01T02:30:12.5Z"`, `"2019-10-01T04:30:12.500000+02:00"`, `"2019-10-01 02:30:12.5+0000"`, `"2019-10-01 02:30:12.5+00:00"`,
		`"2019-10-01 02:30:12.5 UTC"`, `"2019-10-01T02:30:12.500000999Z"`, `1569897012500000`, `1569897012500`,
	} {
		if got, err := readTime([]byte(s)); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if got, err := readTime([]byte(`"2020-02-29 23:59:59 UTC"`)); err != nil || !got.Equal(time.Date(2020, 2, 29, 23, 59, 59, 0, time.UTC)) {
		t.Errorf("a leap day is %v, %v", got, err)
	}
}

// randomEvents are events as different as validation lets them be.
func randomEvents(rnd *rand.Rand, n int) []Event {
	codes := []string{"", ".", "a", "a.b", "a.b.c", "a..c", ".b", "..", "appliances.kitchen.hood", "ä.ö.ü", "a.", "a b.c d"}
	brands := []string{"", "xiaomi", "l'oréal", `say "x" \ y`, "日本", "a\tb", "<&>", "\u2028"}
	types := []string{"view", "cart", "purchase", "remove_from_cart"}
	list := make([]Event, n)
	for i := range list {
		at := time.UnixMicro(rnd.Int64N(4e15) - 1e15).UTC()
		if rnd.IntN(2) == 0 {
			at = at.Truncate(time.Second)
		}
		list[i] = Event{
			Time: at, Type: types[rnd.IntN(len(types))], Session: fmt.Sprintf("session %d", rnd.IntN(20)),
			//nolint:staticcheck // SA4000: they differ
			UserID: rnd.Int64() - rnd.Int64(), ProductID: rnd.Int64N(100), CategoryCode: codes[rnd.IntN(len(codes))], Brand: brands[rnd.IntN(len(brands))],
			Price: []float64{rnd.Float64() * 1000, 0.01, 1e-9, 1e300, 5, 1029.37}[rnd.IntN(6)],
		}
	}
	return list
}

// What SQL computes of a fact is what Go computes of its event, for every feature.
func TestGoAndSQLAgree(t *testing.T) {
	db, err := warehouse.Config{URL: pgtest.URL(t), MaxConns: 1}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := randomEvents(rand.New(rand.NewPCG(1, 2)), 1000)
	null := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	var rows [][]any
	want := map[[32]byte][]any{}
	for i := range list {
		e, hash, rank := &list[i], list[i].Hash(), int64(i+1)
		if want[hash] != nil {
			continue
		}
		rows = append(rows, []any{int64(i), int64(i), int64(i), e.UserID, e.ProductID, int64(1), e.Price, e.Time, e.Time, e.Time.Hour(), 1, rank, e.Type,
			hash[:], e.Session, null(e.CategoryCode), null(e.Brand)})
		for _, v := range Of(e, rank) {
			want[hash] = append(want[hash], v.Any())
		}
	}
	_, err = db.CopyFrom(t.Context(), pgx.Identifier{"dwh", "fact_events"}, []string{"event_id", "position", "version", "user_id", "product_id",
		"category_id", "price", "event_timestamp", "event_date", "event_hour", "events_in_session", "activity_count", "event_type", "record_hash",
		"user_session", "category_code", "brand"}, pgx.CopyFromRows(rows))
	if err != nil {
		t.Fatal(err)
	}
	got := map[[32]byte][]any{}
	columns := "f.record_hash"
	for _, f := range All() {
		columns += ", " + f.SQL
	}
	found, err := db.Query(t.Context(), `SELECT `+columns+` FROM dwh.fact_events f`)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for found.Next() {
		v, err := found.Values()
		if err != nil {
			t.Fatal(err)
		}
		got[[32]byte(v[0].([]byte))] = v[1:]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Go (-) and SQL (+):\n%s", diff)
	}
}

func TestReadyIsReadAsWritten(t *testing.T) {
	for i, e := range randomEvents(rand.New(rand.NewPCG(3, 4)), 1000) {
		want := OfEvent(&e, e.Hash(), int64(i), time.UnixMicro(rand.Int64N(2e15)).UTC())
		line := want.AppendJSON(nil)
		if !json.Valid(line) {
			t.Fatalf("not JSON: %s", line)
		}
		got, err := ParseReady(line)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Value{})); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		for j, v := range want.Features {
			if back, err := All()[j].Type.ParseText(string(v.AppendText(nil))); err != nil || back != v {
				t.Fatalf("%s: %v became %v, %v", All()[j].Name, v.Any(), back.Any(), err)
			}
		}
	}
}

func TestWhatReadyMustHave(t *testing.T) {
	e, err := ParseEvent([]byte(verdict))
	if err != nil {
		t.Fatal(err)
	}
	ready := OfEvent(&e, e.Hash(), 3, time.Now())
	line := string(ready.AppendJSON(nil))
	for _, name := range append(readyNames[:], "brand", "price", "event_weekday", "category_code_level1", "category_code_level2", "activity_count") {
		_, err := ParseReady([]byte(strings.Replace(line, `"`+name+`":`, `"x":`, 1)))
		if want := "field " + name + " is required"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", name, err)
		}
		_, err = ParseReady([]byte(strings.Replace(line, `"`+name+`":`, `"`+name+`":[],"x":`, 1)))
		if want := "field " + name + " should be"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with a list for %s: %v", name, err)
		}
	}
}

// Whatever comes, nothing panics; what encoding/json reads is read the same; and a
// message that was read is written as it was understood.
func FuzzParse(f *testing.F) {
	f.Add([]byte(verdict))
	e, _ := ParseEvent([]byte(verdict))
	ready := OfEvent(&e, e.Hash(), 3, time.Unix(0, 0))
	f.Add(ready.AppendJSON(nil))
	f.Add([]byte(`{"payload":{"brand":"\u00e9\"]}","x":[1,{"a":"]"}]},"op":"d"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		seen := map[string]json.RawMessage{}
		err := members(b, func(name, value []byte) error {
			seen[string(name)] = value
			return nil
		})
		plain := map[string]json.RawMessage{}
		if json.Unmarshal(b, &plain) == nil && plain != nil {
			if err != nil {
				t.Fatalf("not read: %v", err)
			}
			for name, value := range plain {
				if got, ok := seen[name]; ok && string(got) != string(value) {
					t.Fatalf("member %q is %s, not %s", name, value, got)
				}
			}
		}
		if e, err := ParseEvent(b); err == nil && e.Op != "d" {
			r := OfEvent(&e, e.Hash(), 1, time.Unix(0, 0).UTC())
			back, err := ParseReady(r.AppendJSON(nil))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r, back, cmp.AllowUnexported(Value{})); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		}
		if r, err := ParseReady(b); err == nil {
			if again, err := ParseReady(r.AppendJSON(nil)); err != nil || !cmp.Equal(r, again, cmp.AllowUnexported(Value{})) {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
	})
}

func BenchmarkParseEvent(b *testing.B) {
	b.SetBytes(int64(len(verdict)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseEvent([]byte(verdict)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReady(b *testing.B) {
	e, err := ParseEvent([]byte(verdict))
	if err != nil {
		b.Fatal(err)
	}
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		r := OfEvent(&e, e.Hash(), 3, e.Time)
		dst = r.AppendJSON(dst[:0])
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

func TestObjectBecomesCheckedGold(t *testing.T) {
	w := newWorld(t)
	s := "76b918d5-b344-41fc-8632-baf222ec760f"
	o := w.put(key(3, 100), lines(3, 100,
		shopEvent{"2019-10-06 02:30:12 UTC", "view", 1306133, 2053013558920217191, "computers.notebook", "xiaomi", 1029.37, 512900744, s, ""},
		shopEvent{"2019-10-06 02:31:00 UTC", "cart", 1306133, 2053013558920217191, "computers.notebook", "xiaomi", 1029.37, 512900744, s, ""},
		shopEvent{"2019-10-06 02:32:00 UTC", "purchase", 1306133, 2053013558920217191, "computers.notebook", "xiaomi", 999, 512900744, s, ""}))
	if diff := cmp.Diff(all, w.load(o)); diff != "" {
		t.Fatalf("replies (-want +got):\n%s", diff)
	}
	for sql, want := range map[string][]string{
		`SELECT concat_ws(' ', event_type, price, event_timestamp, event_date, event_hour, events_in_session, activity_count) FROM dwh.fact_events ORDER BY position`: {
			"view 1029.37 2019-10-06 02:30:12 2019-10-06 2 3 1", "cart 1029.37 2019-10-06 02:31:00 2019-10-06 2 3 2", "purchase 999 2019-10-06 02:32:00 2019-10-06 2 3 3"},
		`SELECT concat_ws(' ', product_id, brand, price, price_tier, first_seen, last_seen) FROM dwh.dim_product`: {"1306133 xiaomi 999 high 2019-10-06 02:30:12 2019-10-06 02:32:00"},
		`SELECT concat_ws(' ', price, first_seen, last_seen) FROM dwh.product_price_history ORDER BY 1`: {
			"1029.37 2019-10-06 02:30:12 2019-10-06 02:31:00", "999 2019-10-06 02:32:00 2019-10-06 02:32:00"},
		`SELECT concat_ws(' ', category_id, category_code, category_l1, category_l2, coalesce(category_l3, '-')) FROM dwh.dim_category`:      {"2053013558920217191 computers.notebook computers notebook -"},
		`SELECT concat_ws(' ', event_date, weekday, day_of_week, is_weekend) FROM dwh.dim_date`:                                              {"2019-10-06 0 Sunday t"},
		`SELECT concat_ws(' ', activity_count, is_purchased, event_weekday, category_code_level2, price) FROM dwh.vw_ml_purchase_prediction`: {"2 1 0 notebook 1029.37"},
		`SELECT concat_ws(' ', event_count, unique_products_viewed, revenue) FROM dwh.vw_user_session_summary`:                               {"3 1 999"},
		// Of the reference's way to write the hash's text.
		`SELECT encode(record_hash, 'hex') FROM dwh.fact_events WHERE event_type = 'view' AND record_hash = sha256('1306133|2019-10-06 02:30:12 UTC|512900744|view|76b918d5-b344-41fc-8632-baf222ec760f')`: {
			query(t, w.db, `SELECT encode(record_hash, 'hex') FROM dwh.fact_events WHERE event_type = 'view'`)[0]},
		`SELECT concat_ws(' ', step, state, rows) FROM etl.runs ORDER BY run_id`:                      {"bronze succeeded 3", "silver succeeded 3", "gold succeeded 3", "check succeeded 3"},
		`SELECT concat_ws(' ', stage, lines, expected, rows, duplicates, quarantined) FROM etl.loads`: {"checked 3 3 3 0 0"},
		`SELECT concat_ws(' ', layer, blocked) FROM etl.quality_reports ORDER BY 1`:                   {"bronze f", "gold f", "silver f"},
	} {
		if diff := cmp.Diff(want, query(t, w.db, sql)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sql, diff)
		}
	}
	reports := 0
	for _, err := range w.store.List(t.Context(), w.reports, "quality/", "") {
		if err != nil {
			t.Fatal(err)
		}
		reports++
	}
	if reports != 3 {
		t.Errorf("%d reports in the lake, want one a layer", reports)
	}
}

// The lake replaces an object by one with more lines under the same key.
func TestObjectThatGrowsOnlyAdds(t *testing.T) {
	w := newWorld(t)
	es := shop(rng(1), 0, 60)
	for _, n := range []int{10, 10, 35, 60} { // the second is the same generation
		if diff := cmp.Diff(all, w.load(w.put(key(0, 0), lines(0, 0, es[:n]...)))); diff != "" {
			t.Fatalf("replies (-want +got):\n%s", diff)
		}
	}
	want := []string{"10 10 0", "35 25 10", "60 25 35"}
	if diff := cmp.Diff(want, query(t, w.db, `SELECT concat_ws(' ', lines, rows, duplicates) FROM etl.loads ORDER BY load_id`)); diff != "" {
		t.Errorf("loads (-want +got):\n%s", diff)
	}
	got := query(t, w.db, `SELECT concat_ws(' ', step, state, rows) FROM etl.runs WHERE run_id BETWEEN 5 AND 8 ORDER BY run_id`)
	if diff := cmp.Diff([]string{"bronze succeeded 0", "silver succeeded 0", "gold succeeded 0", "check succeeded 0"}, got); diff != "" {
		t.Errorf("a run with nothing new (-want +got):\n%s", diff)
	}
	w.wantRebuild()
}

// Two processes of the lake with other chunk sizes leave objects that overlap.
func TestObjectsThatOverlap(t *testing.T) {
	w := newWorld(t)
	es := shop(rng(2), 0, 60)
	w.load(w.put(key(0, 0), lines(0, 0, es[:40]...)))
	w.load(w.put(key(0, 20), lines(0, 20, es[20:]...)))
	got := query(t, w.db, `SELECT concat_ws(' ', lines, rows, duplicates) FROM etl.loads ORDER BY load_id`)
	if diff := cmp.Diff([]string{"40 40 0", "40 20 20"}, got); diff != "" {
		t.Errorf("loads (-want +got):\n%s", diff)
	}
	w.wantRebuild()
}

const session = "76b918d5-b344-41fc-8632-baf222ec760f"

func event1(op string) shopEvent {
	return shopEvent{"2019-10-06 02:30:12 UTC", "cart", 1, 2, "a.b.c", "x", 10, 3, session, op}
}

func TestDuplicatesCorrectionsAndDeletes(t *testing.T) {
	dear := event1("")
	dear.price = 20
	cdc := event1("c")
	cdc.at = "2019-10-06T02:30:12Z"
	micros := event1("c")
	micros.at = "2019-10-06 02:30:12+0000"
	updated := event1("u")
	updated.price, updated.brand = 30, "y"
	twice := updated
	twice.price = 40
	deleted := event1("d")
	other := event1("")
	other.kind = "purchase"
	s3 := laketest.Start(t)
	const facts = `SELECT concat_ws(' ', event_type, price, brand, activity_count, events_in_session) FROM dwh.fact_events ORDER BY position`
	for _, test := range []struct {
		name    string
		records []shopEvent
		want    []string
	}{
		{"the first of two counts", []shopEvent{event1(""), dear}, []string{"cart 10 x 1 1"}},
		{"one event by three ways", []shopEvent{event1(""), cdc, micros}, []string{"cart 10 x 1 1"}},
		{"the last update counts", []shopEvent{event1("c"), updated, twice, dear}, []string{"cart 40 y 1 1"}},
		{"an update alone is an event", []shopEvent{updated}, []string{"cart 30 y 1 1"}},
		{"deleted", []shopEvent{event1("c"), deleted}, []string{}},
		{"deleted and inserted again", []shopEvent{event1("c"), deleted, event1("c")}, []string{"cart 10 x 1 1"}},
		{"deleted, and never there", []shopEvent{deleted}, []string{}},
		{"a deleted event counts in the ranks, not in the session", []shopEvent{event1("c"), other, deleted}, []string{"purchase 10 x 2 1"}},
		{"view and cart of a second differ", []shopEvent{event1(""), other}, []string{"cart 10 x 1 2", "purchase 10 x 2 2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorldOn(t, s3)
			// An object each, once in order and once in the opposite order.
			var objects []object
			for i, e := range test.records {
				objects = append(objects, w.put(key(0, int64(i)), lines(0, int64(i), e)))
			}
			for _, o := range objects {
				w.load(o)
			}
			if diff := cmp.Diff(test.want, query(t, w.db, facts)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			_, db, steps := w.warehouse()
			for _, o := range slices.Backward(objects) {
				chain(t, steps, created(o))
			}
			if diff := cmp.Diff(dump(t, w.db), dump(t, db)); diff != "" {
				t.Errorf("gold by the order of loads (-in order +opposite):\n%s", diff)
			}
			if len(test.want) == 0 {
				if left := query(t, db, `SELECT 'x' FROM dwh.dim_user, dwh.dim_product, dwh.dim_category, dwh.dim_date, dwh.product_price_history`); len(left) > 0 {
					t.Error("dimensions of deleted facts are left")
				}
			}
		})
	}
}

// A row that was never valid can be deleted, and names what was wrong with it again: that
// does not stop the load, whose other events become gold.
func TestDeleteOfWhatWasNeverValidStopsNothing(t *testing.T) {
	w := newWorld(t)
	never := event1("d")
	never.kind, never.price = "purchase", -100
	if diff := cmp.Diff(all, w.load(w.put(key(0, 0), lines(0, 0, event1(""), never)))); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"cart 10"}, query(t, w.db, `SELECT concat_ws(' ', event_type, price) FROM dwh.fact_events`)); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestDeletesThatNameLessThanTheRowAreKeptInBronze(t *testing.T) {
	w := newWorld(t)
	data := lines(0, 0, event1("c"))
	data = append(data, line(0, 1, `{"payload":{"product_id":1},"op":"d","valid":"VALID"}`)...)
	data = append(data, line(0, 2, "")...) // a Kafka tombstone
	if diff := cmp.Diff(all, w.load(w.put(key(0, 0), data))); diff != "" {
		t.Fatalf("replies (-want +got):\n%s", diff)
	}
	if got := query(t, w.db, `SELECT count(*)::text FROM bronze.events WHERE op = 'd' AND record_hash IS NULL`); got[0] != "2" {
		t.Errorf("%s in bronze", got[0])
	}
	if got := query(t, w.db, `SELECT count(*)::text FROM dwh.fact_events`); got[0] != "1" {
		t.Errorf("%s facts", got[0])
	}
	if got := query(t, w.db, `SELECT concat_ws(' ', success, blocked) FROM etl.quality_reports WHERE layer = 'bronze'`); got[0] != "f f" {
		t.Errorf("the report (success, blocked) says %s", got[0])
	}
}

func TestBadLinesGoToQuarantineAndTheRestGoesOn(t *testing.T) {
	w := newWorld(t)
	good := event1("")
	long := good
	long.session = strings.Repeat("s", 300)
	nul := good
	nul.brand = "a\x00b"
	noTime := good
	noTime.at = "yesterday"
	huge := append(bytes.Repeat([]byte("x"), lake.MaxLine+10), '\n')
	data := slices.Concat(
		lines(0, 0, good),
		[]byte("{\"payload\":{\"event_time\":\"2019\n"), // truncated
		[]byte("\xff\xfe{}\n"),                          // wrong encoding
		huge,
		lines(0, 4, long, nul, noTime),
		line(0, 7, `{"raw_data":"?"}`),
		line(0, 8, `{"payload":{"event_time":"2019-10-01 00:00:00 UTC","event_type":"view","product_id":99999999999999999999}}`),
		line(0, 9, `{"payload":{"event_time":"2019-10-01 00:00:00 UTC","event_type":"view","product_id":1,"category_id":1,"user_id":1,"user_session":"s"}}`),
		lines(0, 10, good),
	)
	if diff := cmp.Diff(all, w.load(w.put(key(0, 0), data))); diff != "" {
		t.Fatalf("replies (-want +got):\n%s", diff)
	}
	got := query(t, w.db, `SELECT concat(line, ': ', reason) FROM etl.quarantine ORDER BY line`)
	want := []string{
		"2: not JSON", "3: not JSON", "4: 8388619 bytes", "5: user_session is longer than 255", "6: brand has a NUL", "7: event_time is no time",
		"8: there is no payload", "9: product_id is no 64-bit integer", "10: price is missing",
	}
	if len(got) != len(want) {
		t.Fatalf("quarantine: %q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("%q, want %q", got[i], want[i])
		}
	}
	if got := query(t, w.db, `SELECT concat_ws(' ', lines, rows, quarantined) FROM etl.loads`); got[0] != "11 2 9" {
		t.Errorf("load: %s", got[0])
	}
}

// An upload that was cut off in the middle of a line.
func TestTruncatedObjectKeepsWhatIsWhole(t *testing.T) {
	w := newWorld(t)
	es := shop(rng(4), 0, 20)
	data := lines(0, 0, es...)
	o := w.put(key(0, 0), data[:len(data)-40])
	if _, err := w.store.Put(t.Context(), w.bucket, o.Key, data[:len(data)-40], "application/x-ndjson", map[string]string{metaRecords: "20"}, lake.Condition{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, w.load(o)); diff != "" {
		t.Fatalf("replies (-want +got):\n%s", diff)
	}
	if got := query(t, w.db, `SELECT concat_ws(' ', lines, rows, quarantined) FROM etl.loads`); got[0] != "20 19 1" {
		t.Errorf("load: %s", got[0])
	}
	// The lake writes it again, whole.
	w.put(o.Key, data)
	if diff := cmp.Diff(all, w.load(o)); diff != "" {
		t.Fatalf("replies (-want +got):\n%s", diff)
	}
	if got := query(t, w.db, `SELECT count(*)::text FROM bronze.events`); got[0] != "20" {
		t.Errorf("%s records", got[0])
	}
	w.wantRebuild()
}

func TestBadObjectsAreRefused(t *testing.T) {
	w := newWorld(t)
	var utf16 []byte
	for _, c := range string(lines(0, 30, event1(""))) {
		utf16 = append(utf16, byte(c), byte(c>>8))
	}
	for key, data := range map[string][]byte{
		key(0, 30):                        utf16,
		key(0, 40):                        bytes.Repeat([]byte("x"), 2*lake.MaxLine),
		key(0, 0):                         []byte("PK\x03\x04 not text at all \xff\xfe\x00"),
		key(0, 10):                        []byte(`[{"payload":{}},`),
		"topics/" + topic + "/README.txt": []byte("hello\n"),
		key(0, 20)[:20] + "/x.json":       []byte("{}\n"),
	} {
		o := w.put(key, data)
		for range 2 { // a second delivery gets the same answer
			if diff := cmp.Diff([]string{"failed.v1"}, w.load(o)); diff != "" {
				t.Errorf("%s: replies (-want +got):\n%s", key, diff)
			}
		}
		if got := query(t, w.db, `SELECT refused FROM etl.objects WHERE key = $1`, key); got[0] == "NULL" {
			t.Errorf("%s: no reason", key)
		}
	}
	if got := query(t, w.db, `SELECT DISTINCT state FROM etl.runs`); !cmp.Equal(got, []string{"refused"}) {
		t.Errorf("states: %v", got)
	}
	// One that is repaired is loaded.
	if diff := cmp.Diff(all, w.load(w.put(key(0, 0), lines(0, 0, event1(""))))); diff != "" {
		t.Errorf("replies (-want +got):\n%s", diff)
	}
}

func TestEmptyAndMissingObjectsAreNothingNew(t *testing.T) {
	w := newWorld(t)
	if got := w.load(w.put(key(0, 0), nil)); len(got) != 0 {
		t.Errorf("empty object: replies %v", got)
	}
	if got := w.load(object{w.bucket, key(0, 10)}); len(got) != 0 {
		t.Errorf("missing object: replies %v", got)
	}
	if got := query(t, w.db, `SELECT concat_ws(' ', state, rows) FROM etl.runs`); !cmp.Equal(got, []string{"succeeded 0", "succeeded 0"}) {
		t.Errorf("runs: %v", got)
	}
}

func TestFailedBlockingCheckStopsTheBatchAndOnlyIt(t *testing.T) {
	w := newWorld(t)
	free := event1("")
	free.price = -1
	free.product = 7
	bad := w.put(key(0, 0), lines(0, 0, event1(""), free))
	for range 2 {
		if diff := cmp.Diff([]string{"bronze.loaded.v1", "failed.v1"}, w.load(bad)); diff != "" {
			t.Fatalf("replies (-want +got):\n%s", diff)
		}
	}
	reply, err := w.steps.Handle(t.Context(), *must(w.steps.Handle(t.Context(), created(bad))))
	if err != nil {
		t.Fatal(err)
	}
	alert := map[string]any{"step": reply.Extensions()["step"], "severity": reply.Extensions()["severity"]}
	if diff := cmp.Diff(map[string]any{"step": "silver", "severity": "critical"}, alert); diff != "" {
		t.Errorf("extensions (-want +got):\n%s", diff)
	}
	var p progress
	if err := json.Unmarshal(reply.Data(), &p); err != nil {
		t.Fatal(err)
	}
	want := progress{object: bad, Step: "silver", Reason: "silver: expect_column_values_to_be_between(price)", Checks: []string{"expect_column_values_to_be_between(price)"}}
	if diff := cmp.Diff(want, p, cmp.AllowUnexported(progress{})); diff != "" {
		t.Errorf("data (-want +got):\n%s", diff)
	}
	if got := query(t, w.db, `SELECT count(*)::text FROM silver.events`); got[0] != "0" {
		t.Errorf("%s events of the stopped batch are in silver", got[0])
	}
	if diff := cmp.Diff(all, w.load(w.put(key(0, 10), lines(0, 10, event1(""))))); diff != "" {
		t.Errorf("another object (-want +got):\n%s", diff)
	}
	// An operator lets it go on after all.
	if _, err := w.db.Exec(t.Context(), `UPDATE etl.loads SET stage = 'bronze' WHERE stage = 'stopped'`); err != nil {
		t.Fatal(err)
	}
	w.steps.suites["silver"].Checks = nil
	if diff := cmp.Diff(all, w.load(bad)); diff != "" {
		t.Errorf("released (-want +got):\n%s", diff)
	}
}

func must(e *event.Event, err error) *event.Event {
	if err != nil {
		panic(err)
	}
	return e
}

func TestGoldThatFailsItsCheckIsToldOf(t *testing.T) {
	w := newWorld(t)
	o := w.put(key(0, 0), lines(0, 0, event1("")))
	loaded := must(w.steps.Handle(t.Context(), *must(w.steps.Handle(t.Context(), *must(w.steps.Handle(t.Context(), created(o)))))))
	if _, err := w.db.Exec(t.Context(), `DELETE FROM dwh.dim_user`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := must(w.steps.Handle(t.Context(), *loaded)); got.Type() != events.ETLFailed {
			t.Errorf("reply %s", got.Type())
		}
	}
}

// A lake that lost lines must not pass for complete.
func TestObjectWithFewerLinesThanTheLakeWroteIsStopped(t *testing.T) {
	w := newWorld(t)
	_, err := w.store.Put(t.Context(), w.bucket, key(0, 0), lines(0, 0, event1("")), "application/x-ndjson", map[string]string{metaRecords: "2"}, lake.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"failed.v1"}, w.load(object{w.bucket, key(0, 0)})); diff != "" {
		t.Errorf("replies (-want +got):\n%s", diff)
	}
}

func TestObjectsOfTheSinkConnector(t *testing.T) {
	w := newWorld(t)
	// No _kafka, one object a line or one array an object.
	one := []byte(event1("").value())
	other := event1("")
	other.kind = "view"
	third := other
	third.product = 9
	for offset, data := range map[int64][]byte{0: one, 1: []byte("[" + other.value() + "," + third.value() + "]")} {
		if _, err := w.store.Put(t.Context(), w.bucket, key(5, offset), data, "application/json", nil, lake.Condition{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(all, w.load(object{w.bucket, key(5, offset)})); diff != "" {
			t.Errorf("replies (-want +got):\n%s", diff)
		}
	}
	got := query(t, w.db, `SELECT concat_ws(' ', kafka_partition, kafka_offset) FROM bronze.events ORDER BY kafka_offset`)
	if diff := cmp.Diff([]string{"5 0", "5 1", "5 2"}, got); diff != "" {
		t.Errorf("positions (-want +got):\n%s", diff)
	}
}

func TestEventsThatAreNoneOfOurs(t *testing.T) {
	w := newWorld(t)
	for _, change := range []func(*event.Event){
		func(e *event.Event) { e.SetType(events.BehaviorValidated) },
		func(e *event.Event) { _ = e.SetData(event.ApplicationJSON, []byte(`{}`)) },
		func(e *event.Event) { _ = e.SetData(event.ApplicationJSON, []byte(`[`)) },
	} {
		e := created(object{w.bucket, key(0, 0)})
		change(&e)
		if _, err := w.steps.Handle(t.Context(), e); function.Status(err) != 400 {
			t.Errorf("%v", err)
		}
	}
}

// wantRebuild requires that gold is what the lake gives to an empty warehouse.
func (w *world) wantRebuild() {
	w.t.Helper()
	_, db, steps := w.warehouse()
	for o, err := range w.store.List(w.t.Context(), w.bucket, lake.Root, "") {
		if err != nil {
			w.t.Fatal(err)
		}
		chain(w.t, steps, created(object{w.bucket, o.Key}))
	}
	if diff := cmp.Diff(dump(w.t, db), dump(w.t, w.db)); diff != "" {
		w.t.Errorf("gold (-rebuilt +got):\n%s", diff)
	}
}

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// Events of steps in any order, several times, three at a time, over objects that
// grow meanwhile, give the gold of an orderly load.
func TestAnyOrderAndRepetitionGivesTheSameGold(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	s3 := laketest.Start(t)
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorldOn(t, s3)
			r := rng(seed)
			type generation struct {
				key  string
				data []byte
			}
			var queues [][]generation // of each object, in order
			for p := range int32(3) {
				es := shop(r, p, 240)
				for first := 0; first < len(es); first += 40 {
					var q []generation
					for _, n := range []int{1 + r.IntN(39), 40} {
						q = append(q, generation{key(p, int64(first)), lines(p, int64(first), es[first:first+n]...)})
					}
					queues = append(queues, q)
				}
			}
			var mu sync.Mutex
			var bag []event.Event
			// next takes an event of the bag or changes the lake.
			next := func() (event.Event, bool) {
				mu.Lock()
				defer mu.Unlock()
				for len(queues) > 0 && (len(bag) == 0 || r.IntN(3) == 0) {
					i := r.IntN(len(queues))
					o := w.put(queues[i][0].key, queues[i][0].data)
					for range 1 + r.IntN(2) {
						bag = append(bag, created(o))
					}
					if queues[i] = queues[i][1:]; len(queues[i]) == 0 {
						queues = slices.Delete(queues, i, i+1)
					}
				}
				if len(bag) == 0 {
					return event.Event{}, false
				}
				i := r.IntN(len(bag))
				e := bag[i]
				if r.IntN(5) > 0 { // else it comes again
					bag = slices.Delete(bag, i, i+1)
				}
				return e, true
			}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					for {
						e, ok := next()
						if !ok {
							return
						}
						reply, err := w.steps.Handle(t.Context(), e)
						if errors.Is(err, errChanged) {
							reply, err = w.steps.Handle(t.Context(), e) // as the sender would
						}
						if err != nil {
							t.Errorf("%s: %v", e.Type(), err)
							return
						}
						if reply != nil && stepOf(reply.Type()) != nil {
							mu.Lock()
							bag = append(bag, *reply)
							mu.Unlock()
						}
					}
				})
			}
			wg.Wait()
			if open := query(t, w.db, `SELECT concat_ws(' ', key, stage, stopped_by) FROM etl.loads JOIN etl.objects USING (object_id) WHERE stage <> 'checked'`); len(open) > 0 {
				t.Errorf("not done: %v", open)
			}
			w.wantRebuild()
		})
	}
}

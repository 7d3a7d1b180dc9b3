package main

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// ranked is an event with the rank that the warehouse has for it.
type ranked struct {
	features.Event
	rank int64
}

// load brings events to gold, in a load of their own, as the steps of the warehouse
// do. They arrived at that time.
func load(t *testing.T, db *warehouse.DB, arrived time.Time, list ...ranked) {
	t.Helper()
	var id, offset int64
	err := db.QueryRow(t.Context(), `WITH o AS (
			INSERT INTO etl.objects (bucket, key) VALUES ('b', gen_random_uuid()::text) RETURNING object_id)
		INSERT INTO etl.loads (object_id, etag, lines, rows, duplicates, quarantined, stage, gold_at)
		SELECT object_id, 'e', 1, 1, 0, 0, 'checked', now() FROM o RETURNING load_id, (SELECT count(*) FROM bronze.events)`).Scan(&id, &offset)
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		e := &list[i]
		hash := e.Hash()
		_, err := db.Exec(t.Context(), `WITH b AS (
				INSERT INTO bronze.events (load_id, kafka_partition, kafka_offset, kafka_timestamp, checksum, line, product_id, category_id, user_id, price,
					event_time, event_type, record_hash, user_session, category_code, brand)
				VALUES ($1, 3, $2, $3, 0, 1, $4, 1, $5, $6::double precision, $7, $8, $9, $10, $11, $12))
			INSERT INTO dwh.fact_events (event_id, position, version, user_id, product_id, category_id, price, event_timestamp, event_date, event_hour,
				events_in_session, activity_count, event_type, record_hash, user_session, category_code, brand)
			VALUES (0, (3::bigint << 44) + $2::bigint, 0, $5, $4, 1, $6::double precision, $7::timestamp, $7::timestamp::date, 0, 1, $13, $8::text, $9::bytea, $10::text, $11::text, $12::text)
			ON CONFLICT (record_hash) DO UPDATE SET activity_count = excluded.activity_count`,
			id, offset+int64(i), arrived, e.ProductID, e.UserID, e.Price, e.Time, e.Type, hash[:], e.Session, e.CategoryCode, e.Brand, e.rank)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (h *harness) materialize(body string) Materialized {
	h.t.Helper()
	status, text := h.post("/materialize", body)
	if status != http.StatusOK {
		h.t.Fatalf("%d %s", status, text)
	}
	var m Materialized
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		h.t.Fatal(err)
	}
	m.Seconds = 0
	return m
}

// price is that of a user and product, -1 if nothing is known.
func (h *harness) price(user, product int64) float64 {
	h.t.Helper()
	rows, err := h.store.Get(h.t.Context(), []online.Key{online.UserProduct(user, product)})
	if err != nil {
		h.t.Fatal(err)
	}
	if !rows[0].Found {
		return -1
	}
	return rows[0].Features[features.Price].Float()
}

func TestMaterializationIsIncrementalAndOverwritesNothingNewer(t *testing.T) {
	db := openWarehouse(t)
	h := start(t, db)
	live := shopEvent("live", 50, 1, 1)
	h.put(live)
	hour := time.Now().Add(-time.Hour)
	stale := shopEvent("live", 40, 1, 1)
	load(t, db, hour, ranked{stale, 1}, ranked{shopEvent("a", 0, 2, 2), 1}, ranked{shopEvent("a", 1, 2, 3), 2})
	load(t, db, time.Now().Add(-26*time.Hour), ranked{shopEvent("old", 0, 9, 9), 1})
	for _, step := range []struct {
		body string
		want Materialized
	}{
		{``, Materialized{Loads: 2, Events: 4, Written: 4}}, // a's session twice and its two pairs
		{``, Materialized{}},
		{`{"full":false}`, Materialized{}},
		{`{"full":true}`, Materialized{Loads: 2, Events: 4}},
	} {
		if diff := cmp.Diff(step.want, h.materialize(step.body)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.body, diff)
		}
	}
	if got := []float64{h.price(1, 1), h.price(2, 2), h.price(2, 3), h.price(9, 9)}; !cmp.Equal(got, []float64{60, 10, 11, -1}) {
		t.Errorf("prices %v", got)
	}
	// A late load of the session: its other events have other ranks now.
	load(t, db, hour, ranked{shopEvent("a", 7, 2, 4), 1}, ranked{shopEvent("a", 0, 2, 2), 2}, ranked{shopEvent("a", 1, 2, 3), 3})
	if m := h.materialize(""); m.Loads != 1 {
		t.Errorf("%+v", m)
	}
	rows, err := h.store.Get(t.Context(), []online.Key{online.UserProduct(2, 3), online.Session("a")})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rows {
		if got := r.Features[features.ActivityCount].Int(); got != 3 {
			t.Errorf("entity %d has activity_count %d", i, got)
		}
	}
	// On a tick, too.
	load(t, db, hour, ranked{shopEvent("b", 3, 5, 5), 1})
	tick := event.New()
	tick.SetID("1")
	tick.SetSource("/apis/v1/namespaces/millrace/pingsources/features-materialize")
	tick.SetType(events.Tick)
	if status, _ := h.send(tick); status != http.StatusAccepted {
		t.Errorf("a tick is answered with %d", status)
	}
	waitFor(t, "the tick has materialised", func() bool { return h.price(5, 5) == 13 })
}

// A Redis that has lost its data is filled before it takes events, so that sessions
// go on with the ranks that they had.
func TestSessionsGoOnInARedisThatLostItsData(t *testing.T) {
	db := openWarehouse(t)
	h := start(t, db)
	arrived := time.Now().Add(-time.Hour)
	served := []ranked{{shopEvent("s", 0, 1, 1), 1}, {shopEvent("s", 1, 1, 2), 2}, {shopEvent("s", 2, 1, 3), 3}}
	for _, r := range served {
		hash := r.Hash()
		_, err := db.Exec(t.Context(), `INSERT INTO feature_store.streaming_features
				(record_hash, user_id, product_id, user_session, event_type, event_timestamp, processed_at, price, event_weekday, activity_count, category_code, brand)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $10, $11)`,
			hash[:], r.UserID, r.ProductID, r.Session, r.Type, r.Time, arrived.UTC(), r.Price, r.rank, r.CategoryCode, r.Brand)
		if err != nil {
			t.Fatal(err)
		}
	}
	// Gold has a later event that the offline table does not have yet, and what it
	// says of an event that was served does not matter.
	load(t, db, arrived, ranked{served[0].Event, 5}, ranked{shopEvent("s", 3, 1, 4), 4}, ranked{shopEvent("t", 0, 2, 2), 1})

	later, again, other := shopEvent("s", 9, 1, 1), served[1].Event, shopEvent("t", 1, 2, 2)
	for round := range 2 {
		var status int
		var replies []event.Event
		waitFor(t, "the store is filled", func() bool {
			status, replies = h.send(validated(&later), validated(&again), validated(&other))
			return status == http.StatusOK
		})
		var ranks []int64
		for _, r := range replies {
			ranks = append(ranks, ready(t, r).Features[features.ActivityCount].Int())
		}
		if diff := cmp.Diff([]int64{5, 2, 2}, ranks); diff != "" {
			t.Errorf("round %d, ranks (-want +got):\n%s", round, diff)
		}
		if got := []float64{h.price(1, 1), h.price(1, 2), h.price(1, 3), h.price(1, 4)}; !cmp.Equal(got, []float64{19, 11, 12, 13}) {
			t.Errorf("round %d: prices %v", round, got)
		}
		if m := h.materialize(""); m.Loads != 0 {
			t.Errorf("round %d: what was restored is materialised again: %+v", round, m)
		}
		h.redis.Flush()
	}
}

func TestReadyOnceFilled(t *testing.T) {
	h := start(t, nil)
	resp, err := http.Get(h.url + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if begun, err := h.store.Begun(t.Context()); resp.StatusCode != http.StatusOK || !begun || err != nil {
		t.Errorf("%d, begun %v, %v", resp.StatusCode, begun, err)
	}
}

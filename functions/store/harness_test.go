package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// open gives an empty warehouse.
func open(t testing.TB) (db *warehouse.DB, url string) {
	t.Helper()
	url = pgtest.URL(t)
	db, err := warehouse.Config{URL: url, MaxConns: 8}.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db, url
}

// config compares everything at once and deletes nothing.
func config() UpkeepConfig { return UpkeepConfig{SkewCatchUp: time.Hour, SkewRows: 1000} }

// contracts are those that ship.
func contracts(t testing.TB) *contract.Set {
	t.Helper()
	set, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func start(t testing.TB, db *warehouse.DB, more ...*table) *storage {
	t.Helper()
	s, err := newStorage(db, append(tables[:len(tables):len(tables)], more...), contracts(t), config())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shopEvent makes a random event of a small shop.
func shopEvent(rng *rand.Rand) features.Event {
	one := func(list ...string) string { return list[rng.IntN(len(list))] }
	return features.Event{
		Time: time.Date(2026, 1, 1+rng.IntN(9), rng.IntN(24), rng.IntN(60), rng.IntN(60), 1000*rng.IntN(2)*rng.IntN(1_000_000), time.UTC),
		Type: one("view", "view", "cart", "cart", "cart", "purchase", "purchase", "remove_from_cart"), Session: fmt.Sprintf("session-%d", rng.IntN(12)),
		UserID: int64(rng.IntN(9)), ProductID: int64(rng.IntN(4)), CategoryCode: one("", "kids", "appliances.kitchen.hood", ".x", "a..b"),
		Brand: one("", "xiaomi", "sam\"sung \\ ü", "'; DROP"), Price: float64(1+rng.IntN(200_000)) / 100,
	}
}

var served = time.Date(2026, 2, 3, 4, 5, 6, 7000, time.UTC)

// ready is the event of an event's features.
func ready(e *features.Event, rank int64) event.Event {
	m := features.OfEvent(e, e.Hash(), rank, served)
	return readyData(m.AppendJSON(nil))
}

func readyData(data []byte) event.Event {
	ev := event.New()
	ev.SetID(fmt.Sprintf("%x", rand.Uint64()))
	ev.SetSource("/millrace/featurize")
	ev.SetType(events.FeaturesReady)
	_ = ev.SetData(event.ApplicationJSON, data)
	return ev
}

func tick() event.Event {
	ev := event.New()
	ev.SetID(fmt.Sprintf("%x", rand.Uint64()))
	ev.SetSource("/apis/v1/namespaces/millrace/pingsources/upkeep-tick")
	ev.SetType(events.Tick)
	return ev
}

// query gives all rows, every value as text, NULL as "NULL".
func query(t testing.TB, db *warehouse.DB, sql string, args ...any) [][]string {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	list := [][]string{}
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		line := make([]string, len(values))
		for i, v := range values {
			switch v := v.(type) {
			case nil:
				line[i] = "NULL"
			case []byte:
				line[i] = fmt.Sprintf("%x", v)
			case time.Time:
				line[i] = v.UTC().Format(time.RFC3339Nano)
			default:
				line[i] = fmt.Sprint(v)
			}
		}
		list = append(list, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

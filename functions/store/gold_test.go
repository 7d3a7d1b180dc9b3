package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// record is one of the validated topic.
type record struct {
	features.Event
	partition int32
	offset    int64
	arrived   time.Time
}

func (r *record) position() int64 { return int64(r.partition)<<44 + r.offset }

func (r *record) hash() string { h := r.Hash(); return hex.EncodeToString(h[:]) }

// arrival is when the first record of a stream arrives.
var arrival = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// shopStream makes the records of a partition: sessions in turns, times that say nothing
// of the order, events that come again as they were or otherwise, corrections,
// deletes before and after.
func shopStream(rng *rand.Rand, partition int32, n int) []record {
	var list []record
	at := arrival
	for len(list) < n {
		r := record{Event: shopEvent(rng), partition: partition, offset: int64(2 * len(list))}
		r.Session = fmt.Sprint(partition, "-", r.Session)
		if len(list) > 0 && rng.IntN(10) < 4 {
			r.Event = list[rng.IntN(len(list))].Event
			r.Op = ""
			switch rng.IntN(4) {
			case 1:
				r.Op = "d"
			case 2:
				r.Op, r.Price, r.Brand = "u", r.Price+1, "corrected"
			case 3:
				r.Price, r.CategoryCode = r.Price+2, "again.and"
			}
		}
		at = at.Add(time.Duration(rng.IntN(3)) * time.Second)
		r.arrived = at
		list = append(list, r)
	}
	return list
}

// load makes the warehouse one that has got the records and no others: bronze as it
// keeps them, silver and gold by the rules.
func load(t testing.TB, db *warehouse.DB, records []record) {
	t.Helper()
	ctx := t.Context()
	null := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var id int64
		if _, err := tx.Exec(ctx, `TRUNCATE bronze.events, silver.events, dwh.fact_events`); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `WITH o AS (INSERT INTO etl.objects (bucket, key) VALUES ('b', $1) RETURNING object_id)
			INSERT INTO etl.loads (object_id, etag, lines, rows, duplicates, quarantined, stage) SELECT object_id, 'e', 0, 0, 0, 0, 'checked' FROM o RETURNING load_id`,
			fmt.Sprint(rand.Uint64())).Scan(&id); err != nil {
			return err
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"bronze", "events"}, []string{"load_id", "kafka_offset", "kafka_timestamp", "product_id", "category_id", "user_id",
			"price", "event_time", "kafka_partition", "checksum", "line", "op", "event_type", "record_hash", "user_session", "category_code", "brand", "ce_id"},
			pgx.CopyFromSlice(len(records), func(i int) ([]any, error) {
				r := &records[i]
				h := r.Hash()
				return []any{id, r.offset, r.arrived, r.ProductID, 5, r.UserID, r.Price, r.Time, r.partition, int32(crc32.ChecksumIEEE(fmt.Append(nil, r))), 1,
					null(r.Op), r.Type, h[:], r.Session, null(r.CategoryCode), null(r.Brand), fmt.Sprint(r.partition, "/", r.offset)}, nil
			}))
		if err != nil {
			return err
		}
		var silver, gold [][]any
		for _, truth := range truths(records) {
			f, l := truth.first, truth.latest
			h := f.Hash()
			version, deleted := -1-f.position(), any(nil)
			if l != f {
				version = l.position()
			}
			if truth.deleted {
				deleted = int64(math.MaxInt64)
			}
			silver = append(silver, []any{id, h[:], version, f.position(), f.position(), deleted, f.Time, f.Type, f.ProductID, f.UserID, f.Session, l.Price})
			if !truth.deleted {
				gold = append(gold, []any{int64(0), f.position(), version, f.UserID, f.ProductID, int64(5), l.Price, f.Time, f.Time, f.Time.Hour(), 1, truth.rank,
					f.Type, h[:], f.Session, null(l.CategoryCode), null(l.Brand)})
			}
		}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"silver", "events"}, []string{"load_id", "record_hash", "version", "first_position", "last_position", "deleted_position",
			"event_timestamp", "event_type", "product_id", "user_id", "user_session", "price"}, pgx.CopyFromRows(silver)); err != nil {
			return err
		}
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"dwh", "fact_events"}, []string{"event_id", "position", "version", "user_id", "product_id", "category_id", "price",
			"event_timestamp", "event_date", "event_hour", "events_in_session", "activity_count", "event_type", "record_hash", "user_session", "category_code", "brand"},
			pgx.CopyFromRows(gold))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// truth is what the rules say of one event, by going through all records.
type truth struct {
	first *record
	// latest is the last correction, or the first record when there is none: whose
	// columns gold has.
	latest  *record
	rank    int64
	deleted bool
}

// truths computes the truth of each event from the records of all partitions, in
// whatever order: the rules of arrival, in plain Go.
func truths(records []record) map[string]*truth {
	sorted := make([]*record, len(records))
	for i := range records {
		sorted[i] = &records[i]
	}
	slices.SortFunc(sorted, func(a, b *record) int { return cmp.Compare(a.position(), b.position()) })
	all := map[string]*truth{}
	counts := map[string]int64{}
	for _, r := range sorted {
		t := all[r.hash()]
		if t == nil {
			t = &truth{}
			all[r.hash()] = t
		}
		if r.Op == "d" {
			t.deleted = true
			continue
		}
		t.deleted = false
		if t.first == nil {
			counts[r.Session]++
			t.first, t.latest, t.rank = r, r, counts[r.Session]
		}
		if r.Op == "u" {
			t.latest = r
		}
	}
	for hash, t := range all {
		if t.first == nil {
			delete(all, hash)
		}
	}
	return all
}

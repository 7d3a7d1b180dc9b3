package warehouse

import (
	"context"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/tern/v2/migrate"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func open(t *testing.T, url string) *DB {
	t.Helper()
	db, err := Config{URL: url, MaxConns: 2}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// fresh gives the address of a database with today's schema and no rows.
func fresh(t *testing.T) string {
	t.Helper()
	url := pgtest.URL(t)
	if err := open(t, url).Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return url
}

func TestProcessesThatStartAtOnceMigrateOnce(t *testing.T) {
	url := pgtest.URL(t)
	var wg sync.WaitGroup
	for range 8 {
		db := open(t, url)
		wg.Go(func() {
			if err := db.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	db := open(t, url)
	var version, schemas int
	err := db.QueryRow(t.Context(), `SELECT (SELECT version FROM public.millrace_schema_version),
		(SELECT count(*) FROM information_schema.schemata WHERE schema_name IN ('bronze', 'silver', 'dwh', 'etl', 'feature_store'))`).Scan(&version, &schemas)
	if err != nil {
		t.Fatal(err)
	}
	files, err := embedded.ReadDir("migrations")
	if err != nil {
		t.Fatal(err)
	}
	if version != len(files) || schemas != 5 {
		t.Errorf("version %d of %d, %d schemas", version, len(files), schemas)
	}
}

func TestSchemaOfANewerProgramIsLeftAlone(t *testing.T) {
	url := pgtest.URL(t)
	db := open(t, url)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), "UPDATE public.millrace_schema_version SET version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := open(t, url).Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// Events that were merged before events knew their load belong to the one of their
// loads that waits for gold, if there is one: it is the one that gold will ask for.
func TestEventsOfBeforeGetTheLoadThatWaitsForGold(t *testing.T) {
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	files, err := fs.Sub(embedded, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	names, err := migrate.FindMigrations(files)
	if err != nil {
		t.Fatal(err)
	}
	m, err := migrator(ctx, conn, files, names)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.MigrateTo(ctx, int32(slices.Index(names, "007_gold.sql"))); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, `
		INSERT INTO etl.objects (bucket, key) VALUES ('b', 'k');
		INSERT INTO etl.loads (object_id, etag, lines, rows, duplicates, quarantined, stage)
			SELECT 1, 'e', 1, 1, 0, 0, stage FROM unnest(ARRAY['checked', 'silver', 'gold', 'stopped', 'bronze']) stage;
		INSERT INTO bronze.events (load_id, kafka_partition, kafka_offset, kafka_timestamp, checksum, line, record_hash)
			SELECT load, 0, row_number() OVER (), now(), 0, 1, int4send(event)
			FROM (VALUES (1, 1), (1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (1, 3), (3, 3), (5, 3)) r (load, event);
		INSERT INTO silver.events (record_hash, version, product_id, user_id, event_timestamp, event_type, user_session)
			SELECT int4send(event), 0, 1, 1, now(), 'view', 's' FROM generate_series(1, 4) event`); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(ctx, conn); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(ctx, `SELECT load_id FROM silver.events ORDER BY record_hash`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	// The first was in one load; the second in all; the third in none that waits; of the
	// fourth nothing is known.
	if diff := cmp.Diff([]int64{1, 2, 3, 0}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNamesWithoutSchemaAreRefused(t *testing.T) {
	db := open(t, pgtest.URL(t))
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), "SELECT 1 FROM fact_events"); err == nil {
		t.Error("an unqualified name was found")
	}
}

// The label is a purchase that follows: one before the cart event does not count.
func TestPurchasePredictionLabel(t *testing.T) {
	db := open(t, pgtest.URL(t))
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, e := range []struct {
		kind, session string
		product       int
	}{
		{"view", "a", 1}, {"cart", "a", 1}, {"purchase", "a", 1}, {"cart", "a", 1},
		{"cart", "a", 2}, {"purchase", "b", 2}, {"cart", "b", 3}, {"remove_from_cart", "b", 3},
	} {
		_, err := db.Exec(t.Context(), `INSERT INTO dwh.fact_events VALUES
			($1::int, $1::int, 0, 1, $2, 1, 2.5, '2019-10-06 10:00:00', '2019-10-06', 10, 1, $1::int, $3, int8send($1::int), $4, 'appliances.kitchen.hood', NULL)`,
			i, e.product, e.kind, e.session)
		if err != nil {
			t.Fatal(err)
		}
	}
	rows, err := db.Query(t.Context(), `SELECT activity_count, is_purchased, event_weekday, category_code_level1, category_code_level2
		FROM dwh.vw_ml_purchase_prediction ORDER BY activity_count`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got [][]any
	for rows.Next() {
		v, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	sunday := int32(0)
	row := func(rank, purchased int32) []any { return []any{rank, purchased, sunday, "appliances", "kitchen"} }
	want := [][]any{row(1, 1), row(3, 0), row(4, 0), row(6, 0)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{{URL: "mysql://x", MaxConns: 1}, {URL: "postgres://h/db"}} {
		if _, err := c.Open(t.Context()); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

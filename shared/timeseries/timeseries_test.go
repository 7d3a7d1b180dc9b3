package timeseries_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/timeseries"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func open(t *testing.T) (*warehouse.DB, string) {
	t.Helper()
	return openAt(t, pgtest.URL(t))
}

func openAt(t *testing.T, url string) (*warehouse.DB, string) {
	t.Helper()
	db, err := warehouse.Config{URL: url, MaxConns: 4}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db, url
}

func lines(t *testing.T, db *warehouse.DB, sql string) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// The commands of the README move all rows, and what is made of them is the same. With
// TimescaleDB they go from PostgreSQL alone to it, and back.
func TestReadme_copiesIntoANewDatabase(t *testing.T) {
	old, oldURL := openAt(t, pgtest.PlainURL(t))
	ctx := t.Context()
	if _, err := old.Exec(ctx, `
		INSERT INTO public.server_metrics ("timestamp", server_id, cpu_usage_percent, power_consumption_watts)
			SELECT date_trunc('day', now()) - n * interval '11 minutes', 'srv-' || n % 3, n % 100, 200 + n % 50 FROM generate_series(1, 2000) n;
		INSERT INTO public.predictions ("timestamp", model, entity, model_version, prediction, details) VALUES (now() - interval '1 day', 'm', E'a\tb', '1', 0.1, '{"a": "\"x"}');
		INSERT INTO public.anomalies ("timestamp", entity_type, entity_id, anomaly_type, severity, anomaly_score, details) VALUES (now(), 'server', 'srv-1', 'x', 'high', 0.7, '{}')`); err != nil {
		t.Fatal(err)
	}
	adopt := func(db *warehouse.DB) {
		t.Helper()
		if _, err := db.Exec(ctx, "SELECT timeseries.adopt()"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := timeseries.Upkeep(ctx, db, time.Now(), 90*24*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	adopt(old)
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(text), "```sh\n")
	script, _, _ = strings.Cut(script, "```")
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("there is no psql")
	}
	move := func(from, into string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
		cmd.Env = append(os.Environ(), "OLD="+from, "NEW="+into, "PSQLRC=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	compare := func(db *warehouse.DB) {
		t.Helper()
		for _, table := range []string{"server_metrics", "predictions", "anomalies", "server_metrics_hourly"} {
			// Means are of the same numbers in another order.
			sql := "SELECT regexp_replace(to_jsonb(t)::text, '([.][0-9]{9})[0-9]+', '\\1', 'g') FROM public." + table + " t ORDER BY 1"
			want, got := lines(t, old, sql), lines(t, db, sql)
			if diff := cmp.Diff(want, got); diff != "" || len(got) == 0 {
				t.Errorf("%s (-old +new):\n%.2000s", table, diff)
			}
		}
	}
	renewed, newURL := open(t)
	move(oldURL, newURL)
	adopt(renewed)
	if pgtest.Timescale() {
		_, say, _ := strings.Cut(string(text), "`CALL ")
		say, _, _ = strings.Cut(say, "`")
		for _, aggregate := range []string{"server_metrics_hourly", "application_metrics_hourly"} {
			if _, err := renewed.Exec(ctx, "CALL "+strings.Replace(say, "server_metrics_hourly", aggregate, 1)); err != nil {
				t.Fatalf("%s: %v", say, err)
			}
		}
		compare(renewed)
		back, backURL := openAt(t, pgtest.PlainURL(t))
		move(newURL, backURL)
		adopt(back)
		renewed = back
	}
	compare(renewed)
	parts := "SELECT DISTINCT tableoid::regclass::text FROM public.server_metrics ORDER BY 1"
	if diff := cmp.Diff(lines(t, old, parts), lines(t, renewed, parts)); diff != "" || len(lines(t, renewed, parts)) < 15 {
		t.Errorf("partitions (-old +new):\n%s", diff)
	}
}

// Any number of processes make partitions of the same days while rows come.
func TestCover_concurrently(t *testing.T) {
	if pgtest.Timescale() {
		t.Skip("TimescaleDB makes its chunks itself")
	}
	db, _ := open(t)
	ctx := t.Context()
	var days []time.Time
	for n := range 10 {
		days = append(days, time.Date(2026, 3, 1+n, 0, 0, 0, 0, time.UTC))
	}
	done := make(chan error)
	for range 3 {
		go func() { done <- timeseries.Cover(context.WithoutCancel(ctx), db, "server_metrics", days) }()
	}
	go func() {
		var err error
		for range 100 {
			err = insert(context.WithoutCancel(ctx), db)
			// A row was on its way to the partition of other times when its own was made.
			if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "23514" {
				break
			}
		}
		done <- err
	}()
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	got := lines(t, db, `SELECT count(*) || ' of ' || count(DISTINCT tableoid) FROM public.server_metrics WHERE tableoid::regclass::text ~ '[0-9]$'`)
	if got[0] != "480 of 10" {
		t.Errorf("rows %s partitions, want 480 of 10", got[0])
	}
}

func insert(ctx context.Context, db *warehouse.DB) error {
	_, err := db.Exec(ctx, `INSERT INTO public.server_metrics ("timestamp", server_id)
			SELECT timestamptz '2026-03-01 00:00:00Z' + n * interval '30 minutes', 'a' FROM generate_series(0, 479) n`)
	return err
}

// An unresolved anomaly that is worse comes before one that is not.
func TestActiveAnomalies_worstFirst(t *testing.T) {
	db, _ := open(t)
	if _, err := db.Exec(t.Context(), `INSERT INTO public.anomalies ("timestamp", entity_type, entity_id, anomaly_type, severity, anomaly_score, details, resolved)
		SELECT now() - n * interval '1 minute', 'server', s, 'x', s, 0.5, '{}'::jsonb, n = 9 FROM unnest('{medium,critical,low,high}'::text[], '{1,2,3,4}'::int[]) u (s, n)
		UNION ALL SELECT now(), 'server', 'over', 'x', 'critical', 1, '{}', true`); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, l := range lines(t, db, "SELECT entity_id FROM public.active_anomalies") {
		b.WriteString(l + " ")
	}
	if got := b.String(); got != "critical high medium low " {
		t.Errorf("%s", got)
	}
}

// What TimescaleDB refuses to keep is kept without it, and it is said why. Here it is
// one that has no function at all.
func TestMake_worksWhenTimescaleDBRefuses(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	if _, err := db.Exec(ctx, `CREATE OR REPLACE FUNCTION timeseries.extension() RETURNS text LANGUAGE sql STABLE RETURN 'nowhere';
		SELECT timeseries.make('thing', 'at timestamptz, who text, x float8', '{who,at}', 'at', 'who');
		SELECT timeseries.aggregate('thing_hourly', 'thing', 'who', 'max(x) AS max_x');
		SELECT timeseries.cover('thing', '{2026-03-01}');
		INSERT INTO public.thing VALUES ('2026-03-01T10:20:00Z', 'a', 7)`); err != nil {
		t.Fatal(err)
	}
	refusals, err := timeseries.Refusals(ctx, db)
	if err != nil || !strings.Contains(refusals["thing"], "nowhere") || len(refusals) != 1 {
		t.Errorf("%v %v", refusals, err)
	}
	if got := lines(t, db, "SELECT tableoid::regclass || ' ' || x FROM public.thing"); got[0] != "timeseries.thing_20260301 7" {
		t.Errorf("%v", got)
	}
	if _, err := db.Exec(ctx, "SELECT timeseries.adopt()"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := timeseries.Upkeep(ctx, db, time.Now(), 0); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, db, "SELECT to_char(hour, 'HH24') || ' ' || who || ' ' || max_x FROM public.thing_hourly"); len(got) != 1 || got[0] != "10 a 7" {
		t.Errorf("%v", got)
	}
}

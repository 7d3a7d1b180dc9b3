package timeseries_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/timeseries"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func openTimescale(t *testing.T) *warehouse.DB {
	t.Helper()
	if !pgtest.Timescale() {
		t.Skip("this is about TimescaleDB: `make test-timescale`")
	}
	db, _ := open(t)
	return db
}

// run has TimescaleDB do now what it does by itself from time to time.
func run(t *testing.T, db *warehouse.DB, procedure string) {
	t.Helper()
	jobs := lines(t, db, "SELECT job_id::text FROM timescaledb_information.jobs WHERE proc_name = '"+procedure+"' ORDER BY 1")
	if len(jobs) == 0 {
		t.Fatalf("there is no job %s", procedure)
	}
	for _, id := range jobs {
		if procedure == "policy_refresh_continuous_aggregate" {
			// In one transaction: a job of several, a batch each, does not end in this build,
			// where nothing runs beside it.
			execute(t, db, `SELECT public.alter_job(`+id+`, config => config || '{"buckets_per_batch": 0}') FROM timescaledb_information.jobs WHERE job_id = `+id)
		}
		if _, err := db.Exec(t.Context(), "CALL public.run_job("+id+")"); err != nil {
			t.Fatalf("job %s of %s: %v", id, procedure, err)
		}
	}
}

func execute(t *testing.T, db *warehouse.DB, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// What the migration asks TimescaleDB for, it has.
func TestTimescale_keepsAllTables(t *testing.T) {
	db := openTimescale(t)
	refusals, err := timeseries.Refusals(t.Context(), db)
	if err != nil || len(refusals) > 0 {
		t.Errorf("refused: %v %v", refusals, err)
	}
	for sql, want := range map[string]string{
		`SELECT concat_ws(' ', h.hypertable_name, d.column_name, d.time_interval, h.compression_enabled) FROM timescaledb_information.hypertables h
			JOIN timescaledb_information.dimensions d USING (hypertable_schema, hypertable_name) WHERE h.hypertable_schema = 'public' ORDER BY 1`: `
			anomalies timestamp 7 days t
			application_metrics timestamp 7 days t
			predictions timestamp 7 days t
			server_metrics timestamp 7 days t`,
		`SELECT concat_ws(' ', hypertable_name, attname, segmentby_column_index, orderby_column_index, orderby_asc) FROM timescaledb_information.compression_settings
			WHERE segmentby_column_index IS NOT NULL OR orderby_column_index = 1 ORDER BY 1`: `
			anomalies entity_id 1
			anomalies timestamp 1 f
			application_metrics service_name 1
			application_metrics timestamp 1 f
			predictions entity 1
			predictions timestamp 1 f
			server_metrics server_id 1
			server_metrics timestamp 1 f`,
		`SELECT concat_ws(' ', hypertable_name, proc_name, coalesce(config ->> 'compress_after', config ->> 'drop_after')) FROM timescaledb_information.jobs
			WHERE proc_name IN ('policy_compression', 'policy_retention') ORDER BY 1`: `
			anomalies policy_compression 7 days
			anomalies policy_retention 90 days
			application_metrics policy_compression 7 days
			application_metrics policy_retention 90 days
			predictions policy_compression 7 days
			predictions policy_retention 90 days
			server_metrics policy_compression 7 days
			server_metrics policy_retention 90 days`,
		`SELECT concat_ws(' ', a.view_name, a.materialized_only, j.schedule_interval, j.config ->> 'start_offset', j.config ->> 'end_offset')
			FROM timescaledb_information.continuous_aggregates a JOIN timescaledb_information.jobs j ON j.hypertable_name IN (a.view_name, a.materialization_hypertable_name)
			WHERE j.proc_name = 'policy_refresh_continuous_aggregate' ORDER BY 1`: `
			application_metrics_hourly f 01:00:00 89 days 01:00:00
			server_metrics_hourly f 01:00:00 89 days 01:00:00`,
	} {
		var list []string
		for l := range strings.Lines(want) {
			if l = strings.TrimSpace(l); l != "" {
				list = append(list, l)
			}
		}
		if diff := cmp.Diff(list, lines(t, db, sql)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sql, diff)
		}
	}
}

// Old rows are compressed and give the same answers, the same key comes again and changes
// nothing, an anomaly is resolved where it lies; then the oldest rows go and their hours
// stay.
func TestTimescale_compressesThenDrops(t *testing.T) {
	db := openTimescale(t)
	const rows = `INSERT INTO public.server_metrics ("timestamp", server_id, cpu_usage_percent, power_consumption_watts)
		SELECT date_trunc('hour', now()) - n * interval '3 hours', 'srv-' || s, n % 100, 200 + n % 50 FROM generate_series(0, 8 * 120) n, generate_series(1, 2) s
		ON CONFLICT DO NOTHING`
	execute(t, db, rows)
	execute(t, db, `INSERT INTO public.anomalies ("timestamp", entity_type, entity_id, anomaly_type, severity, anomaly_score, details)
		SELECT now() - interval '20 days', 'server', 'srv-1', 'x', 'high', 0.7, '{}'`)
	const all = `SELECT concat_ws(' ', "timestamp", server_id, cpu_usage_percent, power_consumption_watts) FROM public.server_metrics ORDER BY 1`
	before := lines(t, db, all)
	run(t, db, "policy_refresh_continuous_aggregate")
	hours := `SELECT concat_ws(' ', hour, server_id, avg_cpu, sample_count) FROM public.server_metrics_hourly ORDER BY 1`
	hoursBefore := lines(t, db, hours)
	// As far back as they are refreshed; rows are three hours apart.
	if got := lines(t, db, `SELECT (SELECT count(*) FROM public.server_metrics_hourly WHERE hour > now() - interval '88 days') - count(*) || ' ' || (count(*) > 1400)
		FROM public.server_metrics WHERE "timestamp" > now() - interval '88 days'`); got[0] != "0 true" {
		t.Errorf("hours more than rows, enough of them: %s", got[0])
	}

	run(t, db, "policy_compression")
	if got := lines(t, db, `SELECT concat_ws(' ', bool_and(is_compressed = (range_end < now() - interval '7 days')), count(*) FILTER (WHERE is_compressed) > 10)
		FROM timescaledb_information.chunks WHERE hypertable_name = 'server_metrics'`); got[0] != "t t" {
		t.Errorf("compressed are those that are old, and some are: %s", got[0])
	}
	execute(t, db, rows)
	if diff := cmp.Diff(before, lines(t, db, all)); diff != "" {
		t.Errorf("compressed (-before +after):\n%.2000s", diff)
	}
	execute(t, db, `UPDATE public.anomalies SET resolved = true, resolved_at = now() WHERE entity_id = 'srv-1'`)
	if got := lines(t, db, `SELECT count(*) || ' ' || bool_and(resolved) FROM public.anomalies`); got[0] != "1 true" {
		t.Errorf("anomalies, resolved: %s", got[0])
	}

	run(t, db, "policy_retention")
	kept := lines(t, db, `SELECT concat_ws(' ', min("timestamp") < now() - interval '90 days', min("timestamp") > now() - interval '98 days', count(*) < `+fmt.Sprint(len(before))+`) FROM public.server_metrics`)
	if kept[0] != "t t t" && kept[0] != "f t t" { // whole chunks go
		t.Errorf("rows are kept up to 90 days and the rest of a chunk: %s", kept[0])
	}
	if diff := cmp.Diff(hoursBefore, lines(t, db, hours)); diff != "" {
		t.Errorf("hours after their rows went (-before +after):\n%.2000s", diff)
	}
}

// Aggregates take in history that is loaded later, and are what PostgreSQL's own are.
func TestTimescale_aggregatesOverBackfilledTime(t *testing.T) {
	db := openTimescale(t)
	plain, _ := openAt(t, pgtest.PlainURL(t))
	both := func(sql string) {
		t.Helper()
		execute(t, db, sql)
		execute(t, plain, sql)
	}
	compare := func(when string) {
		t.Helper()
		for _, view := range []string{"server_metrics_hourly", "application_metrics_hourly"} {
			sql := "SELECT regexp_replace(to_jsonb(t)::text, '([.][0-9]{9})[0-9]+', '\\1', 'g') FROM public." + view + " t ORDER BY 1"
			want, got := lines(t, plain, sql), lines(t, db, sql)
			if diff := cmp.Diff(want, got); diff != "" || len(got) == 0 {
				t.Errorf("%s: %s (-plain +TimescaleDB):\n%.2000s", when, view, diff)
			}
		}
	}
	// Times are the same in both, whenever the statements run.
	base := time.Now().UTC().Truncate(time.Hour).Format("'2006-01-02 15:04:05Z'::timestamptz")
	rows := func(from, until, step string) {
		t.Helper()
		series := fmt.Sprintf("generate_series(%s - interval '%s', %s - interval '%s', interval '%s') WITH ORDINALITY AS g (at, n)", base, from, base, until, step)
		both(`INSERT INTO public.server_metrics ("timestamp", server_id, cpu_usage_percent, memory_usage_percent, cpu_temperature_celsius, power_consumption_watts)
			SELECT at, 'srv-' || n % 3, n % 97, n % 89, 40 + n % 31, 200 + n % 53 FROM ` + series + ` ON CONFLICT DO NOTHING`)
		both(`INSERT INTO public.application_metrics ("timestamp", service_name, server_id, endpoint, request_rate_per_sec, response_time_p95_ms, response_time_p99_ms, error_rate_percent, error_count)
			SELECT at, 'api-' || n % 2, 'srv-1', '/', n % 400, n % 61, n % 91, n % 7, n % 5 FROM ` + series + ` ON CONFLICT DO NOTHING`)
		execute(t, plain, "SELECT timeseries.adopt()")
		for _, d := range []*warehouse.DB{db, plain} {
			if _, _, err := timeseries.Upkeep(t.Context(), d, time.Now(), 90*24*time.Hour); err != nil {
				t.Fatal(err)
			}
		}
	}
	rows("5 hours", "0", "7 minutes")
	compare("before any refresh")
	run(t, db, "policy_refresh_continuous_aggregate")
	compare("refreshed")
	rows("60 days", "1 day", "47 minutes")
	run(t, db, "policy_refresh_continuous_aggregate")
	compare("history was loaded")
	run(t, db, "policy_compression")
	rows("30 days", "20 days", "11 minutes")
	run(t, db, "policy_refresh_continuous_aggregate")
	compare("history was loaded into what is compressed")
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const warehouseSource = "PostgreSQL"

// views are what the page asks for, by path.
func (c *console) views() map[string]view {
	return map[string]view{
		"live":               c.live,
		"health":             c.health,
		"invalid":            c.invalid,
		"predictions":        c.rowsOf(predictionsSQL, 100),
		"anomalies":          c.rowsOf(anomaliesSQL, 200),
		"series":             c.series,
		"drift":              c.rowsOf(driftSQL, 100),
		"drift/measurements": c.measurements,
		"models":             c.models,
		"alerts":             c.rowsOf(alertsSQL, 100),
		"quality":            c.rowsOf(qualitySQL, 50),
		"runs":               c.rowsOf(runsSQL, 50),
		"deadletters":        c.deadletters,
		"story":              c.story,
	}
}

// rows runs a statement that gives one column of JSON, and gives its rows. A table that
// no function has made yet has none.
func (c *console) rows(ctx context.Context, sql string, args ...any) ([]json.RawMessage, error) {
	if c.db == nil {
		return nil, unset(warehouseSource, "DATABASE_URL")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	rows, err := c.db.Query(ctx, sql, args...)
	if err != nil {
		return nil, c.failed(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[json.RawMessage])
	if err != nil {
		return nil, c.failed(err)
	}
	c.watch.well(warehouseSource)
	if list == nil {
		list = []json.RawMessage{}
	}
	return list, nil
}

// failed tells a database that is away from a statement that it refused.
func (c *console) failed(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		const undefinedTable, undefinedSchema = "42P01", "3F000"
		if pg.Code == undefinedTable || pg.Code == undefinedSchema {
			c.watch.well(warehouseSource)
			return absent(warehouseSource, "no function has made its tables yet")
		}
	}
	return c.watch.failed(warehouseSource, away(warehouseSource, plain(err)))
}

// rowsOf is a view of the first rows of a statement that takes how many.
func (c *console) rowsOf(sql string, usual int) view {
	return func(ctx context.Context, r *http.Request) (any, error) {
		n, err := limit(r, usual, 1000)
		if err != nil {
			return nil, err
		}
		list, err := c.rows(ctx, sql, n)
		return map[string]any{"rows": list}, err
	}
}

const (
	predictionsSQL = `SELECT to_jsonb(p) FROM public.predictions p ORDER BY p.timestamp DESC LIMIT $1`
	anomaliesSQL   = `SELECT to_jsonb(a) FROM public.anomalies a ORDER BY a.timestamp DESC LIMIT $1`
	driftSQL       = `SELECT to_jsonb(w) - 'report' FROM drift.windows w ORDER BY w.window_end DESC, w.model LIMIT $1`
	alertsSQL      = `SELECT to_jsonb(a) FROM alerts.alerts a ORDER BY a.state, a.raised_at DESC LIMIT $1`
	qualitySQL     = `SELECT to_jsonb(q) - 'report' || jsonb_build_object(
	'checks', (q.report -> 'statistics' ->> 'evaluated_expectations')::int,
	'failed', (SELECT jsonb_agg(x) FROM jsonb_array_elements(q.report -> 'results') x WHERE NOT (x ->> 'success')::boolean))
	FROM etl.quality_reports q ORDER BY q.made_at DESC LIMIT $1`
	runsSQL = `SELECT to_jsonb(r) FROM etl.runs r ORDER BY r.run_id DESC LIMIT $1`
)

// health asks each source something small, all at the same time, and tells besides of
// what flows what every view shows: how much, and what is not as it should be.
func (c *console) health(ctx context.Context, _ *http.Request) (any, error) {
	// What a source answers is in the watch, whichever it is.
	var asked sync.WaitGroup
	if c.db != nil {
		asked.Go(func() { _, _ = c.rows(ctx, `SELECT to_jsonb(1)`) })
	}
	if c.registry != nil {
		asked.Go(func() { _, _ = c.aliases(ctx, anyModel) })
	}
	now, err := c.flows(ctx)
	asked.Wait()
	answer := map[string]any{"sources": c.watch.all(), "time": time.Now().UTC(), "changes": c.token != "" || c.loopback, "token": c.token != ""}
	if err == nil {
		answer["live"] = trouble(now)
	}
	return answer, nil
}

// trouble leaves out of what flows the processes and deliveries that are well, and what
// one view shows.
func trouble(l live) live {
	l.Processes = slices.DeleteFunc(slices.Clone(l.Processes), func(p process) bool {
		return p.State == "ready" || p.State == "running" || p.State == "disabled"
	})
	l.Deliveries = slices.DeleteFunc(slices.Clone(l.Deliveries), func(d delivery) bool { return d.FailingSince.IsZero() })
	l.Topics, l.Taken, l.Events, l.LeftOut, l.URLs, l.Lake, l.Warehouse, l.Features = nil, nil, nil, nil, nil, nil, nil, nil
	return l
}

// invalid is how many records got which verdict, and the latest alerts about them.
func (c *console) invalid(ctx context.Context, _ *http.Request) (any, error) {
	verdicts, err := c.verdicts(ctx)
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"verdicts": verdicts}
	reasons, err := c.rows(ctx, `SELECT to_jsonb(a) FROM alerts.alerts a WHERE a.rule LIKE 'invalid%' ORDER BY a.last_event_at DESC LIMIT 50`)
	if err == nil {
		answer["reasons"] = reasons
	}
	return answer, nil
}

// measurements are the statistics of a model's columns over time.
func (c *console) measurements(ctx context.Context, r *http.Request) (any, error) {
	list, err := c.rows(ctx, `SELECT to_jsonb(m) FROM drift.measurements m
		WHERE m.model = $1 AND m.threshold IS NOT NULL ORDER BY m.window_end DESC, m.kind, m.name LIMIT 2000`, r.URL.Query().Get("model"))
	return map[string]any{"rows": list}, err
}

// metricName is what a column may be called; it is checked against the table too.
var metricName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// series is a metric of a server over the last hours: means of as many seconds as give
// some hundreds of points.
func (c *console) series(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	metric := q.Get("metric")
	if !metricName.MatchString(metric) {
		return nil, &failure{http.StatusBadRequest, "console", errors.New("metric: must be the name of a column")}
	}
	column := pgx.Identifier{metric}.Sanitize()
	list, err := c.rows(ctx, `SELECT jsonb_build_object('t', to_timestamp(floor(extract(epoch FROM timestamp) / 60) * 60), 'v', avg(`+column+`),
		'low', min(`+column+`), 'high', max(`+column+`))
		FROM public.server_metrics WHERE server_id = $1 AND timestamp > now() - interval '6 hours'
		GROUP BY floor(extract(epoch FROM timestamp) / 60) ORDER BY floor(extract(epoch FROM timestamp) / 60)`, q.Get("entity"))
	if err != nil {
		return nil, err
	}
	anomalies, err := c.rows(ctx, `SELECT to_jsonb(a) FROM public.anomalies a
		WHERE a.entity_id = $1 AND a.timestamp > now() - interval '6 hours' AND a.details ->> 'metric_name' = $2 ORDER BY a.timestamp`, q.Get("entity"), metric)
	return map[string]any{"points": list, "anomalies": anomalies}, err
}

// limit reads how many rows are wanted.
func limit(r *http.Request, usual, most int) (int, error) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return usual, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, &failure{http.StatusBadRequest, "console", fmt.Errorf("limit %q: must be between 1 and %d", text, most)}
	}
	return n, nil
}

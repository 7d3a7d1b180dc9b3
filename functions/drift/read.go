package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/model"
)

// column is one to be read: a number, or a category with the places of its values.
type column struct {
	name   string
	places map[string]int // nil for a number
}

// values are what was read of a column: numbers, NaN where missing, or counts by place,
// the last of all other values.
type values struct {
	numbers []float64
	counts  []float64
	missing float64
}

// table is what was read of a window or of several.
type table struct {
	rows    int
	odd     int64 // rows that were left out since they are of anomalies
	columns []values
}

// columnsOf are the columns of a model's features.
func columnsOf(features []model.Feature) ([]column, error) {
	out := make([]column, len(features))
	for i := range features {
		out[i].name = features[i].Name
		if v := features[i].Values; v != nil {
			var err error
			if out[i].places, err = places(v); err != nil {
				return nil, fmt.Errorf("feature %s: %w", features[i].Name, err)
			}
		}
	}
	return out, nil
}

// maxScan bounds the rows that are looked at for a reference.
const maxScan = 100_000

// maxOdd is the share of rows in anomalies up to which they are left out.
const maxOdd = 0.8

// notOdd are rows of an entity that has no anomaly at the time, from shortly before it
// was noticed. One that does not end is none: what has drifted looks odd to detectors
// too, and stays so.
const notOdd = ` AND NOT EXISTS (SELECT FROM public.anomalies odd WHERE odd.entity_id = t.%[1]s
	AND odd."timestamp" > part.a - interval '3 hours' AND odd."timestamp" < part.b + interval '30 seconds'
	AND t.%[2]s >= odd."timestamp" - interval '30 seconds'
	AND t.%[2]s <= least(odd.resolved_at, odd."timestamp" + CASE WHEN odd.resolved_at IS NULL THEN interval '5 minutes' ELSE interval '2 hours' END))`

// read reads the rows of windows, and of more than limit of them about limit, by the
// hash of their key, so that the same are read whenever it is done.
func read(ctx context.Context, tx pgx.Tx, w *watched, list []column, windows []window, limit int) (*table, error) {
	t := &table{columns: make([]values, len(list))}
	for i, c := range list {
		if c.places != nil {
			t.columns[i].counts = make([]float64, len(c.places)+1)
		}
	}
	from, to := make([]time.Time, len(windows)), make([]time.Time, len(windows))
	for i, w := range windows {
		from[i], to[i] = w.From, w.To
	}
	where, args := conditions(w, from, to)
	count := func(where string) (n int64, err error) {
		err = tx.QueryRow(ctx, `SELECT count(*) FROM unnest($1::timestamptz[], $2::timestamptz[]) AS part (a, b) JOIN `+w.table()+` t ON `+where, args...).Scan(&n)
		if err != nil {
			err = fmt.Errorf("counting rows of %s: %w", w.Table, err)
		}
		return n, err
	}
	all, err := count(where)
	if err != nil || all == 0 {
		return t, err
	}
	if w.Entity != "" {
		// What is odd has been told by the detectors; drift is of what is usual. Where nearly
		// all is odd, it is what is usual now.
		usual := where + fmt.Sprintf(notOdd, quote(w.Entity), quote(w.Time))
		rest, err := count(usual)
		if err != nil {
			return nil, err
		}
		if float64(all-rest) <= maxOdd*float64(all) {
			where, all, t.odd = usual, rest, all-rest
		}
	}
	fields := make([]string, len(list))
	for i, c := range list {
		fields[i] = "t." + quote(c.name) + "::double precision"
		if c.places != nil {
			fields[i] = "t." + quote(c.name) + "::text"
		}
	}
	if all > int64(limit) {
		keys := make([]string, len(w.Key))
		for i, k := range w.Key {
			keys[i] = "t." + quote(k) + "::text"
		}
		args = append(args, int64(float64(1<<32)*float64(limit)/float64(all)))
		where += fmt.Sprintf(" AND (hashtextextended(concat_ws('|', %s), 0) & 4294967295) < $%d", strings.Join(keys, ", "), len(args))
	}
	rows, err := tx.Query(ctx, `SELECT `+strings.Join(fields, ", ")+` FROM unnest($1::timestamptz[], $2::timestamptz[]) AS part (a, b) JOIN `+w.table()+` t ON `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", w.Table, err)
	}
	defer rows.Close()
	numbers, texts, targets := make([]*float64, len(list)), make([]*string, len(list)), make([]any, len(list))
	for i, c := range list {
		targets[i] = &numbers[i]
		if c.places != nil {
			targets[i] = &texts[i]
		}
	}
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return nil, fmt.Errorf("reading %s: %w", w.Table, err)
		}
		t.rows++
		for i, c := range list {
			t.columns[i].add(c, numbers[i], texts[i])
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", w.Table, err)
	}
	return t, nil
}

func (v *values) add(c column, number *float64, text *string) {
	switch {
	case c.places == nil && (number == nil || math.IsNaN(*number) || math.IsInf(*number, 0)):
		v.missing++
	case c.places == nil:
		v.numbers = append(v.numbers, *number)
	case text == nil:
		v.missing++
	default:
		at, ok := c.places[*text]
		if !ok {
			at = len(c.places)
		}
		v.counts[at]++
	}
}

// conditions are those of rows that are in one of the windows, part, as SQL.
func conditions(w *watched, from, to []time.Time) (where string, args []any) {
	args = []any{from, to}
	// Columns without a zone are in UTC, as connections are.
	where = fmt.Sprintf("t.%[1]s >= part.a AND t.%[1]s < part.b", quote(w.Time))
	for _, name := range slices.Sorted(maps.Keys(w.Where)) {
		args = append(args, w.Where[name])
		where += fmt.Sprintf(" AND t.%s::text = $%d", quote(name), len(args))
	}
	return where, args
}

// thin cuts pieces out of windows, evenly, so that about most rows are looked at when a
// window like now has so many rows.
func thin(list []window, now window, rows, most int) []window {
	var total time.Duration
	for _, s := range list {
		total += s.length()
	}
	expected := float64(rows) * float64(total) / float64(now.length())
	if expected <= float64(most) {
		return list
	}
	const pieces = 12
	var out []window
	for _, s := range list {
		step := s.length() / pieces
		width := time.Duration(float64(step) * float64(most) / expected)
		for i := range pieces {
			at := s.From.Add(time.Duration(i) * step)
			out = append(out, window{at, at.Add(max(width, time.Second))})
		}
	}
	return out
}

// predictions are those of a version in a window.
type predictions struct {
	scores []float64
	// Of regressions: pairs of what was predicted and what was so.
	predicted, actual []float64
}

// readPredictions reads about limit predictions of a version, those of anomalies left
// out unless hardly any others are there.
func readPredictions(ctx context.Context, tx pgx.Tx, w *watched, version string, now window, limit, few int) (*predictions, error) {
	if w.Entity != "" {
		p, err := queryPredictions(ctx, tx, w, version, now, limit, fmt.Sprintf(notOdd, "entity", `"timestamp"`))
		if err != nil || len(p.scores) >= few {
			return p, err
		}
	}
	return queryPredictions(ctx, tx, w, version, now, limit, "")
}

func queryPredictions(ctx context.Context, tx pgx.Tx, w *watched, version string, now window, limit int, and string) (*predictions, error) {
	rows, err := tx.Query(ctx, `SELECT t.prediction, t.actual FROM (SELECT $3::timestamptz AS a, $4::timestamptz AS b) part JOIN public.predictions t
			ON t.model = $1 AND t.model_version = $2 AND t."timestamp" >= part.a AND t."timestamp" < part.b AND t.prediction IS NOT NULL`+and+`
		ORDER BY hashtextextended(t.entity || t."timestamp"::text, 0) LIMIT $5`, w.Name, version, now.From, now.To, limit)
	if err != nil {
		return nil, fmt.Errorf("reading predictions: %w", err)
	}
	defer rows.Close()
	p := &predictions{}
	for rows.Next() {
		var prediction float64
		var actual *float64
		if err := rows.Scan(&prediction, &actual); err != nil {
			return nil, fmt.Errorf("reading predictions: %w", err)
		}
		p.scores = append(p.scores, prediction)
		if actual != nil {
			p.predicted, p.actual = append(p.predicted, prediction), append(p.actual, *actual)
		}
	}
	return p, rows.Err()
}

// notThere tells whether a table or column is missing: nothing can be measured until
// somebody makes it.
func notThere(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "42703")
}

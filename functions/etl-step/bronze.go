package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/lake"
)

// metaRecords is the object's metadata in which the lake says how many lines it
// wrote.
const metaRecords = "millrace-records"

// bronze loads what of an object is not loaded yet.
//
// The lake replaces an object by one with more lines under the same key while a
// chunk fills. Of each generation only the records that are new become rows, as a
// load of its own; one without any is a success that leaves no load.
func (s *Steps) bronze(ctx context.Context, tx pgx.Tx, o object) (outcome, error) {
	if _, err := s.db.Exec(ctx, `INSERT INTO etl.objects (bucket, key) VALUES ($1, $2) ON CONFLICT DO NOTHING`, o.Bucket, o.Key); err != nil {
		return outcome{}, fmt.Errorf("noting the object: %w", err)
	}
	var id, swept int
	var etag, refusal *string
	// From here on no other step of bronze works on this object.
	err := tx.QueryRow(ctx, `SELECT object_id, etag, refused, swept FROM etl.objects WHERE bucket = $1 AND key = $2 FOR UPDATE`, o.Bucket, o.Key).Scan(&id, &etag, &refusal, &swept)
	if err != nil {
		return outcome{}, fmt.Errorf("locking the object: %w", err)
	}
	if swept > 0 {
		if _, err := tx.Exec(ctx, `UPDATE etl.objects SET swept = 0 WHERE object_id = $1`, id); err != nil {
			return outcome{}, fmt.Errorf("noting that the sweep was heard: %w", err)
		}
	}
	key, err := lake.ParseKey(o.Key)
	if err != nil {
		return s.refuse(ctx, tx, id, "", 0, err.Error(), nil)
	}
	info, err := s.store.Stat(ctx, o.Bucket, o.Key)
	if errors.Is(err, lake.ErrNotFound) {
		// It was deleted meanwhile. What was loaded of it before stays.
		return outcome{state: succeeded, silent: etag == nil}, nil
	}
	if err != nil {
		return outcome{}, err
	}
	if etag != nil && *etag == info.ETag {
		if refusal != nil {
			return outcome{state: refused, reason: *refusal}, nil
		}
		return s.lastOutcome(ctx, tx, id, "bronze")
	}
	l := &loading{Steps: s, tx: tx, object: o, id: id, key: key, etag: info.ETag, first: etag == nil}
	if n, err := strconv.ParseInt(info.Metadata[metaRecords], 10, 64); err == nil {
		l.expected = &n
	}
	return l.run(ctx)
}

// lastOutcome tells whether the object's last load was stopped by a step, for
// events that come again.
func (s *Steps) lastOutcome(ctx context.Context, tx pgx.Tx, object int, step string) (outcome, error) {
	var stage string
	var by *string
	err := tx.QueryRow(ctx, `SELECT stage, stopped_by FROM etl.loads WHERE object_id = $1 ORDER BY load_id DESC LIMIT 1`, object).Scan(&stage, &by)
	if errors.Is(err, pgx.ErrNoRows) {
		return outcome{state: succeeded, silent: true}, nil
	}
	if err != nil {
		return outcome{}, fmt.Errorf("reading the last load: %w", err)
	}
	if stage == "stopped" && by != nil && strings.HasPrefix(*by, step+": ") {
		checks := strings.TrimPrefix(*by, step+": ")
		return outcome{state: stopped, reason: *by, checks: strings.Split(checks, ", ")}, nil
	}
	return outcome{state: succeeded}, nil
}

// refuse notes that nothing of a generation could be loaded, and why.
func (s *Steps) refuse(ctx context.Context, tx pgx.Tx, object int, etag string, size int64, reason string, lines []badLine) (outcome, error) {
	if len(lines) == 0 {
		lines = []badLine{{reason: reason}}
	}
	if err := quarantine(ctx, tx, object, lines); err != nil {
		return outcome{}, err
	}
	_, err := tx.Exec(ctx, `UPDATE etl.objects SET etag = nullif($2, ''), size = $3, refused = $4, loaded_at = now() WHERE object_id = $1`, object, etag, size, reason)
	if err != nil {
		return outcome{}, fmt.Errorf("noting the refusal: %w", err)
	}
	return outcome{state: refused, reason: reason}, nil
}

func quarantine(ctx context.Context, tx pgx.Tx, object int, lines []badLine) error {
	numbers, offsets := make([]int64, len(lines)), make([]int64, len(lines))
	reasons, samples := make([]string, len(lines)), make([]string, len(lines))
	for i, l := range lines {
		numbers[i], offsets[i] = l.line, l.offset
		reasons[i], samples[i] = storable(l.reason), storable(l.sample)
	}
	// A line may be bad twice, as when an array breaks at its first element.
	_, err := tx.Exec(ctx, `INSERT INTO etl.quarantine (object_id, line, byte_offset, reason, sample)
		SELECT DISTINCT ON (line) $1::int, * FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[]) AS b (line, byte_offset, reason, sample) ORDER BY line
		ON CONFLICT (object_id, line) DO UPDATE SET byte_offset = excluded.byte_offset, reason = excluded.reason, sample = excluded.sample`,
		object, numbers, offsets, reasons, samples)
	if err != nil {
		return fmt.Errorf("writing to the quarantine: %w", err)
	}
	return nil
}

// storable makes a text what a column of text takes.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd")
}

// loading is one generation of an object on its way into bronze.
type loading struct {
	*Steps
	tx       pgx.Tx
	object   object
	id       int
	key      lake.Key
	etag     string
	size     int64
	first    bool // nothing of the object is loaded yet
	expected *int64
	load     int64
}

// errChanged is returned when the object was replaced since it was looked at.
var errChanged = errors.New("the object was replaced while it was being loaded")

func (l *loading) run(ctx context.Context) (outcome, error) {
	err := l.tx.QueryRow(ctx, `INSERT INTO etl.loads (object_id, etag, expected, lines, rows, duplicates, quarantined, stage)
		VALUES ($1, $2, $3, 0, 0, 0, 0, 'bronze') RETURNING load_id`, l.id, l.etag, l.expected).Scan(&l.load)
	if err != nil {
		return outcome{}, fmt.Errorf("noting the load: %w", err)
	}
	c, rows, err := l.copy(ctx)
	if err != nil {
		return outcome{}, err
	}
	if c.lines == c.bad && c.lines > 0 {
		if _, err := l.tx.Exec(ctx, `DELETE FROM etl.loads WHERE load_id = $1`, l.load); err != nil {
			return outcome{}, fmt.Errorf("undoing the load: %w", err)
		}
		reason := fmt.Sprintf("none of %d lines could be read; line %d: %s", c.lines, c.quarantine[0].line, c.quarantine[0].reason)
		return l.refuse(ctx, l.tx, l.id, l.etag, l.size, storable(reason), c.quarantine)
	}
	if len(c.quarantine) > 0 {
		if err := quarantine(ctx, l.tx, l.id, c.quarantine); err != nil {
			return outcome{}, err
		}
	}
	var b pgx.Batch
	b.Queue(`UPDATE etl.objects SET etag = $2, size = $3, refused = NULL, loaded_at = now() WHERE object_id = $1`, l.id, l.etag, l.size)
	if rows == 0 {
		b.Queue(`DELETE FROM etl.loads WHERE load_id = $1`, l.load)
	} else {
		b.Queue(`UPDATE etl.loads SET lines = $2, rows = $3, duplicates = $4, quarantined = $5 WHERE load_id = $1`,
			l.load, c.lines, rows, c.rows-rows, c.bad)
	}
	if err := l.tx.SendBatch(ctx, &b).Close(); err != nil {
		return outcome{}, fmt.Errorf("noting what was loaded: %w", err)
	}
	if rows == 0 {
		return l.lastOutcome(ctx, l.tx, l.id, "bronze")
	}
	metrics := map[string]float64{
		"lines": float64(c.lines), "rows": float64(rows), "duplicates": float64(c.rows - rows), "quarantined": float64(c.bad),
	}
	if l.expected != nil {
		metrics["expected"] = float64(*l.expected)
	}
	failures, err := l.validate(ctx, l.tx, "bronze", bronzeRows([]int64{l.load}), l.object, []int64{l.load}, metrics)
	if err != nil {
		return outcome{}, err
	}
	if len(failures) > 0 {
		return l.stop(ctx, l.tx, "bronze", []int64{l.load}, failures)
	}
	return outcome{state: succeeded, rows: rows}, nil
}

// copy brings the object's records into bronze.events and says how many were new.
//
// The first generation goes straight into the table. When that meets a record that
// is there already, from an object that overlaps, and for later generations, it goes
// by way of a temporary table.
func (l *loading) copy(ctx context.Context) (*copier, int64, error) {
	if l.first {
		var c *copier
		err := pgx.BeginFunc(ctx, l.tx, func(savepoint pgx.Tx) error {
			var err error
			c, err = l.stream(ctx, savepoint, "bronze.events")
			return err
		})
		var pg *pgconn.PgError
		if err == nil {
			return c, c.rows, nil
		}
		if !errors.As(err, &pg) || pg.Code != "23505" { // unique_violation
			return nil, 0, err
		}
	}
	if _, err := l.tx.Exec(ctx, `CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE bronze.events) ON COMMIT DELETE ROWS`); err != nil {
		return nil, 0, fmt.Errorf("making a temporary table: %w", err)
	}
	c, err := l.stream(ctx, l.tx, "pg_temp.incoming")
	if err != nil {
		return nil, 0, err
	}
	tag, err := l.tx.Exec(ctx, `INSERT INTO bronze.events SELECT * FROM pg_temp.incoming ORDER BY kafka_partition, kafka_offset, checksum ON CONFLICT DO NOTHING`)
	if err != nil {
		return nil, 0, fmt.Errorf("adding new records: %w", err)
	}
	return c, tag.RowsAffected(), nil
}

// stream copies the object's records into a table.
func (l *loading) stream(ctx context.Context, tx pgx.Tx, table string) (*copier, error) {
	body, info, err := l.store.Open(ctx, l.object.Bucket, l.object.Key)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if info.ETag != l.etag {
		return nil, errChanged
	}
	l.size = info.Size
	c, stop := newCopier(l.load, l.key, lake.Lines(l.object.Key, body))
	defer stop()
	sql := fmt.Sprintf("COPY %s (%s) FROM STDIN BINARY", table, copyColumns)
	if _, err := tx.Conn().PgConn().CopyFrom(ctx, c, sql); err != nil {
		return nil, fmt.Errorf("copying into %s: %w", table, err)
	}
	return c, nil
}

// now is the time of reports.
func now() time.Time { return time.Now().UTC() }

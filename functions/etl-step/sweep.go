package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/sink"
)

// SweepConfig is how the sweep finds what no notification told of.
type SweepConfig struct {
	// Bucket and Prefix are where the objects are that become gold; those of the
	// Trigger etl-bronze.
	Bucket string `envconfig:"ETL_SWEEP_BUCKET" default:"validated-events-bucket"`
	Prefix string `envconfig:"ETL_SWEEP_PREFIX" default:"topics/tracking.user_behavior.validated/"`
	// Grace is how long an object, or a load between two steps, may wait before it
	// counts as forgotten: longer than the backlog that a busy hour leaves.
	Grace time.Duration `envconfig:"ETL_SWEEP_GRACE" default:"2m"`
	// Recent is how far back, by the hours in their keys, objects are compared at
	// every tick. The others are at the turn of a walk through all of them.
	Recent time.Duration `envconfig:"ETL_SWEEP_RECENT" default:"2h"`
	// Retention is how long runs and the database's copies of quality reports are
	// kept.
	Retention time.Duration `envconfig:"ETL_RETENTION" default:"720h"`
	// Sink is the Broker's address, which a SinkBinding sets.
	Sink string `envconfig:"K_SINK"`
}

// Bounds of one sweep, so that it costs the same however large the lake is.
const (
	// sweepPage is how many objects one statement compares, sweepPages how many pages
	// there are of the walk, and of the recent hours.
	sweepPage  = 1000
	sweepPages = 5
	// sweepOpen bounds the objects that were asked for in the last ten minutes and have
	// not come: when the steps are behind, more events would not make them faster.
	sweepOpen = 1000
	// sweepExpired bounds the rows that are deleted for their age.
	sweepExpired = 10_000
	// died is after how long a running step is no more: longer than any may take.
	died = time.Hour
)

// sweepLock lets one sweep run at a time.
const sweepLock = 0x6d696c6c02 // "mill", 2

// sweeper sends events for objects that should be in the warehouse and are not, as
// if the store had told of them. So nothing depends on a notification, and a
// warehouse that was lost is filled again.
//
// An object counts as not there when its current ETag is not the one that was loaded.
// One that was asked for is asked for again after ten minutes, then after twice as
// long each time.
type sweeper struct {
	*Steps
	config SweepConfig
	sink   *sink.Sink
	now    func() time.Time
	// Of the bounds above.
	page, open int
}

func newSweeper(s *Steps, c SweepConfig) (*sweeper, error) {
	to, err := sink.New(c.Sink)
	if err != nil {
		return nil, err
	}
	// Two folders, as ingest writes the extension that Triggers filter on.
	if !strings.HasSuffix(c.Prefix, "/") || strings.Count(c.Prefix, "/") != 2 {
		return nil, fmt.Errorf("ETL_SWEEP_PREFIX=%q: want topics/<topic>/", c.Prefix)
	}
	if c.Bucket == "" || c.Grace <= 0 || c.Recent <= 0 || c.Retention < 2*died {
		return nil, fmt.Errorf("ETL_SWEEP_BUCKET=%q, ETL_SWEEP_GRACE=%s, ETL_SWEEP_RECENT=%s, ETL_RETENTION=%s: want a name, durations, and a retention of at least %s",
			c.Bucket, c.Grace, c.Recent, c.Retention, 2*died)
	}
	return &sweeper{Steps: s, config: c, sink: to, now: time.Now, page: sweepPage, open: sweepOpen}, nil
}

// sweep does one tick's share.
func (s *sweeper) sweep(ctx context.Context) error {
	conn, err := s.db.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the warehouse: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(sweepLock)).Scan(&mine); err != nil {
		return fmt.Errorf("looking for other sweeps: %w", err)
	}
	if !mine {
		return nil
	}
	defer func() {
		if _, unlockErr := conn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(sweepLock)); unlockErr != nil {
			_ = conn.Conn().Close(context.WithoutCancel(ctx)) // which gives the lock back too
		}
	}()
	if err := s.expire(ctx); err != nil {
		return err
	}
	var open int
	var after string
	err = s.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM etl.objects WHERE swept > 0 AND swept_at > now() - interval '10 minutes'),
		coalesce((SELECT after FROM etl.sweeps WHERE bucket = $1 AND prefix = $2), '')`, s.config.Bucket, s.config.Prefix).Scan(&open, &after)
	if err != nil {
		return fmt.Errorf("looking where the sweep is: %w", err)
	}
	room := max(0, s.open-open)
	stalled, err := s.stalled(ctx, room)
	if err != nil {
		return err
	}
	room -= stalled
	walked, end, err := s.compare(ctx, after, room, true)
	if err != nil {
		return err
	}
	asked := stalled + walked
	if whole := after == "" && end; !whole {
		hour := lake.HourTime(lake.Hour(s.now().Add(-s.config.Recent).UnixMilli()))
		from := s.config.Prefix + hour.Format("year=2006/month=01/day=02/hour=15")
		recent, _, err := s.compare(ctx, from, room-walked, false)
		if err != nil {
			return err
		}
		asked += recent
	}
	if asked > 0 {
		slog.WarnContext(ctx, "the sweep found objects that no step has finished", "objects", asked)
	}
	return nil
}

// compare looks at the objects behind a key, page by page, and asks for at most room
// of them. A walk keeps its place, and begins anew when it has come to the end.
func (s *sweeper) compare(ctx context.Context, after string, room int, walk bool) (asked int, end bool, err error) {
	place := after
	page := make([]lake.Object, 0, s.page)
	// done tells whether the page was asked for as a whole; if not, the next sweep goes
	// on with it.
	flush := func() (done bool, err error) {
		if len(page) == 0 {
			return true, nil
		}
		if room == asked {
			return false, nil
		}
		n, err := s.ask(ctx, page, room-asked)
		if asked += n; err != nil || asked == room {
			return false, err
		}
		place, page = page[len(page)-1].Key, page[:0]
		return true, nil
	}
	pages := 0
	for o, err := range s.store.List(ctx, s.config.Bucket, s.config.Prefix, after) {
		if errors.Is(err, lake.ErrNotFound) {
			break // the lake has not written anything yet
		}
		if err != nil {
			return asked, false, err
		}
		if page = append(page, o); len(page) < s.page {
			continue
		}
		done, err := flush()
		if err != nil {
			return asked, false, err
		}
		if pages++; !done || pages == sweepPages {
			return asked, false, s.keepPlace(ctx, place, false, walk)
		}
	}
	done, err := flush()
	if err != nil {
		return asked, false, err
	}
	if done {
		place = ""
	}
	return asked, done, s.keepPlace(ctx, place, done, walk)
}

func (s *sweeper) keepPlace(ctx context.Context, place string, end, walk bool) error {
	if !walk {
		return nil
	}
	_, err := s.db.Exec(ctx, `INSERT INTO etl.sweeps (bucket, prefix, after, swept_at, walked_at) VALUES ($1, $2, $3, now(), CASE WHEN $4 THEN now() END)
		ON CONFLICT (bucket, prefix) DO UPDATE SET after = excluded.after, swept_at = excluded.swept_at, walked_at = coalesce(excluded.walked_at, sweeps.walked_at)`,
		s.config.Bucket, s.config.Prefix, place, end)
	if err != nil {
		return fmt.Errorf("noting the place of the sweep: %w", err)
	}
	return nil
}

// due is when an object may be asked for again.
const due = `(o.swept_at IS NULL OR o.swept_at < now() - interval '10 minutes' * 2 ^ least(o.swept, 7))`

// ask sends events for those of some objects that are missing, at most room.
//
// A new object is left to its notification for the grace. One that the lake replaces
// again and again is never old, so for those it counts when it was loaded last, or
// first seen here.
func (s *sweeper) ask(ctx context.Context, page []lake.Object, room int) (int, error) {
	keys, etags, fresh := make([]string, len(page)), make([]string, len(page)), make([]bool, len(page))
	for i, o := range page {
		keys[i], etags[i] = o.Key, o.ETag
		fresh[i] = s.now().Sub(o.Modified) < s.config.Grace
	}
	// Those that are too new are noted, so that there is a time to count from.
	return s.request(ctx, `WITH behind AS (
			SELECT l.key, l.etag, l.fresh AND coalesce(greatest(o.loaded_at, o.seen_at) > now() - $5::float8 * interval '1 second', true) AS wait, o.object_id
			FROM unnest($2::text[], $3::text[], $4::bool[]) AS l (key, etag, fresh)
			LEFT JOIN etl.objects o ON o.bucket = $1 AND o.key = l.key
			WHERE o.etag IS DISTINCT FROM l.etag AND `+due+`
				-- Refused for its name, which stays.
				AND NOT (o.object_id IS NOT NULL AND o.refused IS NOT NULL AND o.etag IS NULL)
		), noted AS (
			INSERT INTO etl.objects (bucket, key) SELECT $1, key FROM behind WHERE wait AND object_id IS NULL ON CONFLICT DO NOTHING
		)
		SELECT key, etag FROM behind WHERE NOT wait ORDER BY key LIMIT $6`,
		s.config.Bucket, keys, etags, fresh, s.config.Grace.Seconds(), room)
}

// stalled sends events for objects with loads that no step has taken further.
func (s *sweeper) stalled(ctx context.Context, room int) (int, error) {
	return s.request(ctx, `SELECT DISTINCT o.key, coalesce(o.etag, '') FROM etl.loads l JOIN etl.objects o USING (object_id)
		WHERE o.bucket = $1 AND l.stage <> 'checked' AND l.stage <> 'stopped' AND `+due+`
			AND greatest(l.loaded_at, l.silver_at, l.gold_at) < now() - $2::float8 * interval '1 second'
		ORDER BY 1 LIMIT $3`, s.config.Bucket, s.config.Grace.Seconds(), room)
}

// request sends an event for each object of a query, and notes it, or neither.
func (s *sweeper) request(ctx context.Context, sql string, args ...any) (n int, err error) {
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return fmt.Errorf("comparing the lake with the warehouse: %w", err)
		}
		type found struct{ Key, ETag string }
		list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[found])
		if err != nil || len(list) == 0 {
			return err
		}
		keys, etags := make([]string, len(list)), map[string]string{}
		for i, f := range list {
			keys[i], etags[f.Key] = f.Key, f.ETag
		}
		rows, err = tx.Query(ctx, `INSERT INTO etl.objects AS o (bucket, key, swept, swept_at) SELECT $1, key, 1, now() FROM unnest($2::text[]) AS k (key) ORDER BY key
			ON CONFLICT (bucket, key) DO UPDATE SET swept = o.swept + 1, swept_at = now() RETURNING key, swept_at`, s.config.Bucket, keys)
		if err != nil {
			return fmt.Errorf("noting what is asked for: %w", err)
		}
		messages := make([]events.Message, 0, len(list))
		var key string
		var at time.Time
		_, err = pgx.ForEachRow(rows, []any{&key, &at}, func() error {
			m, err := s.message(key, etags[key], at)
			messages = append(messages, m)
			return err
		})
		if err != nil {
			return fmt.Errorf("noting what is asked for: %w", err)
		}
		n = len(messages)
		return s.sink.Send(ctx, messages)
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// message is the event that ingest would have made of the notification, but for the
// parts of it that only the store knows.
func (s *sweeper) message(key, etag string, at time.Time) (events.Message, error) {
	record := map[string]any{
		"eventSource": "millrace:sweep", "eventName": "ObjectCreated:Put", "eventTime": at.UTC().Format(time.RFC3339Nano),
		"s3": map[string]any{
			"bucket": map[string]any{"name": s.config.Bucket}, "object": map[string]any{"key": url.QueryEscape(key), "eTag": etag},
		},
	}
	data, err := json.Marshal(record)
	if err != nil {
		return events.Message{}, fmt.Errorf("writing the event of %s: %w", key, err)
	}
	m := events.Message{Data: data}
	m.Set("specversion", "1.0")
	m.Set("id", fmt.Sprintf("%s.%d", cmp.Or(etag, "none"), at.UnixMicro()))
	m.Set("source", events.FunctionSource+s.function+"/sweep")
	m.Set("type", events.ObjectPut)
	m.Set("datacontenttype", "application/json")
	m.Set("subject", key)
	m.Set("time", at.UTC().Format(time.RFC3339Nano))
	m.Set("bucket", s.config.Bucket)
	m.Set("keyprefix", s.config.Prefix)
	m.Set(events.PartitionKey, s.config.Bucket+"/"+key)
	if err := m.Validate(); err != nil {
		return events.Message{}, fmt.Errorf("making the event of %s: %w", key, err)
	}
	return m, nil
}

// expire notes the runs that died and deletes what is older than the retention, some
// at a time. The numbers of runs and loads grow with time, so the old ones are first.
func (s *sweeper) expire(ctx context.Context) error {
	var b pgx.Batch
	b.Queue(`UPDATE etl.runs SET state = 'failed', error = 'the process died', finished_at = clock_timestamp()
		WHERE state = 'running' AND started_at < now() - $1::float8 * interval '1 second'`, died.Seconds())
	seconds := s.config.Retention.Seconds()
	b.Queue(`DELETE FROM etl.runs WHERE run_id IN (SELECT run_id FROM (SELECT run_id, started_at FROM etl.runs ORDER BY run_id LIMIT $2) r
		WHERE started_at < now() - $1::float8 * interval '1 second')`, seconds, sweepExpired)
	b.Queue(`DELETE FROM etl.quality_reports WHERE (load_id, layer) IN (SELECT load_id, layer FROM (SELECT load_id, layer, made_at FROM etl.quality_reports ORDER BY load_id LIMIT $2) r
		WHERE made_at < now() - $1::float8 * interval '1 second')`, seconds, sweepExpired)
	if err := s.db.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("deleting what has expired: %w", err)
	}
	return nil
}

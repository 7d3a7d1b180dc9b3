package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// trainer learns models from the history of the entities that were seen, those without
// one first. It works in the background of the process that got the tick.
type trainer struct {
	ctx      context.Context // of the process
	db       *warehouse.DB   // nil: there is no history
	detector *detector
	retrain  time.Duration
	budget   time.Duration
	log      *slog.Logger
	now      func() time.Time

	running atomic.Bool
	// wait is when an entity whose history was too short is looked at again. Only the
	// one training that runs uses it.
	wait map[cacheKey]time.Time
}

// trainLock lets one process train at a time.
const trainLock = 0x6d696c6c07 // "mill", 7

// tick begins a training unless one runs.
func (t *trainer) tick() {
	if t.db == nil || !t.running.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer t.running.Store(false)
		ctx, cancel := context.WithTimeout(t.ctx, t.budget)
		defer cancel()
		start := time.Now()
		models, err := t.train(ctx)
		t.detector.metrics.training(t.ctx, start, models, err)
		switch {
		case err != nil && t.ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded):
			t.log.ErrorContext(t.ctx, "training of anomaly models failed, the next tick tries again", "error", err)
		case models > 0:
			t.log.InfoContext(t.ctx, "anomaly models were trained", "models", models, "seconds", time.Since(start).Seconds())
		}
	}()
}

// train makes models until all are fresh or the context ends.
func (t *trainer) train(ctx context.Context) (models int, err error) {
	if err := t.db.Ready(ctx); err != nil {
		return 0, err
	}
	conn, err := t.db.Acquire(ctx)
	if err != nil {
		return 0, fmt.Errorf("connecting to the history: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(trainLock)).Scan(&mine); err != nil {
		return 0, fmt.Errorf("looking for other trainings: %w", err)
	}
	if !mine {
		return 0, nil
	}
	defer func() {
		if _, unlockErr := conn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(trainLock)); unlockErr != nil {
			_ = conn.Conn().Close(context.WithoutCancel(ctx)) // which gives the lock back too
		}
	}()
	if t.wait == nil {
		t.wait = map[cacheKey]time.Time{}
	}
	// Those that have no model at all go first, of all contracts.
	for _, fresh := range []bool{true, false} {
		for _, s := range t.detector.streams {
			n, err := t.contract(ctx, conn.Conn(), s, fresh)
			models += n
			if err != nil {
				return models, err
			}
		}
	}
	return models, nil
}

// contract trains what is due of one contract: first-time models, or others.
func (t *trainer) contract(ctx context.Context, conn *pgx.Conn, s *stream, first bool) (models int, err error) {
	if s.contract.Table == "" || !anyOf(s.plan.Learnt) {
		return 0, nil
	}
	entities, err := t.detector.store.entities(ctx, s.plan.Contract)
	if err != nil || len(entities) == 0 {
		return 0, err
	}
	const page = 200
	for len(entities) > 0 {
		n := min(page, len(entities))
		keys := make([]string, n)
		for i, name := range entities[:n] {
			keys[i] = modelKey(s.plan.Contract, name)
		}
		blobs, err := t.detector.store.read(ctx, keys, nil)
		if err != nil {
			return models, err
		}
		for i, name := range entities[:n] {
			before, err := anomaly.ParseModels([]byte(blobs[i]))
			if err != nil {
				before = nil // made anew
			}
			if (len(before) == 0) != first || !t.due(cacheKey{s.plan.Contract, name}, before) {
				continue
			}
			made, err := t.entity(ctx, conn, s, name, before)
			if wrong, ok := errors.AsType[*pgconn.PgError](err); ok && (wrong.Code == undefinedTable || wrong.Code == undefinedColumn) {
				return models, nil // nothing of the contract was stored yet
			}
			if err != nil {
				return models, err
			}
			models += made
		}
		entities = entities[n:]
	}
	return models, nil
}

// PostgreSQL's codes of what is not there.
const (
	undefinedTable  = "42P01"
	undefinedColumn = "42703"
)

func anyOf(list []bool) bool {
	for _, v := range list {
		if v {
			return true
		}
	}
	return false
}

// due tells whether models should be made anew: the sooner, the shorter the history
// was.
func (t *trainer) due(k cacheKey, models anomaly.Models) bool {
	now := t.now()
	if until, ok := t.wait[k]; ok && now.Before(until) {
		return false
	}
	if len(models) == 0 {
		return true
	}
	for _, m := range models {
		if now.Sub(m.Trained) > min(max(m.To.Sub(m.From)/8, 10*time.Minute), t.retrain) {
			return true
		}
	}
	return false
}

// entity makes the models of one.
func (t *trainer) entity(ctx context.Context, conn *pgx.Conn, s *stream, name string, before anomaly.Models) (made int, err error) {
	k := cacheKey{s.plan.Contract, name}
	until := t.now()
	if newest := t.detector.cache.newest(k); !newest.IsZero() && newest.Before(until) {
		until = newest
	}
	history, err := readHistory(ctx, conn, s, name, until)
	if err != nil {
		return 0, fmt.Errorf("reading the history of %s %s: %w", s.plan.Contract, name, err)
	}
	models := anomaly.Models{}
	var early *anomaly.WarmUpError
	now := t.now()
	for i, metric := range s.plan.Metrics {
		if !s.plan.Learnt[i] {
			continue
		}
		training := s.plan.Training
		training.Floor = s.plan.Floors[i]
		m, err := training.Train(history[i], now)
		if warming, ok := errors.AsType[*anomaly.WarmUpError](err); ok {
			early = warming
			// An old model is better than none.
			if models[metric] = before[metric]; models[metric] == nil {
				delete(models, metric)
			}
			continue
		}
		if err != nil {
			return made, fmt.Errorf("training %s of %s %s: %w", metric, s.plan.Contract, name, err)
		}
		models[metric] = m
		made++
	}
	delete(t.wait, k)
	// While a history is being filled in, it grows faster than the clock goes.
	if behind := now.Sub(until); early != nil && behind < 2*s.plan.Training.Step {
		t.wait[k] = now.Add(min(max(time.Duration(early.Need-early.Have)*s.plan.Training.Step/4, time.Minute), 5*time.Minute))
	}
	if made == 0 {
		return 0, nil
	}
	if err := t.detector.store.writeModels(ctx, s.plan.Contract, name, models.Append(nil, s.plan.Metrics)); err != nil {
		return 0, err
	}
	return made, t.detector.adopt(ctx, k, models)
}

// adopt lets the models be used from the next batch on, if the entity is in memory.
func (d *detector) adopt(ctx context.Context, k cacheKey, models anomaly.Models) error {
	if err := d.work.enter(ctx); err != nil {
		return err
	}
	defer d.work.leave()
	d.cache.mu.Lock()
	defer d.cache.mu.Unlock()
	if e := d.cache.by[k]; e != nil {
		e.use(models)
	}
	return nil
}

// readHistory reads an entity's metrics in steps, up to the last whole one. The result
// is indexed as the plan's metrics.
func readHistory(ctx context.Context, conn *pgx.Conn, s *stream, entity string, until time.Time) ([][]anomaly.Bucket, error) {
	step := s.plan.Training.Step
	until = until.Truncate(step)
	at, who := pgx.Identifier{s.contract.EventTime}.Sanitize(), pgx.Identifier{s.contract.Entity}.Sanitize()
	var sql strings.Builder
	fmt.Fprintf(&sql, `SELECT floor(extract(epoch FROM %s) / %f)::bigint`, at, step.Seconds())
	for _, name := range s.plan.Metrics {
		m := pgx.Identifier{name}.Sanitize()
		fmt.Fprintf(&sql, `, count(%[1]s), avg(%[1]s)::float8, min(%[1]s)::float8, max(%[1]s)::float8, coalesce(stddev_samp(%[1]s), 0)::float8`, m)
	}
	fmt.Fprintf(&sql, ` FROM %s WHERE %s = $1 AND %s >= $2 AND %s < $3 GROUP BY 1 ORDER BY 1`,
		pgx.Identifier{"public", s.contract.Table}.Sanitize(), who, at, at)
	var id any = entity
	if f := s.contract.Field(s.contract.Entity); f.Type == contract.Int64 {
		var n int64
		if _, err := fmt.Sscan(entity, &n); err != nil {
			return nil, fmt.Errorf("entity %q is no number: %w", entity, err)
		}
		id = n
	}
	rows, err := conn.Query(ctx, sql.String(), id, until.Add(-s.plan.History), until)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	history := make([][]anomaly.Bucket, len(s.plan.Metrics))
	var number int64
	cells := make([]cell, len(s.plan.Metrics))
	into := []any{&number}
	for i := range cells {
		c := &cells[i]
		into = append(into, &c.n, &c.mean, &c.low, &c.high, &c.deviation)
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		for i := range cells {
			if c := &cells[i]; c.n > 0 {
				history[i] = append(history[i], anomaly.Bucket{Number: number, N: int(c.n), Mean: *c.mean, Low: *c.low, High: *c.high, Deviation: c.deviation})
			}
		}
	}
	return history, rows.Err()
}

// cell is one metric in one step.
type cell struct {
	n               int64
	mean, low, high *float64 // null without readings
	deviation       float64
}

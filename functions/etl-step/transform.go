package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/silver.sql
var silverSQL string

//go:embed sql/gold.sql
var goldSQL string

// pending locks and lists the object's loads of a stage. None and no error when
// there are none; found tells whether the object is known at all.
func pending(ctx context.Context, tx pgx.Tx, o object, stage string) (id int, loads []int64, err error) {
	err = tx.QueryRow(ctx, `SELECT object_id FROM etl.objects WHERE bucket = $1 AND key = $2`, o.Bucket, o.Key).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, fmt.Errorf("looking for the object: %w", err)
	}
	rows, err := tx.Query(ctx, `SELECT load_id FROM etl.loads WHERE object_id = $1 AND stage = $2 ORDER BY load_id FOR UPDATE`, id, stage)
	if err == nil {
		loads, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		return 0, nil, fmt.Errorf("looking for loads: %w", err)
	}
	return id, loads, nil
}

// silver merges what bronze has of an object into the distinct events.
func (s *Steps) silver(ctx context.Context, tx pgx.Tx, o object) (outcome, error) {
	id, loads, err := pending(ctx, tx, o, "bronze")
	if err != nil {
		return outcome{}, err
	}
	if len(loads) == 0 {
		return s.lastOutcome(ctx, tx, id, "silver")
	}
	// What a failed check stops must not be in silver, where the steps of other
	// objects would find it.
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return outcome{}, err
	}
	from, err := gathering(ctx, savepoint, "silver")
	if err != nil {
		return outcome{}, err
	}
	// Of loads that have just been written statistics know nothing, and the planner takes
	// them for a row or two: comparing each with each then takes minutes.
	if _, err := savepoint.Exec(ctx, "SET LOCAL enable_nestloop = off"); err != nil {
		return outcome{}, fmt.Errorf("preparing silver: %w", err)
	}
	tag, err := savepoint.Exec(ctx, silverSQL, loads)
	if err != nil {
		return outcome{}, fmt.Errorf("merging events: %w", err)
	}
	failures, report, err := s.evaluate(ctx, savepoint, "silver", from, o, loads, nil)
	if err != nil {
		return outcome{}, err
	}
	if len(failures) > 0 {
		err = savepoint.Rollback(ctx)
	} else {
		err = savepoint.Commit(ctx)
	}
	if err != nil {
		return outcome{}, fmt.Errorf("ending the merge: %w", err)
	}
	if err := s.keep(ctx, tx, "silver", o, loads, failures, report); err != nil {
		return outcome{}, err
	}
	if len(failures) > 0 {
		return s.stop(ctx, tx, "silver", loads, failures)
	}
	return outcome{state: succeeded, rows: tag.RowsAffected()}, advance(ctx, tx, loads, "silver")
}

// goldLock is held while gold is written. It is one for all objects: dimensions and
// sessions are shared, and what a step reads of them must not change until it has
// written. Bronze, silver and checks go on meanwhile.
const goldLock = 0x6d696c6c01 // "mill", 1

// goldRows bounds the rows of other objects that a step of gold takes along.
const goldRows = 200_000

// gold brings facts and dimensions into line with silver for the events of an object,
// and of other objects that wait for the same: dimensions and sessions that they
// share are then written once. The steps of those find nothing left to do.
func (s *Steps) gold(ctx context.Context, tx pgx.Tx, o object) (outcome, error) {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(goldLock)); err != nil {
		return outcome{}, fmt.Errorf("waiting for other steps of gold: %w", err)
	}
	id, loads, err := pending(ctx, tx, o, "silver")
	if err != nil {
		return outcome{}, err
	}
	if len(loads) == 0 {
		return s.lastOutcome(ctx, tx, id, "") // gold itself stops nothing
	}
	rows, err := tx.Query(ctx, `SELECT load_id FROM (
			SELECT load_id, sum(rows) OVER (ORDER BY load_id) AS sum FROM etl.loads WHERE stage = 'silver' AND load_id <> ALL ($1)
		) l WHERE sum <= $2`, loads, goldRows)
	if err != nil {
		return outcome{}, fmt.Errorf("looking for other loads: %w", err)
	}
	others, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return outcome{}, fmt.Errorf("looking for other loads: %w", err)
	}
	loads = append(loads, others...)
	var written int64
	for _, sql := range statements(goldSQL) {
		var args []any
		if strings.Contains(sql, "$1") {
			args = []any{loads}
		}
		tag, err := tx.Exec(ctx, sql, args...)
		if err != nil {
			return outcome{}, fmt.Errorf("%s: %w", title(sql), err)
		}
		if strings.Contains(sql, "INTO dwh.fact_events") {
			written = tag.RowsAffected()
		}
	}
	return outcome{state: succeeded, rows: written}, advance(ctx, tx, loads, "gold")
}

// statements splits a file of statements, each of which begins with a comment.
func statements(text string) []string {
	var list []string
	for part := range strings.SplitSeq(text, "\n\n-- ") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, "-- "+strings.TrimPrefix(part, "-- "))
		}
	}
	return list
}

// title is the first line of a statement's comment.
func title(sql string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(sql, "-- "), "\n")
	return first
}

func advance(ctx context.Context, tx pgx.Tx, loads []int64, stage string) error {
	_, err := tx.Exec(ctx, `UPDATE etl.loads SET stage = $2, `+stage+`_at = now() WHERE load_id = ANY ($1)`, loads, stage)
	if err != nil {
		return fmt.Errorf("noting the stage: %w", err)
	}
	return nil
}

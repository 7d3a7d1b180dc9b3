package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/quality"
)

// check validates what gold has of an object.
func (s *Steps) check(ctx context.Context, tx pgx.Tx, o object) (outcome, error) {
	id, loads, err := pending(ctx, tx, o, "gold")
	if err != nil {
		return outcome{}, err
	}
	if len(loads) == 0 {
		return s.lastOutcome(ctx, tx, id, "gold")
	}
	from, err := gatherFacts(ctx, tx, loads)
	if err != nil {
		return outcome{}, err
	}
	var facts, missing int64
	err = tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM (`+from+`) b), (
			SELECT count(*) FROM silver.events s WHERE NOT s.deleted AND s.record_hash IN (
				SELECT record_hash FROM bronze.events WHERE load_id = ANY ($1) AND record_hash IS NOT NULL
				EXCEPT SELECT record_hash FROM (`+from+`) b))`, loads).Scan(&facts, &missing)
	if err != nil {
		return outcome{}, fmt.Errorf("counting facts: %w", err)
	}
	metrics := map[string]float64{"facts_missing": float64(missing)}
	failures, err := s.validate(ctx, tx, "gold", from, o, loads, metrics)
	if err != nil {
		return outcome{}, err
	}
	if len(failures) > 0 {
		return s.stop(ctx, tx, "gold", loads, failures)
	}
	return outcome{state: succeeded, rows: facts}, advance(ctx, tx, loads, "checked")
}

// bronzeRows selects the rows of loads.
func bronzeRows(loads []int64) string {
	return fmt.Sprintf(`SELECT * FROM bronze.events WHERE load_id IN (%s)`, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(loads)), ", "), "[]"))
}

// gatherFacts gives a SELECT of the facts of loads, for the rest of the transaction.
// They are put into a temporary table, since each statement of a suite would look
// them up; one by one (OFFSET 0), since the planner would read the whole table.
func gatherFacts(ctx context.Context, tx pgx.Tx, loads []int64) (string, error) {
	from, err := gathering(ctx, tx, "gold")
	if err != nil {
		return "", err
	}
	_, err = tx.Exec(ctx, `INSERT INTO pg_temp.batch_gold
		SELECT f.* FROM (SELECT DISTINCT record_hash FROM bronze.events WHERE load_id = ANY ($1)) b
		CROSS JOIN LATERAL (SELECT * FROM dwh.fact_events WHERE record_hash = b.record_hash OFFSET 0) f`, loads)
	if err != nil {
		return "", fmt.Errorf("gathering what to check: %w", err)
	}
	return from, nil
}

// gathering makes the temporary table for what is to be checked of a layer and gives
// a SELECT of it.
func gathering(ctx context.Context, tx pgx.Tx, layer string) (string, error) {
	_, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE IF NOT EXISTS batch_%s (LIKE %s) ON COMMIT DELETE ROWS`, layer, layerTables[layer]))
	if err != nil {
		return "", fmt.Errorf("making a temporary table: %w", err)
	}
	return "SELECT * FROM pg_temp.batch_" + layer, nil
}

// layerTables are what is checked of a layer that is gathered.
var layerTables = map[string]string{"silver": "silver.events", "gold": "dwh.fact_events"}

// validate runs a layer's suite on gathered rows, keeps the report, and names
// the critical checks that failed.
func (s *Steps) validate(ctx context.Context, tx pgx.Tx, layer, from string, o object, loads []int64, metrics map[string]float64) ([]string, error) {
	failures, report, err := s.evaluate(ctx, tx, layer, from, o, loads, metrics)
	if err != nil {
		return nil, err
	}
	return failures, s.keep(ctx, tx, layer, o, loads, failures, report)
}

func (s *Steps) evaluate(ctx context.Context, tx pgx.Tx, layer, from string, o object, loads []int64, metrics map[string]float64) ([]string, *quality.Report, error) {
	report, err := s.suites[layer].Run(ctx, tx, quality.Scope{
		From: from, Metrics: metrics, Now: now(), Run: fmt.Sprintf("%s-%d", layer, loads[len(loads)-1]),
		Batch: map[string]any{"bucket": o.Bucket, "key": o.Key, "loads": loads},
	})
	if err != nil {
		return nil, nil, err
	}
	return report.Blocked(), report, nil //nolint:gocritic // evalOrder: Blocked changes nothing
}

// keep writes the report to the lake and then to the database. The object's key
// follows from the loads, so that a step that is done again replaces it.
func (s *Steps) keep(ctx context.Context, tx pgx.Tx, layer string, o object, loads []int64, failures []string, report *quality.Report) error {
	text, err := json.Marshal(report)
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	last := loads[len(loads)-1]
	key := fmt.Sprintf("quality/%s/%s/load-%010d.json", layer, strings.TrimSuffix(o.Key, ".json"), last)
	if _, err := s.store.Put(ctx, s.reports, key, text, "application/json", nil, lake.Condition{}); err != nil {
		s.bucket.Store(false)
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO etl.quality_reports (load_id, layer, success, blocked, report) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (load_id, layer) DO UPDATE SET success = excluded.success, blocked = excluded.blocked, report = excluded.report, made_at = now()`,
		last, layer, report.Success, len(failures) > 0, text)
	if err != nil {
		return fmt.Errorf("keeping the report: %w", err)
	}
	s.metrics.checked(ctx, layer, len(failures), report)
	return nil
}

// stop takes loads out of the chain. They stay in bronze; setting their stage back
// and sending the step's event again lets them go on.
func (s *Steps) stop(ctx context.Context, tx pgx.Tx, layer string, loads []int64, failures []string) (outcome, error) {
	reason := layer + ": " + strings.Join(failures, ", ")
	_, err := tx.Exec(ctx, `UPDATE etl.loads SET stage = 'stopped', stopped_by = $2 WHERE load_id = ANY ($1)`, loads, reason)
	if err != nil {
		return outcome{}, fmt.Errorf("stopping loads: %w", err)
	}
	return outcome{state: stopped, reason: reason, checks: failures}, nil
}

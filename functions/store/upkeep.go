package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/warehouse"
)

// UpkeepConfig says what is done on a tick.
type UpkeepConfig struct {
	// SkewLag is how old served features are when they are compared: long enough for
	// gold to have their events. A row that gold does not have by then counts as
	// missing.
	SkewLag time.Duration `envconfig:"SKEW_LAG" default:"5m"`
	// SkewCatchUp bounds how much older they may be. What falls behind further, as
	// after a stop or when more is served than is compared, is not compared.
	SkewCatchUp time.Duration `envconfig:"SKEW_CATCH_UP" default:"30m"`
	// SkewRows bounds the rows that one tick compares; 0 turns the comparison off.
	SkewRows int `envconfig:"SKEW_ROWS" default:"5000"`
	// FeaturesRetention is how long served features are kept; 0 is for ever.
	FeaturesRetention time.Duration `envconfig:"FEATURES_RETENTION" default:"0"`
	// MetricsRetention is how long readings, predictions and anomalies are kept, by
	// their own time; 0 is for ever. TimescaleDB's policy is 90 days whatever this says.
	MetricsRetention time.Duration `envconfig:"METRICS_RETENTION" default:"2160h"`
}

func (c UpkeepConfig) check() error {
	if c.SkewLag < 0 || c.SkewCatchUp <= 0 || c.SkewRows < 0 || c.FeaturesRetention < 0 {
		return errors.New("SKEW_LAG, SKEW_ROWS and FEATURES_RETENTION must not be negative, SKEW_CATCH_UP must be positive")
	}
	if c.MetricsRetention < 0 || c.MetricsRetention > 0 && c.MetricsRetention < 24*time.Hour {
		return fmt.Errorf("METRICS_RETENTION=%s: must be 0, for ever, or at least a day", c.MetricsRetention)
	}
	if r := c.FeaturesRetention; r > 0 && r < c.SkewLag+c.SkewCatchUp {
		return fmt.Errorf("FEATURES_RETENTION=%s: must be at least SKEW_LAG and SKEW_CATCH_UP, or rows are gone before they are compared", r)
	}
	return nil
}

// upkeep compares served features with recomputed ones and deletes old ones.
type upkeep struct {
	db     *warehouse.DB
	config UpkeepConfig
	// rows counts by outcome, differences by feature.
	rows, differences metric.Int64Counter
}

func newUpkeep(db *warehouse.DB, c UpkeepConfig) (*upkeep, error) {
	u := &upkeep{db: db, config: c}
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/store")
	var err error
	if u.rows, err = meter.Int64Counter("millrace.feature.skew.rows", metric.WithUnit("{row}"),
		metric.WithDescription("Rows of served features by what the comparison with gold came to: equal, differing, missing, unsettled, deleted.")); err != nil {
		return nil, fmt.Errorf("making metric millrace.feature.skew.rows: %w", err)
	}
	if u.differences, err = meter.Int64Counter("millrace.feature.skew.differences", metric.WithUnit("{value}"),
		metric.WithDescription("Served values that differ from the recomputed ones, by feature.")); err != nil {
		return nil, fmt.Errorf("making metric millrace.feature.skew.differences: %w", err)
	}
	// A rate is told from nothing only by a counter that began at 0.
	ctx := context.Background()
	for _, outcome := range outcomes {
		u.rows.Add(ctx, 0, metric.WithAttributes(attribute.String("outcome", outcome)))
	}
	for _, f := range list {
		u.differences.Add(ctx, 0, metric.WithAttributes(attribute.String("feature", f.Name)))
	}
	return u, nil
}

var outcomes = []string{"equal", "differing", "missing", "unsettled", "deleted"}

// skew is what a comparison found.
type skew struct {
	// After and Until bound the created_timestamp of the rows that were looked at.
	After, Until time.Time
	// Equal and Differing rows were compared. Missing rows have no event in gold, and
	// no delete of it either, which Deleted have. Unsettled rows differ while loads
	// are stuck on their way to gold, so nothing can be said.
	Equal, Differing, Missing, Unsettled, Deleted int64
	// Differences are values by feature.
	Differences map[string]int64
}

// do is what a tick asks for.
func (u *upkeep) do(ctx context.Context) error {
	if u.config.SkewRows > 0 {
		s, err := u.compare(ctx)
		if err != nil {
			return fmt.Errorf("comparing served features with gold: %w", err)
		}
		if s != nil {
			u.report(ctx, s)
		}
	}
	if u.config.FeaturesRetention > 0 {
		if err := u.expire(ctx); err != nil {
			return fmt.Errorf("deleting old features: %w", err)
		}
	}
	return nil
}

func (u *upkeep) report(ctx context.Context, s *skew) {
	for i, n := range []int64{s.Equal, s.Differing, s.Missing, s.Unsettled, s.Deleted} {
		u.rows.Add(ctx, n, metric.WithAttributes(attribute.String("outcome", outcomes[i])))
	}
	for _, f := range list {
		u.differences.Add(ctx, s.Differences[f.Name], metric.WithAttributes(attribute.String("feature", f.Name)))
	}
	level := slog.LevelDebug
	if s.Differing > 0 {
		level = slog.LevelWarn
	}
	slog.Log(ctx, level, "served features compared with gold", "equal", s.Equal, "differing", s.Differing, "missing", s.Missing,
		"unsettled", s.Unsettled, "deleted", s.Deleted, "differences", s.Differences)
}

// skewLock is held while a comparison runs, so that no two look at the same rows.
const skewLock = 0x6d696c6c02 // "mill", 2

// compare takes the next rows and notes what it finds in feature_store.skew_checks.
// It returns nil when there are none, or when another process is at it.
func (u *upkeep) compare(ctx context.Context) (*skew, error) {
	var s *skew
	err := pgx.BeginFunc(ctx, u.db, func(tx pgx.Tx) error {
		var locked bool
		if err := tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock($1)", int64(skewLock)).Scan(&locked); err != nil || !locked {
			return err
		}
		var after, until time.Time
		var newest *time.Time
		// Rows of one moment stay together, since there is no order among them.
		err := tx.QueryRow(ctx, `
			WITH range AS (
				SELECT greatest((SELECT max(rows_until) FROM feature_store.skew_checks), u - $1::interval - $2::interval) AS after, u - $1::interval AS until
				FROM (SELECT now() AT TIME ZONE 'UTC' AS u) clock
			)
			SELECT after, until, (SELECT max(created_timestamp) FROM (
				SELECT created_timestamp FROM feature_store.streaming_features
				WHERE created_timestamp > after AND created_timestamp <= until ORDER BY created_timestamp LIMIT $3) next)
			FROM range`, u.config.SkewLag, u.config.SkewCatchUp, u.config.SkewRows).Scan(&after, &until, &newest)
		if err != nil {
			return fmt.Errorf("looking for rows: %w", err)
		}
		if newest == nil {
			return nil
		}
		s = &skew{After: after, Until: *newest}
		// Each served row is looked up by its key.
		if _, err := tx.Exec(ctx, "SET LOCAL random_page_cost = 0.2; SET LOCAL plan_cache_mode = force_custom_plan"); err != nil {
			return fmt.Errorf("preparing the transaction: %w", err)
		}
		err = tx.QueryRow(ctx, comparison, after, *newest, u.config.SkewLag/2).
			Scan(&s.Equal, &s.Differing, &s.Missing, &s.Unsettled, &s.Deleted, &s.Differences)
		if err != nil {
			return fmt.Errorf("comparing rows: %w", err)
		}
		return nil
	})
	return s, err
}

// comparison looks the events of served rows up in gold, compares every feature, and
// notes the result.
//
// Whether loads are stuck matters only to rows that differ: what is missing in gold
// of a session makes the ranks of its later events too low.
var comparison = func() string {
	var same, counts, sums, examples []string
	for _, f := range list {
		same = append(same, fmt.Sprintf("s.%[1]s IS NOT DISTINCT FROM r.%[1]s", f.Name))
		counts = append(counts, fmt.Sprintf("s.%[1]s IS DISTINCT FROM r.%[1]s AS differs_%[1]s", f.Name))
		sums = append(sums, fmt.Sprintf("'%[1]s', count(*) FILTER (WHERE outcome = 'differing' AND differs_%[1]s)", f.Name))
		examples = append(examples, fmt.Sprintf("'%[1]s', jsonb_build_array(s.%[1]s, r.%[1]s)", f.Name))
	}
	return `
WITH stuck AS (
	SELECT EXISTS (SELECT FROM etl.loads WHERE stage IN ('bronze', 'silver') AND loaded_at < now() - $3::interval) AS loads
), rows AS (
	SELECT CASE
			WHEN r.record_hash IS NULL AND EXISTS (SELECT FROM silver.events d WHERE d.record_hash = s.record_hash AND d.deleted) THEN 'deleted'
			WHEN r.record_hash IS NULL THEN 'missing'
			WHEN ` + strings.Join(same, " AND ") + ` THEN 'equal'
			WHEN stuck.loads THEN 'unsettled'
			ELSE 'differing'
		END AS outcome,
		` + strings.Join(counts, ", ") + `,
		jsonb_build_object('record_hash', encode(s.record_hash, 'hex'), 'served_and_recomputed', jsonb_build_object(` + strings.Join(examples, ", ") + `)) AS example
	FROM feature_store.streaming_features s CROSS JOIN stuck
	LEFT JOIN LATERAL (
		SELECT * FROM feature_store.recomputed_features r WHERE r.record_hash = s.record_hash AND r.first_sight ORDER BY r.arrived_at, r.checksum LIMIT 1
	) r ON true
	WHERE s.created_timestamp > $1 AND s.created_timestamp <= $2
), numbered AS (
	SELECT *, row_number() OVER (PARTITION BY outcome) AS number FROM rows
)
INSERT INTO feature_store.skew_checks (rows_after, rows_until, compared, differing, missing, unsettled, deleted, differences, examples)
SELECT $1, $2, count(*) FILTER (WHERE outcome IN ('equal', 'differing')), count(*) FILTER (WHERE outcome = 'differing'),
	count(*) FILTER (WHERE outcome = 'missing'), count(*) FILTER (WHERE outcome = 'unsettled'), count(*) FILTER (WHERE outcome = 'deleted'),
	jsonb_build_object(` + strings.Join(sums, ", ") + `),
	coalesce(jsonb_agg(example) FILTER (WHERE outcome = 'differing' AND number <= 5), '[]')
FROM numbered
RETURNING compared - differing, differing, missing, unsettled, deleted, differences`
}()

// expireRows bounds what one statement deletes, expireTimes how many a tick makes.
const (
	expireRows  = 10_000
	expireTimes = 20
)

func (u *upkeep) expire(ctx context.Context) error {
	for range expireTimes {
		tag, err := u.db.Exec(ctx, `DELETE FROM feature_store.streaming_features WHERE record_hash = ANY (ARRAY (
			SELECT record_hash FROM feature_store.streaming_features
			WHERE created_timestamp < (now() AT TIME ZONE 'UTC') - $1::interval ORDER BY created_timestamp LIMIT $2))`, u.config.FeaturesRetention, expireRows)
		if err != nil {
			return err
		}
		if tag.RowsAffected() < expireRows {
			return nil
		}
	}
	return nil
}

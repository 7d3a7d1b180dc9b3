package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/online"
)

// WarehouseStatus is about gold and the steps that fill it.
type WarehouseStatus struct {
	// Facts are the rows of dwh.fact_events: one a distinct event.
	Facts int64 `json:"facts"`
	// FailedRuns are the attempts that failed, were refused or were stopped by a check,
	// of those that etl.runs still has; Runs are all of them.
	Runs       int64 `json:"runs"`
	FailedRuns int64 `json:"failedRuns"`
	// LastRun is the newest attempt that has ended.
	LastRun LastRun `json:"lastRun,omitzero"`
}

// LastRun is an attempt at a step.
type LastRun struct {
	Step     string    `json:"step"`
	State    string    `json:"state"`
	Error    string    `json:"error,omitempty"`
	Finished time.Time `json:"finished"`
}

// FeatureStatus is about the online store.
type FeatureStatus struct {
	// Entities and Sessions are estimates when Redis has more keys than are looked at.
	Entities int64 `json:"entities"`
	Sessions int64 `json:"sessions"`
	// InMemory is set when they are gone when Redis ends.
	InMemory bool `json:"inMemory,omitempty"`
}

// noWarehouse says why there is none, "" when there is one.
func (s *Status) noWarehouse() string {
	for _, out := range s.LeftOut {
		if out.Variable == "DATABASE_URL" {
			return out.String()
		}
	}
	return ""
}

// measureWarehouse counts what is in gold. Before the functions have made the tables
// there is nothing.
func (c *collector) measureWarehouse(ctx context.Context) (WarehouseStatus, error) {
	var found WarehouseStatus
	pool := c.parts.database.pool
	if pool == nil {
		return found, nil
	}
	err := pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM dwh.fact_events), count(*), count(*) FILTER (WHERE state IN ('failed', 'stopped', 'refused')) FROM etl.runs`).
		Scan(&found.Facts, &found.Runs, &found.FailedRuns)
	if err == nil {
		last := &found.LastRun
		err = pool.QueryRow(ctx, `SELECT step, state, coalesce(error, ''), finished_at FROM etl.runs WHERE finished_at IS NOT NULL ORDER BY run_id DESC LIMIT 1`).
			Scan(&last.Step, &last.State, &last.Error, &last.Finished)
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
	}
	if missing(err) {
		return WarehouseStatus{}, nil
	}
	if err != nil {
		return found, fmt.Errorf("counting the rows of the warehouse: %w", err)
	}
	return found, nil
}

// missing tells of a query whose tables the functions have not made yet.
func missing(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000") // undefined table, schema
}

// measureFeatures counts what is in the online store by the beginnings of its keys. Of
// a large one a part is counted, and the rest taken to be like it.
func (c *collector) measureFeatures(ctx context.Context) (FeatureStatus, error) {
	found := FeatureStatus{InMemory: c.parts.inMemory()}
	if c.parts.redis.client == nil {
		return found, nil
	}
	const page, most = 1000, 20_000
	client := c.parts.redis.client
	seen, cursor := int64(0), uint64(0)
	for {
		keys, next, err := client.Scan(ctx, cursor, "", page).Result()
		if err != nil {
			return found, fmt.Errorf("counting the features: %w", err)
		}
		for _, key := range keys {
			switch {
			case strings.HasPrefix(key, online.UserProductPrefix):
				found.Entities++
			case strings.HasPrefix(key, online.SessionPrefix):
				found.Sessions++
			}
		}
		seen, cursor = seen+int64(len(keys)), next
		if cursor == 0 {
			return found, nil
		}
		if seen >= most {
			break
		}
	}
	all, err := client.DBSize(ctx).Result()
	if err != nil {
		return found, fmt.Errorf("counting the features: %w", err)
	}
	share := float64(all) / float64(seen)
	found.Entities, found.Sessions = int64(share*float64(found.Entities)), int64(share*float64(found.Sessions))
	return found, nil
}

// Package warehouse is the PostgreSQL side of Millrace: how to reach it, and the
// schemas that all functions share, which whichever function comes first creates.
//
//	bronze         validated records as they came, one row each
//	silver         one row a distinct event, cleaned and enriched
//	dwh            gold: dimensions, facts and views
//	etl            objects, loads, runs, quarantine and quality reports
//	feature_store  the offline features
//
// What fills the tables is functions/etl-step; the SQL of the steps is there. The
// tables themselves are defined in migrations/, each commented.
package warehouse

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"

	"github.com/millrace-dev/millrace/shared/health"
)

// Config says where the database is.
type Config struct {
	// URL is a connection string, postgres://user:password@host:port/database.
	URL string `envconfig:"DATABASE_URL" required:"true"`
	// MaxConns bounds the connections of one process. Raise it together with the
	// number of calls that a function handles at a time.
	MaxConns int32 `envconfig:"DATABASE_MAX_CONNS" default:"8"`
}

// DB is a pool of connections to a warehouse whose schema is up to date once Ready
// has returned nil. It is safe for concurrent use.
type DB struct {
	*pgxpool.Pool

	mu    sync.Mutex
	ready bool
}

// Open checks the configuration and makes a pool. It does not connect.
//
// A connection sees no schema but PostgreSQL's own by default, so that a name
// without its schema is an error everywhere and not only where the database's
// user has another name. Times are UTC.
func (c Config) Open(ctx context.Context) (*DB, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err) // pgx leaves the password out
	}
	if c.MaxConns < 1 {
		return nil, fmt.Errorf("DATABASE_MAX_CONNS=%d: must be at least 1", c.MaxConns)
	}
	pc.MaxConns = c.MaxConns
	pc.ConnConfig.ConnectTimeout = 5 * time.Second
	for name, value := range map[string]string{
		"search_path": "pg_catalog",
		"timezone":    "UTC",
		// What a step puts aside stays in memory; a connection that does not, has none.
		"temp_buffers": "16MB",
		// Statements here are many and short; compiling them costs more than it saves.
		"jit": "off",
	} {
		pc.ConnConfig.RuntimeParams[name] = value
	}
	pc.ConnConfig.Tracer = answers{health.Of(health.Postgres)}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return &DB{Pool: pool}, nil
}

// Ready brings the schema up to date, the first time, and costs nothing after that.
// Use it as a function's readiness check and before its first statement.
func (db *DB) Ready(ctx context.Context) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.ready {
		return nil
	}
	conn, err := db.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the warehouse: %w", err)
	}
	defer conn.Release()
	if err := Migrate(ctx, conn.Conn()); err != nil {
		return err
	}
	db.ready = true
	return nil
}

//go:embed migrations/*.sql
var embedded embed.FS

// versionTable holds the one number that says which migrations were applied.
const versionTable = "public.millrace_schema_version"

// Migrate brings the schema up to date. Any number of processes may call it at the
// same time: an advisory lock lets one work and the others find it done. Each
// migration is one transaction. A schema that is newer than this program, as during
// a rolling update, is left alone: migrations only add.
func Migrate(ctx context.Context, conn *pgx.Conn) error {
	files, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return err
	}
	names, err := migrate.FindMigrations(files)
	if err != nil {
		return fmt.Errorf("finding migrations: %w", err)
	}
	// Nearly always there is nothing to do: one query instead of the lock.
	if v, err := version(ctx, conn); err != nil {
		return err
	} else if v >= len(names) {
		return nil
	}
	m, err := migrator(ctx, conn, files, names)
	if err != nil {
		return err
	}
	err = m.Migrate(ctx)
	var newer migrate.BadVersionError
	if errors.As(err, &newer) {
		return nil // another, newer program was faster
	}
	if err != nil {
		return fmt.Errorf("migrating the warehouse: %w", err)
	}
	return nil
}

func migrator(ctx context.Context, conn *pgx.Conn, files fs.FS, names []string) (*migrate.Migrator, error) {
	m, err := migrate.NewMigrator(ctx, conn, versionTable)
	if err != nil {
		return nil, fmt.Errorf("preparing migrations: %w", err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("reading migration: %w", err)
		}
		m.AppendMigration(name, string(text), "")
	}
	return m, nil
}

func version(ctx context.Context, conn *pgx.Conn) (int, error) {
	var v int
	err := conn.QueryRow(ctx, "SELECT version FROM "+versionTable).Scan(&v)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the schema version: %w", err)
	}
	return v, nil
}

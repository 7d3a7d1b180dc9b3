// Package timeseries keeps the tables that are cut by time: readings, predictions and
// anomalies. It makes the table of a stream contract, widens it when the contract gets
// a field, makes the partitions that rows need, drops old ones and refreshes the hourly
// aggregates.
//
// Who writes rows notes their hours in timeseries.touched in the same transaction, if
// timeseries.aggregated says so. What this does is SQL of the warehouse's migrations, which takes TimescaleDB where the
// extension is there and PostgreSQL's own partitions where it is not; see the README
// beside this file. What writes rows is functions/store.
package timeseries

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/contract"
)

// DB is a connection, a pool or a transaction.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Name is a table's name with its schema, as SQL.
func Name(table string) string { return pgx.Identifier{"public", table}.Sanitize() }

// columnTypes are the SQL types of a contract's, and what else may hold their values in
// a table that is there already.
var columnTypes = map[contract.Type][]string{
	contract.String:    {"text", "character varying"},
	contract.Int64:     {"bigint"},
	contract.Double:    {"double precision"},
	contract.Boolean:   {"boolean"},
	contract.Timestamp: {"timestamp with time zone"},
}

// Stored are the fields of a contract that its table has columns for: all but the
// discriminator, which is the same in each row. The numbers are those of the fields.
func Stored(c *contract.Contract) []int {
	var list []int
	for i := range c.Fields {
		if c.Fields[i].Name != c.Discriminator {
			list = append(list, i)
		}
	}
	return list
}

// MismatchError says why a table cannot take a contract's records. It stays until
// someone changes the one or the other.
type MismatchError struct{ text string }

func (e *MismatchError) Error() string { return e.text }

// lockMaking is held while a table is made or widened.
const lockMaking = 470020653572

// Ensure makes the table of a contract, or adds the columns that it lacks, which are
// then null in the rows that are there. A column whose field is gone stays, and is null
// in new rows. Whatever else would need the table to be written anew is a
// *MismatchError. Any number of processes may call it at the same time.
func Ensure(ctx context.Context, db DB, c *contract.Contract) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(lockMaking)); err != nil {
			return fmt.Errorf("making table %s: %w", c.Table, err)
		}
		var there bool
		var owner *string
		var key []string
		err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL, t.contract, t.key
			FROM (SELECT $2::text AS name) n LEFT JOIN timeseries.tables t USING (name)`, Name(c.Table), c.Table).Scan(&there, &owner, &key)
		if err != nil {
			return fmt.Errorf("looking for table %s: %w", c.Table, err)
		}
		switch {
		case !there && key == nil:
			return create(ctx, tx, c)
		case there && key == nil:
			return mismatch(c, "a table of this name is there that was not made for a contract")
		case !there:
			return mismatch(c, "the table was dropped, but not from timeseries.tables")
		case owner == nil || *owner != c.Name:
			return mismatch(c, "the table is that of %s", ownerName(owner))
		case !slices.Equal(slices.Sorted(slices.Values(key)), slices.Sorted(slices.Values(c.NaturalKey))):
			return mismatch(c, "the naturalKey is %s, but the table was made with %s", strings.Join(c.NaturalKey, ", "), strings.Join(key, ", "))
		}
		return widen(ctx, tx, c)
	})
}

func ownerName(contract *string) string {
	if contract == nil {
		return "other events"
	}
	return "contract " + *contract
}

func mismatch(c *contract.Contract, format string, args ...any) error {
	return &MismatchError{fmt.Sprintf("contract %s cannot be stored in table %s: ", c.Name, c.Table) + fmt.Sprintf(format, args...)}
}

// create makes the table. Only what is in the key is NOT NULL: a later contract may
// leave out or loosen any other field.
func create(ctx context.Context, tx pgx.Tx, c *contract.Contract) error {
	var columns []string
	for _, i := range Stored(c) {
		f := &c.Fields[i]
		columns = append(columns, pgx.Identifier{f.Name}.Sanitize()+" "+columnTypes[f.Type][0])
	}
	if _, err := tx.Exec(ctx, "SELECT timeseries.make($1, $2, $3, $4, $5, $6)",
		c.Table, strings.Join(columns, ", "), c.NaturalKey, c.EventTime, c.Entity, c.Name); err != nil {
		return fmt.Errorf("making table %s: %w", c.Table, err)
	}
	return nil
}

func widen(ctx context.Context, tx pgx.Tx, c *contract.Contract) error {
	rows, err := tx.Query(ctx, `SELECT attname::text, format_type(atttypid, NULL), attnotnull FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, Name(c.Table))
	if err != nil {
		return fmt.Errorf("reading the columns of %s: %w", c.Table, err)
	}
	type column struct {
		Name, Type string
		NotNull    bool
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	if err != nil {
		return fmt.Errorf("reading the columns of %s: %w", c.Table, err)
	}
	known := map[string]column{}
	for _, l := range list {
		known[l.Name] = l
	}
	for _, i := range Stored(c) {
		f := &c.Fields[i]
		has, ok := known[f.Name]
		if ok && !slices.Contains(columnTypes[f.Type], has.Type) {
			return mismatch(c, "field %s is a %s, but its column is %s: give the field another name, or change the column", f.Name, f.Type, has.Type)
		}
		if ok {
			continue
		}
		if _, err := tx.Exec(ctx, "ALTER TABLE "+Name(c.Table)+" ADD COLUMN "+pgx.Identifier{f.Name}.Sanitize()+" "+columnTypes[f.Type][0]); err != nil {
			return fmt.Errorf("adding column %s to table %s: %w", f.Name, c.Table, err)
		}
	}
	return nil
}

// Refusals are the tables and aggregates that were to be TimescaleDB's when they were
// made, and what it said instead. They work all the same.
func Refusals(ctx context.Context, db DB) (map[string]string, error) {
	list := map[string]string{}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT name, refused FROM timeseries.tables WHERE refused IS NOT NULL
			UNION ALL SELECT name, refused FROM timeseries.aggregates WHERE refused IS NOT NULL`)
		if err != nil {
			return err
		}
		var name, reason string
		_, err = pgx.ForEachRow(rows, []any{&name, &reason}, func() error { list[name] = reason; return nil })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking at what TimescaleDB keeps: %w", err)
	}
	return list, nil
}

// ahead is how many days from today have their partitions made before rows come.
const ahead = 2

// unboundedDays are how old rows may be to get a partition of their own when nothing is
// ever dropped.
const unboundedDays = 20 * 366

// Window says which days get a partition: from where rows are dropped, or long ago if
// they never are, to the day after tomorrow. The others, such as those of a clock that
// is wrong, share one.
func Window(now time.Time, retention time.Duration) (first, last time.Time) {
	today := now.UTC().Truncate(24 * time.Hour)
	first = today.AddDate(0, 0, -unboundedDays)
	if retention > 0 {
		first = today.Add(-retention).Truncate(24 * time.Hour)
	}
	return first, today.AddDate(0, 0, ahead)
}

// Cover makes the partitions of days where they are missing. It waits for transactions
// that write into the table only where such rows are in the partition of other times.
func Cover(ctx context.Context, db DB, table string, days []time.Time) error {
	if len(days) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SELECT timeseries.cover($1, $2)", table, days)
		return err
	})
	if err != nil {
		return fmt.Errorf("making partitions of %s: %w", table, err)
	}
	return nil
}

// Upkeep is what is to be done from time to time: partitions for the days to come,
// dropping what is older than retention, which is 0 for never, and refreshing the
// aggregates. It returns how many hours were refreshed and days dropped. What others
// hold on to is left for the next time.
func Upkeep(ctx context.Context, db DB, now time.Time, retention time.Duration) (hours, dropped int, err error) {
	_, last := Window(now, retention)
	var days []time.Time
	for n := ahead; n >= 0; n-- {
		days = append(days, last.AddDate(0, 0, -n))
	}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT timeseries.cover(name, $1) FROM timeseries.tables", days); err != nil {
			return fmt.Errorf("making partitions: %w", err)
		}
		if retention > 0 {
			if err := tx.QueryRow(ctx, "SELECT timeseries.expire($1)", retention).Scan(&dropped); err != nil {
				return fmt.Errorf("dropping old partitions: %w", err)
			}
		}
		return nil
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "55P03" { // lock_not_available
		err = nil
	}
	if err != nil {
		return 0, dropped, err
	}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var known *time.Duration
		if retention > 0 {
			known = &retention
		}
		var refreshed *int
		if err := tx.QueryRow(ctx, "SELECT timeseries.refresh($1)", known).Scan(&refreshed); err != nil {
			return fmt.Errorf("refreshing aggregates: %w", err)
		}
		if refreshed != nil {
			hours = *refreshed
		}
		return nil
	})
	return hours, dropped, err
}

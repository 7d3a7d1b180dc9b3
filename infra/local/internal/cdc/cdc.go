// Package cdc captures the changes of one PostgreSQL table and publishes them to
// Kafka as Debezium does, for a machine without Java: the same keys, envelopes,
// operations and tombstones, so that nothing behind the topic can tell the two
// apart. It reads the server's logical replication stream (pgoutput).
//
// Every committed change is published at least once, in the order of the commits.
// The server is told to forget a change only after Kafka has acknowledged it, and
// the topic's last record tells a capture that starts again what it has already, so
// that as a rule no record is there twice either; should one be, both have the same
// id (see IDHeader), key, lsn and row.
//
// It is for one table with one writer of the topic. It is not for production, where
// Debezium belongs: arrays, intervals, money, bits, geometry and extension types are
// left out of the records, columns' default values out of the schemas, and there
// are no signals, heartbeats or incremental snapshots.
package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config says what is captured and where it goes.
type Config struct {
	DatabaseURL string
	// Table is schema.table; it is waited for if it does not exist.
	Table string
	// Prefix is what Debezium calls topic.prefix: the topic is prefix.schema.table.
	Prefix string
	// Slot and Publication are made when missing.
	Slot, Publication string
	// Kafka says how to reach the brokers.
	Kafka []kgo.Opt
	Log   *slog.Logger
}

func (c *Config) names() (names, error) {
	schema, table, ok := strings.Cut(c.Table, ".")
	if !ok || schema == "" || table == "" {
		return names{}, fmt.Errorf("the table is %q; it has to be schema.table", c.Table)
	}
	return names{c.Prefix, schema, table}, nil
}

func (c *Config) topic() string { return c.Prefix + "." + c.Table }

// unusableError is what only a person can put right.
type unusableError struct{ text string }

func (e *unusableError) Error() string { return e.text }

// Run captures until ctx ends. It outlives the database and Kafka, whose absence
// costs time only, and ends with an error where the database's settings do not
// allow a capture.
func Run(ctx context.Context, cfg Config) error {
	n, err := cfg.names()
	if err != nil {
		return err
	}
	if _, err := pgconn.ParseConfig(cfg.DatabaseURL); err != nil {
		return fmt.Errorf("reading the database's address: %w", err)
	}
	const shortPause, longPause = 200 * time.Millisecond, 5 * time.Second
	pause, trusted := shortPause, true
	for {
		s := &session{cfg: &cfg, log: cfg.Log, encoder: encoder{names: n}, trusted: trusted}
		err := s.run(ctx)
		var unusable *unusableError
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to end
		case errors.As(err, &unusable):
			return err
		}
		// After a record that Kafka did not take, later ones may be there all the same.
		trusted = trusted && !s.refused
		if s.streaming {
			pause = shortPause
		}
		cfg.Log.Warn("the capture starts again", "error", err, "pause", pause.String())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, longPause)
	}
}

// session is one try: a connection for questions, one for the stream, and a
// producer.
type session struct {
	cfg *Config
	log *slog.Logger
	encoder

	db          *pgx.Conn
	replication *pgconn.PgConn
	publisher   *publisher

	// seen is how far the log was read, confirmed how much of it the server may
	// forget.
	seen, confirmed pglogrepl.LSN
	streaming       bool
	// columns are those that the log was told of.
	columns string
	// trusted says that the topic's end tells what it holds; refused that a record
	// was not taken.
	trusted, refused bool
}

func (s *session) table() pgx.Identifier { return pgx.Identifier{s.schema, s.encoder.table} }

// settings make the server write values in the one way that is read here.
var settings = map[string]string{
	"application_name": "millrace cdc", "client_encoding": "UTF8", "TimeZone": "UTC", "DateStyle": "ISO",
	"bytea_output": "hex", "extra_float_digits": "1",
	"statement_timeout": "0", "idle_in_transaction_session_timeout": "0",
}

func (s *session) run(ctx context.Context) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = s.db.Close(closing)
		if s.replication != nil {
			_ = s.replication.Close(closing)
		}
	}()
	if err := s.checkServer(ctx); err != nil {
		return err
	}
	if err := s.awaitTable(ctx); err != nil {
		return err
	}
	fresh, err := s.ensurePublication(ctx)
	if err != nil {
		return err
	}
	exists, err := s.checkSlot(ctx, fresh)
	if err != nil {
		return err
	}
	if err := s.reconnect(ctx); err != nil {
		return err
	}
	system, err := pglogrepl.IdentifySystem(ctx, s.replication)
	if err != nil {
		return fmt.Errorf("asking the server who it is: %w", err)
	}
	s.database = system.DBName
	id := fmt.Sprintf("%s/%d/%s/%s", system.SystemID, system.Timeline, system.DBName, s.cfg.Slot)
	s.publisher, err = newPublisher(s.cfg.Kafka, s.cfg.topic(), id, func() {
		s.log.Warn("the broker lost what it knew of this producer; the topic may hold some records twice", "topic", s.cfg.topic())
	})
	if err != nil {
		return err
	}
	defer func() {
		_, _, err := s.publisher.acknowledged()
		s.refused = err != nil
		s.publisher.close()
	}()
	last, known, err := s.publisher.prepare(ctx, s.cfg.Kafka)
	if err != nil {
		return err
	}
	if !known || !s.trusted {
		last = position{}
	}
	if !exists {
		if err := s.snapshot(ctx); err != nil {
			return err
		}
	}
	return s.stream(ctx, last)
}

func (s *session) connect(ctx context.Context) error {
	config, err := pgx.ParseConfig(s.cfg.DatabaseURL)
	if err != nil {
		return fmt.Errorf("reading the database's address: %w", err)
	}
	for name, value := range settings {
		config.RuntimeParams[name] = value
	}
	if s.db, err = pgx.ConnectConfig(ctx, config); err != nil {
		return fmt.Errorf("connecting to the database: %w", err)
	}
	return nil
}

// reconnect makes a new connection for the stream.
func (s *session) reconnect(ctx context.Context) error {
	if s.replication != nil {
		_ = s.replication.Close(ctx)
	}
	config, err := pgconn.ParseConfig(s.cfg.DatabaseURL)
	if err != nil {
		return fmt.Errorf("reading the database's address: %w", err)
	}
	for name, value := range settings {
		config.RuntimeParams[name] = value
	}
	config.RuntimeParams["replication"] = "database"
	s.replication, err = pgconn.ConnectConfig(ctx, config)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "42501" {
		return &unusableError{fmt.Sprintf("the database's user may not replicate (%s); run: ALTER ROLE ... REPLICATION", refused.Message)}
	}
	if err != nil {
		return fmt.Errorf("connecting for replication: %w", err)
	}
	return nil
}

func (s *session) checkServer(ctx context.Context) error {
	var level string
	if err := s.db.QueryRow(ctx, "SHOW wal_level").Scan(&level); err != nil {
		return fmt.Errorf("asking for wal_level: %w", err)
	}
	if level != "logical" {
		return &unusableError{fmt.Sprintf("the server's wal_level is %s; capturing changes needs wal_level=logical, set it and restart the server", level)}
	}
	var keep string
	if err := s.db.QueryRow(ctx, "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'").Scan(&keep); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("asking for max_slot_wal_keep_size: %w", err)
	}
	if keep == "-1" || keep == "" {
		s.log.Warn("the server keeps its log without bound while no capture runs, until its disk is full; set max_slot_wal_keep_size", "slot", s.cfg.Slot)
	}
	return nil
}

// awaitTable waits until there is something to capture.
func (s *session) awaitTable(ctx context.Context) error {
	for told := false; ; told = true {
		var identity string
		var keyed bool
		err := s.db.QueryRow(ctx, `
			SELECT relreplident::text, EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)
			FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 AND relname = $2 AND relkind = 'r'`,
			s.schema, s.encoder.table).Scan(&identity, &keyed)
		switch {
		case err == nil:
			if identity != "f" {
				s.log.Warn("deletes will hold the key only, and without a key the server refuses updates and deletes; run: ALTER TABLE ... REPLICA IDENTITY FULL",
					"table", s.cfg.Table, "primary_key", keyed)
			}
			return nil
		case !errors.Is(err, pgx.ErrNoRows):
			return fmt.Errorf("looking for table %s: %w", s.cfg.Table, err)
		}
		if !told {
			s.log.Info("waiting for the table", "table", s.cfg.Table)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// published counts how often the table is in the publication, which does not exist
// without ErrNoRows.
func (s *session) published(ctx context.Context) (tables int, err error) {
	err = s.db.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_publication_tables t WHERE t.pubname = p.pubname AND schemaname = $2 AND tablename = $3)
		FROM pg_publication p WHERE p.pubname = $1`, s.cfg.Publication, s.schema, s.encoder.table).Scan(&tables)
	return tables, err
}

// ensurePublication makes the server publish the table. fresh tells that it did not
// until now, so that changes may have been missed.
func (s *session) ensurePublication(ctx context.Context) (fresh bool, err error) {
	name := pgx.Identifier{s.cfg.Publication}.Sanitize()
	tables, err := s.published(ctx)
	var sql string
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		sql = "CREATE PUBLICATION " + name + " FOR TABLE ONLY " + s.table().Sanitize()
	case err != nil:
		return false, fmt.Errorf("looking for publication %s: %w", s.cfg.Publication, err)
	case tables == 0:
		sql = "ALTER PUBLICATION " + name + " ADD TABLE ONLY " + s.table().Sanitize()
	default:
		return false, nil
	}
	if _, err := s.db.Exec(ctx, sql); err != nil {
		return false, fmt.Errorf("publishing table %s: %w", s.cfg.Table, err)
	}
	return true, nil
}

// checkPublished finds out that the table was dropped, which takes it out of the
// publication without a word in the stream.
func (s *session) checkPublished(ctx context.Context) error {
	tables, err := s.published(ctx)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("looking for publication %s: %w", s.cfg.Publication, err)
	}
	if tables == 0 {
		return fmt.Errorf("table %s is not published any more: it, or publication %s, was dropped", s.cfg.Table, s.cfg.Publication)
	}
	return nil
}

// checkSlot tells whether there is a slot to go on from. One that the server has
// given up, or that has not seen the table's changes, is dropped.
func (s *session) checkSlot(ctx context.Context, fresh bool) (exists bool, err error) {
	var plugin, database, status string
	err = s.db.QueryRow(ctx, `
		SELECT plugin::text, database::text, coalesce(wal_status, ''), coalesce(confirmed_flush_lsn, '0/0')
		FROM pg_replication_slots WHERE slot_name = $1`, s.cfg.Slot).Scan(&plugin, &database, &status, &s.confirmed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking for replication slot %s: %w", s.cfg.Slot, err)
	case plugin != "pgoutput" || database != s.db.Config().Database:
		return false, &unusableError{fmt.Sprintf("replication slot %s belongs to plugin %s and database %s; choose another name", s.cfg.Slot, plugin, database)}
	case status == "lost":
		s.log.Error("the server has removed log that was not captured yet (max_slot_wal_keep_size): "+
			"updates before the new snapshot are seen as their last state, and deletes not at all", "slot", s.cfg.Slot)
	case fresh:
		s.log.Warn("the table was not published until now, as after it was dropped and made again: taking a new snapshot",
			"table", s.cfg.Table, "slot", s.cfg.Slot)
	default:
		return true, nil
	}
	s.confirmed = 0
	if _, err := s.db.Exec(ctx, "SELECT pg_drop_replication_slot($1)", s.cfg.Slot); err != nil {
		return false, fmt.Errorf("dropping replication slot %s: %w", s.cfg.Slot, err)
	}
	return false, nil
}

// use takes over a table's columns.
func (s *session) use(list []attribute) (*relation, error) {
	r, err := newRelation(s.names, list)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", s.cfg.Table, err)
	}
	names := make([]string, len(list))
	for i, a := range list {
		names[i] = a.Name
	}
	columns := strings.Join(names, " ")
	if columns == s.columns {
		return r, nil // sent again, as the server does now and then
	}
	s.columns = columns
	s.log.Info("the table has columns", "table", s.cfg.Table, "columns", columns)
	if unknown := r.unknown(); len(unknown) > 0 {
		s.log.Warn("columns are left out of the records: nothing here knows their types", "table", s.cfg.Table, "columns", strings.Join(unknown, " "))
	}
	return r, nil
}

// records makes the records of a change. A row that cannot be shown becomes a
// record without rows, which gets an invalid verdict: it must not stop the others.
func (s *session) records(r *relation, op byte, before, after []value, at origin) []record {
	now := time.Now()
	list, err := s.changes(r, op, before, after, at, now)
	if err == nil {
		return list
	}
	s.log.Error("a change cannot be shown; its record is without the row", "op", string(op), "lsn", at.lsn.String(), "error", err)
	list, err = s.changes(&relation{valueSchema: r.valueSchema}, op, nil, nil, at, now)
	if err != nil {
		panic(err) // nothing is left that could fail
	}
	return list
}

package cdc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// snapshot publishes every row of the table as it was at one point of the log, and
// then makes the slot, which starts at that point.
//
// The slot comes last, as a copy of a temporary one that lives as long as the
// connection: a slot with the capture's name says that the snapshot is complete, and
// one that was interrupted leaves nothing behind.
func (s *session) snapshot(ctx context.Context) error {
	began := time.Now()
	temporary := s.cfg.Slot + "_snapshot"
	s.log.Info("taking a snapshot; it begins when the transactions that are open now have ended", "table", s.cfg.Table)
	slot, err := pglogrepl.CreateReplicationSlot(ctx, s.replication, temporary, "pgoutput",
		pglogrepl.CreateReplicationSlotOptions{Temporary: true, SnapshotAction: "EXPORT_SNAPSHOT"})
	if err != nil {
		return fmt.Errorf("making the snapshot's replication slot: %w", err)
	}
	point, err := pglogrepl.ParseLSN(slot.ConsistentPoint)
	if err != nil {
		return fmt.Errorf("reading the snapshot's position %q: %w", slot.ConsistentPoint, err)
	}
	rows, err := s.publishRows(ctx, slot.SnapshotName, point)
	if err != nil {
		return err
	}
	if err := s.publisher.flush(ctx); err != nil {
		return err
	}
	if _, err := s.db.Exec(ctx, "SELECT pg_copy_logical_replication_slot($1, $2, false)", temporary, s.cfg.Slot); err != nil {
		return fmt.Errorf("making the replication slot %s: %w", s.cfg.Slot, err)
	}
	s.confirmed = point
	s.log.Info("the snapshot is complete", "table", s.cfg.Table, "rows", rows, "lsn", point.String(), "seconds", time.Since(began).Seconds())
	// The temporary slot goes with its connection, which cannot stream from another.
	return s.reconnect(ctx)
}

// publishRows publishes the rows that a transaction sees.
func (s *session) publishRows(ctx context.Context, exported string, point pglogrepl.LSN) (int, error) {
	tx, err := s.db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return 0, fmt.Errorf("beginning the snapshot: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// The server made this name; it takes no parameters here.
	if _, err := tx.Exec(ctx, "SET TRANSACTION SNAPSHOT '"+strings.ReplaceAll(exported, "'", "''")+"'"); err != nil {
		return 0, fmt.Errorf("beginning the snapshot: %w", err)
	}
	at := origin{lsn: point}
	var xid int64
	if err := tx.QueryRow(ctx, "SELECT now(), txid_snapshot_xmax(txid_current_snapshot())").Scan(&at.committed, &xid); err != nil {
		return 0, fmt.Errorf("beginning the snapshot: %w", err)
	}
	at.txID = uint32(xid)
	list, err := attributes(ctx, s.db, s.cfg.Table)
	if err != nil {
		return 0, err
	}
	r, err := s.use(list)
	if err != nil {
		return 0, err
	}
	columns := make([]string, len(list))
	for i, a := range list {
		columns[i] = pgx.Identifier{a.Name}.Sanitize()
	}
	// Without parameters all results are text, as in the stream.
	reader := s.db.PgConn().ExecParams(ctx, "SELECT "+strings.Join(columns, ", ")+" FROM ONLY "+s.table().Sanitize(), nil, nil, nil, nil)
	n, err := s.publishResult(ctx, r, reader, at)
	if _, closing := reader.Close(); err == nil && closing != nil {
		err = fmt.Errorf("reading the rows of %s: %w", s.cfg.Table, closing)
	}
	return n, err
}

// publishResult publishes rows one behind the reading, since the last one is marked.
func (s *session) publishResult(ctx context.Context, r *relation, reader *pgconn.ResultReader, at origin) (int, error) {
	t := s.publisher.begin()
	n := 0
	var row []value
	publish := func(mark string) error {
		at.snapshot = mark
		place := "snapshot " + strconv.FormatUint(uint64(at.lsn), 10) + "/" + strconv.Itoa(n)
		n++
		for _, rec := range s.records(r, 'r', nil, row, at) {
			s.publisher.publish(t, rec, place)
		}
		return s.awaitRoom(ctx, func() error { return nil })
	}
	for reader.NextRow() {
		if row != nil {
			mark := "true"
			if n == 0 {
				mark = "first"
			}
			if err := publish(mark); err != nil {
				return n, err
			}
		}
		row = make([]value, len(reader.Values()))
		for i, v := range reader.Values() {
			row[i] = value{text: string(v), null: v == nil}
		}
	}
	if row != nil {
		if err := publish("last"); err != nil {
			return n, err
		}
	}
	s.publisher.commit(t, at.lsn)
	return n, nil
}

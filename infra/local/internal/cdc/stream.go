package cdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// statusEvery is how often the server is told what Kafka has. It ends a
	// connection from which it hears nothing for a minute.
	statusEvery = time.Second
	// checkEvery is how often it is looked whether the table is still the one that
	// is captured.
	checkEvery = 5 * time.Second
)

// stream publishes the changes from where the slot stands until ctx ends or
// something fails. Changes up to last are in the topic already.
func (s *session) stream(ctx context.Context, last position) error {
	err := pglogrepl.StartReplication(ctx, s.replication, s.cfg.Slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names '" + s.cfg.Publication + "'"},
	})
	if err != nil {
		return fmt.Errorf("starting to replicate from slot %s: %w", s.cfg.Slot, err)
	}
	s.log.Info("capturing", "table", s.cfg.Table, "topic", s.cfg.topic(), "slot", s.cfg.Slot)
	s.streaming = true
	d := &decoder{session: s, last: last}
	status, check := time.Now(), time.Now().Add(checkEvery)
	for {
		if now := time.Now(); now.After(check) {
			check = now.Add(checkEvery)
			if err := s.checkPublished(ctx); err != nil {
				return err
			}
		}
		if now := time.Now(); now.After(status) {
			status = now.Add(statusEvery)
			if err := s.tell(ctx); err != nil {
				return err
			}
		}
		message, err := s.receive(ctx, status)
		switch {
		case ctx.Err() != nil:
			return s.finish(context.WithoutCancel(ctx))
		case err != nil:
			return err
		case message == nil:
			continue
		}
		urgent, err := d.take(ctx, message)
		if err != nil {
			return err
		}
		if urgent {
			status = time.Now()
		}
		if err := s.awaitRoom(ctx, func() error { return s.tell(ctx) }); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// receive waits for a part of the stream until a time; nil says that none came.
func (s *session) receive(ctx context.Context, until time.Time) ([]byte, error) {
	waiting, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	message, err := s.replication.ReceiveMessage(waiting)
	if err != nil {
		if pgconn.Timeout(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("reading the stream: %w", err)
	}
	switch m := message.(type) {
	case *pgproto3.CopyData:
		return m.Data, nil
	case *pgproto3.ErrorResponse:
		return nil, fmt.Errorf("reading the stream: %w", pgconn.ErrorResponseToPgError(m))
	case *pgproto3.CopyDone:
		return nil, errors.New("reading the stream: the server ends it")
	}
	return nil, nil
}

// tell confirms what Kafka has acknowledged, and nothing else. Told nothing, the
// server would take the capture for gone.
func (s *session) tell(ctx context.Context) error {
	end, idle, err := s.publisher.acknowledged()
	if err != nil {
		return err
	}
	s.confirmed = max(s.confirmed, end)
	if idle {
		// The table's changes are all in Kafka, so what others wrote is of no use.
		s.confirmed = max(s.confirmed, s.seen)
	}
	err = pglogrepl.SendStandbyStatusUpdate(ctx, s.replication, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: s.confirmed, WALFlushPosition: s.confirmed, WALApplyPosition: s.confirmed,
	})
	if err != nil {
		return fmt.Errorf("confirming: %w", err)
	}
	return nil
}

// finish confirms what is on its way, so that the next start has nothing to skip.
func (s *session) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.publisher.flush(ctx); err != nil {
		return err
	}
	return s.tell(ctx)
}

// awaitRoom waits while Kafka is behind; meanwhile is called once in a while.
func (s *session) awaitRoom(ctx context.Context, meanwhile func() error) error {
	if !s.publisher.full() {
		return nil
	}
	ticker := time.NewTicker(statusEvery)
	defer ticker.Stop()
	for s.publisher.full() {
		select {
		case <-s.publisher.room:
		case <-ticker.C:
			if err := meanwhile(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, _, err := s.publisher.acknowledged()
	return err
}

// decoder turns the stream into records.
type decoder struct {
	*session
	last     position // in the topic already
	id       uint32   // of the table, as the stream calls it
	relation *relation
	tx       *transaction
	at       origin
	place    position
	skipped  int
}

// take handles a part of the stream. urgent asks to tell the server at once how far
// the capture is.
func (d *decoder) take(ctx context.Context, data []byte) (urgent bool, err error) {
	if len(data) == 0 {
		return false, errors.New("reading the stream: an empty message")
	}
	switch data[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		m, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return false, fmt.Errorf("reading the stream: %w", err)
		}
		if d.tx == nil {
			d.seen = max(d.seen, m.ServerWALEnd)
		}
		return m.ReplyRequested, nil
	case pglogrepl.XLogDataByteID:
		m, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return false, fmt.Errorf("reading the stream: %w", err)
		}
		message, err := parse(m.WALData)
		if err != nil {
			return false, err
		}
		return false, d.message(ctx, message, m.WALStart)
	}
	return false, nil
}

// parse reads a message of pgoutput. The library's readers trust the lengths that a
// message says it has.
func parse(data []byte) (m pglogrepl.Message, err error) {
	if len(data) == 0 {
		return nil, errors.New("decoding a message of the stream: it is empty")
	}
	defer func() {
		if r := recover(); r != nil {
			m, err = nil, fmt.Errorf("decoding a message of type %q: it is cut off or broken (%v)", data[0], r)
		}
	}()
	if !whole(data) {
		return nil, fmt.Errorf("decoding a message of type %q: it is cut off or broken", data[0])
	}
	m, err = pglogrepl.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("decoding a message of type %q: %w", data[0], err)
	}
	return m, nil
}

// whole tells that the lists and rows of a message are as long as they say.
func whole(data []byte) bool {
	const header = 1 + 4 // type, and the table or a number of tables
	switch pglogrepl.MessageType(data[0]) {
	case pglogrepl.MessageTypeInsert, pglogrepl.MessageTypeUpdate, pglogrepl.MessageTypeDelete:
		if len(data) < header {
			return false
		}
	case pglogrepl.MessageTypeTruncate:
		return len(data) > header && uint64(binary.BigEndian.Uint32(data[1:]))*4 == uint64(len(data)-header-1)
	case pglogrepl.MessageTypeMessage:
		return false // not asked for
	default:
		return true
	}
	for rest := data[header:]; len(rest) > 0; {
		if len(rest) < 3 { // which row, number of columns
			return false
		}
		columns := binary.BigEndian.Uint16(rest[1:])
		rest = rest[3:]
		for range columns {
			if len(rest) < 1 {
				return false
			}
			kind := rest[0]
			rest = rest[1:]
			if kind != pglogrepl.TupleDataTypeText && kind != pglogrepl.TupleDataTypeBinary {
				continue
			}
			if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.BigEndian.Uint32(rest)) {
				return false
			}
			rest = rest[4+binary.BigEndian.Uint32(rest):]
		}
	}
	return true
}

func (d *decoder) message(ctx context.Context, message pglogrepl.Message, lsn pglogrepl.LSN) error {
	d.at.lsn = lsn
	switch m := message.(type) {
	case *pglogrepl.BeginMessage:
		d.tx = d.publisher.begin()
		d.at.committed, d.at.txID, d.at.snapshot = m.CommitTime, m.Xid, "false"
		d.place = position{commit: m.FinalLSN}
	case *pglogrepl.CommitMessage:
		if d.tx == nil {
			return errors.New("decoding the stream: a commit without a begin")
		}
		d.publisher.commit(d.tx, m.TransactionEndLSN)
		d.tx = nil
		d.at.previous = m.TransactionEndLSN
		d.seen = max(d.seen, m.TransactionEndLSN)
		if d.skipped > 0 && d.place.after(d.last) {
			d.log.Info("left out records that the topic has already", "records", d.skipped)
			d.skipped = 0
		}
	case *pglogrepl.RelationMessage:
		if m.Namespace != d.schema || m.RelationName != d.encoder.table {
			return nil
		}
		return d.describe(ctx, m)
	case *pglogrepl.InsertMessage:
		return d.change(m.RelationID, 'c', nil, m.Tuple)
	case *pglogrepl.UpdateMessage:
		return d.change(m.RelationID, 'u', m.OldTuple, m.NewTuple)
	case *pglogrepl.DeleteMessage:
		return d.change(m.RelationID, 'd', m.OldTuple, nil)
	case *pglogrepl.TruncateMessage:
		for _, id := range m.RelationIDs {
			if id == d.id && d.relation != nil {
				// As Debezium does unless it is told otherwise (skipped.operations=t).
				d.log.Warn("the table was truncated: its rows are gone without a record of each", "table", d.cfg.Table, "lsn", lsn.String())
			}
		}
	}
	return nil
}

// describe takes over the table's columns, which the server sends before the first
// change and whenever they are others.
func (d *decoder) describe(ctx context.Context, m *pglogrepl.RelationMessage) error {
	catalog, err := attributes(ctx, d.db, d.cfg.Table)
	if err != nil {
		return err
	}
	d.id = m.RelationID
	d.relation, err = d.use(streamed(m, catalog))
	return err
}

func (d *decoder) change(id uint32, op byte, before, after *pglogrepl.TupleData) error {
	if d.relation == nil || id != d.id {
		return nil
	}
	if d.tx == nil {
		return errors.New("decoding the stream: a change outside of a transaction")
	}
	for _, rec := range d.records(d.relation, op, tuple(before), tuple(after), d.at) {
		d.place.number++
		if !d.place.after(d.last) {
			d.skipped++
			continue
		}
		d.publisher.publish(d.tx, rec, d.place.String())
	}
	return nil
}

func tuple(t *pglogrepl.TupleData) []value {
	if t == nil {
		return nil
	}
	row := make([]value, len(t.Columns))
	for i, c := range t.Columns {
		switch c.DataType {
		case pglogrepl.TupleDataTypeNull:
			row[i].null = true
		case pglogrepl.TupleDataTypeToast:
			row[i].unchanged = true
		default:
			row[i].text = string(c.Data)
		}
	}
	return row
}

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// storage is the handler. It is safe for concurrent use.
type storage struct {
	db     *warehouse.DB
	tables map[route]*target
	series *series
	upkeep *upkeep
	// careful is how many transactions are still to look for rows that are there before
	// they write; see transaction.
	careful atomic.Int32
}

// route is how an event finds its table: by its type, and by the contract that its
// extension names where records of several contracts have one type.
type route struct{ event, contract string }

// target is a table with its statements.
type target struct {
	*table
	// stage makes the temporary table that rows are copied into; move inserts what is
	// new from there.
	stage, copy, move string
	// direct copies rows right into the table, which fails if one is there; empty if
	// that is no mistake.
	direct string
	// insert writes one row without either.
	insert string
	// days are those of a table that is cut by time that have their partition.
	days days
}

func newStorage(db *warehouse.DB, tables []*table, contracts *contract.Set, c UpkeepConfig) (*storage, error) {
	s := &storage{db: db, tables: map[route]*target{}}
	for _, t := range tables {
		s.add(t)
	}
	s.series = newSeries(db, contracts, c.MetricsRetention)
	for _, t := range s.series.tables() {
		s.add(t)
	}
	var err error
	s.upkeep, err = newUpkeep(db, c)
	return s, err
}

// add makes the statements of a table. It is called before any event comes.
func (s *storage) add(t *table) {
	i := len(s.tables)
	columns, key := strings.Join(t.columns, ", "), strings.Join(t.key, ", ")
	values := make([]string, len(t.columns))
	for j := range values {
		values[j] = fmt.Sprintf("$%d", j+1)
	}
	conflict, order := t.conflict, t.order
	if conflict == "" {
		conflict, order = "DO NOTHING", "number"
	}
	insert := fmt.Sprintf("INSERT INTO %s AS t (%s) VALUES (%s) ON CONFLICT (%s) %s", t.name, columns, strings.Join(values, ", "), key, conflict)
	// In the order of the key, so that two calls with the same events wait for each
	// other rather than deadlock; of equal ones the first that came, or what order says.
	move := fmt.Sprintf("INSERT INTO %[2]s AS t (%[3]s) SELECT DISTINCT ON (%[4]s) %[3]s FROM pg_temp.incoming_%[1]d ORDER BY %[4]s, %[5]s ON CONFLICT (%[4]s) %[6]s",
		i, t.name, columns, key, order, conflict)
	if t.contract != "" {
		// Letters, digits and underscores need no escape.
		note := fmt.Sprintf("WITH moved AS (%%s RETURNING %s AS at) INSERT INTO timeseries.touched SELECT DISTINCT '%[2]s', date_trunc('hour', at) FROM moved WHERE timeseries.aggregated('%[2]s')",
			t.time, t.series)
		insert, move = fmt.Sprintf(note, insert), fmt.Sprintf(note, move)
	}
	to := &target{
		table: t, insert: insert, move: move,
		// A row's place in the table says nothing about when it came: hence number.
		stage: fmt.Sprintf("CREATE TEMP TABLE IF NOT EXISTS incoming_%d ON COMMIT DELETE ROWS AS SELECT %s, 0 AS number FROM %s WITH NO DATA", i, columns, t.name),
		copy:  fmt.Sprintf("COPY pg_temp.incoming_%d (%s, number) FROM STDIN BINARY", i, columns),
	}
	if t.conflict == "" {
		to.direct = fmt.Sprintf("COPY %s (%s) FROM STDIN BINARY", t.name, columns)
	}
	for _, typ := range append([]string{t.event}, t.also...) {
		s.tables[route{typ, t.contract}] = to
	}
}

// find returns the table of an event; nil if it has none, without an error if it needs
// none.
func (s *storage) find(e *event.Event) (*target, error) {
	typ := e.Type()
	if t := s.tables[route{typ, ""}]; t != nil {
		return t, nil
	}
	name, _ := e.Extensions()[events.Contract].(string)
	if t := s.tables[route{typ, name}]; t != nil {
		return t, nil
	}
	return nil, s.series.missing(typ, name)
}

// ready brings the schema up to date, with the tables of the contracts.
func (s *storage) ready(ctx context.Context) error {
	if err := s.db.Ready(ctx); err != nil {
		return err
	}
	return s.series.ready(ctx)
}

// entry is an event's row on its way.
type entry struct {
	event int // in the batch
	to    *target
	row   []byte
	hour  int32 // since 1970, of a table that is cut by time
}

// retryAfter is when a sender may try again after the database could not be used.
const retryAfter = 2 * time.Second

// Handle writes the rows of all events in one transaction. An event that cannot
// become a row is refused alone; when the database cannot be used, all are pushed
// back.
func (s *storage) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	entries := make([]entry, 0, len(batch))
	var ticks []int
	buf := make([]byte, 0, 256*len(batch))
	for i := range batch {
		e := &batch[i]
		if e.Type() == events.Tick {
			ticks = append(ticks, i)
			continue
		}
		t, err := s.find(e)
		if t == nil {
			results[i].Err = err
			continue
		}
		r := row{buf: binary.BigEndian.AppendUint16(buf, uint16(len(t.columns)))}
		if err := t.write(e, &r); err != nil {
			results[i].Err = function.Invalid("%s: %w", t.name, err)
			continue
		}
		if r.fields != len(t.columns) {
			results[i].Err = fmt.Errorf("%s: a row has %d values for %d columns", t.name, r.fields, len(t.columns))
			continue
		}
		entries = append(entries, entry{i, t, r.buf[len(buf):], r.hour})
		buf = r.buf
	}
	if len(entries)+len(ticks) == 0 {
		return results
	}
	err := s.ready(ctx)
	if err == nil {
		entries = s.series.refuse(entries, results)
		err = s.series.cover(ctx, entries)
	}
	if err != nil {
		fail(results, entries, ticks, function.Unavailable(err, retryAfter))
		return results
	}
	s.write(ctx, entries, results)
	if len(ticks) > 0 {
		// Ticks that come together are one.
		if err := errors.Join(s.upkeep.do(ctx), s.series.upkeep(ctx)); err != nil {
			fail(results, nil, ticks, function.Unavailable(err, retryAfter))
		}
	}
	return results
}

func fail(results []function.Result, entries []entry, ticks []int, err error) {
	for _, e := range entries {
		results[e.event].Err = err
	}
	for _, i := range ticks {
		results[i].Err = err
	}
}

// write sets the results of the entries. A row that the database refuses takes the
// others of its transaction along, so it is looked for by halves.
func (s *storage) write(ctx context.Context, entries []entry, results []function.Result) {
	if len(entries) == 0 {
		return
	}
	err := s.transaction(ctx, entries)
	switch {
	case err == nil:
	case !refused(err):
		fail(results, entries, nil, err)
	case len(entries) > 1:
		s.write(ctx, entries[:len(entries)/2], results)
		s.write(ctx, entries[len(entries)/2:], results)
	default:
		results[entries[0].event].Err = function.Invalid("%s: %w", entries[0].to.name, err)
	}
}

// maxAttempts bounds how often a transaction is begun anew after a deadlock.
const maxAttempts = 5

// carefulFor is how many transactions are careful after one that had to be.
const carefulFor = 20

// transaction writes the rows. Most are new, and then copying them right into the table
// takes half the time of putting them aside and moving the new ones; where one is not,
// that is done, and for a while, since events seldom come again alone.
func (s *storage) transaction(ctx context.Context, entries []entry) error {
	direct := s.careful.Load() <= 0
	if !direct {
		s.careful.Add(-1)
	}
	for attempt := 1; ; attempt++ {
		err := s.attempt(ctx, entries, direct)
		if c := code(err); direct && err != nil && (c == "23505" || c[:2] == "40") { // unique_violation
			direct = false
			s.careful.Store(carefulFor)
			continue
		}
		switch class := code(err)[:2]; {
		case err == nil || refused(err):
			return err
		case class == "40" && attempt < maxAttempts:
			continue
		case class == "42" || class == "22":
			return err // of this program or its schema: not for good, but no outage
		}
		return function.Unavailable(err, retryAfter)
	}
}

// code is an error's SQLSTATE, that of a lost connection when it has none, and that of
// a failure to serialize when the row's partition was made by another process while the
// row was on its way to the one of other times.
func code(err error) string {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return "08006"
	case pg.Code == "23514" && pg.ConstraintName == "": // check_violation, of a partition's bounds
		return "40001"
	}
	return pg.Code
}

// refused tells errors that are about a row, and not about how it was written.
func refused(err error) bool {
	c := code(err)
	return c != "22P03" && c != "22P04" && (c[:2] == "22" || c[:2] == "23")
}

// few is up to how many rows are inserted one by one. A temporary table costs about
// as much as this many rows.
const few = 40

// attempt is one transaction. When it fails and cannot be rolled back, the connection is
// closed by its release, which ends the transaction.
func (s *storage) attempt(ctx context.Context, entries []entry, direct bool) error {
	conn, err := s.db.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the warehouse: %w", err)
	}
	defer conn.Release()
	if len(entries) <= few {
		return insertEach(ctx, conn.Conn(), entries)
	}
	pg := conn.Conn().PgConn()
	if err = copyAll(ctx, pg, entries, direct); err != nil && !pg.IsClosed() {
		_ = pg.Exec(ctx, "ROLLBACK").Close()
	}
	return err
}

// insertEach writes the rows in one round trip, which makes it one transaction.
func insertEach(ctx context.Context, conn *pgx.Conn, entries []entry) error {
	var b pgconn.Batch
	for _, e := range entries {
		// Prepared once a connection.
		sd, err := conn.Prepare(ctx, e.to.insert, e.to.insert)
		if err != nil {
			return fmt.Errorf("preparing for %s: %w", e.to.name, err)
		}
		b.ExecPrepared(sd.Name, values(e.row), binaryFormat, nil)
	}
	if err := conn.PgConn().ExecBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("inserting rows: %w", err)
	}
	return nil
}

// binaryFormat is that of all values.
var binaryFormat = []int16{1}

// values are those of a row, which as parameters have the format that they have in
// COPY.
func values(row []byte) [][]byte {
	list := make([][]byte, 0, binary.BigEndian.Uint16(row))
	for rest := row[2:]; len(rest) > 0; {
		n := int32(binary.BigEndian.Uint32(rest))
		rest = rest[4:]
		if n < 0 {
			list = append(list, nil)
			continue
		}
		list = append(list, rest[:n:n])
		rest = rest[n:]
	}
	return list
}

// copyAll takes two round trips for the rows of one table, or three where they are put
// aside first.
func copyAll(ctx context.Context, pg *pgconn.PgConn, entries []entry, direct bool) error {
	var order []*target // in which they were met
	rows := map[*target][]entry{}
	for _, e := range entries {
		if rows[e.to] == nil {
			order = append(order, e.to)
		}
		rows[e.to] = append(rows[e.to], e)
	}
	begin := "BEGIN;"
	var end strings.Builder
	for _, t := range order {
		straight := direct && t.direct != ""
		statement := t.copy
		if straight {
			statement = t.direct
			end.WriteString(touch(t, rows[t]))
		} else {
			begin += t.stage
			end.WriteString(t.move + ";")
		}
		if begin != "" {
			if err := pg.Exec(ctx, begin).Close(); err != nil {
				return fmt.Errorf("preparing for %s: %w", t.name, err)
			}
			begin = ""
		}
		if _, err := pg.CopyFrom(ctx, stream(rows[t], !straight), statement); err != nil {
			return fmt.Errorf("copying rows for %s: %w", t.name, err)
		}
	}
	end.WriteString("COMMIT")
	if err := pg.Exec(ctx, end.String()).Close(); err != nil {
		return fmt.Errorf("writing rows: %w", err)
	}
	return nil
}

// touch is the statement that notes the hours of rows which are all new.
func touch(t *target, rows []entry) string {
	if t.contract == "" {
		return ""
	}
	hours := map[int32]bool{}
	for i := range rows {
		hours[rows[i].hour] = true
	}
	var b strings.Builder
	for hour := range hours {
		fmt.Fprintf(&b, ",(%d)", int64(hour)*3600)
	}
	return fmt.Sprintf("INSERT INTO timeseries.touched SELECT '%[1]s', to_timestamp(hour) FROM (VALUES %[2]s) v (hour) WHERE timeseries.aggregated('%[1]s');", t.series, b.String()[1:])
}

// copyHeader begins the binary COPY format: signature, flags, extension.
const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// stream is the text of a COPY of the rows, each with its number as one more column if
// they are numbered.
func stream(entries []entry, numbered bool) *bytes.Reader {
	size := len(copyHeader) + 2
	for _, e := range entries {
		size += len(e.row) + 8
	}
	b := append(make([]byte, 0, size), copyHeader...)
	for i, e := range entries {
		if !numbered {
			b = append(b, e.row...)
			continue
		}
		b = binary.BigEndian.AppendUint16(b, binary.BigEndian.Uint16(e.row)+1)
		b = append(b, e.row[2:]...)
		b = binary.BigEndian.AppendUint32(b, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	return bytes.NewReader(append(b, 0xff, 0xff)) // -1: no more rows
}

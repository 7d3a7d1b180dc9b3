package cdc

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
)

// value is one column of one row in PostgreSQL's text format.
type value struct {
	text string
	null bool
	// unchanged values are stored out of line and were not sent.
	unchanged bool
}

// origin is where a change comes from: the members of source that differ from
// record to record.
type origin struct {
	committed time.Time
	snapshot  string // true, first, last or false
	previous  pglogrepl.LSN
	lsn       pglogrepl.LSN
	txID      uint32
}

// record is one Kafka record. A nil value is a tombstone.
type record struct {
	key, value     []byte
	newKey, oldKey []byte // headers of the records that an update of the key becomes
}

// changes writes the records that a change of a row becomes, as Debezium does: an
// update of the key is the deletion of the old row and the creation of the new
// one, and a deletion is followed by a tombstone. before and after are nil where
// there is no such row; now becomes the time of the record.
func (c *encoder) changes(r *relation, op byte, before, after []value, at origin, now time.Time) ([]record, error) {
	var oldKey, newKey []byte
	var err error
	if before != nil {
		if oldKey, err = r.appendKey(nil, before); err != nil {
			return nil, err
		}
	}
	if after != nil {
		after = restore(before, after)
		if newKey, err = r.appendKey(nil, after); err != nil {
			return nil, err
		}
	}
	one := func(op byte, before, after []value, key []byte) (record, error) {
		value, err := c.envelope(r, op, before, after, at, now)
		return record{key: r.wrapKey(key), value: value}, err
	}
	switch {
	case op == 'u' && oldKey != nil && !bytes.Equal(oldKey, newKey):
		del, err := one('d', before, nil, oldKey)
		if err != nil {
			return nil, err
		}
		create, err := one('c', nil, after, newKey)
		del.newKey, create.oldKey = newKey, oldKey
		return []record{del, {key: del.key, newKey: newKey}, create}, err
	case op == 'd':
		del, err := one(op, before, nil, oldKey)
		if del.key == nil {
			return []record{del}, err // a tombstone says that its key is gone
		}
		return []record{del, {key: del.key}}, err
	default:
		rec, err := one(op, before, after, newKey)
		return []record{rec}, err
	}
}

// restore fills values of the new row that were not sent from the old one.
func restore(before, after []value) []value {
	for i, v := range after {
		if v.unchanged && i < len(before) && !before[i].unchanged {
			after[i] = before[i]
		}
	}
	return after
}

// encoder writes the records of one table.
type encoder struct {
	names
	database string
}

// maxRecord bounds a record's value: Kafka takes a mebibyte at most unless it is
// told otherwise, and that includes the key and the headers.
const maxRecord = 1<<20 - 64<<10

func (c *encoder) envelope(r *relation, op byte, before, after []value, at origin, now time.Time) ([]byte, error) {
	dst := make([]byte, 0, len(r.valueSchema)+1024)
	dst = append(append(append(dst, `{"schema":`...), r.valueSchema...), `,"payload":{"before":`...)
	rows := len(dst)
	var err error
	if dst, err = r.appendRow(dst, before); err != nil {
		return nil, err
	}
	if dst, err = r.appendRow(append(dst, `,"after":`...), after); err != nil {
		return nil, err
	}
	if len(dst) > maxRecord {
		// No consumer could be given it. Without its row the change gets an invalid
		// verdict, which names it, instead of stopping all that come after it.
		dst = append(dst[:rows], `null,"after":null`...)
	}
	us := at.committed.UnixMicro()
	dst = append(dst, `,"source":{"version":"`+debeziumVersion+`","connector":"postgresql","name":`...)
	dst, _ = appendText(dst, c.prefix)
	dst = fmt.Appendf(dst, `,"ts_ms":%d,"snapshot":%q,"db":`, us/1000, at.snapshot)
	dst, _ = appendText(dst, c.database)
	dst = append(dst, `,"sequence":"[`...)
	if at.previous == 0 {
		dst = append(dst, "null"...)
	} else {
		dst = fmt.Appendf(dst, `\"%d\"`, uint64(at.previous))
	}
	dst = fmt.Appendf(dst, `,\"%d\"]","ts_us":%d,"ts_ns":%d,"schema":`, uint64(at.lsn), us, us*1000)
	dst, _ = appendText(dst, c.schema)
	dst, _ = appendText(append(dst, `,"table":`...), c.table)
	dst = fmt.Appendf(dst, `,"txId":%d,"lsn":%d,"xmin":null},"transaction":null,"op":"%c","ts_ms":%d,"ts_us":%d,"ts_ns":%d}}`,
		at.txID, uint64(at.lsn), op, now.UnixMilli(), now.UnixMicro(), now.UnixNano())
	return dst, nil
}

func (r *relation) appendRow(dst []byte, row []value) ([]byte, error) {
	if row == nil {
		return append(dst, "null"...), nil
	}
	if len(row) != len(r.columns) {
		return nil, fmt.Errorf("a row has %d columns, the table %d", len(row), len(r.columns))
	}
	dst = append(dst, '{')
	first := true
	for i := range r.columns {
		c := &r.columns[i]
		if c.omitted {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		var err error
		if dst, err = c.appendValue(append(dst, c.member...), row[i]); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

func (c *column) appendValue(dst []byte, v value) ([]byte, error) {
	switch {
	case v.unchanged && c.kind.unavailable != "":
		return append(dst, c.kind.unavailable...), nil
	case v.unchanged || v.null:
		return append(dst, "null"...), nil
	}
	dst, err := c.kind.append(dst, v.text)
	if err != nil {
		return nil, fmt.Errorf("column %s: %w", c.name, err)
	}
	return dst, nil
}

// appendKey writes the key's columns as an object; nothing for a table without key.
func (r *relation) appendKey(dst []byte, row []value) ([]byte, error) {
	if len(r.key) == 0 {
		return nil, nil
	}
	for i, c := range r.key {
		if c >= len(row) {
			return nil, fmt.Errorf("a row has %d columns, the table %d", len(row), len(r.columns))
		}
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		var err error
		if dst, err = r.columns[c].appendValue(append(append(dst, separator), r.columns[c].member...), row[c]); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

func (r *relation) wrapKey(key []byte) []byte {
	if key == nil {
		return nil
	}
	dst := make([]byte, 0, len(r.keySchema)+len(key)+24)
	dst = append(append(append(dst, `{"schema":`...), r.keySchema...), `,"payload":`...)
	return append(append(dst, key...), '}')
}

// position is where in the log a record of the stream stands: the commit of its
// transaction, and its number among the transaction's records. The server sends a
// transaction again exactly as it sent it before, so it identifies the record.
type position struct {
	commit pglogrepl.LSN
	number int
}

func (p position) after(q position) bool {
	return p.commit > q.commit || p.commit == q.commit && p.number > q.number
}

func (p position) String() string {
	return strconv.FormatUint(uint64(p.commit), 10) + "/" + strconv.Itoa(p.number)
}

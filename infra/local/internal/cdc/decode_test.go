package cdc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
)

// wire writes messages of pgoutput as the protocol's documentation has them.
type wire struct{ bytes.Buffer }

func (w *wire) number(v any)      { _ = binary.Write(w, binary.BigEndian, v) } // a Buffer takes everything
func (w *wire) string(s string)   { w.WriteString(s); w.WriteByte(0) }
func (w *wire) tuple(row []value) { w.number(uint16(len(row))); w.values(row) }

func (w *wire) values(row []value) {
	for _, v := range row {
		switch {
		case v.null:
			w.WriteByte('n')
		case v.unchanged:
			w.WriteByte('u')
		default:
			w.WriteByte('t')
			w.number(uint32(len(v.text)))
			w.WriteString(v.text)
		}
	}
}

// randomRow makes a row of texts of any bytes.
func randomRow(r *rand.Rand, n int, unchanged bool) []value {
	row := make([]value, n)
	for i := range row {
		switch d := r.IntN(6); {
		case d == 0:
			row[i].null = true
		case d == 1 && unchanged:
			row[i].unchanged = true
		default:
			text := make([]byte, r.IntN(40))
			for j := range text {
				text[j] = byte(r.Uint32())
			}
			row[i].text = string(text)
		}
	}
	return row
}

// message makes a random message, and what decoding it has to give.
func randomMessage(r *rand.Rand) (data []byte, want string) {
	var w wire
	id := r.Uint32()
	row := randomRow(r, 1+r.IntN(6), true)
	old := randomRow(r, len(row), false)
	at := time.UnixMicro(r.Int64N(1 << 50)).UTC()
	const postgresEpoch = 946684800_000_000
	switch r.IntN(8) {
	case 0:
		lsn := r.Uint64()
		w.WriteByte('B')
		w.number(lsn)
		w.number(at.UnixMicro() - postgresEpoch)
		w.number(id)
		want = fmt.Sprintf("begin %d %s %d", lsn, at, id)
	case 1:
		lsn := r.Uint64()
		w.WriteByte('C')
		w.WriteByte(0)
		w.number(lsn)
		w.number(lsn + 1)
		w.number(at.UnixMicro() - postgresEpoch)
		want = fmt.Sprintf("commit %d %d", lsn, lsn+1)
	case 2:
		w.WriteByte('R')
		w.number(id)
		w.string("public")
		w.string("events")
		w.WriteByte('f')
		w.number(uint16(len(row)))
		want = fmt.Sprintf("relation %d public.events", id)
		for i := range row {
			w.WriteByte(1)
			w.string(fmt.Sprint("c", i))
			w.number(uint32(25 + i))
			w.number(int32(-1))
			want += fmt.Sprintf(" c%d:%d", i, 25+i)
		}
	case 3:
		w.WriteByte('I')
		w.number(id)
		w.WriteByte('N')
		w.tuple(row)
		want = fmt.Sprint("insert ", id, row)
	case 4:
		w.WriteByte('U')
		w.number(id)
		w.WriteByte("OK"[r.IntN(2)])
		w.tuple(old)
		w.WriteByte('N')
		w.tuple(row)
		want = fmt.Sprint("update ", id, old, row)
	case 5:
		w.WriteByte('U')
		w.number(id)
		w.WriteByte('N')
		w.tuple(row)
		want = fmt.Sprint("update ", id, []value(nil), row)
	case 6:
		w.WriteByte('D')
		w.number(id)
		w.WriteByte("OK"[r.IntN(2)])
		w.tuple(old)
		want = fmt.Sprint("delete ", id, old)
	case 7:
		w.WriteByte('T')
		w.number(uint32(1))
		w.WriteByte(0)
		w.number(id)
		want = fmt.Sprint("truncate ", []uint32{id})
	}
	return w.Bytes(), want
}

func describeMessage(m pglogrepl.Message) string {
	switch m := m.(type) {
	case *pglogrepl.BeginMessage:
		return fmt.Sprintf("begin %d %s %d", uint64(m.FinalLSN), m.CommitTime.UTC(), m.Xid)
	case *pglogrepl.CommitMessage:
		return fmt.Sprintf("commit %d %d", uint64(m.CommitLSN), uint64(m.TransactionEndLSN))
	case *pglogrepl.RelationMessage:
		s := fmt.Sprintf("relation %d %s.%s", m.RelationID, m.Namespace, m.RelationName)
		for _, c := range m.Columns {
			s += fmt.Sprintf(" %s:%d", c.Name, c.DataType)
		}
		return s
	case *pglogrepl.InsertMessage:
		return fmt.Sprint("insert ", m.RelationID, tuple(m.Tuple))
	case *pglogrepl.UpdateMessage:
		return fmt.Sprint("update ", m.RelationID, tuple(m.OldTuple), tuple(m.NewTuple))
	case *pglogrepl.DeleteMessage:
		return fmt.Sprint("delete ", m.RelationID, tuple(m.OldTuple))
	case *pglogrepl.TruncateMessage:
		return fmt.Sprint("truncate ", m.RelationIDs)
	}
	return fmt.Sprintf("%T", m)
}

// Whatever is written as a message is read as it was; whatever part of it, or noise
// in it, is read or refused, and never ends the process.
func TestParse_anyMessage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		data, want := randomMessage(r)
		m, err := parse(data)
		if err != nil {
			t.Fatalf("message % x: %v", data, err)
		}
		if got := describeMessage(m); got != want {
			t.Fatalf("message % x is read as\n%s, want\n%s", data, got, want)
		}
		_, _ = parse(data[:r.IntN(len(data))])
		noisy := bytes.Clone(data)
		for range 1 + r.IntN(3) {
			noisy[r.IntN(len(noisy))] = byte(r.Uint32())
		}
		_, _ = parse(noisy)
	}
}

// A record is JSON with every value of its row, whatever text the row holds.
func TestEnvelope_anyRow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	n := names{"p", "public", "events"}
	rel, err := newRelation(n, []attribute{
		{Name: "id", OID: 25, Precision: -1, NotNull: true, Key: 0}, {Name: "a \"name\"", OID: 1043, Precision: -1, Key: -1},
		{Name: "long", OID: 25, Precision: -1, Key: -1},
	})
	if err != nil {
		t.Fatal(err)
	}
	enc := &encoder{names: n, database: "db"}
	clean := func(v value, placeholder any) any {
		switch {
		case v.unchanged:
			return placeholder
		case v.null:
			return nil
		}
		return strings.ToValidUTF8(v.text, "\ufffd")
	}
	for range 5000 {
		before, after := randomRow(r, 3, false), randomRow(r, 3, true)
		before[0], after[0] = value{text: "k"}, value{text: "k"}
		list, err := enc.changes(rel, 'u', before, after, origin{lsn: 5, snapshot: "false"}, time.UnixMilli(7))
		if err != nil || len(list) != 1 {
			t.Fatalf("%d records, %v", len(list), err)
		}
		var got struct {
			Schema  json.RawMessage
			Payload struct{ Before, After map[string]any }
		}
		if err := json.Unmarshal(list[0].value, &got); err != nil {
			t.Fatalf("%v: %s", err, list[0].value)
		}
		for i, c := range rel.columns {
			// One replacement character a bad byte, where ToValidUTF8 has one a run.
			squeeze := func(v any) any {
				s, ok := v.(string)
				for ok && strings.Contains(s, "\ufffd\ufffd") {
					s = strings.ReplaceAll(s, "\ufffd\ufffd", "\ufffd")
				}
				if ok {
					return s
				}
				return v
			}
			wantBefore, wantAfter := squeeze(clean(before[i], nil)), squeeze(clean(after[i], clean(before[i], nil)))
			if diff := cmp.Diff([]any{wantBefore, wantAfter}, []any{squeeze(got.Payload.Before[c.name]), squeeze(got.Payload.After[c.name])}); diff != "" {
				t.Fatalf("column %s (-want +got):\n%s", c.name, diff)
			}
		}
		if !utf8.Valid(list[0].value) {
			t.Fatal("the record is not UTF-8")
		}
	}
}

func FuzzParse(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 30 {
		data, _ := randomMessage(r)
		f.Add(data)
	}
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parse(data) })
}

func FuzzText(f *testing.F) {
	f.Add("a\"b\\\n\x00\x7f\xff\u2028é")
	f.Fuzz(func(t *testing.T, text string) {
		quoted, err := appendText(nil, text)
		var back string
		if err == nil {
			err = json.Unmarshal(quoted, &back)
		}
		if err != nil || utf8.ValidString(text) && back != text {
			t.Fatalf("%q becomes %s, read back as %q (%v)", text, quoted, back, err)
		}
	})
}

package main

import (
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/lake"
)

// copyColumns is the order in which appendRecord writes.
const copyColumns = "load_id, kafka_offset, kafka_timestamp, product_id, category_id, user_id, price, event_time, lsn, " +
	"kafka_partition, checksum, line, op, event_type, record_hash, user_session, category_code, brand, ce_id"

const copyFields = 19

// copyHeader begins PostgreSQL's binary COPY format: signature, flags, extension.
const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// epoch is the zero of PostgreSQL's timestamps, in microseconds since 1970.
const epoch = 946684800_000_000

// badLine is what becomes a row of the quarantine.
type badLine struct {
	line, offset   int64
	reason, sample string
}

// maxBadLines bounds the lines of an object whose reasons are kept one by one;
// beyond it they are only counted.
const maxBadLines = 1000

// maxSample bounds the beginning of a bad line that is kept.
const maxSample = 500

// copier is the stream of a COPY, made of an object's lines as they are read, so
// that memory holds a line and a buffer whatever the object's size.
type copier struct {
	load   int64
	parser parser
	next   func() (lake.Line, error, bool)
	buf    []byte
	begun  bool
	ended  bool

	lines, rows, bad int64
	quarantine       []badLine
}

// newCopier reads the lines; stop must be called at the end.
func newCopier(load int64, key lake.Key, lines iter.Seq2[lake.Line, error]) (c *copier, stop func()) {
	next, stop := iter.Pull2(lines)
	return &copier{load: load, parser: parser{key: key}, next: next}, stop
}

// Read gives the next part of the stream. An error that is not about one line ends
// it, and the COPY with it.
func (c *copier) Read(p []byte) (int, error) {
	if !c.begun {
		c.begun = true
		c.buf = append(c.buf, copyHeader...)
	}
	for len(c.buf) < len(p) && !c.ended {
		line, err, ok := c.next()
		if !ok {
			c.ended = true
			c.buf = binary.BigEndian.AppendUint16(c.buf, math.MaxUint16) // -1: no more rows
			break
		}
		c.lines++
		if err == nil {
			var r *record
			if r, err = c.parser.parse(line); err == nil {
				c.buf = appendRecord(c.buf, c.load, r)
				c.rows++
				continue
			}
			c.refuse(badLine{int64(line.Number), line.Offset, err.Error(), sample(line.JSON)})
			continue
		}
		var bad *lake.BadLine
		if !errors.As(err, &bad) {
			return 0, err
		}
		c.refuse(badLine{int64(bad.Number), bad.Offset, bad.Reason, ""})
	}
	n := copy(p, c.buf)
	c.buf = c.buf[:copy(c.buf, c.buf[n:])]
	if n == 0 && c.ended {
		return 0, io.EOF
	}
	return n, nil
}

func (c *copier) refuse(b badLine) {
	c.bad++
	if len(c.quarantine) < maxBadLines {
		c.quarantine = append(c.quarantine, b)
	}
}

// sample is the beginning of a line, for a column of text.
func sample(line []byte) string {
	if len(line) > maxSample {
		line = line[:maxSample]
		for len(line) > 0 && !utf8.RuneStart(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
		if len(line) > 0 && line[len(line)-1] >= utf8.RuneSelf {
			line = line[:len(line)-1]
		}
	}
	return string(line)
}

func appendRecord(b []byte, load int64, r *record) []byte {
	b = binary.BigEndian.AppendUint16(b, copyFields)
	b = appendInt64(b, load)
	b = appendInt64(b, r.offset)
	b = appendInt64(b, r.timestamp.UnixMicro()-epoch)
	b = appendNullInt(b, r.productID)
	b = appendNullInt(b, r.categoryID)
	b = appendNullInt(b, r.userID)
	b = appendNullInt(b, null[int64]{int64(math.Float64bits(r.price.value)), r.price.ok})
	b = appendNullInt(b, micros(r.eventTime))
	b = appendNullInt(b, r.lsn)
	b = appendInt32(b, r.partition)
	b = appendInt32(b, int32(r.checksum))
	b = appendInt32(b, r.line)
	b = appendBytes(b, r.op)
	b = appendBytes(b, r.eventType)
	if r.hash.ok {
		b = appendBytes(b, r.hash.value[:])
	} else {
		b = appendBytes(b, nil)
	}
	b = appendBytes(b, r.userSession)
	b = appendBytes(b, r.categoryCode)
	b = appendBytes(b, r.brand)
	return appendBytes(b, r.ceID)
}

func micros(t null[time.Time]) null[int64] { return null[int64]{t.value.UnixMicro() - epoch, t.ok} }

func appendInt64(b []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(v))
}

func appendInt32(b []byte, v int32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, 4), uint32(v))
}

func appendNullInt(b []byte, v null[int64]) []byte {
	if !v.ok {
		return appendBytes(b, nil)
	}
	return appendInt64(b, v.value)
}

// appendBytes writes nil as NULL.
func appendBytes(b, v []byte) []byte {
	if v == nil {
		return binary.BigEndian.AppendUint32(b, math.MaxUint32) // -1
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}

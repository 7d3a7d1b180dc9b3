package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
)

// row is one row in PostgreSQL's binary COPY format: the values in the order of the
// table's columns. The first thing that is wrong with a value is kept.
type row struct {
	buf    []byte
	fields int
	// hour is that of the row's time, since 1970 in UTC.
	hour int32
	err  error
}

func (r *row) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *row) null() {
	r.fields++
	r.buf = binary.BigEndian.AppendUint32(r.buf, math.MaxUint32) // -1
}

func (r *row) length(n int) {
	r.fields++
	r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(n))
}

func (r *row) int64(n int64) {
	r.length(8)
	r.buf = binary.BigEndian.AppendUint64(r.buf, uint64(n))
}

func (r *row) float64(f float64) { r.int64(int64(math.Float64bits(f))) }

func (r *row) bytes(b []byte) {
	r.length(len(b))
	r.buf = append(r.buf, b...)
}

// text writes a text that is not null; what names it in errors.
func (r *row) text(what, s string) {
	if strings.IndexByte(s, 0) >= 0 {
		r.fail("field %s has a NUL character, which PostgreSQL cannot store", what)
	}
	r.length(len(s))
	r.buf = append(r.buf, s...)
}

// orNull writes null for an empty text.
func (r *row) orNull(what, s string) {
	if s == "" {
		r.null()
		return
	}
	r.text(what, s)
}

// epoch is the zero of PostgreSQL's timestamps, in microseconds since 1970.
const epoch = 946684800_000_000

// time writes a timestamp with or without time zone; those without are UTC.
func (r *row) time(t time.Time) { r.int64(t.UnixMicro() - epoch) }

// at writes the time by which the table is cut.
func (r *row) at(t time.Time) {
	r.time(t)
	r.hour = int32(floor(t.Unix(), 3600))
}

// floor divides, down also below 0.
func floor(n, by int64) int64 {
	q := n / by
	if n%by < 0 {
		q--
	}
	return q
}

func (r *row) bool(b bool) {
	r.length(1)
	if b {
		r.buf = append(r.buf, 1)
	} else {
		r.buf = append(r.buf, 0)
	}
}

// floatOrNull writes null for nil.
func (r *row) floatOrNull(f *float64) {
	if f == nil {
		r.null()
		return
	}
	r.float64(*f)
}

// jsonb writes a JSON text.
func (r *row) jsonb(what string, text []byte) {
	if bytes.Contains(text, []byte(`\u0000`)) {
		r.fail("field %s has a NUL character, which PostgreSQL cannot store", what)
	}
	r.length(1 + len(text))
	r.buf = append(append(r.buf, 1), text...) // 1 is the format's version
}

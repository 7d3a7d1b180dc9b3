package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// record is one line of a lake object as bronze keeps it. Its slices are valid
// until the next line is read. nil and null mean that the line does not say it,
// which is allowed of a delete only, but for what may be null in any event.
type record struct {
	partition int32
	offset    int64
	timestamp time.Time
	line      int32
	checksum  uint32
	ceID      []byte
	op        []byte
	lsn       null[int64]

	eventTime    null[time.Time]
	eventType    []byte
	productID    null[int64]
	categoryID   null[int64]
	categoryCode []byte
	brand        []byte
	price        null[float64]
	userID       null[int64]
	userSession  []byte

	// hash is there when all five parts of it are.
	hash null[[32]byte]
}

type null[T any] struct {
	value T
	ok    bool
}

// The widths of the columns, in characters.
const (
	maxText = 255
	maxType = 50
	// maxPartition and maxOffset bound what a position can hold.
	maxPartition = 1 << 19
	maxOffset    = 1 << 44
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// parser reads lines of one object. Records of the object that do not say where in
// Kafka they were, which the sink connector's do not, are numbered from its key.
type parser struct {
	key    lake.Key
	record record
	fault  error
}

// parse reads a line. An error is the reason for its quarantine.
func (p *parser) parse(l lake.Line) (*record, error) {
	r := &p.record
	*r = record{
		partition: p.key.Partition, offset: p.key.Offset + int64(l.Number) - 1, timestamp: p.key.Hour,
		line: int32(l.Number), checksum: crc32.Checksum(l.JSON, castagnoli),
	}
	p.fault = nil
	var payload, kafka []byte
	members(l.JSON, func(name, value []byte) {
		switch string(name) {
		case "payload":
			payload = value
		case "_kafka":
			kafka = value // the last one is the lake's own
		case "op":
			r.op = p.text("op", value, 1)
		case "lsn":
			r.lsn = p.integer("lsn", value)
		}
	})
	tombstone := false
	if isObject(kafka) {
		members(kafka, func(name, value []byte) {
			switch string(name) {
			case "partition":
				if n := p.integer("_kafka.partition", value); n.ok && n.value >= 0 && n.value < maxPartition {
					r.partition = int32(n.value)
				} else {
					p.fail("_kafka.partition is no partition")
				}
			case "offset":
				if n := p.integer("_kafka.offset", value); n.ok && n.value >= 0 && n.value < maxOffset {
					r.offset = n.value
				} else {
					p.fail("_kafka.offset is no offset")
				}
			case "timestamp":
				if n := p.integer("_kafka.timestamp", value); n.ok && n.value >= 0 && n.value < 253402300800000 {
					r.timestamp = time.UnixMilli(n.value)
				}
			case "id":
				r.ceID = p.text("_kafka.id", value, math.MaxInt32)
			case "op":
				r.op = p.text("_kafka.op", value, 1)
			case "lsn":
				r.lsn = p.integer("_kafka.lsn", value)
			case "tombstone":
				tombstone = string(value) == "true"
			}
		})
	}
	if tombstone {
		r.op = []byte("d")
		return r, p.fault
	}
	if len(r.op) > 0 && bytes.IndexByte([]byte("crud"), r.op[0]) < 0 {
		p.fail("op is none of c, r, u, d")
	}
	if !isObject(payload) {
		return nil, errors.New("there is no payload")
	}
	members(payload, func(name, value []byte) { p.field(name, value) })
	deleted := string(r.op) == "d"
	if p.fault == nil && !deleted {
		for _, f := range []struct {
			name string
			ok   bool
		}{
			{"event_time", r.eventTime.ok}, {"event_type", len(r.eventType) > 0}, {"product_id", r.productID.ok}, {"category_id", r.categoryID.ok},
			{"price", r.price.ok}, {"user_id", r.userID.ok}, {"user_session", len(r.userSession) > 0},
		} {
			if !f.ok {
				return nil, fmt.Errorf("%s is missing", f.name)
			}
		}
	}
	if p.fault != nil {
		return nil, p.fault
	}
	if r.eventTime.ok && r.productID.ok && r.userID.ok && len(r.eventType) > 0 && len(r.userSession) > 0 {
		r.hash.value = warehouse.RecordHash(r.productID.value, r.eventTime.value, r.userID.value, r.eventType, r.userSession)
		r.hash.ok = true
	}
	return r, nil
}

func (p *parser) field(name, value []byte) {
	r := &p.record
	switch string(name) {
	case "event_time":
		r.eventTime = p.time("event_time", value)
	case "event_type":
		r.eventType = p.text("event_type", value, maxType)
	case "product_id":
		r.productID = p.integer("product_id", value)
	case "category_id":
		r.categoryID = p.integer("category_id", value)
	case "category_code":
		r.categoryCode = p.text("category_code", value, maxText)
	case "brand":
		r.brand = p.text("brand", value, maxText)
	case "price":
		r.price = p.number("price", value)
	case "user_id":
		r.userID = p.integer("user_id", value)
	case "user_session":
		r.userSession = p.text("user_session", value, maxText)
	}
}

// fail keeps the first reason.
func (p *parser) fail(format string, args ...any) {
	if p.fault == nil {
		p.fault = fmt.Errorf(format, args...)
	}
}

func isNull(value []byte) bool { return string(value) == "null" }

// text reads a string of at most limit characters; nil for null and for "".
func (p *parser) text(name string, value []byte, limit int) []byte {
	if isNull(value) {
		return nil
	}
	if value[0] != '"' {
		p.fail("%s is no string", name)
		return nil
	}
	s := value[1 : len(value)-1]
	if bytes.IndexByte(s, '\\') >= 0 {
		var plain string
		if err := json.Unmarshal(value, &plain); err != nil {
			p.fail("%s: %v", name, err)
			return nil
		}
		s = []byte(plain)
	}
	if len(s) > limit && utf8.RuneCount(s) > limit {
		p.fail("%s is longer than %d characters", name, limit)
		return nil
	}
	if bytes.IndexByte(s, 0) >= 0 {
		p.fail("%s has a NUL character, which PostgreSQL cannot store", name)
		return nil
	}
	if len(s) == 0 {
		return nil
	}
	return s
}

// integer reads a 64-bit integer, quoted or not.
func (p *parser) integer(name string, value []byte) (n null[int64]) {
	if isNull(value) {
		return n
	}
	if value[0] == '"' {
		value = value[1 : len(value)-1]
	}
	v, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		p.fail("%s is no 64-bit integer", name)
		return n
	}
	return null[int64]{v, true}
}

func (p *parser) number(name string, value []byte) (n null[float64]) {
	if isNull(value) {
		return n
	}
	v, err := strconv.ParseFloat(string(value), 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
		p.fail("%s is no number", name)
		return n
	}
	return null[float64]{v, true}
}

// timeLayouts are the ways in which validated events write their time.
var timeLayouts = []string{"2006-01-02 15:04:05 UTC", "2006-01-02T15:04:05Z07:00", "2006-01-02 15:04:05Z0700", "2006-01-02 15:04:05Z07:00"}

// time reads a timestamp: a text, or microseconds or milliseconds since 1970, of
// which integers from 10^14 on are the first.
func (p *parser) time(name string, value []byte) (t null[time.Time]) {
	if isNull(value) {
		return t
	}
	if value[0] == '"' {
		text := string(p.text(name, value, maxText))
		for _, layout := range timeLayouts {
			if v, err := time.Parse(layout, text); err == nil {
				t = null[time.Time]{v.UTC().Truncate(time.Microsecond), true}
				break
			}
		}
	} else if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && n >= 0 {
		if t.ok = true; n >= 1e14 {
			t.value = time.UnixMicro(n).UTC()
		} else {
			t.value = time.UnixMilli(n).UTC()
		}
	}
	if year := t.value.Year(); !t.ok || year < 1 || year > 9999 {
		p.fail("%s is no time", name)
		return null[time.Time]{}
	}
	return t
}

// isObject tells whether a value that members gave is an object.
func isObject(value []byte) bool { return len(value) > 0 && value[0] == '{' }

// members visits the members of an object, which must be valid JSON: the readers of
// lake objects have seen to that. A name with an escape is visited as it is written.
func members(b []byte, visit func(name, value []byte)) {
	i := 1 + bytes.IndexByte(b, '{')
	for {
		for b[i] != '"' {
			if b[i] == '}' {
				return
			}
			i++
		}
		end := stringEnd(b, i)
		name := b[i+1 : end-1]
		for i = end; b[i] != ':'; i++ {
		}
		for i++; space(b[i]); i++ {
		}
		end = valueEnd(b, i)
		visit(name, b[i:end])
		i = end
	}
}

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// stringEnd gives the index behind the string that begins at i.
func stringEnd(b []byte, i int) int {
	for i++; ; i++ {
		n := bytes.IndexByte(b[i:], '"')
		if e := bytes.IndexByte(b[i:i+n], '\\'); e >= 0 {
			i += e + 1
			continue
		}
		return i + n + 1
	}
}

// valueEnd gives the index behind the value that begins at i.
func valueEnd(b []byte, i int) int {
	switch b[i] {
	case '"':
		return stringEnd(b, i)
	case '{', '[':
		for depth := 0; ; {
			switch b[i] {
			case '"':
				i = stringEnd(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	for ; ; i++ {
		if c := b[i]; c == ',' || c == '}' || c == ']' || space(c) {
			return i
		}
	}
}

package features

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Event is what features are made of: a shop event as it was validated.
type Event struct {
	// Time is when it happened, in UTC and whole microseconds.
	Time              time.Time
	Type              string
	Session           string
	UserID, ProductID int64
	// CategoryCode and Brand are "" when they are not known.
	CategoryCode, Brand string
	Price               float64

	// Op is the change of a row that the event stands for: c, r, u or d, "" when it
	// is none. Of a deleted row (d) any of the above may be missing; it has no
	// features.
	Op string
	// LSN is the change's position in the database's log, 0 when it is not known.
	LSN uint64
}

// Hash is the event's natural key, see warehouse.RecordHash.
func (e *Event) Hash() [32]byte {
	return warehouse.RecordHash(e.ProductID, e.Time, e.UserID, []byte(e.Type), []byte(e.Session))
}

// ParseEvent reads the envelope of a valid verdict, {"payload":{...},"valid":...},
// as validate makes it, and nothing of it but what features need. An error names
// the field and the rule, and is for good.
func ParseEvent(envelope []byte) (Event, error) {
	var e Event
	var payload []byte
	err := members(envelope, func(name, value []byte) (err error) {
		switch string(name) {
		case "payload":
			payload = value
		case "op":
			e.Op, err = readString("op", value)
		case "lsn":
			if string(value) != "null" {
				if e.LSN, err = strconv.ParseUint(string(value), 10, 64); err != nil {
					err = errors.New("lsn should be a log position")
				}
			}
		}
		return err
	})
	if err != nil {
		return Event{}, fmt.Errorf("reading the verdict: %w", err)
	}
	if len(payload) == 0 || payload[0] != '{' {
		return Event{}, errors.New("reading the verdict: field payload should be an object")
	}
	switch e.Op {
	case "", "c", "r", "u", "d":
	default:
		return Event{}, fmt.Errorf("reading the verdict: op should be one of: c, r, u, d, is %q", e.Op)
	}
	if err := e.readPayload(payload); err != nil {
		return Event{}, fmt.Errorf("reading the verdict's payload: %w", err)
	}
	return e, nil
}

// The fields without which there are no features.
const (
	hasTime = 1 << iota
	hasType
	hasProduct
	hasUser
	hasSession
	hasPrice
	hasEverything = 1<<iota - 1
)

var fieldNames = [...]string{"event_time", "event_type", "product_id", "user_id", "user_session", "price"}

func (e *Event) readPayload(payload []byte) error {
	found := 0
	err := members(payload, func(name, value []byte) (err error) {
		if string(value) == "null" {
			return nil
		}
		switch string(name) {
		case "event_time":
			if e.Time, err = readTime(value); err != nil {
				return fmt.Errorf("field event_time %w", err)
			}
			found |= hasTime
		case "event_type":
			if e.Type, err = readString("event_type", value); e.Type != "" {
				found |= hasType
			}
		case "product_id":
			found |= hasProduct
			e.ProductID, err = readInt("product_id", value)
		case "user_id":
			found |= hasUser
			e.UserID, err = readInt("user_id", value)
		case "user_session":
			if e.Session, err = readString("user_session", value); e.Session != "" {
				found |= hasSession
			}
		case "price":
			found |= hasPrice
			e.Price, err = readFloat("price", value)
		case "brand":
			e.Brand, err = readString("brand", value)
		case "category_code":
			e.CategoryCode, err = readString("category_code", value)
		}
		return err
	})
	if err != nil || e.Op == "d" {
		return err
	}
	for i, name := range fieldNames {
		if found&(1<<i) == 0 {
			return fmt.Errorf("field %s is required", name)
		}
	}
	return nil
}

// timeLayouts are the texts in which validated events have their time, beside the
// one that readTime reads itself: Debezium's, and RFC 3339.
var timeLayouts = []string{time.RFC3339, "2006-01-02 15:04:05Z0700", "2006-01-02 15:04:05Z07:00", timeFormat}

var errTime = errors.New("should be a time")

// readTime reads a text, or microseconds or milliseconds since 1970, of which
// integers from 10^14 on are the first; the warehouse reads the same.
func readTime(value []byte) (t time.Time, err error) {
	if value[0] != '"' {
		n, err := strconv.ParseInt(string(value), 10, 64)
		switch {
		case err != nil || n < 0:
			return t, errTime
		case n >= 1e14:
			t = time.UnixMicro(n).UTC()
		default:
			t = time.UnixMilli(n).UTC()
		}
	} else {
		s := value[1 : len(value)-1]
		if t, ok := readUTC(s); ok {
			return t, nil
		}
		for _, layout := range timeLayouts {
			if t, err = time.Parse(layout, string(s)); err == nil {
				break
			}
		}
		if err != nil {
			return time.Time{}, errTime
		}
		t = t.UTC().Truncate(time.Microsecond)
	}
	if year := t.Year(); year < 1 || year > 9999 {
		return time.Time{}, errTime
	}
	return t, nil
}

// readUTC reads the producer's own text, 2019-10-01 02:30:12 UTC, eight times faster
// than time.Parse.
func readUTC(s []byte) (time.Time, bool) {
	if len(s) != 23 || s[4] != '-' || s[7] != '-' || s[10] != ' ' || s[13] != ':' || s[16] != ':' || string(s[19:]) != " UTC" {
		return time.Time{}, false
	}
	number := func(from, to int) int {
		n := 0
		for _, c := range s[from:to] {
			if c < '0' || c > '9' {
				return -1 << 20
			}
			n = n*10 + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), number(5, 7), number(8, 10)
	hour, minute, second := number(11, 13), number(14, 16), number(17, 19)
	if year < 1 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59 {
		return time.Time{}, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return t, t.Day() == day // else the month has no such day
}

// readInt reads a 64-bit integer, quoted or not.
func readInt(name string, value []byte) (int64, error) {
	if len(value) > 2 && value[0] == '"' {
		value = value[1 : len(value)-1]
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("field %s should be a 64-bit integer", name)
	}
	return n, nil
}

func readFloat(name string, value []byte) (float64, error) {
	f, err := strconv.ParseFloat(string(value), 64)
	if c := value[0]; err != nil || math.IsInf(f, 0) || math.IsNaN(f) || c != '-' && (c < '0' || c > '9') {
		return 0, fmt.Errorf("field %s should be a number", name)
	}
	return f, nil
}

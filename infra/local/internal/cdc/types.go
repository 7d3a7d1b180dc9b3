package cdc

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

// kind is how Debezium shows a PostgreSQL type: the type and name in the Connect
// schema, and how a value is written in JSON. The settings are the connector's:
// time.precision.mode=adaptive and decimal.handling.mode=double, as in
// infra/debezium/connector.json.
type kind struct {
	connect string // type of the schema
	logical string // name of the schema, with version 1; empty has none
	params  string // members of the schema's parameters, as JSON
	append  func(dst []byte, text string) ([]byte, error)
	// unavailable stands for a value that the server did not send, because it is
	// stored out of line and was not changed. Empty: null.
	unavailable string
}

// placeholder is Debezium's unavailable.value.placeholder.
const placeholder = "__debezium_unavailable_value"

var (
	stringKind = kind{connect: "string", append: appendText, unavailable: strconv.Quote(placeholder)}
	bytesKind  = kind{connect: "bytes", append: appendBytes,
		unavailable: strconv.Quote(base64.StdEncoding.EncodeToString([]byte(placeholder)))}
	doubleKind = kind{connect: "double", append: appendFloat}
)

func (k kind) named(name string) kind {
	k.logical = name
	return k
}

// Type identifiers of PostgreSQL's own types, which never change.
var plainKinds = map[uint32]kind{
	16:   {connect: "boolean", append: appendBool},
	17:   bytesKind,
	18:   stringKind, // "char"
	20:   {connect: "int64", append: appendVerbatim},
	21:   {connect: "int16", append: appendVerbatim},
	23:   {connect: "int32", append: appendVerbatim},
	25:   stringKind, // text
	26:   {connect: "int64", append: appendVerbatim},
	114:  stringKind.named("io.debezium.data.Json"),
	142:  stringKind.named("io.debezium.data.Xml"),
	650:  stringKind, // cidr
	700:  {connect: "float", append: appendFloat},
	701:  doubleKind,
	829:  stringKind, // macaddr
	869:  stringKind, // inet
	1042: stringKind, // char(n)
	1043: stringKind, // varchar
	1082: {connect: "int32", logical: "io.debezium.time.Date", append: appendDate},
	1266: {connect: "string", logical: "io.debezium.time.ZonedTime", append: appendZonedTime},
	1700: doubleKind, // numeric
	2950: stringKind.named("io.debezium.data.Uuid"),
	3614: stringKind.named("io.debezium.data.Tsvector"),
	3802: stringKind.named("io.debezium.data.Json"),
	3904: stringKind, // the ranges
	3906: stringKind,
	3908: stringKind,
	3910: stringKind,
	3912: stringKind,
	3926: stringKind,
}

const (
	oidTime        = 1083
	oidTimestamp   = 1114
	oidTimestamptz = 1184
)

// kindOf finds the kind of a type; ok is false for the types that are left out of
// the records. precision is the type's modifier, -1 for none; labels are those of
// an enumeration.
func kindOf(oid uint32, precision int32, labels []string) (kind, bool) {
	if labels != nil {
		allowed, _ := json.Marshal(strings.Join(labels, ",")) // a string always marshals
		k := stringKind.named("io.debezium.data.Enum")
		k.params = `"allowed":` + string(allowed)
		return k, true
	}
	coarse := precision >= 0 && precision <= 3
	switch oid {
	case oidTime:
		if coarse {
			return kind{connect: "int32", logical: "io.debezium.time.Time", append: clock(time.Millisecond)}, true
		}
		return kind{connect: "int64", logical: "io.debezium.time.MicroTime", append: clock(time.Microsecond)}, true
	case oidTimestamp:
		if coarse {
			return kind{connect: "int64", logical: "io.debezium.time.Timestamp", append: timestamp(time.Millisecond)}, true
		}
		return kind{connect: "int64", logical: "io.debezium.time.MicroTimestamp", append: timestamp(time.Microsecond)}, true
	case oidTimestamptz:
		digits := 6
		if precision >= 0 {
			digits = int(precision)
		}
		return kind{connect: "string", logical: "io.debezium.time.ZonedTimestamp", append: zoned(digits)}, true
	}
	k, ok := plainKinds[oid]
	return k, ok
}

func appendVerbatim(dst []byte, text string) ([]byte, error) { return append(dst, text...), nil }

func appendBool(dst []byte, text string) ([]byte, error) {
	return strconv.AppendBool(dst, text == "t"), nil
}

// appendText writes a JSON string. What is not UTF-8, which a database of another
// encoding may send, becomes U+FFFD.
func appendText(dst []byte, text string) ([]byte, error) {
	return events.AppendString(dst, text), nil
}

// appendFloat writes a double. Connect writes the three that JSON lacks as strings.
func appendFloat(dst []byte, text string) ([]byte, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil && !math.IsInf(f, 0) {
		return nil, fmt.Errorf("%q is not a number", text)
	}
	switch {
	case math.IsNaN(f):
		return append(dst, `"NaN"`...), nil
	case math.IsInf(f, 1):
		return append(dst, `"Infinity"`...), nil
	case math.IsInf(f, -1):
		return append(dst, `"-Infinity"`...), nil
	}
	return strconv.AppendFloat(dst, f, 'g', -1, 64), nil
}

func appendBytes(dst []byte, text string) ([]byte, error) {
	digits, ok := strings.CutPrefix(text, `\x`)
	if !ok {
		return nil, fmt.Errorf("bytes %.20q do not start with \\x", text)
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, fmt.Errorf("bytes %.20q: %w", text, err)
	}
	return append(base64.StdEncoding.AppendEncode(append(dst, '"'), b), '"'), nil
}

// moment reads a date, a time of day and an offset as PostgreSQL writes them with
// DateStyle ISO, the parts that layout has.
func moment(layout, text string) (time.Time, error) {
	body, bc := strings.CutSuffix(text, " BC")
	year := 0
	if digits := strings.IndexByte(body, '-'); digits > 4 || bc {
		// The time package knows the years 0 to 9999; 4000 years are a whole number
		// of leap periods.
		n, err := strconv.Atoi(body[:max(digits, 0)])
		if err != nil {
			return time.Time{}, fmt.Errorf("%q is not a date", text)
		}
		if bc {
			n = 1 - n
		}
		year = n
		within := ((n % 4000) + 4000) % 4000
		body = fmt.Sprintf("%04d%s", within, body[digits:])
		year -= within
	}
	at, err := time.Parse(layout, body)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a date or time: %w", text, err)
	}
	if year != 0 {
		at = time.Date(at.Year()+year, at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), at.Location())
	}
	return at, nil
}

// Debezium writes infinite dates and times as the numbers that the JDBC driver has
// for them, and infinite zoned timestamps as words.
const (
	infinity         = "infinity"
	minusInfinity    = "-infinity"
	infinityMs       = 9223372036825200
	minusInfinityMs  = -9223372036832400
	infinityDay      = -2147472692
	minusInfinityDay = -2147472691
)

func appendDate(dst []byte, text string) ([]byte, error) {
	switch text {
	case infinity:
		return strconv.AppendInt(dst, infinityDay, 10), nil
	case minusInfinity:
		return strconv.AppendInt(dst, minusInfinityDay, 10), nil
	}
	at, err := moment("2006-01-02", text)
	if err != nil {
		return nil, err
	}
	return strconv.AppendInt(dst, at.Unix()/86400, 10), nil
}

// timestamp counts units since the epoch.
func timestamp(unit time.Duration) func([]byte, string) ([]byte, error) {
	return func(dst []byte, text string) ([]byte, error) {
		perMs := int64(time.Millisecond / unit)
		switch text {
		case infinity:
			return strconv.AppendInt(dst, infinityMs*perMs, 10), nil
		case minusInfinity:
			return strconv.AppendInt(dst, minusInfinityMs*perMs, 10), nil
		}
		at, err := moment("2006-01-02 15:04:05", text)
		if err != nil {
			return nil, err
		}
		if unit == time.Millisecond {
			return strconv.AppendInt(dst, at.UnixMilli(), 10), nil
		}
		return strconv.AppendInt(dst, at.UnixMicro(), 10), nil
	}
}

// zoned writes ISO text in UTC with a number of digits of the second's fraction.
func zoned(digits int) func([]byte, string) ([]byte, error) {
	layout := "-01-02T15:04:05"
	if digits > 0 {
		layout += "." + strings.Repeat("0", digits)
	}
	return func(dst []byte, text string) ([]byte, error) {
		if text == infinity || text == minusInfinity {
			return append(append(append(dst, '"'), text...), '"'), nil
		}
		at, err := moment("2006-01-02 15:04:05-07", text)
		if err != nil {
			return nil, err
		}
		at = at.UTC()
		dst = append(dst, '"')
		// As ISO 8601 and Java write years.
		switch year := at.Year(); {
		case year > 9999:
			dst = fmt.Appendf(dst, "+%d", year)
		case year < 0:
			dst = fmt.Appendf(dst, "-%04d", -year)
		default:
			dst = fmt.Appendf(dst, "%04d", year)
		}
		return append(at.AppendFormat(dst, layout), 'Z', '"'), nil
	}
}

// clock counts units since midnight. A day may end at 24:00:00.
func clock(unit time.Duration) func([]byte, string) ([]byte, error) {
	return func(dst []byte, text string) ([]byte, error) {
		if text == "24:00:00" {
			return strconv.AppendInt(dst, int64(24*time.Hour/unit), 10), nil
		}
		at, err := moment("15:04:05", text)
		if err != nil {
			return nil, err
		}
		since := at.Sub(time.Date(at.Year(), at.Month(), at.Day(), 0, 0, 0, 0, at.Location()))
		return strconv.AppendInt(dst, int64(since/unit), 10), nil
	}
}

// appendZonedTime writes the time of day in UTC.
func appendZonedTime(dst []byte, text string) ([]byte, error) {
	var at time.Time
	var err error
	for _, layout := range []string{"15:04:05-07", "15:04:05-07:00", "15:04:05-07:00:00"} {
		if at, err = moment(layout, text); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return append(at.UTC().AppendFormat(append(dst, '"'), "15:04:05.999999Z"), '"'), nil
}

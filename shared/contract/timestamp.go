package contract

import (
	"time"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// Format is a way of writing a timestamp.
type Format string

// The formats. Texts may have one to nine digits of a second's fraction, except
// for UTC, which has none.
const (
	// UTC is 2019-10-01 02:30:12 UTC.
	UTC Format = "utc"
	// Zoned is Debezium's ZonedTimestamp in the four spellings that occur:
	// 2019-10-01T02:30:12Z, 2019-10-01T02:30:12.5Z, 2019-10-01 02:30:12+0000 and
	// 2019-10-01 02:30:12.5+0000; the offset may have a colon.
	Zoned Format = "zoned"
	// RFC3339 is 2019-10-01T02:30:12.5+00:00, or Z.
	RFC3339 Format = "rfc3339"
	// Micros and Millis are integers since 1970, not negative. The embedded schema
	// tells which one it is; without one, and if a field may be both, integers from
	// 10^14 on are microseconds (1973 on) and others milliseconds (until 5138).
	Micros Format = "micros"
	Millis Format = "millis"
)

const formatNames = "utc, zoned, rfc3339, micros or millis"

type formatSet uint8

const (
	asUTC formatSet = 1 << iota
	asZoned
	asRFC3339
	asMicros
	asMillis

	asText    = asUTC | asZoned | asRFC3339
	asInteger = asMicros | asMillis
)

var formatBits = map[Format]formatSet{UTC: asUTC, Zoned: asZoned, RFC3339: asRFC3339, Micros: asMicros, Millis: asMillis}

// readTime reads a timestamp in one of the formats. ok is false for any other text
// and for a time outside of the years 1 to 9999, in UTC.
func readTime(text []byte, v jsonscan.Value, formats formatSet) (t time.Time, ok bool) {
	switch v.Kind {
	case jsonscan.String:
		t, ok = parseText(jsonscan.Unquote(text, v), formats)
	case jsonscan.Number:
		n, fits := jsonscan.Int(text[v.Start:v.End])
		if !fits || n < 0 {
			return t, false
		}
		micros := formats&asMicros != 0
		if formats&asInteger == asInteger {
			micros = n >= 1e14
		}
		switch {
		case formats&asInteger == 0:
			return t, false
		case micros:
			t, ok = time.UnixMicro(n).UTC(), true
		default:
			t, ok = time.UnixMilli(n).UTC(), n < 1e15 // year 33658, before it overflows
		}
	}
	if year := t.Year(); !ok || year < 1 || year > 9999 {
		return time.Time{}, false
	}
	return t, true
}

// parseText reads YYYY-MM-DD?HH:MM:SS[.f]zone.
func parseText(s []byte, formats formatSet) (time.Time, bool) {
	if len(s) < 20 || s[4] != '-' || s[7] != '-' || s[13] != ':' || s[16] != ':' {
		return time.Time{}, false
	}
	year, month, day := number2(s[0:])*100+number2(s[2:]), number2(s[5:]), number2(s[8:])
	hour, minute, second := number2(s[11:]), number2(s[14:]), number2(s[17:])
	if year < 0 || month < 1 || month > 12 || day < 1 || day > days(year, month) ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59 {
		return time.Time{}, false
	}
	separator, rest := s[10], s[19:]
	nanos, fraction := 0, false
	if rest[0] == '.' {
		i, scale := 1, 100_000_000
		for ; i < len(rest) && rest[i]-'0' <= 9; i++ {
			nanos += int(rest[i]-'0') * scale
			scale /= 10
		}
		if i == 1 || i > 10 {
			return time.Time{}, false
		}
		fraction, rest = true, rest[i:]
	}
	offset := 0
	var fits formatSet
	switch {
	case string(rest) == "Z":
		switch separator {
		case 'T':
			fits = asZoned | asRFC3339
		case ' ':
			fits = asZoned
		}
	case string(rest) == " UTC":
		if separator == ' ' && !fraction {
			fits = asUTC
		}
	case (len(rest) == 5 || len(rest) == 6 && rest[3] == ':') && (rest[0] == '+' || rest[0] == '-'):
		hours, minutes := number2(rest[1:]), number2(rest[len(rest)-2:])
		if hours < 0 || hours > 23 || minutes < 0 || minutes > 59 {
			break
		}
		if offset = hours*3600 + minutes*60; rest[0] == '-' {
			offset = -offset
		}
		switch {
		case separator == ' ':
			fits = asZoned
		case separator == 'T' && len(rest) == 6:
			fits = asRFC3339
		}
	}
	if fits&formats == 0 {
		return time.Time{}, false
	}
	seconds := (epochDays(year, month, day)*24+hour)*3600 + minute*60 + second - offset
	return time.Unix(int64(seconds), int64(nanos)).UTC(), true
}

// epochDays counts the days from 1970-01-01 to a date of the years from 1 on, which
// time.Date does three times slower. The year is taken to begin in March, so that
// the leap day is its last: then the months before have 30.6 days on average.
func epochDays(year, month, day int) int {
	if month <= 2 {
		year--
		month += 12
	}
	return 365*year + year/4 - year/100 + year/400 + (153*month-457)/5 + day - 719469
}

// number2 is the value of two digits, far below 0 if they are not.
func number2(s []byte) int {
	a, b := s[0]-'0', s[1]-'0'
	if a > 9 || b > 9 {
		return -1 << 16
	}
	return int(a)*10 + int(b)
}

func days(year, month int) int {
	if month == 2 {
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 30 + (month+month>>3)&1
}

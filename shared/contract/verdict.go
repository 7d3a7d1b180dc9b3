package contract

import (
	"encoding/base64"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// Outcome is what a check came to.
type Outcome uint8

// The outcomes.
const (
	// Valid and Invalid verdicts have a body to be sent on.
	Valid Outcome = iota + 1
	Invalid
	// Skipped is a Kafka tombstone of a Debezium stream: it says that the key may be
	// compacted away, and holds no row. The delete before it has its own verdict.
	Skipped
)

func (o Outcome) String() string { return [...]string{"", "VALID", "INVALID", "SKIPPED"}[o] }

// The two classes of errors.
const (
	// SchemaValidationError is a record that breaks a rule of its contract, or whose
	// embedded schema disagrees with it.
	SchemaValidationError = "SCHEMA_VALIDATION_ERROR"
	// ProcessingError is a record that cannot be read at all.
	ProcessingError = "PROCESSING_ERROR"
)

// Verdict is what became of one record.
type Verdict struct {
	Outcome Outcome
	// Type is the CloudEvents type of the verdict, "" if the record was skipped.
	Type string
	// Contract is the one checked against; nil if the stream has several and the
	// record did not tell which.
	Contract *Contract
	// ErrorType and ErrorMessage say why a record is invalid.
	ErrorType, ErrorMessage string
	// Key is the entity and Time the event time in UTC. An invalid record has them
	// too if they could be read; "" and the zero time if not.
	Key  string
	Time time.Time
	// Op is c, u, d or r and LSN the log position of a change record that says so.
	Op, LSN string
	// Body is the verdict envelope, one line of JSON.
	Body []byte
}

const (
	// MaxValue is the size of the largest record that is checked, in bytes: a
	// verdict around it still fits into the 1 MiB that brokers take. A larger one is
	// a processing error.
	MaxValue = maxBody - 1<<10
	// maxBody bounds a verdict's body, leaving 15 KiB to its attributes and headers.
	maxBody = 1<<20 - 15<<10
	// maxCut is how much of a text is kept whose verdict would be larger than
	// maxBody. Escaped and in base64 it is seven times that at worst.
	maxCut = 128 << 10
)

// appendVerdict appends the members that every verdict ends with, and the brace.
// processedAt is left out if it is zero.
func appendVerdict(dst []byte, v *Verdict, processedAt time.Time) []byte {
	if v.Op != "" {
		dst = append(append(append(dst, `,"op":"`...), v.Op...), '"')
	}
	if v.LSN != "" {
		dst = append(append(dst, `,"lsn":`...), v.LSN...)
	}
	if v.Outcome == Valid {
		dst = append(dst, `,"valid":"VALID","error_message":null,"error_type":null,"metadata":{`...)
	} else {
		dst = append(dst, `,"valid":"INVALID","error_message":`...)
		dst, _ = jsonscan.AppendString(dst, []byte(v.ErrorMessage))
		dst = append(dst, `,"error_type":"`...)
		dst = append(append(dst, v.ErrorType...), `","metadata":{`...)
	}
	if !processedAt.IsZero() {
		dst = append(dst, `"processed_at":"`...)
		dst = append(appendISO(dst, processedAt), '"')
	}
	return append(dst, '}', '}')
}

// verdictSize is how much appendVerdict and the name of the payload add, which keeps
// bodies in the smallest size class. Escapes in a message may make it more.
func verdictSize(v *Verdict) int {
	size := len(`{"payload":,"valid":"VALID","error_message":null,"error_type":null,"metadata":{"processed_at":"2006-01-02T15:04:05.000000"}}`)
	if v.Outcome == Invalid {
		size += len(v.ErrorMessage) // instead of processed_at
	}
	if v.Op != "" || v.LSN != "" {
		size += len(`,"op":"c","lsn":18446744073709551615`)
	}
	return size
}

// appendRaw makes the body of a record that could not be read.
func appendRaw(dst, raw []byte, v *Verdict, now time.Time) []byte {
	dst = append(dst, `{"raw_data":`...)
	dst, exact := jsonscan.AppendString(dst, raw)
	if !exact {
		dst = append(dst, `,"raw_data_base64":"`...)
		dst = append(base64.StdEncoding.AppendEncode(dst, raw), '"')
	}
	return appendVerdict(dst, v, now)
}

// rawBody is appendRaw within maxBody.
func rawBody(raw []byte, v *Verdict, now time.Time) []byte {
	if len(raw) <= MaxValue {
		if body := appendRaw(make([]byte, 0, len(raw)+len(raw)/8+320), raw, v, now); len(body) <= maxBody {
			return body
		}
	}
	cut := raw
	if len(cut) > maxCut {
		cut = cut[:maxCut]
		for i := 1; i < utf8.UTFMax; i++ { // not through a character
			if start := maxCut - i; utf8.RuneStart(cut[start]) {
				if !utf8.FullRune(cut[start:]) {
					cut = cut[:start]
				}
				break
			}
		}
	}
	body := appendRaw(nil, cut, v, now)
	body = append(body[:len(body)-1], `,"raw_data_bytes":`...)
	return append(strconv.AppendInt(body, int64(len(raw)), 10), '}')
}

// appendISO appends a time as Python's isoformat does for UTC without a zone, with
// six digits of the second's fraction always.
func appendISO(dst []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	var text [26]byte
	digits2(text[0:], year/100)
	digits2(text[2:], year%100)
	text[4] = '-'
	digits2(text[5:], int(month))
	text[7] = '-'
	digits2(text[8:], day)
	text[10] = 'T'
	digits2(text[11:], hour)
	text[13] = ':'
	digits2(text[14:], minute)
	text[16] = ':'
	digits2(text[17:], second)
	text[19] = '.'
	micros := t.Nanosecond() / 1000
	digits2(text[20:], micros/10_000)
	digits2(text[22:], micros/100%100)
	digits2(text[24:], micros%100)
	return append(dst, text[:]...)
}

// digits2 writes a number below 100 with two digits.
func digits2(dst []byte, n int) { dst[0], dst[1] = '0'+byte(n/10), '0'+byte(n%10) }

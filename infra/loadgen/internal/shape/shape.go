// Package shape writes shop events down as the messages that the pipelines take:
// the Connect envelope of the tracking producer, and what Debezium makes of rows of
// the table public.events, flat or as full change envelopes; or as changes of that
// table. On request it writes messages that a validator has to refuse, see Kind.
//
// It writes bytes by hand instead of marshalling: a load generator must cost less
// than what it loads. It sends nothing.
package shape

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

// Format is a shape of message.
type Format uint8

const (
	// Connect is the tracking producer's envelope: an Avro field list as schema,
	// and the nine fields as payload.
	Connect Format = iota
	// CDCFlat is a Debezium message after its unwrap transform: a Connect schema
	// and the row as payload.
	CDCFlat
	// CDCFull is a Debezium message as it is: before, after, source, op.
	CDCFull
	// Row is a change of a row without any envelope, for what makes the change in a
	// table: op, and the row before and after as in CDCFull.
	Row
)

var formatNames = [...]string{"connect", "cdc-flat", "cdc-full", "row"}

func (f Format) String() string { return formatNames[f] }

// ParseFormat is the inverse of String.
func ParseFormat(s string) (Format, error) {
	for i, name := range formatNames {
		if name == s {
			return Format(i), nil
		}
	}
	return 0, fmt.Errorf("format %q is none of %s", s, strings.Join(formatNames[:], ", "))
}

// Topic is where messages of the format belong; those of Row, what they become.
func (f Format) Topic() string {
	if f == Connect {
		return "tracking.raw_user_behavior"
	}
	return "tracking_postgres_cdc.public.events"
}

// TimeText is how a CDC row's event_time is written; the names are those of the
// forms that contracts accept.
type TimeText uint8

// The ways to write it, and what they look like.
const (
	Zoned         TimeText = iota // 2019-10-01T00:00:00Z
	ZonedFraction                 // 2019-10-01T00:00:00.000000Z
	Space                         // 2019-10-01 00:00:00+0000
	SpaceFraction                 // 2019-10-01 00:00:00.000000+0000
	Micros                        // microseconds since the epoch
	Millis                        // milliseconds since the epoch
)

var timeTexts = [...]struct{ name, layout, logical, connect string }{
	Zoned:         {"zoned", "2006-01-02T15:04:05Z", "io.debezium.time.ZonedTimestamp", "string"},
	ZonedFraction: {"zoned-fraction", "2006-01-02T15:04:05.000000Z", "io.debezium.time.ZonedTimestamp", "string"},
	Space:         {"space", "2006-01-02 15:04:05-0700", "io.debezium.time.ZonedTimestamp", "string"},
	SpaceFraction: {"space-fraction", "2006-01-02 15:04:05.000000-0700", "io.debezium.time.ZonedTimestamp", "string"},
	Micros:        {"micros", "", "io.debezium.time.MicroTimestamp", "int64"},
	Millis:        {"millis", "", "io.debezium.time.Timestamp", "int64"},
}

// ParseTimeText finds a TimeText by its name: zoned, zoned-fraction, space,
// space-fraction, micros, millis.
func ParseTimeText(s string) (TimeText, error) {
	names := make([]string, len(timeTexts))
	for i, t := range timeTexts {
		if t.name == s {
			return TimeText(i), nil
		}
		names[i] = t.name
	}
	return 0, fmt.Errorf("time text %q is none of %s", s, strings.Join(names, ", "))
}

// The nine fields in the order of the messages.
const (
	eventTime = iota
	eventType
	productID
	categoryID
	categoryCode
	brand
	price
	userID
	userSession
	fieldCount
)

var fieldNames = [fieldCount]string{"event_time", "event_type", "product_id", "category_id",
	"category_code", "brand", "price", "user_id", "user_session"}

// Change is one change of one row. A clickstream message is the insertion of its
// event.
type Change struct {
	// Op is c (insert), u (update) or d (delete).
	Op byte
	// Before is the row before an update or a delete, After the row after an
	// insert or an update.
	Before, After *shop.Event
	// Position orders the changes; the log position and transaction follow from it.
	Position uint64
}

// Row is the event that the change is about.
func (c *Change) Row() *shop.Event {
	if c.After != nil {
		return c.After
	}
	return c.Before
}

// Encoder writes messages of one format. It is not safe for concurrent use.
type Encoder struct {
	format Format
	text   TimeText
	// good and disagreeing are the schema members, `{"schema":...,"payload":`.
	good, disagreeing []byte

	second   int64 // for which time is written down
	time     []byte
	products [][]byte // the members product_id to price, by catalogue index
}

// NewEncoder makes an encoder; text matters for the CDC formats only.
func NewEncoder(format Format, text TimeText) *Encoder {
	e := &Encoder{format: format, text: text, second: -1 << 62}
	e.good = []byte(schemaMember(format, text, "double"))
	e.disagreeing = []byte(schemaMember(format, text, "string"))
	return e
}

// Append writes a valid message and returns the extended buffer.
func (e *Encoder) Append(dst []byte, c *Change) []byte {
	dst = append(dst, e.good...)
	switch e.format {
	case CDCFull:
		return e.appendEnvelope(dst, c)
	case Row:
		dst = append(append(append(dst, `{"op":"`...), c.Op), `","before":`...)
		dst = e.appendRowOrNull(dst, c.Before)
		dst = e.appendRowOrNull(append(dst, `,"after":`...), c.After)
		return append(dst, '}')
	}
	dst = e.appendRow(dst, c.Row())
	return append(dst, '}')
}

// appendRow writes the nine fields as one object.
func (e *Encoder) appendRow(dst []byte, ev *shop.Event) []byte {
	dst = append(dst, `{"event_time":`...)
	dst = append(dst, e.timeText(ev.Time)...)
	dst = append(dst, `,"event_type":"`...)
	dst = append(dst, ev.Type.String()...)
	dst = append(dst, '"', ',')
	dst = e.appendProduct(dst, ev.Product)
	dst = append(dst, `,"user_id":`...)
	dst = strconv.AppendInt(dst, ev.User, 10)
	dst = append(dst, `,"user_session":`...)
	dst = appendString(dst, ev.Session)
	return append(dst, '}')
}

// timeText is the event time as JSON text. Events of one second come together, so
// the last text is kept.
func (e *Encoder) timeText(seconds int64) []byte {
	if e.second == seconds {
		return e.time
	}
	e.second = seconds
	at := time.Unix(seconds, 0).UTC()
	b := e.time[:0]
	switch {
	case e.format == Connect:
		b = append(at.AppendFormat(append(b, '"'), shop.TimeLayout), '"')
	case e.text == Micros:
		b = strconv.AppendInt(b, at.UnixMicro(), 10)
	case e.text == Millis:
		b = strconv.AppendInt(b, at.UnixMilli(), 10)
	default:
		b = append(at.AppendFormat(append(b, '"'), timeTexts[e.text].layout), '"')
	}
	e.time = b
	return b
}

func (e *Encoder) appendProduct(dst []byte, p *shop.Product) []byte {
	if p.Index == shop.NoIndex {
		return appendProduct(dst, p)
	}
	for len(e.products) <= p.Index {
		e.products = append(e.products, nil)
	}
	if e.products[p.Index] == nil {
		e.products[p.Index] = appendProduct(nil, p)
	}
	return append(dst, e.products[p.Index]...)
}

func appendProduct(dst []byte, p *shop.Product) []byte {
	dst = append(dst, `"product_id":`...)
	dst = strconv.AppendInt(dst, p.ID, 10)
	dst = append(dst, `,"category_id":`...)
	dst = strconv.AppendInt(dst, p.CategoryID, 10)
	dst = append(dst, `,"category_code":`...)
	dst = appendNullable(dst, p.CategoryCode)
	dst = append(dst, `,"brand":`...)
	dst = appendNullable(dst, p.Brand)
	dst = append(dst, `,"price":`...)
	return strconv.AppendFloat(dst, p.Price, 'f', -1, 64)
}

func appendNullable(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, "null"...)
	}
	return appendString(dst, s)
}

// appendString writes a JSON string. s is valid UTF-8.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == '"' || s[i] == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string always marshals
			}
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

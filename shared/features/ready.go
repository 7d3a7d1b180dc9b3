package features

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Ready is the data of dev.millrace.features.ready.v1, and of the messages of topic
// model.features.ready: an event with the features that were served for it. It is
// flat JSON:
//
//	{"event_timestamp":"2019-10-01 02:30:12 UTC","user_id":512900744,"product_id":1306133,
//	 "user_session":"76b918d5-...","event_type":"cart","category_code":"appliances.kitchen.hood",
//	 "brand":"xiaomi","price":1029.37,"event_weekday":2,"category_code_level1":"appliances",
//	 "category_code_level2":"kitchen","activity_count":3,"record_hash":"9f86d0...","processed_at":"2025-01-07T09:00:00.123456"}
//
// Features are null when they are not known; the rest is always there, but for
// category_code, which may be null.
type Ready struct {
	EventTimestamp    time.Time // UTC, whole microseconds
	UserID, ProductID int64
	UserSession       string
	EventType         string
	CategoryCode      string // "" when it is not known
	Features          Vector
	// RecordHash is the natural key of the event, that of silver.events and
	// dwh.fact_events: two messages with the same are one event that came twice.
	RecordHash [32]byte
	// ProcessedAt is when the features were written, by the clock of who wrote them.
	ProcessedAt time.Time
}

// timeFormat is how event_timestamp is written, whatever way the event came: the
// text of the tracking producer, with up to six digits of the second's fraction
// where there is one.
const timeFormat = "2006-01-02 15:04:05.999999 UTC"

// processedFormat has six digits of the second's fraction always and no zone, it is
// UTC.
const processedFormat = "2006-01-02T15:04:05.000000"

// OfEvent makes the message of an event with its hash and rank.
func OfEvent(e *Event, hash [32]byte, rank int64, processedAt time.Time) Ready {
	return Ready{
		EventTimestamp: e.Time, UserID: e.UserID, ProductID: e.ProductID, UserSession: e.Session, EventType: e.Type,
		CategoryCode: e.CategoryCode, Features: Of(e, rank), RecordHash: hash, ProcessedAt: processedAt,
	}
}

// AppendJSON appends the message as one line of JSON, without its end.
func (r *Ready) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"event_timestamp":"`...)
	dst = r.EventTimestamp.UTC().AppendFormat(dst, timeFormat)
	dst = append(dst, `","user_id":`...)
	dst = strconv.AppendInt(dst, r.UserID, 10)
	dst = append(dst, `,"product_id":`...)
	dst = strconv.AppendInt(dst, r.ProductID, 10)
	dst = append(dst, `,"user_session":`...)
	dst = appendString(dst, r.UserSession)
	dst = append(dst, `,"event_type":`...)
	dst = appendString(dst, r.EventType)
	dst = append(dst, `,"category_code":`...)
	dst = text(r.CategoryCode).AppendJSON(dst)
	for i := range all {
		dst = append(dst, `,"`...)
		dst = append(dst, all[i].Name...)
		dst = append(dst, `":`...)
		dst = r.Features[i].AppendJSON(dst)
	}
	dst = append(dst, `,"record_hash":"`...)
	dst = hex.AppendEncode(dst, r.RecordHash[:])
	dst = append(dst, `","processed_at":"`...)
	dst = r.ProcessedAt.UTC().AppendFormat(dst, processedFormat)
	return append(dst, `"}`...)
}

// ParseReady reads a message. Members that it does not know are let through. An
// error names the field and the rule, and is for good.
func ParseReady(data []byte) (Ready, error) {
	var r Ready
	found := 0
	err := members(data, func(name, value []byte) (err error) {
		null := string(value) == "null"
		if i, ok := ByName(string(name)); ok {
			found |= 1 << (i + readyFields)
			if !null {
				r.Features[i], err = readValue(&all[i], value)
			}
			return err
		}
		if null {
			return nil
		}
		switch string(name) {
		case "event_timestamp":
			found |= 1 << 0
			if r.EventTimestamp, err = readTime(value); err != nil {
				err = fmt.Errorf("field event_timestamp %w", err)
			}
		case "user_id":
			found |= 1 << 1
			r.UserID, err = readInt("user_id", value)
		case "product_id":
			found |= 1 << 2
			r.ProductID, err = readInt("product_id", value)
		case "user_session":
			found |= 1 << 3
			r.UserSession, err = readString("user_session", value)
		case "event_type":
			found |= 1 << 4
			r.EventType, err = readString("event_type", value)
		case "record_hash":
			found |= 1 << 5
			err = readHash(&r.RecordHash, value)
		case "processed_at":
			found |= 1 << 6
			r.ProcessedAt, err = readProcessedAt(value)
		case "category_code":
			r.CategoryCode, err = readString("category_code", value)
		}
		return err
	})
	if err != nil {
		return Ready{}, fmt.Errorf("reading features: %w", err)
	}
	for i, name := range readyNames {
		if found&(1<<i) == 0 {
			return Ready{}, fmt.Errorf("reading features: field %s is required", name)
		}
	}
	for i := range all {
		if found&(1<<(i+readyFields)) == 0 {
			return Ready{}, fmt.Errorf("reading features: field %s is required", all[i].Name)
		}
	}
	return r, nil
}

var readyNames = [...]string{"event_timestamp", "user_id", "product_id", "user_session", "event_type", "record_hash", "processed_at"}

const readyFields = len(readyNames)

// readValue reads a feature's value from JSON that is not null.
func readValue(f *Feature, value []byte) (Value, error) {
	switch f.Type {
	case Int64:
		n, err := readInt(f.Name, value)
		return OfInt(n), err
	case Float64:
		x, err := readFloat(f.Name, value)
		return OfFloat(x), err
	}
	s, err := readString(f.Name, value)
	return text(s), err
}

// ParseJSON reads a value of the feature from JSON; null and an empty text are null.
// The error names the feature.
func (f *Feature) ParseJSON(value []byte) (Value, error) {
	if string(value) == "null" {
		return Value{}, nil
	}
	if len(value) == 0 {
		return Value{}, fmt.Errorf("field %s should be JSON", f.Name)
	}
	return readValue(f, value)
}

// ParseText reads what Value.AppendText wrote of a value of the type.
func (t Type) ParseText(s string) (Value, error) {
	if s == "" {
		return Value{}, nil
	}
	switch t {
	case Int64:
		n, err := strconv.ParseInt(s, 10, 64)
		return OfInt(n), err
	case Float64:
		x, err := strconv.ParseFloat(s, 64)
		return OfFloat(x), err
	}
	return OfString(s), nil
}

func readHash(hash *[32]byte, value []byte) error {
	if len(value) == 2*len(hash)+2 {
		if _, err := hex.Decode(hash[:], value[1:len(value)-1]); err == nil {
			return nil
		}
	}
	return errors.New("field record_hash should be 64 hex digits")
}

func readProcessedAt(value []byte) (time.Time, error) {
	if value[0] == '"' {
		if t, err := time.Parse(processedFormat, string(value[1:len(value)-1])); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New("field processed_at should be a time like " + processedFormat)
}

package lake

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// Attrs are the CloudEvents attributes that a lake line keeps, as they stand in
// the record's ce_ headers. Those that are absent are empty.
type Attrs struct {
	ID, Source, Type, Op, LSN []byte
}

// AttrsOf reads a record's headers. The slices alias the record.
func AttrsOf(r *kgo.Record) Attrs {
	var a Attrs
	for i := range r.Headers {
		h := &r.Headers[i]
		switch h.Key {
		case "ce_id":
			a.ID = h.Value
		case "ce_source":
			a.Source = h.Value
		case "ce_type":
			a.Type = h.Value
		case "ce_op":
			a.Op = h.Value
		case "ce_lsn":
			a.LSN = h.Value
		}
	}
	return a
}

// AppendLine appends a record as one line of JSON with its newline.
//
// A value that is a JSON object stays as it is, byte for byte, with one more
// member at its end:
//
//	"_kafka":{"partition":P,"offset":O,"timestamp":MS,"id":"…","source":"…","type":"…","op":"…","lsn":"…"}
//
// where id, source, type, op and lsn are the record's CloudEvents attributes and
// absent when it has none. An object that is spread over several lines is
// compacted first. If it has a member _kafka already, the last one is ours, which
// is the one that JSON readers take.
//
// Any other value, which is what is not JSON, not UTF-8 or nested deeper than an
// event may be, becomes {"raw_data_base64":"…","_kafka":{…}}. A record without a
// value, a tombstone, becomes {"_kafka":{…,"tombstone":true,"key":"…"}}, with
// key_base64 for a key that is not UTF-8: what it deletes is told by its key alone.
//
// The line depends on the record only.
func AppendLine(dst []byte, r *kgo.Record, a *Attrs) []byte {
	switch {
	case r.Value == nil:
		dst = append(dst, `{"_kafka":{`...)
	case events.ValidObject(r.Value):
		value := r.Value
		// In valid JSON a raw line break can only be white space.
		if bytes.IndexByte(value, '\n') >= 0 || bytes.IndexByte(value, '\r') >= 0 {
			var b bytes.Buffer
			// Compacting fails on invalid JSON only.
			_ = json.Compact(&b, value)
			value = b.Bytes()
		}
		value = bytes.TrimSpace(value)
		value = value[:len(value)-1]
		dst = append(dst, value...)
		if len(bytes.TrimSpace(value)) > len("{") {
			dst = append(dst, ',')
		}
		dst = append(dst, `"_kafka":{`...)
	default:
		dst = append(dst, `{"raw_data_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, r.Value)
		dst = append(dst, `","_kafka":{`...)
	}
	dst = append(dst, `"partition":`...)
	dst = strconv.AppendInt(dst, int64(r.Partition), 10)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, r.Offset, 10)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, r.Timestamp.UnixMilli(), 10)
	dst = appendMember(dst, `,"id":`, a.ID)
	dst = appendMember(dst, `,"source":`, a.Source)
	dst = appendMember(dst, `,"type":`, a.Type)
	dst = appendMember(dst, `,"op":`, a.Op)
	dst = appendMember(dst, `,"lsn":`, a.LSN)
	if r.Value == nil {
		dst = append(dst, `,"tombstone":true`...)
		if utf8.Valid(r.Key) {
			dst = appendMember(dst, `,"key":`, r.Key)
		} else {
			dst = append(dst, `,"key_base64":"`...)
			dst = base64.StdEncoding.AppendEncode(dst, r.Key)
			dst = append(dst, '"')
		}
	}
	return append(dst, "}}\n"...)
}

func appendMember(dst []byte, name string, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, '"')
	for _, c := range value {
		if c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			// Rare: let the library escape it and replace what is not UTF-8.
			text, _ := json.Marshal(string(value))
			return append(dst[:len(dst)-1], text...)
		}
	}
	dst = append(dst, value...)
	return append(dst, '"')
}

package kafka

import (
	"mime"
	"strings"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

const (
	headerPrefix = "ce_"
	contentType  = "content-type"
	structured   = "application/cloudevents+json"
)

// ToRecord is the event as a record in binary content mode: attributes are headers
// ce_<name>, datacontenttype is the header content-type, the data is the value, and
// the partitionkey extension is the key. Without data (nil) the value is null.
//
// The record shares the event's memory; neither may be changed afterwards.
func ToRecord(topic string, m *events.Message) *kgo.Record {
	r := &kgo.Record{Topic: topic, Value: m.Data, Headers: make([]kgo.RecordHeader, len(m.Attrs))}
	for i := range m.Attrs {
		a := &m.Attrs[i]
		value := bytesOf(a.Value)
		r.Headers[i] = kgo.RecordHeader{Key: headerOf(a.Name), Value: value}
		if a.Name == events.PartitionKey {
			r.Key = value
		}
	}
	return r
}

// ToStructuredRecord is the event as a record in structured content mode: the value
// is the event in the JSON format. The key is the partitionkey extension.
func ToStructuredRecord(topic string, m *events.Message) *kgo.Record {
	r := &kgo.Record{
		Topic:   topic,
		Value:   events.AppendJSON(nil, m),
		Headers: []kgo.RecordHeader{{Key: contentType, Value: []byte(structured)}},
	}
	if key := m.Get(events.PartitionKey); key != "" {
		r.Key = []byte(key)
	}
	return r
}

// FromRecord is the event that the record holds in either content mode, and whether
// it holds one. Attributes come as they are: Message.Validate says if they are
// those of a valid event. The event shares the record's memory.
func FromRecord(r *kgo.Record) (events.Message, bool) {
	m := events.Message{Attrs: make([]events.Attr, 0, len(r.Headers))}
	ok := Decode(&m, r)
	return m, ok
}

// Decode is FromRecord into a message whose Attrs are used again, for who looks at
// many records and keeps few.
func Decode(m *events.Message, r *kgo.Record) bool {
	m.Data, m.Attrs = r.Value, m.Attrs[:0]
	isEvent := false
	for i := range r.Headers {
		h := &r.Headers[i]
		name, ok := nameOf(h.Key)
		if !ok {
			continue
		}
		value := textOf(h.Value)
		if name == "specversion" {
			isEvent = true
		}
		if name == "datacontenttype" && isStructured(value) {
			parsed, err := events.ParseJSON(r.Value)
			*m = parsed
			return err == nil
		}
		m.Attrs = set(m.Attrs, name, value)
	}
	return isEvent
}

// Type is the type attribute of the event that the record holds, found without
// decoding the rest: "" when there is none. It is not known of events in structured
// content mode.
func Type(r *kgo.Record) (typ string, known bool) {
	for i := range r.Headers {
		h := &r.Headers[i]
		switch h.Key {
		case headerPrefix + "type":
			typ = textOf(h.Value)
		case contentType:
			if isStructured(textOf(h.Value)) {
				return "", false
			}
		}
	}
	return typ, true
}

func isStructured(value string) bool {
	if !strings.HasPrefix(value, "application/cloudevents") {
		return false
	}
	t, _, err := mime.ParseMediaType(value)
	return err == nil && t == structured
}

// set appends the attribute; of a header that stands twice the last one counts.
func set(attrs []events.Attr, name, value string) []events.Attr {
	for i := range attrs {
		if attrs[i].Name == name {
			attrs[i].Value = value
			return attrs
		}
	}
	return append(attrs, events.Attr{Name: name, Value: value})
}

// nameOf is the attribute that the header carries.
func nameOf(header string) (string, bool) {
	if name, ok := strings.CutPrefix(header, headerPrefix); ok {
		// The data's content type has a header of its own, and only there.
		return name, name != "" && name != "datacontenttype"
	}
	if header == contentType {
		return "datacontenttype", true
	}
	return "", false
}

// headerOf is the header of the attribute. The usual ones cost no allocation.
func headerOf(name string) string {
	switch name {
	case "datacontenttype":
		return contentType
	case "specversion":
		return headerPrefix + "specversion"
	case "id":
		return headerPrefix + "id"
	case "source":
		return headerPrefix + "source"
	case "type":
		return headerPrefix + "type"
	case "subject":
		return headerPrefix + "subject"
	case "time":
		return headerPrefix + "time"
	case "dataschema":
		return headerPrefix + "dataschema"
	case events.PartitionKey:
		return headerPrefix + events.PartitionKey
	case events.Contract:
		return headerPrefix + events.Contract
	case "key":
		return headerPrefix + "key"
	case "traceparent":
		return headerPrefix + "traceparent"
	default:
		return headerPrefix + name
	}
}

// bytesOf and textOf change the type without a copy: neither records nor messages
// are written to once they exist.
func bytesOf(s string) []byte {
	return unsafe.Slice(unsafe.StringData(s), len(s)) //nolint:gosec // see above
}

func textOf(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // see above
}

package eventing

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// recordDecoder makes events of the records of a KafkaSource, as Knative's does: a
// record that is a CloudEvent in the Kafka binding is that event, and any other one
// is the data of a dev.knative.kafka.event whose id, source and subject say where it
// stands.
type recordDecoder struct {
	// sources are the source attributes by topic.
	sources map[string]string
	// overrides are the extensions of ceOverrides, by name.
	overrides []events.Attr
}

// KafkaEventSource is the source attribute of the events that a KafkaSource makes of
// a topic's records.
func KafkaEventSource(namespace, name, topic string) string {
	return "/apis/v1/namespaces/" + namespace + "/kafkasources/" + name + "#" + topic
}

func newRecordDecoder(s *KafkaSource) *recordDecoder {
	d := &recordDecoder{sources: make(map[string]string, len(s.Topics)), overrides: overrides(s.Extensions)}
	for _, topic := range s.Topics {
		d.sources[topic] = KafkaEventSource(s.Namespace, s.Name, topic)
	}
	return d
}

func overrides(extensions map[string]string) []events.Attr {
	attrs := make([]events.Attr, 0, len(extensions))
	for _, name := range slices.Sorted(maps.Keys(extensions)) {
		attrs = append(attrs, events.Attr{Name: name, Value: extensions[name]})
	}
	return attrs
}

// decode is a consumer's decode. Every record is an event.
func (d *recordDecoder) decode(m *events.Message, r *kgo.Record) bool {
	isEvent := len(r.Headers) > 0 && kafka.Decode(m, r) && m.Validate() == nil && isText(m)
	if !isEvent {
		d.wrap(m, r)
	}
	for _, a := range d.overrides {
		m.Set(a.Name, a.Value)
	}
	return true
}

func (d *recordDecoder) wrap(m *events.Message, r *kgo.Record) {
	// id, subject and time are parts of one text, so that they cost one allocation.
	text := make([]byte, 0, 96)
	text = append(text, "partition:"...)
	text = strconv.AppendInt(text, int64(r.Partition), 10)
	text = append(text, "/offset:"...)
	text = strconv.AppendInt(text, r.Offset, 10)
	idEnd := len(text)
	text = append(text, "partition:"...)
	text = strconv.AppendInt(text, int64(r.Partition), 10)
	text = append(text, '#')
	text = strconv.AppendInt(text, r.Offset, 10)
	subjectEnd := len(text)
	// A producer that took nanoseconds for milliseconds is in a year that RFC 3339
	// cannot write.
	at := r.Timestamp.UTC()
	hasTime := at.Year() >= 0 && at.Year() <= 9999
	if hasTime {
		text = at.AppendFormat(text, time.RFC3339Nano)
	}
	all := string(text)

	m.Data = r.Value
	m.Attrs = append(m.Attrs[:0],
		events.Attr{Name: "specversion", Value: "1.0"},
		events.Attr{Name: "id", Value: all[:idEnd]},
		events.Attr{Name: "source", Value: d.sources[r.Topic]},
		events.Attr{Name: "type", Value: events.KafkaRecord},
		events.Attr{Name: "subject", Value: all[idEnd:subjectEnd]},
	)
	if hasTime {
		m.Attrs = append(m.Attrs, events.Attr{Name: "time", Value: all[subjectEnd:]})
	}
	if key := attributeText(r.Key); key != "" {
		m.Attrs = append(m.Attrs, events.Attr{Name: events.PartitionKey, Value: key}, events.Attr{Name: "key", Value: key})
	}
	for i := range r.Headers {
		h := &r.Headers[i]
		value := attributeText(h.Value)
		if value == "" {
			continue
		}
		switch name := strings.ToLower(h.Key); {
		case name == "content-type":
			m.Set("datacontenttype", strings.ToLower(value))
		case name == "traceparent" || name == "tracestate":
			// What the producer's instrumentation wrote: the trace goes on with the event.
			m.Set(name, value)
		case len(m.Attrs) < maxAttributes:
			m.Set("kafkaheader"+extensionName(h.Key), value)
		}
	}
}

// isText reports whether all values are UTF-8: headers of records need not be.
func isText(m *events.Message) bool {
	for i := range m.Attrs {
		if !utf8.ValidString(m.Attrs[i].Value) {
			return false
		}
	}
	return true
}

// maxAttributes keeps a record with very many headers within what an event may have.
const maxAttributes = 100

// extensionName is the header's name with what an attribute's name cannot have left
// out.
func extensionName(header string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return -1
	}, header)
}

// attributeText is the bytes as an attribute's value: what is not UTF-8 or a control
// character becomes U+FFFD, as a string deserializer would make it.
func attributeText(b []byte) string {
	for i := range b {
		if b[i] < 0x20 || b[i] >= 0x7f {
			return cleanText(b)
		}
	}
	return string(b)
}

func cleanText(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0xfffe || r == 0xffff {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(string(b), string(utf8.RuneError)))
}

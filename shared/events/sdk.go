package events

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
)

// Event gives the message as the SDK's event. The event shares the message's data.
// Extensions are strings. The error names an attribute that has no SDK form: a
// source or dataschema that is no URI, a time that is not RFC 3339.
func (m *Message) Event() (event.Event, error) {
	var c Converter
	return c.Event(m)
}

// A Converter gives messages as the SDK's events, like Message.Event, and reuses
// what neighbouring messages have in common. The zero value is ready. It is not
// safe for concurrent use.
type Converter struct {
	source      string
	sourceURI   url.URL
	contentType *string
}

// attributes is an event's context and what it mostly points to, in one allocation.
type attributes struct {
	event.EventContextV1
	subject string
	time    types.Timestamp
}

// Event gives the message as the SDK's event; see Message.Event.
func (c *Converter) Event(m *Message) (event.Event, error) {
	a := &attributes{}
	extensions := 0
	for i := range m.Attrs {
		value := m.Attrs[i].Value
		switch m.Attrs[i].Name {
		case "specversion":
			if value != event.CloudEventsVersionV1 {
				return event.Event{}, fmt.Errorf("attribute \"specversion\": must be 1.0, not %q", value)
			}
		case "id":
			a.ID = value
		case "source":
			if value != c.source {
				u, err := url.Parse(value)
				if err != nil {
					return event.Event{}, fmt.Errorf("attribute \"source\": must be a URI reference: %w", err)
				}
				c.source, c.sourceURI = value, *u
			}
			a.Source.URL = c.sourceURI
		case "type":
			a.Type = value
		case "datacontenttype":
			// The pointer is shared among events; the SDK's setters replace it.
			if c.contentType == nil || *c.contentType != value {
				own := value // what escapes must not be the loop's variable
				c.contentType = &own
			}
			a.DataContentType = c.contentType
		case "dataschema":
			u, err := url.Parse(value)
			if err != nil {
				return event.Event{}, fmt.Errorf("attribute \"dataschema\": must be a URI: %w", err)
			}
			a.DataSchema = &types.URI{URL: *u}
		case "subject":
			a.subject = value
			a.Subject = &a.subject
		case "time":
			t, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return event.Event{}, fmt.Errorf("attribute \"time\": must be an RFC 3339 time, not %q", value)
			}
			a.time.Time = t
			a.Time = &a.time
		default:
			extensions++
		}
	}
	if extensions > 0 {
		a.Extensions = make(map[string]any, extensions)
		for i := range m.Attrs {
			if !isContextAttribute(m.Attrs[i].Name) {
				a.Extensions[m.Attrs[i].Name] = m.Attrs[i].Value
			}
		}
	}
	e := event.Event{Context: &a.EventContextV1}
	if len(m.Data) > 0 {
		e.DataEncoded = m.Data
		e.DataBase64 = a.DataContentType != nil && !IsJSON(*a.DataContentType)
	}
	return e, nil
}

// FromEvent gives the SDK's event as a message, which shares the event's data.
// Extensions come in the order of their names. What a CloudEvent cannot carry (an
// extension of a foreign Go type) is left out.
func FromEvent(e *event.Event) Message {
	if e.Context == nil {
		return Message{}
	}
	c := contextOf(e)
	// With room for the trace context that a reply gets.
	attrs := make([]Attr, 0, 8+2+len(c.Extensions))
	attrs = append(attrs,
		Attr{"specversion", event.CloudEventsVersionV1},
		Attr{"id", c.ID},
		Attr{"source", uriText(&c.Source.URL)},
		Attr{"type", c.Type})
	if c.DataContentType != nil && *c.DataContentType != "" {
		attrs = append(attrs, Attr{"datacontenttype", *c.DataContentType})
	}
	if c.DataSchema != nil {
		attrs = append(attrs, Attr{"dataschema", c.DataSchema.String()})
	}
	if c.Subject != nil && *c.Subject != "" {
		attrs = append(attrs, Attr{"subject", *c.Subject})
	}
	if c.Time != nil && !c.Time.IsZero() {
		attrs = append(attrs, Attr{"time", types.FormatTime(c.Time.Time)})
	}
	first := len(attrs)
	for name, value := range c.Extensions {
		text, ok := value.(string)
		if !ok {
			var err error
			if text, err = types.Format(value); err != nil {
				continue
			}
		}
		attrs = append(attrs, Attr{name, text})
	}
	if len(attrs) > first+1 {
		slices.SortFunc(attrs[first:], func(a, b Attr) int { return strings.Compare(a.Name, b.Name) })
	}
	m := Message{Attrs: attrs}
	if len(e.DataEncoded) > 0 {
		m.Data = e.DataEncoded
	}
	return m
}

// contextOf spares the copy that AsV1 makes of what is nearly always there.
func contextOf(e *event.Event) *event.EventContextV1 {
	if c, ok := e.Context.(*event.EventContextV1); ok {
		return c
	}
	return e.Context.AsV1()
}

// uriText is u.String() without its work for a plain path, which is what the
// sources of functions are, and for the URI that came before.
func uriText(u *url.URL) string {
	if u.Scheme == "" && u.Host == "" && u.User == nil && u.Opaque == "" && u.RawQuery == "" &&
		u.Fragment == "" && u.RawPath == "" && !u.ForceQuery && plainPath(u.Path) {
		return u.Path
	}
	if last := lastURI.Load(); last != nil && last.uri == *u {
		return last.text
	}
	text := u.String()
	lastURI.Store(&namedURI{*u, text})
	return text
}

type namedURI struct {
	uri  url.URL
	text string
}

// lastURI remembers one source: a function's events come from very few.
var lastURI atomic.Pointer[namedURI]

func plainPath(path string) bool {
	if len(path) < 2 || path[0] != '/' || path[1] == '/' {
		return false
	}
	for i := range len(path) {
		c := path[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '/' && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// ReplyID is the id of the reply that a function gives to an event: the same for
// every delivery of the event, different for any other source, id or function. It
// is 32 hex digits of the SHA-256 over the three parts, each preceded by its length.
func ReplyID(source, id, function string) string {
	var space [256]byte
	b := space[:0]
	for _, part := range [...]string{source, id, function} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	sum := sha256.Sum256(b)
	var text [32]byte
	hex.Encode(text[:], sum[:16])
	return string(text[:])
}

// NewReply starts a function's reply of the given type to an event, without data.
//
// The reply is the same for every delivery of the event: its id is ReplyID, its
// source /millrace/<function>, and it carries the event's time on, or none, so
// that lag is counted from the beginning of a chain. partitionkey, traceparent and
// tracestate are carried on too. A second reply to one event, which a function has
// to send itself, needs another id.
func NewReply(in *event.Event, function, typ string) event.Event {
	c := contextOf(in)
	r := &attributes{}
	r.ID = ReplyID(uriText(&c.Source.URL), c.ID, function)
	r.Source.Path = FunctionSource + function
	r.Type = typ
	if c.Time != nil && !c.Time.IsZero() {
		r.time = *c.Time
		r.Time = &r.time
	}
	for _, name := range [...]string{PartitionKey, "traceparent", "tracestate"} {
		if value, ok := c.Extensions[name]; ok {
			if r.Extensions == nil {
				r.Extensions = make(map[string]any, 3)
			}
			r.Extensions[name] = value
		}
	}
	return event.Event{Context: &r.EventContextV1}
}

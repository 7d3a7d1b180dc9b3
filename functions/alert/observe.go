package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
)

// groupID tells groups apart.
type groupID struct{ rule, key string }

// span is when a member of a group began and ended last, by what events say; zero is
// never.
type span struct{ began, ended time.Time }

func (s span) active() bool { return s.began.After(s.ended) }

func (s span) join(o span) span {
	if o.began.After(s.began) {
		s.began = o.began
	}
	if o.ended.After(s.ended) {
		s.ended = o.ended
	}
	return s
}

// change is what the events of a batch mean for one group.
type change struct {
	rule *rule
	id   groupID
	// opener is the event that an alert would be opened by: the first; nil when none
	// raises.
	opener *event.Event
	at     int // its place in the batch
	// Of the events that raise:
	events      int64
	severity    severity
	first, last time.Time
	labels      map[string]string // of the last one
	details     json.RawMessage   // of it too
	// members are set for rules that events resolve.
	members map[string]span
	// resolution is the type of the last event that resolves.
	resolution string
}

// join adds a later change of the same group.
func (c *change) join(o *change) {
	if c.opener == nil {
		c.opener, c.at = o.opener, o.at
	}
	if o.events > 0 {
		if c.events == 0 || o.first.Before(c.first) {
			c.first = o.first
		}
		if c.events == 0 || !o.last.Before(c.last) {
			c.last, c.labels, c.details = o.last, o.labels, o.details
		}
		if ranks[o.severity] > ranks[c.severity] {
			c.severity = o.severity
		}
		c.events += o.events
	}
	for name, s := range o.members {
		if c.members == nil {
			c.members = map[string]span{}
		}
		c.members[name] = c.members[name].join(s)
	}
	if o.resolution != "" {
		c.resolution = o.resolution
	}
}

// maxDetails bounds what is kept of an event's data.
const maxDetails = 4 << 10

// observe tells what an event means for a rule, nil if it is not one of its. It is
// lenient: an event whose data cannot be read is one of the severity that the rule has
// for those, with what can be told of it.
func (r *rule) observe(e *event.Event, at int, now time.Time) *change {
	typ := e.Type()
	raises := slices.Contains(r.On, typ)
	if !raises && !slices.Contains(r.ResolvedBy, typ) {
		return nil
	}
	data := reader{e: e}
	labels := make(map[string]string, len(r.Labels))
	for name, from := range r.Labels {
		labels[name] = cut(data.value(from), 300)
	}
	level := r.Unreadable
	if data.failed {
		labels["error_type"] = "PROCESSING_ERROR"
	} else {
		level = r.Severity.of(labels)
	}
	for label, values := range r.Only {
		if !slices.Contains(values, labels[label]) {
			return nil
		}
	}
	c := &change{rule: r, id: groupID{r.Name, key(r.Group, labels)}, labels: labels}
	when := e.Time()
	if when.IsZero() {
		when = now
	}
	when = when.UTC().Truncate(time.Microsecond) // as PostgreSQL keeps it
	if raises {
		c.opener, c.at, c.events, c.severity, c.first, c.last = e, at, 1, level, when, when
		c.details = details(e.Data())
	}
	if len(r.ResolvedBy) > 0 {
		s := span{began: when}
		if !raises {
			s, c.resolution = span{ended: when}, typ
		}
		c.members = map[string]span{key(r.Member, labels): s}
	}
	return c
}

// key makes one text of labels.
func key(names []string, labels map[string]string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s=%s", name, labels[name])
	}
	return b.String()
}

// details are an event's data, or, of what is too long or no JSON object, as much of it
// as is kept, as text.
func details(data []byte) json.RawMessage {
	// PostgreSQL's jsonb has no zero character.
	if len(data) <= maxDetails && len(data) > 1 && data[0] == '{' && events.ValidObject(data) && !bytes.Contains(data, []byte(`\u0000`)) && utf8.Valid(data) {
		return data
	}
	text := strings.ReplaceAll(strings.ToValidUTF8(cut(string(data[:min(len(data), maxDetails)]), maxDetails), "\ufffd"), "\x00", "\ufffd")
	raw, _ := json.Marshal(map[string]string{"raw_event": text}) // texts can be written
	return raw
}

// reader looks values up in an event, and reads its data when it has to.
type reader struct {
	e      *event.Event
	read   bool
	failed bool
	data   map[string]any
}

func (r *reader) value(from string) string {
	if path, ok := strings.CutPrefix(from, "data."); ok {
		return r.field(path)
	}
	var v string
	switch from {
	case "type":
		v = r.e.Type()
	case "source":
		v = r.e.Source()
	case "subject":
		v = r.e.Subject()
	case "id":
		v = r.e.ID()
	default:
		if x, ok := r.e.Extensions()[from]; ok {
			v = fmt.Sprint(x)
		}
	}
	return clean(v)
}

func (r *reader) field(path string) string {
	// Verdicts come a thousand a second, may be large, and end with what is asked for.
	if path == "error_type" || path == "error_message" {
		if v, ok := lastText(r.e.Data(), path); ok {
			return clean(v)
		}
	}
	if !r.read {
		r.read = true
		if json.Unmarshal(r.e.Data(), &r.data) != nil || r.data == nil {
			r.failed = true
		}
	}
	var v any = r.data
	for part := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[part]
	}
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return clean(v)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = fmt.Sprint(v[i])
		}
		return clean(strings.Join(parts, "; "))
	default:
		return clean(fmt.Sprint(v))
	}
}

func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

// lastText finds a text member of an object without reading all of it, in the last
// 4 KiB: a quote within a text is escaped, so what looks like a member there is one.
func lastText(data []byte, name string) (string, bool) {
	tail := data[max(0, len(data)-4096):]
	i := bytes.LastIndex(tail, []byte(`"`+name+`":"`))
	if i < 1 || tail[i-1] != ',' && tail[i-1] != '{' {
		return "", false
	}
	value := tail[i+len(name)+4:]
	for j, c := range value {
		switch c {
		case '\\':
			return "", false // with escapes: not here
		case '"':
			return string(value[:j]), true
		}
	}
	return "", false
}

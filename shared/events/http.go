package events

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// FromHTTP decodes an event in the HTTP binary mode: attributes from the ce-
// headers, datacontenttype from Content-Type, data from the body. The attributes
// come in the order of their names.
//
// The message aliases body, which the caller must not change afterwards. An event
// that breaks a rule is an error that names the attribute and the rule.
func FromHTTP(h http.Header, body []byte) (Message, error) {
	m := Message{Attrs: make([]Attr, 0, 12)}
	if len(body) > 0 {
		m.Data = body
	}
	for key, values := range h {
		var name string
		switch {
		case key == "Content-Type":
			if len(values) > 1 {
				return Message{}, fmt.Errorf("header Content-Type: given %d times", len(values))
			}
			// A media type is a header of its own, it is not percent-encoded.
			if len(values) == 1 && values[0] != "" {
				m.Attrs = append(m.Attrs, Attr{"datacontenttype", values[0]})
			}
			continue
		case len(key) > 3 && (key[:3] == "Ce-" || strings.EqualFold(key[:3], "ce-")):
			name = nameOf(key)
		default:
			continue
		}
		if len(values) != 1 {
			return Message{}, fmt.Errorf("attribute %q: given %d times", name, len(values))
		}
		if len(m.Attrs) == maxAttrs {
			return Message{}, fmt.Errorf("attribute %q: more than %d attributes", name, maxAttrs)
		}
		value, err := decodeHeader(values[0])
		if err != nil {
			return Message{}, fmt.Errorf("attribute %q: %w", name, err)
		}
		m.Attrs = append(m.Attrs, Attr{name, value})
	}
	slices.SortFunc(m.Attrs, func(a, b Attr) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(m.Attrs); i++ {
		if m.Attrs[i].Name == m.Attrs[i-1].Name {
			return Message{}, errTwice(m.Attrs[i].Name)
		}
	}
	if err := m.validate(); err != nil {
		return Message{}, err
	}
	return m, nil
}

// SetHTTP sets the headers of the HTTP binary mode; m.Data is the body that
// belongs to them. Without a datacontenttype no Content-Type is set.
func SetHTTP(h http.Header, m *Message) {
	values := make([]string, len(m.Attrs))
	for i := range m.Attrs {
		a := &m.Attrs[i]
		if a.Name == "datacontenttype" {
			values[i] = a.Value
			h["Content-Type"] = values[i : i+1 : i+1]
			continue
		}
		values[i] = encodeHeader(a.Value)
		h[headerOf(a.Name)] = values[i : i+1 : i+1]
	}
}

// Headers of the attributes that most events have, so that neither direction
// builds them again for every event.
var (
	headerByName = map[string]string{}
	nameByHeader = map[string]string{}
)

func init() {
	for _, name := range []string{
		"specversion", "id", "source", "type", "subject", "time", "dataschema",
		PartitionKey, Contract, Op, LSN, ErrorCode, ErrorData, ErrorDest,
		"traceparent", "tracestate", "key", "knativearrivaltime",
	} {
		header := headerOf(name)
		headerByName[name] = header
		nameByHeader[header] = name
	}
}

// headerOf is the canonical header of an attribute; names have no hyphens.
func headerOf(name string) string {
	if header, ok := headerByName[name]; ok {
		return header
	}
	return "Ce-" + strings.ToUpper(name[:1]) + name[1:]
}

func nameOf(header string) string {
	if name, ok := nameByHeader[header]; ok {
		return name
	}
	return strings.ToLower(header[len("ce-"):])
}

// plainHeader tells whether a character stands for itself in a header value. The
// others are percent-encoded: space, quote, percent and whatever is not printable
// ASCII (CloudEvents HTTP binding, section 3.1.3.2).
func plainHeader(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }

func encodeHeader(value string) string {
	i := 0
	for i < len(value) && plainHeader(value[i]) {
		i++
	}
	if i == len(value) {
		return value
	}
	var b strings.Builder
	b.Grow(len(value) + 16)
	b.WriteString(value[:i])
	for ; i < len(value); i++ {
		if c := value[i]; plainHeader(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte("0123456789ABCDEF"[c>>4])
			b.WriteByte("0123456789ABCDEF"[c&15])
		}
	}
	return b.String()
}

// decodeHeader undoes encodeHeader, and the quoted strings that older senders use.
// A percent sign that starts no two hex digits stands for itself: senders that do
// not encode at all are more common than broken encoders.
func decodeHeader(value string) (string, error) {
	i := 0
	for i < len(value) && value[i] != '%' && value[i] != '"' && value[i] < utf8.RuneSelf {
		i++
	}
	if i == len(value) {
		return value, nil
	}
	quoted := len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"'
	if quoted {
		value = value[1 : len(value)-1]
	}
	b := make([]byte, 0, len(value))
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\\' && quoted && i+1 < len(value):
			i++
			c = value[i]
		case c == '%' && i+2 < len(value):
			if high, low := unhex(value[i+1]), unhex(value[i+2]); high >= 0 && low >= 0 {
				c = byte(high<<4 | low)
				i += 2
			}
		}
		b = append(b, c)
	}
	if !utf8.Valid(b) {
		return "", fmt.Errorf("value %q is not UTF-8", value)
	}
	return string(b), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

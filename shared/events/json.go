package events

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// Media types of the JSON formats.
const (
	ContentTypeEvent = "application/cloudevents+json"
	ContentTypeBatch = "application/cloudevents-batch+json"
)

// maxAttrs bounds the attributes of one event, so that the search for duplicate
// names stays cheap whatever is sent.
const maxAttrs = 128

// ParseJSON decodes one event in the JSON event format and validates it.
//
// The message aliases b: Data and the attributes are parts of it wherever the
// JSON text has them unescaped. The caller must not change b afterwards.
//
// Data is the JSON text of member data, byte for byte, when datacontenttype is
// absent or a JSON type. For another type data must be a JSON string, and Data is
// what that string says. Data of data_base64 is decoded. Extension values that are
// booleans or integers become their canonical strings; null is an absent
// attribute.
func ParseJSON(b []byte) (Message, error) {
	p, err := newParser(b)
	if err != nil {
		return Message{}, err
	}
	p.space()
	m, err := p.event()
	if err != nil {
		return Message{}, err
	}
	if err := p.end(); err != nil {
		return Message{}, err
	}
	return m, nil
}

// ParseBatch decodes a JSON array of events (the JSON batch format), under the
// rules of ParseJSON. One bad event makes the batch an error that gives the
// event's position, from 0.
func ParseBatch(body []byte) ([]Message, error) {
	p, err := newParser(body)
	if err != nil {
		return nil, err
	}
	p.space()
	if !p.take('[') {
		return nil, p.syntax("a batch is a JSON array of events")
	}
	p.space()
	var ms []Message
	if !p.take(']') {
		// Members of a batch are of similar size: the first one tells how many
		// there will be, near enough to allocate once.
		for {
			start := p.i
			m, err := p.event()
			if err != nil {
				return nil, fmt.Errorf("event %d: %w", len(ms), err)
			}
			if ms == nil {
				n := min(len(body)/(p.i-start+1)+1, 4096)
				ms = make([]Message, 0, n)
				p.arena = make([]Attr, 0, n*len(m.Attrs))
			}
			ms = append(ms, m)
			p.space()
			if p.take(']') {
				break
			}
			if !p.take(',') {
				return nil, p.syntax("expected ',' or ']' after an event")
			}
			p.space()
		}
	}
	if err := p.end(); err != nil {
		return nil, err
	}
	return ms, nil
}

// parser decodes events from one JSON text.
type parser struct {
	scanner
	attrs []Attr   // of the event at hand
	names []string // of its members, for duplicates
	arena []Attr   // where the attributes of finished events go
}

func newParser(b []byte) (*parser, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("JSON text is not UTF-8")
	}
	return &parser{scanner: scanner{b: b}, attrs: make([]Attr, 0, 16), names: make([]string, 0, 20)}, nil
}

func (p *parser) end() error {
	p.space()
	if p.i != len(p.b) {
		return p.syntax("unexpected text after the end")
	}
	return nil
}

// kinds of data member
const (
	noData = iota
	jsonData
	base64Data
)

func (p *parser) event() (Message, error) {
	if !p.take('{') {
		return Message{}, p.syntax("an event is a JSON object")
	}
	p.attrs, p.names = p.attrs[:0], p.names[:0]
	kind := noData
	var raw []byte // JSON text of the data member
	p.space()
	if !p.take('}') {
		for {
			name, err := p.name()
			if err != nil {
				return Message{}, err
			}
			switch name {
			case "data", "data_base64":
				if kind != noData {
					return Message{}, errors.New("data: given twice (data and data_base64 exclude each other)")
				}
				start := p.i
				if err := p.skip(); err != nil {
					return Message{}, err
				}
				raw = p.b[start:p.i]
				kind = jsonData
				if name == "data_base64" {
					kind = base64Data
				}
			default:
				if err := p.attribute(name); err != nil {
					return Message{}, err
				}
			}
			p.space()
			if p.take('}') {
				break
			}
			if !p.take(',') {
				return Message{}, p.syntax("expected ',' or '}' in an event")
			}
			p.space()
		}
	}
	m := Message{Attrs: p.keep()}
	if err := m.validate(); err != nil {
		return Message{}, err
	}
	var err error
	switch kind {
	case jsonData:
		m.Data, err = memberData(m.Get("datacontenttype"), raw)
	case base64Data:
		m.Data, err = memberBase64(raw)
	}
	if err != nil {
		return Message{}, err
	}
	return m, nil
}

// name reads `"name":` and the space around it.
func (p *parser) name() (string, error) {
	if p.i >= len(p.b) || p.b[p.i] != '"' {
		return "", p.syntax("expected a member name")
	}
	start := p.i
	escaped, err := p.str()
	if err != nil {
		return "", err
	}
	name, err := text(p.b[start+1:p.i-1], escaped)
	if err != nil {
		return "", fmt.Errorf("member name: %w", err)
	}
	p.space()
	if !p.take(':') {
		return "", p.syntax("expected ':' after a member name")
	}
	p.space()
	return name, nil
}

func (p *parser) attribute(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if slices.Contains(p.names, name) {
		return errTwice(name)
	}
	if len(p.names) == maxAttrs {
		return fmt.Errorf("attribute %q: more than %d attributes", name, maxAttrs)
	}
	p.names = append(p.names, name)

	start := p.i
	if start >= len(p.b) {
		return p.syntax("expected a value")
	}
	switch p.b[start] {
	case '"':
		escaped, err := p.str()
		if err != nil {
			return err
		}
		value, err := text(p.b[start+1:p.i-1], escaped)
		if err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
		p.attrs = append(p.attrs, Attr{name, value})
		return nil
	case '{', '[':
		return fmt.Errorf("attribute %q: must be a string, a boolean or an integer", name)
	default:
		if err := p.skip(); err != nil {
			return err
		}
		token := alias(p.b[start:p.i])
		if token == "null" {
			return nil
		}
		if isContextAttribute(name) {
			return fmt.Errorf("attribute %q: must be a string, not %s", name, token)
		}
		if token != "true" && token != "false" {
			n, err := strconv.ParseInt(token, 10, 32)
			if err != nil {
				return fmt.Errorf("attribute %q: %s is not an integer of 32 bits", name, token)
			}
			if n == 0 {
				token = "0" // -0
			}
		}
		p.attrs = append(p.attrs, Attr{name, token})
		return nil
	}
}

// keep moves the event's attributes out of the scratch space.
func (p *parser) keep() []Attr {
	n := len(p.attrs)
	if n == 0 {
		return nil
	}
	if cap(p.arena)-len(p.arena) < n {
		p.arena = make([]Attr, 0, max(n, min(2*cap(p.arena), 4096)))
	}
	start := len(p.arena)
	p.arena = append(p.arena, p.attrs...)
	// The capacity ends with the event's own attributes: Set on one message must
	// not write into its neighbour.
	return p.arena[start:len(p.arena):len(p.arena)]
}

// memberData gives the bytes that the JSON text of member data stands for.
func memberData(contentType string, raw []byte) ([]byte, error) {
	if holdsJSON(contentType) {
		return raw, nil
	}
	if raw[0] != '"' {
		return nil, fmt.Errorf("data: must be a JSON string when datacontenttype is %q", contentType)
	}
	raw = raw[1 : len(raw)-1]
	if !hasEscape(raw) {
		return raw, nil
	}
	s, err := unescape(raw)
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	return s, nil
}

func memberBase64(raw []byte) ([]byte, error) {
	if raw[0] != '"' {
		return nil, errors.New("data_base64: must be a string")
	}
	raw = raw[1 : len(raw)-1]
	if hasEscape(raw) {
		s, err := unescape(raw)
		if err != nil {
			return nil, fmt.Errorf("data_base64: %w", err)
		}
		raw = s
	}
	data := make([]byte, base64.StdEncoding.DecodedLen(len(raw)))
	n, err := base64.StdEncoding.Decode(data, raw)
	if err != nil {
		return nil, fmt.Errorf("data_base64: %w", err)
	}
	return data[:n], nil
}

// text gives the string that the inside of a JSON string stands for.
func text(raw []byte, escaped bool) (string, error) {
	if !escaped {
		return alias(raw), nil
	}
	s, err := unescape(raw)
	if err != nil {
		return "", err
	}
	return alias(s), nil
}

// alias views bytes that nobody changes any more as a string. One copy less per
// attribute is most of what a batch would allocate; the rule that it needs, not to
// change a body once it was parsed, holds for Data anyway.
func alias(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // bytes and length come from one slice
}

// IsJSON tells whether a media type says that the content is JSON.
func IsJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	return strings.HasSuffix(media, "/json") || strings.HasSuffix(media, "+json")
}

// holdsJSON tells whether member data is the data itself: in the JSON format an
// absent datacontenttype stands for JSON.
func holdsJSON(contentType string) bool { return contentType == "" || IsJSON(contentType) }

// AppendJSON appends the event in the JSON event format. The attribute names must
// be valid (see Validate); a value that is not UTF-8 has its wrong bytes replaced.
//
// Data that is JSON by content type and by content goes as member data, byte for
// byte, everything else as data_base64: ParseJSON gives back the same bytes.
func AppendJSON(dst []byte, m *Message) []byte {
	dst = append(dst, '{')
	for i := range m.Attrs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, m.Attrs[i].Name...)
		dst = append(dst, '"', ':')
		dst = AppendString(dst, m.Attrs[i].Value)
	}
	if len(m.Data) > 0 {
		if len(m.Attrs) > 0 {
			dst = append(dst, ',')
		}
		if holdsJSON(m.Get("datacontenttype")) && ridesAsJSON(m.Data) {
			dst = append(dst, `"data":`...)
			dst = append(dst, m.Data...)
		} else {
			dst = append(dst, `"data_base64":"`...)
			dst = base64.StdEncoding.AppendEncode(dst, m.Data)
			dst = append(dst, '"')
		}
	}
	return append(dst, '}')
}

// AppendBatch appends the events in the JSON batch format.
func AppendBatch(dst []byte, ms []Message) []byte {
	n := 2
	for i := range ms {
		n += encodedSize(&ms[i])
	}
	dst = slices.Grow(dst, n)
	dst = append(dst, '[')
	for i := range ms {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendJSON(dst, &ms[i])
	}
	return append(dst, ']')
}

// encodedSize estimates the JSON text's length, exactly so when nothing is
// escaped and the data rides as JSON.
func encodedSize(m *Message) int {
	n := len(`{,"data":},`) + len(m.Data)
	for i := range m.Attrs {
		n += len(m.Attrs[i].Name) + len(m.Attrs[i].Value) + len(`"":"",`)
	}
	return n
}

// ridesAsJSON tells whether data can be a JSON member's text and come back as the
// same bytes: valid JSON without space around it. null is left out because readers
// disagree on whether it is data.
func ridesAsJSON(data []byte) bool {
	if !utf8.Valid(data) || isSpace(data[0]) || string(data) == "null" {
		return false
	}
	s := scanner{b: data}
	return s.skip() == nil && s.i == len(data)
}

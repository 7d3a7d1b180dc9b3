package events

// Attr is one context attribute of an event in its canonical string form.
type Attr struct{ Name, Value string }

// Message is an event as it travels: every context attribute (specversion, id,
// source, type, datacontenttype, extensions, ...) as a string, and the data as
// bytes. It costs no reflection and no copy of the data, which is what forwarding
// and filtering need; a handler gets the SDK's event.Event instead.
type Message struct {
	Attrs []Attr
	Data  []byte
}

// Get returns the attribute's value, "" when it is absent.
func (m *Message) Get(name string) string {
	for i := range m.Attrs {
		if m.Attrs[i].Name == name {
			return m.Attrs[i].Value
		}
	}
	return ""
}

// Set adds or replaces an attribute; an empty value removes it.
func (m *Message) Set(name, value string) {
	for i := range m.Attrs {
		if m.Attrs[i].Name != name {
			continue
		}
		if value == "" {
			m.Attrs = append(m.Attrs[:i], m.Attrs[i+1:]...)
		} else {
			m.Attrs[i].Value = value
		}
		return
	}
	if value != "" {
		m.Attrs = append(m.Attrs, Attr{name, value})
	}
}

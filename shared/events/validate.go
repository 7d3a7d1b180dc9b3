package events

import (
	"errors"
	"fmt"
	"time"
)

// Validate checks the event against CloudEvents 1.0: specversion is 1.0; id, source
// and type are there; no attribute of the specification is empty; time is
// RFC 3339; names are lower-case letters and digits, none twice. The error names the
// attribute and the rule.
func (m *Message) Validate() error {
	if err := m.validate(); err != nil {
		return err
	}
	for i := range m.Attrs {
		for j := range i {
			if m.Attrs[i].Name == m.Attrs[j].Name {
				return errTwice(m.Attrs[i].Name)
			}
		}
	}
	return nil
}

// validate is Validate for decoders, which have met a second attribute of a name
// already.
func (m *Message) validate() error {
	var version, id, source, typ bool
	for i := range m.Attrs {
		a := &m.Attrs[i]
		switch a.Name {
		case "specversion":
			if a.Value != "1.0" {
				return fmt.Errorf("attribute \"specversion\": must be 1.0, not %q", a.Value)
			}
			version = true
			continue
		case "id":
			id = true
		case "source":
			source = true
		case "type":
			typ = true
		case "time":
			if _, err := time.Parse(time.RFC3339, a.Value); err != nil {
				return fmt.Errorf("attribute \"time\": must be an RFC 3339 time, not %q", a.Value)
			}
			continue
		case "datacontenttype", "dataschema", "subject":
		case "data":
			return errors.New("attribute \"data\": the name is reserved")
		default:
			if err := checkName(a.Name); err != nil {
				return err
			}
			continue
		}
		if a.Value == "" {
			return fmt.Errorf("attribute %q: must not be empty", a.Name)
		}
	}
	switch {
	case !version:
		return errMissing("specversion")
	case !id:
		return errMissing("id")
	case !source:
		return errMissing("source")
	case !typ:
		return errMissing("type")
	}
	return nil
}

func errTwice(name string) error { return fmt.Errorf("attribute %q: given twice", name) }

func errMissing(name string) error {
	return fmt.Errorf("attribute %q: required, but missing", name)
}

// checkName applies the naming rule of CloudEvents to an attribute's name.
func checkName(name string) error {
	if name == "" {
		return errors.New("attribute \"\": a name must not be empty")
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("attribute %q: a name is lower-case letters and digits", name)
		}
	}
	return nil
}

// isContextAttribute tells the attributes of the specification, which are strings,
// from extensions.
func isContextAttribute(name string) bool {
	switch name {
	case "specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time":
		return true
	}
	return false
}

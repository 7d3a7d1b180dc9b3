package contract

import (
	"fmt"
	"slices"
	"time"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// Value is what a record says of one field. Which member counts is said by the
// field's type; none does where the value is not Present.
type Value struct {
	// Present is false where the record has null, or does not have the key.
	Present bool
	// Text is a string's, in UTF-8 and without NUL. It may be a part of the verdict.
	Text  []byte
	Int   int64
	Float float64
	Bool  bool
	Time  time.Time // UTC
}

// Reader reads the records of one contract out of its VALID verdicts. It is not safe
// for concurrent use.
type Reader struct {
	contract *Contract
	state    state
	values   []Value
}

// Reader makes one.
func (c *Contract) Reader() *Reader {
	return &Reader{contract: c, values: make([]Value, len(c.Fields))}
}

// Read returns the record's values in the order of the contract's fields. They are
// valid until the next call, and as long as verdict stays as it is.
//
// A verdict may be from when the contract was another: what it does not have is not
// present, and what has another type is an error that names the field. The rules
// about values are not asked again.
func (r *Reader) Read(verdict []byte) ([]Value, error) {
	st := &r.state
	st.reset()
	st.stream, st.contract, st.text = r.contract.solo, r.contract, verdict
	s := &st.scan
	s.Reset(verdict)
	if s.Start() != '{' {
		return nil, fmt.Errorf("reading a verdict: it should be a JSON object with a payload")
	}
	found := false
	for more := s.EnterObject(); more && !found; more = s.NextMember() {
		if string(s.Key()) != "payload" {
			s.Value()
			continue
		}
		if s.Next() != '{' {
			return nil, fmt.Errorf("reading a verdict: field payload should be an object")
		}
		st.members(s)
		found = true
		break
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("reading a verdict: %w", err)
	}
	if !found {
		return nil, fmt.Errorf("reading a verdict: field payload is required")
	}
	for i := range r.values {
		if err := r.value(i); err != nil {
			return nil, err
		}
	}
	return r.values, nil
}

func (r *Reader) value(i int) error {
	st, f, to := &r.state, &r.contract.Fields[i], &r.values[i]
	*to = Value{}
	v := st.values[i]
	if v.Kind == jsonscan.None || v.Kind == jsonscan.Null {
		return nil
	}
	to.Present = true
	ok := true
	switch f.Type {
	case String:
		if ok = v.Kind == jsonscan.String; ok {
			to.Text = jsonscan.Unquote(st.text, v)
			ok = !slices.Contains(to.Text, 0)
		}
	case Int64:
		if ok = v.Kind == jsonscan.Number && v.Integer; ok {
			to.Int, ok = jsonscan.Int(st.text[v.Start:v.End])
		}
	case Double:
		if ok = v.Kind == jsonscan.Number; ok {
			to.Float = jsonscan.Float(st.text, v)
		}
	case Boolean:
		ok, to.Bool = v.Kind == jsonscan.True || v.Kind == jsonscan.False, v.Kind == jsonscan.True
	case Timestamp:
		to.Time, ok = readTime(st.text, v, f.formats)
	}
	if !ok {
		return fmt.Errorf("field %s of the verdict should be of type %s, as contract %s says", f.Name, f.Type, r.contract.Name)
	}
	return nil
}

package contract

import (
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// judge applies the rules and returns the first failure's text, "" if there is none.
func (st *state) judge(v *Verdict) string {
	c := st.contract
	if st.schema != nil {
		switch {
		case st.change.full && !st.schema.change:
			return "Schema disagrees with the payload: it describes a row, not a change of one"
		case st.schema.change && !st.change.full:
			return "Schema disagrees with the payload: it describes a change of a row, not a row"
		case c != nil:
			if text := st.schema.disagreement[st.contractIndex()]; text != "" {
				return text
			}
		}
	}
	if c == nil {
		name := st.stream.contracts[0].Discriminator
		switch st.discriminator.Kind {
		case jsonscan.None:
			return "Field " + name + " is required"
		case jsonscan.String:
			return st.stream.oneOf
		}
		return "Field " + name + " has invalid type"
	}
	if st.change.full {
		if text := st.judgeChange(v.Op); text != "" {
			return text
		}
	}
	for i := range c.Fields {
		if text := st.judgeField(i, v.Op == "d"); text != "" {
			return text
		}
	}
	return ""
}

func (st *state) contractIndex() int {
	for i, c := range st.stream.contracts {
		if c == st.contract {
			return i
		}
	}
	return 0
}

// judgeChange checks what a change envelope must have.
func (st *state) judgeChange(op string) string {
	c := &st.change
	name, row := "after", c.after
	if op == "d" {
		name, row = "before", c.before
	}
	switch {
	case c.op.Kind == jsonscan.None:
		return "Field op is required"
	case c.op.Kind != jsonscan.String:
		return "Field op has invalid type"
	case op == "":
		return "Op should be one of: c, u, d, r"
	case row.Kind == jsonscan.None || row.Kind == jsonscan.Null:
		return "Field " + name + " is required"
	case row.Kind != jsonscan.Object:
		return "Field " + name + " has invalid type"
	}
	return ""
}

// judgeField checks presence, type and value of a field, in this order. Of a
// deleted row the database may have kept the primary key only, so that everything
// may be missing and no rule about values holds; what is there must have its type.
func (st *state) judgeField(i int, deleted bool) string {
	f, v := &st.contract.Fields[i], st.values[i]
	switch v.Kind {
	case jsonscan.None:
		if f.Optional || deleted {
			return ""
		}
		return f.says.required
	case jsonscan.Null:
		if f.Nullable || deleted {
			return ""
		}
		return f.says.invalidType
	}
	switch f.Type {
	case String:
		if v.Kind != jsonscan.String {
			return f.says.invalidType
		}
		if !deleted {
			return f.judgeString(st.text, v)
		}
	case Int64:
		return st.judgeInt(f, v, deleted)
	case Double:
		if v.Kind != jsonscan.Number {
			return f.says.invalidType
		}
		if f.says.limits != "" && !deleted && f.outside(jsonscan.Float(st.text, v)) {
			return f.says.limits
		}
	case Boolean:
		if v.Kind != jsonscan.True && v.Kind != jsonscan.False {
			return f.says.invalidType
		}
	case Timestamp:
		if !st.readTime(i) {
			return f.says.invalidType
		}
	}
	return ""
}

func (f *Field) judgeString(text []byte, v jsonscan.Value) string {
	s := jsonscan.Unquote(text, v)
	if len(f.Enum) > 0 {
		known := false
		for _, e := range f.Enum {
			known = known || string(s) == e
		}
		if !known {
			return f.says.enum
		}
	}
	// A character is one to four bytes, so most lengths are known without counting.
	if len(s) < f.MinLength*utf8.UTFMax && f.MinLength > 0 || f.MaxLength > 0 && len(s) > f.MaxLength {
		if n := utf8.RuneCount(s); n < f.MinLength || f.MaxLength > 0 && n > f.MaxLength {
			return f.says.length
		}
	}
	if f.pattern != nil && !f.pattern.Match(s) {
		return f.says.pattern
	}
	return ""
}

func (st *state) judgeInt(f *Field, v jsonscan.Value, deleted bool) string {
	digits := st.text[v.Start:v.End]
	quoted := v.Kind == jsonscan.String && f.AcceptQuoted
	switch {
	case quoted:
		digits = jsonscan.Unquote(st.text, v)
	case !v.Integer:
		return f.says.invalidType
	case len(digits) <= 18 && f.says.limits == "":
		return "" // 18 digits are within an int64
	}
	n, ok := jsonscan.Int(digits)
	if !ok {
		return f.says.invalidType
	}
	if f.says.limits != "" && !deleted && f.outside(float64(n)) {
		return f.says.limits
	}
	if quoted {
		at := len(st.fixes)
		for at > 0 && st.fixes[at-1].Start > v.Start {
			at--
		}
		st.fixes = append(st.fixes, jsonscan.Value{})
		copy(st.fixes[at+1:], st.fixes[at:])
		st.fixes[at] = v
	}
	return ""
}

// outside says whether a number breaks the limits. Those of integers are below 2^53,
// where doubles are exact, so that a larger integer stays on its side when rounded.
func (f *Field) outside(x float64) bool {
	return f.Min != nil && x < *f.Min || f.Max != nil && x > *f.Max || f.ExclusiveMin != nil && x <= *f.ExclusiveMin
}

// readTime reads the timestamp of a field, and keeps it if it is the event's.
func (st *state) readTime(i int) bool {
	formats := st.contract.Fields[i].formats
	if st.schema != nil {
		if known := st.schema.formats[st.contractIndex()]; i < len(known) && known[i] != 0 {
			formats = known[i]
		}
	}
	t, ok := readTime(st.text, st.values[i], formats)
	if i == st.contract.eventTime {
		st.eventTime, st.eventTimeRead = t, true
	}
	return ok
}

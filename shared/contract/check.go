package contract

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// Check gives a record of this contract its verdict: exactly one, whatever the
// bytes are, and the same for the same bytes and time. now becomes processed_at.
// The verdict does not refer to value.
func (c *Contract) Check(value []byte, now time.Time) Verdict { return c.solo.Check(value, now) }

// Check gives a record of the stream its verdict; see Contract.Check. The contract
// is chosen by the discriminator if there are several.
func (s *Stream) Check(value []byte, now time.Time) Verdict {
	st := states.Get().(*state)
	st.stream, st.text = s, value
	v := st.check(now)
	st.reset()
	states.Put(st)
	return v
}

var states = sync.Pool{New: func() any { return new(state) }}

// state is the work on one record.
type state struct {
	// scan reads the text once; probe goes over parts of it again, look looks ahead.
	scan, probe, look jsonscan.Scanner
	// values are those of the contract's fields, by index.
	values []jsonscan.Value
	// fixes are quoted integers to be written without quotes, in order of place.
	fixes []jsonscan.Value
	record
}

// record is what a state knows of its record.
type record struct {
	stream   *Stream
	contract *Contract // nil until a discriminator told
	text     []byte

	top           jsonscan.Value // the whole record
	wrapped       bool           // in schema and payload
	clash         bool           // the envelope has keys that the verdict needs
	schemaAt      jsonscan.Value
	schema        *schema
	payload       jsonscan.Value
	discriminator jsonscan.Value
	change        change

	eventTime     time.Time
	eventTimeRead bool
}

// change is the envelope of a change record, or what unwrapping left of it.
type change struct {
	before, after, source, op jsonscan.Value
	rowOp, rowLSN, deleted    jsonscan.Value
	full                      bool
}

// reset lets go of the record and keeps the room for the next one.
func (st *state) reset() {
	st.record = record{}
	st.fixes = st.fixes[:0]
	st.scan.Reset(nil)
	st.probe.Reset(nil)
	st.look.Reset(nil)
}

func (st *state) check(now time.Time) Verdict {
	first := st.stream.contracts[0]
	v := Verdict{Outcome: Invalid, Type: first.Verdicts.Invalid}
	if len(st.stream.contracts) == 1 {
		st.contract = first
		v.Contract = first
	}
	if len(st.text) == 0 && first.Kind == Debezium {
		return Verdict{Outcome: Skipped, Contract: v.Contract}
	}
	problem := st.read()
	if problem == "" && first.Kind == Debezium && (st.top.Kind == jsonscan.Null || st.payload.Kind == jsonscan.Null) {
		return Verdict{Outcome: Skipped, Contract: v.Contract}
	}
	if problem == "" {
		problem = st.shape()
	}
	if problem != "" {
		v.ErrorType, v.ErrorMessage = ProcessingError, "Processing error: "+problem
		v.Body = rawBody(st.text, &v, now)
		return v
	}

	v.Contract = st.contract
	st.operation(&v)
	v.ErrorMessage = st.judge(&v)
	if st.contract != nil {
		st.identify(&v)
	}
	if v.ErrorMessage == "" {
		v.Outcome, v.Type = Valid, st.contract.Verdicts.Valid
	} else {
		v.ErrorType, st.fixes, now = SchemaValidationError, st.fixes[:0], time.Time{}
	}
	v.Body = st.body(&v, now)
	return v
}

// read scans the whole text once. It returns what makes it unreadable.
func (st *state) read() string {
	if len(st.text) > MaxValue {
		return fmt.Sprintf("%d bytes are more than the %d that a verdict can carry", len(st.text), MaxValue)
	}
	s := &st.scan
	s.Reset(st.text)
	switch c := s.Start(); {
	case s.Err() != nil:
	case c == 0 && s.Pos() == len(st.text):
		return "the record is empty"
	case c != '{':
		st.top = s.Value()
	default:
		kind := st.stream.contracts[0].Kind
		st.wrapped = kind != JSON && (kind == Connect && !st.stream.bare || st.looksWrapped(s.Pos()))
		st.top = jsonscan.Value{Start: s.Pos(), Kind: jsonscan.Object}
		if st.wrapped {
			st.envelope()
		} else {
			st.payload = st.row()
		}
		st.top.End = s.Pos()
	}
	if !s.Finish() {
		return s.Err().Error()
	}
	return ""
}

// looksWrapped says whether an object starts as Connect's JSON converter writes it,
// with one of the envelope's two keys.
func (st *state) looksWrapped(at int) bool {
	rest := bytes.TrimLeft(st.text[at+1:], " \t\r\n")
	return bytes.HasPrefix(rest, []byte(`"schema"`)) || bytes.HasPrefix(rest, []byte(`"payload"`))
}

// envelope scans schema and payload.
func (st *state) envelope() {
	s := &st.scan
	mark := s.Mark()
	for more := s.EnterObject(); more; more = s.NextMember() {
		switch key := s.Key(); string(key) {
		case "schema":
			if st.schemaAt.Kind != jsonscan.None {
				s.Duplicate()
				return
			}
			st.schemaAt = st.readSchema()
		case "payload":
			if st.payload.Kind != jsonscan.None {
				s.Duplicate()
				return
			}
			if s.Next() == '{' {
				st.payload = st.row()
			} else {
				st.payload = s.Value()
			}
		default:
			s.Note()
			st.clash = st.clash || ours(key)
			s.Value()
		}
	}
	s.Unique(mark)
}

// ours says whether a key of the envelope is one that the verdict writes.
func ours(key []byte) bool {
	switch string(key) {
	case "valid", "error_message", "error_type", "metadata", "raw_data", "raw_data_base64", "raw_data_bytes", "op", "lsn":
		return true
	}
	return false
}

// row scans the object that holds the fields, and for a change record the row in it.
func (st *state) row() jsonscan.Value {
	v := st.members(&st.scan)
	c := &st.change
	if c.before.Kind == jsonscan.None && c.after.Kind == jsonscan.None {
		return v
	}
	c.full = true
	row := c.after
	if st.is(c.op, "d") {
		row = c.before
	}
	st.clear()
	if row.Kind == jsonscan.Object {
		st.probe.Reset(st.text)
		st.probe.Advance(row.Start)
		kept := *c
		st.members(&st.probe) // it cannot fail but for a duplicate, which the first reading saw
		*c = kept
	}
	return v
}

// members scans an object and keeps where the values of the fields are.
func (st *state) members(s *jsonscan.Scanner) jsonscan.Value {
	start := s.Pos()
	c := st.choose(start)
	st.clear()
	debezium := c.Kind == Debezium
	mark := s.Mark()
	n, more := s.EnterKnown(c.members, st.values) // as most records come
	switch {
	case !more:
		return jsonscan.Value{Start: start, End: s.Pos(), Kind: jsonscan.Object}
	case n == 0:
		more = s.EnterObject()
	default:
		more = s.NextMember()
	}
	for ; more; more = s.NextMember() {
		key := s.Key()
		i, known := c.index[string(key)]
		if !known {
			s.Note()
			var at *jsonscan.Value
			if debezium {
				at = st.change.part(key)
			}
			if v := s.Value(); at != nil {
				*at = v
			}
			continue
		}
		if st.values[i].Kind != jsonscan.None {
			s.Duplicate()
			break
		}
		st.values[i] = s.Value()
	}
	s.Unique(mark)
	return jsonscan.Value{Start: start, End: s.Pos(), Kind: jsonscan.Object}
}

func (st *state) clear() {
	n := len(st.stream.contracts[0].Fields)
	if st.contract != nil {
		n = len(st.contract.Fields)
	}
	if cap(st.values) < n {
		st.values = make([]jsonscan.Value, n)
	}
	st.values = st.values[:n]
	clear(st.values)
}

func (c *change) part(key []byte) *jsonscan.Value {
	switch string(key) {
	case "before":
		return &c.before
	case "after":
		return &c.after
	case "source":
		return &c.source
	case "op":
		return &c.op
	case "__op":
		return &c.rowOp
	case "__lsn":
		return &c.rowLSN
	case "__deleted":
		return &c.deleted
	}
	return nil
}

// choose returns the contract for the object at an offset, by the discriminator in
// it; if that tells nothing, any contract, which is enough to read the object.
func (st *state) choose(at int) *Contract {
	contracts := st.stream.contracts
	if st.contract != nil {
		return st.contract
	}
	p := &st.look
	p.Reset(st.text)
	p.Advance(at)
	for more := p.EnterObject(); more; more = p.NextMember() {
		found := string(p.Key()) == contracts[0].Discriminator
		v := p.Value()
		if !found {
			continue
		}
		st.discriminator = v
		for _, c := range contracts {
			if c.discriminates(st.text, v) {
				st.contract = c
				return c
			}
		}
		break
	}
	return contracts[0]
}

// shape says what is wrong with a text that is faultless JSON but not a record.
func (st *state) shape() string {
	switch {
	case st.top.Kind != jsonscan.Object:
		return "the record is " + st.top.Kind.String() + ", not an object"
	case !st.wrapped:
		return ""
	}
	optional := st.stream.contracts[0].Kind == Debezium && (st.schemaAt.Kind == jsonscan.None || st.schemaAt.Kind == jsonscan.Null)
	switch {
	case st.schemaAt.Kind == jsonscan.None && !optional:
		return "the key schema is missing"
	case st.payload.Kind == jsonscan.None:
		return "the key payload is missing"
	case st.schemaAt.Kind != jsonscan.Object && !optional:
		return "schema is " + st.schemaAt.Kind.String() + ", not an object"
	case st.payload.Kind != jsonscan.Object:
		return "payload is " + st.payload.Kind.String() + ", not an object"
	}
	return ""
}

// identify fills in whose record it is and when it happened, as far as that can be
// read; a record that is invalid for another reason keeps its place in the order.
func (st *state) identify(v *Verdict) {
	if !st.eventTimeRead {
		st.readTime(st.contract.eventTime)
	}
	v.Time = st.eventTime
	switch key := st.values[st.contract.key]; {
	case key.Kind == jsonscan.String && key.End-key.Start-2 <= maxKey:
		text := jsonscan.Unquote(st.text, key)
		for _, c := range text {
			if c < ' ' || c == 0x7f {
				return // not an attribute's value
			}
		}
		v.Key = string(text)
	case key.Kind == jsonscan.Number:
		if _, ok := jsonscan.Int(st.text[key.Start:key.End]); ok {
			v.Key = string(st.text[key.Start:key.End])
		}
	}
}

// maxKey bounds an entity's key in bytes.
const maxKey = 1024

// operation reads op and lsn of a change record.
func (st *state) operation(v *Verdict) {
	c := &st.change
	op, lsn := c.rowOp, c.rowLSN
	if c.full {
		op, lsn = c.op, jsonscan.Value{}
		if c.source.Kind == jsonscan.Object {
			lsn = st.member(c.source, "lsn")
		}
	}
	if op.Kind == jsonscan.String {
		switch text := string(jsonscan.Unquote(st.text, op)); text {
		case "c", "u", "d", "r":
			v.Op = text
		}
	}
	if v.Op == "" && !c.full && (c.deleted.Kind == jsonscan.True || st.is(c.deleted, "true")) {
		v.Op = "d"
	}
	if lsn.Kind == jsonscan.Number {
		if digits := st.text[lsn.Start:lsn.End]; lsn.Integer && digits[0] != '-' && len(digits) <= 20 {
			v.LSN = string(digits)
		}
	}
}

func (st *state) is(v jsonscan.Value, text string) bool {
	return v.Kind == jsonscan.String && string(jsonscan.Unquote(st.text, v)) == text
}

// member finds a member of an object that was read without failure.
func (st *state) member(object jsonscan.Value, name string) jsonscan.Value {
	st.probe.Reset(st.text)
	st.probe.Advance(object.Start)
	for more := st.probe.EnterObject(); more; more = st.probe.NextMember() {
		found := string(st.probe.Key()) == name
		if v := st.probe.Value(); found {
			return v
		}
	}
	return jsonscan.Value{}
}

// body makes the envelope of a record that could be read: schema and payload as
// they came, the payload of a full change record being its row.
func (st *state) body(v *Verdict, now time.Time) []byte {
	dst := make([]byte, 0, len(st.text)+verdictSize(v))
	row := st.payload
	if st.change.full {
		after := st.change.after
		if v.Op == "d" {
			after = st.change.before
		}
		if after.Kind == jsonscan.Object {
			row = after
		}
	}
	lines := st.scan.Lines || st.schema != nil && st.schema.lines
	switch {
	case !st.wrapped || st.change.full:
		dst = append(dst, '{')
		switch {
		case st.schema == nil:
		case st.schema.change && row != st.payload:
			dst = append(append(append(dst, `"schema":`...), st.schema.row...), ',')
		default:
			dst = append(append(append(dst, `"schema":`...), st.schema.text...), ',')
		}
		dst = st.splice(append(dst, `"payload":`...), row.Start, row.End)
	case st.clash:
		dst = st.copyMembers(append(dst, '{'))
	default:
		end := st.top.End - 1 // without the brace, and what white space is before it
		for st.text[end-1] <= ' ' {
			end--
		}
		dst = st.splice(dst, st.top.Start, end)
	}
	if lines {
		// A line break outside of a string is white space, and inside it is an escape.
		for i, c := range dst {
			if c == '\n' || c == '\r' {
				dst[i] = ' '
			}
		}
	}
	return appendVerdict(dst, v, now)
}

// copyMembers appends the envelope's members but those that the verdict writes.
func (st *state) copyMembers(dst []byte) []byte {
	p := &st.probe
	p.Reset(st.text)
	p.Advance(st.top.Start)
	first := true
	for more := p.EnterObject(); more; more = p.NextMember() {
		key := bytes.Clone(p.Key())
		v := p.Value()
		if ours(key) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst, _ = jsonscan.AppendString(dst, key)
		dst = st.splice(append(dst, ':'), v.Start, v.End)
	}
	return dst
}

// splice appends a part of the text, with the fixes that lie in it.
func (st *state) splice(dst []byte, start, end int) []byte {
	for _, fix := range st.fixes {
		if fix.Start < start || fix.End > end {
			continue
		}
		dst = append(dst, st.text[start:fix.Start]...)
		dst = append(dst, jsonscan.Unquote(st.text, fix)...)
		start = fix.End
	}
	return append(dst, st.text[start:end]...)
}

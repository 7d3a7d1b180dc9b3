// Package jsonscan reads JSON strictly, in place, and without building values.
//
// It walks over one JSON text and hands out spans of it. Compared with
// encoding/json it refuses what two readers could understand differently, or what
// a store behind them could not hold: duplicate keys, bytes that are not UTF-8,
// lone surrogates, escaped NULs, numbers beyond the range of a double, and
// nesting deeper than MaxDepth. Nothing is allocated for a text without such
// faults, apart from a list of keys that a Scanner keeps for its next text.
//
// It is not a decoder: it knows no types beyond those of JSON itself.
package jsonscan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how many objects and arrays may be open at once. A Debezium schema
// needs about ten.
const MaxDepth = 64

// Kind is the JSON type of a value; the zero Kind stands for no value at all.
type Kind uint8

// The kinds of values.
const (
	None Kind = iota
	Null
	True
	False
	Number
	String
	Object
	Array
)

func (k Kind) String() string {
	return [...]string{"nothing", "null", "a boolean", "a boolean", "a number", "a string", "an object", "an array"}[k]
}

// Value is where a value stands in the text: text[Start:End], quotes included.
type Value struct {
	Start, End int
	Kind       Kind
	// Escaped says that a string holds escapes, so that its bytes are not its text.
	Escaped bool
	// Integer says that a number has neither fraction nor exponent.
	Integer bool
}

// Fault is the class of an Error.
type Fault uint8

// The faults. All but Syntax are texts that encoding/json would accept.
const (
	Syntax Fault = iota + 1
	DuplicateKey
	NotUTF8
	LoneSurrogate
	EscapedNUL
	NumberRange
	TooDeep
)

// Error says what is wrong with a text and where; Offset counts bytes from 0.
type Error struct {
	Fault  Fault
	Offset int
	Detail string
}

func (e *Error) Error() string { return fmt.Sprintf("%s at byte %d", e.Detail, e.Offset) }

// Scanner reads one text at a time. The zero Scanner is ready for Reset. After a
// failure Err says why, and no other method may be called but Reset.
type Scanner struct {
	text []byte
	pos  int
	key  Value
	// Lines is set as soon as a line break was read between two tokens.
	Lines bool
	depth int
	noted []Value
	err   *Error
}

// Reset starts on a text, which must not change while it is read.
func (s *Scanner) Reset(text []byte) {
	s.text, s.pos, s.depth, s.Lines, s.err = text, 0, 0, false, nil
	if s.noted = s.noted[:0]; cap(s.noted) > maxKept {
		s.noted = nil
	}
}

// maxKept bounds the list of keys that a Scanner keeps between texts.
const maxKept = 4096

// Err is the first failure.
func (s *Scanner) Err() *Error { return s.err }

// Pos is the offset of the next byte to read.
func (s *Scanner) Pos() int { return s.pos }

// Start skips white space before the text's one value and returns its first
// byte, 0 if there is none.
func (s *Scanner) Start() byte {
	if bytes.HasPrefix(s.text, bom) {
		s.fail(Syntax, 0, "byte order mark")
		return 0
	}
	return s.peek()
}

var bom = []byte("\xef\xbb\xbf")

// Finish checks that nothing but white space follows.
func (s *Scanner) Finish() bool {
	if s.err != nil {
		return false
	}
	if s.peek(); s.pos < len(s.text) {
		return s.unexpected("after the end of the value")
	}
	return true
}

// Next is the first byte of the value that comes, once EnterObject or NextMember
// returned true.
func (s *Scanner) Next() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

// Advance skips n bytes that the caller knows to be one whole, faultless value.
func (s *Scanner) Advance(n int) { s.pos += n }

// EnterObject steps into the object that starts here and reads its first key. It
// returns false for an empty object, which it leaves, and on failure. The caller
// then reads one value for each key, and looks for duplicate keys itself.
func (s *Scanner) EnterObject() bool {
	if s.peek() != '{' {
		return s.unexpected("where an object should be")
	}
	if s.depth++; s.depth > MaxDepth {
		return s.fail(TooDeep, s.pos, "nested deeper than "+strconv.Itoa(MaxDepth))
	}
	s.pos++
	if s.peek() == '}' {
		s.pos++
		s.depth--
		return false
	}
	return s.readKey()
}

// NextMember goes on to the next key. It returns false after the last member, with
// the object left behind, and on failure.
func (s *Scanner) NextMember() bool {
	if s.err != nil {
		return false
	}
	switch s.peek() {
	case ',':
		s.pos++
		s.peek()
		return s.readKey()
	case '}':
		s.pos++
		s.depth--
		return false
	}
	return s.unexpected("where a comma or the end of an object should be")
}

// EnterKnown steps into the object that starts here if its members come as a
// machine writes them: in the order of keys (quoted, each with its colon), without
// white space, with plain values. It puts the values into values and returns how many
// it read; open says whether the object goes on, with NextMember, or for none with
// EnterObject. What is not plain is not at fault, only left to those.
func (s *Scanner) EnterKnown(keys []string, values []Value) (n int, open bool) {
	// Everything is in local variables: stores of the position and loads right after
	// them are what the general way spends its time on.
	t, i := s.text, s.pos
	separator := byte('{')
	for n < len(keys) && i < len(t) && t[i] == separator {
		start := i + 1 + len(keys[n])
		if start >= len(t) || string(t[i+1:start]) != keys[n] {
			break
		}
		v := Value{Start: start}
		switch c := t[start]; {
		case c == '"':
			v.Kind, v.End = String, plainString(t, start+1)
		case '0' <= c && c <= '9':
			v.Kind, v.Integer, v.End = Number, true, start+1
			if c != '0' {
				v.End = digits(t, start+1)
			}
			if end := v.End; end < len(t) && t[end] == '.' {
				v.Integer, v.End = false, digits(t, end+1)
				if v.End == end+1 {
					v.End = 0
				}
			}
			if v.End-start > 300 || v.End < len(t) && t[v.End]|0x20 == 'e' {
				v.End = 0
			}
		case c == 'n' && start+4 <= len(t) && string(t[start:start+4]) == "null":
			v.Kind, v.End = Null, start+4
		}
		if v.End == 0 {
			break
		}
		values[n] = v
		n++
		i, separator = v.End, ','
	}
	if n == 0 {
		return 0, true
	}
	s.pos = i
	if i < len(t) && t[i] == '}' {
		s.pos++
		return n, false
	}
	s.depth++ // the caller of EnterKnown is never as deep as MaxDepth
	return n, true
}

// plainString returns the end of a string whose text starts at i, 0 if it is not one
// of ASCII without escapes.
func plainString(t []byte, i int) int {
	for ; i+8 <= len(t); i += 8 {
		x := binary.LittleEndian.Uint64(t[i:])
		q, b := x^('"'*ones), x^('\\'*ones)
		if flags := ((x-' '*ones)&^x | (q-ones)&^q | (b-ones)&^b | x) & highs; flags != 0 {
			if i += bits.TrailingZeros64(flags) / 8; t[i] == '"' {
				return i + 1
			}
			return 0
		}
	}
	return 0
}

// Key is the text of the key read last, valid until the next one is read.
func (s *Scanner) Key() []byte {
	if s.key.Escaped {
		return Unquote(s.text, s.key)
	}
	return s.text[s.key.Start+1 : s.key.End-1]
}

// Duplicate fails because of the key read last.
func (s *Scanner) Duplicate() bool { return s.duplicate(s.key) }

func (s *Scanner) duplicate(key Value) bool {
	text := string(Unquote(s.text, key))
	if len(text) > 64 {
		text = strings.ToValidUTF8(text[:64], "") + "..."
	}
	return s.fail(DuplicateKey, key.Start, "duplicate key "+strconv.Quote(text))
}

// Mark begins an object. Mark, Note and Unique find duplicate keys: Mark before the
// first member, Note at each key, Unique after the last.
func (s *Scanner) Mark() int { return len(s.noted) }

// Note remembers the key read last.
func (s *Scanner) Note() { s.noted = append(s.noted, s.key) }

// Unique fails if two keys noted since the mark are equal, and forgets them.
func (s *Scanner) Unique(mark int) bool {
	if s.err != nil {
		return false
	}
	keys := s.noted[mark:]
	s.noted = s.noted[:mark]
	escaped := false
	for i := range keys {
		escaped = escaped || keys[i].Escaped
	}
	// Comparing all pairs is the fastest for the objects that occur; a set bounds
	// the work for those that are made to hurt.
	if escaped || len(keys) > 16 {
		seen := make(map[string]struct{}, len(keys))
		for _, k := range keys {
			text := string(Unquote(s.text, k))
			if _, ok := seen[text]; ok {
				return s.duplicate(k)
			}
			seen[text] = struct{}{}
		}
		return true
	}
	for i := 1; i < len(keys); i++ {
		a := s.text[keys[i].Start:keys[i].End]
		for _, k := range keys[:i] {
			if k.End-k.Start == len(a) && bytes.Equal(a, s.text[k.Start:k.End]) {
				return s.duplicate(keys[i])
			}
		}
	}
	return true
}

// Value reads the value that starts here, with all that is in it. It returns a
// Value of Kind None on failure.
func (s *Scanner) Value() Value {
	start := s.pos
	if start >= len(s.text) {
		s.unexpected("where a value should be")
		return Value{}
	}
	switch c := s.text[start]; c {
	case '"':
		if escaped, ok := s.str(); ok {
			return Value{Start: start, End: s.pos, Kind: String, Escaped: escaped}
		}
	case '{':
		if s.object() {
			return Value{Start: start, End: s.pos, Kind: Object}
		}
	case '[':
		if s.array() {
			return Value{Start: start, End: s.pos, Kind: Array}
		}
	case 't':
		if s.literal("true") {
			return Value{Start: start, End: s.pos, Kind: True}
		}
	case 'f':
		if s.literal("false") {
			return Value{Start: start, End: s.pos, Kind: False}
		}
	case 'n':
		if s.literal("null") {
			return Value{Start: start, End: s.pos, Kind: Null}
		}
	default:
		if c == '-' || '0' <= c && c <= '9' {
			if integer, ok := s.number(); ok {
				return Value{Start: start, End: s.pos, Kind: Number, Integer: integer}
			}
			break
		}
		s.unexpected("where a value should be")
	}
	return Value{}
}

func (s *Scanner) object() bool {
	mark := s.Mark()
	for more := s.EnterObject(); more; more = s.NextMember() {
		s.Note()
		if s.Value().Kind == None {
			return false
		}
	}
	return s.Unique(mark)
}

func (s *Scanner) array() bool {
	if s.depth++; s.depth > MaxDepth {
		return s.fail(TooDeep, s.pos, "nested deeper than "+strconv.Itoa(MaxDepth))
	}
	s.pos++
	if s.peek() == ']' {
		s.pos++
		s.depth--
		return true
	}
	for {
		if s.Value().Kind == None {
			return false
		}
		switch s.peek() {
		case ',':
			s.pos++
			s.peek()
		case ']':
			s.pos++
			s.depth--
			return true
		default:
			return s.unexpected("where a comma or the end of an array should be")
		}
	}
}

// readKey reads a key and its colon, up to the first byte of the value.
func (s *Scanner) readKey() bool {
	if s.Next() != '"' {
		return s.unexpected("where a key should be")
	}
	start := s.pos
	escaped, ok := s.str()
	if !ok {
		return false
	}
	s.key = Value{Start: start, End: s.pos, Kind: String, Escaped: escaped}
	if s.peek() != ':' {
		return s.unexpected("where a colon should be")
	}
	s.pos++
	s.peek()
	return true
}

// peek skips white space, of which there mostly is none, and returns the next byte,
// 0 at the end.
func (s *Scanner) peek() byte {
	if i := s.pos; i < len(s.text) && s.text[i] > ' ' {
		return s.text[i]
	}
	return s.space()
}

func (s *Scanner) space() byte {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; c {
		case ' ', '\t':
		case '\n', '\r':
			s.Lines = true
		default:
			return c
		}
		s.pos++
	}
	return 0
}

func (s *Scanner) literal(word string) bool {
	if len(s.text)-s.pos >= len(word) && string(s.text[s.pos:s.pos+len(word)]) == word {
		s.pos += len(word)
		return true
	}
	return s.unexpected("where a value should be")
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// str reads a string from its opening quote to behind its closing one.
func (s *Scanner) str() (escaped, ok bool) {
	t, i := s.text, s.pos+1
	for {
		// Eight bytes at a time, to the first that is a quote, a backslash, a
		// control character or not ASCII. Only the lowest flag is exact.
		for i+8 <= len(t) {
			x := binary.LittleEndian.Uint64(t[i:])
			q, b := x^('"'*ones), x^('\\'*ones)
			flags := ((x-' '*ones)&^x | (q-ones)&^q | (b-ones)&^b | x) & highs
			if flags != 0 {
				i += bits.TrailingZeros64(flags) / 8
				break
			}
			i += 8
		}
		if i >= len(t) {
			s.pos = len(t)
			return false, s.unexpected("in a string")
		}
		switch c := t[i]; {
		case c == '"':
			s.pos = i + 1
			return escaped, true
		case c == '\\':
			escaped = true
			n := s.escape(i)
			if n == 0 {
				return false, false
			}
			i += n
		case c < ' ':
			return false, s.fail(Syntax, i, fmt.Sprintf("control character 0x%02x in a string", c))
		case c < utf8.RuneSelf:
			i++
		default:
			r, n := utf8.DecodeRune(t[i:])
			if r == utf8.RuneError && n == 1 {
				return false, s.fail(NotUTF8, i, "invalid UTF-8")
			}
			i += n
		}
	}
}

// escape returns the length of the escape that starts at i, 0 on failure.
func (s *Scanner) escape(i int) int {
	if i+1 >= len(s.text) {
		s.pos = len(s.text)
		s.unexpected("in a string")
		return 0
	}
	switch s.text[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		r, ok := hex4(s.text, i+2)
		switch {
		case !ok:
		case r == 0:
			s.fail(EscapedNUL, i, `escaped NUL \u0000`)
			return 0
		case !utf16.IsSurrogate(r):
			return 6
		default:
			if i+7 < len(s.text) && s.text[i+6] == '\\' && s.text[i+7] == 'u' {
				if low, ok := hex4(s.text, i+8); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
					return 12
				}
			}
			s.fail(LoneSurrogate, i, fmt.Sprintf(`lone surrogate \u%04x`, r))
			return 0
		}
	}
	s.fail(Syntax, i, "invalid escape")
	return 0
}

func hex4(t []byte, i int) (rune, bool) {
	if i+4 > len(t) {
		return 0, false
	}
	var r rune
	for _, c := range t[i : i+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func (s *Scanner) number() (integer, ok bool) {
	t, start, i := s.text, s.pos, s.pos
	if t[i] == '-' {
		i++
	}
	switch {
	case i < len(t) && t[i] == '0':
		i++
	default:
		n := digits(t, i)
		if n == i {
			s.pos = i
			return false, s.unexpected("in a number")
		}
		i = n
	}
	integer = true
	if i < len(t) && t[i] == '.' {
		integer = false
		n := digits(t, i+1)
		if n == i+1 {
			s.pos = n
			return false, s.unexpected("in a number")
		}
		i = n
	}
	exponent := i < len(t) && t[i]|0x20 == 'e'
	if exponent {
		integer = false
		if i++; i < len(t) && (t[i] == '+' || t[i] == '-') {
			i++
		}
		n := digits(t, i)
		if n == i {
			s.pos = i
			return false, s.unexpected("in a number")
		}
		i = n
	}
	// 300 digits without an exponent are below the largest double.
	if exponent || i-start > 300 {
		if _, err := strconv.ParseFloat(string(t[start:i]), 64); err != nil {
			return false, s.fail(NumberRange, start, "number beyond the range of a double")
		}
	}
	s.pos = i
	return integer, true
}

func digits(t []byte, i int) int {
	for i < len(t) && t[i]-'0' <= 9 {
		i++
	}
	return i
}

func (s *Scanner) fail(fault Fault, offset int, detail string) bool {
	if s.err == nil {
		s.err = &Error{Fault: fault, Offset: offset, Detail: detail}
	}
	return false
}

// unexpected fails because of the byte at pos.
func (s *Scanner) unexpected(where string) bool {
	if s.pos >= len(s.text) {
		return s.fail(Syntax, len(s.text), "unexpected end "+where)
	}
	rest := s.text[s.pos:]
	for _, word := range [...]string{"NaN", "Infinity"} {
		if bytes.HasPrefix(rest, []byte(word)) {
			return s.fail(Syntax, s.pos, word+" is not a JSON number")
		}
	}
	r, n := utf8.DecodeRune(rest)
	if r == utf8.RuneError && n == 1 {
		return s.fail(NotUTF8, s.pos, "invalid UTF-8")
	}
	return s.fail(Syntax, s.pos, "unexpected "+strconv.QuoteRune(r)+" "+where)
}

// Unquote returns the text of a string value that was read without failure: a part
// of text, or a copy if it holds escapes.
func Unquote(text []byte, v Value) []byte {
	raw := text[v.Start+1 : v.End-1]
	if !v.Escaped {
		return raw
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++
		switch c := raw[i]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, _ := hex4(raw, i+1)
			i += 4
			if utf16.IsSurrogate(r) {
				low, _ := hex4(raw, i+3)
				r = utf16.DecodeRune(r, low)
				i += 6
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, c)
		}
	}
	return out
}

// Float is the value of a number that was read without failure, correctly rounded.
func Float(text []byte, v Value) float64 {
	t := text[v.Start:v.End]
	// Up to 15 digits and a power of ten up to 22 are exact doubles, and so their
	// quotient is rounded once.
	if len(t) <= 16 {
		var m uint64
		point, i := -1, 0
		if t[0] == '-' {
			i = 1
		}
		for ; i < len(t); i++ {
			if c := t[i]; c == '.' {
				point = i
			} else if c -= '0'; c <= 9 {
				m = m*10 + uint64(c)
			} else {
				break
			}
		}
		if i == len(t) && m < 1<<53 {
			f := float64(m)
			if point >= 0 {
				f /= powers[len(t)-1-point]
			}
			if t[0] == '-' {
				f = -f
			}
			return f
		}
	}
	f, _ := strconv.ParseFloat(string(t), 64)
	return f
}

var powers = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16}

// Int is the value of decimal digits with an optional minus, without leading
// zeros; ok is false for anything else and outside the range of an int64.
func Int(t []byte) (n int64, ok bool) {
	digits, negative := t, false
	if len(digits) > 0 && digits[0] == '-' {
		digits, negative = digits[1:], true
	}
	if len(digits) == 0 || len(digits) > 19 || digits[0] == '0' && len(digits) > 1 {
		return 0, false
	}
	var m uint64 // 19 digits fit
	for _, c := range digits {
		if c -= '0'; c > 9 {
			return 0, false
		}
		m = m*10 + uint64(c)
	}
	if negative {
		return -int64(m), m <= 1<<63
	}
	return int64(m), m < 1<<63
}

// AppendString appends text as a JSON string on one line. What is not UTF-8, and
// NUL, which PostgreSQL cannot hold, becomes U+FFFD; exact is false if any did.
func AppendString(dst []byte, text []byte) (out []byte, exact bool) {
	dst, exact = append(dst, '"'), true
	from := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		n := 1
		if c >= utf8.RuneSelf {
			var r rune
			if r, n = utf8.DecodeRune(text[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
		}
		dst = append(dst, text[from:i]...)
		switch {
		case c >= utf8.RuneSelf || c == 0:
			dst, exact = append(dst, "\uFFFD"...), false
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			const hex = "0123456789abcdef"
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i += n
		from = i
	}
	return append(append(dst, text[from:]...), '"'), exact
}

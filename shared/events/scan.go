package events

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of JSON inside an event. Data that is nested deeper
// can still travel, as base64.
const maxDepth = 512

// scanner walks over a JSON text that is known to be UTF-8 and checks its grammar
// (RFC 8259) without building anything.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) syntax(what string) error {
	return fmt.Errorf("JSON text at byte %d: %s", s.i, what)
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func (s *scanner) space() {
	for s.i < len(s.b) && isSpace(s.b[s.i]) {
		s.i++
	}
}

// take steps over c if it is next.
func (s *scanner) take(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special marks, in the high bits of a word's bytes, those that end a run of plain
// string characters: a quote, a backslash or a control character. The lowest mark
// is exact, which is the only one that is used.
func special(w uint64) uint64 {
	quote := w ^ ones*'"'
	slash := w ^ ones*'\\'
	return ((quote - ones) &^ quote & highs) |
		((slash - ones) &^ slash & highs) |
		((w - ones*0x20) &^ w & highs)
}

// str steps over a string, whose opening quote is next, and tells whether there
// are escapes in it.
func (s *scanner) str() (escaped bool, err error) {
	end, escaped, wrong := stringEnd(s.b, s.i+1)
	s.i = end
	if wrong != "" {
		return false, s.syntax(wrong)
	}
	return escaped, nil
}

// stringEnd finds the end of a string, behind its closing quote, from the byte
// after the opening one on. If something is wrong with the string it says what, and
// end is where.
func stringEnd(b []byte, i int) (end int, escaped bool, wrong string) {
	for {
		for i+8 <= len(b) {
			if m := special(binary.LittleEndian.Uint64(b[i:])); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		if i >= len(b) {
			return i, false, "unterminated string"
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1, escaped, ""
		case c == '\\':
			escaped = true
			n := escapeLen(b[i:])
			if n == 0 {
				return i, false, "bad escape in a string"
			}
			i += n
		case c < 0x20:
			return i, false, "control character in a string"
		default:
			i++
		}
	}
}

// escapeLen is the length of the escape that b starts with, 0 if it is none.
func escapeLen(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if _, ok := hex4(b[2:]); ok {
			return 6
		}
	}
	return 0
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
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

// skip steps over one value of any kind.
func (s *scanner) skip() error {
	var objects [maxDepth / 64]uint64 // bit d: the container at depth d is an object
	depth := 0
	for {
		// A value is next.
		if s.i >= len(s.b) {
			return s.syntax("expected a value")
		}
		switch c := s.b[s.i]; {
		case c == '"':
			if _, err := s.str(); err != nil {
				return err
			}
		case c == '{' || c == '[':
			if depth == maxDepth {
				return s.syntax(fmt.Sprintf("nested deeper than %d levels", maxDepth))
			}
			s.i++
			s.space()
			if c == '{' {
				if s.take('}') {
					break
				}
				objects[depth/64] |= 1 << (depth % 64)
				depth++
				if err := s.member(); err != nil {
					return err
				}
				continue
			}
			if s.take(']') {
				break
			}
			objects[depth/64] &^= 1 << (depth % 64)
			depth++
			continue
		case c == '-' || '0' <= c && c <= '9':
			if err := s.number(); err != nil {
				return err
			}
		case c == 't':
			if err := s.literal("true"); err != nil {
				return err
			}
		case c == 'f':
			if err := s.literal("false"); err != nil {
				return err
			}
		case c == 'n':
			if err := s.literal("null"); err != nil {
				return err
			}
		default:
			return s.syntax("expected a value")
		}

		// A value has ended: go on in its container, or close it.
		for {
			if depth == 0 {
				return nil
			}
			s.space()
			object := objects[(depth-1)/64]&(1<<((depth-1)%64)) != 0
			if s.take(',') {
				s.space()
				if object {
					if err := s.member(); err != nil {
						return err
					}
				}
				break
			}
			if object && s.take('}') || !object && s.take(']') {
				depth--
				continue
			}
			return s.syntax("expected ',' or the end of an object or array")
		}
	}
}

// member steps over a member's name, the colon and the space after it.
func (s *scanner) member() error {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return s.syntax("expected a member name")
	}
	if _, err := s.str(); err != nil {
		return err
	}
	s.space()
	if !s.take(':') {
		return s.syntax("expected ':' after a member name")
	}
	s.space()
	return nil
}

func (s *scanner) literal(word string) error {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return s.syntax("expected a value")
	}
	s.i += len(word)
	return nil
}

func (s *scanner) number() error {
	end, ok := numberEnd(s.b, s.i)
	s.i = end
	if !ok {
		return s.syntax("bad number")
	}
	return nil
}

// numberEnd finds the end of a number that starts at i.
func numberEnd(b []byte, i int) (end int, ok bool) {
	if i < len(b) && b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if i, ok = digitsEnd(b, i); !ok {
		return i, false
	}
	if i < len(b) && b[i] == '.' {
		if i, ok = digitsEnd(b, i+1); !ok {
			return i, false
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if i, ok = digitsEnd(b, i); !ok {
			return i, false
		}
	}
	return i, true
}

// digitsEnd finds the end of one digit or more.
func digitsEnd(b []byte, i int) (end int, ok bool) {
	start := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	return i, i > start
}

func hasEscape(raw []byte) bool { return bytes.IndexByte(raw, '\\') >= 0 }

var errSurrogate = errors.New("half of a surrogate pair in a string")

// unescape resolves the escapes of a string's inside, whose grammar was checked.
// A lone surrogate is an error: it has no UTF-8 form.
func unescape(raw []byte) ([]byte, error) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		c := raw[i]
		if c != '\\' {
			out = append(out, c)
			i++
			continue
		}
		switch c := raw[i+1]; c {
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
			r, _ := hex4(raw[i+2:])
			i += 6
			if utf16.IsSurrogate(r) {
				if i+1 >= len(raw) || raw[i] != '\\' || raw[i+1] != 'u' {
					return nil, errSurrogate
				}
				low, _ := hex4(raw[i+2:])
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					return nil, errSurrogate
				}
				i += 6
			}
			out = utf8.AppendRune(out, r)
			continue
		default: // quote, backslash, slash
			out = append(out, c)
		}
		i += 2
	}
	return out, nil
}

const hexDigits = "0123456789abcdef"

// AppendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			dst = append(dst, s[start:i]...)
			dst = append(dst, "\ufffd"...)
			i++
			start = i
			continue
		}
		i += size
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

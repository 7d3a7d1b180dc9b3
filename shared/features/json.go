package features

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// errJSON is what is said of a text that is no JSON object. What is skipped is not
// looked at closely: validate has done that, and refuses here would come too late.
var errJSON = errors.New("should be a JSON object")

// members visits the members of an object until visit returns an error. Names with
// escapes are visited as they are written. value is never empty.
func members(b []byte, visit func(name, value []byte) error) error {
	i := skipSpace(b, 0)
	if i >= len(b) || b[i] != '{' {
		return errJSON
	}
	for i = skipSpace(b, i+1); i < len(b) && b[i] == '"'; {
		end := stringEnd(b, i)
		if end < 0 {
			return errJSON
		}
		name := b[i+1 : end-1]
		if i = skipSpace(b, end); i >= len(b) || b[i] != ':' {
			return errJSON
		}
		i = skipSpace(b, i+1)
		if end = valueEnd(b, i); end <= i {
			return errJSON
		}
		if err := visit(name, b[i:end]); err != nil {
			return err
		}
		if i = skipSpace(b, end); i < len(b) && b[i] == ',' {
			if i = skipSpace(b, i+1); i >= len(b) || b[i] != '"' {
				return errJSON
			}
			continue
		}
		break
	}
	if i >= len(b) || b[i] != '}' || skipSpace(b, i+1) != len(b) {
		return errJSON
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// stringEnd gives the index behind the string that begins at i, -1 if it has no end.
func stringEnd(b []byte, i int) int {
	for i++; i < len(b); {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		if e := bytes.IndexByte(b[i:i+n], '\\'); e >= 0 {
			i += e + 2
			continue
		}
		return i + n + 1
	}
	return -1
}

// valueEnd gives the index behind the value that begins at i, not more than i if
// there is none.
func valueEnd(b []byte, i int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return stringEnd(b, i)
	case '{', '[':
		for depth := 0; i < len(b); {
			switch b[i] {
			case '"':
				if i = stringEnd(b, i); i < 0 {
					return -1
				}
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return -1
	}
	for i < len(b) {
		switch b[i] {
		case ',', '}', ']', ' ', '\n', '\r', '\t', ':', '"', '{', '[':
			return i
		}
		i++
	}
	return i
}

// readString reads a text; "" for null.
func readString(name string, value []byte) (string, error) {
	if string(value) == "null" {
		return "", nil
	}
	if value[0] != '"' || len(value) < 2 {
		return "", fmt.Errorf("field %s should be a string", name)
	}
	s := value[1 : len(value)-1]
	if bytes.IndexByte(s, '\\') >= 0 {
		var plain string
		if err := json.Unmarshal(value, &plain); err != nil {
			return "", fmt.Errorf("field %s should be a string: %w", name, err)
		}
		s = []byte(plain)
	}
	if !utf8.Valid(s) {
		return "", fmt.Errorf("field %s should be UTF-8", name)
	}
	return string(s), nil
}

// appendString appends a text as a JSON string.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := json.Marshal(s) // a string has no error
			return append(dst, quoted...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

// appendFloat appends the shortest text that reads back as the same number, without
// an exponent where encoding/json writes none.
func appendFloat(dst []byte, f float64) []byte {
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64)
}

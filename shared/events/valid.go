package events

import "unicode/utf8"

// ValidObject tells whether b is exactly one JSON object in UTF-8, with nothing
// around it but white space, nested no deeper than an event may be.
func ValidObject(b []byte) bool {
	s := scanner{b: b}
	s.space()
	if s.i == len(b) || b[s.i] != '{' || !utf8.Valid(b) || s.skip() != nil {
		return false
	}
	s.space()
	return s.i == len(b)
}

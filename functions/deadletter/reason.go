package main

import (
	"encoding/base64"
	"strings"
	"unicode"
	"unicode/utf8"
)

// reason is the text of knativeerrordata. Knative encodes the answer of a subscriber
// in base64, and cuts it at 1024 bytes; this project's engine does so only with what
// is no text. A reason that happens to look like base64 stays as it is, unless what
// it decodes to is text too.
func reason(data string) string {
	decoded, err := base64.StdEncoding.DecodeString(data)
	if err != nil || len(decoded) == 0 || !utf8.Valid(decoded) {
		return data
	}
	text := string(decoded)
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && !unicode.IsSpace(r) }) {
		return data
	}
	return strings.TrimSpace(text)
}

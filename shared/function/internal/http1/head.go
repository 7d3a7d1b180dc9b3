package http1

import (
	"bytes"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// requestLine begins a request for the root; requests for other paths begin and end
// their line in the same way.
const requestLine, method, version = "POST / HTTP/1.1\r\n", "POST ", " HTTP/1.1\r\n"

// head is what was found out about the head of a request.
type head int

const (
	incomplete head = iota // more bytes may make it plain
	plain                  // it is one to serve
	other                  // net/http shall look at it
)

// look tells whether b begins with the head of a plain request for the root or a path
// that begins with one of the prefixes, how long the head is and how long its first
// line. It gives up on a head at the first byte that makes it another one.
func look(b []byte, prefixes []string) (kind head, size, line int) {
	kind, line = lookAtLine(b, prefixes)
	if kind != plain {
		return kind, 0, 0
	}
	for at := line; ; {
		end := bytes.IndexByte(b[at:], '\n')
		if end < 0 {
			return incomplete, 0, 0
		}
		end += at
		if end == at || b[end-1] != '\r' {
			return other, 0, 0 // a bare line feed, which some take for a line's end
		}
		if end == at+1 {
			return plain, end + 1, line
		}
		at = end + 1
	}
}

// lookAtLine is look for the first line.
func lookAtLine(b []byte, prefixes []string) (kind head, line int) {
	n := min(len(b), len(requestLine))
	switch {
	case string(b[:n]) == requestLine[:n]:
		if n < len(requestLine) {
			return incomplete, 0
		}
		return plain, n
	case len(prefixes) == 0 || n <= len(method) || string(b[:len(method)]) != method || b[len(method)] != '/':
		return other, 0
	}
	end := len(method) + 1
	for end < len(b) && (legalInPath(b[end]) || b[end] == '/' && b[end-1] != '/') {
		end++
	}
	path := b[len(method):end]
	known := slices.ContainsFunc(prefixes, func(prefix string) bool {
		n := min(len(path), len(prefix))
		// Of a path that may go on, its beginning is enough for now.
		return string(path[:n]) == prefix[:n] && (n == len(prefix) || end == len(b))
	})
	rest := min(len(b)-end, len(version))
	switch {
	case !known || string(b[end:end+rest]) != version[:rest]:
		return other, 0
	case rest < len(version):
		return incomplete, 0
	}
	return plain, end + rest
}

// legalInPath tells characters that stand for themselves in a path, and make no part of
// it mean another: without dots there is no "..".
func legalInPath(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_' || c == ':'
}

// fields parses the lines of a plain head but the first into header, whose values share the text
// and, one a field, the space. It returns the body's length and the host. ok is false
// where anything could be understood in more than one way, or asks for something
// special: that is left to net/http.
func fields(text string, header http.Header, space []string) (length int64, host string, values []string, ok bool) {
	length = -1
	hosts := 0
	for rest := text; rest != "\r\n"; {
		line, after, _ := strings.Cut(rest, "\r\n")
		rest = after
		name, value, found := strings.Cut(line, ":")
		if !found {
			return 0, "", space, false
		}
		key, legal := canonical(name)
		value = strings.Trim(value, " \t")
		if !legal || !legalValue(value) {
			return 0, "", space, false
		}
		switch key {
		case "Host":
			hosts++
			host = value
			continue
		case "Content-Length":
			if length >= 0 {
				return 0, "", space, false
			}
			if length, legal = number(value); !legal {
				return 0, "", space, false
			}
		case "Connection":
			if !strings.EqualFold(value, "keep-alive") {
				return 0, "", space, false
			}
		case "Transfer-Encoding", "Expect", "Upgrade", "Trailer", "Te", "Pragma":
			return 0, "", space, false
		}
		if before, twice := header[key]; twice {
			header[key] = append(before[:len(before):len(before)], value)
			continue
		}
		space = append(space, value)
		header[key] = space[len(space)-1 : len(space) : len(space)]
	}
	return length, host, space, length >= 0 && hosts == 1 && legalHost(host)
}

// number reads a decimal of at most 18 digits.
func number(s string) (n int64, ok bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, true
}

// known holds the canonical form of the fields that most requests have, as senders
// write them: canonical already, or in small letters.
var known = map[string]string{}

func init() {
	for _, name := range []string{
		"Host", "Content-Length", "Content-Type", "User-Agent", "Accept", "Accept-Encoding", "Connection",
		"Ce-Specversion", "Ce-Id", "Ce-Source", "Ce-Type", "Ce-Subject", "Ce-Time", "Ce-Dataschema",
		"Ce-Partitionkey", "Ce-Key", "Ce-Contract", "Ce-Op", "Ce-Lsn", "Ce-Traceparent", "Ce-Tracestate",
		"Ce-Knativearrivaltime", "Traceparent", "Tracestate", "Prefer", "Forwarded", "X-Forwarded-For",
		"X-Forwarded-Proto", "X-Request-Id", "K-Proxy-Request",
	} {
		known[name], known[strings.ToLower(name)] = name, name
	}
}

// canonical gives a field's name as net/http writes it; ok is false for what is none.
func canonical(name string) (key string, ok bool) {
	if key, ok = known[name]; ok {
		return key, true
	}
	if name == "" {
		return "", false
	}
	for i := range len(name) {
		if !token(name[i]) {
			return "", false
		}
	}
	return textproto.CanonicalMIMEHeaderKey(name), true
}

// token tells the characters of a field's name (RFC 9110, section 5.6.2).
func token(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// legalValue tells values without control characters.
func legalValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// legalHost tells the usual hosts: a name or an address, and a port.
func legalHost(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte(".:-_[]", c) < 0 {
			return false
		}
	}
	return s != ""
}

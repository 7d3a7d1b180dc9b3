package lake

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/millrace-dev/millrace/shared/events"
)

// MaxLine is the longest record, in bytes, that the readers return.
const MaxLine = 8 << 20

// Line is one record of an object.
type Line struct {
	// Object is the object's key.
	Object string
	// Number counts the object's lines, or the elements of its array, from 1.
	Number int
	// Offset is the position of the record's first byte in the object.
	Offset int64
	// JSON is a JSON object. It is valid until the next record is asked for.
	JSON []byte
}

// BadLine is a part of an object that is no record. Reading goes on behind it.
type BadLine struct { //nolint:errname // it stands for a line
	Object string
	Number int
	Offset int64
	Reason string
}

func (e *BadLine) Error() string {
	return fmt.Sprintf("%s: line %d at byte %d: %s", e.Object, e.Number, e.Offset, e.Reason)
}

// Records yields the records of all objects under prefix whose keys sort after the
// key after, object by object in the order of their keys. See Lines for what an
// object may look like.
//
// A *BadLine is an error that does not end the iteration, any other error does.
// Objects that appear while it runs may be missed.
func (s *Store) Records(ctx context.Context, bucket, prefix, after string) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		for o, err := range s.List(ctx, bucket, prefix, after) {
			if err != nil {
				yield(Line{}, err)
				return
			}
			for line, err := range s.Object(ctx, bucket, o.Key) {
				if !yield(line, err) {
					return
				}
				var bad *BadLine
				if err != nil && !errors.As(err, &bad) {
					return
				}
			}
		}
	}
}

// Object yields the records of one object, as Records does.
func (s *Store) Object(ctx context.Context, bucket, key string) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		body, _, err := s.Open(ctx, bucket, key)
		if err != nil {
			yield(Line{Object: key}, err)
			return
		}
		defer func() { _ = body.Close() }()
		for line, err := range Lines(key, body) {
			if !yield(line, err) {
				return
			}
		}
	}
}

// Lines yields the records in r, which is
//
//   - JSON objects, one a line, or
//   - one JSON object, on one line or several, or
//   - a JSON array of objects.
//
// Empty lines, a byte order mark and a missing newline at the end are accepted.
// Memory is bounded by MaxLine, not by the object's size. A line that is no JSON
// object, or too long, is reported as a *BadLine and skipped; a broken array ends
// with one, since what comes after it cannot be told apart. An error of r ends the
// iteration and is returned with the object's name.
func Lines(object string, r io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		l := &lines{object: object, r: bufio.NewReaderSize(r, 64<<10)}
		if bom, _ := l.r.Peek(3); string(bom) == "\xef\xbb\xbf" {
			l.discard(3)
		}
		if l.array() {
			l.elements(yield)
			return
		}
		l.objects(yield)
	}
}

type lines struct {
	object string
	r      *bufio.Reader
	offset int64 // of the next byte of r
	number int   // of the last record
	buf    []byte
}

func (l *lines) discard(n int) {
	n, _ = l.r.Discard(n)
	l.offset += int64(n)
}

func (l *lines) bad(number int, offset int64, format string, args ...any) (Line, error) {
	reason := fmt.Sprintf(format, args...)
	return Line{Object: l.object, Number: number, Offset: offset},
		&BadLine{Object: l.object, Number: number, Offset: offset, Reason: reason}
}

func (l *lines) failed(err error) (Line, error) {
	return Line{Object: l.object}, fmt.Errorf("reading %s at byte %d: %w", l.object, l.offset, err)
}

// array steps over white space and tells whether an array is next.
func (l *lines) array() bool {
	for {
		b, err := l.r.Peek(1)
		if err != nil {
			return false
		}
		switch b[0] {
		case '\n':
			l.number++
			l.discard(1)
		case ' ', '\t', '\r':
			l.discard(1)
		default:
			return b[0] == '['
		}
	}
}

// line reads one line without its newline into l.buf. A line that is longer than
// MaxLine is read to its end and told by its length.
func (l *lines) line() (length int64, err error) {
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		l.offset += int64(len(part))
		length += int64(len(part))
		if length <= MaxLine+1 {
			l.buf = append(l.buf, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) && length > 0 {
			err = nil
		}
		l.buf = bytes.TrimRight(l.buf, "\r\n")
		return length, err
	}
}

func (l *lines) objects(yield func(Line, error) bool) {
	for first := true; ; {
		start := l.offset
		length, err := l.line()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			yield(l.failed(err))
			return
		}
		l.number++
		number, text := l.number, l.buf
		switch {
		case length > MaxLine+1:
			if !yield(l.bad(number, start, "%d bytes, more than the allowed %d", length, MaxLine)) {
				return
			}
		case len(bytes.TrimSpace(text)) == 0:
			continue
		case events.ValidObject(text):
			if !yield(Line{Object: l.object, Number: number, Offset: start, JSON: text}, nil) {
				return
			}
		default:
			if first {
				if document := l.document(); document != nil {
					if !yield(Line{Object: l.object, Number: number, Offset: start, JSON: document}, nil) {
						return
					}
					break
				}
				text = l.buf
			}
			if !yield(l.bad(number, start, "%s", why(text))) {
				return
			}
		}
		first = false
	}
}

// document tries to read the object's first line, which is in l.buf, together with
// the lines behind it as one JSON object, and returns nil, with those lines unread
// and l.buf as it was, when that does not work.
func (l *lines) document() []byte {
	var read bytes.Buffer
	source := io.MultiReader(bytes.NewReader(l.buf), bytes.NewReader([]byte{'\n'}),
		io.TeeReader(io.LimitReader(l.r, MaxLine), &read))
	d := json.NewDecoder(source)
	var document json.RawMessage
	err := d.Decode(&document)
	tail := read.Bytes()
	// What the decoder used of the lines behind the first one: it reads ahead.
	used := int(d.InputOffset()) - len(l.buf) - 1
	if err == nil && used > 0 && events.ValidObject(document) {
		l.offset += int64(used)
		l.number += bytes.Count(tail[:used], []byte{'\n'}) + 1
		tail = tail[used:]
		if rest := bytes.TrimLeft(tail, " \t\r"); len(rest) > 0 && rest[0] == '\n' {
			l.offset += int64(len(tail) - len(rest) + 1)
			tail = rest[1:]
		}
	} else {
		document = nil
	}
	l.r = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(tail), l.r), 64<<10)
	return document
}

// why says in what way a text is not one JSON object.
func why(text []byte) string {
	var v json.RawMessage
	err := json.Unmarshal(text, &v)
	switch {
	case err != nil:
		return "not JSON: " + err.Error()
	case !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")):
		return "not a JSON object"
	}
	return "not UTF-8, or nested too deep"
}

// elements yields the elements of the array that is next.
func (l *lines) elements(yield func(Line, error) bool) {
	// What one Decode may read is bounded here; the decoder itself has no limit.
	limited := &io.LimitedReader{R: l.r}
	d := json.NewDecoder(limited)
	base := l.offset
	refill := func() { limited.N = MaxLine + 64<<10 }
	refill()
	fail := func(err error) {
		l.offset = base + d.InputOffset()
		var syntax *json.SyntaxError
		switch {
		case limited.N <= 0:
			yield(l.bad(l.number, l.offset, "an array element of more than the allowed %d bytes; the rest is not read", MaxLine))
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			yield(l.bad(l.number, l.offset, "the array is cut short"))
		case errors.As(err, &syntax):
			yield(l.bad(l.number, l.offset, "broken array: %v; the rest is not read", err))
		default:
			yield(l.failed(err))
		}
	}
	if _, err := d.Token(); err != nil { // [
		fail(err)
		return
	}
	l.number = 0
	for d.More() {
		refill()
		l.number++
		var element json.RawMessage
		if err := d.Decode(&element); err != nil {
			fail(err)
			return
		}
		start := base + d.InputOffset() - int64(len(element))
		if len(element) > MaxLine {
			if !yield(l.bad(l.number, start, "%d bytes, more than the allowed %d", len(element), MaxLine)) {
				return
			}
			continue
		}
		if !events.ValidObject(element) {
			if !yield(l.bad(l.number, start, "%s", why(element))) {
				return
			}
			continue
		}
		if !yield(Line{Object: l.object, Number: l.number, Offset: start, JSON: element}, nil) {
			return
		}
	}
	if _, err := d.Token(); err != nil { // ]
		l.number++
		fail(err)
		return
	}
	if rest, err := io.ReadAll(io.LimitReader(io.MultiReader(d.Buffered(), l.r), 64<<10)); err == nil && len(bytes.TrimSpace(rest)) > 0 {
		yield(l.bad(l.number+1, base+d.InputOffset(), "text behind the array"))
	}
}

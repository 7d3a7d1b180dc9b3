// Package csvfile reads and writes shop events in the column format of the public
// "eCommerce behavior data from multi category store" files, plain or gzipped.
//
// A line that cannot be an event is reported and skipped; a file that is not in
// the format at all is an error.
package csvfile

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

var columns = [...]string{"event_time", "event_type", "product_id", "category_id",
	"category_code", "brand", "price", "user_id", "user_session"}

const (
	eventTime = iota
	eventType
	productID
	categoryID
	categoryCode
	brand
	price
	userID
	userSession
)

// maxLine bounds a line, in bytes; the longest real ones have some 200.
const maxLine = 64 << 10

// LineError says what is wrong with one line; reading can go on after it.
type LineError struct {
	Line int    // counted from 1, the header included
	What string // the reason, with the column and the value
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.What) }

// Reader reads events. It is not safe for concurrent use.
type Reader struct {
	in      *bufio.Reader
	close   func() error
	place   [len(columns)]int // of each column in a line
	width   int
	line    int
	values  []string
	minute  string // the latest event_time's text up to the minute
	seconds int64  // of that minute
}

// Open opens a file, which is unpacked if it is gzipped whatever its name.
func Open(path string) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := NewReader(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	r.close = f.Close
	return r, nil
}

// NewReader reads the header and prepares to read events.
func NewReader(in io.Reader) (*Reader, error) {
	buffered := bufio.NewReaderSize(in, maxLine)
	if magic, err := buffered.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unpacked, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("unpacking: %w", err)
		}
		buffered = bufio.NewReaderSize(unpacked, maxLine)
	}
	r := &Reader{in: buffered, close: func() error { return nil }}
	header, err := r.readLine()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the file is empty, want a header line " + strings.Join(columns[:], ","))
	}
	if err != nil {
		return nil, err
	}
	names := strings.Split(strings.TrimPrefix(header, "\ufeff"), ",")
	r.width = len(names)
	for i, column := range columns {
		r.place[i] = -1
		for j, name := range names {
			if strings.Trim(strings.TrimSpace(name), `"`) == column {
				r.place[i] = j
			}
		}
		if r.place[i] < 0 {
			return nil, fmt.Errorf("line 1: column %s is missing, want the columns %s", column, strings.Join(columns[:], ","))
		}
	}
	return r, nil
}

// Close closes what Open opened.
func (r *Reader) Close() error { return r.close() }

// Line is the number of the line read last.
func (r *Reader) Line() int { return r.line }

// Read reads the next event into ev, with its product in p, which is overwritten.
// It returns a *LineError for a line that is no event and io.EOF at the end.
func (r *Reader) Read(ev *shop.Event, p *shop.Product) error {
	line, err := r.readLine()
	if err != nil {
		return err
	}
	if err := r.split(line); err != nil {
		return err
	}
	if len(r.values) != r.width {
		return r.wrong("%d columns, want %d", len(r.values), r.width)
	}
	if !utf8.ValidString(line) {
		return r.wrong("not UTF-8")
	}

	*p = shop.Product{Index: shop.NoIndex, CategoryCode: r.value(categoryCode), Brand: r.value(brand)}
	*ev = shop.Event{Product: p, Session: r.value(userSession)}
	var ok bool
	if ev.Time, ok = r.parseTime(r.value(eventTime)); !ok {
		return r.wrong("event_time %q is not YYYY-MM-DD HH:MM:SS UTC", r.value(eventTime))
	}
	if ev.Type, ok = shop.ParseType(r.value(eventType)); !ok {
		return r.wrong("event_type %q is none of %s", r.value(eventType), strings.Join(shop.TypeNames[:], ", "))
	}
	for _, number := range []struct {
		column int
		into   *int64
	}{{productID, &p.ID}, {categoryID, &p.CategoryID}, {userID, &ev.User}} {
		if *number.into, err = strconv.ParseInt(r.value(number.column), 10, 64); err != nil {
			return r.wrong("%s %q is not an integer of 64 bits", columns[number.column], r.value(number.column))
		}
	}
	p.Price, err = strconv.ParseFloat(r.value(price), 64)
	if err != nil || math.IsNaN(p.Price) || math.IsInf(p.Price, 0) {
		return r.wrong("price %q is not a number", r.value(price))
	}
	if ev.Session == "" {
		return r.wrong("user_session is empty")
	}
	return nil
}

func (r *Reader) value(column int) string { return r.values[r.place[column]] }

func (r *Reader) wrong(format string, args ...any) error {
	return &LineError{r.line, fmt.Sprintf(format, args...)}
}

// readLine returns the next line without its end. Too long a line is skipped.
func (r *Reader) readLine() (string, error) {
	line, err := r.in.ReadSlice('\n')
	r.line++
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.in.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("reading line %d: %w", r.line, err)
		}
		return "", r.wrong("longer than %d bytes", maxLine)
	}
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		if errors.Is(err, io.EOF) {
			return "", io.EOF
		}
		return "", fmt.Errorf("reading line %d: %w", r.line, err)
	}
	return string(bytes.TrimRight(line, "\r\n")), nil
}

// split cuts a line into values. Quotes are rare in these files; only lines with
// some go the slow way. A quoted value with a line break in it is not supported.
func (r *Reader) split(line string) error {
	r.values = r.values[:0]
	if strings.IndexByte(line, '"') >= 0 {
		values, err := csv.NewReader(strings.NewReader(line)).Read()
		if err != nil {
			var parse *csv.ParseError
			if errors.As(err, &parse) {
				err = parse.Err
			}
			return r.wrong("%v", err)
		}
		r.values = append(r.values, values...)
		return nil
	}
	for {
		at := strings.IndexByte(line, ',')
		if at < 0 {
			r.values = append(r.values, line)
			return nil
		}
		r.values = append(r.values, line[:at])
		line = line[at+1:]
	}
}

// parseTime reads an event time. The files are sorted by time, so the minute is
// mostly that of the line before.
func (r *Reader) parseTime(s string) (int64, bool) {
	const minute = len("2006-01-02 15:04")
	if len(s) != len(shop.TimeLayout) || s[minute] != ':' || s[minute+3:] != " UTC" {
		return 0, false
	}
	if s[:minute] != r.minute || r.minute == "" {
		t, err := time.Parse("2006-01-02 15:04", s[:minute])
		if err != nil {
			return 0, false
		}
		r.minute, r.seconds = s[:minute], t.Unix()
	}
	tens, ones := s[minute+1]-'0', s[minute+2]-'0'
	if tens > 5 || ones > 9 {
		return 0, false
	}
	return r.seconds + int64(tens)*10 + int64(ones), true
}

// Writer writes events. It is not safe for concurrent use.
type Writer struct {
	out    *bufio.Writer
	finish []func() error
	buf    []byte
}

// Create makes a file, gzipped if its name ends in .gz, and writes the header.
func Create(path string) (*Writer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &Writer{finish: []func() error{f.Close}}
	var to io.Writer = f
	if strings.HasSuffix(path, ".gz") {
		packed := gzip.NewWriter(f)
		w.finish = append([]func() error{packed.Close}, w.finish...)
		to = packed
	}
	w.out = bufio.NewWriterSize(to, 1<<20)
	w.finish = append([]func() error{w.out.Flush}, w.finish...)
	if _, err := w.out.WriteString(strings.Join(columns[:], ",") + "\n"); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Write writes an event. Texts with commas, quotes or line breaks are quoted.
func (w *Writer) Write(ev *shop.Event) error {
	b := append(w.buf[:0], shop.FormatTime(ev.Time)...)
	b = append(b, ',')
	b = append(b, ev.Type.String()...)
	b = append(b, ',')
	b = strconv.AppendInt(b, ev.Product.ID, 10)
	b = append(b, ',')
	b = strconv.AppendInt(b, ev.Product.CategoryID, 10)
	b = append(b, ',')
	b = appendText(b, ev.Product.CategoryCode)
	b = append(b, ',')
	b = appendText(b, ev.Product.Brand)
	b = append(b, ',')
	b = strconv.AppendFloat(b, ev.Product.Price, 'f', 2, 64)
	b = append(b, ',')
	b = strconv.AppendInt(b, ev.User, 10)
	b = append(b, ',')
	b = appendText(b, ev.Session)
	w.buf = append(b, '\n')
	_, err := w.out.Write(w.buf)
	return err
}

func appendText(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\",\r\n") {
		return append(b, s...)
	}
	b = append(b, '"')
	b = append(b, strings.ReplaceAll(s, `"`, `""`)...)
	return append(b, '"')
}

// Close writes what is buffered and closes the file; without it the file is not
// complete.
func (w *Writer) Close() error {
	var errs []error
	for _, f := range w.finish {
		errs = append(errs, f())
	}
	w.finish = nil
	return errors.Join(errs...)
}

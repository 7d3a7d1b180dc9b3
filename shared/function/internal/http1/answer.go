package http1

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// answer is the http.ResponseWriter of a connection's request.
type answer struct {
	*conn
	header  http.Header
	status  int   // 0 before WriteHeader
	length  int64 // of the body as the header says, -1 if it does not
	written int64
}

func (a *answer) reset() {
	clear(a.header)
	a.status, a.length, a.written = 0, -1, 0
}

// Header gives the fields that WriteHeader will send.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader starts the answer; what follows the first call is ignored.
func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return
	}
	a.status = status
	c := a.conn
	if v := a.header["Content-Length"]; len(v) == 1 {
		if n, ok := number(v[0]); ok {
			a.length = n
		}
	}
	// A body of unknown length ends with the connection, and one that nobody read
	// would have to be received first.
	if a.length < 0 || c.left > maxDiscarded || c.listener.draining.Load() {
		c.last = true
	}
	out := c.out
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(append(out, ' '), http.StatusText(status)...)
	out = append(out, "\r\nDate: "...)
	out = append(out, date(time.Now())...)
	if c.last {
		out = append(out, "\r\nConnection: close"...)
	}
	for key, values := range a.header {
		for _, value := range values {
			out = append(append(append(append(out, "\r\n"...), key...), ": "...), oneLine(value)...)
		}
	}
	out = append(out, "\r\n\r\n"...)
	c.out = out
}

// dated is a second and how a Date field has it.
type dated struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[dated]

// date formats a time for a Date field, once a second.
func date(now time.Time) string {
	second := now.Unix()
	if last := lastDate.Load(); last != nil && last.second == second {
		return last.text
	}
	text := now.UTC().Format(http.TimeFormat)
	lastDate.Store(&dated{second, text})
	return text
}

var lineEnds = strings.NewReplacer("\r", " ", "\n", " ")

// oneLine keeps a value from ending its field, as net/http does.
func oneLine(value string) string {
	if strings.IndexByte(value, '\n') >= 0 || strings.IndexByte(value, '\r') >= 0 {
		return lineEnds.Replace(value)
	}
	return value
}

// Write adds to the answer's body.
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.length >= 0 && a.written+int64(len(p)) > a.length {
		return 0, http.ErrContentLength
	}
	a.written += int64(len(p))
	c := a.conn
	if len(c.out)+len(p) <= keptBuffer {
		c.out = append(c.out, p...)
		return len(p), nil
	}
	err := c.send(c.out, p)
	c.out = c.out[:0]
	if err != nil {
		c.last = true
		return 0, fmt.Errorf("answering: %w", err)
	}
	return len(p), nil
}

// finish completes the answer.
func (a *answer) finish() {
	if a.status == 0 {
		a.header["Content-Length"] = []string{"0"}
		a.WriteHeader(http.StatusOK)
	}
	if a.length >= 0 && a.written != a.length {
		a.conn.last = true // the receiver waits for bytes that do not come
	}
}

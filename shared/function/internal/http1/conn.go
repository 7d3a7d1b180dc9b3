package http1

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

const (
	firstBuffer = 4 << 10
	// keptBuffer bounds the memory that an idle connection holds on to.
	keptBuffer = 64 << 10
	// usualFields bounds the fields of a request that a connection keeps space for.
	usualFields = 100
	// maxDiscarded bounds what is read of a body that the handler did not want, to
	// keep the connection.
	maxDiscarded = 256 << 10
	// lingering is how long a connection that is closed with a body still coming is
	// read on, so that the sender sees the answer and not a reset.
	lingering = 500 * time.Millisecond
	// slack is how much earlier than asked for a wait may end: the deadline of an idle
	// connection, and of writing, is moved once in this time and not for every request.
	slack = time.Second
)

// conn is a connection whose requests are served one after the other.
type conn struct {
	net.Conn
	listener *Listener

	in       []byte // in[from:to] was received and not used
	from, to int
	out      []byte // to be sent before the next wait

	mu     sync.Mutex
	idle   bool      // waits for a request; guarded by mu, as is the deadline meanwhile
	began  time.Time // when the first byte of the request was there
	armed  time.Time // when the read deadline of an idle connection was set, or zero
	armedW time.Time // when the write deadline was set

	request http.Request
	values  []string
	left    int64 // of the request's body
	answer  answer
	last    bool // the connection closes after this answer
}

func newConn(c net.Conn, l *Listener) *conn {
	n := &conn{Conn: c, listener: l, in: make([]byte, firstBuffer)}
	n.request = http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: "/"}, RequestURI: "/",
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: body{n}, RemoteAddr: c.RemoteAddr().String(),
	}
	n.answer = answer{conn: n, header: http.Header{}}
	return n
}

// nudge ends the wait for a request. One that has arrived is still served.
func (c *conn) nudge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // a connection that is gone waits no more
	}
}

func (c *conn) serve() {
	defer c.listener.forget(c)
	defer func() {
		if p := recover(); p != nil {
			c.listener.cfg.ErrorLog.Printf("serving %s: panic: %v\n%s", c.request.RemoteAddr, p, debug.Stack())
			_ = c.Conn.Close()
		}
	}()
	for {
		switch kind, size, line, err := c.readHead(); {
		case err != nil:
			_ = c.Conn.Close() // the sender is gone, or takes too long
			return
		case kind == other || !c.parse(size, line):
			c.leave()
			return
		}
		c.handle()
		if c.last || c.listener.draining.Load() && c.from == c.to {
			c.hangUp()
			return
		}
		if c.from == c.to || len(c.out) >= keptBuffer {
			if c.flush() != nil {
				_ = c.Conn.Close()
				return
			}
		}
	}
}

// readHead receives until the kind of the next request is known.
func (c *conn) readHead() (kind head, size, line int, err error) {
	if c.from < c.to {
		c.began = time.Now()
	}
	for {
		if c.from < c.to {
			if kind, size, line = look(c.in[c.from:c.to], c.listener.cfg.Prefixes); kind != incomplete {
				return kind, size, line, nil
			}
			if c.to-c.from >= c.listener.cfg.MaxHeaderBytes {
				return other, 0, 0, nil // whose error is net/http's to tell
			}
			if err := c.within(c.listener.cfg.ReadHeaderTimeout); err != nil {
				return other, 0, 0, err
			}
		} else if err := c.rest(); err != nil {
			return other, 0, 0, err
		}
		n, err := c.receive(c.room())
		if c.from == c.to {
			c.awake()
		}
		if n == 0 && err != nil {
			return other, 0, 0, err
		}
		c.to += n
	}
}

// rest prepares the wait for the next request.
func (c *conn) rest() error {
	if now := time.Now(); c.armed.IsZero() || now.Sub(c.armed) > slack {
		if err := c.SetReadDeadline(now.Add(c.listener.cfg.IdleTimeout)); err != nil {
			return err
		}
		c.armed = now
	}
	// After the deadline is set: who closes the listener sees an idle connection and
	// nudges it, or was earlier and is seen here.
	c.mu.Lock()
	c.idle = true
	c.mu.Unlock()
	if c.listener.draining.Load() {
		return net.ErrClosed
	}
	return nil
}

// awake ends the wait for a request, whose first bytes have come.
func (c *conn) awake() {
	c.began = time.Now()
	c.mu.Lock()
	c.idle = false
	c.mu.Unlock()
}

// within sets the deadline of the request's next bytes.
func (c *conn) within(d time.Duration) error {
	c.armed = time.Time{}
	return c.SetReadDeadline(c.began.Add(d))
}

// room gives free space to receive into, at least a byte.
func (c *conn) room() []byte {
	if c.from == c.to {
		c.from, c.to = 0, 0
	}
	if c.to == len(c.in) {
		if c.from > 0 {
			c.from, c.to = 0, copy(c.in, c.in[c.from:c.to])
		} else {
			c.in = append(c.in, make([]byte, len(c.in))...)
		}
	}
	return c.in[c.to:]
}

// receive reads after everything was sent: the sender may be waiting for it.
func (c *conn) receive(p []byte) (int, error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// parse makes the request of a plain head.
func (c *conn) parse(size, line int) bool {
	if len(c.values) > usualFields {
		c.request.Header, c.values = http.Header{}, nil
	}
	clear(c.request.Header)
	clear(c.values)
	text := string(c.in[c.from : c.from+size])
	length, host, values, ok := fields(text[line:], c.request.Header, c.values[:0])
	c.values = values
	if !ok {
		return false
	}
	c.from += size
	if path := text[len(method) : line-len(version)]; path != c.request.RequestURI || path != "/" {
		// Whoever handles such a request may note things in it.
		c.request = http.Request{
			Method: http.MethodPost, URL: &url.URL{Path: path}, RequestURI: path,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: c.request.Header, Body: c.request.Body, RemoteAddr: c.request.RemoteAddr,
		}
	}
	c.request.Host, c.request.ContentLength, c.left = host, length, length
	return true
}

// handle has the request answered.
func (c *conn) handle() {
	c.answer.reset()
	c.listener.cfg.Handler(&c.answer, &c.request)
	c.answer.finish()
	if c.last || c.left == 0 {
		return
	}
	if _, err := io.Copy(io.Discard, c.request.Body); err != nil {
		c.last = true
	}
}

// flush sends what is to be sent.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.send(c.out)
	if cap(c.out) > keptBuffer {
		c.out = nil
	}
	c.out = c.out[:0]
	return err
}

func (c *conn) send(parts ...[]byte) error {
	if now := time.Now(); now.Sub(c.armedW) > slack {
		if err := c.SetWriteDeadline(now.Add(c.listener.cfg.WriteTimeout)); err != nil {
			return err
		}
		c.armedW = now
	}
	if len(parts) == 1 {
		_, err := c.Write(parts[0])
		return err
	}
	buffers := net.Buffers(parts)
	_, err := buffers.WriteTo(c.Conn)
	return err
}

// hangUp sends the last answer and closes.
func (c *conn) hangUp() {
	defer func() { _ = c.Conn.Close() }()
	if c.flush() != nil || c.left == 0 {
		return
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		if c.SetReadDeadline(time.Now().Add(lingering)) == nil {
			_, _ = io.Copy(io.Discard, c.Conn) // until the sender hangs up or has had its time
		}
	}
}

// leave hands the connection with all that was received and not used to net/http.
func (c *conn) leave() {
	if c.flush() != nil || c.SetDeadline(time.Time{}) != nil {
		_ = c.Conn.Close()
		return
	}
	select {
	case c.listener.others <- &handed{Conn: c.Conn, received: c.in[c.from:c.to]}:
	case <-c.listener.closed:
		_ = c.Conn.Close()
	}
}

// handed is a connection of which some bytes have been received already.
type handed struct {
	net.Conn
	received []byte
}

func (h *handed) Read(p []byte) (int, error) {
	if len(h.received) > 0 {
		n := copy(p, h.received)
		h.received = h.received[n:]
		return n, nil
	}
	return h.Conn.Read(p)
}

// body is the body of a connection's request.
type body struct{ *conn }

func (b body) Read(p []byte) (n int, err error) {
	c := b.conn
	if c.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.left)]
	if c.from < c.to {
		n = copy(p, c.in[c.from:c.to])
		c.from += n
	} else {
		if err := c.within(c.listener.cfg.ReadTimeout); err != nil {
			return 0, err
		}
		n, err = c.receive(p)
	}
	c.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		c.last = true
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.left = 0 // nothing to wait for after the answer
		}
	}
	return n, err
}

func (body) Close() error { return nil }

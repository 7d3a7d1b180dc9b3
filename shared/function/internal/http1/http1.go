// Package http1 serves the requests that a function gets most, and leaves all others
// to net/http.
//
// Those are "POST /", and POST to paths that the function names, in HTTP/1.1 with a Content-Length, over connections that are
// kept. For these, half of what net/http spends on its own is for what they cannot
// need: a goroutine and a reader that watch each connection while its request is
// handled, a context and two buffers a request, chunks, trailers, continuations.
// A Listener reads the first bytes of each connection's requests. As long as they
// are of that one form it serves them; a connection that brings anything else is
// handed, with all its bytes, to the http.Server that the Listener is given to, and
// stays there.
//
// What is taken is decided narrowly: a head that could be understood in two ways is
// never taken, and one that is taken is understood as net/http does, which a fuzz test
// holds against it.
package http1

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how requests are served. All fields but Prefixes are required.
type Config struct {
	// Handler handles the requests. It must not keep the request, its header or its
	// body. It should set Content-Length: without, the connection is closed after the
	// answer. The request's context is context.Background.
	Handler http.HandlerFunc
	// Prefixes begin other paths than "/" whose POST requests are served too, if they
	// are of nothing but letters, digits, "-", "_", ":" and single slashes.
	Prefixes []string

	// As in http.Server.
	ReadHeaderTimeout, ReadTimeout, WriteTimeout, IdleTimeout time.Duration
	MaxHeaderBytes                                            int
	ErrorLog                                                  *log.Logger
}

// Listener serves plain requests and is, for an http.Server, the listener of all
// other connections.
type Listener struct {
	net.Listener
	cfg    Config
	others chan net.Conn
	errors chan error
	closed chan struct{}
	close  sync.Once

	draining atomic.Bool
	mu       sync.Mutex
	conns    map[*conn]struct{}
	serving  sync.WaitGroup // one a connection
}

// NewListener serves the connections of l, until Close.
func NewListener(l net.Listener, cfg Config) *Listener {
	f := &Listener{
		Listener: l, cfg: cfg, conns: map[*conn]struct{}{},
		others: make(chan net.Conn), errors: make(chan error), closed: make(chan struct{}),
	}
	go f.accept()
	return f
}

func (l *Listener) accept() {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			// Taken when the http.Server asks, which waits longer after each error.
			select {
			case l.errors <- err:
				continue
			case <-l.closed:
				return
			}
		}
		if n := l.open(c); n != nil {
			go n.serve()
		}
	}
}

// open registers a connection, unless the listener has closed meanwhile.
func (l *Listener) open(c net.Conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining.Load() {
		_ = c.Close()
		return nil
	}
	n := newConn(c, l)
	l.conns[n] = struct{}{}
	l.serving.Add(1)
	return n
}

// forget is called when a connection is no longer served here.
func (l *Listener) forget(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	l.serving.Done()
}

// Accept gives the next connection that is left to net/http.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.others:
		return c, nil
	case err := <-l.errors:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close stops listening. Idle connections are closed, the others after the request
// that they are in.
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.close.Do(func() {
		l.mu.Lock()
		l.draining.Store(true)
		for c := range l.conns {
			c.nudge()
		}
		l.mu.Unlock()
		close(l.closed)
		err = l.Listener.Close()
	})
	return err
}

// Shutdown closes the listener and returns when all requests are answered, or with
// ctx's error when that ends first.
func (l *Listener) Shutdown(ctx context.Context) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	done := make(chan struct{})
	go func() {
		l.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Abort closes all connections that are served here, with whatever is in flight.
func (l *Listener) Abort() {
	_ = l.Close() // a second time is no error to anyone
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Conn.Close()
	}
}

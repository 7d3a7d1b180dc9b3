package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// connection is one kept-alive connection, used by the loader's thread only.
type connection struct {
	fd      int
	answers answers
	sent    []time.Time // of the requests under way, oldest first
	pending []byte      // of the request that the socket did not take whole
	queue   [][]byte    // requests after it
}

// load drives a server for the warm-up and the window. It runs an epoll loop of its
// own on one thread: the runtime's poller and a goroutine a connection would cost
// several times as much, and the server would have to do without it.
func load(ctx context.Context, cfg loadConfig) (*loadResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	poll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	defer func() { _ = syscall.Close(poll) }()
	conns := make(map[int32]*connection, cfg.conns)
	idle := make([]*connection, 0, cfg.conns*cfg.depth)
	for range cfg.conns {
		fd, err := dial(cfg.address)
		if err != nil {
			return nil, err
		}
		defer func() { _ = syscall.Close(fd) }() //nolint:revive // all are needed to the end
		c := &connection{fd: fd}
		conns[int32(fd)] = c
		for range cfg.depth {
			idle = append(idle, c)
		}
		event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | 1<<31 /* EPOLLET */, Fd: int32(fd)}
		if err := syscall.EpollCtl(poll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}

	r := &loadResult{refused: map[int]uint64{}}
	began := time.Now()
	from, until := began.Add(cfg.warm), began.Add(cfg.warm+cfg.window)
	next, issued := 0, 0
	events := make([]syscall.EpollEvent, cfg.conns)
	buf := make([]byte, 256<<10)
	for now := began; now.Before(until); now = time.Now() {
		// Connections that can take a request get one, or as many as are due.
		for len(idle) > 0 {
			if cfg.rate > 0 && now.Sub(began).Seconds()*cfg.rate < float64(issued) {
				break
			}
			// The oldest first, so that all connections are used.
			c := idle[0]
			idle = idle[1:]
			c.queue = append(c.queue, cfg.requests[next])
			c.sent = append(c.sent, now)
			next = (next + 1) % len(cfg.requests)
			issued++
			if len(idle) == 0 || idle[0] != c {
				if err := c.flush(); err != nil {
					return r, err
				}
			}
		}
		timeout := 100
		if cfg.rate > 0 {
			timeout = 1
		}
		n, err := syscall.EpollWait(poll, events, timeout)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return r, os.NewSyscallError("epoll_wait", err)
		}
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		for _, event := range events[:max(n, 0)] {
			c := conns[event.Fd]
			if event.Events&(syscall.EPOLLIN|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
				err := c.receive(buf, func(status int) {
					at := time.Now()
					if at.After(from) && at.Before(until) {
						r.requests++
						r.latencies = append(r.latencies, at.Sub(c.sent[0]))
						if status/100 != 2 {
							r.refused[status]++
						}
					}
					c.sent = c.sent[1:]
					idle = append(idle, c)
				})
				if err != nil {
					return r, fmt.Errorf("reading an answer: %w", err)
				}
			}
			if err := c.flush(); err != nil {
				return r, err
			}
		}
	}
	r.elapsed = cfg.window
	r.sort()
	return r, nil
}

func dial(address string) (int, error) {
	resolved, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return 0, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	to := syscall.SockaddrInet4{Port: resolved.Port, Addr: [4]byte(resolved.IP.To4())}
	if err := syscall.Connect(fd, &to); err != nil {
		_ = syscall.Close(fd)
		return 0, fmt.Errorf("connecting to %s: %w", address, err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt", syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)),
		os.NewSyscallError("fcntl", syscall.SetNonblock(fd, true)))
	if err != nil {
		_ = syscall.Close(fd)
		return 0, err
	}
	return fd, nil
}

// flush writes what the socket takes; the rest waits until it says it can go on.
func (c *connection) flush() error {
	// Requests that became due together go out in one call.
	if len(c.pending) == 0 && len(c.queue) == 1 {
		c.pending = c.queue[0]
	} else {
		owned := c.pending[:len(c.pending):len(c.pending)]
		for _, request := range c.queue {
			owned = append(owned, request...)
		}
		c.pending = owned
	}
	c.queue = c.queue[:0]
	for len(c.pending) > 0 {
		n, err := syscall.Write(c.fd, c.pending)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("sending: %w", err)
		}
		c.pending = c.pending[n:]
	}
	return nil
}

// receive reads all that has come.
func (c *connection) receive(buf []byte, answered func(int)) error {
	for {
		n, err := syscall.Read(c.fd, buf)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		if err := c.answers.feed(buf[:n], answered); err != nil {
			return err
		}
		if n < len(buf) {
			return nil // with edge triggering, more bytes make another event
		}
	}
}

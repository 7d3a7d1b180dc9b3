package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// measured is what a load gave.
type measured struct {
	requests, failed int
	cpu, took        time.Duration
	latencies        []time.Duration // sorted
}

func (m *measured) rate() float64 { return float64(m.requests) / m.took.Seconds() }

// at is a quantile of the latencies, in milliseconds.
func (m *measured) at(q float64) float64 {
	if len(m.latencies) == 0 {
		return 0
	}
	return float64(m.latencies[int(q*float64(len(m.latencies)-1))].Microseconds()) / 1000
}

// connections are those of a load.
const connections = 8

// load sends requests over its connections for a while: as fast as they are answered,
// or at a rate. At a rate, latency counts from when a request was due, so that a
// server that falls behind cannot hide it.
//
// Both sides share this machine's cores, so the sender is as light as it can be:
// requests are made before, and answers are read no further than to their end.
func (p *process) load(what request, rate float64, duration time.Duration) measured {
	messages := make([][]byte, len(what.bodies))
	for i, body := range what.bodies {
		messages[i] = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			what.path, len(body), body)
	}
	var m measured
	var mu sync.Mutex
	var workers sync.WaitGroup
	cpu, start := p.cpu(), time.Now()
	for w := range connections {
		workers.Go(func() {
			var own []time.Duration
			failed := 0
			c := connection{address: strings.TrimPrefix(p.url, "http://")}
			defer c.close()
			for n := 0; ; n++ {
				due := time.Now()
				if rate > 0 {
					due = start.Add(time.Duration(float64(n*connections+w) / rate * float64(time.Second)))
				}
				if due.Sub(start) > duration {
					break
				}
				sleepUntil(due)
				if err := c.ask(messages[(n*connections+w)%len(messages)]); err != nil {
					failed++
					c.close()
					continue
				}
				own = append(own, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			m.latencies = append(m.latencies, own...)
			m.failed += failed
		})
	}
	workers.Wait()
	m.took, m.cpu, m.requests = time.Since(start), p.cpu()-cpu, len(m.latencies)
	slices.Sort(m.latencies)
	return m
}

// sleepUntil is exact to about 0.1 ms, where time.Sleep in an idle process is to 1 ms,
// as long as what is measured.
func sleepUntil(due time.Time) {
	for left := time.Until(due); left > 0; left = time.Until(due) {
		wait := syscall.NsecToTimespec(int64(left))
		_ = syscall.Nanosleep(&wait, nil) // interrupted: the loop goes on
	}
}

// connection asks one thing after the other.
type connection struct {
	address string
	conn    net.Conn
	r       *bufio.Reader
}

func (c *connection) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// ask sends a message and reads the answer, which must be a 200 that states its length.
func (c *connection) ask(message []byte) error {
	if c.conn == nil {
		conn, err := net.Dial("tcp", c.address)
		if err != nil {
			return err
		}
		c.conn, c.r = conn, bufio.NewReaderSize(conn, 64<<10)
	}
	if _, err := c.conn.Write(message); err != nil {
		return err
	}
	status, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answered %q", status)
	}
	length := -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		name, value, named := bytes.Cut(line, []byte(":"))
		if !named {
			break // the empty line
		}
		if textproto.CanonicalMIMEHeaderKey(string(name)) == "Content-Length" {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("an answer without Content-Length")
	}
	_, err = io.CopyN(io.Discard, c.r, int64(length))
	return err
}

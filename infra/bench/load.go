package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// loadConfig is one load on an HTTP server. The loader shares the machine with the
// server, so it does as little as it can: requests are made before, one thread
// sends them and counts the answers, and of an answer only the status and the
// length are looked at.
type loadConfig struct {
	address  string   // host:port
	requests [][]byte // whole requests, sent round and round
	events   int      // in each request
	conns    int      // kept open
	depth    int      // requests under way on a connection
	// rate is in requests a second, however fast the answers come (an open loop);
	// 0 sends the next request when an answer came (a closed loop).
	rate         float64
	warm, window time.Duration
}

// loadResult is what was seen in the window.
type loadResult struct {
	requests  uint64
	elapsed   time.Duration
	latencies []time.Duration // of each request, sorted
	refused   map[int]uint64  // answers by status, if not 2xx
}

func (r *loadResult) bad() (n uint64) {
	for _, count := range r.refused {
		n += count
	}
	return n
}

// quantile of sorted durations, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return milliseconds(sorted[min(int(float64(len(sorted))*q), len(sorted)-1)])
}

func (r *loadResult) sort() { slices.Sort(r.latencies) }

// answers takes the answers of one connection apart as their bytes come.
type answers struct {
	buf     []byte
	skip    int  // bytes of a body still to come
	chunked bool // within a chunked body
	last    bool // its last chunk has begun
	status  int
}

var (
	endOfHeader = []byte("\r\n\r\n")
	lengthField = []byte("\r\nContent-Length: ")
	chunkedBody = []byte("\r\nTransfer-Encoding: chunked")
)

// feed takes bytes in and calls answered with the status of each answer that is
// complete.
func (a *answers) feed(b []byte, answered func(status int)) error {
	if len(a.buf) > 0 {
		a.buf = append(a.buf, b...)
		b = a.buf
	}
	rest, err := a.consume(b, answered)
	a.buf = append(a.buf[:0], rest...)
	return err
}

func (a *answers) consume(b []byte, answered func(int)) (rest []byte, err error) {
	for {
		if a.skip > 0 {
			n := min(a.skip, len(b))
			a.skip -= n
			b = b[n:]
			if a.skip > 0 {
				return nil, nil
			}
			if !a.chunked {
				answered(a.status)
			}
		}
		if a.chunked {
			if a.last {
				a.chunked, a.last = false, false
				answered(a.status)
				continue
			}
			end := bytes.Index(b, endOfHeader[:2])
			if end < 0 {
				return b, nil
			}
			size, err := strconv.ParseUint(string(b[:end]), 16, 31)
			if err != nil {
				return nil, fmt.Errorf("chunk size %q: %w", b[:end], err)
			}
			b = b[end+2:]
			a.last = size == 0
			a.skip = int(size) + 2 // with the line end after it
			continue
		}
		end := bytes.Index(b, endOfHeader)
		if end < 0 {
			return b, nil
		}
		header := b[:end+2]
		if len(header) < 13 || !bytes.HasPrefix(header, []byte("HTTP/1.1 ")) {
			return nil, fmt.Errorf("answer begins with %q", header[:min(len(header), 20)])
		}
		if a.status, err = strconv.Atoi(string(header[9:12])); err != nil {
			return nil, fmt.Errorf("status: %w", err)
		}
		b = b[end+4:]
		if at := bytes.Index(header, lengthField); at >= 0 {
			text := header[at+len(lengthField):]
			text = text[:bytes.IndexByte(text, '\r')]
			if a.skip, err = strconv.Atoi(string(text)); err != nil {
				return nil, fmt.Errorf("content length: %w", err)
			}
		} else if a.chunked = bytes.Contains(header, chunkedBody); !a.chunked && a.status != 204 {
			return nil, errors.New("an answer has neither a length nor chunks")
		}
		if a.skip == 0 && !a.chunked {
			answered(a.status)
		}
	}
}

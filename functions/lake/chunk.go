package main

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/lake"
)

// layout is what decides, together with the log, which record is in which object.
//
// A chunk is the offsets [n*Chunk, (n+1)*Chunk) of a partition. In a chunk there is
// one object an hour of record timestamps, named by the first offset that is in it.
// Where the lines of all hours together reach ChunkBytes, the objects are closed
// and the next record begins new ones: so memory is bounded by ChunkBytes and one
// record a partition at work, whatever the records' sizes.
//
// All of it follows from offsets and records alone, in order of offsets. So the
// same log gives the same objects whenever and however often it is drained, and
// what a drain writes when only a part of the log is there yet is, object by
// object, the beginning of what a later one writes.
type layout struct {
	// Chunk is the offsets in a chunk.
	Chunk int64
	// ChunkBytes closes the objects of a chunk before its end.
	ChunkBytes int
	// Window is how many offsets before its chunk a record is looked for before it
	// is kept; see seen.
	Window int64
}

// start gives the first offset of the chunk that offset is in.
func (l layout) start(offset int64) int64 { return offset - offset%l.Chunk }

// part is one object in the making.
type part struct {
	hour    int64
	first   int64 // offset of the first record
	next    int64 // offset of the last record, plus one
	records int
	data    []byte
}

// cutter sorts records, which come in the order of their offsets, into parts.
type cutter struct {
	limit int // ChunkBytes
	parts []*part
	last  *part // of the record before: neighbours mostly share their hour
	size  int
	free  *buffers
}

// add puts a record where it belongs and tells whether the parts are full, that is
// whether they must be taken before the next record.
func (c *cutter) add(r *kgo.Record, attrs *lake.Attrs) (full bool) {
	hour := lake.Hour(r.Timestamp.UnixMilli())
	if c.last == nil || c.last.hour != hour {
		c.last = c.find(hour, r.Offset)
	}
	before := len(c.last.data)
	c.last.data = lake.AppendLine(c.last.data, r, attrs)
	c.last.next = r.Offset + 1
	c.last.records++
	c.size += len(c.last.data) - before
	return c.size >= c.limit
}

func (c *cutter) find(hour, offset int64) *part {
	for _, p := range c.parts {
		if p.hour == hour {
			return p
		}
	}
	p := &part{hour: hour, first: offset}
	p.data = c.free.get()
	c.parts = append(c.parts, p)
	return p
}

// take hands out the parts, in the order of their first offsets.
func (c *cutter) take() []*part {
	parts := c.parts
	c.parts, c.last, c.size = nil, nil, 0
	return parts
}

// buffers keeps memory of objects that are written for those to come. It is safe
// for concurrent use.
type buffers struct {
	mu   sync.Mutex
	free [][]byte
	max  int
}

func (b *buffers) get() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.free)
	if n == 0 {
		return nil
	}
	data := b.free[n-1]
	b.free = b.free[:n-1]
	return data[:0]
}

// put takes back the data of parts. It keeps few: one chunk may have had records of
// thousands of hours.
func (b *buffers) put(parts []*part) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range parts {
		if len(b.free) < b.max {
			b.free = append(b.free, p.data)
		}
		p.data = nil
	}
}

// drop gives all memory back.
func (b *buffers) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = nil
}

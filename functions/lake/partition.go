package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/lake"
)

// partitionID names a partition.
type partitionID struct {
	topic     string
	partition int32
}

// partitionState is what is remembered of a partition between drains. All of it
// can be lost: it saves reading and writing, it decides nothing.
type partitionState struct {
	index *seen
	// objects are those of the chunk at base, as they were when last written.
	base       int64
	objects    map[string]lake.Object
	lastObject string
	lastDrain  time.Time
	offset     int64     // as committed
	end        int64     // as last seen
	problem    string    // why it is not drained
	committed  time.Time // when this process last committed
}

// partitionDrain is one drain of one partition.
type partitionDrain struct {
	*Drainer
	src      source
	bucket   string
	logStart int64
	end      int64 // drain up to here
	deadline time.Time
	state    *partitionState

	progress  progress
	committed int64 // at the beginning of the drain
	cut       cutter
	hash      *hasher
	covered   map[int64]int64 // by hour, when progress.rebased
	count     counts          // of what was committed, and of all that was written
	pending   counts          // of what was read since the last commit
}

// counts is what a drain did. What was read again is not counted again.
type counts struct {
	Records, Duplicates, Objects, Bytes int64
}

func (c *counts) add(o counts) {
	c.Records += o.Records
	c.Duplicates += o.Duplicates
	c.Objects += o.Objects
	c.Bytes += o.Bytes
}

// errDeadline ends a drain between two chunks.
var errDeadline = errors.New("time is up")

// run drains the partition. Whatever ends it, what was committed is durable in the
// lake, and what was written without being committed will be written again, as the
// same bytes.
func (d *partitionDrain) run(ctx context.Context) (err error) {
	d.count = counts{}
	d.cut = cutter{limit: d.layout.ChunkBytes, free: &d.buffers}
	d.hash = newHasher(d.seeds)
	if d.state.objects == nil || d.state.base != d.progress.base {
		d.state.base, d.state.objects = d.progress.base, make(map[string]lake.Object)
	}
	from := d.progress.base
	if d.state.index == nil || d.state.index.pos != d.progress.base || d.state.index.from > d.progress.from {
		d.state.index = newSeen(d.progress.from, d.progress.base)
		from = d.progress.from
	}
	d.state.index.from = d.progress.from
	defer func() {
		if err != nil {
			// It may hold what was not committed.
			d.state.index = nil
		}
	}()
	d.enter()
	err = fetchRange(ctx, d.kafka, d.src, from, d.end, func(r *kgo.Record) error { return d.record(ctx, r) })
	if errors.Is(err, errDeadline) {
		d.state.index.forget()
		return nil
	}
	if err != nil {
		return err
	}
	return d.reach(ctx, d.end)
}

// enter prepares for the chunk at progress.base.
func (d *partitionDrain) enter() {
	d.state.index.forget()
	if d.end < d.chunkEnd() {
		d.state.index.provisional()
	}
	d.covered = nil
	if d.progress.rebased {
		d.covered = make(map[int64]int64)
	}
}

func (d *partitionDrain) chunkEnd() int64 { return d.layout.start(d.progress.base) + d.layout.Chunk }

func (d *partitionDrain) record(ctx context.Context, r *kgo.Record) error {
	attrs := lake.AttrsOf(r)
	known := len(attrs.ID) > 0
	if r.Offset < d.progress.base {
		if known {
			d.state.index.add(d.hash.hash(&attrs), r.Offset)
		}
		return nil
	}
	if r.Offset >= d.chunkEnd() {
		if err := d.reach(ctx, d.layout.start(r.Offset)); err != nil {
			return err
		}
		if time.Now().After(d.deadline) {
			return errDeadline
		}
	}
	isNew := r.Offset >= d.committed
	if known && d.state.index.duplicate(d.hash.hash(&attrs), r.Offset) {
		if isNew {
			d.pending.Duplicates++
		}
		return nil
	}
	if d.covered != nil {
		next, err := d.coveredTo(ctx, lake.Hour(r.Timestamp.UnixMilli()))
		if err != nil {
			return err
		}
		if r.Offset < next {
			return nil
		}
	}
	if isNew {
		d.pending.Records++
	}
	if full := d.cut.add(r, &attrs); full {
		return d.write(ctx)
	}
	return nil
}

// reach makes everything before offset durable and commits it.
func (d *partitionDrain) reach(ctx context.Context, offset int64) error {
	if err := d.write(ctx); err != nil {
		return err
	}
	next := d.progress.next(offset, d.logStart)
	if err := d.commit(ctx, d.src, next); err != nil {
		return err
	}
	d.mu.Lock()
	d.state.committed, d.state.offset = time.Now(), offset
	d.mu.Unlock()
	d.count.add(d.pending)
	d.pending = counts{}
	moved := next.base != d.progress.base
	d.progress = next
	if moved {
		d.state.base, d.state.objects = next.base, make(map[string]lake.Object)
		// The window, a chunk, and some more so as not to clear each time.
		d.state.index.advance(next.from, next.base, int(d.layout.Window+2*d.layout.Chunk))
	}
	d.enter()
	return nil
}

// write puts what the cutter holds into the lake and returns when it is durable.
func (d *partitionDrain) write(ctx context.Context) error {
	parts := d.cut.take()
	if len(parts) == 1 {
		if err := d.writePart(ctx, parts[0]); err != nil {
			return err
		}
		d.buffers.put(parts)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := make(chan *part)
	for range min(len(parts), writersPerPartition) {
		wg.Go(func() {
			for p := range next {
				if err := d.writePart(ctx, p); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					cancel()
				}
			}
		})
	}
	for _, p := range parts {
		next <- p
	}
	close(next)
	wg.Wait()
	if first != nil {
		return first
	}
	d.buffers.put(parts)
	return nil
}

// writersPerPartition bounds the requests to the store that one partition makes at
// a time, which matters only where records of many hours are mixed.
const writersPerPartition = 4

// User metadata of an object, to look into it from outside.
const (
	metaNext    = "millrace-next"    // offset of its last record, plus one
	metaBase    = "millrace-base"    // progress.base when it was written
	metaTopic   = "millrace-topic"   // the topic's id
	metaRecords = "millrace-records" // how many it has
)

// writePart puts an object, unless the lake has it, or has more of it, already.
//
// Another process may drain the same partition at the same time. Both then write
// beginnings of the same bytes, so the longer one is right: the condition of each
// write keeps a slower process from putting a shorter one in its place.
func (d *partitionDrain) writePart(ctx context.Context, p *part) error {
	key := lake.Key{Topic: d.src.topic, Partition: d.src.partition, Hour: lake.HourTime(p.hour), Offset: p.first}.String()
	size := int64(len(p.data))
	d.mu.Lock()
	have, known := d.state.objects[key]
	d.mu.Unlock()
	if !known && p.first < d.committed {
		// It was written before this process could remember it.
		o, err := d.store.Stat(ctx, d.bucket, key)
		if err != nil && !errors.Is(err, lake.ErrNotFound) {
			return err
		}
		have, known = o, err == nil
	}
	put := func(cond lake.Condition) (lake.Object, error) {
		return d.store.Put(ctx, d.bucket, key, p.data, "application/x-ndjson", map[string]string{
			metaNext:    strconv.FormatInt(p.next, 10),
			metaBase:    strconv.FormatInt(d.progress.base, 10),
			metaRecords: strconv.Itoa(p.records),
			metaTopic:   d.src.topicID(),
		}, cond)
	}
	for {
		if known && have.Size >= size {
			d.remember(key, have)
			return nil
		}
		o, err := put(lake.Condition{Absent: !known, ETag: have.ETag})
		if err == nil {
			d.remember(key, o)
			d.mu.Lock()
			d.count.Objects++
			d.count.Bytes += size
			d.state.lastObject = key
			d.mu.Unlock()
			if d.untested(d.bucket) {
				// The same bytes once more, under a condition that does not hold.
				if _, err := put(lake.Condition{Absent: true}); err == nil {
					slog.Warn("the object store ignores If-None-Match: run no more than one lake process at a time", "bucket", d.bucket)
				}
			}
			return nil
		}
		if errors.Is(err, lake.ErrNotFound) {
			d.forgetBucket(d.bucket)
		}
		if !errors.Is(err, lake.ErrChanged) {
			return err
		}
		have, err = d.store.Stat(ctx, d.bucket, key)
		if err != nil && !errors.Is(err, lake.ErrNotFound) {
			return err
		}
		known = err == nil
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (d *partitionDrain) remember(key string, o lake.Object) {
	d.mu.Lock()
	d.state.objects[key] = o
	d.mu.Unlock()
}

// coveredTo tells up to which offset the records of an hour are in objects that
// begin before progress.base.
func (d *partitionDrain) coveredTo(ctx context.Context, hour int64) (int64, error) {
	if next, ok := d.covered[hour]; ok {
		return next, nil
	}
	k := lake.Key{Topic: d.src.topic, Partition: d.src.partition, Hour: lake.HourTime(hour)}
	prefix := fmt.Sprintf("%s%s+%d+", k.Dir(), k.Topic, k.Partition)
	var last lake.Key
	found := false
	for o, err := range d.store.List(ctx, d.bucket, prefix, "") {
		if err != nil {
			return 0, err
		}
		key, err := lake.ParseKey(o.Key)
		if err != nil || key.Offset >= d.progress.base {
			continue
		}
		if !found || key.Offset > last.Offset {
			last, found = key, true
		}
	}
	if !found {
		d.covered[hour] = 0
		return 0, nil
	}
	o, err := d.store.Stat(ctx, d.bucket, last.String())
	if err != nil {
		return 0, err
	}
	next, err := strconv.ParseInt(o.Metadata[metaNext], 10, 64)
	if err != nil {
		next = last.Offset + 1 // not ours: the sink connector writes one record an object
	}
	d.covered[hour] = next
	return next, nil
}

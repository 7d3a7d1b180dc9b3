package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

const kafkaSource = "Kafka"

const (
	// searchFor bounds the search for an event in the Broker's topic, which is read
	// backwards in windows.
	searchFor = 20 * time.Second
	// storyFor bounds a story as a whole.
	storyFor = 40 * time.Second
	// before and after a found event is looked for what it came from and what came of it.
	before, after = 2 * time.Minute, 10 * time.Minute
	// mostSeeds bounds how many events are told of that were asked for, as of a session,
	// and mostRead how many records are read to find what came of them.
	mostSeeds, mostRead = 60, 300_000
)

// windows are how long ago the events are that are looked at first, then, and last.
var windows = []time.Duration{2 * time.Minute, 15 * time.Minute, 2 * time.Hour, 0}

// trail is what the Broker's topic, through which all events pass, still has of what was
// asked for and of what it came from and led to.
type trail struct {
	found []step
	// back is how far back was searched; zero is all that Kafka keeps.
	back time.Time
}

// step is an event of a trail.
type step struct {
	events.Message
	at        time.Time // when it was written
	partition int32
	offset    int64
}

func (s *step) trace() string { return traceOf(s.Get("traceparent")) }

// traceOf is the trace id of a traceparent; "" of what is none.
func traceOf(parent string) string {
	if parts := strings.Split(parent, "-"); len(parts) >= 4 && len(parts[1]) == 32 {
		return parts[1]
	}
	return ""
}

// follow finds the events with an id, of a trace, or of an entity, a session or a server.
func (c *console) follow(ctx context.Context, q string) (trail, error) {
	var t trail
	opts, err := c.kafka.Options()
	if err != nil {
		return t, fmt.Errorf("configuring the Kafka client: %w", err)
	}
	opts = append(opts, kgo.DialTimeout(2*time.Second), kgo.RetryTimeout(3*time.Second), kgo.RequestRetries(2),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.FetchMaxBytes(8<<20), kgo.FetchMaxPartitionBytes(1<<20))
	topic := topicReader{opts: opts, topic: c.brokerTopic}

	// What carries the id or the trace decides about its kin; of an entity all are told.
	search, cancel := context.WithTimeout(ctx, searchFor)
	defer cancel()
	now := time.Now()
	var seeds []step
	named := false // by its id or its trace
	until := time.Time{}
	for _, ago := range windows {
		from := time.Time{}
		if ago > 0 {
			from = now.Add(-ago)
		}
		err := topic.read(search, span{from: from, until: until}, func(r *kgo.Record) bool {
			h := headersOf(r)
			one := string(h.id) == q || traceIs(h.traceparent, q)
			if one || string(h.key) == q {
				if s, ok := stepOf(r); ok {
					seeds, named = append(seeds, s), named || one
				}
			}
			return !named
		})
		if err != nil && (search.Err() == nil || ctx.Err() != nil) {
			return t, c.watch.failed(kafkaSource, away(kafkaSource, plain(err)))
		}
		if err != nil {
			break // time is up: what was read completely is what was searched
		}
		if t.back = from; len(seeds) > 0 {
			break
		}
		until = from
	}
	c.watch.well(kafkaSource)
	if len(seeds) == 0 {
		return t, nil
	}
	slices.SortFunc(seeds, func(a, b step) int { return b.at.Compare(a.at) })
	seeds = seeds[:min(len(seeds), mostSeeds)]

	k := kin{known: map[string]step{}, children: map[string]bool{}, parents: map[string]bool{}, traces: map[string]bool{}}
	for _, s := range seeds {
		k.add(s)
	}
	// Of an entity all events were found already. Kin have the key of whom they are about
	// and so the partition; those about something else have others, and are looked for
	// last, as long as there is time.
	seen := span{from: seeds[0].at.Add(-before), until: seeds[0].at.Add(after), most: mostRead, partition: seeds[0].partition, one: true}
	for grown := named; grown; {
		grown = false
		err := topic.read(ctx, seen, func(r *kgo.Record) bool {
			if k.has(r) {
				if s, ok := stepOf(r); ok {
					k.add(s)
					grown = true
				}
			}
			return true
		})
		if err != nil && !seen.one && search.Err() != nil {
			break
		}
		if err != nil {
			return t, c.watch.failed(kafkaSource, away(kafkaSource, plain(err)))
		}
		if !grown && seen.one {
			seen.one, grown = false, search.Err() == nil
			ctx = search //nolint:fatcontext // once: it is made before the loop
		}
	}
	t.found = slices.SortedFunc(maps.Values(k.known), func(a, b step) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.partition, b.partition), cmp.Compare(a.offset, b.offset))
	})
	return t, nil
}

// kin are events that belong together: replies have ids that follow from those of what
// they answer, and all of a trace have its id.
type kin struct {
	known    map[string]step // by source and id
	children map[string]bool // ids that replies to known ones have
	parents  map[string]bool // ids of known replies
	traces   map[string]bool
	replied  []string // the functions whose replies are known
}

func keyOf(s *step) string { return s.Get("source") + " " + s.Get("id") }

func (k *kin) add(s step) {
	k.known[keyOf(&s)] = s
	for _, f := range functions() {
		k.children[events.ReplyID(s.Get("source"), s.Get("id"), f)] = true
	}
	if f, ok := strings.CutPrefix(s.Get("source"), events.FunctionSource); ok {
		k.parents[s.Get("id")] = true
		if !slices.Contains(k.replied, f) {
			k.replied = append(k.replied, f)
		}
	}
	if t := s.trace(); t != "" {
		k.traces[t] = true
	}
}

// has tells whether a record's event belongs to the known ones and is not among them yet.
func (k *kin) has(r *kgo.Record) bool {
	h := headersOf(r)
	related := k.children[string(h.id)] || len(h.traceparent) >= 35 && k.traces[string(h.traceparent[3:35])]
	if !related && len(k.replied) > 0 {
		related = slices.ContainsFunc(k.replied, func(f string) bool {
			return k.parents[events.ReplyID(string(h.source), string(h.id), f)]
		})
	}
	if !related {
		return false
	}
	_, known := k.known[string(h.source)+" "+string(h.id)]
	return !known
}

// headers are what a record is judged by, without decoding it.
type headers struct{ id, source, traceparent, key []byte }

// headersOf finds them of a record in binary content mode, which the Broker writes.
func headersOf(r *kgo.Record) (h headers) {
	for i := range r.Headers {
		switch value := r.Headers[i].Value; r.Headers[i].Key {
		case "ce_id":
			h.id = value
		case "ce_source":
			h.source = value
		case "ce_traceparent":
			h.traceparent = value
		case "ce_" + events.PartitionKey:
			h.key = value
		}
	}
	return h
}

// traceIs tells whether a traceparent is of a trace.
func traceIs(parent []byte, id string) bool {
	return len(id) == 32 && len(parent) >= 35 && string(parent[3:35]) == id
}

// stepOf decodes a record; ok is false of what is no event.
func stepOf(r *kgo.Record) (s step, ok bool) {
	s.Message, ok = kafka.FromRecord(r)
	s.at, s.partition, s.offset = r.Timestamp, r.Partition, r.Offset
	return s, ok
}

// topicReader reads parts of a topic.
type topicReader struct {
	opts  []kgo.Opt
	topic string
}

// span is a part of a topic: what was written from one time until another. A zero time is
// the beginning, or what is the end when it is read.
type span struct {
	from, until time.Time
	// most bounds how many records are read, if it is not 0.
	most int
	// partition is the only one to read, if one is set.
	partition int32
	one       bool
}

// read gives visit the records of a span, those of a partition in order, until it says
// that it has seen enough.
func (t topicReader) read(ctx context.Context, s span, visit func(*kgo.Record) (more bool)) error {
	asker, err := kgo.NewClient(t.opts...)
	if err != nil {
		return err
	}
	defer asker.Close()
	admin := kadm.NewClient(asker)
	var starts, ends kadm.ListedOffsets
	if s.from.IsZero() {
		starts, err = admin.ListStartOffsets(ctx, t.topic)
	} else {
		starts, err = admin.ListOffsetsAfterMilli(ctx, s.from.UnixMilli(), t.topic)
	}
	if err == nil {
		if s.until.IsZero() || s.until.After(time.Now()) {
			ends, err = admin.ListEndOffsets(ctx, t.topic)
		} else {
			ends, err = admin.ListOffsetsAfterMilli(ctx, s.until.UnixMilli(), t.topic)
		}
	}
	if err := errors.Join(err, starts.Error(), ends.Error()); err != nil {
		return err
	}
	left := map[int32]int64{} // the offset behind the last to read, by partition
	offsets := map[int32]kgo.Offset{}
	ends.Each(func(end kadm.ListedOffset) {
		if start, ok := starts.Lookup(t.topic, end.Partition); ok && start.Offset >= 0 && start.Offset < end.Offset && (!s.one || s.partition == end.Partition) {
			left[end.Partition] = end.Offset
			offsets[end.Partition] = kgo.NewOffset().At(start.Offset)
		}
	})
	if len(left) == 0 {
		return nil
	}
	client, err := kgo.NewClient(append(slices.Clone(t.opts), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: offsets}))...)
	if err != nil {
		return err
	}
	defer client.Close()
	more := true
	for read := 0; len(left) > 0 && more && (s.most == 0 || read < s.most); {
		fetches := client.PollRecords(ctx, 10_000)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, wanted := left[r.Partition]
			if wanted && more && r.Offset < end {
				more = visit(r)
				read++
			}
			if wanted && r.Offset >= end-1 {
				delete(left, r.Partition)
			}
		})
	}
	return nil
}

// functions are the names of all functions, by the graph.
var functions = sync.OnceValue(func() []string {
	var g struct{ Nodes []struct{ Kind, Name string } }
	if err := json.Unmarshal(graph, &g); err != nil {
		panic(err) // it is part of the program
	}
	var names []string
	for _, n := range g.Nodes {
		if n.Kind == "Service" {
			names = append(names, n.Name)
		}
	}
	return names
})

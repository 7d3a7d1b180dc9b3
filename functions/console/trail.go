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
	searchFor = 6 * time.Second
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
		kgo.FetchMaxWait(100*time.Millisecond), kgo.FetchMaxBytes(4<<20), kgo.FetchMaxPartitionBytes(512<<10))
	topic := topicReader{opts: opts, topic: c.brokerTopic}

	// What carries the id or the trace decides about its kin; of an entity all are told.
	search, cancel := context.WithTimeout(ctx, searchFor)
	defer cancel()
	now := time.Now()
	var seeds []step
	until := time.Time{}
	for _, ago := range windows {
		from := time.Time{}
		if ago > 0 {
			from = now.Add(-ago)
		}
		err := topic.read(search, from, until, 0, func(r *kgo.Record) {
			if s, ok := stepOf(r); ok && (s.Get("id") == q || s.trace() == q || s.Get(events.PartitionKey) == q) {
				seeds = append(seeds, s)
			}
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
	first, last := seeds[0].at, seeds[0].at
	named := false
	for _, s := range seeds {
		k.add(s)
		if s.at.Before(first) {
			first = s.at
		}
		named = named || s.Get(events.PartitionKey) != q
	}
	// Of an entity all events were found already.
	for grown := named; grown; {
		grown = false
		err := topic.read(ctx, first.Add(-before), last.Add(after), mostRead, func(r *kgo.Record) {
			if s, ok := stepOf(r); ok && k.has(&s) {
				k.add(s)
				grown = true
			}
		})
		if err != nil {
			return t, c.watch.failed(kafkaSource, away(kafkaSource, plain(err)))
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
	if f, ok := strings.CutPrefix(s.Get("source"), "/millrace/"); ok {
		k.parents[s.Get("id")] = true
		if !slices.Contains(k.replied, f) {
			k.replied = append(k.replied, f)
		}
	}
	if t := s.trace(); t != "" {
		k.traces[t] = true
	}
}

// has tells whether an event belongs to the known ones and is not among them yet.
func (k *kin) has(s *step) bool {
	if _, known := k.known[keyOf(s)]; known {
		return false
	}
	if k.children[s.Get("id")] || k.traces[s.trace()] {
		return true
	}
	return slices.ContainsFunc(k.replied, func(f string) bool {
		return k.parents[events.ReplyID(s.Get("source"), s.Get("id"), f)]
	})
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

// read gives visit the records that were written from one time until another, those of a
// partition in order. A zero time is the beginning, or what is the end when it is called.
// It stops after most records, if most is not 0.
func (t topicReader) read(ctx context.Context, from, until time.Time, most int, visit func(*kgo.Record)) error {
	asker, err := kgo.NewClient(t.opts...)
	if err != nil {
		return err
	}
	defer asker.Close()
	admin := kadm.NewClient(asker)
	var starts, ends kadm.ListedOffsets
	if from.IsZero() {
		starts, err = admin.ListStartOffsets(ctx, t.topic)
	} else {
		starts, err = admin.ListOffsetsAfterMilli(ctx, from.UnixMilli(), t.topic)
	}
	if err == nil {
		if until.IsZero() || until.After(time.Now()) {
			ends, err = admin.ListEndOffsets(ctx, t.topic)
		} else {
			ends, err = admin.ListOffsetsAfterMilli(ctx, until.UnixMilli(), t.topic)
		}
	}
	if err = errors.Join(err, starts.Error(), ends.Error()); err != nil {
		return err
	}
	left := map[int32]int64{} // the offset behind the last to read, by partition
	offsets := map[int32]kgo.Offset{}
	ends.Each(func(end kadm.ListedOffset) {
		if start, ok := starts.Lookup(t.topic, end.Partition); ok && start.Offset >= 0 && start.Offset < end.Offset {
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
	for read := 0; len(left) > 0 && (most == 0 || read < most); {
		fetches := client.PollRecords(ctx, 10_000)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, wanted := left[r.Partition]
			if wanted && r.Offset < end {
				visit(r)
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

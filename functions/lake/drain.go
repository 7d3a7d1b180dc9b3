package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/lake"
)

// Drainer moves what is new in topics into the lake. It is safe for concurrent
// use; drains of one Drainer run one after the other.
//
// Any number of processes may drain the same topics at the same time, or die at
// any point: the lake's content is the same as if one had done it undisturbed. It
// costs them double work only, so one is enough.
type Drainer struct {
	kafka    *kgo.Client
	admin    *kadm.Client
	store    *lake.Store
	metrics  *metrics
	group    string
	routes   Routes
	layout   layout
	parallel int
	maxDrain time.Duration

	seeds [2]maphash.Seed
	busy  chan struct{} // holds the one drain that runs

	buffers buffers // of the drain that runs

	mu      sync.Mutex // guards what follows, and counts of running drains
	states  map[partitionID]*partitionState
	buckets map[string]*bucketState
	missing map[string]bool // topics whose absence was logged
	lost    int64           // offsets that were deleted before they were drained
}

type bucketState struct {
	ensured bool
	tested  bool // whether the store honours conditions was found out
}

// maxIndexEntries bounds the events that all partitions' indexes remember together
// between drains, at about 50 bytes each. Beyond it the partitions that were idle
// for longest are read again from Kafka when something new comes.
const maxIndexEntries = 2_000_000

// recommitAfter is how often an idle partition's offset is committed again. Kafka
// forgets the offsets of a group without members after some days without a commit
// (offsets.retention.minutes, 7 days by default).
const recommitAfter = time.Hour

// NewDrainer makes a Drainer of connected clients.
func NewDrainer(kafka *kgo.Client, store *lake.Store, c Config) (*Drainer, error) {
	d := &Drainer{
		kafka: kafka, admin: kadm.NewClient(kafka), store: store,
		group: c.Group, routes: c.Routes,
		layout:   layout{Chunk: c.Chunk, ChunkBytes: c.ChunkBytes, Window: c.DedupWindow},
		parallel: c.Parallel, maxDrain: c.MaxDrain,
		seeds:   seeds(),
		busy:    make(chan struct{}, 1),
		states:  make(map[partitionID]*partitionState),
		buckets: make(map[string]*bucketState),
		missing: make(map[string]bool),
		buffers: buffers{max: 2 * c.Parallel},
	}
	var err error
	d.metrics, err = newMetrics(d)
	return d, err
}

// Drain moves everything that was in the topics when it began, or as much as fits
// into the time it is given. Everything that it does is safe to do again; an error
// means that something of it could not be done now.
func (d *Drainer) Drain(ctx context.Context) error {
	select {
	case d.busy <- struct{}{}:
		defer func() { <-d.busy }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	began := time.Now()
	positions, err := d.positions(ctx)
	if err != nil {
		return err
	}
	if err := d.ensureBuckets(ctx); err != nil {
		return err
	}
	if err := d.recover(ctx, positions); err != nil {
		return err
	}
	var work []*partitionDrain
	for _, p := range positions {
		w, err := d.plan(ctx, p, began)
		if err != nil {
			return err
		}
		if w != nil {
			work = append(work, w)
		}
	}
	if len(work) == 0 {
		return nil
	}
	// Those that are furthest behind first, so that they do not end alone.
	slices.SortStableFunc(work, func(a, b *partitionDrain) int {
		return int(min(max((b.end-b.committed)-(a.end-a.committed), -1), 1))
	})
	total, err := d.runAll(ctx, work)
	d.buffers.drop()
	d.evict()
	took := time.Since(began)
	d.metrics.drained(ctx, took)
	level := slog.LevelInfo
	if total == (counts{}) {
		level = slog.LevelDebug
	}
	slog.Log(ctx, level, "moved what is new into the lake", "partitions", len(work), "records", total.Records,
		"duplicates", total.Duplicates, "objects", total.Objects, "bytes", total.Bytes,
		"seconds", took.Seconds(), "complete", err == nil)
	return err
}

func (d *Drainer) runAll(ctx context.Context, work []*partitionDrain) (counts, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var total counts
	var first error
	var mu sync.Mutex
	queue := make(chan *partitionDrain)
	var wg sync.WaitGroup
	for range min(d.parallel, len(work)) {
		wg.Go(func() {
			for w := range queue {
				if ctx.Err() != nil {
					continue
				}
				err := w.run(ctx)
				mu.Lock()
				total.add(w.count)
				d.metrics.partition(ctx, w)
				if err != nil && first == nil {
					first = err
					cancel() // the store or Kafka is away: do not try each partition
				}
				mu.Unlock()
			}
		})
	}
	for _, w := range work {
		queue <- w
	}
	close(queue)
	wg.Wait()
	return total, first
}

// position is where a partition stands.
type position struct {
	source
	bucket    string
	logStart  int64
	end       int64 // of what is committed by its producers
	committed int64 // -1 when nothing was
	metadata  string
	// recovered is where to begin when nothing was committed.
	recovered int64
	// problem is why the partition must not be drained.
	problem string
}

const madeAnew = "the topic was deleted and made anew: its offsets begin again, and its objects would replace those of the old one; route it to another bucket, or move the old objects away and delete the group's offsets"

// positions asks Kafka for the partitions of all routes. A topic that does not
// exist is left out and logged once.
func (d *Drainer) positions(ctx context.Context) ([]position, error) {
	topics := d.routes.topics()
	meta, err := d.admin.Metadata(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("asking Kafka for topics: %w", err)
	}
	var found []string
	for _, topic := range topics {
		err := meta.Topics[topic].Err
		_, listed := meta.Topics[topic]
		if errors.Is(err, kerr.UnknownTopicOrPartition) || !listed {
			d.noteMissing(topic)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking Kafka for topic %s: %w", topic, err)
		}
		d.noteFound(topic)
		found = append(found, topic)
	}
	if len(found) == 0 {
		return nil, nil
	}
	starts, err := d.admin.ListStartOffsets(ctx, found...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking Kafka for first offsets: %w", err)
	}
	ends, err := d.admin.ListCommittedOffsets(ctx, found...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking Kafka for last offsets: %w", err)
	}
	offsets, err := d.offsets(ctx)
	if err != nil {
		return nil, err
	}
	var positions []position
	for _, topic := range found {
		for _, p := range meta.Topics[topic].Partitions.Sorted() {
			at := position{
				source: source{topic: topic, id: meta.Topics[topic].ID, partition: p.Partition, leader: p.Leader},
				bucket: d.routes.bucket(topic), committed: -1,
			}
			start, ok := starts.Lookup(topic, p.Partition)
			end, ok2 := ends.Lookup(topic, p.Partition)
			if p.Err != nil {
				return nil, fmt.Errorf("asking Kafka for %s/%d: %w", topic, p.Partition, p.Err)
			}
			if !ok || !ok2 {
				return nil, fmt.Errorf("asking Kafka for offsets of %s/%d: no answer", topic, p.Partition)
			}
			at.logStart, at.end = start.Offset, end.Offset
			if o, ok := offsets.Lookup(topic, p.Partition); ok {
				at.committed, at.metadata = o.At, o.Metadata
				if was, ok := parseProgress(o.At, o.Metadata); ok && at.anotherTopic(was.topic) {
					at.problem = madeAnew
				} else if at.committed > at.end {
					at.problem = fmt.Sprintf("the committed offset %d is behind the partition's end %d: it has lost records; drained again when the end has passed it, or when the offset of group %s is reset", at.committed, at.end, d.group)
				}
			}
			positions = append(positions, at)
		}
	}
	return positions, nil
}

// offsets asks Kafka for what the group has committed, which may be nothing.
func (d *Drainer) offsets(ctx context.Context) (kadm.OffsetResponses, error) {
	offsets, err := d.admin.FetchOffsets(ctx, d.group)
	if err == nil {
		err = offsets.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking Kafka for offsets of group %s: %w", d.group, err)
	}
	return offsets, nil
}

// recover finds out from the lake itself how far the partitions are that have
// records but no committed offset: those that are new, and, which is why it is
// done, all of them when Kafka has forgotten the group. It lists the topic's
// objects once.
func (d *Drainer) recover(ctx context.Context, positions []position) error {
	listed := make(map[string]map[int32]lake.Key)
	for i := range positions {
		p := &positions[i]
		if p.committed >= 0 || p.end <= p.logStart || p.problem != "" {
			continue
		}
		last := listed[p.topic]
		if last == nil {
			last = make(map[int32]lake.Key)
			listed[p.topic] = last
			for o, err := range d.store.List(ctx, p.bucket, lake.Root+p.topic+"/", "") {
				if err != nil {
					return err
				}
				k, err := lake.ParseKey(o.Key)
				if err != nil {
					continue
				}
				if l, ok := last[k.Partition]; !ok || k.Offset > l.Offset {
					last[k.Partition] = k
				}
			}
		}
		k, ok := last[p.partition]
		if !ok {
			continue
		}
		o, err := d.store.Stat(ctx, p.bucket, k.String())
		if err != nil {
			return err
		}
		if p.anotherTopic(o.Metadata[metaTopic]) {
			p.problem = madeAnew
			continue
		}
		// Chunks are committed one after the other: whoever wrote into the one that
		// begins at base had made all before it durable.
		base, err := strconv.ParseInt(o.Metadata[metaBase], 10, 64)
		if err != nil {
			base = k.Offset // not ours: the sink connector writes in order of offsets
		}
		if base > p.end {
			p.problem = fmt.Sprintf("the lake has records up to offset %d, the partition ends at %d: it is of another topic of this name, or has lost records", base, p.end)
			continue
		}
		p.recovered = base
		slog.Info("no committed offset, going on from what is in the lake",
			"topic", p.topic, "partition", p.partition, "offset", base, "object", k.String())
	}
	return nil
}

func (d *Drainer) noteMissing(topic string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.missing[topic] {
		d.missing[topic] = true
		slog.Warn("topic does not exist, nothing to drain from it until it does", "topic", topic)
	}
}

func (d *Drainer) noteFound(topic string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.missing[topic] {
		delete(d.missing, topic)
		slog.Info("topic exists now", "topic", topic)
	}
}

// plan says what there is to do for a partition, nil for nothing.
func (d *Drainer) plan(ctx context.Context, p position, began time.Time) (*partitionDrain, error) {
	log := slog.With("topic", p.topic, "partition", p.partition)
	d.mu.Lock()
	id := partitionID{p.topic, p.partition}
	state := d.states[id]
	if state == nil {
		state = &partitionState{}
		d.states[id] = state
	}
	at, lost := resume(d.layout, p.topicID(), p.committed, p.metadata, max(p.logStart, p.recovered))
	state.end, state.offset, state.problem = p.end, at.offset, p.problem
	d.mu.Unlock()
	if p.problem != "" {
		log.Error("not drained", "problem", p.problem)
		return nil, nil
	}
	if lost > 0 {
		d.mu.Lock()
		d.lost += lost
		d.mu.Unlock()
		log.Error("records were deleted from Kafka before they were drained: its retention is too short for how seldom the lake is woken",
			"from", p.committed, "to", p.logStart, "offsets", lost)
	}
	if at.offset >= p.end {
		if p.committed >= 0 && lost == 0 && began.Sub(state.committed) > recommitAfter {
			if err := d.commit(ctx, p.source, at); err != nil {
				return nil, err
			}
			state.committed = began
		}
		return nil, nil
	}
	if at.rebased && p.committed > 0 {
		log.Debug("new objects begin at the committed offset: the chunk's beginning is gone from the log, or the layout was changed",
			"offset", at.base)
	}
	state.lastDrain = began
	return &partitionDrain{
		Drainer: d, src: p.source, bucket: p.bucket, logStart: p.logStart, end: p.end,
		deadline: began.Add(d.maxDrain), state: state,
		progress: at, committed: max(p.committed, at.offset),
	}, nil
}

// commit stores the progress. It goes forward, except when another process has
// committed more since this drain began: then that one's offsets are drained
// again, to the same bytes. Kafka has no conditional commit that could exclude it.
func (d *Drainer) commit(ctx context.Context, src source, p progress) error {
	now, err := d.offsets(ctx)
	if err != nil {
		return err
	}
	if o, ok := now.Lookup(src.topic, src.partition); ok && o.At > p.offset {
		return nil
	}
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{
		Topic: src.topic, TopicID: src.id, Partition: src.partition,
		At: p.offset, LeaderEpoch: -1, Metadata: p.metadata(),
	})
	res, err := d.admin.CommitOffsets(ctx, d.group, offsets)
	if err == nil {
		err = res.Error()
	}
	if err != nil {
		return fmt.Errorf("committing offset %d of %s/%d: %w", p.offset, src.topic, src.partition, err)
	}
	return nil
}

// ensureBuckets makes the routes' buckets, once a process.
func (d *Drainer) ensureBuckets(ctx context.Context) error {
	for _, r := range d.routes {
		d.mu.Lock()
		b := d.buckets[r.Bucket]
		if b == nil {
			b = &bucketState{}
			d.buckets[r.Bucket] = b
		}
		ensured := b.ensured
		d.mu.Unlock()
		if ensured {
			continue
		}
		created, err := d.store.EnsureBucket(ctx, r.Bucket)
		if err != nil {
			return err
		}
		if created {
			slog.Info("created bucket", "bucket", r.Bucket)
		}
		d.mu.Lock()
		b.ensured = true
		d.mu.Unlock()
	}
	return nil
}

// forgetBucket makes the next drain look for the bucket again.
func (d *Drainer) forgetBucket(bucket string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.buckets[bucket].ensured = false
}

// untested tells, once a bucket, that it is not known yet if the store honours the
// conditions that keep two processes from undoing each other's writes.
func (d *Drainer) untested(bucket string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.buckets[bucket]
	if b.tested {
		return false
	}
	b.tested = true
	return true
}

// evict keeps the indexes within maxIndexEntries.
func (d *Drainer) evict() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var warm []*partitionState
	entries := 0
	for _, s := range d.states {
		if s.index != nil {
			warm = append(warm, s)
			entries += len(s.index.at)
		}
	}
	slices.SortFunc(warm, func(a, b *partitionState) int { return a.lastDrain.Compare(b.lastDrain) })
	for _, s := range warm {
		if entries <= maxIndexEntries {
			return
		}
		entries -= len(s.index.at)
		s.index = nil
	}
}

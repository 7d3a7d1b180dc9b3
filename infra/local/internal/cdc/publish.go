package cdc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/kafka"
)

const (
	// IDHeader is the record header that identifies a change: the same change has
	// the same id however often it is published. A KafkaSource makes the extension
	// kafkaheadercdcid of it.
	IDHeader = "cdc-id"

	newKeyHeader = "__debezium.newkey"
	oldKeyHeader = "__debezium.oldkey"

	// Records and their bytes that wait for Kafka at most.
	maxUnderWay = 8192
	maxBytes    = 32 << 20
)

// publisher writes records to the topic and knows which transactions are wholly
// acknowledged. Only acknowledged is safe for concurrent use.
type publisher struct {
	client *kgo.Client
	topic  string
	// id is the first part of every id: which server, database and slot.
	id string

	room chan struct{} // signalled when a record is acknowledged

	mu       sync.Mutex
	pending  []*transaction // in the order of their commits
	underWay int
	bytes    int
	failure  error
}

// transaction is one whose records are published.
type transaction struct {
	end  pglogrepl.LSN // known when committed
	open int           // records not acknowledged
	done bool          // all records were handed over
}

func newPublisher(options []kgo.Opt, topic, id string, lost func()) (*publisher, error) {
	client, err := kgo.NewClient(append(options,
		kgo.DefaultProduceTopic(topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.MaxBufferedRecords(maxUnderWay+1), // so that producing never blocks
		kgo.ProducerBatchMaxBytes(1<<20),
		kgo.ProducerLinger(5*time.Millisecond),
		kgo.RetryBackoffFn(func(n int) time.Duration { return min(50*time.Millisecond<<min(n, 4), 500*time.Millisecond) }),
		kgo.UnknownTopicRetries(-1),
		kgo.ProducerOnDataLossDetected(func(string, int32) { lost() }),
	)...)
	if err != nil {
		return nil, fmt.Errorf("making a Kafka client: %w", err)
	}
	return &publisher{client: client, topic: topic, id: id, room: make(chan struct{}, 1)}, nil
}

func (p *publisher) close() { p.client.Close() }

// begin opens a transaction; records of the one before must have been committed.
func (p *publisher) begin() *transaction {
	t := &transaction{}
	p.mu.Lock()
	p.pending = append(p.pending, t)
	p.mu.Unlock()
	return t
}

// publish hands a record over. It does not block.
func (p *publisher) publish(t *transaction, rec record, place string) {
	r := &kgo.Record{Key: rec.key, Value: rec.value, Headers: []kgo.RecordHeader{{Key: IDHeader, Value: []byte(p.id + " " + place)}}}
	if rec.newKey != nil {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: newKeyHeader, Value: rec.newKey})
	}
	if rec.oldKey != nil {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: oldKeyHeader, Value: rec.oldKey})
	}
	size := len(rec.key) + len(rec.value)
	p.mu.Lock()
	t.open++
	p.underWay++
	p.bytes += size
	p.mu.Unlock()
	// Kept until acknowledged whatever becomes of the session: closing the client
	// is what gives records up.
	p.client.Produce(context.Background(), r, func(_ *kgo.Record, err error) {
		p.mu.Lock()
		if err != nil && p.failure == nil {
			p.failure = fmt.Errorf("publishing a record: %w", err)
		}
		if err == nil {
			t.open--
		}
		p.underWay--
		p.bytes -= size
		p.mu.Unlock()
		select {
		case p.room <- struct{}{}:
		default:
		}
	})
}

// commit ends a transaction, whose last byte in the log is before end.
func (p *publisher) commit(t *transaction, end pglogrepl.LSN) {
	p.mu.Lock()
	t.end, t.done = end, true
	p.mu.Unlock()
}

// acknowledged is the end of the last transaction such that its records and all
// before it are in Kafka, 0 if there was none since the last call. idle tells that
// nothing is waited for.
func (p *publisher) acknowledged() (end pglogrepl.LSN, idle bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.pending) > 0 && p.pending[0].done && p.pending[0].open == 0 {
		end = p.pending[0].end
		p.pending = p.pending[1:]
	}
	return end, len(p.pending) == 0, p.failure
}

// full tells that no more should be handed over before room is signalled.
func (p *publisher) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure == nil && (p.underWay >= maxUnderWay || p.bytes >= maxBytes)
}

// flush waits until all records are acknowledged.
func (p *publisher) flush(ctx context.Context) error {
	if err := p.client.Flush(ctx); err != nil {
		return fmt.Errorf("waiting for Kafka: %w", err)
	}
	_, _, err := p.acknowledged()
	return err
}

// tailRecords is how far back the last record of a stream is looked for.
const tailRecords = 64

// prepare waits for Kafka, makes the topic if it is missing, with one partition, and
// finds the last record of this stream that the topic holds. Since records are
// acknowledged in order, the topic has all that are before it. known is false when
// the topic's end cannot tell: then some records may be published twice.
func (p *publisher) prepare(ctx context.Context, options []kgo.Opt) (last position, known bool, err error) {
	if err := kafka.EnsureTopics(ctx, p.client, map[string]int32{p.topic: 1}, -1); err != nil {
		return position{}, false, err
	}
	ends, err := kadm.NewClient(p.client).ListEndOffsets(ctx, p.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return position{}, false, fmt.Errorf("asking for the end of topic %s: %w", p.topic, err)
	}
	if len(ends[p.topic]) != 1 {
		return position{}, false, nil // no order among partitions
	}
	end := ends[p.topic][0].Offset
	if end == 0 {
		return position{}, false, nil
	}
	reader, err := kgo.NewClient(append(options, kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		p.topic: {0: kgo.NewOffset().At(max(0, end-tailRecords))},
	}))...)
	if err != nil {
		return position{}, false, fmt.Errorf("making a Kafka client: %w", err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for reached := int64(0); reached < end; {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return position{}, false, fmt.Errorf("reading the end of topic %s: %w", p.topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			reached = r.Offset + 1
			for _, h := range r.Headers {
				if h.Key != IDHeader {
					continue
				}
				if at, ok := p.parse(string(h.Value)); ok {
					last, known = at, true
				}
			}
		})
	}
	return last, known, nil
}

// parse reads the position out of an id of this stream.
func (p *publisher) parse(id string) (position, bool) {
	place, ours := strings.CutPrefix(id, p.id+" ")
	commit, number, ok := strings.Cut(place, "/")
	lsn, err1 := strconv.ParseUint(commit, 10, 64)
	n, err2 := strconv.Atoi(number)
	return position{pglogrepl.LSN(lsn), n}, ours && ok && err1 == nil && err2 == nil
}

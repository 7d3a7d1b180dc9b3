package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// underWay bounds the messages that wait for their acknowledgement; with a
// kilobyte each it also bounds the memory.
const underWay = 1 << 15

// SeqHeader is the record header that carries a message's number on request. A
// KafkaSource makes an extension attribute of it.
const SeqHeader = "loadgenseq"

// KafkaConfig says where and how records are written.
type KafkaConfig struct {
	// Options say how to reach the brokers.
	Options []kgo.Opt
	Topic   string
	// First is the number of the first message.
	First uint64
	// Compression is one of none, gzip, snappy, lz4, zstd.
	Compression string
	// NumberRecords puts each message's number into the header SeqHeader.
	NumberRecords bool
	Logger        *slog.Logger
}

// Kafka writes records with an idempotent producer that waits for all replicas and
// never stops retrying: a broker that is away for an hour delays the records, and
// neither loses nor doubles one.
type Kafka struct {
	*ledger
	first    uint64
	topic    string
	numbered bool
	client   *kgo.Client
	live     context.Context // of the records; cancelled to give them up
	giveUp   context.CancelFunc
	records  []kgo.Record // handed out one by one, allocated together
}

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// CheckCompression refuses what is no compression.
func CheckCompression(name string) error {
	if _, ok := codecs[name]; !ok {
		return fmt.Errorf("compression %q is none of none, gzip, snappy, lz4, zstd", name)
	}
	return nil
}

// NewKafka makes the producer. It does not connect: brokers that are away are
// waited for by the records.
func NewKafka(cfg KafkaConfig) (*Kafka, error) {
	if err := CheckCompression(cfg.Compression); err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(cfg.Options,
		kgo.DefaultProduceTopic(cfg.Topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(codecs[cfg.Compression]),
		// One more than the ledger lets through, so that producing never blocks.
		kgo.MaxBufferedRecords(underWay+1),
		kgo.ProducerLinger(5*time.Millisecond),
		// A broker that comes back is noticed soon.
		kgo.RetryBackoffFn(func(n int) time.Duration { return min(50*time.Millisecond<<min(n, 4), 500*time.Millisecond) }),
		// A broker that has just started may not know its topics yet.
		kgo.UnknownTopicRetries(-1),
		kgo.ProducerOnDataLossDetected(func(topic string, partition int32) {
			cfg.Logger.Warn("the broker lost what it knew of this producer; the partition may miss records or hold some twice",
				"topic", topic, "partition", partition)
		}),
	)...)
	if err != nil {
		return nil, fmt.Errorf("making a Kafka producer: %w", err)
	}
	k := &Kafka{ledger: newLedger(cfg.First, underWay), first: cfg.First, topic: cfg.Topic,
		numbered: cfg.NumberRecords, client: client}
	k.live, k.giveUp = context.WithCancel(context.Background())
	return k, nil
}

// Send writes a record; its partition follows from the key as in Kafka's own
// clients.
func (k *Kafka) Send(ctx context.Context, m Message) error {
	if err := k.open(ctx, m.Seq); err != nil {
		return err
	}
	if len(k.records) == 0 {
		k.records = make([]kgo.Record, 512)
	}
	r := &k.records[0]
	k.records = k.records[1:]
	r.Key, r.Value = m.Key, m.Value
	if k.numbered {
		r.Headers = []kgo.RecordHeader{{Key: SeqHeader, Value: strconv.AppendUint(nil, m.Seq, 10)}}
	}
	seq := m.Seq
	k.client.Produce(k.live, r, func(_ *kgo.Record, err error) {
		switch {
		case err == nil:
			k.delivered(seq)
		case errors.Is(err, context.Canceled) || errors.Is(err, kgo.ErrClientClosed):
			// Given up: it may have been written all the same.
		default:
			k.refuse(seq, err.Error())
		}
	})
	return nil
}

// Close flushes.
func (k *Kafka) Close(ctx context.Context) error {
	err := k.client.Flush(ctx)
	k.giveUp()
	k.client.Close()
	if err != nil {
		return fmt.Errorf("writing what is left to topic %s: %w", k.topic, err)
	}
	return nil
}

// Check asks for an answer of any broker.
func (k *Kafka) Check(ctx context.Context) error { return k.client.Ping(ctx) }

// Outcome counts acknowledgements.
func (k *Kafka) Outcome() Outcome { return k.outcome(k.first) }

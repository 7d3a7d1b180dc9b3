package embedkafka

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// soon makes a client try again at once, for the tests to be quick.
var soon = kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond })

// readAll returns the values of a topic's partition, in order.
func (b *broker) readAll(topic string, partition int32) []string {
	b.t.Helper()
	cl := b.client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}),
		kgo.FetchMaxWait(100*time.Millisecond),
	)
	ends, err := kadm.NewClient(cl).ListEndOffsets(b.t.Context(), topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	end, _ := ends.Lookup(topic, partition)
	values := []string{}
	for int64(len(values)) < end.Offset {
		fetches := cl.PollFetches(b.t.Context())
		if err := fetches.Err(); err != nil {
			b.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func numbers(n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = strconv.Itoa(i)
	}
	return values
}

func createTopic(t *testing.T, cl *kgo.Client, topic string, partitions int32) {
	t.Helper()
	resp, err := kadm.NewClient(cl).CreateTopic(t.Context(), partitions, 1, nil, topic)
	if err := cmp.Or(err, resp.Err); err != nil {
		t.Fatal(err)
	}
}

// A producer at full speed does not notice, in what it leaves behind, that the
// broker was killed under it again and again.
func TestIdempotentRecordsAreThereExactlyOnceAfterKills(t *testing.T) {
	const (
		partitions = 6
		kills      = 8
	)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("EMBEDKAFKA_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	b := startBroker(t)
	cl := b.client(
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(time.Millisecond),
		kgo.ProducerBatchMaxBytes(16<<10),
		soon,
		kgo.MetadataMinAge(10*time.Millisecond),
	)
	createTopic(t, cl, "events", partitions)

	ctx, stop := context.WithCancel(t.Context())
	var (
		produced [partitions]int
		acked    atomic.Int64
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		for p := 0; ctx.Err() == nil; p = (p + 1) % partitions {
			r := &kgo.Record{Topic: "events", Partition: int32(p), Value: []byte(strconv.Itoa(produced[p]))}
			produced[p]++
			// The context of the test, not ctx: what was begun is brought to its end.
			cl.Produce(t.Context(), r, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("producing: %v", err)
				}
				acked.Add(1)
			})
		}
	}()
	for range kills {
		before := acked.Load()
		more := random.Int64N(30_000)
		eventually(t, "records are acknowledged", func() bool { return acked.Load() > before+more })
		time.Sleep(time.Duration(random.Int64N(int64(5 * time.Millisecond)))) // any moment is as good
		b.kill()
		b.start()
	}
	stop()
	<-done
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	total := 0
	for p, n := range produced {
		total += n
		got := b.readAll("events", int32(p))
		for i, value := range got {
			if value != strconv.Itoa(i) {
				t.Errorf("partition %d, offset %d holds record %s", p, i, value)
				break
			}
		}
		if len(got) != n {
			t.Errorf("partition %d holds %d records of %d", p, len(got), n)
		}
	}
	t.Logf("%d records, %d kills", total, kills)
}

// holdingProxy stands between clients and a broker. Told to hold, it lets requests
// pass and keeps the answers.
type holdingProxy struct {
	addr string
	hold atomic.Bool
}

func startProxy(t *testing.T, broker string) *holdingProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &holdingProxy{addr: l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", broker)
			if err != nil {
				client.Close()
				continue
			}
			go func() { _, _ = io.Copy(server, client); server.Close() }()
			go func() {
				defer client.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := server.Read(buf)
					if err != nil {
						return
					}
					if !p.hold.Load() {
						_, _ = client.Write(buf[:n])
					}
				}
			}()
		}
	}()
	return p
}

// The moment that matters: the batch is in the log, the answer is not out.
func TestABatchThatWasWrittenButNotAnsweredIsNotWrittenAgain(t *testing.T) {
	b := newBroker(t)
	proxy := startProxy(t, fmt.Sprintf("127.0.0.1:%d", b.port))
	b.advertise = proxy.addr
	b.start()
	cl := b.client(kgo.ProducerLinger(0), soon, kgo.MetadataMinAge(10*time.Millisecond))
	createTopic(t, cl, "events", 1)
	produce := func(i int) <-chan error {
		done := make(chan error, 1)
		cl.Produce(t.Context(), &kgo.Record{Topic: "events", Value: []byte(strconv.Itoa(i))}, func(r *kgo.Record, err error) {
			if err == nil && r.Offset != int64(i) {
				err = fmt.Errorf("record %d was told offset %d", i, r.Offset)
			}
			done <- err
		})
		return done
	}
	await := func(done <-chan error) {
		t.Helper()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	segment := filepath.Join(b.dir, "partitions", "events-0", "0.dat")
	size := func() int64 {
		info, err := os.Stat(segment)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	const rounds = 3
	for round := range rounds {
		await(produce(2 * round))
		before := size()
		proxy.hold.Store(true)
		done := produce(2*round + 1)
		eventually(t, "the batch is in the log", func() bool { return size() > before })
		b.kill()
		proxy.hold.Store(false)
		b.start()
		await(done)
	}
	if diff := gocmp.Diff(numbers(2*rounds), b.readAll("events", 0)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// testBatch is a batch of one record for each value.
func testBatch(producer int64, epoch int16, firstSeq int32, values ...string) []byte {
	var records []byte
	for i, value := range values {
		r := kmsg.Record{OffsetDelta: int32(i), Value: []byte(value)}
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		records = r.AppendTo(records)
	}
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(len(values) - 1),
		ProducerID: producer, ProducerEpoch: epoch, FirstSequence: firstSeq,
		NumRecords: int32(len(values)), Records: records,
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

type answer struct {
	Err    error
	Offset int64
}

// produceRaw sends batches, one to each partition of a-b.c, in one request.
func produceRaw(t *testing.T, cl *kgo.Client, batches ...[]byte) []answer {
	t.Helper()
	const topic = "a-b.c"
	req := kmsg.NewProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	meta, err := kadm.NewClient(cl).Metadata(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	rt.TopicID = meta.Topics[topic].ID
	for p, batch := range batches {
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = int32(p), batch
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	resp, err := cl.Broker(0).RetriableRequest(t.Context(), &req)
	if err != nil {
		t.Fatal(err)
	}
	answers := make([]answer, len(batches))
	for _, p := range resp.(*kmsg.ProduceResponse).Topics[0].Partitions {
		answers[p.Partition] = answer{kerr.ErrorForCode(p.ErrorCode), p.BaseOffset}
	}
	return answers
}

func newProducerID(t *testing.T, cl *kgo.Client) int64 {
	t.Helper()
	req := kmsg.NewInitProducerIDRequest()
	resp, err := req.RequestWith(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	return resp.ProducerID
}

// What the broker knows of producers after a kill is what it knew before: the last
// five batches, the next sequence number and the epoch, in each partition.
func TestProducersAreKnownAfterAKill(t *testing.T) {
	b := startBroker(t)
	cl := b.client()
	createTopic(t, cl, "a-b.c", 2)
	id := newProducerID(t, cl)
	for i := range int32(7) {
		produceRaw(t, cl, testBatch(id, 0, 2*i, "x", "y"))
	}
	// A producer that the broker gave no id, in a later epoch.
	const other = 42
	produceRaw(t, cl, testBatch(other, 0, 0, "old"))
	produceRaw(t, cl, testBatch(other, 3, 0, "new"))

	b.kill()
	// What a kill may leave: the beginning of a batch, and of an entry.
	tear(t, filepath.Join(b.dir, "partitions", "a-b.c-0", "0.dat"), testBatch(id, 0, 14, "torn", "off"), 70)
	tear(t, filepath.Join(b.dir, "pids.log"), []byte{40, 0, 0, 0, 1, 2, 3, 4, 1, 0, '{'}, 11)
	b.start()

	got := map[string][]answer{
		// One request with a batch that is there and one that is not.
		"the last batch, and a new one elsewhere": produceRaw(t, cl, testBatch(id, 0, 12, "x", "y"), testBatch(id, 0, 0, "z")),
		"the fifth last batch":                    produceRaw(t, cl, testBatch(id, 0, 4, "x", "y")),
		"the torn batch":                          produceRaw(t, cl, testBatch(id, 0, 14, "torn", "off")),
		"a batch after a gap":                     produceRaw(t, cl, testBatch(id, 0, 99, "x")),
		"the later epoch's batch":                 produceRaw(t, cl, testBatch(other, 3, 0, "new")),
		"a batch of the earlier epoch":            produceRaw(t, cl, testBatch(other, 0, 0, "old")),
	}
	want := map[string][]answer{
		"the last batch, and a new one elsewhere": {{nil, 12}, {nil, 0}},
		"the fifth last batch":                    {{nil, 4}},
		"the torn batch":                          {{nil, 16}},
		"a batch after a gap":                     {{Err: kerr.OutOfOrderSequenceNumber}},
		"the later epoch's batch":                 {{nil, 15}},
		"a batch of the earlier epoch":            {{Err: kerr.InvalidProducerEpoch}},
	}
	sameError := gocmp.Comparer(func(a, b *kerr.Error) bool { return a.Code == b.Code })
	if diff := gocmp.Diff(want, got, sameError); diff != "" {
		t.Errorf("answers after the kill (-want +got):\n%s", diff)
	}

	// Ids that were given out after the torn entry are known at the next start,
	// and what was accepted since counts.
	later := newProducerID(t, cl)
	produceRaw(t, cl, testBatch(later, 0, 0, "later"))
	b.kill()
	b.start()
	again := [][]answer{
		produceRaw(t, cl, testBatch(later, 0, 0, "later"), testBatch(id, 0, 0, "z")),
		produceRaw(t, cl, testBatch(id, 0, 14, "torn", "off")),
	}
	if diff := gocmp.Diff([][]answer{{{nil, 18}, {nil, 0}}, {{nil, 16}}}, again, sameError); diff != "" {
		t.Errorf("answers after the second kill (-want +got):\n%s", diff)
	}
	if got := b.endOffset("a-b.c"); got != 19 {
		t.Errorf("next offset: got %d, want 19", got)
	}
}

func tear(t *testing.T, path string, data []byte, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data[:n]); err != nil {
		t.Fatal(err)
	}
}

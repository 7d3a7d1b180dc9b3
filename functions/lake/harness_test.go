package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

// world is a Kafka and an S3 that are real but for their size.
type world struct {
	t       testing.TB
	cluster *kfake.Cluster // nil when the Kafka is another one
	brokers []string
	client  *kgo.Client // of the test, to produce and look
	admin   *kadm.Client
	s3      lake.Config
	store   *lake.Store
}

// realKafka is the environment variable that names the brokers of another Kafka to
// test against, comma separated. Tests that need kfake's faults are then skipped.
const realKafka = "TEST_KAFKA_BROKERS"

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{t: tb, s3: laketest.Start(tb)}
	var err error
	if brokers := os.Getenv(realKafka); brokers != "" {
		w.brokers = strings.Split(brokers, ",")
	} else {
		if w.cluster, err = kfake.NewCluster(kfake.NumBrokers(1)); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(w.cluster.Close)
		w.brokers = w.cluster.ListenAddrs()
	}
	w.client = w.newClient(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	w.admin = kadm.NewClient(w.client)
	if w.store, err = w.s3.Connect(); err != nil {
		tb.Fatal(err)
	}
	// A Kafka that was never used makes its group coordinator at the first question.
	w.eventually(func() bool {
		_, err := w.admin.FetchOffsets(tb.Context(), "any")
		return !errors.Is(err, kerr.CoordinatorNotAvailable)
	})
	return w
}

// eventually waits for a condition.
func (w *world) eventually(holds func() bool) {
	w.t.Helper()
	timeout := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-timeout:
			w.t.Fatal("the condition does not come true")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// needFaults skips the test where faults cannot be injected into Kafka.
func (w *world) needFaults() {
	w.t.Helper()
	if w.cluster == nil {
		w.t.Skip("needs kfake, " + realKafka + " names another Kafka")
	}
}

func (w *world) newClient(opts ...kgo.Opt) *kgo.Client {
	w.t.Helper()
	opts = append(opts, clientOptions...)
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(w.brokers...))...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	return client
}

func (w *world) topic(partitions int32) string {
	w.t.Helper()
	name := laketest.Bucket() + ".topic"
	w.create(name, partitions)
	return name
}

func (w *world) create(name string, partitions int32) {
	w.t.Helper()
	// The records are older than what a Kafka keeps by default.
	forever := "-1"
	if _, err := w.admin.CreateTopic(w.t.Context(), partitions, 1, map[string]*string{"retention.ms": &forever}, name); err != nil {
		w.t.Fatal(err)
	}
}

// config drains one topic into a bucket, with chunks small enough to see them.
func config(topic, bucket string) Config {
	return Config{
		Routes: Routes{{topic, bucket}}, Group: "millrace-lake-" + bucket,
		Chunk: 10, ChunkBytes: 1 << 20, DedupWindow: 50, Parallel: 4, MaxDrain: time.Minute,
	}
}

// drainer gives a Drainer of its own clients: a process, in a way.
func (w *world) drainer(c Config) *Drainer { return w.drainerOn(c, w.store) }

func (w *world) drainerOn(c Config, store *lake.Store) *Drainer {
	w.t.Helper()
	d, err := NewDrainer(w.newClient(), store, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) drain(d *Drainer) {
	w.t.Helper()
	if err := d.Drain(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) produce(topic string, records ...*kgo.Record) {
	w.t.Helper()
	for _, r := range records {
		r.Topic = topic
	}
	if err := w.client.ProduceSync(w.t.Context(), records...).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

// bucket gives all objects' texts by key.
func (w *world) bucket(name string) map[string]string {
	w.t.Helper()
	objects := map[string]string{}
	for o, err := range w.store.List(w.t.Context(), name, "", "") {
		if err != nil {
			w.t.Fatal(err)
		}
		data, _, err := w.store.Read(w.t.Context(), name, o.Key, 1<<30)
		if err != nil {
			w.t.Fatal(err)
		}
		objects[o.Key] = string(data)
	}
	return objects
}

// ids gives how often each event is in a bucket, and each partition/offset.
func (w *world) ids(name string) (events, offsets map[string]int) {
	w.t.Helper()
	events, offsets = map[string]int{}, map[string]int{}
	for line, err := range w.store.Records(w.t.Context(), name, lake.Root, "") {
		if err != nil {
			w.t.Fatal(err)
		}
		var v struct {
			Kafka struct {
				Partition int32
				Offset    int64
				ID        string
			} `json:"_kafka"`
		}
		if err := json.Unmarshal(line.JSON, &v); err != nil {
			w.t.Fatal(err)
		}
		events[v.Kafka.ID]++
		offsets[fmt.Sprintf("%d/%d", v.Kafka.Partition, v.Kafka.Offset)]++
	}
	return events, offsets
}

func (w *world) committed(c Config, topic string, partition int32) int64 {
	w.t.Helper()
	offsets, err := w.admin.FetchOffsets(w.t.Context(), c.Group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		w.t.Fatal(err)
	}
	o, ok := offsets.Lookup(topic, partition)
	if !ok {
		return -1
	}
	return o.At
}

var noon = time.Date(2025, 1, 7, 12, 0, 0, 0, time.UTC)

// record is an event as a KafkaSink writes it.
func record(partition int32, id string, at time.Time, value string) *kgo.Record {
	r := &kgo.Record{Partition: partition, Timestamp: at, Value: []byte(value)}
	if id != "" {
		r.Headers = []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")},
			{Key: "ce_id", Value: []byte(id)},
			{Key: "ce_source", Value: []byte("/test")},
			{Key: "ce_type", Value: []byte("t")},
		}
	}
	return r
}

// randomRecord draws from few ids, so that duplicates come at all distances, and
// from a time that mostly moves on but sometimes jumps.
func randomRecord(rng *rand.Rand, partition int32, n int) *kgo.Record {
	at := noon.Add(time.Duration(n) * time.Minute)
	switch rng.IntN(10) {
	case 0:
		at = at.Add(-time.Duration(rng.IntN(300)) * time.Minute)
	case 1:
		at = at.Add(time.Duration(rng.IntN(300)) * time.Minute)
	case 2:
		if rng.IntN(10) == 0 {
			at = time.UnixMilli(-1)
		}
	}
	id := fmt.Sprint("e", n)
	switch rng.IntN(6) {
	case 0:
		id = fmt.Sprint("e", max(0, n-rng.IntN(120)))
	case 1:
		id = ""
	}
	value := fmt.Sprintf(`{"n":%d}`, n)
	switch rng.IntN(12) {
	case 0:
		value = fmt.Sprintf("{\n\"n\":%d,\"text\":\"%0*d\"}", n, rng.IntN(2000), n)
	case 1:
		value = "no JSON"
	case 2:
		r := record(partition, id, at, "")
		r.Value, r.Key = nil, []byte("key")
		return r
	}
	return record(partition, id, at, value)
}

// flaky is an S3 that goes away at a given request, with or without having done
// what was asked: what a process sees that is killed around a write.
type flaky struct {
	puts   atomic.Int64 // until it happens
	after  atomic.Bool  // whether the write is done
	onFail atomic.Value // func()
}

func (w *world) flaky() (*flaky, *lake.Store) {
	w.t.Helper()
	f := &flaky{}
	f.heal()
	proxy := w.forward()
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && f.puts.Add(-1) < 0 {
			if f.after.Load() {
				proxy.ServeHTTP(httptest.NewRecorder(), r)
			}
			f.onFail.Load().(func())()
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(rw, r)
	}))
	w.t.Cleanup(server.Close)
	c := w.s3
	c.Endpoint = server.URL
	store, err := c.Connect()
	if err != nil {
		w.t.Fatal(err)
	}
	return f, store
}

// forward passes requests on to the store.
func (w *world) forward() http.Handler {
	w.t.Helper()
	target, err := url.Parse(w.s3.Endpoint)
	if err != nil {
		w.t.Fatal(err)
	}
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
}

// failAfter makes writes fail, and calls die, once n have succeeded.
func (f *flaky) failAfter(n int64, done bool, die context.CancelFunc) {
	f.after.Store(done)
	f.onFail.Store(func() { die() })
	f.puts.Store(n)
}

func (f *flaky) heal() { f.puts.Store(1 << 40) }

// seed gives a random source, from a fixed seed unless SEED says otherwise.
func seed(tb testing.TB, n uint64) *rand.Rand {
	tb.Helper()
	if s := os.Getenv("SEED"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			tb.Fatalf("SEED: %v", err)
		}
	}
	return rand.New(rand.NewPCG(n, 0))
}

// rounds says how many random logs a test tries: n unless ROUNDS says otherwise.
func rounds(n int) int {
	if r, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil {
		return r
	}
	return n
}

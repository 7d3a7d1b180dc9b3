package eventing

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

const pipelineManifest = sourceManifest + `apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: validate, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: ordered}}
spec:
  broker: default
  filters: [{exact: {type: dev.knative.kafka.event}}, {suffix: {source: "#raw"}}]
  subscriber: {uri: "%s"}
  delivery: {retry: 3, backoffDelay: PT0.1S}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: validated, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: ordered}}
spec:
  broker: default
  filters: [{exact: {type: validated}}]
  subscriber:
    ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: validated}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: invalid, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: ordered}}
spec:
  broker: default
  filters: [{exact: {type: invalid}}]
  subscriber:
    ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: validated}
---
apiVersion: eventing.knative.dev/v1alpha1
kind: KafkaSink
metadata: {name: validated, namespace: m}
spec: {topic: validated, contentMode: binary}
`

const rawRecord = `{"schema":{"type":"struct","fields":[{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},{"name":"product_id","type":"long"},{"name":"category_id","type":"long"},{"name":"category_code","type":["null","string"],"default":null},{"name":"brand","type":["null","string"],"default":null},{"name":"price","type":"double"},{"name":"user_id","type":"long"},{"name":"user_session","type":"string"}]},"payload":{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,"category_id":2053013558920217191,"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"}}`

// echo answers every event with one reply, as cheaply as a function could.
func echo(w http.ResponseWriter, r *http.Request) {
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var ms []events.Message
	var err error
	if r.Header.Get("Content-Type") == mediaBatch {
		ms, err = events.ParseBatch(body)
	} else {
		ms = make([]events.Message, 1)
		ms[0], err = events.FromHTTP(r.Header, body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for i := range ms {
		m := &ms[i]
		m.Set("id", events.ReplyID(m.Get("source"), m.Get("id"), "echo"))
		m.Set("source", "/echo")
		m.Set("type", "validated")
	}
	w.Header().Set("Content-Type", mediaBatch)
	_, _ = w.Write(events.AppendBatch(nil, ms))
}

// BenchmarkPipeline is the way of a raw record: topic, KafkaSource, Broker, Trigger,
// function, reply, Broker, Trigger, KafkaSink, topic. Kafka (on disk), the engine
// and the function share this process.
func BenchmarkPipeline(b *testing.B) {
	b.Run("3 Triggers", func(b *testing.B) { benchmarkPipeline(b, 0, 0) })
	// Triggers on the same Broker whose filter nothing passes.
	b.Run("9 Triggers", func(b *testing.B) { benchmarkPipeline(b, 6, 0) })
	b.Run("at 5,000 a second", func(b *testing.B) { benchmarkPipeline(b, 0, 5000) })
}

// benchmarkPipeline sends b.N records at the rate, 0 being as fast as possible, past
// so many Triggers that have no interest in them.
func benchmarkPipeline(b *testing.B, idle, rate int) {
	b.Helper()
	cluster := newCluster(b, kfake.DataDir(b.TempDir()))
	client := newClient(b, cluster, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	if err := kafka.EnsureTopics(b.Context(), client, map[string]int32{"raw": 12}, 1); err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(echo))
	b.Cleanup(server.Close)
	manifest := fmt.Sprintf(pipelineManifest, server.URL)
	for i := range idle {
		manifest += fmt.Sprintf("---\napiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: idle-%d, namespace: m}\nspec: {broker: default, filters: [{exact: {type: none}}], subscriber: {uri: %q}}\n", i, server.URL)
	}
	e := startEngine(b, cluster, manifest, func(c *Config) {
		c.Partitions, c.CommitInterval, c.Logger = 12, 0, slog.New(slog.DiscardHandler)
	})
	sink := newClient(b, cluster, kgo.ConsumeTopics("validated"), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	b.SetBytes(int64(len(rawRecord)))
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	go func() {
		began := time.Now()
		for i := range b.N {
			if rate > 0 && i%10 == 0 {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
			}
			client.Produce(context.Background(), &kgo.Record{Topic: "raw", Key: []byte("session-" + strconv.Itoa(i%5000)), Value: []byte(rawRecord)}, nil)
		}
	}()
	latencies := make([]time.Duration, 0, b.N)
	for len(latencies) < b.N {
		fetches := sink.PollFetches(b.Context())
		if b.Context().Err() != nil {
			b.Fatal(e.Stats())
		}
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) {
			m, _ := kafka.FromRecord(r)
			at, err := time.Parse(time.RFC3339, m.Get("time")) // of the raw record
			if err != nil {
				b.Fatal(err)
			}
			latencies = append(latencies, now.Sub(at))
		})
	}
	b.StopTimer()
	if rate > 0 {
		slices.Sort(latencies)
		b.ReportMetric(float64(latencies[len(latencies)/2].Milliseconds()), "p50-ms")
		b.ReportMetric(float64(latencies[len(latencies)*99/100].Milliseconds()), "p99-ms")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	b.ReportMetric(float64(mem.Sys)/(1<<20), "MiB")
}

// cpuTime is what this process has used. Wall time says little on a busy machine.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkFilter(b *testing.B) {
	manifest := brokerManifest + strings.TrimPrefix(`---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: m}
spec:
  broker: default
  subscriber: {uri: http://a.test}
  filters: [%s]
`, "---\n")
	m := message("partition:3/offset:1234", "dev.knative.kafka.event", "/apis/v1/namespaces/m/kafkasources/raw#raw", "{}")
	for name, filter := range map[string]string{
		"exact": "{exact: {type: other}}",
		"any":   `{any: [{all: [{exact: {type: dev.knative.kafka.event}}, {any: [{suffix: {source: "#x"}}, {suffix: {source: "#raw"}}]}]}, {exact: {type: other}}]}`,
		"cesql": `{cesql: "type LIKE 'dev.%' AND source = 'x'"}`,
	} {
		g, err := Load(write(b, fmt.Sprintf(manifest, filter)))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g.Triggers[0].Filter.Match(&m)
			}
		})
	}
}

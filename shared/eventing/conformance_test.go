package eventing

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/eventing/conformance"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

func TestConformance(t *testing.T) {
	conformance.Test(t, engineDriver{})
}

// engineDriver runs the table against an Engine on a Kafka in this process.
type engineDriver struct{}

func (engineDriver) Has(conformance.Feature) bool { return true }

func (engineDriver) Start(t *testing.T, c conformance.Case) conformance.Run {
	t.Helper()
	cluster := newCluster(t)
	topic := "conformance"
	if err := kafka.EnsureTopics(t.Context(), newClient(t, cluster), map[string]int32{topic: 3}, 1); err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"namespace": "m", "topic": topic, "kafka": cluster.ListenAddrs()[0]}
	r := &engineRun{subscribers: map[string]*conformance.Subscriber{}, values: values, client: newClient(t, cluster)}
	for name, script := range c.Subscribers {
		s := conformance.NewSubscriber(script)
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		r.subscribers[name], values[name] = s, server.URL
	}
	manifests := brokerManifest + strings.TrimPrefix(conformance.Expand(c.Manifests, values), "---")
	r.engine = startEngine(t, cluster, manifests, nil)
	return r
}

type engineRun struct {
	engine      *running
	client      *kgo.Client
	subscribers map[string]*conformance.Subscriber
	values      map[string]string
	produced    int
}

func (r *engineRun) Send(ctx context.Context, e conformance.Event) error {
	m := message(e.ID, e.Type, e.Source, e.Data)
	m.Set("subject", e.Subject)
	m.Set("datacontenttype", "application/json")
	for name, value := range e.Extensions {
		m.Set(name, value)
	}
	return r.engine.send(ctx, m)
}

func (r *engineRun) Produce(ctx context.Context, rec conformance.Record) error {
	out := &kgo.Record{Topic: conformance.Expand(rec.Topic, r.values), Value: []byte(rec.Value)}
	if rec.Key != "" {
		out.Key = []byte(rec.Key)
	}
	r.produced++
	return r.client.ProduceSync(ctx, out).FirstErr()
}

func (r *engineRun) Deliveries(_ context.Context, name string) ([]conformance.Delivery, error) {
	got, _ := r.subscribers[name].Deliveries()
	return got, nil
}

func (r *engineRun) Settle(ctx context.Context) error {
	return r.engine.settle(ctx, r.produced)
}

// settle returns when everything that was written has been read and nothing is under
// way. It cannot say so of an engine that has just begun to read.
func (e *running) settle(ctx context.Context, produced int) error {
	return eventually(ctx, func() error {
		s := e.Stats()
		written := map[string]uint64{}
		for _, sink := range s.Sinks {
			written[sink.Kind] += sink.Written
		}
		// What the sources and Triggers have read has to be all that there is.
		var source uint64
		for _, f := range s.Sources {
			source += f.Received
			if f.InFlight != 0 || f.Lag != 0 {
				return fmt.Errorf("%s is not done: %+v", f.Name, f)
			}
		}
		if len(s.Sources) > 0 && source < uint64(produced)+written["KafkaSink"] {
			return fmt.Errorf("the sources have read %d of %d", source, uint64(produced)+written["KafkaSink"])
		}
		for _, f := range s.Triggers {
			if f.Received < written["Broker"] || f.InFlight != 0 || f.Lag != 0 {
				return fmt.Errorf("Trigger %s is not done: %+v of %v", f.Name, f, written)
			}
		}
		again := e.Stats()
		if fmt.Sprint(s) != fmt.Sprint(again) {
			return fmt.Errorf("still moving")
		}
		return nil
	})
}

// eventually waits until f returns nil and gives its last error when ctx ends first,
// or when it takes far longer than it may.
func eventually(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func message(id, typ, source, data string) events.Message {
	m := events.Message{}
	m.Set("specversion", "1.0")
	m.Set("id", id)
	m.Set("source", source)
	m.Set("type", typ)
	if data != "" {
		m.Data = []byte(data)
	}
	return m
}

func newCluster(tb testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	tb.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100 * time.Millisecond),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}),
	}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cluster.Close)
	return cluster
}

func newClient(tb testing.TB, cluster *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ProducerLinger(0)}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client
}

// running is an engine that runs, with its ingress served.
type running struct {
	*Engine
	ingress string
	stop    context.CancelFunc
	done    chan error
}

func startEngine(tb testing.TB, cluster *kfake.Cluster, manifests string, adjust func(*Config)) *running {
	tb.Helper()
	g, err := Load(write(tb, manifests))
	if err != nil {
		tb.Fatal(err)
	}
	c := Config{
		Graph: g, Kafka: kafka.Config{Brokers: cluster.ListenAddrs()}, Partitions: 4,
		CommitInterval: 10 * time.Millisecond, DrainTimeout: 5 * time.Second,
		KafkaOptions: []kgo.Opt{kgo.MetadataMinAge(10 * time.Millisecond)},
		Logger:       slog.New(slog.NewTextHandler(testLog{tb}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if adjust != nil {
		adjust(&c)
	}
	e, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	server := httptest.NewServer(e.Handler())
	tb.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Engine: e, ingress: server.URL, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- e.Run(ctx) }()
	tb.Cleanup(func() { r.close(tb) })
	if err := eventually(tb.Context(), func() error { return e.Ready(tb.Context()) }); err != nil {
		tb.Fatal(err)
	}
	return r
}

// close ends the engine as a signal would; it may be called again.
func (e *running) close(tb testing.TB) {
	tb.Helper()
	e.stop()
	if err, ok := <-e.done; ok {
		close(e.done)
		if err != nil {
			tb.Errorf("Run: %v", err)
		}
	}
}

// crash ends the engine as a kill would.
func (e *running) crash(tb testing.TB) {
	tb.Helper()
	e.kill()
	e.close(tb)
}

func (e *running) send(ctx context.Context, ms ...events.Message) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.ingress+"/m/default", nil)
	if err != nil {
		return err
	}
	var body []byte
	if len(ms) == 1 {
		events.SetHTTP(req.Header, &ms[0])
		body = ms[0].Data
	} else {
		req.Header.Set("Content-Type", mediaBatch)
		body = events.AppendBatch(nil, ms)
	}
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusAccepted {
		return fmt.Errorf("%s: %s", res.Status, answer)
	}
	return nil
}

// testLog is the test's log; what comes after its end is dropped.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

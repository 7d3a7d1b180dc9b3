package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kelseyhightower/envconfig"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// environment makes the relay's settings of variables.
func environment(tb testing.TB, cluster *kfake.Cluster, pairs ...string) Config {
	tb.Helper()
	env := map[string]string{"KAFKA_BROKERS": strings.Join(cluster.ListenAddrs(), ",")}
	for i := 0; i < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	for name, value := range env {
		tb.Setenv(name, value)
	}
	var c Config
	if err := envconfig.Process("", &c); err != nil {
		tb.Fatal(err)
	}
	return c
}

func newCluster(tb testing.TB, topics ...string) *kfake.Cluster {
	tb.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, topics...), kfake.GroupMinSessionTimeout(100*time.Millisecond),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cluster.Close)
	return cluster
}

func newClient(tb testing.TB, cluster *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ProducerLinger(0))...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client
}

// start serves the relay and returns its address and what ends it, as SIGTERM would.
func start(tb testing.TB, c Config) (base string, stop func()) {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, c, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("the relay ended with %v", err)
		}
	})
	tb.Cleanup(stop)
	base = "http://" + l.Addr().String()
	eventually(tb, func() error {
		status, body := get(tb, base+"/readyz")
		if status != http.StatusOK {
			return fmt.Errorf("not ready: %d %s", status, body)
		}
		return nil
	})
	return base, stop
}

func get(tb testing.TB, url string) (int, string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

func eventually(tb testing.TB, f func() error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatal(err)
		case <-tick.C:
		}
	}
}

// function replies to every event with one of type even or odd by its number, and
// refuses the number 13.
type function struct {
	mu      sync.Mutex
	sources []string
	batches int
}

func (f *function) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var ms []events.Message
	if r.Header.Get("Content-Type") == "application/cloudevents-batch+json" {
		ms, err = events.ParseBatch(body)
	} else {
		ms = make([]events.Message, 1)
		ms[0], err = events.FromHTTP(r.Header, body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	replies := make([]events.Message, len(ms))
	for i := range ms {
		n, err := strconv.Atoi(string(ms[i].Data))
		if err != nil || n == 13 {
			http.Error(w, "no number that I like: "+string(ms[i].Data), http.StatusUnprocessableEntity)
			return
		}
		m := &replies[i]
		m.Set("specversion", "1.0")
		m.Set("id", events.ReplyID(ms[i].Get("source"), ms[i].Get("id"), "test"))
		m.Set("source", "/test")
		m.Set("type", [2]string{"even", "odd"}[n%2])
		m.Set(events.PartitionKey, ms[i].Get(events.PartitionKey))
		m.Data = ms[i].Data
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ms) > 1 {
		f.batches++
	}
	for i := range ms {
		if source := strings.Clone(ms[i].Get("source")); !slices.Contains(f.sources, source) {
			f.sources = append(f.sources, source)
		}
	}
	w.Header().Set("Content-Type", "application/cloudevents-batch+json")
	_, _ = w.Write(events.AppendBatch(nil, replies))
}

// values are the different values that come by the topics until there are n.
func values(tb testing.TB, cluster *kfake.Cluster, n int, topics ...string) map[string][]string {
	tb.Helper()
	client := newClient(tb, cluster, kgo.ConsumeTopics(topics...), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(10*time.Millisecond))
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	got, seen := map[string][]string{}, map[string]bool{}
	for len(seen) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			tb.Fatalf("%d of %d records: %v", len(seen), n, got)
		}
		for _, r := range fetches.Records() {
			if m, ok := kafka.FromRecord(r); ok && !seen[r.Topic+" "+m.Get("id")] {
				seen[r.Topic+" "+m.Get("id")] = true
				got[r.Topic] = append(got[r.Topic], string(r.Value))
			}
		}
	}
	return got
}

func TestRelay(t *testing.T) {
	cluster := newCluster(t, "in")
	f := &function{}
	sink := httptest.NewServer(f)
	t.Cleanup(sink.Close)
	base, stop := start(t, environment(t, cluster,
		"RELAY_TOPICS", "in", "RELAY_GROUP", "g", "K_SINK", sink.URL, "RELAY_ROUTES", "even=evens,odd=odds", "RELAY_DEAD_LETTER_TOPIC", "dead"))
	client := newClient(t, cluster)
	const n = 500
	for i := range n {
		client.Produce(t.Context(), &kgo.Record{Topic: "in", Key: []byte("k" + strconv.Itoa(i%10)), Value: []byte(strconv.Itoa(i))}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := values(t, cluster, n, "evens", "odds", "dead")
	if diff := cmp.Diff(map[string]int{"evens": 250, "odds": 249, "dead": 1}, map[string]int{
		"evens": len(got["evens"]), "odds": len(got["odds"]), "dead": len(got["dead"]),
	}); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	f.mu.Lock()
	if want := []string{"/apis/v1/namespaces/millrace/kafkasources/relay#in"}; !slices.Equal(f.sources, want) || f.batches == 0 {
		t.Errorf("sources %v, want %v; %d batches", f.sources, want, f.batches)
	}
	f.mu.Unlock()

	for _, want := range []string{"eventing_lag", "eventing_received_total", "eventing_dead_lettered_total"} {
		if status, body := get(t, base+"/metrics"); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s: %d", want, status)
		}
	}
	stop()
	lag, err := kafka.Lag(t.Context(), client, "g")
	if err != nil {
		t.Fatal(err)
	}
	for partition, l := range lag["in"] {
		if l != 0 {
			t.Errorf("after a clean end partition %d has a lag of %d", partition, l)
		}
	}
}

// Events that are posted go to topics by their type.
func TestRelay_post(t *testing.T) {
	cluster := newCluster(t)
	base, _ := start(t, environment(t, cluster, "RELAY_ROUTES", "stored=store,*=-"))
	post := func(typ string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/", strings.NewReader(typ))
		if err != nil {
			t.Fatal(err)
		}
		m := events.Message{}
		for _, a := range [][2]string{{"specversion", "1.0"}, {"id", "1"}, {"source", "/s"}, {"type", typ}, {"datacontenttype", "text/plain"}} {
			m.Set(a[0], a[1])
		}
		events.SetHTTP(req.Header, &m)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	for _, typ := range []string{"stored", "other"} {
		if status := post(typ); status != http.StatusAccepted {
			t.Errorf("%s: %d", typ, status)
		}
	}
	if diff := cmp.Diff(map[string][]string{"store": {"stored"}}, values(t, cluster, 1, "store")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRelay_postWithoutATopic(t *testing.T) {
	base, _ := start(t, environment(t, newCluster(t), "RELAY_ROUTES", "stored=store"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/", strings.NewReader(`{"specversion":"1.0","id":"1","source":"/s","type":"other"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/cloudevents+json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), `"other"`) {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
}

// A sink that takes single events only, as Knative's own parts, is found out.
func TestRelay_sinkWithoutBatches(t *testing.T) {
	cluster := newCluster(t, "in")
	var mu sync.Mutex
	ids, batches := map[string]bool{}, 0
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Ce-Id") == "" {
			batches++
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		ids[r.Header.Get("Ce-Id")] = true
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(sink.Close)
	client := newClient(t, cluster)
	const n = 300
	for i := range n {
		client.Produce(t.Context(), &kgo.Record{Topic: "in", Value: []byte(strconv.Itoa(i))}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, environment(t, cluster, "RELAY_TOPICS", "in", "RELAY_GROUP", "g", "K_SINK", sink.URL, "RELAY_DEAD_LETTER_SINK", sink.URL))
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(ids) != n {
			return fmt.Errorf("%d of %d events", len(ids), n)
		}
		return nil
	})
	// One a partition at most, before it was known.
	if batches > 4 {
		t.Errorf("%d batches were tried", batches)
	}
}

func TestConfig_errors(t *testing.T) {
	full := []string{"RELAY_TOPICS", "in", "RELAY_GROUP", "g", "K_SINK", "http://a.test", "RELAY_DEAD_LETTER_SINK", "http://b.test"}
	cluster := newCluster(t)
	for _, test := range []struct {
		name, want string
		env        []string
	}{
		{"nothing", "nothing to do", nil},
		{"no group", "RELAY_GROUP", []string{"RELAY_TOPICS", "in", "K_SINK", "http://a.test"}},
		{"no sink", "K_SINK is missing", []string{"RELAY_TOPICS", "in", "RELAY_GROUP", "g"}},
		{"bad sink", "K_SINK", append(slices.Clone(full), "K_SINK", "validate")},
		{"no dead letters", "would be lost", []string{"RELAY_TOPICS", "in", "RELAY_GROUP", "g", "K_SINK", "http://a.test"}},
		{"two dead-letter sinks", "both set", append(slices.Clone(full), "RELAY_DEAD_LETTER_TOPIC", "t")},
		{"offset", "RELAY_INITIAL_OFFSET", append(slices.Clone(full), "RELAY_INITIAL_OFFSET", "first")},
		{"policy", "RELAY_BACKOFF_POLICY", append(slices.Clone(full), "RELAY_BACKOFF_POLICY", "random")},
		{"route", "type=topic", append(slices.Clone(full), "RELAY_ROUTES", "a")},
		{"route twice", "two topics", append(slices.Clone(full), "RELAY_ROUTES", "a=b,a=c")},
		{"overrides", "K_CE_OVERRIDES", append(slices.Clone(full), "K_CE_OVERRIDES", "{")},
		{"replies", "one of them", append(slices.Clone(full), "RELAY_ROUTES", "a=b", "RELAY_REPLY_SINK", "http://c.test")},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := environment(t, cluster, test.env...).engine(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
	if _, err := environment(t, cluster, full...).engine(); err != nil {
		t.Errorf("a full environment: %v", err)
	}
}

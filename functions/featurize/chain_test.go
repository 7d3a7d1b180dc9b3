package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

const (
	validatedTopic = "tracking.user_behavior.validated"
	readyTopic     = "model.features.ready"
)

// chain is the real path: the Broker and Triggers of the repository's manifests on
// an engine, Kafka, Redis, and featurize as a process.
type chain struct {
	t       testing.TB
	redis   *redistest.Server
	cluster *kfake.Cluster
	ingress string

	mu     sync.Mutex
	cmd    *exec.Cmd // featurize
	url    atomic.Pointer[string]
	dead   atomic.Int64 // events in the dead letters
	reason atomic.Pointer[string]
}

func startChain(t testing.TB) *chain {
	t.Helper()
	c := &chain{t: t, redis: redistest.Start(t)}
	c.redis.NeedsProcess()
	var err error
	c.cluster, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.cluster.Close)
	graph, err := eventing.Load("../../triggers/broker.yaml", "../../triggers/shop.yaml", "../../triggers/features.yaml")
	if err != nil {
		t.Fatal(err)
	}
	deadLetters := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		why := r.Header.Get("Ce-Knativeerrordata") + " " + string(body[:min(len(body), 2000)])
		c.reason.Store(&why)
		c.dead.Add(1)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(deadLetters.Close)
	others := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(others.Close)
	c.start()
	engine, err := eventing.New(eventing.Config{
		Graph: graph, Kafka: kafka.Config{Brokers: c.cluster.ListenAddrs()}, Partitions: 4, Logger: slog.New(slog.DiscardHandler),
		Service: func(_, name string) (string, error) {
			switch name {
			case "featurize":
				return *c.url.Load(), nil
			case "deadletter":
				return deadLetters.URL, nil
			}
			return others.URL, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- engine.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the engine ended with: %v", err)
		}
		c.stop()
	})
	waitFor(t, "the engine is ready", func() bool { return engine.Ready(t.Context()) == nil })
	ingress := httptest.NewServer(engine.Handler())
	t.Cleanup(ingress.Close)
	c.ingress = ingress.URL + "/millrace/default"
	return c
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start starts featurize, on a free port.
func (c *chain) start() {
	c.t.Helper()
	port := freePort(c.t)
	var log bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1", "FUNCTION_NAME=featurize", "LISTEN_HOST=127.0.0.1", "PORT="+strconv.Itoa(port),
		"REDIS_URL="+c.redis.URL, "DATABASE_URL=", "LOG_LEVEL=error")
	cmd.Stderr = &log
	// It must not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	c.mu.Lock()
	c.cmd = cmd
	c.mu.Unlock()
	c.url.Store(&url)
}

// stop kills featurize.
func (c *chain) stop() {
	c.mu.Lock()
	cmd := c.cmd
	c.mu.Unlock()
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // that it was killed
}

// send gives events to the Broker, as validate's replies are, until it has them.
func (c *chain) send(list []event.Event) {
	c.t.Helper()
	body, err := json.Marshal(list)
	if err != nil {
		c.t.Fatal(err)
	}
	waitFor(c.t, "the Broker takes events", func() bool {
		resp, err := http.Post(c.ingress, events.ContentTypeBatch, bytes.NewReader(body))
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusAccepted
	})
}

// topic reads what a topic holds, in the order of its partitions.
func (c *chain) topic(name string) []*kgo.Record {
	c.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.cluster.ListenAddrs()...), kgo.ConsumeTopics(name))
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	offsets, err := kadm.NewClient(client).ListEndOffsets(c.t.Context(), name)
	if err != nil {
		c.t.Fatal(err)
	}
	var total int64
	offsets.Each(func(o kadm.ListedOffset) { total += o.Offset })
	var records []*kgo.Record
	for int64(len(records)) < total {
		fetches := client.PollFetches(c.t.Context())
		if err := fetches.Err(); err != nil {
			c.t.Fatal(err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

// stream makes the validated events of a shop: sessions that overlap, late events,
// and the same event twice, under its own id or another one.
type stream struct {
	random *rand.Rand
	n      int
	past   []features.Event
}

func (s *stream) next() event.Event {
	s.n++
	if len(s.past) > 0 && s.random.IntN(8) == 0 {
		e := s.past[s.random.IntN(len(s.past))]
		ev := validated(&e)
		if s.random.IntN(2) == 0 {
			ev.SetID("again " + strconv.Itoa(s.n))
		}
		return ev
	}
	e := shopEvent(fmt.Sprintf("session %d", s.random.IntN(40)), s.n-s.random.IntN(60), s.random.Int64N(5), s.random.Int64N(20))
	if s.past = append(s.past, e); len(s.past) > 200 {
		s.past = s.past[1:]
	}
	return validated(&e)
}

// check holds the features that came out, and those that are online, against a
// replay of the validated topic, in which no event is seen twice and nothing fails.
func (c *chain) check() {
	c.t.Helper()
	replay, err := onlineConfig(redistest.Start(c.t).URL).Open()
	if err != nil {
		c.t.Fatal(err)
	}
	defer replay.Close()
	if err := replay.Begin(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	live, err := onlineConfig(c.redis.URL).Open()
	if err != nil {
		c.t.Fatal(err)
	}
	defer live.Close()

	want := map[[32]byte]features.Vector{}
	last := map[string]int64{} // rank by session
	var keys []online.Key
	for _, r := range c.topic(validatedTopic) {
		e, err := features.ParseEvent(r.Value)
		if err != nil {
			c.t.Fatal(err)
		}
		if string(r.Key) != e.Session {
			c.t.Fatalf("an event of session %q has key %q", e.Session, r.Key)
		}
		hash := e.Hash()
		if _, again := want[hash]; again {
			continue
		}
		last[e.Session]++
		want[hash] = features.Of(&e, last[e.Session])
		if _, _, err := replay.Put(c.t.Context(), []online.Entry{{Event: e, Hash: hash}}); err != nil {
			c.t.Fatal(err)
		}
		keys = append(keys, online.UserProduct(e.UserID, e.ProductID), online.Session(e.Session))
	}
	got := map[[32]byte]features.Vector{}
	seen := map[string]int64{}
	for _, r := range c.topic(readyTopic) {
		ready, err := features.ParseReady(r.Value)
		if err != nil {
			c.t.Fatal(err)
		}
		if string(r.Key) != ready.UserSession {
			c.t.Errorf("features of session %q have key %q", ready.UserSession, r.Key)
		}
		if before, again := got[ready.RecordHash]; again && before != ready.Features {
			c.t.Errorf("an event's features were %v, and then %v", before, ready.Features)
		} else if !again {
			// First sights of a session come in order, also here.
			if rank := ready.Features[features.ActivityCount].Int(); rank != seen[ready.UserSession]+1 {
				c.t.Errorf("session %s: rank %d comes after %d", ready.UserSession, rank, seen[ready.UserSession])
			}
			seen[ready.UserSession]++
		}
		got[ready.RecordHash] = ready.Features
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(features.Value{})); diff != "" {
		c.t.Errorf("features of events (-replay +live):\n%.4000s", diff)
	}
	expected, err := replay.Get(c.t.Context(), keys)
	if err != nil {
		c.t.Fatal(err)
	}
	var rows []online.Row
	waitFor(c.t, "Redis answers", func() bool {
		rows, err = live.Get(c.t.Context(), keys)
		return err == nil
	})
	if diff := cmp.Diff(expected, rows, cmp.AllowUnexported(features.Value{}), cmpopts.IgnoreFields(online.Row{}, "Arrival")); diff != "" {
		c.t.Errorf("online features (-replay +live):\n%.4000s", diff)
	}
	if n := c.dead.Load(); n > 0 {
		c.t.Errorf("%d dead letters, the last: %s", n, *c.reason.Load())
	}
}

// Featurize and Redis are killed at random while events are written: the features
// of every event, and what is online, are those of a replay in which nothing fails.
func TestFeaturesEqualAReplayAfterKills(t *testing.T) {
	rounds := 1
	if text := os.Getenv("FEATURES_KILL_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatalf("FEATURES_KILL_ROUNDS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("FEATURES_KILL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FEATURES_KILL_SEED: %v", err)
		}
	}
	t.Logf("seed %d (FEATURES_KILL_SEED)", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := startChain(t)
	s := &stream{random: random}
	for round := range rounds {
		// A hundred batches; the victims die somewhere among them, and come back.
		const batches = 100
		type kill struct{ down, up int }
		draw := func() kill {
			down := random.IntN(batches - 10)
			return kill{down, down + 1 + random.IntN(10)}
		}
		redis, function := draw(), draw()
		t.Logf("round %d: Redis is away from batch %d to %d, featurize from %d to %d", round, redis.down, redis.up, function.down, function.up)
		for i := range batches {
			switch i {
			case redis.down:
				c.redis.Kill()
			case redis.up:
				c.redis.Restart()
			}
			switch i {
			case function.down:
				c.stop()
			case function.up:
				c.start()
			}
			batch := make([]event.Event, 1+random.IntN(12))
			for j := range batch {
				batch[j] = s.next()
			}
			c.send(batch)
		}
		waitFor(t, "all events have features", func() bool {
			return len(c.topic(validatedTopic)) == s.n && len(c.topic(readyTopic)) >= s.n
		})
		c.check()
	}
	t.Logf("%d events", s.n)
}

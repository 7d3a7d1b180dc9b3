package eventing

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// Everything at once: two engines that crash and come back, subscribers and a
// dead-letter sink that fail at random, leaders and coordinators that move, Triggers
// that are detached from the Broker's reader for being slow. Every
// record is accepted or a dead letter in the end, and every accepted one has its
// reply in the sink's topic. CHAOS_SEEDS sets how many runs there are.
func TestEngine_chaos(t *testing.T) {
	seeds := 1
	if text := os.Getenv("CHAOS_SEEDS"); text != "" {
		var err error
		if seeds, err = strconv.Atoi(text); err != nil {
			t.Fatalf("CHAOS_SEEDS: %v", err)
		}
	}
	for seed := range seeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) { chaos(t, uint64(seed)) })
	}
}

func chaos(t *testing.T, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 42))
	var dice sync.Mutex
	roll := func(n int) int {
		dice.Lock()
		defer dice.Unlock()
		return random.IntN(n)
	}
	cluster := newCluster(t, kfake.NumBrokers(3))
	client := newClient(t, cluster)
	if err := kafka.EnsureTopics(t.Context(), client, map[string]int32{"raw": 4}, 1); err != nil {
		t.Fatal(err)
	}
	var calm atomic.Bool
	trouble := func() int {
		if calm.Load() {
			return 0
		}
		return []int{0, 0, 0, 0, 0, 429, 503, 500, 413}[roll(9)]
	}
	var letters sync.Map // the data of dead letters
	dead := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		if status := trouble(); status != 0 {
			return status, nil
		}
		for i := range ms {
			letters.Store(string(ms[i].Data), true)
		}
		return 202, nil
	})
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		if status := trouble(); status != 0 {
			return status, nil
		}
		replies := make([]events.Message, len(ms))
		for i := range ms {
			if strings.HasSuffix(string(ms[i].Data), "7") {
				return 422, nil // these are never accepted
			}
			replies[i] = message(string(ms[i].Data), "reply", "/r", string(ms[i].Data))
		}
		return 200, replies
	})
	manifest := sourceManifest + fmt.Sprintf(`apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: %s}}
spec:
  broker: default
  filters: [{exact: {type: dev.knative.kafka.event}}]
  subscriber: {uri: "%s"}
  delivery: {retry: 3, backoffDelay: PT0.001S, deadLetterSink: {uri: "%s"}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: out, namespace: m}
spec:
  broker: default
  filters: [{exact: {type: reply}}]
  subscriber:
    ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: out}
---
apiVersion: eventing.knative.dev/v1alpha1
kind: KafkaSink
metadata: {name: out, namespace: m}
spec: {topic: out, numPartitions: 3}
`, [2]string{"ordered", "unordered"}[seed%2], s.url, dead.url)
	begin := func() *running {
		return startEngine(t, cluster, manifest, func(c *Config) { c.SessionTimeout, c.BatchEvents, c.BufferBytes = time.Second, 20, 8<<10 })
	}
	engines := []*running{begin(), begin()}
	total := 0
	for range 8 {
		for range 100 {
			client.Produce(t.Context(), &kgo.Record{Topic: "raw", Key: []byte("k" + strconv.Itoa(total%13)), Value: []byte(strconv.Itoa(total))}, nil)
			total++
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		switch roll(4) {
		case 0:
			cluster.ShufflePartitionLeaders()
		case 1:
			cluster.RehashCoordinators()
		}
		// Wait until something has happened, so that the crash is in the middle of it.
		before := len(s.ids())
		if err := eventually(t.Context(), func() error {
			if now := len(s.ids()); now <= before && now < total*8/10 {
				return fmt.Errorf("nothing moves after %d records: %d are accepted", total, now)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		victim := roll(2)
		if roll(3) > 0 {
			engines[victim].crash(t)
		} else {
			engines[victim].close(t)
		}
		engines[victim] = begin()
	}
	calm.Store(true)
	if err := eventually(t.Context(), func() error {
		taken := s.ids()
		for id := range dead.ids() {
			taken[id] = 1
		}
		if len(taken) < total {
			return fmt.Errorf("%d of %d records are accepted or dead letters", len(taken), total)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// An event that was accepted may become a dead letter when a crash lost its reply
	// and its second delivery fails. Then it has no reply.
	if err := eventually(t.Context(), func() error {
		done := map[string]bool{}
		for _, r := range readTopic(t, cluster, "out") {
			if m, ok := kafka.FromRecord(r); ok {
				done[m.Get("id")] = true
			}
		}
		letters.Range(func(data, _ any) bool {
			done[fmt.Sprint(data)] = true
			return true
		})
		for n := range total {
			if !done[strconv.Itoa(n)] {
				return fmt.Errorf("record %d has neither a reply nor a dead letter", n)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

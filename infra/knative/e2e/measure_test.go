package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/kafka"
)

var functions = []string{"validate", "lake", "deadletter"}

// TestMeasure prints the numbers of infra/README.md. It is no test: it fails only
// when it can not measure. E2E_MEASURE=1 runs it.
func TestMeasure(t *testing.T) {
	if os.Getenv("E2E_MEASURE") == "" {
		t.Skip("E2E_MEASURE is not set")
	}
	s := givenSpine(t)
	// The clock would keep lake awake.
	get(t, "delete", "pingsource", "lake-tick")
	t.Cleanup(func() { _, _ = kubectl("apply", "-f", "../../../triggers/lake.yaml") })

	coldStarts := s.measureColdStarts(10)
	idle := s.measureMemory()
	single := s.measureBroker(15 * time.Second)
	relayed := s.measureRelay(200_000)
	loaded := s.measureMemory()

	t.Log("| function | cold start p50 | max | memory idle | under load |")
	for _, f := range functions {
		starts := coldStarts[f]
		slices.Sort(starts)
		t.Logf("| %s | %d ms | %d ms | %.1f MiB | %.1f MiB |", f, starts[len(starts)/2].Milliseconds(), starts[len(starts)-1].Milliseconds(), idle[f], loaded[f])
	}
	t.Logf("relay: %.1f MiB idle, %.1f MiB under load", idle["relay"], loaded["relay"])
	t.Logf("through the plain Broker, single events, posted to answered: %.0f/s", single)
	t.Logf("through the relay, raw record to verdict topic: %.0f/s", relayed)
}

// measureColdStarts starts each function from zero n times: the time from a request
// to its answer, through the ingress and the activator.
func (s *spine) measureColdStarts(n int) map[string][]time.Duration {
	s.t.Helper()
	targets := map[string]endpoint{}
	for _, f := range functions {
		targets[f] = reach(s.t, get(s.t, "get", "kservice", f, "-o", "jsonpath={.status.address.url}"))
	}
	starts := map[string][]time.Duration{}
	for range n {
		for _, f := range functions {
			expectNoPod(s.t, f)
		}
		for _, f := range functions {
			begin := time.Now()
			status, body, err := targets[f].request(s.t.Context(), http.MethodGet, "/healthz", nil, nil)
			if err != nil || status != http.StatusOK {
				s.t.Fatalf("%s: %d %s %v", f, status, body, err)
			}
			starts[f] = append(starts[f], time.Since(begin))
		}
	}
	return starts
}

// measureMemory gives each function's working set in MiB, its own container's alone:
// the largest of its pods. A function that is at zero is started for it.
func (s *spine) measureMemory() map[string]float64 {
	s.t.Helper()
	for _, f := range functions {
		status, body, err := reach(s.t, get(s.t, "get", "kservice", f, "-o", "jsonpath={.status.address.url}")).
			request(s.t.Context(), http.MethodGet, "/healthz", nil, nil)
		if err != nil || status != http.StatusOK {
			s.t.Fatalf("%s: %d %s %v", f, status, body, err)
		}
	}
	memory := map[string]float64{}
	want := append(slices.Clone(functions), "relay")
	eventually(s.t, "the kubelet has measured every function", func() error {
		for node := range strings.FieldsSeq(get(s.t, "get", "node", "-o", "jsonpath={.items[*].metadata.name}")) {
			var stats struct {
				Pods []struct {
					PodRef     struct{ Namespace string }
					Containers []struct {
						Name   string
						Memory struct{ WorkingSetBytes float64 }
					}
				}
			}
			if err := json.Unmarshal([]byte(get(s.t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")), &stats); err != nil {
				return err
			}
			for _, p := range stats.Pods {
				for _, c := range p.Containers {
					if p.PodRef.Namespace == namespace {
						memory[c.Name] = max(memory[c.Name], c.Memory.WorkingSetBytes/(1<<20))
					}
				}
			}
		}
		for _, f := range want {
			if memory[f] == 0 {
				return fmt.Errorf("%s is missing", f)
			}
		}
		return nil
	})
	return memory
}

// measureBroker posts single events from 64 senders and counts the answers. The
// plain Broker answers when the event has been delivered and its reply too.
func (s *spine) measureBroker(d time.Duration) float64 {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), d)
	defer cancel()
	var answered atomic.Int64
	var senders sync.WaitGroup
	body := s.raw(1)
	begin := time.Now()
	for i := range 64 {
		senders.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				h := s.header(n)
				h.Set("Ce-Id", fmt.Sprintf("%d-%d", i, n))
				if status, _, err := s.broker.request(ctx, http.MethodPost, "", h, body); err == nil && status/100 == 2 {
					answered.Add(1)
				}
			}
		})
	}
	senders.Wait()
	return float64(answered.Load()) / time.Since(begin).Seconds()
}

// measureRelay writes n raw records and waits until the verdict topics have grown by
// as many.
func (s *spine) measureRelay(n int) float64 {
	s.t.Helper()
	cl := s.client(kgo.MaxBufferedRecords(n))
	if err := kafka.EnsureTopics(s.t.Context(), cl, map[string]int32{rawTopic: 12}, 1); err != nil {
		s.t.Fatal(err)
	}
	count := func() (sum int64) {
		offsets, err := kadm.NewClient(cl).ListEndOffsets(s.t.Context(), validTopic, invalidTopic)
		if err != nil {
			s.t.Fatal(err)
		}
		offsets.Each(func(o kadm.ListedOffset) { sum += o.Offset })
		return sum
	}
	before := count()
	begin := time.Now()
	for i := range n {
		// Sessions of ten events, so that all partitions have work.
		cl.Produce(s.t.Context(), &kgo.Record{Topic: rawTopic, Key: fmt.Appendf(nil, "%s-%d", s.session, i/10), Value: s.raw(i)}, func(_ *kgo.Record, err error) {
			if err != nil {
				s.t.Errorf("producing: %v", err)
			}
		})
	}
	if err := cl.Flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the relay is through", func() error {
		if got := count() - before; got < int64(n) {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
	return float64(n) / time.Since(begin).Seconds()
}

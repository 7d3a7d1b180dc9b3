package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

var functions = []string{"validate", "lake", "deadletter"}

// TestMeasure prints the numbers of infra/README.md. It is no test: it fails only
// when it can not measure. E2E_MEASURE runs it, with so many cold starts a function.
func TestMeasure(t *testing.T) {
	starts, err := strconv.Atoi(os.Getenv("E2E_MEASURE"))
	if err != nil || starts < 1 {
		t.Skip("E2E_MEASURE is not set to a number")
	}
	s := givenSpine(t)
	// The clock would keep lake awake.
	get(t, "delete", "pingsource", "lake-tick")
	t.Cleanup(func() { _, _ = kubectl("apply", "-f", "../../../triggers/lake.yaml") })

	coldStarts := s.measureColdStarts(starts)
	s.wake()
	idle := watchUsage(t)
	<-time.After(5 * time.Second) // of doing nothing
	idling := idle()
	loaded := watchUsage(t)
	single := s.measureBroker(15 * time.Second)
	relayed := s.measureRelay(200_000)
	drained := s.measureLake()
	kept := s.measureDeadLetters(20_000)
	loading := loaded()

	t.Log("| function | cold start p50 | slowest | memory idle | under load | CPU idle | under load |")
	for _, f := range append(slices.Clone(functions), "relay") {
		start := " (always there) | "
		if starts := coldStarts[f]; starts != nil {
			slices.Sort(starts)
			start = fmt.Sprintf("%d ms | %d ms", starts[len(starts)/2].Milliseconds(), starts[len(starts)-1].Milliseconds())
		}
		t.Logf("| %s | %s | %.0f MiB | %.0f MiB | %.2f | %.2f |", f, start, idling[f].memory, loading[f].memory, idling[f].cores, loading[f].cores)
	}
	t.Logf("through the plain Broker, single events, posted to answered: %.0f/s", single)
	t.Logf("through the relay, raw record to verdict topic: %.0f/s", relayed)
	t.Logf("lake, verdict records to objects: %.0f/s", drained)
	t.Logf("deadletter, kept: %.0f/s", kept)
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

// wake starts every function that is at zero.
func (s *spine) wake() {
	s.t.Helper()
	for _, f := range functions {
		status, body, err := s.function(f).request(s.t.Context(), http.MethodGet, "/healthz", nil, nil)
		if err != nil || status != http.StatusOK {
			s.t.Fatalf("%s: %d %s %v", f, status, body, err)
		}
	}
}

func (s *spine) function(name string) endpoint {
	s.t.Helper()
	return reach(s.t, get(s.t, "get", "kservice", name, "-o", "jsonpath={.status.address.url}"))
}

// measureLake has everything that is in the verdict topics written to the lake, by
// ticks as the clock sends them, and gives records a second.
func (s *spine) measureLake() float64 {
	s.t.Helper()
	lake := s.function("lake")
	var status struct {
		Topics []struct{ Lag int64 }
	}
	lag := func() (sum int64) {
		code, body, err := lake.request(s.t.Context(), http.MethodGet, "/lake/status", nil, nil)
		if err == nil {
			err = json.Unmarshal(body, &status)
		}
		if err != nil || code != http.StatusOK {
			s.t.Fatalf("lake's status: %d %s %v", code, body, err)
		}
		for _, topic := range status.Topics {
			sum += topic.Lag
		}
		return sum
	}
	before := lag()
	begin := time.Now()
	eventually(s.t, "the lake has drained the verdict topics", func() error {
		code, body, err := lake.request(s.t.Context(), http.MethodPost, "", http.Header{
			"Ce-Specversion": {"1.0"}, "Ce-Id": {strconv.FormatInt(time.Now().UnixNano(), 10)},
			"Ce-Source": {"/apis/v1/namespaces/" + namespace + "/pingsources/lake-tick"}, "Ce-Type": {events.Tick},
		}, nil)
		if err != nil || code/100 != 2 {
			return fmt.Errorf("tick: %d %s %w", code, body, err)
		}
		if left := lag(); left > 0 {
			return fmt.Errorf("%d records are left", left)
		}
		return nil
	})
	return float64(before) / time.Since(begin).Seconds()
}

// measureDeadLetters gives n refused events to deadletter in batches and counts them
// by the second.
func (s *spine) measureDeadLetters(n int) float64 {
	s.t.Helper()
	const batch = 100
	letters := s.function("deadletter")
	begin := time.Now()
	var senders sync.WaitGroup
	for sender := range 4 {
		senders.Go(func() {
			for at := sender * batch; at < n; at += 4 * batch {
				ms := make([]events.Message, batch)
				for i := range ms {
					m := &ms[i]
					m.Set("specversion", "1.0")
					m.Set("id", fmt.Sprintf("%s-%d", s.session, at+i))
					m.Set("source", "/e2e/measure")
					m.Set("type", events.BehaviorRaw)
					m.Set("datacontenttype", "application/json")
					m.Set(events.ErrorCode, "400")
					m.Set(events.ErrorData, "refused to be measured")
					m.Data = s.raw(at + i)
				}
				status, body, err := letters.request(s.t.Context(), http.MethodPost, "",
					http.Header{"Content-Type": {events.ContentTypeBatch}}, events.AppendBatch(nil, ms))
				if err != nil || status/100 != 2 {
					s.t.Errorf("dead letters: %d %s %v", status, body, err)
					return
				}
			}
		})
	}
	senders.Wait()
	return float64(n) / time.Since(begin).Seconds()
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

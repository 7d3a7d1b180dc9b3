package eventing

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-dev/millrace/shared/eventing/conformance"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// subscriber is a real HTTP subscriber whose answer a test decides. It counts the
// events that it has accepted and keeps the order of their first acceptance by key.
type subscriber struct {
	url string
	// answer returns the status for a request; replies are made for 2xx only.
	answer func(ms []events.Message) (status int, replies []events.Message)

	mu       sync.Mutex
	accepted map[string]int
	order    map[string][]string
	requests int
	largest  int
}

func newSubscriber(tb testing.TB, answer func(ms []events.Message) (int, []events.Message)) *subscriber {
	tb.Helper()
	s := &subscriber{answer: answer, accepted: map[string]int{}, order: map[string][]string{}}
	server := httptest.NewServer(s)
	tb.Cleanup(server.CloseClientConnections)
	tb.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *subscriber) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	var ms []events.Message
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
	status, replies := http.StatusAccepted, []events.Message(nil)
	if s.answer != nil {
		status, replies = s.answer(ms)
	}
	s.mu.Lock()
	s.requests++
	s.largest = max(s.largest, len(ms))
	for i := range ms {
		if status > 299 {
			break
		}
		id, key := strings.Clone(ms[i].Get("id")), strings.Clone(ms[i].Get(events.PartitionKey))
		if s.accepted[id]++; s.accepted[id] == 1 {
			s.order[key] = append(s.order[key], id)
		}
	}
	s.mu.Unlock()
	if len(replies) > 0 {
		w.Header().Set("Content-Type", mediaBatch)
		_, _ = w.Write(events.AppendBatch(nil, replies))
		return
	}
	w.WriteHeader(status)
}

func (s *subscriber) ids() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.accepted)
}

// wait returns when the subscriber has accepted n different events.
func (s *subscriber) wait(tb testing.TB, n int) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	err := eventually(ctx, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.accepted) < n {
			return fmt.Errorf("the subscriber has %d of %d events", len(s.accepted), n)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

const triggerManifest = brokerManifest + `
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: %s}}
spec:
  broker: default
  filters: [{exact: {type: test}}]
  subscriber: {uri: "%s"}
  delivery: {retry: %d, backoffPolicy: linear, backoffDelay: PT0.01S, timeout: PT20S%s}
`

// batches sends n events named by number, with keys, in requests of 50.
func (e *running) sendMany(tb testing.TB, from, n, keys int) {
	tb.Helper()
	for at := from; at < from+n; {
		var ms []events.Message
		for ; at < from+n && len(ms) < 50; at++ {
			m := message(strconv.Itoa(at), "test", "/s", `{"n":`+strconv.Itoa(at)+`}`)
			m.Set(events.PartitionKey, "k"+strconv.Itoa(at%keys))
			ms = append(ms, m)
		}
		if err := e.send(tb.Context(), ms...); err != nil {
			tb.Fatal(err)
		}
	}
}

func wantIDs(n int) map[string]bool {
	want := map[string]bool{}
	for i := range n {
		want[strconv.Itoa(i)] = true
	}
	return want
}

func checkComplete(tb testing.TB, got map[string]int, n int) {
	tb.Helper()
	have := map[string]bool{}
	for id := range got {
		have[id] = true
	}
	if diff := cmp.Diff(wantIDs(n), have); diff != "" {
		tb.Errorf("events (-want +got):\n%s", diff)
	}
}

// checkOrder holds the first deliveries of each key against the order of sending.
func checkOrder(tb testing.TB, s *subscriber) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, ids := range s.order {
		last := -1
		for _, id := range ids {
			n, err := strconv.Atoi(id)
			if err != nil {
				tb.Fatal(err)
			}
			if n < last {
				tb.Errorf("key %s: %d came after %d", key, n, last)
			}
			last = n
		}
	}
}

// A crash at any moment loses nothing, and replies are complete: engines are killed
// under load one after the other, each continued by the next.
func TestEngine_crashLosesNothing(t *testing.T) {
	for _, order := range []string{"ordered", "unordered"} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s/%d", order, seed), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				cluster := newCluster(t)
				const total = 1500
				crashes := 0
				s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
					replies := make([]events.Message, len(ms))
					for i := range ms {
						replies[i] = message(ms[i].Get("id")+"-reply", "reply", "/r", "{}")
					}
					return 200, replies
				})
				manifest := fmt.Sprintf(triggerManifest, order, s.url, 3, "")
				e := startEngine(t, cluster, manifest, nil)
				for sent := 0; sent < total; {
					n := min(total-sent, 50+random.IntN(300))
					e.sendMany(t, sent, n, 20)
					sent += n
					// Somewhere in the middle of what was just sent.
					s.wait(t, random.IntN(sent)+1)
					e.crash(t)
					crashes++
					e = startEngine(t, cluster, manifest, nil)
				}
				s.wait(t, total)
				checkComplete(t, s.ids(), total)
				if order == "ordered" {
					checkOrder(t, s)
				}
				if err := eventually(t.Context(), func() error {
					if got := repliesIn(t, cluster); got != total {
						return fmt.Errorf("%d different replies are in the Broker after %d crashes, want %d", got, crashes, total)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// repliesIn counts the different replies in the Broker's topic.
func repliesIn(t *testing.T, cluster *kfake.Cluster) int {
	t.Helper()
	ids := map[string]bool{}
	for _, r := range readTopic(t, cluster, "knative-broker-m-default") {
		if m, ok := kafka.FromRecord(r); ok && m.Get("type") == "reply" {
			ids[m.Get("id")] = true
		}
	}
	return len(ids)
}

// readTopic reads what is in the topic now.
func readTopic(tb testing.TB, cluster *kfake.Cluster, topic string) []*kgo.Record {
	tb.Helper()
	client := newClient(tb, cluster, kgo.ConsumeTopics(topic), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	ends, err := kadm.NewClient(client).ListEndOffsets(tb.Context(), topic)
	if err != nil {
		tb.Fatal(err)
	}
	var total int64
	ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
	var records []*kgo.Record
	for int64(len(records)) < total {
		fetches := client.PollFetches(tb.Context())
		if err := fetches.Err(); err != nil {
			tb.Fatal(err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

// What was committed is never more than what had its effect: at any moment, killing
// the engine and reading on from the committed offsets gives all that is missing.
func TestEngine_commitsOnlyEffects(t *testing.T) {
	cluster := newCluster(t)
	hold := make(chan struct{})
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		if slices.ContainsFunc(ms, func(m events.Message) bool { return m.Get("id") == "7" }) {
			<-hold
		}
		return 202, nil
	})
	e := startEngine(t, cluster, fmt.Sprintf(triggerManifest, "unordered", s.url, 0, ""), func(c *Config) { c.Partitions, c.BatchEvents = 1, 1 })
	e.sendMany(t, 0, 100, 1)
	s.wait(t, 99) // all others pass the one that is stuck
	admin := kadm.NewClient(newClient(t, cluster))
	// Commits happen all the time; that of offset 7 must not be passed.
	for range 20 {
		offsets, err := admin.FetchOffsetsForTopics(t.Context(), "knative-trigger-m-t", "knative-broker-m-default")
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := offsets.Lookup("knative-broker-m-default", 0); ok && at.At > 7 {
			t.Fatalf("offset %d is committed while event 7 is not done", at.At)
		}
	}
	e.crash(t)
	close(hold)
	e = startEngine(t, cluster, fmt.Sprintf(triggerManifest, "unordered", s.url, 0, ""), nil)
	s.wait(t, 100)
	if err := eventually(t.Context(), func() error {
		offsets, err := admin.FetchOffsetsForTopics(t.Context(), "knative-trigger-m-t", "knative-broker-m-default")
		if err != nil {
			return err
		}
		if at, _ := offsets.Lookup("knative-broker-m-default", 0); at.At != 100 {
			return fmt.Errorf("committed %d, want 100", at.At)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	e.close(t)
}

// A clean end leaves nothing to be repeated.
func TestEngine_drains(t *testing.T) {
	cluster := newCluster(t)
	s := newSubscriber(t, nil)
	manifest := fmt.Sprintf(triggerManifest, "ordered", s.url, 0, "")
	e := startEngine(t, cluster, manifest, func(c *Config) { c.CommitInterval = time.Hour })
	e.sendMany(t, 0, 500, 10)
	s.wait(t, 100)
	e.close(t)
	e = startEngine(t, cluster, manifest, nil)
	s.wait(t, 500)
	e.close(t)
	for id, n := range s.ids() {
		if n != 1 {
			t.Errorf("event %s was delivered %d times", id, n)
		}
	}
	checkOrder(t, s)
}

// Engines come and go; the partitions move between them.
func TestEngine_rebalance(t *testing.T) {
	for _, order := range []string{"ordered", "unordered"} {
		t.Run(order, func(t *testing.T) {
			cluster := newCluster(t)
			s := newSubscriber(t, nil)
			manifest := fmt.Sprintf(triggerManifest, order, s.url, 3, "")
			quick := func(c *Config) { c.SessionTimeout = time.Second }
			first := startEngine(t, cluster, manifest, quick)
			first.sendMany(t, 0, 300, 20)
			second := startEngine(t, cluster, manifest, quick)
			first.sendMany(t, 300, 300, 20)
			if err := eventually(t.Context(), func() error {
				if n := second.Stats().Triggers[0].Received; n == 0 {
					first.sendMany(t, 0, 40, 20) // repetitions, so that there is something to get
					return fmt.Errorf("the second engine has got nothing")
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			first.close(t)
			second.sendMany(t, 600, 300, 20)
			s.wait(t, 900)
			checkComplete(t, s.ids(), 900)
			if order == "ordered" {
				checkOrder(t, s)
			}
		})
	}
}

// One event that takes long holds up no other when there is no order to keep.
func TestEngine_slowEventHoldsUpNobody(t *testing.T) {
	hold := make(chan struct{})
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		if ms[0].Get("id") == "0" {
			<-hold
		}
		return 202, nil
	})
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "unordered", s.url, 0, ""), func(c *Config) { c.Partitions, c.BatchEvents = 1, 1 })
	e.sendMany(t, 0, 200, 1)
	s.wait(t, 199)
	close(hold)
	s.wait(t, 200)
}

// In order, everything of a partition waits for the event that fails.
func TestEngine_orderedWaitsForRetries(t *testing.T) {
	var failures atomic.Int32
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		if slices.ContainsFunc(ms, func(m events.Message) bool { return m.Get("id") == "5" }) && failures.Add(1) < 8 {
			return 503, nil
		}
		return 202, nil
	})
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "ordered", s.url, 10, ""), nil)
	e.sendMany(t, 0, 100, 1)
	s.wait(t, 100)
	checkOrder(t, s)
	// The subscriber has everything before the engine has its last answer.
	err := eventually(t.Context(), func() error {
		if st := e.Stats().Triggers[0]; st.Retries == 0 || st.DeadLettered+st.Discarded != 0 || !st.FailingSince.IsZero() || st.LastError == "" {
			return fmt.Errorf("stats after the failure has passed: %+v", st)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A backlog grows into batches, bounded by number.
func TestEngine_batches(t *testing.T) {
	hold := make(chan struct{})
	var once sync.Once
	s := newSubscriber(t, func([]events.Message) (int, []events.Message) {
		once.Do(func() { <-hold })
		return 202, nil
	})
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "ordered", s.url, 0, ""), func(c *Config) { c.BatchEvents, c.Partitions = 40, 1 })
	e.sendMany(t, 0, 400, 1)
	close(hold)
	s.wait(t, 400)
	if s.largest != 40 {
		t.Errorf("the largest batch had %d events, want 40", s.largest)
	}
	if s.requests > 60 {
		t.Errorf("400 events took %d requests", s.requests)
	}
}

// Batches that are too large for the subscriber are cut until they fit.
func TestEngine_batchTooLarge(t *testing.T) {
	var hold = make(chan struct{})
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		<-hold
		if len(ms) > 3 {
			return 413, nil
		}
		return 202, nil
	})
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "ordered", s.url, 0, ""), nil)
	e.sendMany(t, 0, 100, 1)
	close(hold)
	s.wait(t, 100)
	if st := e.Stats().Triggers[0]; st.Discarded != 0 {
		t.Errorf("stats: %+v", st)
	}
	checkOrder(t, s)
}

// A poisonous event in a batch takes none of the others to the dead letters, also
// when it brings the subscriber down.
func TestEngine_poison(t *testing.T) {
	for _, order := range []string{"ordered", "unordered"} {
		t.Run(order, func(t *testing.T) {
			dead := newSubscriber(t, nil)
			s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
				for i := range ms {
					switch ms[i].Get("id") {
					case "13":
						return 500, nil
					case "77":
						panic(http.ErrAbortHandler) // no answer
					case "99":
						return 400, nil
					}
				}
				return 202, nil
			})
			e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, order, s.url, 2, `, deadLetterSink: {uri: "`+dead.url+`"}`), nil)
			e.sendMany(t, 0, 200, 5)
			s.wait(t, 197)
			dead.wait(t, 3)
			if diff := cmp.Diff(map[string]int{"13": 1, "77": 1, "99": 1}, dead.ids()); diff != "" {
				t.Errorf("dead letters (-want +got):\n%s", diff)
			}
			if err := e.settle(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if st := e.Stats().Triggers[0]; st.DeadLettered != 3 || st.Delivered != 197 {
				t.Errorf("stats: %+v", st)
			}
		})
	}
}

// The dead-letter sink may be down as long as it likes.
func TestEngine_deadLetterSinkDown(t *testing.T) {
	var refusals atomic.Int32
	dead := newSubscriber(t, func([]events.Message) (int, []events.Message) {
		switch n := refusals.Add(1); {
		case n <= 2:
			return 503, nil
		case n <= 4:
			return 400, nil // also what would be final elsewhere
		}
		return 202, nil
	})
	s := newSubscriber(t, func([]events.Message) (int, []events.Message) { return 422, nil })
	cluster := newCluster(t)
	manifest := fmt.Sprintf(triggerManifest, "unordered", s.url, 2, `, deadLetterSink: {uri: "`+dead.url+`"}`)
	e := startEngine(t, cluster, manifest, nil)
	e.sendMany(t, 0, 1, 1)
	if err := eventually(t.Context(), func() error {
		if refusals.Load() < 2 {
			return fmt.Errorf("the dead-letter sink was not tried again")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if st := e.Stats().Triggers[0]; st.DeadLettered != 0 || st.FailingSince.IsZero() || !strings.Contains(st.LastError, dead.url) {
		t.Errorf("stats do not show that the dead-letter sink fails: %+v", st)
	}
	// A crash in between does not lose the letter.
	e.crash(t)
	e = startEngine(t, cluster, manifest, nil)
	dead.wait(t, 1)
	if err := eventually(t.Context(), func() error {
		if st := e.Stats().Triggers[0]; st.DeadLettered != 1 {
			return fmt.Errorf("stats: %+v", st)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// What a dead letter says about its failure.
func TestEngine_deadLetterAttributes(t *testing.T) {
	letters := conformance.NewSubscriber(conformance.Script{})
	dead := httptest.NewServer(letters)
	t.Cleanup(dead.Close)
	s := conformance.NewSubscriber(conformance.Script{Rules: []conformance.Rule{{Status: 400, Body: "no price\n"}}})
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "ordered", server.URL+"/path", 2, `, deadLetterSink: {uri: "`+dead.URL+`"}`), nil)
	m := message("1", "test", "/s", "\x00binary")
	m.Set("datacontenttype", "application/octet-stream")
	m.Set("note", "grün")
	if err := e.send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	var got []conformance.Delivery
	if err := eventually(t.Context(), func() error {
		if got, _ = letters.Deliveries(); len(got) == 0 {
			return fmt.Errorf("no dead letter")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"specversion": "1.0", "id": "1", "source": "/s", "type": "test", "datacontenttype": "application/octet-stream", "note": "grün",
		"knativeerrorcode": "400", "knativeerrordata": "no price", "knativeerrordest": server.URL + "/path",
	}
	if diff := cmp.Diff(want, got[0].Attributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if got[0].Data != "\x00binary" {
		t.Errorf("data %q", got[0].Data)
	}
}

// What is read ahead of a subscriber that does not keep up is bounded.
func TestEngine_boundedBuffer(t *testing.T) {
	hold := make(chan struct{})
	s := newSubscriber(t, func([]events.Message) (int, []events.Message) { <-hold; return 202, nil })
	const limit = 64 << 10
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "ordered", s.url, 0, ""), func(c *Config) {
		c.Partitions, c.BufferBytes = 1, limit
	})
	payload := strings.Repeat("x", 10_000)
	const n = 400
	for i := range n {
		m := message(strconv.Itoa(i), "test", "/s", payload)
		m.Set("datacontenttype", "text/plain")
		m.Set(events.PartitionKey, "k0")
		if err := e.send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	l := e.lane(t, 0, 0)
	if err := eventually(t.Context(), func() error {
		if l.attached.Load() || !l.full() {
			return fmt.Errorf("the Trigger is not detached")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// One poll may come on top, which is at most a fetch.
	l.mu.Lock()
	bytes := l.bytes
	l.mu.Unlock()
	if bytes > limit+maxPoll*11_000 {
		t.Errorf("%d bytes are buffered", bytes)
	}
	close(hold)
	s.wait(t, n)
	checkOrder(t, s)
}

// Commits that fail, leaders that move and produce requests that are refused are
// trouble of Kafka's own: they pass.
func TestEngine_kafkaTrouble(t *testing.T) {
	cluster := newCluster(t, kfake.NumBrokers(3))
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		replies := make([]events.Message, len(ms))
		for i := range ms {
			replies[i] = message(ms[i].Get("id")+"-reply", "reply", "/r", "{}")
		}
		return 200, replies
	})
	e := startEngine(t, cluster, fmt.Sprintf(triggerManifest, "ordered", s.url, 3, ""), func(c *Config) { c.SessionTimeout = 2 * time.Second })
	var commits, produces atomic.Int32
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if commits.Add(1)%3 != 0 {
			return nil, nil, false
		}
		in, _ := req.(*kmsg.OffsetCommitRequest)
		res, _ := req.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, topic := range in.Topics {
			out := kmsg.NewOffsetCommitResponseTopic()
			out.Topic, out.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				op := kmsg.NewOffsetCommitResponseTopicPartition()
				op.Partition, op.ErrorCode = p.Partition, kerr.CoordinatorLoadInProgress.Code
				out.Partitions = append(out.Partitions, op)
			}
			res.Topics = append(res.Topics, out)
		}
		return res, nil, true
	})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if produces.Add(1)%5 == 0 {
			return nil, io.ErrUnexpectedEOF, true // the connection breaks
		}
		return nil, nil, false
	})
	for i := range 10 {
		for at := i * 50; at < (i+1)*50; at += 10 {
			if err := eventually(t.Context(), func() error {
				var ms []events.Message
				for id := at; id < at+10; id++ {
					m := message(strconv.Itoa(id), "test", "/s", "{}")
					m.Set(events.PartitionKey, "k"+strconv.Itoa(id%7))
					ms = append(ms, m)
				}
				return e.send(t.Context(), ms...)
			}); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 2 {
			cluster.ShufflePartitionLeaders()
			cluster.RehashCoordinators()
		}
	}
	s.wait(t, 500)
	checkComplete(t, s.ids(), 500)
	if err := eventually(t.Context(), func() error {
		if got := repliesIn(t, cluster); got != 500 {
			return fmt.Errorf("%d replies", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// A Trigger sees the events that come after it was made, also those that come while
// no engine runs; a source begins where it is told to.
func TestEngine_whereGroupsBegin(t *testing.T) {
	cluster := newCluster(t)
	client := newClient(t, cluster)
	if err := kafka.EnsureTopics(t.Context(), client, map[string]int32{"raw": 2}, 1); err != nil {
		t.Fatal(err)
	}
	produce := func(value string) {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "raw", Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]*conformance.Subscriber{"earliest": conformance.NewSubscriber(conformance.Script{}), "latest": conformance.NewSubscriber(conformance.Script{})}
	manifest := ""
	for name, s := range got {
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		manifest += fmt.Sprintf("---\napiVersion: sources.knative.dev/v1\nkind: KafkaSource\nmetadata: {name: %s, namespace: m}\nspec: {topics: [raw], initialOffset: %s, sink: {uri: %q}}\n", name, name, server.URL)
	}
	produce("before")
	e := startEngine(t, cluster, manifest, nil)
	e.close(t)
	produce("between")
	e = startEngine(t, cluster, manifest, nil)
	produce("after")
	for name, want := range map[string][]string{"earliest": {"after", "before", "between"}, "latest": {"after", "between"}} {
		var values []string
		if err := eventually(t.Context(), func() error {
			values = nil
			ds, _ := got[name].Deliveries()
			for _, d := range ds {
				values = append(values, d.Data)
			}
			if len(values) < len(want) {
				return fmt.Errorf("%s: got %v", name, values)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		slices.Sort(values)
		if diff := cmp.Diff(want, values); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	e.close(t)
}

func TestHandler(t *testing.T) {
	cluster := newCluster(t)
	e := startEngine(t, cluster, brokerManifest, func(c *Config) { c.MaxEventBytes, c.MaxBatchBytes = 1000, 5000 })
	valid := map[string]string{"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/s", "Ce-Type": "t", "Content-Type": "application/json"}
	without := func(name string) map[string]string {
		h := maps.Clone(valid)
		delete(h, name)
		return h
	}
	typed := func(contentType string) map[string]string { return map[string]string{"Content-Type": contentType} }
	one := `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`
	for _, test := range []struct {
		name, method, path, body string
		header                   map[string]string
		status                   int
		want                     string
	}{
		{"binary", "POST", "/m/default", "{}", valid, 202, ""},
		{"trailing slash", "POST", "/m/default/", "{}", valid, 202, ""},
		{"no data", "POST", "/m/default", "", valid, 202, ""},
		{"structured", "POST", "/m/default", one, typed("application/cloudevents+json; charset=utf-8"), 202, ""},
		{"batch", "POST", "/m/default", "[" + one + "," + one + "]", typed(mediaBatch), 202, ""},
		{"unknown broker", "POST", "/m/other", "{}", valid, 404, `"/m/other"`},
		{"root", "POST", "/", "{}", valid, 404, "/<namespace>/<name>"},
		{"GET", "GET", "/m/default", "", nil, 405, "POST"},
		{"not an event", "POST", "/m/default", "{}", typed("application/json"), 400, "ce-specversion"},
		{"no id", "POST", "/m/default", "{}", without("Ce-Id"), 400, `"id"`},
		{"no type", "POST", "/m/default", "{}", without("Ce-Type"), 400, `"type"`},
		{"wrong JSON", "POST", "/m/default", "{", typed(mediaSingle), 400, "not a valid CloudEvent"},
		{"bad event of a batch", "POST", "/m/default", "[" + one + `,{"id":"2"}]`, typed(mediaBatch), 400, "event 1"},
		{"empty batch", "POST", "/m/default", "[]", typed(mediaBatch), 400, "empty"},
		{"other format", "POST", "/m/default", "<e/>", typed("application/cloudevents+xml"), 400, "application/cloudevents+xml"},
		{"too large", "POST", "/m/default", `"` + strings.Repeat("x", 1001) + `"`, valid, 413, "1000"},
		{"batch too large", "POST", "/m/default", "[" + strings.Repeat(" ", 6000) + one + "]", typed(mediaBatch), 413, "too large"},
		{"too large within a batch", "POST", "/m/default", `[{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"` + strings.Repeat("x", 1001) + `"}]`, typed(mediaBatch), 413, "event 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, e.ingress+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			for name, value := range test.header {
				req.Header.Set(name, value)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != test.status || !strings.Contains(string(body), test.want) {
				t.Errorf("got %d %s, want %d with %q", res.StatusCode, body, test.status, test.want)
			}
		})
	}
	if records := readTopic(t, cluster, "knative-broker-m-default"); len(records) != 6 {
		t.Errorf("%d records are in the topic, want the 6 that were accepted", len(records))
	}
	st := e.Stats().Brokers[0]
	if st.Accepted != 6 || st.Rejected == 0 {
		t.Errorf("stats: %+v", st)
	}
}

// An event of the largest size that the ingress takes survives every hop.
func TestEngine_largestEvent(t *testing.T) {
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		if ms[0].Get("type") != "test" {
			return 202, nil
		}
		return 400, nil // so that it goes to the dead letters, with more attributes
	})
	dead := newSubscriber(t, nil)
	e := startEngine(t, newCluster(t), fmt.Sprintf(triggerManifest, "ordered", s.url, 0, `, deadLetterSink: {uri: "`+dead.url+`"}`), nil)
	m := message("big", "test", "/s", `"`+strings.Repeat("x", 1<<20-2)+`"`)
	if err := e.send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	dead.wait(t, 1)
}

func TestHandler_kafkaAway(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	e := startEngine(t, cluster, brokerManifest, func(c *Config) { c.AckTimeout, c.DrainTimeout = 50*time.Millisecond, 50*time.Millisecond })
	cluster.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.ingress+"/m/default", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	m := message("1", "t", "/s", "")
	events.SetHTTP(req.Header, &m)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("got %s, Retry-After %q", res.Status, res.Header.Get("Retry-After"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if e.Ready(ctx) == nil {
		t.Error("the engine is ready without Kafka")
	}
	// However much is sent meanwhile, what is kept of it is bounded, and the answer
	// comes in time.
	big := message("1", "t", "/s", `"`+strings.Repeat("x", 1<<20-2)+`"`)
	for i := 0; !e.backlogged(); i++ {
		if err := e.send(t.Context(), big); err == nil || !strings.Contains(err.Error(), "503") {
			t.Fatalf("event %d: %v", i, err)
		}
	}
	if err := e.send(t.Context(), big); err == nil || !strings.Contains(err.Error(), "too much waits") {
		t.Errorf("with a full backlog: %v", err)
	}
}

// Run ends when it is told to, also while Kafka is away.
func TestEngine_endsWithoutKafka(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	s := newSubscriber(t, nil)
	e := startEngine(t, cluster, fmt.Sprintf(triggerManifest, "ordered", s.url, 0, ""), func(c *Config) { c.DrainTimeout = 500 * time.Millisecond })
	e.sendMany(t, 0, 10, 1)
	s.wait(t, 10)
	cluster.Close()
	began := time.Now()
	e.close(t)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestHandler_notRunning(t *testing.T) {
	g, err := Load(write(t, brokerManifest))
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Graph: g, Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/m/default", nil)
	m := message("1", "t", "/s", "")
	events.SetHTTP(r.Header, &m)
	e.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("got %d", w.Code)
	}
}

// Run waits for a Kafka that is not there yet, and ends when it is told to.
func TestEngine_waitsForKafka(t *testing.T) {
	g, err := Load(write(t, brokerManifest))
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Graph: g, Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestNew_errors(t *testing.T) {
	service := brokerManifest + "apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: t, namespace: m}\nspec:\n  broker: default\n" +
		"  subscriber:\n    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: fn}\n"
	job := "apiVersion: sinks.knative.dev/v1alpha1\nkind: JobSink\nmetadata: {name: j, namespace: m}\nspec: {job: {spec: {}}}\n"
	for _, test := range []struct {
		name, manifest, want string
		adjust               func(*Config)
	}{
		{"no Kafka", brokerManifest, "KAFKA_BROKERS", func(c *Config) { c.Kafka = kafka.Config{} }},
		{"no addresses", service, "Trigger t", nil},
		{"unknown Service", service, "no such service fn", func(c *Config) {
			c.Service = func(_, name string) (string, error) { return "", fmt.Errorf("no such service %s", name) }
		}},
		{"no jobs", job, "JobSink", nil},
	} {
		g, err := Load(write(t, test.manifest))
		if err != nil {
			t.Fatal(err)
		}
		c := Config{Graph: g, Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}}
		if test.adjust != nil {
			test.adjust(&c)
		}
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", test.name, err, test.want)
		}
	}
}

func TestEngine_jobs(t *testing.T) {
	type started struct{ name, id string }
	jobs := make(chan started, 10)
	var failures atomic.Int32
	manifest := brokerManifest + "apiVersion: sinks.knative.dev/v1alpha1\nkind: JobSink\nmetadata: {name: train, namespace: m}\nspec: {job: {spec: {template: {spec: {containers: [{name: c, image: i}]}}}}}\n---\n" +
		"apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: t, namespace: m}\nspec:\n  broker: default\n  subscriber:\n    ref: {apiVersion: sinks.knative.dev/v1alpha1, kind: JobSink, name: train}\n  delivery: {retry: 5}\n"
	e := startEngine(t, newCluster(t), manifest, func(c *Config) {
		c.Job = func(_ context.Context, sink *JobSink, name string, m events.Message) error {
			var job struct {
				Spec struct {
					Template struct {
						Spec struct {
							Containers []struct{ Image string }
						}
					}
				}
			}
			if err := sink.Decode(&job); err != nil || len(job.Spec.Template.Spec.Containers) != 1 {
				t.Errorf("decoding the job: %v, %+v", err, job)
			}
			if failures.Add(1) == 1 {
				return fmt.Errorf("no room")
			}
			jobs <- started{name, m.Get("id")}
			return nil
		}
	})
	for range 2 {
		if err := e.send(t.Context(), message("1", "t", "/s", "{}")); err != nil {
			t.Fatal(err)
		}
	}
	first, second := <-jobs, <-jobs
	if first != second || first.id != "1" || !strings.HasPrefix(first.name, "train-") {
		t.Errorf("one event, jobs %v and %v", first, second)
	}
}

func TestJobName_isThatOfKnative(t *testing.T) {
	// The MD5 of source and id after the sink's name.
	if got, want := (&JobSink{Object: Object{Name: "train"}}).JobName("/s", "1"), "train-b8a765b7041c79e3f785739f20361857"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	long := (&JobSink{Object: Object{Name: strings.Repeat("a", 60)}}).JobName("/s", "1")
	if len(long) != 63 {
		t.Errorf("%s has %d characters", long, len(long))
	}
}

// KafkaSinks keep keys and modes; their topics are made as the manifest says.
func TestEngine_kafkaSink(t *testing.T) {
	sink := func(name, mode string) string {
		return "---\napiVersion: eventing.knative.dev/v1alpha1\nkind: KafkaSink\nmetadata: {name: " + name + ", namespace: m}\nspec: {topic: " + name + ", numPartitions: 3, contentMode: " + mode + "}\n" +
			"---\napiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: " + name + ", namespace: m}\nspec:\n  broker: default\n  subscriber:\n    ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: " + name + "}\n"
	}
	cluster := newCluster(t)
	e := startEngine(t, cluster, strings.TrimSuffix(brokerManifest, "---\n")+sink("binary", "binary")+sink("structured", "structured"), nil)
	m := message("1", "t", "/s", `{"a":1}`)
	m.Set("datacontenttype", "application/json")
	m.Set(events.PartitionKey, "key")
	if err := e.send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := e.settle(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for topic, value := range map[string]string{"binary": `{"a":1}`, "structured": ""} {
		records := readTopic(t, cluster, topic)
		if len(records) != 1 || string(records[0].Key) != "key" {
			t.Fatalf("%s: %v", topic, records)
		}
		if value != "" && string(records[0].Value) != value {
			t.Errorf("%s: value %s", topic, records[0].Value)
		}
		got, ok := kafka.FromRecord(records[0])
		if !ok || got.Get("id") != "1" || string(got.Data) != `{"a":1}` {
			t.Errorf("%s: event %v", topic, got)
		}
	}
	topics, err := kadm.NewClient(newClient(t, cluster)).ListTopics(t.Context(), "binary")
	if err != nil || len(topics["binary"].Partitions) != 3 {
		t.Errorf("topic binary: %v, %v", topics, err)
	}
}

func TestStats_isJSON(t *testing.T) {
	e := startEngine(t, newCluster(t), brokerManifest, nil)
	if _, err := json.Marshal(e.Stats()); err != nil {
		t.Error(err)
	}
}

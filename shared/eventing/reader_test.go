package eventing

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// lane is the Trigger's lane of a partition of the only Broker, once the engine has
// the partition.
func (e *running) lane(t *testing.T, trigger int, partition int32) *lane {
	t.Helper()
	var p *sharedPartition
	if err := eventually(t.Context(), func() error {
		for _, r := range e.readers {
			p = r.partition(partition)
		}
		if p == nil {
			return fmt.Errorf("the engine has not got partition %d", partition)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return p.lanes[trigger]
}

// level returns when all Triggers are attached to the reader in all partitions and
// have done everything that it has read.
func (e *running) level(t *testing.T, partitions int32) {
	t.Helper()
	if err := eventually(t.Context(), func() error {
		for number := range e.triggers {
			for id := range partitions {
				if l := e.lane(t, number, id); !l.attached.Load() || l.lag() > 0 {
					return fmt.Errorf("Trigger %d is not attached or done in partition %d, its lag is %d", number, id, l.lag())
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// triggerFor is a manifest of an ordered one for events of the type.
func triggerFor(name, typ, url string) string {
	return fmt.Sprintf(`---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: %s, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: ordered}}
spec:
  broker: default
  filters: [{exact: {type: %s}}]
  subscriber: {uri: %q}
  delivery: {retry: 100, backoffPolicy: linear, backoffDelay: PT0.001S}
`, name, typ, url)
}

func graphOf(triggers ...string) string {
	return strings.TrimSuffix(strings.TrimSpace(brokerManifest), "---") + strings.Join(triggers, "")
}

// A Trigger that is stuck holds up no other, however much comes, and keeps no more of
// it in memory than its bound; it reads on from there when it can, and is then read
// for again.
func TestReader_stuckTriggerHoldsUpNobody(t *testing.T) {
	hold := make(chan struct{})
	stuck := newSubscriber(t, func([]events.Message) (int, []events.Message) { <-hold; return 202, nil })
	quick := newSubscriber(t, nil)
	const limit, n, partitions = 8 << 10, 500, 2
	e := startEngine(t, newCluster(t), graphOf(triggerFor("stuck", "test", stuck.url), triggerFor("quick", "test", quick.url)),
		func(c *Config) { c.Partitions, c.BufferBytes, c.BatchEvents = partitions, limit, 50 })
	e.sendMany(t, 0, n, 10)
	quick.wait(t, n)
	for id := range int32(partitions) {
		l := e.lane(t, 0, id)
		if l.attached.Load() {
			t.Errorf("the stuck Trigger is attached in partition %d", id)
		}
		l.mu.Lock()
		if l.bytes > limit+n*2*eventOverhead {
			t.Errorf("%d bytes wait for the stuck Trigger", l.bytes)
		}
		l.mu.Unlock()
	}
	if st := e.Stats().Triggers; st[0].Lag == 0 || st[1].Delivered < n/2 {
		t.Errorf("stats: %+v", st)
	}
	close(hold)
	stuck.wait(t, n)
	e.level(t, partitions)
	e.sendMany(t, n, n, 10)
	for _, s := range []*subscriber{stuck, quick} {
		s.wait(t, 2*n)
		checkOnce(t, s.ids(), 2*n)
		checkOrder(t, s)
	}
	e.close(t)
}

// The lag of a Trigger counts its own events, not those of others that came after the
// one that it is at.
func TestReader_lagCountsWhatTheTriggerHasToDo(t *testing.T) {
	hold, asked := make(chan struct{}), make(chan struct{}, 1)
	slow := newSubscriber(t, func([]events.Message) (int, []events.Message) {
		asked <- struct{}{}
		<-hold
		return 202, nil
	})
	quick := newSubscriber(t, nil)
	const n = 500
	e := startEngine(t, newCluster(t), graphOf(triggerFor("slow", "rare", slow.url), triggerFor("quick", "test", quick.url)),
		func(c *Config) { c.Partitions = 1 })
	if err := e.send(t.Context(), message("rare", "rare", "/s", "{}")); err != nil {
		t.Fatal(err)
	}
	<-asked
	e.sendMany(t, 0, n, 10)
	quick.wait(t, n)
	if err := eventually(t.Context(), func() error {
		if st := e.Stats().Triggers; st[0].Lag != 1 || st[1].Lag != 0 {
			return fmt.Errorf("lags %d and %d", st[0].Lag, st[1].Lag)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	close(hold)
	slow.wait(t, 1)
	e.level(t, 1)
	e.close(t)
}

func checkOnce(t *testing.T, got map[string]int, n int) {
	t.Helper()
	want := map[string]int{}
	for i := range n {
		want[strconv.Itoa(i)] = 1
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deliveries (-want +got):\n%s", diff)
	}
}

// However Triggers get slow and quick again, are detached and attached: each gets each
// of its events once, in order, and in the end its position is the end of the topic.
func TestReader_detachesAndAttaches(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			cluster := newCluster(t)
			const triggers, types, partitions = 6, 3, 3
			var delays [triggers]atomic.Int64
			// The first one is stuck until it was seen detached, the others come and go as
			// they happen to.
			hold := make(chan struct{})
			subscribers := make([]*subscriber, triggers)
			var manifests []string
			for i := range subscribers {
				subscribers[i] = newSubscriber(t, func([]events.Message) (int, []events.Message) {
					if i == 0 {
						<-hold
					}
					time.Sleep(time.Duration(delays[i].Load()))
					return 202, nil
				})
				manifests = append(manifests, triggerFor("t"+strconv.Itoa(i), "type"+strconv.Itoa(i%types), subscribers[i].url))
			}
			e := startEngine(t, cluster, graphOf(manifests...), func(c *Config) {
				c.Partitions, c.BufferBytes, c.BatchEvents = partitions, 4<<10, 1+random.IntN(20)
			})
			want := [types]map[string]int{{}, {}, {}}
			released := false
			for at := 0; at < 2500; {
				for i := range delays {
					delays[i].Store(int64(random.IntN(3)) * int64(time.Millisecond))
				}
				var ms []events.Message
				for range 1 + random.IntN(100) {
					id, typ := strconv.Itoa(at), random.IntN(types)
					m := message(id, "type"+strconv.Itoa(typ), "/s", `{"n":`+id+`}`)
					m.Set(events.PartitionKey, "k"+strconv.Itoa(at%10))
					ms, at = append(ms, m), at+1
					want[typ][id] = 1
				}
				if err := e.send(t.Context(), ms...); err != nil {
					t.Fatal(err)
				}
				if at > 1200 && !released {
					released = true
					e.awaitDetached(t, 0, partitions)
					close(hold)
				}
			}
			for i := range delays {
				delays[i].Store(0)
			}
			for i, s := range subscribers {
				s.wait(t, len(want[i%types]))
			}
			e.level(t, partitions)
			for i, s := range subscribers {
				if diff := cmp.Diff(want[i%types], s.ids()); diff != "" {
					t.Errorf("deliveries to Trigger %d (-want +got):\n%s", i, diff)
				}
				checkOrder(t, s)
			}
			e.close(t)
			checkCommitted(t, kadm.NewClient(newClient(t, cluster)), triggers)
		})
	}
}

// awaitDetached waits until the Trigger is read apart from the others in some partition.
func (e *running) awaitDetached(t *testing.T, trigger int, partitions int32) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		for id := range partitions {
			if !e.lane(t, trigger, id).attached.Load() {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("Trigger %d, which is stuck, is still attached in every partition", trigger)
		}
		time.Sleep(time.Millisecond)
	}
}

// checkCommitted holds the committed offsets of Triggers t0, t1, ... against the ends.
func checkCommitted(t *testing.T, admin *kadm.Client, triggers int) {
	t.Helper()
	const topic = "knative-broker-m-default"
	ends, err := admin.ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for i := range triggers {
		offsets, err := admin.FetchOffsets(t.Context(), "knative-trigger-m-t"+strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		ends.Each(func(end kadm.ListedOffset) {
			if at, ok := offsets.Lookup(topic, end.Partition); !ok || at.At != end.Offset {
				t.Errorf("Trigger %d has committed %d of %d in partition %d", i, at.At, end.Offset, end.Partition)
			}
		})
	}
}

// Triggers go on from the offsets of their own groups, near to each other and far
// apart, and those committed by an engine that read each for itself.
func TestReader_goesOnFromEachTriggersOffset(t *testing.T) {
	cluster := newCluster(t)
	client := newClient(t, cluster)
	const topic, n, every = "knative-broker-m-default", near + 5000, 50
	if err := kafka.EnsureTopics(t.Context(), client, map[string]int32{topic: 1}, 1); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		m := message(strconv.Itoa(i), "other", "/s", "")
		if i%every == 0 {
			m.Set("type", "test")
		}
		client.Produce(t.Context(), kafka.ToRecord(topic, &m), nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := kadm.NewClient(client)
	begins := []int64{0, 1000, near, n - 10, n}
	var subscribers []*subscriber
	var manifests []string
	for i, at := range begins {
		offsets := kadm.Offsets{}
		offsets.AddOffset(topic, 0, at, -1)
		if err := admin.CommitAllOffsets(t.Context(), "knative-trigger-m-t"+strconv.Itoa(i), offsets); err != nil {
			t.Fatal(err)
		}
		subscribers = append(subscribers, newSubscriber(t, nil))
		manifests = append(manifests, triggerFor("t"+strconv.Itoa(i), "test", subscribers[i].url))
	}
	e := startEngine(t, cluster, graphOf(manifests...), func(c *Config) { c.Partitions = 1 })
	if err := e.send(t.Context(), message(strconv.Itoa(n), "test", "/s", "")); err != nil {
		t.Fatal(err)
	}
	for i, s := range subscribers {
		want := map[string]int{}
		for id := begins[i]; id <= n; id++ {
			if id%every == 0 {
				want[strconv.FormatInt(id, 10)] = 1
			}
		}
		s.wait(t, len(want))
		if diff := cmp.Diff(want, s.ids()); diff != "" {
			t.Errorf("deliveries to Trigger %d (-want +got):\n%s", i, diff)
		}
	}
	e.level(t, 1)
	e.close(t)
	checkCommitted(t, admin, len(begins))
}

// Nothing is committed while nothing moves, and what a Trigger does not want moves its
// offset, too.
func TestReader_commits(t *testing.T) {
	cluster := newCluster(t)
	s := newSubscriber(t, nil)
	e := startEngine(t, cluster, graphOf(triggerFor("t0", "test", s.url), triggerFor("t1", "other", s.url)), nil)
	admin := kadm.NewClient(newClient(t, cluster))
	committed := func() error {
		ends, err := admin.ListEndOffsets(t.Context(), "knative-broker-m-default")
		if err != nil {
			return err
		}
		for _, group := range []string{"knative-trigger-m-t0", "knative-trigger-m-t1"} {
			offsets, err := admin.FetchOffsets(t.Context(), group)
			if err != nil {
				return err
			}
			for _, end := range ends["knative-broker-m-default"] {
				if at, _ := offsets.Lookup(end.Topic, end.Partition); at.At != end.Offset {
					return fmt.Errorf("%s: %d of %d are committed in partition %d", group, at.At, end.Offset, end.Partition)
				}
			}
		}
		return nil
	}
	e.sendMany(t, 0, 100, 10)
	if err := eventually(t.Context(), committed); err != nil {
		t.Fatal(err)
	}
	var commits, fetches atomic.Int32
	cluster.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		switch req.(type) {
		case *kmsg.OffsetCommitRequest:
			commits.Add(1)
		case *kmsg.FetchRequest:
			fetches.Add(1)
		}
		return nil, nil, false
	})
	// A fetch that brings nothing takes many intervals.
	if err := eventually(t.Context(), func() error {
		if n := fetches.Load(); n < 3 {
			return fmt.Errorf("%d fetches", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := commits.Load(); n > 0 {
		t.Errorf("%d commits while nothing moved", n)
	}
	e.sendMany(t, 100, 1, 1)
	if err := eventually(t.Context(), committed); err != nil {
		t.Fatal(err)
	}
	e.close(t)
}

// An engine of the kind that makes each Trigger a member of its group keeps this one
// from beginning until it has gone.
func TestReader_waitsForGroupsToBeLeft(t *testing.T) {
	cluster := newCluster(t)
	const topic = "knative-broker-m-default"
	client := newClient(t, cluster)
	if err := kafka.EnsureTopics(t.Context(), client, map[string]int32{topic: 1}, 1); err != nil {
		t.Fatal(err)
	}
	member := newClient(t, cluster, kgo.ConsumerGroup("knative-trigger-m-t0"), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit())
	admin := kadm.NewClient(client)
	if err := eventually(t.Context(), func() error {
		busy, err := groupMembers(t.Context(), admin, "knative-trigger-m-t0")
		if err == nil && len(busy) == 0 {
			err = fmt.Errorf("the group has no members")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s := newSubscriber(t, nil)
	g, err := Load(write(t, graphOf(triggerFor("t0", "test", s.url))))
	if err != nil {
		t.Fatal(err)
	}
	var e *Engine
	if e, err = New(Config{Graph: g, Kafka: kafka.Config{Brokers: cluster.ListenAddrs()}}); err != nil {
		t.Fatal(err)
	}
	if err := e.prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "has members") {
		t.Errorf("preparing beside a member: %v", err)
	}
	member.Close()
	if err := eventually(t.Context(), func() error { return e.prepare(t.Context()) }); err != nil {
		t.Error(err)
	}
}

// The types that the index goes by never keep an event from a Trigger whose filter it
// passes.
func TestInterest_property(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	types := []string{"a", "b", "c", ""}
	for range 2000 {
		var filters []Filter
		for range 1 + random.IntN(6) {
			var f Filter
			if random.IntN(8) > 0 {
				f.root = randomCondition(random, types, 3)
			}
			filters = append(filters, f)
		}
		x := newInterest(filters...)
		for _, typ := range append(slices.Clone(types), "d") {
			m := message("1", typ, "/s", "")
			var want, got []int
			for i, f := range filters {
				if f.Match(&m) {
					want = append(want, i)
				}
			}
			x.match(&events.Message{}, kafka.ToRecord("t", &m), func(i int, _ queued) { got = append(got, i) })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("type %q (-want +got):\n%s", typ, diff)
			}
		}
	}
}

func randomCondition(random *rand.Rand, types []string, depth int) condition {
	sub := func() condition { return randomCondition(random, types, depth-1) }
	several := func() []condition {
		var cs []condition
		for range random.IntN(4) {
			cs = append(cs, sub())
		}
		return cs
	}
	kind := random.IntN(6)
	if depth == 0 {
		kind = random.IntN(3)
	}
	typ := types[random.IntN(len(types))]
	switch kind {
	case 0:
		return &comparison{names: []string{"source", "type"}, values: []string{"/s", typ}, compare: equalOrAny, equal: true}
	case 1:
		return &comparison{names: []string{"type"}, values: []string{typ}, compare: strings.HasPrefix}
	case 2:
		return &comparison{names: []string{"type"}, values: []string{typ}, compare: func(got, want string) bool { return got == want }, equal: true}
	case 3:
		return conjunction(several())
	case 4:
		return disjunction(several())
	default:
		return negation{sub()}
	}
}

// What waits keeps nothing of what it was fetched with.
func TestQueued_own(t *testing.T) {
	m := message("1", "test", "/s", `{"a":1}`)
	m.Set("subject", "grün")
	for _, data := range [][]byte{m.Data, {}, nil} {
		r := kafka.ToRecord("t", &events.Message{Attrs: m.Attrs, Data: data})
		fetched := slices.Clone(r.Value)
		got := queued{m: events.Message{Attrs: slices.Clone(m.Attrs), Data: r.Value}}
		got.own()
		if diff := cmp.Diff(events.Message{Attrs: m.Attrs, Data: fetched}, got.m); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if len(data) > 0 && &got.m.Data[0] == &r.Value[0] {
			t.Error("the data is still the record's")
		}
	}
}

// A Broker may get partitions while it is read: they are read from their start.
func TestReader_morePartitions(t *testing.T) {
	cluster := newCluster(t)
	s := newSubscriber(t, nil)
	e := startEngine(t, cluster, graphOf(triggerFor("t0", "test", s.url)), func(c *Config) {
		c.Partitions = 1
		c.KafkaOptions = append(c.KafkaOptions, kgo.MetadataMaxAge(50*time.Millisecond))
	})
	e.sendMany(t, 0, 10, 10)
	s.wait(t, 10)
	client := newClient(t, cluster)
	const topic = "knative-broker-m-default"
	if _, err := kadm.NewClient(client).UpdatePartitions(t.Context(), 3, topic); err != nil {
		t.Fatal(err)
	}
	var produced sync.WaitGroup
	for i := range 100 {
		m := message(strconv.Itoa(10+i), "test", "/s", "")
		r := kafka.ToRecord(topic, &m)
		r.Key = []byte("k" + strconv.Itoa(i))
		produced.Add(1)
		client.Produce(t.Context(), r, func(_ *kgo.Record, err error) {
			defer produced.Done()
			if err != nil {
				t.Error(err)
			}
		})
	}
	produced.Wait()
	s.wait(t, 110)
	checkOnce(t, s.ids(), 110)
	e.close(t)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

// The keys are those that readers of the reference lake look for, one object an
// hour and chunk, whatever order the timestamps come in.
func TestDrain_cutsByChunkAndHour(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(2), laketest.Bucket()
	c := config(topic, bucket)
	c.Chunk = 4
	w.produce(topic,
		record(0, "a", noon, `{"n":0}`),
		record(0, "b", noon.Add(time.Hour), `{"n":1}`),
		record(0, "c", noon.Add(59*time.Minute), `{"n":2}`), // back in time
		record(0, "a", noon, `{"n":3}`),                     // delivered twice
		record(0, "d", noon, `{"n":4}`),                     // a new chunk
		record(1, "a", noon, `{"n":5}`),                     // another partition
	)
	w.drain(w.drainer(c))

	line := func(p, o int, at time.Time, id string, n int) string {
		return fmt.Sprintf(`{"n":%d,"_kafka":{"partition":%d,"offset":%d,"timestamp":%d,"id":"%s","source":"/test","type":"t"}}`+"\n", n, p, o, at.UnixMilli(), id)
	}
	dir := "topics/" + topic + "/year=2025/month=01/day=07/"
	want := map[string]string{
		dir + "hour=12/" + topic + "+0+0000000000.json": line(0, 0, noon, "a", 0) + line(0, 2, noon.Add(59*time.Minute), "c", 2),
		dir + "hour=13/" + topic + "+0+0000000001.json": line(0, 1, noon.Add(time.Hour), "b", 1),
		dir + "hour=12/" + topic + "+0+0000000004.json": line(0, 4, noon, "d", 4),
		dir + "hour=12/" + topic + "+1+0000000000.json": line(1, 0, noon, "a", 5),
	}
	if diff := cmp.Diff(want, w.bucket(bucket)); diff != "" {
		t.Errorf("bucket (-want +got):\n%s", diff)
	}
	if got := []int64{w.committed(c, topic, 0), w.committed(c, topic, 1)}; !slices.Equal(got, []int64{5, 1}) {
		t.Errorf("committed %d, want 5 and 1", got)
	}
}

// A tick makes an idle partition's last records visible; the next one puts more
// under the same key and leaves alone what has not changed.
func TestDrain_replacesThePartialChunk(t *testing.T) {
	for _, cold := range []bool{false, true} {
		t.Run(fmt.Sprint("cold=", cold), func(t *testing.T) {
			w := newWorld(t)
			topic, bucket := w.topic(1), laketest.Bucket()
			c := config(topic, bucket)
			d := w.drainer(c)
			writes := func() map[string]time.Time {
				m := map[string]time.Time{}
				for o, err := range w.store.List(t.Context(), bucket, "", "") {
					if err != nil {
						t.Fatal(err)
					}
					m[o.Key+" "+o.ETag] = o.Modified
				}
				return m
			}
			w.produce(topic, record(0, "a", noon, "{}"), record(0, "b", noon.Add(time.Hour), "{}"))
			w.drain(d)
			first := writes()
			w.drain(d)
			if diff := cmp.Diff(first, writes()); diff != "" {
				t.Errorf("a drain of nothing new wrote (-before +after):\n%s", diff)
			}
			if cold {
				d = w.drainer(c)
			}
			w.produce(topic, record(0, "c", noon, "{}"), record(0, "a", noon, "{}"))
			w.drain(d)
			second := writes()
			if len(second) != 2 {
				t.Errorf("%d objects, want 2: %v", len(second), second)
			}
			same := 0
			for k, at := range second {
				if first[k].Equal(at) {
					same++
				}
			}
			if same != 1 {
				t.Errorf("%d objects were left alone, want the one that has nothing new", same)
			}
			events, _ := w.ids(bucket)
			if diff := cmp.Diff(map[string]int{"a": 1, "b": 1, "c": 1}, events); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

// The lake's content is a function of the log: whenever ticks come, whichever
// process serves them, however warm it is, and wherever it dies.
func TestDrain_contentDoesNotDependOnTheSchedule(t *testing.T) {
	w := newWorld(t)
	for round := range rounds(12) {
		rng := seed(t, uint64(round))
		partitions := int32(1 + rng.IntN(3))
		topic, bucket := w.topic(partitions), laketest.Bucket()
		c := config(topic, bucket)
		c.Chunk = int64(1 + rng.IntN(40))
		c.ChunkBytes = 100 + rng.IntN(20_000)
		c.DedupWindow = int64(rng.IntN(100))
		c.Parallel = 1 + rng.IntN(4)
		fault, store := w.flaky()

		var d *Drainer
		var deaths int
		for n, total := 0, 50+rng.IntN(250); n < total; {
			var batch []*kgo.Record
			for range 1 + rng.IntN(60) {
				batch = append(batch, randomRecord(rng, rng.Int32N(partitions), n))
				n++
			}
			w.produce(topic, batch...)
			for range rng.IntN(3) {
				if d == nil || rng.IntN(3) == 0 {
					d = w.drainerOn(c, store) // a new process
				}
				ctx, die := context.WithCancel(t.Context())
				switch rng.IntN(4) {
				case 0:
					fault.failAfter(int64(rng.IntN(8)), rng.IntN(2) == 0, die)
				case 1: // killed between write and commit
					if w.cluster == nil {
						break
					}
					w.cluster.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
						die()
						return nil, errors.New("gone"), true
					})
				}
				if err := d.Drain(ctx); err != nil {
					deaths++
					if rng.IntN(2) == 0 {
						d = nil
					}
				}
				die()
				fault.heal()
				if w.cluster != nil {
					w.cluster.DropControl()
				}
			}
		}
		w.drain(w.drainerOn(c, store))

		fresh := c
		fresh.Group, fresh.Routes = "fresh-"+bucket, Routes{{topic, laketest.Bucket()}}
		w.drain(w.drainer(fresh))
		want, got := w.bucket(fresh.Routes[0].Bucket), w.bucket(bucket)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("round %d, %d deaths: the bucket differs from that of one undisturbed drain (-want +got):\n%s", round, deaths, diff)
		}
		if len(want) == 0 {
			t.Fatalf("round %d: nothing was written", round)
		}
	}
}

// Processes that drain at the same time do double work and no harm.
func TestDrain_manyAtOnce(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(2), laketest.Bucket()
	c := config(topic, bucket)
	c.Chunk, c.ChunkBytes = 50, 3000
	rng := seed(t, 1)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		d := w.drainer(c)
		for range 2 { // two ticks at once in each
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := d.Drain(t.Context()); err != nil { //nolint:contextcheck // ctx only says when to stop
						t.Error(err)
						return
					}
				}
			})
		}
	}
	for n := 0; n < 1500; {
		var batch []*kgo.Record
		for range 1 + rng.IntN(40) {
			batch = append(batch, randomRecord(rng, rng.Int32N(2), n))
			n++
		}
		w.produce(topic, batch...)
	}
	stop()
	wg.Wait()
	w.drain(w.drainer(c))

	fresh := c
	fresh.Group, fresh.Routes = "fresh-"+bucket, Routes{{topic, laketest.Bucket()}}
	w.drain(w.drainer(fresh))
	if diff := cmp.Diff(w.bucket(fresh.Routes[0].Bucket), w.bucket(bucket)); diff != "" {
		t.Errorf("the bucket differs from that of one undisturbed drain (-want +got):\n%s", diff)
	}
}

// A process that stood still in the middle of a write must not put its older,
// shorter object over that of a faster one.
func TestDrain_aSlowWriteDoesNotUndoAFasterOne(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(1), laketest.Bucket()
	c := config(topic, bucket)
	for _, before := range []int{0, 1} { // whether the object exists when the slow one begins
		for i := range before {
			w.produce(topic, record(0, fmt.Sprint("before", i), noon, "{}"))
			w.drain(w.drainer(c))
		}
		w.produce(topic, record(0, fmt.Sprint("slow", before), noon, "{}"))
		arrived, release := make(chan struct{}), make(chan struct{})
		gate := http.NewServeMux()
		gate.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, topic) {
				select {
				case arrived <- struct{}{}:
				case <-release:
				}
				<-release
			}
			w.forward().ServeHTTP(rw, r)
		})
		server := httptest.NewServer(gate)
		t.Cleanup(server.Close)
		sc := w.s3
		sc.Endpoint = server.URL
		slowStore, err := sc.Connect()
		if err != nil {
			t.Fatal(err)
		}
		slow := w.drainerOn(c, slowStore)
		ended := make(chan error, 1)
		go func() { ended <- slow.Drain(t.Context()) }()
		select {
		case <-arrived:
		case err := <-ended:
			t.Fatalf("the slow drain ended before it wrote: %v", err)
		}

		w.produce(topic, record(0, fmt.Sprint("fast", before), noon, "{}"))
		w.drain(w.drainer(c))
		want := w.bucket(bucket)
		at := w.committed(c, topic, 0)
		close(release)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, w.bucket(bucket)); diff != "" {
			t.Errorf("the slow write changed the lake (-want +got):\n%s", diff)
		}
		if now := w.committed(c, topic, 0); now != at {
			t.Errorf("committed %d, was %d", now, at)
		}
	}
}

// What Kafka has deleted stays in the lake, once.
func TestDrain_onceThoughTheLogsStartMoves(t *testing.T) {
	w := newWorld(t)
	for round := range rounds(10) {
		rng := seed(t, uint64(round))
		topic, bucket := w.topic(1), laketest.Bucket()
		c := config(topic, bucket)
		c.Chunk = int64(5 + rng.IntN(60))
		c.DedupWindow = int64(rng.IntN(60))
		fault, store := w.flaky()
		n := 0
		for range 12 {
			var batch []*kgo.Record
			for range 1 + rng.IntN(20) {
				batch = append(batch, record(0, fmt.Sprint("e", n), noon.Add(time.Duration(n)*4*time.Minute), "{}"))
				n++
			}
			w.produce(topic, batch...)
			ctx, die := context.WithCancel(t.Context())
			if rng.IntN(3) == 0 {
				fault.failAfter(int64(rng.IntN(6)), true, die)
			}
			_ = w.drainerOn(c, store).Drain(ctx)
			die()
			fault.heal()
			switch rng.IntN(5) {
			case 0, 1: // retention: nothing that was not drained
				if at := w.committed(c, topic, 0); at > 0 {
					w.deleteRecords(topic, rng.Int64N(at+1))
				}
			case 2: // Kafka has forgotten the group
				if _, err := w.admin.DeleteGroups(t.Context(), c.Group); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
					t.Fatal(err)
				}
			case 3: // another layout, after a drain that was not cut short
				w.drain(w.drainer(c))
				c.Chunk = int64(5 + rng.IntN(60))
				c.DedupWindow = int64(rng.IntN(60))
			}
		}
		w.drain(w.drainer(c))
		events, offsets := w.ids(bucket)
		for i := range n {
			if events[fmt.Sprint("e", i)] != 1 || offsets[fmt.Sprint("0/", i)] != 1 {
				t.Fatalf("round %d: event %d of %d is in the lake %d times, want once", round, i, n, events[fmt.Sprint("e", i)])
			}
		}
	}
}

func (w *world) deleteRecords(topic string, before int64) {
	w.t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Offset = before
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	req.TimeoutMillis = 5000
	for _, res := range w.client.RequestSharded(w.t.Context(), req) {
		if res.Err != nil {
			w.t.Fatal(res.Err)
		}
	}
}

// Records that Kafka deleted before they were drained are gone; that is counted,
// and what is left is drained.
func TestDrain_countsWhatWasLost(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(1), laketest.Bucket()
	c := config(topic, bucket)
	d := w.drainer(c)
	w.produce(topic, record(0, "a", noon, "{}"))
	w.drain(d)
	w.produce(topic, record(0, "b", noon, "{}"), record(0, "c", noon, "{}"), record(0, "d", noon, "{}"))
	w.deleteRecords(topic, 3)
	w.drain(d)
	events, _ := w.ids(bucket)
	if diff := cmp.Diff(map[string]int{"a": 1, "d": 1}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if d.lost != 2 {
		t.Errorf("%d offsets lost, want 2", d.lost)
	}
}

// Aborted transactions and the marks of transactions are offsets without records,
// also at the very end; what is not committed yet waits.
func TestDrain_readsCommittedOnly(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(1), laketest.Bucket()
	c := config(topic, bucket)
	c.Chunk = 3
	d := w.drainer(c)
	tx := w.newClient(kgo.TransactionalID("tx-"+bucket), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic))
	transaction := func(end kgo.TransactionEndTry, ids ...string) {
		t.Helper()
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if err := tx.ProduceSync(t.Context(), record(0, id, noon, "{}")).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	transaction(kgo.TryCommit, "a", "b")
	transaction(kgo.TryAbort, "x", "y", "z", "u", "v")
	w.eventually(func() bool { // a transaction's mark follows its end
		w.drain(d)
		return w.committed(c, topic, 0) == 2+1+5+1
	})
	if err := tx.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := tx.ProduceSync(t.Context(), record(0, "late", noon, "{}")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.drain(d)
	events, _ := w.ids(bucket)
	if diff := cmp.Diff(map[string]int{"a": 1, "b": 1}, events); diff != "" {
		t.Errorf("events while a transaction is open (-want +got):\n%s", diff)
	}
	if err := tx.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() bool {
		w.drain(d)
		return w.committed(c, topic, 0) == 11
	})
	events, _ = w.ids(bucket)
	if diff := cmp.Diff(map[string]int{"a": 1, "b": 1, "late": 1}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A route whose topic is missing does not stop the others, and joins them later.
func TestDrain_aTopicIsMissing(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(1), laketest.Bucket()
	c := config(topic, bucket)
	late := laketest.Bucket()
	c.Routes = append(Routes{{late, bucket}}, c.Routes...)
	d := w.drainer(c)
	w.produce(topic, record(0, "a", noon, "{}"))
	w.drain(d)
	status, err := d.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !status[0].Missing || status[1].Missing || status[1].Lag != 0 {
		t.Errorf("status %+v, want the first route missing and the second drained", status)
	}
	w.create(late, 1)
	w.produce(late, record(0, "b", noon, "{}"))
	var events map[string]int
	w.eventually(func() bool { // the topic is news to the client for a moment
		w.drain(d)
		events, _ = w.ids(bucket)
		return len(events) == 2
	})
	if diff := cmp.Diff(map[string]int{"a": 1, "b": 1}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// When a store is away the tick is to come again, and nothing is committed.
func TestHandler_dependencyAway(t *testing.T) {
	w := newWorld(t)
	w.needFaults()
	topic, bucket := w.topic(1), laketest.Bucket()
	c := config(topic, bucket)
	w.produce(topic, record(0, "a", noon, "{}"))

	away := laketest.NewServer(t)
	store, err := away.Config.Connect()
	if err != nil {
		t.Fatal(err)
	}
	s, err := function.New(function.Config{Name: "lake"}, handler(w.drainerOn(c, store)))
	if err != nil {
		t.Fatal(err)
	}
	post := func(s *function.Server) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		for k, v := range map[string]string{"Ce-Id": "1", "Ce-Source": "/t", "Ce-Type": "tick", "Ce-Specversion": "1.0", "Content-Type": "application/json"} {
			r.Header.Set(k, v)
		}
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, r)
		return rec
	}
	rec := post(s)
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" || !strings.Contains(rec.Body.String(), away.Config.Endpoint) {
		t.Errorf("S3 away: %d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	if at := w.committed(c, topic, 0); at != -1 {
		t.Errorf("committed %d though nothing is in the lake", at)
	}
	away.Start()
	if rec := post(s); rec.Code/100 != 2 {
		t.Errorf("S3 back: %d %s", rec.Code, rec.Body)
	}
	if at := w.committed(c, topic, 0); at != 1 {
		t.Errorf("committed %d, want 1", at)
	}

	w.cluster.Close()
	if rec := post(s); rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), "Kafka") {
		t.Errorf("Kafka away: %d %s", rec.Code, rec.Body)
	}
}

// A topic that was made anew reuses offsets, and so keys: it must not replace the
// old one's objects, nor be taken for it, whether Kafka still has the group's
// offsets of the old one or not.
func TestDrain_aTopicWasMadeAnew(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		t.Run(fmt.Sprint("forgotten=", forgotten), func(t *testing.T) {
			w := newWorld(t)
			topic, bucket := w.topic(1), laketest.Bucket()
			c := config(topic, bucket)
			w.produce(topic, record(0, "a", noon, "{}"), record(0, "b", noon, "{}"))
			w.drain(w.drainer(c))
			want := w.bucket(bucket)
			if _, err := w.admin.DeleteTopic(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			w.create(topic, 1)
			w.client = w.newClient(kgo.RecordPartitioner(kgo.ManualPartitioner())) // the old one knows the old topic
			for n := range 5 {
				w.produce(topic, record(0, fmt.Sprint("new", n), noon, "{}"))
			}
			if forgotten {
				if _, err := w.admin.DeleteGroups(t.Context(), c.Group); err != nil {
					t.Fatal(err)
				}
			}
			d := w.drainer(c)
			w.drain(d)
			if diff := cmp.Diff(want, w.bucket(bucket)); diff != "" {
				t.Errorf("the old topic's objects (-want +got):\n%s", diff)
			}
			status, err := d.status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if p := status[0].Partitions[0]; !strings.Contains(p.Problem, "made anew") || p.Lag == 0 {
				t.Errorf("status %+v", p)
			}
		})
	}
}

// A drain that runs out of time keeps what it has done.
func TestDrain_goesOnAtTheNextTick(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(1), laketest.Bucket()
	c := config(topic, bucket)
	c.MaxDrain = 1
	d := w.drainer(c)
	for n := range 35 {
		w.produce(topic, record(0, fmt.Sprint("e", n), noon, "{}"))
	}
	for _, want := range []int64{10, 20, 30, 35} {
		w.drain(d)
		if at := w.committed(c, topic, 0); at != want {
			t.Errorf("committed %d, want %d", at, want)
		}
	}
	if events, _ := w.ids(bucket); len(events) != 35 {
		t.Errorf("%d events, want 35", len(events))
	}
}

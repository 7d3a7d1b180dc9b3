package eventing

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// The position is always the offset of the first event that is not finished, or the
// end when all are, however events are begun, skipped and finished; the lag is what is
// open and what has not been seen.
func TestTracker_property(t *testing.T) {
	property := func(seed uint64) bool {
		random := rand.New(rand.NewPCG(seed, 0))
		var tr tracker
		var next int64
		open := map[uint64]int64{} // number -> offset, the plain model
		seen := false
		for range 300 {
			switch {
			case random.IntN(2) == 0:
				for range random.IntN(5) { // records that do not match
					next++
				}
				open[tr.begin(next)] = next
				next++
				tr.skip(next)
				seen = true
			case random.IntN(4) == 0:
				next += int64(random.IntN(3))
				tr.skip(next)
				seen = true
			default:
				// Any run of neighbours that are open.
				for number := range open {
					n := 0
					for {
						if _, ok := open[number+uint64(n)]; !ok || n == 4 {
							break
						}
						n++
					}
					tr.finish(number, n)
					for i := range n {
						delete(open, number+uint64(i))
					}
					break
				}
			}
			want := next
			for _, offset := range open {
				want = min(want, offset)
			}
			got, ok := tr.position()
			if ok != seen || ok && got != want {
				t.Logf("seed %d: position %d, %t, want %d", seed, got, ok, want)
				return false
			}
			unseen := int64(random.IntN(3))
			if lag := tr.lag(next + unseen); seen && lag != int64(len(open))+unseen {
				t.Logf("seed %d: lag %d, %d are open and %d not seen", seed, lag, len(open), unseen)
				return false
			}
		}
		return true
	}
	if err := quick.Check(property, nil); err != nil {
		t.Error(err)
	}
}

func TestNext(t *testing.T) {
	names := map[step]string{again: "again", halve: "halve", apart: "apart", giveUp: "give up"}
	for _, test := range []struct {
		status            int
		many, left, lasts bool // several events, tries left, forever
		patient, final    bool
		want              step
	}{
		{status: 0, left: true, want: again},
		{status: 0, want: giveUp},
		{status: 503, left: true, want: again},
		{status: 503, want: giveUp},
		{status: 400, left: true, want: giveUp},
		{status: 302, left: true, want: giveUp},
		{status: 413, left: true, want: giveUp},
		{status: 415, left: true, want: giveUp},
		{status: 400, lasts: true, want: again},
		{status: 200, final: true, left: true, want: giveUp},
		{status: 200, final: true, lasts: true, want: again},
		{status: 0, patient: true, want: again},
		{status: 0, patient: true, many: true, want: again},
		{status: 0, many: true, left: true, want: again},
		{status: 0, many: true, want: apart},
		{status: 429, many: true, left: true, want: again},
		{status: 429, many: true, lasts: true, want: again},
		{status: 503, many: true, want: apart},
		{status: 500, many: true, left: true, want: halve},
		{status: 502, many: true, want: halve},
		{status: 413, many: true, left: true, want: halve},
		{status: 200, final: true, many: true, left: true, want: halve},
		{status: 400, many: true, left: true, want: apart},
		{status: 415, many: true, left: true, want: apart},
		{status: 404, many: true, left: true, want: again},
	} {
		n := 1
		if test.many {
			n = 10
		}
		got := next(outcome{err: errors.New("x"), status: test.status, patient: test.patient, final: test.final}, n, test.left, test.lasts)
		if got != test.want {
			t.Errorf("%+v: got %s, want %s", test, names[got], names[test.want])
		}
	}
}

func TestDelivery_delay(t *testing.T) {
	second := time.Second
	var nothing time.Duration
	for _, test := range []struct {
		name       string
		d          *Delivery
		n          int
		retryAfter time.Duration
		want       time.Duration
	}{
		{"none", nil, 1, time.Minute, 0},
		{"no back-off", &Delivery{}, 3, 0, 0},
		{"exponential 1", &Delivery{Backoff: second, Exponential: true}, 1, 0, second},
		{"exponential 4", &Delivery{Backoff: second, Exponential: true}, 4, 0, 8 * second},
		{"exponential is bounded", &Delivery{Backoff: second, Exponential: true}, 400, 0, maxBackoff},
		{"linear 3", &Delivery{Backoff: second}, 3, 0, 3 * second},
		{"Retry-After is longer", &Delivery{Backoff: second}, 1, 5 * second, 5 * second},
		{"Retry-After is shorter", &Delivery{Backoff: second}, 9, 5 * second, 9 * second},
		{"Retry-After is bounded", &Delivery{RetryAfterMax: &second}, 1, 5 * second, second},
		{"Retry-After is ignored", &Delivery{RetryAfterMax: &nothing}, 1, 5 * second, 0},
		{"Retry-After without a bound", &Delivery{}, 1, 24 * time.Hour, maxRetryAfter},
	} {
		if got := test.d.delay(test.n, test.retryAfter); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "\t3": 3 * time.Second, "-1": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}

func TestErrorData(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "no price\n": "no price", "größer": "größer",
		"two\nlines": base64.StdEncoding.EncodeToString([]byte("two\nlines")),
		"\xff\xfe":   base64.StdEncoding.EncodeToString([]byte("\xff\xfe")),
	} {
		if got := errorData([]byte(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	property := func(b []byte) bool {
		got := errorData(b)
		return len(got) <= maxErrorData && utf8.ValidString(got)
	}
	for _, long := range []string{strings.Repeat("ä", 1000), "x" + strings.Repeat("ä", 1000), strings.Repeat("\x00", 5000)} {
		if !property([]byte(long)) {
			t.Errorf("%.10q...: too long or no UTF-8", long)
		}
	}
	if err := quick.Check(property, nil); err != nil {
		t.Error(err)
	}
}

func TestRecordDecoder(t *testing.T) {
	d := newRecordDecoder(&KafkaSource{
		Object: Object{Namespace: "millrace", Name: "raw"}, Topics: []string{"tracking.raw"}, Extensions: map[string]string{"site": "paris"},
	})
	at := time.Date(2019, 10, 1, 2, 30, 12, 500e6, time.UTC)
	event := message("1", "t", "/s", "{}")
	invalid := message("1", "t", "", "{}")
	broken := message("1", "t", "/s", "{}")
	broken.Set("note", "\xff")
	base := func(more ...string) map[string]string {
		m := map[string]string{
			"specversion": "1.0", "id": "partition:3/offset:7", "source": "/apis/v1/namespaces/millrace/kafkasources/raw#tracking.raw",
			"type": "dev.knative.kafka.event", "subject": "partition:3#7", "time": "2019-10-01T02:30:12.5Z", "site": "paris",
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
			if more[i+1] == "" {
				delete(m, more[i])
			}
		}
		return m
	}
	withHeaders := func(pairs ...string) *kgo.Record {
		r := &kgo.Record{}
		for i := 0; i < len(pairs); i += 2 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return r
	}
	for _, test := range []struct {
		name string
		r    *kgo.Record
		want map[string]string
	}{
		{"plain", &kgo.Record{Value: []byte("v")}, base()},
		{"tombstone", &kgo.Record{}, base()},
		{"key", &kgo.Record{Key: []byte("k")}, base("partitionkey", "k", "key", "k")},
		{"JSON key", &kgo.Record{Key: []byte(`{"id":1}`)}, base("partitionkey", `{"id":1}`, "key", `{"id":1}`)},
		{"binary key", &kgo.Record{Key: []byte{0, 1, 0xff, 'a'}}, base("partitionkey", "\ufffd\ufffd\ufffda", "key", "\ufffd\ufffd\ufffda")},
		{"empty key", &kgo.Record{Key: []byte{}}, base()},
		{"headers", withHeaders("Trace-ID", "7", "Content-Type", "Text/Plain", "empty", "", "--", "x"),
			base("kafkaheadertraceid", "7", "datacontenttype", "text/plain", "kafkaheader", "x")},
		{"a trace", withHeaders("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate", "a=b"),
			base("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate", "a=b")},
		{"an event", kafka.ToRecord("", &event), map[string]string{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "site": "paris"}},
		{"no valid event", kafka.ToRecord("", &invalid), base("kafkaheaderceid", "1", "kafkaheadercetype", "t", "kafkaheadercespecversion", "1.0")},
		{"no UTF-8", kafka.ToRecord("", &broken), base("kafkaheaderceid", "1", "kafkaheadercetype", "t", "kafkaheadercespecversion", "1.0", "kafkaheadercesource", "/s", "kafkaheadercenote", "\ufffd")},
		{"impossible time", &kgo.Record{Timestamp: time.UnixMilli(1569897012500000000)}, base("time", "")},
	} {
		r := *test.r
		r.Topic, r.Partition, r.Offset = "tracking.raw", 3, 7
		if r.Timestamp.IsZero() {
			r.Timestamp = at
		}
		var m events.Message
		if !d.decode(&m, &r) {
			t.Errorf("%s: skipped", test.name)
		}
		got := map[string]string{}
		for _, a := range m.Attrs {
			got[a.Name] = a.Value
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		if err := m.Validate(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if !bytes.Equal(m.Data, test.r.Value) || (m.Data == nil) != (test.r.Value == nil) {
			t.Errorf("%s: data %q", test.name, m.Data)
		}
	}
}

// Whatever a record holds, its event is valid and has the record's bytes.
func FuzzRecordDecoder(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), "ce_specversion", []byte("1.0"), "Content-Type", []byte("a"), int64(1))
	f.Add([]byte{0xff}, []byte(nil), "ce_id", []byte{0xff}, "", []byte{}, int64(-1))
	d := newRecordDecoder(&KafkaSource{Object: Object{Namespace: "m", Name: "s"}, Topics: []string{"t"}})
	f.Fuzz(func(t *testing.T, key, value []byte, k1 string, v1 []byte, k2 string, v2 []byte, at int64) {
		r := &kgo.Record{
			Topic: "t", Key: key, Value: value, Timestamp: time.UnixMilli(at),
			Headers: []kgo.RecordHeader{{Key: k1, Value: v1}, {Key: k2, Value: v2}},
		}
		var m events.Message
		d.decode(&m, r)
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		again, err := events.ParseJSON(events.AppendJSON(nil, &m))
		if m.Get("type") == events.KafkaRecord {
			if err != nil {
				t.Fatalf("the event cannot be sent: %v", err)
			}
			if !bytes.Equal(again.Data, value) {
				t.Fatalf("data %q, want %q", again.Data, value)
			}
		}
	})
}

// manualClock is a clock that a test moves.
type manualClock struct {
	mu    sync.Mutex
	now   time.Time
	waits map[chan time.Time]time.Time
	// waiting gets a value whenever somebody begins to wait.
	waiting chan time.Time
}

func newManualClock(now time.Time) *manualClock {
	return &manualClock{now: now, waits: map[chan time.Time]time.Time{}, waiting: make(chan time.Time, 100)}
}

func (c *manualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manualClock) At(t time.Time) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.waits[ch] = t
	c.waiting <- t
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waits, ch)
	}
}

func (c *manualClock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
	for ch, at := range c.waits {
		if !at.After(t) {
			ch <- t
			delete(c.waits, ch)
		}
	}
}

func newPinger(t *testing.T, p *PingSource, clock Clock, deliver func(scope, []events.Message) error) *pinger {
	t.Helper()
	schedule, err := cronParser.Parse(p.Schedule)
	if err != nil {
		t.Fatal(err)
	}
	return &pinger{source: p, schedule: schedule, clock: clock, flow: &flow{}, log: slog.New(slog.DiscardHandler), deliver: deliver}
}

func TestPinger(t *testing.T) {
	start := time.Date(2026, 11, 22, 9, 59, 55, 0, time.UTC)
	clock := newManualClock(start)
	got := make(chan events.Message)
	source := &PingSource{
		Object: Object{Namespace: "m", Name: "tick"}, Schedule: "CRON_TZ=UTC */10 * * * * *", ContentType: "application/json", Data: []byte("{}"),
		Extensions: map[string]string{"site": "paris"},
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := newPinger(t, source, clock, func(s scope, ms []events.Message) error {
		select {
		case got <- ms[0]:
			return nil
		case <-s.ctx.Done():
			return errStopped
		}
	})
	ended := make(chan struct{})
	go func() { p.run(scope{ctx, nil}); close(ended) }()

	due := <-clock.waiting
	if want := start.Add(5 * time.Second); !due.Equal(want) {
		t.Errorf("the first tick is due at %s, want %s", due, want)
	}
	clock.set(due)
	m := <-got
	want := map[string]string{
		"specversion": "1.0", "type": "dev.knative.sources.ping", "source": "/apis/v1/namespaces/m/pingsources/tick",
		"id": "tick-1795341600", "time": "2026-11-22T10:00:00Z", "datacontenttype": "application/json", "site": "paris",
	}
	attrs := map[string]string{}
	for _, a := range m.Attrs {
		attrs[a.Name] = a.Value
	}
	if diff := cmp.Diff(want, attrs); diff != "" || string(m.Data) != "{}" {
		t.Errorf("data %s (-want +got):\n%s", m.Data, diff)
	}
	// The machine sleeps for an hour: one tick, not hundreds.
	due = <-clock.waiting
	clock.set(due.Add(time.Hour))
	<-got
	if next := <-clock.waiting; !next.After(clock.Now()) {
		t.Errorf("after a sleep the next tick is due at %s, it is %s", next, clock.Now())
	}
	cancel()
	<-ended
}

// While a tick is being delivered the next ones are left out.
func TestPinger_noPileUp(t *testing.T) {
	clock := newManualClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	begun, release := make(chan struct{}, 100), make(chan struct{})
	p := newPinger(t, &PingSource{Schedule: "* * * * * *"}, clock, func(scope, []events.Message) error {
		begun <- struct{}{}
		<-release
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { p.run(scope{ctx, nil}); close(ended) }()
	for range 10 {
		clock.set(<-clock.waiting)
	}
	<-clock.waiting
	<-begun
	if len(begun) != 0 {
		t.Errorf("%d more deliveries have begun", len(begun))
	}
	if got := p.flow.matched.Load(); got != 1 {
		t.Errorf("%d ticks were delivered, want 1", got)
	}
	cancel()
	close(release)
	<-ended
}

func TestPinger_timeZone(t *testing.T) {
	g, err := Load(write(t, `
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: daily, namespace: m}
spec: {schedule: "0 9 * * *", timezone: Europe/Paris, sink: {uri: "http://a.test"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	schedule, err := cronParser.Parse(g.PingSources[0].Schedule)
	if err != nil {
		t.Fatal(err)
	}
	got := schedule.Next(time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)).UTC()
	if want := time.Date(2026, 7, 1, 7, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("due at %s, want %s", got, want)
	}
}

// A PingSource's ticks go the whole way.
func TestEngine_ping(t *testing.T) {
	clock := newManualClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	s := newSubscriber(t, nil)
	manifest := brokerManifest + `
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: tick, namespace: m}
spec:
  schedule: "*/10 * * * * *"
  sink:
    ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: ticks, namespace: m}
spec:
  broker: default
  filters: [{exact: {type: dev.knative.sources.ping}}, {suffix: {source: /pingsources/tick}}]
  subscriber: {uri: "` + s.url + `"}
`
	e := startEngine(t, newCluster(t), manifest, func(c *Config) { c.Clock = clock })
	// Ticks that come too soon after one another are left out, so there may be more.
	for len(s.ids()) < 3 {
		clock.set(<-clock.waiting)
	}
	e.close(t)
	if st := e.Stats().Sources[0]; st.Kind != "PingSource" || st.Delivered < 3 || st.Received < st.Delivered {
		t.Errorf("stats: %+v", st)
	}
	for id, n := range s.ids() {
		if n != 1 {
			t.Errorf("tick %s came %d times", id, n)
		}
	}
}

func TestFilter_neverPanics(t *testing.T) {
	g, err := Load(write(t, brokerManifest+`
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: m}
spec:
  broker: default
  subscriber: {uri: http://a.test}
  filters: [{cesql: "INT(x) / INT(y) > 1"}]
`))
	if err != nil {
		t.Fatal(err)
	}
	property := func(x, y, source string) bool {
		m := message("1", "t", source, "")
		m.Set("x", x)
		m.Set("y", y)
		g.Triggers[0].Filter.Match(&m)
		return true
	}
	if err := quick.Check(property, nil); err != nil {
		t.Error(err)
	}
	for values, want := range map[[2]string]bool{{"4", "2"}: true, {"2", "2"}: false, {"2", "0"}: false, {"a", "2"}: false} {
		m := message("1", "t", "/s", "")
		m.Set("x", values[0])
		m.Set("y", values[1])
		if got := g.Triggers[0].Filter.Match(&m); got != want {
			t.Errorf("%v: %t", values, got)
		}
	}
}

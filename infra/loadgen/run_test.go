package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shape"
	"github.com/millrace-dev/millrace/shared/events"
)

// loadgen runs the command and returns what it printed and its report.
func loadgen(t *testing.T, args ...string) (stdout string, r report, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.json")
	var out, log bytes.Buffer
	err = run(t.Context(), append(args, "-report", path), &out, &log)
	content, readErr := os.ReadFile(path)
	if readErr == nil {
		if err := json.Unmarshal(content, &r); err != nil {
			t.Fatalf("the report: %v", err)
		}
	} else if err == nil {
		t.Fatal(readErr)
	}
	return out.String(), r, err
}

func must(t *testing.T, args ...string) (string, report) {
	t.Helper()
	stdout, r, err := loadgen(t, args...)
	if err != nil {
		t.Fatalf("loadgen %v: %v", args, err)
	}
	return stdout, r
}

func TestShop_sameFlagsSameMessages(t *testing.T) {
	flags := []string{"shop", "-stdout", "-rate", "0", "-count", "3000", "-seed", "7"}
	one, _ := must(t, flags...)
	two, _ := must(t, flags...)
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("two runs differ (-first +second):\n%s", diff)
	}
	other, _ := must(t, append(flags, "-seed", "8")...)
	if one == other {
		t.Error("another seed gives the same messages")
	}
}

func TestShop_badShareLeavesGoodMessagesAlone(t *testing.T) {
	flags := []string{"shop", "-stdout", "-rate", "0", "-count", "5000"}
	clean, r := must(t, append(flags, "-bad", "0")...)
	if r.Bad != 0 || r.Good != 5000 {
		t.Errorf("%d good, %d bad, want none bad", r.Good, r.Bad)
	}
	mixed, r := must(t, append(flags, "-bad", "0.1")...)
	if r.Good+r.Bad != 5000 || r.Bad < 400 || r.Bad > 600 {
		t.Errorf("%d good, %d bad, want a tenth bad", r.Good, r.Bad)
	}
	if len(r.Kinds) != shape.Kinds+1 {
		t.Errorf("kinds %v, want all %d and good", r.Kinds, shape.Kinds)
	}
	cleanLines, same := strings.Split(clean, "\n"), uint64(0)
	for i, line := range strings.Split(mixed, "\n") {
		if line != "" && line == cleanLines[i] {
			same++
		}
	}
	if same != r.Good {
		t.Errorf("%d messages are as without bad ones, want the %d good ones", same, r.Good)
	}
}

func TestShop_truthTellsWhatEachMessageIs(t *testing.T) {
	truth := filepath.Join(t.TempDir(), "truth")
	stdout, r := must(t, "shop", "-stdout", "-rate", "0", "-count", "1000", "-truth", truth, "-bad-kinds", "price_negative,empty_body")
	content, err := os.ReadFile(truth)
	if err != nil {
		t.Fatal(err)
	}
	values := strings.Split(stdout, "\n")
	kinds := map[string]uint64{}
	for i, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
		var m struct {
			Seq      int
			Kind, Op string
			Session  string `json:"user_session"`
			Time     string `json:"event_time"`
			Product  int64  `json:"product_id"`
			Type     string `json:"event_type"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		kinds[m.Kind]++
		if m.Seq != i || m.Op != "c" {
			t.Errorf("line %d: seq %d, op %s", i, m.Seq, m.Op)
		}
		if m.Kind == "empty_body" {
			if values[i] != "" {
				t.Errorf("message %d is not empty", i)
			}
			continue
		}
		for _, part := range []string{m.Session, m.Time, strconv.FormatInt(m.Product, 10), `"` + m.Type + `"`} {
			if !strings.Contains(values[i], part) {
				t.Errorf("message %d does not contain %s: %s", i, part, values[i])
			}
		}
		if (m.Kind == "price_negative") != strings.Contains(values[i], `"price":-100,`) {
			t.Errorf("message %d is %s: %s", i, m.Kind, values[i])
		}
	}
	if diff := cmp.Diff(r.Kinds, kinds); diff != "" {
		t.Errorf("kinds (-report +truth):\n%s", diff)
	}
}

func TestShop_pacesAndKeepsToTheClock(t *testing.T) {
	before := time.Now().Truncate(time.Second)
	_, r := must(t, "shop", "-stdout", "-rate", "2000", "-count", "600")
	if r.Seconds < 0.25 {
		t.Errorf("600 messages at 2000/s took %.3f s", r.Seconds)
	}
	first, err := parseStart(r.FirstEventTime)
	if err != nil || first.Before(before) || first.After(time.Now()) {
		t.Errorf("first event at %s (%v), want now", r.FirstEventTime, err)
	}
}

func TestShop_csvRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.csv.gz")
	var out, log bytes.Buffer
	if err := run(t.Context(), []string{"shop", "-rate", "0", "-count", "2000", "-to-csv", path}, &out, &log); err != nil {
		t.Fatal(err)
	}
	direct, _ := must(t, "shop", "-stdout", "-rate", "0", "-count", "2000", "-bad", "0.2")
	replayed, r := must(t, "replay", "-csv", path, "-stdout", "-bad", "0.2")
	if diff := cmp.Diff(direct, replayed); diff != "" {
		t.Errorf("replay of the file differs (-direct +replayed):\n%s", diff)
	}
	if r.Lines.Read != 2000 || r.Lines.Wrong != 0 {
		t.Errorf("lines: %+v", r.Lines)
	}
}

func TestReplay_wrongLinesAreCountedNotFatal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.csv")
	lines := []string{
		"event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session",
		"2019-10-01 00:00:00 UTC,view,1,2053013555631882655,electronics.smartphone,apple,1081.98,3,s",
		"2019-10-01 00:00:01 UTC,view,1,2053013555631882655,electronics.smartphone,apple,free,3,s",
		"2019-10-01 00:00:02 UTC,cart,1,2053013555631882655,,,0.00,3,s",
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, r := must(t, "replay", "-csv", path, "-stdout")
	if n := strings.Count(stdout, "\n"); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
	want := &lineReport{Read: 3, Wrong: 1, Examples: []string{`line 3: price "free" is not a number`}}
	if diff := cmp.Diff(want, r.Lines); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"good": 1, "price_zero": 1}, r.Kinds); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

func TestReplay_speedFollowsEventTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.csv")
	lines := "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n" +
		"2019-10-01 00:00:00 UTC,view,1,2053013555631882655,,,5.00,3,s\n" +
		"2019-10-01 00:00:10 UTC,view,1,2053013555631882655,,,5.00,3,s\n"
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, r := must(t, "replay", "-csv", path, "-stdout", "-speed", "100"); r.Seconds < 0.1 || r.Delivered != 2 {
		t.Errorf("%d messages of 10 s at 100 times the speed took %.3f s", r.Delivered, r.Seconds)
	}
}

func TestResume_goesOnWhereItStopped(t *testing.T) {
	state := filepath.Join(t.TempDir(), "progress")
	flags := []string{"shop", "-stdout", "-rate", "0", "-format", "cdc-full", "-cdc-updates", "0.3"}
	whole, _ := must(t, append(flags, "-count", "3000")...)
	one, _ := must(t, append(flags, "-count", "1000", "-resume", state)...)
	two, r := must(t, append(flags, "-count", "3000", "-resume", state)...)
	if diff := cmp.Diff(whole, one+two); diff != "" {
		t.Errorf("two parts differ from the whole (-whole +parts):\n%s", diff)
	}
	if r.First != 1000 || r.Next != 3000 || r.Delivered != 2000 {
		t.Errorf("second part: first %d, next %d, delivered %d", r.First, r.Next, r.Delivered)
	}
	if _, _, err := loadgen(t, append(flags, "-seed", "2", "-resume", state)...); err == nil || !strings.Contains(err.Error(), "another stream") {
		t.Errorf("error %v, want one about another stream", err)
	}
}

// The platform's producer is stopped and started again, with other rates, too.
func TestResume_liveStreamGoesOnOrStartsAnew(t *testing.T) {
	state := filepath.Join(t.TempDir(), "progress")
	flags := []string{"shop", "-stdout", "-rate", "2000", "-resume", state}
	_, one := must(t, append(flags, "-count", "100")...)
	if _, two := must(t, append(flags, "-count", "200")...); two.Stream != one.Stream || two.First != 100 {
		t.Errorf("resumed at once: from %d of %s, want from 100 of %s", two.First, two.Stream, one.Stream)
	}
	if _, other := must(t, append(flags, "-rate", "1000", "-count", "100")...); other.First != 0 || other.Delivered != 100 {
		t.Errorf("at another rate: from %d, %d messages, want a new stream of 100", other.First, other.Delivered)
	}
	kept, err := loadProgress(state)
	if err != nil {
		t.Fatal(err)
	}
	hourAgo := strings.Replace(kept.Stream, time.Unix(kept.Start, 0).UTC().Format(time.RFC3339), time.Unix(kept.Start-3600, 0).UTC().Format(time.RFC3339), 1)
	if err := (progress{hourAgo, kept.Start - 3600, kept.Next}).save(state); err != nil {
		t.Fatal(err)
	}
	if _, late := must(t, append(flags, "-rate", "1000", "-count", "100")...); late.First != 0 || late.Stream == hourAgo {
		t.Errorf("an hour later: from %d of %s, want a new stream", late.First, late.Stream)
	}
}

// records reads a topic to its end.
func records(t *testing.T, brokers []string, topic string) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var left int64
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	var all []*kgo.Record
	for int64(len(all)) < left {
		fetches := client.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		all = append(all, fetches.Records()...)
	}
	return all
}

func TestKafka_everyMessageOnceInOrderOfItsSession(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	brokers := cluster.ListenAddrs()
	flags := []string{"shop", "-rate", "0", "-count", "20000"}
	_, r := must(t, append(flags, "-brokers", brokers[0], "-seq-header")...)
	if !r.Complete || r.Delivered != 20000 {
		t.Errorf("report: %+v", r)
	}
	printed, _ := must(t, append(flags, "-stdout")...)
	want := strings.Split(strings.TrimSuffix(printed, "\n"), "\n")
	got := make([]string, len(want))
	seen := make([]bool, len(want))
	last := map[string]int{}
	partitions := map[int32]bool{}
	for _, record := range records(t, brokers, "tracking.raw_user_behavior") {
		seq, err := strconv.Atoi(string(record.Headers[0].Value))
		if err != nil || seen[seq] {
			t.Fatalf("message %d: %v, seen before: %t", seq, err, seen[seq])
		}
		seen[seq], got[seq] = true, string(record.Value)
		partitions[record.Partition] = true
		key := string(record.Key)
		if previous, ok := last[key]; ok && previous > seq {
			t.Fatalf("session %s: message %d comes after %d", key, seq, previous)
		}
		last[key] = seq
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-printed +in Kafka):\n%s", diff)
	}
	if len(partitions) != 12 {
		t.Errorf("%d partitions hold records, want 12", len(partitions))
	}
}

func TestKafka_keys(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	for i, c := range []struct {
		flags []string
		want  string // the key begins with it
	}{
		{nil, "75f57e05-"},
		{[]string{"-no-key"}, ""},
		{[]string{"-format", "cdc-flat"}, ""},
		{[]string{"-format", "cdc-full", "-key", "pk"}, `{"schema":{"type":"struct",`},
	} {
		topic := fmt.Sprintf("keys-%d", i)
		must(t, append([]string{"shop", "-rate", "0", "-count", "1", "-bad", "0", "-brokers", cluster.ListenAddrs()[0],
			"-topic", topic, "-partitions", "1"}, c.flags...)...)
		key := records(t, cluster.ListenAddrs(), topic)[0].Key
		if (key == nil) != (c.want == "") || !strings.HasPrefix(string(key), c.want) {
			t.Errorf("%v: key %q, want one that begins with %q", c.flags, key, c.want)
		}
	}
}

// The broker goes away in the middle and comes back with what it had.
func TestKafka_brokerRestartLosesAndDoublesNothing(t *testing.T) {
	dir := t.TempDir()
	open := func(ports ...int) *kfake.Cluster {
		opts := []kfake.Opt{kfake.NumBrokers(1), kfake.DataDir(dir), kfake.SyncWrites()}
		if len(ports) > 0 {
			opts = append(opts, kfake.Ports(ports...))
		}
		cluster, err := kfake.NewCluster(opts...)
		if err != nil {
			t.Fatal(err)
		}
		return cluster
	}
	cluster := open()
	address := cluster.ListenAddrs()[0]
	port, err := strconv.Atoi(address[strings.LastIndexByte(address, ':')+1:])
	if err != nil {
		t.Fatal(err)
	}

	const count = 60_000
	var r report
	finished := make(chan error, 1)
	go func() {
		var err error
		_, r, err = loadgen(t, "shop", "-rate", "30000", "-count", strconv.Itoa(count), "-brokers", address, "-seq-header")
		finished <- err
	}()
	written := func() (n int64) {
		for _, p := range cluster.PartitionInfos("tracking.raw_user_behavior") {
			n += p.HighWatermark
		}
		return n
	}
	for _, until := range []int64{10_000, 30_000} {
		for written() < until {
			select {
			case err := <-finished:
				t.Fatalf("finished early: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
		cluster.Close()
		cluster = open(port)
	}
	if err := <-finished; err != nil {
		t.Fatalf("%v; report %+v", err, r)
	}
	times := make([]int, count)
	for _, record := range records(t, []string{address}, "tracking.raw_user_behavior") {
		seq, err := strconv.Atoi(string(record.Headers[0].Value))
		if err != nil {
			t.Fatal(err)
		}
		times[seq]++
	}
	cluster.Close()
	for seq, n := range times {
		if n != 1 {
			t.Fatalf("message %d is there %d times", seq, n)
		}
	}
}

func TestLines_keepTheirBytesAndKeys(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	path := filepath.Join(t.TempDir(), "lines")
	text := "{\"id\":\"a\", \"x\":1}\n\n  {\"id\":7}\nlast"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"lines", "-topic", "lines", "-partitions", "1", "-file", path, "-brokers", cluster.ListenAddrs()[0]}
	var out bytes.Buffer
	if err := run(t.Context(), append(flags, "-key", "id"), &out, io.Discard); err == nil || !strings.Contains(err.Error(), "line 4: it should be a JSON object with the field id") {
		t.Errorf("error %v", err)
	}
	if out.String() != "2 lines are in topic lines\n" {
		t.Error(out.String())
	}
	if err := run(t.Context(), flags, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records(t, cluster.ListenAddrs(), "lines") {
		got = append(got, string(r.Key)+" "+string(r.Value))
	}
	want := []string{`a {"id":"a", "x":1}`, `7 {"id":7}`, ` {"id":"a", "x":1}`, ` {"id":7}`, ` last`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestKafka_noBrokerIsSaidSo(t *testing.T) {
	_, _, err := loadgen(t, "shop", "-brokers", "127.0.0.1:1", "-wait", "50ms")
	if err == nil || !strings.Contains(err.Error(), "no answer from Kafka at 127.0.0.1:1") {
		t.Errorf("error %v does not name the broker", err)
	}
}

// receiver takes events like a function does, with trouble at first.
type receiver struct {
	mu     sync.Mutex
	calls  int
	events []events.Message
	batch  int // the largest
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.calls%5 == 1 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var batch []events.Message
	if req.Header.Get("Content-Type") == "application/cloudevents-batch+json" {
		batch, err = events.ParseBatch(body)
	} else {
		var m events.Message
		m, err = events.FromHTTP(req.Header, body)
		batch = append(batch, m)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.batch = max(r.batch, len(batch))
	r.events = append(r.events, batch...)
	w.WriteHeader(http.StatusAccepted)
}

func TestHTTP_everyMessageAsEvent(t *testing.T) {
	for _, batch := range []int{1, 20} {
		r := &receiver{}
		server := httptest.NewServer(r)
		t.Cleanup(server.Close)
		flags := []string{"shop", "-rate", "0", "-count", "400"}
		_, told := must(t, append(flags, "-url", server.URL, "-http-batch", strconv.Itoa(batch))...)
		if !told.Complete || told.Delivered != 400 {
			t.Errorf("batch %d: report %+v", batch, told)
		}
		if r.batch > batch {
			t.Errorf("a request carried %d events, want at most %d", r.batch, batch)
		}
		printed, _ := must(t, append(flags, "-stdout")...)
		want := strings.Split(strings.TrimSuffix(printed, "\n"), "\n")
		got := make([]string, len(want))
		last := map[string]int{}
		for _, m := range r.events {
			id, err := strconv.Atoi(m.Get("id"))
			if err != nil {
				t.Fatal(err)
			}
			got[id] = string(m.Data)
			if m.Get("type") != events.BehaviorRaw || m.Get("source") != "/loadgen/shop/1/1569888000" {
				t.Fatalf("attributes %v", m.Attrs)
			}
			key := m.Get(events.PartitionKey)
			if previous, ok := last[key]; ok && previous > id {
				t.Errorf("session %s: event %d comes after %d", key, id, previous)
			}
			last[key] = id
		}
		if diff := cmp.Diff(want, got); diff != "" || len(r.events) != len(want) {
			t.Errorf("batch %d: %d events (-printed +received):\n%s", batch, len(r.events), diff)
		}
	}
}

func TestHTTP_refusedMessagesAreReported(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Ce-Id") == "7" {
			http.Error(w, "not this one", http.StatusBadRequest) //nolint:gocritic // returnAfterHttpError: nothing follows
		}
	}))
	defer server.Close()
	_, r, err := loadgen(t, "shop", "-rate", "0", "-count", "20", "-url", server.URL)
	if err == nil {
		t.Error("no error although a message was refused")
	}
	if diff := cmp.Diff(map[string]uint64{"HTTP 400: not this one": 1}, r.Refused); diff != "" || r.Delivered != 19 || r.Unsettled != 0 {
		t.Errorf("delivered %d, unsettled %d, refused (-want +got):\n%s", r.Delivered, r.Unsettled, diff)
	}
}

// Interrupted while nobody answers, it says how much it does not know.
func TestHTTP_interruptedReportsUnsettled(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		interrupt()
	}))
	defer server.Close()
	path := filepath.Join(t.TempDir(), "report.json")
	err := run(ctx, []string{"shop", "-rate", "0", "-url", server.URL, "-drain", "10ms", "-report", path}, io.Discard, io.Discard)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want one about the time to drain", err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(content, &r); err != nil {
		t.Fatal(err)
	}
	if r.Complete || r.Unsettled == 0 || r.Unsettled != r.Next-r.First || r.Settled != 0 {
		t.Errorf("report: complete %t, unsettled %d of %d, settled %d", r.Complete, r.Unsettled, r.Next-r.First, r.Settled)
	}
}

func TestRun_mistakesAreExplained(t *testing.T) {
	for args, want := range map[string]string{
		"":                              "Usage: loadgen <command>",
		"sell":                          `there is no command "sell"`,
		"shop -nonsense":                "flag provided but not defined: -nonsense",
		"shop now":                      `takes flags only, got "now"`,
		"shop -rate -1":                 "-rate must be at least 0",
		"shop -start yesterday":         `-start "yesterday" is not a time`,
		"shop -bad 2":                   "-bad must be between 0 and 1",
		"shop -bad-kinds worst":         `bad kind "worst" is not known`,
		"shop -format xml":              `format "xml" is none of connect, cdc-flat, cdc-full`,
		"shop -key pk":                  "-key pk is for CDC formats",
		"shop -no-key -key session":     "contradict each other",
		"shop -products 3":              "a catalogue has at least",
		"shop -stdout -url http://x":    "-stdout and -url exclude each other",
		"shop -url localhost:8080":      `"localhost:8080" is not an http address`,
		"shop -to-csv x.csv":            "-to-csv needs a -count",
		"shop -compression best":        `compression "best" is none of`,
		"shop -brokers http://x:1":      "is not a host:port",
		"datacenter -config calm":       `there is no configuration "calm"`,
		"datacenter -config-set x":      `there is no set "x"`,
		"datacenter -interval fast":     "want a time as in 5s or 10m",
		"datacenter -anomaly-types cpu": `there is no type "cpu"`,
		"datacenter -drift slow":        `there is no kind "slow"`,
		"datacenter -servers 0":         "at least 1 server",
		"datacenter -bad 2":             "-bad must be between 0 and 1",
		"replay":                        "replay needs -csv FILE",
		"lines":                         "lines needs -topic TOPIC",
		"lines -topic t -file nowhere":  "nowhere: no such file",
		"replay -csv nowhere.csv":       "nowhere.csv: no such file",
		"replay -csv main.go":           "main.go: line 1: column event_time is missing",
	} {
		var log bytes.Buffer
		err := run(t.Context(), strings.Fields(args), io.Discard, &log)
		if err == nil {
			t.Errorf("%s: no error", args)
			continue
		}
		if told := log.String() + err.Error(); !strings.Contains(told, want) {
			t.Errorf("%s: told %q, want something with %q", args, told, want)
		}
	}
}

func TestRun_help(t *testing.T) {
	for args, want := range map[string][]string{
		"help":      {"shop", "replay"},
		"shop -h":   slices.Concat([]string{"-rate", "-to-csv", "KAFKA_BROKERS"}, kindNames()),
		"replay -h": {"-csv", "-speed"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), strings.Fields(args), &out, io.Discard); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, part := range want {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%s does not mention %s", args, part)
			}
		}
	}
}

func kindNames() []string {
	names := map[string]bool{}
	for k := shape.Kind(1); int(k) <= shape.Kinds; k++ {
		names[k.String()] = true
	}
	return slices.Collect(maps.Keys(names))
}

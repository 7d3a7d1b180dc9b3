package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

// asLake makes the test program be lake itself, so that tests can kill it.
const asLake = "TEST_RUN_AS_LAKE"

func TestMain(m *testing.M) {
	if os.Getenv(asLake) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is lake as it runs in production.
type process struct {
	cmd    *exec.Cmd
	url    string
	output *bytes.Buffer
	ended  chan struct{}
}

func (w *world) process(env ...string) *process {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	p := &process{cmd: exec.Command(os.Args[0]), url: "http://127.0.0.1:" + port, output: &bytes.Buffer{}, ended: make(chan struct{})}
	p.cmd.Env = append([]string{
		asLake + "=1", "LISTEN_HOST=127.0.0.1", "PORT=" + port, "LOG_LEVEL=warn",
		"KAFKA_BROKERS=" + strings.Join(w.brokers, ","),
		"S3_ENDPOINT=" + w.s3.Endpoint, "S3_ACCESS_KEY=" + w.s3.AccessKey, "S3_SECRET_KEY=" + w.s3.SecretKey,
	}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	w.t.Cleanup(p.kill)
	for {
		if res, err := http.Get(p.url + "/readyz"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return p
			}
		}
		select {
		case <-p.ended:
			w.t.Fatalf("lake ended: %s", p.output)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) tick(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	for k, v := range map[string]string{
		"Ce-Id": "1", "Ce-Source": "/apis/v1/namespaces/millrace/pingsources/lake-tick",
		"Ce-Type": "dev.knative.sources.ping", "Ce-Specversion": "1.0", "Content-Type": "application/json",
	} {
		r.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("answered %s", res.Status)
	}
	return nil
}

// SIGKILL at random moments of drains under load: the lake is that of a process
// that nobody killed.
func TestProcess_killedAtRandomMoments(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(3), laketest.Bucket()
	c := config(topic, bucket)
	c.Chunk, c.DedupWindow, c.ChunkBytes = 300, 1000, 40_000
	env := []string{
		"LAKE_GROUP=" + c.Group, "LAKE_ROUTES=" + topic + "=" + bucket, "LAKE_CHUNK=300", "LAKE_DEDUP_WINDOW=1000", "LAKE_CHUNK_BYTES=40000",
	}
	rng := seed(t, 7)
	n, unharmed := 0, 0
	for range rounds(10) {
		var batch []*kgo.Record
		for range 2500 {
			r := randomRecord(rng, rng.Int32N(3), n)
			r.Timestamp = noon.Add(r.Timestamp.Sub(noon) / 10) // fewer hours, fewer objects
			batch = append(batch, r)
			n++
		}
		w.produce(topic, batch...)
		p := w.process(env...)
		done := make(chan error, 1)
		go func() { done <- p.tick(t.Context()) }()
		select {
		case err := <-done:
			unharmed++
			if err != nil {
				t.Fatalf("%v\n%s", err, p.output)
			}
		case <-time.After(time.Duration(rng.IntN(300)) * time.Millisecond):
		}
		p.kill()
	}
	t.Logf("%d of %d drains ended before they were killed", unharmed, rounds(10))
	last := w.process(env...)
	if err := last.tick(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, last.output)
	}

	fresh := c
	fresh.Group, fresh.Routes = "fresh-"+bucket, Routes{{topic, laketest.Bucket()}}
	w.drain(w.drainer(fresh))
	want, got := w.bucket(fresh.Routes[0].Bucket), w.bucket(bucket)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the bucket differs from that of one undisturbed drain (-want +got):\n%s", diff)
	}
	if len(want) == 0 {
		t.Error("nothing was written")
	}
}

// Duplicates and another order of delivery change the order in the lake, and
// nothing else.
func TestDrain_duplicatesAndReordering(t *testing.T) {
	w := newWorld(t)
	rng := seed(t, 3)
	var contents [2]map[string]int
	for i := range contents {
		topic, bucket := w.topic(1), laketest.Bucket()
		var batch []*kgo.Record
		for n := range 400 {
			batch = append(batch, record(0, fmt.Sprint("e", n), noon.Add(time.Duration(n)*time.Minute), fmt.Sprintf(`{"n":%d}`, n)))
		}
		if i == 1 {
			for range 200 { // some twice, and neighbours exchanged
				at := rng.IntN(len(batch) - 20)
				again := *batch[at]
				batch = slices.Insert(batch, at+rng.IntN(20), &again)
				a := rng.IntN(len(batch) - 1)
				batch[a], batch[a+1] = batch[a+1], batch[a]
			}
		}
		w.produce(topic, batch...)
		w.drain(w.drainer(config(topic, bucket)))
		contents[i] = map[string]int{}
		for key, text := range w.bucket(bucket) {
			hour := key[strings.Index(key, "/year="):strings.LastIndex(key, "/")]
			for line := range strings.Lines(text) {
				value, _, _ := strings.Cut(line, `,"_kafka"`)
				contents[i][hour+value]++
			}
		}
	}
	if diff := cmp.Diff(contents[0], contents[1]); diff != "" {
		t.Errorf("content (-in order once, +disordered):\n%s", diff)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	topic, bucket := w.topic(1), laketest.Bucket()
	w.produce(topic, record(0, "a", noon, "{}"), record(0, "b", noon, "{}"))
	p := w.process("LAKE_GROUP="+bucket, "LAKE_ROUTES="+topic+"="+bucket+", not.there="+bucket)
	get := func() string {
		res, err := http.Get(p.url + "/lake/status")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(res.Body)
		return b.String()
	}
	format := `{"topics":[{"topic":"%s","bucket":"%s","lag":%d,"partitions":[{"partition":0,"committed":%s,"log_start":0,"high_watermark":2,"lag":%d%s}]},` +
		`{"topic":"not.there","bucket":"%s","missing":true,"lag":0,"partitions":[]}]}` + "\n"
	if diff := cmp.Diff(fmt.Sprintf(format, topic, bucket, 2, "null", 2, "", bucket), get()); diff != "" {
		t.Errorf("status before (-want +got):\n%s", diff)
	}
	if err := p.tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	object := `,"last_object":"topics/` + topic + `/year=2025/month=01/day=07/hour=12/` + topic + `+0+0000000000.json"`
	if diff := cmp.Diff(fmt.Sprintf(format, topic, bucket, 0, "2", 0, object, bucket), get()); diff != "" {
		t.Errorf("status after (-want +got):\n%s", diff)
	}
	res, err := http.Get(p.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(res.Body)
	for _, want := range []string{
		`lake_records_total{topic="` + topic + `"} 2`, `lake_objects_total{topic="` + topic + `"} 1`,
		`lake_lag{partition="0",topic="` + topic + `"} 0`, "lake_lost_total 0", "lake_drain_duration_seconds_count 1",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestRoutes(t *testing.T) {
	var r Routes
	if err := r.Decode(" a.b=bucket-1 ,c=bucket-1,"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Routes{{"a.b", "bucket-1"}, {"c", "bucket-1"}}, r); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	for text, want := range map[string]string{
		"":            "no topic=bucket pair",
		"a":           `"a" is not topic=bucket`,
		"a=B":         "is no name of a bucket",
		"a/b=bucket":  "is no name of a Kafka topic",
		"a=bbb,a=ccc": "topic a is routed twice",
	} {
		if err := r.Decode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Decode(%q): %v, want %q", text, err, want)
		}
	}
}

func TestConfig_check(t *testing.T) {
	good := config("t", "bucket")
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"LAKE_CHUNK=0":          func(c *Config) { c.Chunk = 0 },
		"LAKE_CHUNK_BYTES=0":    func(c *Config) { c.ChunkBytes = 0 },
		"LAKE_DEDUP_WINDOW=-1":  func(c *Config) { c.DedupWindow = -1 },
		"LAKE_PARALLEL=0":       func(c *Config) { c.Parallel = 0 },
		"LAKE_GROUP":            func(c *Config) { c.Group = "" },
		"LAKE_MAX_DRAIN=0s":     func(c *Config) { c.MaxDrain = 0 },
		"longer than LAKE_MAX_": func(c *Config) { c.Function.HandlerTimeout = time.Second },
	} {
		c := good
		spoil(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Whether the index was kept or is read again makes no difference, and neither does
// a part of a chunk that was looked at before.
func TestSeen_warmIsAsCold(t *testing.T) {
	for round := range uint64(200) {
		rng := seed(t, round)
		l := layout{Chunk: int64(1 + rng.IntN(20)), Window: int64(rng.IntN(60))}
		log := make([]eventHash, 200)
		for i := range log {
			log[i] = eventHash{uint64(rng.IntN(40))}
		}
		from := func(pos int64) int64 { return max(0, pos-l.Window) }
		warm := newSeen(0, 0)
		for pos := int64(0); pos < int64(len(log)); pos += l.Chunk {
			end := min(pos+l.Chunk, int64(len(log)))
			if rng.IntN(2) == 0 { // a drain that ends within the chunk
				warm.provisional()
				for o := pos; o < pos+rng.Int64N(end-pos+1); o++ {
					warm.duplicate(log[o], o)
				}
				warm.forget()
			}
			cold := newSeen(from(pos), pos)
			for o := from(pos); o < pos; o++ {
				cold.add(log[o], o)
			}
			if rng.IntN(2) == 0 {
				cold.provisional()
			}
			for o := pos; o < end; o++ {
				want := slices.Contains(log[from(pos):o], log[o])
				if got := warm.duplicate(log[o], o); got != want {
					t.Fatalf("round %d: warm says %v at %d", round, got, o)
				}
				if got := cold.duplicate(log[o], o); got != want {
					t.Fatalf("round %d: cold says %v at %d", round, got, o)
				}
			}
			warm.advance(from(end), end, rng.IntN(30))
		}
	}
}

package skew

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// patience bounds every wait. What is waited for usually comes at once.
const patience = 2 * time.Minute

// prebuilt is the environment variable that names a folder of programs that are
// built already.
const prebuilt = "TEST_PROGRAMS"

func TestMain(m *testing.M) { pgtest.Main(m) }

var names = []string{"validate", "featurize", "store", "lake", "etl-step"}

// build makes the programs of the functions, and gives their folder.
func build(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(prebuilt); dir != "" {
		return dir
	}
	dir := t.TempDir()
	args := []string{"build", "-o", dir + "/"}
	for _, name := range names {
		args = append(args, "../../functions/"+name)
	}
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("building the functions: %v\n%s", err, out)
	}
	return dir
}

// platform is all that runs.
type platform struct {
	t      *testing.T
	kafka  kafka.Config
	client *kgo.Client
	admin  *kadm.Client
	db     *warehouse.DB
	redis  *redis.Client
	s3     *lake.Store
	bucket string

	services map[string]*service
	engine   atomic.Pointer[eventing.Engine]
	stop     func() // the engine, not waiting for what is in flight

	dead atomic.Int64 // dead letters
}

// start starts everything but the engine.
func start(t *testing.T) *platform {
	t.Helper()
	dir := build(t)
	p := &platform{t: t, services: map[string]*service{}, bucket: laketest.Bucket()}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	p.kafka = kafka.Config{Brokers: cluster.ListenAddrs(), ClientID: "test"}
	opts, err := p.kafka.Options()
	if err != nil {
		t.Fatal(err)
	}
	if p.client, err = kgo.NewClient(opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.client.Close)
	p.admin = kadm.NewClient(p.client)
	if _, err := p.admin.CreateTopics(t.Context(), 12, 1, nil, raw, cdc); err != nil {
		t.Fatal(err)
	}

	database := pgtest.URL(t)
	if p.db, err = (warehouse.Config{URL: database, MaxConns: 4}).Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.db.Close)
	online := redistest.Start(t)
	options, err := redis.ParseURL(online.URL)
	if err != nil {
		t.Fatal(err)
	}
	p.redis = redis.NewClient(options)
	t.Cleanup(func() { _ = p.redis.Close() })
	s3 := laketest.Start(t)
	if p.s3, err = s3.Connect(); err != nil {
		t.Fatal(err)
	}
	env := []string{
		"KAFKA_BROKERS=" + strings.Join(p.kafka.Brokers, ","), "DATABASE_URL=" + database, "REDIS_URL=" + online.URL,
		"S3_ENDPOINT=" + s3.Endpoint, "S3_REGION=" + s3.Region, "S3_ACCESS_KEY=" + s3.AccessKey, "S3_SECRET_KEY=" + s3.SecretKey,
		"LISTEN_HOST=127.0.0.1", "LOG_LEVEL=warn", "REDIS_TIMEOUT=10s",
		// Small objects, many of which are replaced by longer ones.
		"LAKE_CHUNK=50", "LAKE_ROUTES=" + validated + "=" + p.bucket, "ETL_REPORTS_BUCKET=" + laketest.Bucket(),
		// Everything that was served is compared, at once.
		"SKEW_LAG=0s", "SKEW_ROWS=1000000",
	}
	if _, err := p.s3.EnsureBucket(t.Context(), p.bucket); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		p.services[name] = newService(t, filepath.Join(dir, name), name, env, uint64(i))
	}
	for _, s := range p.services {
		s.await()
	}
	return p
}

// service is a function's process, behind a proxy that loses answers.
type service struct {
	t     *testing.T
	name  string
	path  string
	env   []string
	port  int
	cmd   *exec.Cmd
	exit  chan struct{}
	log   *lockedBuffer
	proxy string // its address

	// flaky makes the proxy lose one answer in six, and one request in twelve.
	flaky         atomic.Bool
	lost, refused atomic.Int64
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func newService(t *testing.T, path, name string, env []string, seed uint64) *service {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	s := &service{t: t, name: name, path: path, port: port, env: append(env[:len(env):len(env)], "PORT="+strconv.Itoa(port), "FUNCTION_NAME="+name), log: &lockedBuffer{}}
	s.run()
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("%s says:\n%s", name, s.log.b.String())
		}
	})
	target := &url.URL{Scheme: "http", Host: s.address()}
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 5))
	chance := func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n) == 0
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(*http.Response) error {
			if s.flaky.Load() && chance(6) {
				s.lost.Add(1)
				return errors.New("the answer is lost")
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: proxy.ErrorLog, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.flaky.Load() && chance(12) {
			s.refused.Add(1)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	front, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.proxy = "http://" + front.Addr().String()
	go func() { _ = server.Serve(front) }()
	t.Cleanup(func() { _ = server.Close() })
	return s
}

func (s *service) address() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

func (s *service) run() {
	s.t.Helper()
	s.cmd = exec.Command(s.path)
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("starting %s: %v", s.name, err)
	}
	exit := make(chan struct{})
	s.exit = exit
	cmd := s.cmd
	go func() { _ = cmd.Wait(); close(exit) }()
}

func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exit
}

// await waits until the function is ready.
func (s *service) await() {
	s.t.Helper()
	eventually(s.t, s.name+" gets ready", func() bool {
		select {
		case <-s.exit:
			s.t.Fatalf("%s ended", s.name)
		default:
		}
		r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.address()+"/readyz", nil)
		if err != nil {
			s.t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for timeout := time.After(patience); !holds(); {
		select {
		case <-timeout:
			t.Fatalf("still waiting: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// runEngine executes the event graph until stop is called, which leaves what is in
// flight to the next one, as a crash does.
func (p *platform) runEngine() {
	p.t.Helper()
	var files []string
	for _, name := range []string{"broker", "sources", "shop", "features"} {
		files = append(files, "../../triggers/"+name+".yaml")
	}
	graph, err := eventing.Load(files...)
	if err != nil {
		p.t.Fatal(err)
	}
	// Ticks are the test's.
	graph.PingSources = nil
	dead := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if p.dead.Add(1) <= 3 {
			p.t.Errorf("dead letter: %v %s", r.Header, body)
		}
	})
	letters, err := (&net.ListenConfig{}).Listen(p.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: dead}
	go func() { _ = server.Serve(letters) }()
	engine, err := eventing.New(eventing.Config{
		Graph: graph, Kafka: p.kafka, Logger: slog.New(slog.DiscardHandler), SessionTimeout: 6 * time.Second, DrainTimeout: time.Millisecond,
		// Small requests, so that answers of all sizes get lost.
		BatchEvents: 40,
		Service: func(_, name string) (string, error) {
			if name == "deadletter" {
				return "http://" + letters.Addr().String(), nil
			}
			if s := p.services[name]; s != nil {
				return s.proxy, nil
			}
			return "", fmt.Errorf("there is no service %s", name)
		},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = engine.Run(ctx) // that something was in flight is what it complains about
	}()
	p.engine.Store(engine)
	p.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		_ = server.Close()
	})
	p.t.Cleanup(p.stop)
	eventually(p.t, "the event graph is set up", func() bool { return engine.Stats().Ready })
}

// post sends an event to a function and gives its reply, nil if there is none.
func (p *platform) post(name string, m events.Message) *events.Message {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, "http://"+p.services[name].address(), bytes.NewReader(events.AppendJSON(nil, &m)))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/cloudevents+json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Error(err)
		return nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		p.t.Error(err)
	case res.StatusCode == http.StatusAccepted:
	case res.StatusCode == http.StatusOK:
		reply := events.Message{Data: body}
		for name := range res.Header {
			if attr, ok := strings.CutPrefix(strings.ToLower(name), "ce-"); ok {
				reply.Set(attr, res.Header.Get(name))
			}
		}
		return &reply
	default:
		p.t.Errorf("%s answers %d: %s", name, res.StatusCode, body)
	}
	return nil
}

// tick wakes a function.
func (p *platform) tick(name string) {
	p.t.Helper()
	p.post(name, events.Message{Attrs: []events.Attr{
		{Name: "specversion", Value: "1.0"}, {Name: "id", Value: strconv.FormatUint(rand.Uint64(), 36)}, {Name: "type", Value: events.Tick},
		{Name: "source", Value: "/apis/v1/namespaces/millrace/pingsources/test"},
	}})
}

// metric gives the value of a function's metric with a label, "" if there is none.
func (p *platform) metric(service, name, label string) string {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.services[service].address()+"/metrics", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, label) {
			return strings.TrimSpace(line[strings.LastIndexByte(line, ' '):])
		}
	}
	return ""
}

// read gives all records of a topic so far.
func (p *platform) read(topic string) []*kgo.Record {
	p.t.Helper()
	ends, err := p.admin.ListEndOffsets(p.t.Context(), topic)
	if err != nil {
		p.t.Fatal(err)
	}
	opts, err := p.kafka.Options()
	if err != nil {
		p.t.Fatal(err)
	}
	left := int64(0)
	offsets := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		left += o.Offset
		offsets[o.Partition] = kgo.NewOffset().AtStart()
	})
	client, err := kgo.NewClient(append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: offsets}))...)
	if err != nil {
		p.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	var records []*kgo.Record
	for int64(len(records)) < left {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			p.t.Fatalf("reading %s: %v", topic, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

// repeat appends the last records of each partition of the Broker's topic once more,
// in their order: what is left of a crash between writing and committing. The engine
// must not run.
func (p *platform) repeat(n int) (repeated int) {
	p.t.Helper()
	const topic = broker
	byPartition := map[int32][]*kgo.Record{}
	for _, r := range p.read(topic) {
		byPartition[r.Partition] = append(byPartition[r.Partition], r)
	}
	opts, err := p.kafka.Options()
	if err != nil {
		p.t.Fatal(err)
	}
	client, err := kgo.NewClient(append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		p.t.Fatal(err)
	}
	defer client.Close()
	for partition, records := range byPartition {
		for _, r := range records[max(0, len(records)-n):] {
			again := &kgo.Record{Topic: topic, Partition: partition, Key: r.Key, Value: r.Value, Headers: r.Headers}
			if err := client.ProduceSync(p.t.Context(), again).FirstErr(); err != nil {
				p.t.Fatal(err)
			}
			repeated++
		}
	}
	return repeated
}

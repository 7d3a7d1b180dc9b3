// Package minio_test holds this folder's manifests to a real MinIO server: what they
// set as its environment, and what they tell it to notify of, makes it send
// notifications to a real ingest, which keeps none of them back.
package minio_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/notification"

	"github.com/millrace-dev/millrace/shared/events"
)

// program is the environment variable that names the server; make test-minio builds it.
const program = "TEST_MINIO"

const (
	bucket = "validated-events-bucket"
	token  = "sesame-for-tests"
)

func TestNotificationsOfARealServerBecomeEvents(t *testing.T) {
	binary := os.Getenv(program)
	if binary == "" {
		t.Skipf("%s names no MinIO server: use make test-minio, which builds one", program)
	}
	b := newBroker(t)
	in := newIngest(t, b.URL)
	in.start(token)
	m := newServer(t, binary, in.address)
	m.start()
	m.configure()

	t.Run("odd keys", func(t *testing.T) {
		keys := []string{
			"topics/t/plain.json", "topics/t/a b.json", "topics/t/a+b+0000000001.json", "topics/t/100%/50%25.json",
			"topics/t/ü/日本語/🌊.json", "topics/t/year=2026/x&y=z;w,v.json", "topics/t/(a)'b'!~@$#?.json", "topics/two", "topics/a b/c+d/e",
		}
		var want []string
		for _, key := range keys {
			m.put(key, "x")
			want = append(want, "ObjectCreated:Put "+key)
		}
		got := b.wait(len(want))
		slices.Sort(want)
		if diff := cmp.Diff(want, sorted(got, nameAndKey)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		prefixes := map[string]string{"topics/two": "topics/", "topics/a b/c+d/e": "topics/a b/"}
		for _, e := range got {
			want := prefixes[e.Get("subject")]
			if want == "" {
				want = "topics/t/"
			}
			if e.Get("keyprefix") != want || e.Get("bucket") != bucket {
				t.Errorf("%s: keyprefix %q, bucket %q", e.Get("subject"), e.Get("keyprefix"), e.Get("bucket"))
			}
			if _, err := e.Event(); err != nil {
				t.Errorf("%s: %v", e.Get("subject"), err)
			}
		}
	})

	t.Run("only what the manifest asks for", func(t *testing.T) {
		m.put("quality/report.json", "x")
		m.put("topics/t/asked.json", "x")
		if diff := cmp.Diff([]string{"ObjectCreated:Put topics/t/asked.json"}, sorted(b.wait(1), nameAndKey)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})

	t.Run("an object that is replaced is told of twice", func(t *testing.T) {
		m.put("topics/t/grows.json", "x")
		m.put("topics/t/grows.json", "xx")
		got := b.wait(2)
		if got[0].Get("id") == got[1].Get("id") {
			t.Errorf("both have the id %s", got[0].Get("id"))
		}
	})

	t.Run("uploads in parts and copies", func(t *testing.T) {
		m.putInParts("topics/t/parts.json")
		m.copy("topics/t/parts.json", "topics/t/copy.json")
		want := []string{"ObjectCreated:CompleteMultipartUpload topics/t/parts.json", "ObjectCreated:Copy topics/t/copy.json"}
		if diff := cmp.Diff(want, sorted(b.wait(2), nameAndKey)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})

	t.Run("several records of one request", func(t *testing.T) {
		keys := []string{"topics/t/a b.json", "topics/t/a+b+0000000001.json", "topics/t/copy.json"}
		m.remove(keys...)
		got := b.wait(len(keys))
		var want []string
		for _, key := range keys {
			want = append(want, "ObjectRemoved:Delete "+key)
		}
		if diff := cmp.Diff(want, sorted(got, nameAndKey)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		ids := map[string]bool{}
		for _, e := range got {
			ids[e.Get("id")] = true
		}
		if len(ids) != len(keys) {
			t.Errorf("%d different ids of %d events", len(ids), len(keys))
		}
	})

	// What could not be delivered is in the queue on disk, also when the server is
	// killed meanwhile, and comes later. A server that was killed may have put an object
	// and not its notification, and notifies of nothing in the first moments after its
	// start, which is why etl-step sweeps.
	t.Run("ingest away, server killed", func(t *testing.T) {
		in.stop()
		var want []string
		put := func(key string) {
			want = append(want, "ObjectCreated:Put "+key)
			before := m.queued()
			m.put(key, "x")
			until(t, "that the notification of "+key+" is in the queue", func() bool { return m.queued() > before })
		}
		for i := range 10 {
			put(fmt.Sprintf("topics/t/while away %02d.json", i))
		}
		m.kill()
		m.start()
		kept := m.queued()
		until(t, "that the server notifies again", func() bool {
			m.put(probe, "x")
			return m.queued() > kept
		})
		for i := range 10 {
			put(fmt.Sprintf("topics/t/after the kill %02d.json", i))
		}
		m.kill()
		m.start()
		in.start(token)
		slices.Sort(want)
		if diff := cmp.Diff(want, sorted(b.wait(len(want)), nameAndKey)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		// The server is whole again before the next test begins.
		b.probes.Store(0)
		until(t, "that the server notifies again", func() bool {
			m.put(probe, "x")
			return b.probes.Load() > 0
		})
	})

	// A token that does not fit is no reason to lose anything either.
	t.Run("wrong token", func(t *testing.T) {
		in.stop()
		in.start("another")
		m.put("topics/t/refused.json", "x")
		in.until("unauthorized")
		in.stop()
		in.start(token)
		if diff := cmp.Diff([]string{"ObjectCreated:Put topics/t/refused.json"}, sorted(b.wait(1), nameAndKey)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})

	t.Run("Broker away", func(t *testing.T) {
		b.refuse(true)
		m.put("topics/t/broker away.json", "x")
		in.until("refused")
		b.refuse(false)
		if diff := cmp.Diff([]string{"ObjectCreated:Put topics/t/broker away.json"}, sorted(b.wait(1), nameAndKey)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func nameAndKey(m events.Message) string {
	return strings.TrimPrefix(m.Get("type"), "com.amazonaws.s3.") + " " + m.Get("subject")
}

func sorted(ms []events.Message, text func(events.Message) string) []string {
	var list []string
	for _, m := range ms {
		list = append(list, text(m))
	}
	slices.Sort(list)
	return list
}

// deadline bounds every wait. The server sends from its queue every three seconds.
const deadline = time.Minute

// until waits for a condition.
func until(t *testing.T, what string, condition func() bool, instead ...func() string) {
	t.Helper()
	for end := time.Now().Add(deadline); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%s did not happen within %s", what, deadline)
			for _, f := range instead {
				t.Error("instead: ", f())
			}
			t.FailNow()
		}
	}
}

// broker is the sink of ingest.
type broker struct {
	*httptest.Server
	t  *testing.T
	mu sync.Mutex
	// got are the events since the last wait, each once.
	got  []events.Message
	seen map[string]bool
	away bool
	// probes counts the events of the key probe, which are not among got.
	probes atomic.Int64
}

// probe is a key that is put to see whether the server notifies.
const probe = "topics/t/probe"

func newBroker(t *testing.T) *broker {
	b := &broker{t: t, seen: map[string]bool{}}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		var ms []events.Message
		if r.Header.Get("Content-Type") == events.ContentTypeBatch {
			ms, err = events.ParseBatch(body)
		} else {
			var m events.Message
			m, err = events.FromHTTP(r.Header, body)
			ms = append(ms, m)
		}
		if err != nil {
			t.Errorf("ingest sent what is no event: %v", err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.away {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		for _, m := range ms {
			// At least once: the same event may come again.
			if m.Get("subject") == probe {
				b.probes.Add(1)
			} else if id := m.Get("source") + " " + m.Get("id"); !b.seen[id] {
				b.seen[id] = true
				b.got = append(b.got, m)
			}
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *broker) refuse(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

// wait gives the events since the last call, when there are n.
func (b *broker) wait(n int) []events.Message {
	b.t.Helper()
	until(b.t, fmt.Sprintf("that %d events come", n), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.got) >= n
	}, func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return fmt.Sprint(sorted(b.got, nameAndKey))
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.got
	b.got = nil
	return got
}

// process is a program that can be stopped and started again.
type process struct {
	t    *testing.T
	path string
	args []string
	env  []string
	cmd  *exec.Cmd
	done chan struct{}
	log  bytes.Buffer
}

func (p *process) run() {
	p.t.Helper()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env = p.env
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() { _ = cmd.Wait(); close(done) }()
	p.t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if p.t.Failed() {
			text := p.log.String()
			p.t.Logf("the end of what %s said:\n%s", filepath.Base(p.path), text[max(0, len(text)-4000):])
		}
	})
}

func (p *process) end(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
	<-p.done
}

// ready waits until the address answers.
func (p *process) ready(url string) {
	p.t.Helper()
	until(p.t, "that "+url+" answers", func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%s ended", filepath.Base(p.path))
		default:
		}
		return status(url) == http.StatusOK
	})
}

func status(url string) int {
	resp, err := http.Get(url)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// ingest is the function, always at one address.
type ingest struct {
	process
	address string
	base    []string
}

func newIngest(t *testing.T, sink string) *ingest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ingest")
	if out, err := exec.Command("go", "build", "-o", path, "../../functions/ingest").CombinedOutput(); err != nil {
		t.Fatalf("building ingest: %v\n%s", err, out)
	}
	port := freePort(t)
	return &ingest{
		process: process{t: t, path: path}, address: fmt.Sprintf("http://127.0.0.1:%d", port),
		base: append(os.Environ(), "LISTEN_HOST=127.0.0.1", fmt.Sprint("PORT=", port), "K_SINK="+sink),
	}
}

func (i *ingest) start(token string) {
	i.t.Helper()
	i.env = append(slices.Clone(i.base), "INGEST_TOKEN="+token)
	i.run()
	i.ready(i.address + "/readyz")
}

func (i *ingest) stop() { i.end(syscall.SIGTERM) }

// until waits until ingest has counted a record of this outcome since its start.
func (i *ingest) until(outcome string) {
	i.t.Helper()
	until(i.t, "outcome "+outcome, func() bool {
		resp, err := http.Get(i.address + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && regexp.MustCompile(`ingest_records_total{[^}]*outcome="`+outcome+`"[^}]*} [1-9]`).Match(text)
	})
}

// server is MinIO with what the manifest sets.
type server struct {
	process
	address string
	client  *minio.Client
	queue   string
	notify  []string // arguments of mc event add
}

func newServer(t *testing.T, binary, ingest string) *server {
	t.Helper()
	env, notify := manifest(t)
	dir, port := t.TempDir(), freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for _, name := range []string{"data", "queue", "certs"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const user, password = "millrace", "millrace-test"
	replaced := 0
	for name, value := range map[string]string{
		"MINIO_ROOT_USER": user, "MINIO_ROOT_PASSWORD": password,
		"MINIO_NOTIFY_WEBHOOK_ENDPOINT_millrace":   strings.Replace(env["MINIO_NOTIFY_WEBHOOK_ENDPOINT_millrace"], "http://ingest.millrace.svc.cluster.local", ingest, 1),
		"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_millrace": token,
		"MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_millrace":  filepath.Join(dir, "queue"),
	} {
		if _, ok := env[name]; ok {
			replaced++
		}
		env[name] = value
	}
	if replaced != 5 {
		t.Fatalf("minio.yaml sets %d of the 5 variables that depend on the place", replaced)
	}
	s := &server{process: process{t: t, path: binary}, address: address, queue: filepath.Join(dir, "queue"), notify: notify}
	s.args = []string{"server", filepath.Join(dir, "data"), "--address", address, "--certs-dir", filepath.Join(dir, "certs"), "--quiet"}
	s.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "MINIO_UPDATE=off"}
	for name, value := range env {
		s.env = append(s.env, name+"="+value)
	}
	var err error
	s.client, err = minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(user, password, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// manifest reads the server's environment, "" where a Secret gives it, and the
// arguments by which the Job asks for notifications.
func manifest(t *testing.T) (env map[string]string, notify []string) {
	t.Helper()
	text, err := os.ReadFile("minio.yaml")
	if err != nil {
		t.Fatal(err)
	}
	env = map[string]string{}
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var m struct {
			Kind string
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Args []string
							Env  []struct{ Name, Value string }
						}
					}
				}
			}
		}
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, c := range m.Spec.Template.Spec.Containers {
			switch m.Kind {
			case "Deployment":
				for _, e := range c.Env {
					env[e.Name] = e.Value
				}
			case "Job":
				for line := range strings.Lines(strings.Join(c.Args, "\n")) {
					if words := strings.Fields(line); len(words) > 2 && words[1] == "event" && words[2] == "add" {
						notify = words[3:]
					}
				}
			}
		}
	}
	if len(notify) == 0 {
		t.Fatal("minio.yaml has no mc event add")
	}
	return env, notify
}

func (s *server) context() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), deadline)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *server) start() {
	s.t.Helper()
	s.run()
	s.ready("http://" + s.address + "/minio/health/ready")
}

// configure does what the Job does, once.
func (s *server) configure() {
	s.t.Helper()
	err := s.client.MakeBucket(s.context(), bucket, minio.MakeBucketOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	var c notification.Configuration
	var q notification.Config
	for i, word := range s.notify {
		switch {
		case strings.HasPrefix(word, "arn:"):
			if q, err = queue(word); err != nil {
				s.t.Fatal(err)
			}
		case word == "--event":
			for _, name := range strings.Split(s.notify[i+1], ",") {
				q.AddEvents(map[string]notification.EventType{"put": notification.ObjectCreatedAll, "delete": notification.ObjectRemovedAll}[name])
			}
		case word == "--prefix":
			q.AddFilterPrefix(s.notify[i+1])
		case strings.HasPrefix(word, "store/") && word != "store/"+bucket:
			s.t.Fatalf("the Job asks for %s", word)
		}
	}
	c.AddQueue(q)
	// Right after its start the server does not know its webhooks yet; the Job is
	// tried again too.
	until(s.t, "that the server takes the notification", func() bool {
		err = s.client.SetBucketNotification(s.context(), bucket, c)
		return err == nil
	}, func() string { return fmt.Sprint(err) })
}

func queue(arn string) (notification.Config, error) {
	a, err := notification.NewArnFromString(arn)
	return notification.NewConfig(a), err
}

// queued is how many notifications are in the queue on disk.
func (s *server) queued() (n int) {
	s.t.Helper()
	err := filepath.WalkDir(s.queue, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was sent meanwhile
		}
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *server) kill() { s.end(syscall.SIGKILL) }

func (s *server) put(key, text string) {
	s.t.Helper()
	if _, err := s.client.PutObject(s.context(), bucket, key, strings.NewReader(text), int64(len(text)), minio.PutObjectOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) putInParts(key string) {
	s.t.Helper()
	core := minio.Core{Client: s.client}
	id, err := core.NewMultipartUpload(s.context(), bucket, key, minio.PutObjectOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	part, err := core.PutObjectPart(s.context(), bucket, key, id, 1, strings.NewReader("parts"), 5, minio.PutObjectPartOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := core.CompleteMultipartUpload(s.context(), bucket, key, id, []minio.CompletePart{{PartNumber: 1, ETag: part.ETag}}, minio.PutObjectOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) copy(from, to string) {
	s.t.Helper()
	_, err := s.client.CopyObject(s.context(), minio.CopyDestOptions{Bucket: bucket, Object: to}, minio.CopySrcOptions{Bucket: bucket, Object: from})
	if err != nil {
		s.t.Fatal(err)
	}
}

// remove deletes objects by one request.
func (s *server) remove(keys ...string) {
	s.t.Helper()
	objects := make(chan minio.ObjectInfo, len(keys))
	for _, key := range keys {
		objects <- minio.ObjectInfo{Key: key}
	}
	close(objects)
	for e := range s.client.RemoveObjects(s.context(), bucket, objects, minio.RemoveObjectsOptions{}) {
		s.t.Fatal(e.Err)
	}
}

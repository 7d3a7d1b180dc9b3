package embeds3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// hook is what listens to notifications.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	refuse int // requests to answer with 503 before accepting
	got    []webhook
	tokens []string
}

func newHook(t *testing.T, refuse int) *hook {
	t.Helper()
	h := &hook{refuse: refuse}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.refuse > 0 {
			h.refuse--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var body webhook
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("notification: %v", err)
		}
		h.got = append(h.got, body)
		h.tokens = append(h.tokens, r.Header.Get("Authorization"))
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) received() []webhook {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]webhook(nil), h.got...)
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
	}
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

// The gateway can run once in a process, so one test holds all that needs it.
func TestObjectsAreStoredAndToldOf(t *testing.T) {
	h := newHook(t, 2)
	cfg := Config{
		Port: freePort(t), DataDir: t.TempDir(), Region: "us-east-1", AccessKey: "millrace", SecretKey: "millrace-secret",
		NotifyURLs: []string{h.URL}, NotifyToken: "Bearer sesame",
	}
	// What a server that was killed in the middle of four changes leaves.
	before := filepath.Join(cfg.DataDir, "objects", "before")
	intents := filepath.Join(cfg.DataDir, "notify", "intents")
	for _, dir := range []string{before, intents} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(before, "written"), []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i, note := range []intent{
		{"s3:ObjectCreated:Put", "before", "written"}, {"s3:ObjectCreated:Put", "before", "not-written"},
		{"s3:ObjectRemoved:Delete", "before", "removed"}, {"s3:ObjectRemoved:Delete", "before", "written"},
	} {
		body, err := json.Marshal(note)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(intents, fmt.Sprintf("%d.json", i)), body, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	address := fmt.Sprintf("127.0.0.1:%d", cfg.Port)
	eventually(t, "the server answers", func() bool {
		resp, err := http.Get("http://" + address + HealthPath)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})

	cl, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Region: cfg.Region})
	if err != nil {
		t.Fatal(err)
	}
	const bucket, key = "lake", "topics/a b/x+1.json"
	if err := cl.MakeBucket(ctx, bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	put := func(key string, body []byte, opts minio.PutObjectOptions) {
		t.Helper()
		if _, err := cl.PutObject(ctx, bucket, key, bytes.NewReader(body), int64(len(body)), opts); err != nil {
			t.Fatalf("putting %s: %v", key, err)
		}
	}
	put(key, []byte("one"), minio.PutObjectOptions{ContentType: "application/json"})
	put(key, []byte("second"), minio.PutObjectOptions{}) // over the first
	big := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	put("big", big, minio.PutObjectOptions{PartSize: 5 << 20})
	if _, err := cl.CopyObject(ctx, minio.CopyDestOptions{Bucket: bucket, Object: "copy"}, minio.CopySrcOptions{Bucket: bucket, Object: key}); err != nil {
		t.Fatal(err)
	}
	if err := cl.RemoveObject(ctx, bucket, "copy", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}

	for k, want := range map[string][]byte{key: []byte("second"), "big": big} {
		o, err := cl.GetObject(ctx, bucket, k, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d (%v)", k, len(got), len(want), err)
		}
		o.Close()
	}

	eventually(t, "all notifications", func() bool { return len(h.received()) >= 7 })
	type told struct {
		Event, Top, Bucket, Key string
		Size                    int64
	}
	var got []told
	last := ""
	for _, w := range h.received() {
		if len(w.Records) != 1 {
			t.Fatalf("%d records in one notification", len(w.Records))
		}
		r := w.Records[0]
		if w.EventName != r.EventName {
			t.Errorf("names differ: %s, %s", w.EventName, r.EventName)
		}
		if r.S3.Object.Sequencer <= last {
			t.Errorf("sequencer %s after %s", r.S3.Object.Sequencer, last)
		}
		last = r.S3.Object.Sequencer
		got = append(got, told{r.EventName, w.Key, r.S3.Bucket.Name, r.S3.Object.Key, r.S3.Object.Size})
	}
	want := []told{
		{"s3:ObjectCreated:Put", "before/written", "before", "written", 3},
		{"s3:ObjectRemoved:Delete", "before/removed", "before", "removed", 0},
		{"s3:ObjectCreated:Put", "lake/" + key, "lake", "topics%2Fa+b%2Fx%2B1.json", 3},
		{"s3:ObjectCreated:Put", "lake/" + key, "lake", "topics%2Fa+b%2Fx%2B1.json", 6},
		{"s3:ObjectCreated:CompleteMultipartUpload", "lake/big", "lake", "big", 12 << 20},
		{"s3:ObjectCreated:Copy", "lake/copy", "lake", "copy", 6},
		{"s3:ObjectRemoved:Delete", "lake/copy", "lake", "copy", 0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("notifications (-want +got):\n%s", diff)
	}
	if h.tokens[0] != cfg.NotifyToken {
		t.Errorf("Authorization: %q", h.tokens[0])
	}

	if left, err := os.ReadDir(intents); err != nil || len(left) > 0 {
		t.Errorf("notes of changes that were told of are left: %v %v", left, err)
	}

	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v", err)
	}
}

func TestQueuedNotificationsSurviveARestartInOrder(t *testing.T) {
	dir := t.TempDir()
	h := newHook(t, 0)
	address := h.Listener.Addr().String()
	h.Close() // nobody listens for now

	cfg := Config{Port: 1, NotifyURLs: []string{"http://" + address}}
	n, err := newNotifier(t.Context(), filepath.Join(dir, "notify"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		n.send("s3:ObjectCreated:Put", "b", objectEntity{Key: fmt.Sprint(i)})
	}
	n.close()

	again := newHook(t, 0)
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	srv := &http.Server{Handler: again.Config.Handler}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	n, err = newNotifier(t.Context(), filepath.Join(dir, "notify"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	n.send("s3:ObjectCreated:Put", "b", objectEntity{Key: "3"})
	eventually(t, "all notifications", func() bool { return len(again.received()) >= 4 })
	for i, w := range again.received() {
		if want := fmt.Sprintf("b/%d", i); w.Key != want {
			t.Errorf("notification %d is of %s, want %s", i, w.Key, want)
		}
	}
}

func TestNotifyURLMustBeHTTP(t *testing.T) {
	if _, err := newNotifier(t.Context(), t.TempDir(), Config{NotifyURLs: []string{"127.0.0.1:9"}}); err == nil {
		t.Error("a URL without a scheme was accepted")
	}
}

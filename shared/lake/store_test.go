package lake_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

func connect(t *testing.T, c lake.Config) *lake.Store {
	t.Helper()
	s, err := c.Connect()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	ctx := t.Context()
	s := connect(t, laketest.Start(t))
	bucket := laketest.Bucket()

	if _, err := s.Put(ctx, bucket, "k", []byte("1"), "text/plain", nil, lake.Condition{}); !errors.Is(err, lake.ErrNotFound) {
		t.Errorf("Put into a missing bucket: %v, want ErrNotFound", err)
	}
	for range s.List(ctx, bucket, "", "") {
		break
	}
	for i, want := range []bool{true, false} {
		if created, err := s.EnsureBucket(ctx, bucket); err != nil || created != want {
			t.Fatalf("EnsureBucket, call %d: %v, %v; want %v", i, created, err, want)
		}
	}
	put := func(data string, cond lake.Condition) (lake.Object, error) {
		return s.Put(ctx, bucket, "a/k", []byte(data), "text/plain", map[string]string{"millrace-next": data}, cond)
	}

	first, err := put("1", lake.Condition{Absent: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("x", lake.Condition{Absent: true}); !errors.Is(err, lake.ErrChanged) {
		t.Errorf("a second Put if absent: %v, want ErrChanged", err)
	}
	if _, err := put("22", lake.Condition{ETag: first.ETag}); err != nil {
		t.Errorf("Put over the known ETag: %v", err)
	}
	if _, err := put("x", lake.Condition{ETag: first.ETag}); !errors.Is(err, lake.ErrChanged) {
		t.Errorf("Put over an old ETag: %v, want ErrChanged", err)
	}
	if _, err := s.Put(ctx, bucket, "none", nil, "text/plain", nil, lake.Condition{ETag: first.ETag}); !errors.Is(err, lake.ErrChanged) {
		t.Errorf("Put over an object that is gone: %v, want ErrChanged", err)
	}
	o, err := s.Stat(ctx, bucket, "a/k")
	if err != nil || o.Size != 2 || o.Metadata["millrace-next"] != "22" {
		t.Errorf("Stat: %+v, %v", o, err)
	}
	data, _, err := s.Read(ctx, bucket, "a/k", 2)
	if err != nil || string(data) != "22" {
		t.Errorf("Read: %q, %v", data, err)
	}
	if _, _, err := s.Read(ctx, bucket, "a/k", 1); err == nil || !strings.Contains(err.Error(), "more than the allowed") {
		t.Errorf("Read beyond the limit: %v", err)
	}
	if _, err := s.Stat(ctx, bucket, "a/none"); !errors.Is(err, lake.ErrNotFound) {
		t.Errorf("Stat of nothing: %v, want ErrNotFound", err)
	}
	if _, _, err := s.Read(ctx, bucket, "a/none", 1); !errors.Is(err, lake.ErrNotFound) {
		t.Errorf("Read of nothing: %v, want ErrNotFound", err)
	}
	for range 2 {
		if err := s.Delete(ctx, bucket, "a/k"); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
}

// Pages of a listing hold a thousand objects; all must come, in order.
func TestStore_listsPageByPage(t *testing.T) {
	ctx := t.Context()
	s := connect(t, laketest.Start(t))
	bucket := laketest.Bucket()
	if _, err := s.EnsureBucket(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	const n = 1203
	work := make(chan int)
	errs := make(chan error, n)
	for range 8 {
		go func() {
			for i := range work {
				_, err := s.Put(ctx, bucket, fmt.Sprintf("p/%05d.json", i), fmt.Appendf(nil, "{\"n\":%d}\n", i), "", nil, lake.Condition{})
				errs <- err
			}
		}()
	}
	go func() {
		for i := range n {
			work <- i
		}
		close(work)
	}()
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	next := 0
	for line, err := range s.Records(ctx, bucket, "p/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(`p/%05d.json {"n":%d}`, next, next); want != line.Object+" "+string(line.JSON) {
			t.Fatalf("record %d is %s %s", next, line.Object, line.JSON)
		}
		next++
	}
	if next != n {
		t.Errorf("%d records, want %d", next, n)
	}
	for o, err := range s.List(ctx, bucket, "p/", "p/01200.json") {
		if err != nil || o.Key != "p/01201.json" {
			t.Errorf("after p/01200.json comes %s, %v", o.Key, err)
		}
		break
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	var last error
	for _, err := range s.List(cancelled, bucket, "p/", "") {
		last = err
	}
	if last == nil {
		t.Error("a cancelled listing looks complete")
	}
}

// A bad object does not hide those behind it.
func TestStore_recordsGoOnBehindBadLines(t *testing.T) {
	ctx := t.Context()
	s := connect(t, laketest.Start(t))
	bucket := laketest.Bucket()
	if _, err := s.EnsureBucket(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	for key, data := range map[string]string{"1": "{\"a\":1}\nnope\n", "2": "[{\"a\":2},", "3": "{\"a\":3}"} {
		if _, err := s.Put(ctx, bucket, key, []byte(data), "", nil, lake.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for line, err := range s.Records(ctx, bucket, "", "") {
		if err != nil {
			var bad *lake.BadLine
			if !errors.As(err, &bad) {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("bad %s:%d@%d", bad.Object, bad.Number, bad.Offset))
			continue
		}
		got = append(got, string(bytes.Clone(line.JSON)))
	}
	want := []string{`{"a":1}`, "bad 1:2@8", `{"a":2}`, "bad 2:2@9", `{"a":3}`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestStore_saysWhatIsWrong(t *testing.T) {
	for endpoint, wantErr := range map[string]string{
		"localhost:9000":          `S3_ENDPOINT "localhost:9000": want http://host:port`,
		"ftp://x":                 "want http://host:port",
		"http://x/bucket":         "want scheme and host only",
		"http://user:secret@host": `S3_ENDPOINT "http://user:xxxxx@host": want scheme and host only`,
	} {
		_, err := lake.Config{Endpoint: endpoint, AccessKey: "a", SecretKey: "s"}.Connect()
		if err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Errorf("Connect to %q: %v, want %q", endpoint, err, wantErr)
		}
	}
	if _, err := (lake.Config{Endpoint: "http://x"}).Connect(); err == nil || !strings.Contains(err.Error(), "S3_ACCESS_KEY") {
		t.Errorf("Connect without keys: %v", err)
	}

	away := laketest.NewServer(t)
	s := connect(t, away.Config)
	if _, err := s.EnsureBucket(t.Context(), "bucket"); err == nil || !strings.Contains(err.Error(), away.Config.Endpoint) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a store that is away: %v", err)
	}
	away.Start()
	wrong := away.Config
	wrong.SecretKey = "wrong"
	if _, err := connect(t, wrong).EnsureBucket(t.Context(), "bucket"); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("wrong keys: %v", err)
	}
}

// What was changed on its way is refused, not stored.
func TestStore_refusesDamagedObjects(t *testing.T) {
	c := laketest.Start(t)
	target, err := url.Parse(c.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
		if r.In.ContentLength > 0 {
			body, _ := io.ReadAll(r.In.Body)
			body[0] ^= 1
			r.Out.Body = io.NopCloser(bytes.NewReader(body))
		}
	}})
	defer proxy.Close()
	direct := connect(t, c)
	c.Endpoint = proxy.URL
	bucket := laketest.Bucket()
	if _, err := direct.EnsureBucket(t.Context(), bucket); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, c).Put(t.Context(), bucket, "k", []byte("{}\n"), "", nil, lake.Condition{}); err == nil {
		t.Error("a damaged object was accepted")
	}
	if _, err := direct.Stat(t.Context(), bucket, "k"); !errors.Is(err, lake.ErrNotFound) {
		t.Errorf("a damaged object was stored: %v", err)
	}
}

package embeds3

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/s3response"
)

// queueLimit bounds the notifications that wait for one URL; MinIO's default.
const queueLimit = 100_000

// webhook is the body of a MinIO webhook request: one record, and its name and
// key once more outside of it.
type webhook struct {
	EventName string
	Key       string // bucket/key, not encoded
	Records   []record
}

type record struct {
	EventVersion      string            `json:"eventVersion"`
	EventSource       string            `json:"eventSource"`
	AWSRegion         string            `json:"awsRegion"`
	EventTime         string            `json:"eventTime"`
	EventName         string            `json:"eventName"`
	UserIdentity      identity          `json:"userIdentity"`
	RequestParameters map[string]string `json:"requestParameters"`
	ResponseElements  map[string]string `json:"responseElements"`
	S3                s3Entity          `json:"s3"`
	Source            map[string]string `json:"source"`
}

type identity struct {
	PrincipalID string `json:"principalId"`
}

type s3Entity struct {
	SchemaVersion   string       `json:"s3SchemaVersion"`
	ConfigurationID string       `json:"configurationId"`
	Bucket          bucketEntity `json:"bucket"`
	Object          objectEntity `json:"object"`
}

type bucketEntity struct {
	Name          string   `json:"name"`
	OwnerIdentity identity `json:"ownerIdentity"`
	ARN           string   `json:"arn"`
}

type objectEntity struct {
	Key       string `json:"key"` // URL-encoded
	Size      int64  `json:"size,omitempty"`
	ETag      string `json:"eTag,omitempty"`
	VersionID string `json:"versionId,omitempty"`
	Sequencer string `json:"sequencer"`
}

// notifying is a gateway backend that reports what changed.
type notifying struct {
	backend.Backend
	*notifier
}

func (b notifying) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	defer b.intend("s3:ObjectCreated:Put", in.Bucket, in.Key)()
	out, err := b.Backend.PutObject(ctx, in)
	if err == nil {
		b.send("s3:ObjectCreated:Put", str(in.Bucket), objectEntity{
			Key: str(in.Key), Size: size(out.Size, in.ContentLength), ETag: out.ETag, VersionID: out.VersionID})
	}
	return out, err
}

func (b notifying) CopyObject(ctx context.Context, in s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	defer b.intend("s3:ObjectCreated:Copy", in.Bucket, in.Key)()
	out, err := b.Backend.CopyObject(ctx, in)
	if err == nil {
		b.send("s3:ObjectCreated:Copy", str(in.Bucket), b.head(ctx, in.Bucket, in.Key))
	}
	return out, err
}

func (b notifying) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	defer b.intend("s3:ObjectCreated:CompleteMultipartUpload", in.Bucket, in.Key)()
	out, version, err := b.Backend.CompleteMultipartUpload(ctx, in)
	if err == nil {
		b.send("s3:ObjectCreated:CompleteMultipartUpload", str(in.Bucket), b.head(ctx, in.Bucket, in.Key))
	}
	return out, version, err
}

func (b notifying) DeleteObject(ctx context.Context, in *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	defer b.intend("s3:ObjectRemoved:Delete", in.Bucket, in.Key)()
	out, err := b.Backend.DeleteObject(ctx, in)
	if err == nil {
		b.send("s3:ObjectRemoved:Delete", str(in.Bucket), objectEntity{Key: str(in.Key)})
	}
	return out, err
}

func (b notifying) DeleteObjects(ctx context.Context, in *s3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	if in.Delete != nil {
		for _, o := range in.Delete.Objects {
			defer b.intend("s3:ObjectRemoved:Delete", in.Bucket, o.Key)() //nolint:revive // until all are deleted
		}
	}
	out, err := b.Backend.DeleteObjects(ctx, in)
	if err == nil {
		for _, d := range out.Deleted {
			b.send("s3:ObjectRemoved:Delete", str(in.Bucket), objectEntity{Key: str(d.Key)})
		}
	}
	return out, err
}

// head describes an object whose size the request did not say.
func (b notifying) head(ctx context.Context, bucket, key *string) objectEntity {
	o := objectEntity{Key: str(key)}
	if len(b.targets) == 0 {
		return o
	}
	if h, err := b.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key}); err == nil {
		o.Size, o.ETag, o.VersionID = size(h.ContentLength), str(h.ETag), str(h.VersionId)
	}
	return o
}

func str(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

func size(candidates ...*int64) int64 {
	for _, p := range candidates {
		if p != nil {
			return *p
		}
	}
	return 0
}

// notifier hands each notification to every target's queue.
type notifier struct {
	region, user, endpoint string
	intents                string // folder
	targets                []*target

	mu   sync.Mutex
	last int64 // the latest sequencer
}

func newNotifier(ctx context.Context, dir string, cfg Config) (*notifier, error) {
	n := &notifier{
		region: cfg.Region, user: cfg.AccessKey, endpoint: fmt.Sprintf("http://127.0.0.1:%d", cfg.Port),
		intents: filepath.Join(dir, "intents"),
	}
	if err := os.MkdirAll(n.intents, 0o750); err != nil {
		return nil, fmt.Errorf("making the folder of notes: %w", err)
	}
	for _, u := range cfg.NotifyURLs {
		t, err := openTarget(ctx, dir, u, cfg.NotifyToken)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("opening the notifications for %s: %w", u, err)
		}
		n.targets = append(n.targets, t)
	}
	return n, nil
}

func (n *notifier) close() {
	for _, t := range n.targets {
		t.close()
	}
}

// sequence gives ever greater numbers, over restarts too.
func (n *notifier) sequence() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = max(n.last+1, time.Now().UnixNano())
	return n.last
}

// send queues a notification. It is on disk when send returns, so an object whose
// creation was acknowledged is always told of, even after a crash.
func (n *notifier) send(event, bucket string, o objectEntity) {
	if len(n.targets) == 0 {
		return
	}
	now, seq := time.Now().UTC(), n.sequence()

	plain := bucket + "/" + o.Key
	o.Key = url.QueryEscape(o.Key)
	o.ETag = strings.Trim(o.ETag, `"`)
	o.Sequencer = fmt.Sprintf("%016X", seq)
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	body, err := json.Marshal(webhook{
		EventName: event,
		Key:       plain,
		Records: []record{{
			EventVersion: "2.0", EventSource: "minio:s3", AWSRegion: n.region,
			EventTime: now.Format("2006-01-02T15:04:05.000Z"), EventName: event,
			UserIdentity:      identity{n.user},
			RequestParameters: map[string]string{"principalId": n.user, "region": n.region, "sourceIPAddress": "127.0.0.1"},
			ResponseElements: map[string]string{
				"x-amz-request-id":        strings.ToUpper(hex.EncodeToString(id)),
				"x-amz-id-2":              o.Sequencer,
				"x-minio-origin-endpoint": n.endpoint,
			},
			S3: s3Entity{
				SchemaVersion: "1.0", ConfigurationID: "Config",
				Bucket: bucketEntity{Name: bucket, OwnerIdentity: identity{n.user}, ARN: "arn:aws:s3:::" + bucket},
				Object: o,
			},
			Source: map[string]string{"host": "127.0.0.1", "port": "", "userAgent": "millrace"},
		}},
	})
	if err != nil {
		slog.Error("a notification cannot be written", "key", plain, "error", err)
		return
	}
	for _, t := range n.targets {
		if err := t.enqueue(seq, body); err != nil {
			slog.Error("a notification was lost", "url", t.url, "key", plain, "error", err)
		}
	}
}

// target is one URL and its queue: a folder with one file a notification, sent
// in order, each until it is accepted.
type target struct {
	url, token, dir string
	client          *http.Client
	wake            chan struct{}
	stop            context.CancelFunc
	done            chan struct{}

	mu      sync.Mutex
	waiting int
}

func openTarget(ctx context.Context, dir, rawURL, token string) (*target, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is not an http or https URL", rawURL)
	}
	sum := sha256.Sum256([]byte(rawURL))
	t := &target{
		url: rawURL, token: token, dir: filepath.Join(dir, hex.EncodeToString(sum[:8])),
		client: &http.Client{Timeout: 30 * time.Second},
		wake:   make(chan struct{}, 1), done: make(chan struct{}),
	}
	if err := os.MkdirAll(t.dir, 0o750); err != nil {
		return nil, err
	}
	names, err := t.queued()
	if err != nil {
		return nil, err
	}
	t.waiting = len(names)
	ctx, stop := context.WithCancel(ctx)
	t.stop = stop
	go t.deliver(ctx)
	return t, nil
}

func (t *target) close() {
	t.stop()
	<-t.done
}

func (t *target) enqueue(seq int64, body []byte) error {
	t.mu.Lock()
	full := t.waiting >= queueLimit
	if !full {
		t.waiting++
	}
	t.mu.Unlock()
	if full {
		return fmt.Errorf("%d notifications are waiting already", queueLimit)
	}
	// Written under another name first: a crash leaves no half notification.
	name := filepath.Join(t.dir, fmt.Sprintf("%020d", seq))
	if err := os.WriteFile(name+".tmp", body, 0o644); err != nil {
		return err
	}
	if err := os.Rename(name+".tmp", name+".json"); err != nil {
		return err
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return nil
}

// queued lists the notifications that wait, oldest first.
func (t *target) queued() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(t.dir, "*.json"))
	slices.Sort(names)
	return names, err
}

func (t *target) deliver(ctx context.Context) {
	defer close(t.done)
	for {
		names, err := t.queued()
		if err != nil {
			slog.Error("notifications cannot be listed", "url", t.url, "error", err)
		}
		for _, name := range names {
			if !t.deliverOne(ctx, name) {
				return
			}
		}
		if len(names) > 0 {
			continue // more may have come while these were sent
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
			return
		}
	}
}

// deliverOne sends one notification until it is accepted; false when ctx ended.
func (t *target) deliverOne(ctx context.Context, name string) bool {
	const shortest, longest = 100 * time.Millisecond, 3 * time.Second
	pause := shortest
	for {
		body, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		if err == nil {
			err = t.post(ctx, body)
		}
		if err == nil {
			if err := os.Remove(name); err != nil {
				slog.Error("a sent notification cannot be removed", "file", name, "error", err)
			}
			t.mu.Lock()
			t.waiting--
			t.mu.Unlock()
			return true
		}
		if pause == shortest {
			slog.Warn("a notification was not accepted and is sent again until it is", "url", t.url, "error", err)
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, longest)
		case <-ctx.Done():
			return false
		}
	}
}

func (t *target) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if t.token != "" {
		req.Header.Set("Authorization", t.token)
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

package eventing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

const (
	mediaBatch  = "application/cloudevents-batch+json"
	mediaSingle = "application/cloudevents+json"
	// maxReplyBytes bounds an answer. It is far above a batch of the largest events.
	maxReplyBytes = 64 << 20
	// maxDetailBytes is how much of a refusal is read.
	maxDetailBytes = 2 * maxErrorData
)

// httpOutlet sends events to a Service or URI: one event in binary mode (structured
// if the delivery says so), several as a batch.
type httpOutlet struct {
	to         Destination
	addresses  Addresses
	timeout    time.Duration
	structured bool
	client     http.RoundTripper
	// resolved is the last address, parsed.
	resolved atomic.Pointer[resolved]
}

type resolved struct {
	text string
	url  *url.URL
}

// newTransport is tuned for many requests to few hosts nearby: connections are kept,
// bodies are not compressed, and writes go out in one piece.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		MaxIdleConns:          0,
		MaxIdleConnsPerHost:   512,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		ExpectContinueTimeout: time.Second,
		TLSHandshakeTimeout:   5 * time.Second,
		Proxy:                 http.ProxyFromEnvironment,
	}
}

func (h *httpOutlet) url() (*url.URL, error) {
	text, err := h.addresses.URL(h.to)
	if err != nil {
		return nil, err
	}
	if last := h.resolved.Load(); last != nil && last.text == text {
		return last.url, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parsing the address of %s: %w", h.to, err)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	h.resolved.Store(&resolved{text, u})
	return u, nil
}

func (h *httpOutlet) address() string {
	u, err := h.url()
	if err != nil {
		return h.to.String()
	}
	return u.String()
}

func (h *httpOutlet) send(ctx context.Context, ms []events.Message) outcome {
	u, err := h.url()
	if err != nil {
		return outcome{err: err, detail: []byte(err.Error())}
	}
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	header := make(http.Header, 16)
	// Knative's senders say that a reply is understood.
	header["Prefer"] = preferReply
	// Not sent, being empty: it lets the transport repeat a request that went down with
	// a connection which the server had closed meanwhile. Deliveries may be repeated.
	header["Idempotency-Key"] = nil
	var body *requestBody
	switch {
	case len(ms) > 1:
		body = newRequestBody()
		body.encoded = events.AppendBatch(body.encoded, ms)
		header["Content-Type"] = contentTypeBatch
	case h.structured:
		body = newRequestBody()
		body.encoded = events.AppendJSON(body.encoded, &ms[0])
		header["Content-Type"] = contentTypeSingle
	default:
		body = &requestBody{encoded: ms[0].Data}
		events.SetHTTP(header, &ms[0])
	}
	defer body.release()
	req := (&http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host, Header: header, ContentLength: int64(len(body.encoded)),
		Body: body.reader(), GetBody: func() (io.ReadCloser, error) { return body.reader(), nil },
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if req.ContentLength == 0 {
		req.Body = http.NoBody
	}
	res, err := h.client.RoundTrip(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in %s", h.timeout)
		}
		err = fmt.Errorf("sending to %s: %w", u, err)
		return outcome{err: err, detail: []byte("dispatch error: " + err.Error())}
	}
	defer func() { _ = res.Body.Close() }() // nothing is left to be done about it
	if res.StatusCode < 200 || res.StatusCode > 299 {
		detail, _ := io.ReadAll(io.LimitReader(res.Body, maxDetailBytes)) // what can be had of it
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))       // so that the connection can be used again
		return outcome{
			err:    fmt.Errorf("sending to %s: it answered %s: %s", u, res.Status, errorData(detail)),
			status: res.StatusCode, detail: detail, retryAfter: retryAfter(res.Header.Get("Retry-After"), time.Now()),
		}
	}
	return readReplies(u, res)
}

var (
	preferReply       = []string{"reply"}
	contentTypeBatch  = []string{mediaBatch}
	contentTypeSingle = []string{mediaSingle}
)

// readReplies reads what the subscriber answered. An answer that is neither empty
// nor an event is a failed delivery that a retry would not mend.
func readReplies(u *url.URL, res *http.Response) outcome {
	body, err := readBody(res)
	if err != nil {
		err = fmt.Errorf("reading the answer of %s: %w", u, err)
		return outcome{err: err, detail: []byte("dispatch error: " + err.Error())}
	}
	var replies []events.Message
	switch mediaType(res.Header.Get("Content-Type")) {
	case mediaBatch:
		replies, err = events.ParseBatch(body)
	case mediaSingle:
		var m events.Message
		m, err = events.ParseJSON(body)
		replies = []events.Message{m}
	default:
		if _, isEvent := res.Header["Ce-Specversion"]; isEvent {
			var m events.Message
			m, err = events.FromHTTP(res.Header, body)
			replies = []events.Message{m}
		} else if len(body) > 0 {
			err = errors.New("received a non-empty response not recognized as CloudEvent; the response must be either empty or a valid CloudEvent")
		}
	}
	if err != nil {
		return outcome{
			err: fmt.Errorf("%s answered %s with what is no event: %w", u, res.Status, err), status: res.StatusCode,
			detail: []byte(err.Error()), final: true,
		}
	}
	return outcome{replies: replies}
}

func readBody(res *http.Response) ([]byte, error) {
	if res.ContentLength == 0 {
		return nil, nil
	}
	if n := res.ContentLength; n > 0 && n <= maxReplyBytes {
		body := make([]byte, n)
		if _, err := io.ReadFull(res.Body, body); err != nil {
			return nil, fmt.Errorf("reading %d bytes: %w", n, err)
		}
		// The end of the body has to be seen for the connection to be used again.
		_, _ = res.Body.Read(make([]byte, 1))
		return body, nil
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(res.Body, maxReplyBytes+1)); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	if b.Len() > maxReplyBytes {
		return nil, fmt.Errorf("it is longer than %d bytes", maxReplyBytes)
	}
	return b.Bytes(), nil
}

// mediaType is the content type without parameters, in lower case.
func mediaType(contentType string) string {
	if contentType == "" || contentType == mediaBatch || contentType == mediaSingle {
		return contentType
	}
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return ""
	}
	return t
}

// retryAfter reads the header in both its forms; 0 when it is absent or wrong.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(max(seconds, 0), 365*24*3600)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// requestBody is an encoded body whose memory goes back to the pool when neither the
// sender nor the transport uses it any more: the transport may go on reading for a
// moment after the answer has come.
type requestBody struct {
	encoded []byte
	pooled  bool
	mu      sync.Mutex
	users   int
}

var bodies = sync.Pool{New: func() any { return &requestBody{pooled: true} }}

// maxPooledBody keeps rare huge bodies out of the pool.
const maxPooledBody = 4 << 20

func newRequestBody() *requestBody {
	b, _ := bodies.Get().(*requestBody)
	b.encoded, b.users = b.encoded[:0], 1
	return b
}

func (b *requestBody) reader() io.ReadCloser {
	b.mu.Lock()
	b.users++
	b.mu.Unlock()
	r := &bodyReader{body: b}
	r.Reset(b.encoded)
	return r
}

func (b *requestBody) release() {
	b.mu.Lock()
	b.users--
	free := b.users == 0
	b.mu.Unlock()
	if free && b.pooled && cap(b.encoded) <= maxPooledBody {
		bodies.Put(b)
	}
}

type bodyReader struct {
	bytes.Reader
	body   *requestBody
	closed atomic.Bool
}

// Close implements io.Closer.
func (r *bodyReader) Close() error {
	if !r.closed.Swap(true) {
		r.body.release()
	}
	return nil
}

package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

// HTTPConfig says where and how events are posted.
type HTTPConfig struct {
	URL string
	// Source and Type are the events' attributes; an event's id is its number.
	Source, Type string
	// First is the number of the first message.
	First uint64
	// Batch is how many events a request carries at most: with 1 each goes alone
	// in the binary mode, with more in the batch mode.
	Batch int
	// Connections is how many requests are under way at most.
	Connections int
}

// HTTP posts messages as CloudEvents with their key as the partition key.
// Messages with one key go over one connection, one request after the other, and
// so stay in order. Requests are repeated when the answer says that it can help:
// none at all, 404, 408, 409, 429, 5xx, as Knative does.
type HTTP struct {
	*ledger
	cfg    HTTPConfig
	client *http.Client
	queues []chan Message
	live   context.Context
	giveUp context.CancelFunc
	done   sync.WaitGroup
	// trouble is the latest attempt's error.
	trouble atomic.Pointer[error]
}

// Pauses between attempts.
const (
	firstPause = 50 * time.Millisecond
	longPause  = 5 * time.Second
)

// NewHTTP starts the connections' workers. Nothing is sent before the first Send.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	if cfg.Batch < 1 || cfg.Connections < 1 {
		return nil, fmt.Errorf("batch and connections must be at least 1, got %d and %d", cfg.Batch, cfg.Connections)
	}
	if u, err := url.Parse(cfg.URL); err != nil {
		return nil, err
	} else if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not an http address", cfg.URL)
	}
	t := &HTTP{cfg: cfg, ledger: newLedger(cfg.First, underWay)}
	t.client = &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			MaxIdleConnsPerHost: cfg.Connections, MaxConnsPerHost: cfg.Connections,
			IdleConnTimeout: time.Minute, DisableCompression: true,
		},
	}
	t.live, t.giveUp = context.WithCancel(context.Background())
	for range cfg.Connections {
		queue := make(chan Message, max(2*cfg.Batch, 16))
		t.queues = append(t.queues, queue)
		t.done.Go(func() { t.work(queue) })
	}
	return t, nil
}

// Send queues a message for its key's connection.
func (t *HTTP) Send(ctx context.Context, m Message) error {
	if err := t.open(ctx, m.Seq); err != nil {
		return err
	}
	queue := t.queues[m.Seq%uint64(len(t.queues))]
	if m.Key != nil {
		h := fnv.New32a()
		_, _ = h.Write(m.Key) // never fails
		queue = t.queues[h.Sum32()%uint32(len(t.queues))]
	}
	select {
	case queue <- m:
		return nil
	case <-ctx.Done():
		t.mu.Lock()
		t.next--
		t.mu.Unlock()
		return ctx.Err()
	}
}

// Close waits for the queues to empty.
func (t *HTTP) Close(ctx context.Context) error {
	for _, queue := range t.queues {
		close(queue)
	}
	stop := context.AfterFunc(ctx, t.giveUp)
	defer stop()
	t.done.Wait()
	t.giveUp()
	t.client.CloseIdleConnections()
	if ctx.Err() != nil && t.Outcome().Unsettled > 0 {
		return fmt.Errorf("posting what is left to %s: %w", t.cfg.URL, ctx.Err())
	}
	return nil
}

// Check returns why the latest attempt that failed did, if none succeeded since.
func (t *HTTP) Check(context.Context) error {
	if err := t.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// Outcome counts answers.
func (t *HTTP) Outcome() Outcome { return t.outcome(t.cfg.First) }

func (t *HTTP) work(queue <-chan Message) {
	batch := make([]Message, 0, t.cfg.Batch)
	for m := range queue {
		batch = append(batch[:0], m)
	more:
		for len(batch) < t.cfg.Batch {
			select {
			case m, ok := <-queue:
				if !ok {
					break more
				}
				batch = append(batch, m)
			default:
				break more
			}
		}
		t.deliver(batch)
	}
}

// deliver posts a batch until it is settled or given up.
func (t *HTTP) deliver(batch []Message) {
	header, body := t.encode(batch)
	for pause := firstPause; t.live.Err() == nil; pause = min(2*pause, longPause) {
		wait, err := t.post(header, body)
		var refusal *refusal
		switch {
		case err == nil:
			t.trouble.Store(nil)
			for _, m := range batch {
				t.delivered(m.Seq)
			}
			return
		case errors.As(err, &refusal):
			for _, m := range batch {
				t.refuse(m.Seq, refusal.Error())
			}
			return
		}
		t.trouble.Store(&err)
		select {
		case <-time.After(max(wait, pause)):
		case <-t.live.Done():
		}
	}
}

func (t *HTTP) encode(batch []Message) (http.Header, []byte) {
	ms := make([]events.Message, len(batch))
	for i, m := range batch {
		e := &ms[i]
		e.Set("specversion", "1.0")
		e.Set("id", strconv.FormatUint(m.Seq, 10))
		e.Set("source", t.cfg.Source)
		e.Set("type", t.cfg.Type)
		e.Set("datacontenttype", "application/json")
		e.Set(events.PartitionKey, string(m.Key))
		e.Data = m.Value
	}
	header := http.Header{}
	if t.cfg.Batch == 1 {
		events.SetHTTP(header, &ms[0])
		return header, ms[0].Data
	}
	header.Set("Content-Type", "application/cloudevents-batch+json")
	return header, events.AppendBatch(nil, ms)
}

// refusal is an answer that another attempt would not change.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("HTTP %d: %s", r.status, r.text) }

// post makes one attempt. wait is how long the answer asks to wait before the next.
func (t *HTTP) post(header http.Header, body []byte) (wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(t.live, http.MethodPost, t.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header = header
	resp, err := t.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	const told = 256 // bytes of an answer that go into a report
	text, err := io.ReadAll(io.LimitReader(resp.Body, told))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	switch code := resp.StatusCode; {
	case code < 300:
		return 0, err
	case code >= 500, code == 404, code == 408, code == 409, code == 429:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return time.Duration(seconds) * time.Second, fmt.Errorf("HTTP %d: %s", code, text)
	default:
		return 0, &refusal{code, string(bytes.TrimSpace(text))}
	}
}

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/sink"
)

// broker takes CloudEvents as the Broker does: batches too, unless it is plain.
type broker struct {
	*httptest.Server
	mu     sync.Mutex
	plain  bool
	refuse int // requests to answer with 503 first
	got    []events.Message
}

func newBroker(t *testing.T) *broker {
	b := &broker{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		if b.refuse > 0 {
			b.refuse--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var ms []events.Message
		if r.Header.Get("Content-Type") == events.ContentTypeBatch {
			if b.plain {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			var err error
			if ms, err = events.ParseBatch(body); err != nil {
				t.Error(err)
			}
		} else {
			m, err := events.FromHTTP(r.Header, body)
			if err != nil {
				t.Error(err)
			}
			ms = append(ms, m)
		}
		b.got = append(b.got, ms...)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *broker) take() []events.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.got
	b.got = nil
	return got
}

// start serves the function before a broker and returns its webhook's URL.
func start(t *testing.T, b *broker) string {
	t.Helper()
	to, err := sink.New(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWebhook(to, "sesame")
	if err != nil {
		t.Fatal(err)
	}
	s, err := function.New(function.Config{Name: "ingest"}, function.Each(refuse), function.WithRoutes(w.routes))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return srv.URL + path
}

func post(t *testing.T, url, token, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func oneRecord(name, key, sequencer string) string {
	return fmt.Sprintf(`{"eventVersion":"2.0","eventSource":"minio:s3","awsRegion":"","eventTime":"2026-11-22T03:04:05.678Z","eventName":%q,`+
		`"responseElements":{"x-amz-id-2":"dd90","x-amz-request-id":"17A0"},`+
		`"s3":{"s3SchemaVersion":"1.0","bucket":{"name":"validated-events-bucket"},"object":{"key":%q,"size":3,"eTag":"e","sequencer":%q}}}`,
		name, key, sequencer)
}

func body(records ...string) string {
	return `{"EventName":"s3:ObjectCreated:Put","Key":"b/k","Records":[` + strings.Join(records, ",") + `]}`
}

// minio writes its keys like this.
const encodedKey = "topics%2Ftracking.user_behavior.validated%2Fyear%3D2026%2Fa+b%2Fx%2B1%2Bü.json"

func TestRecordBecomesAnEventByTheS3Adapter(t *testing.T) {
	b := newBroker(t)
	url := start(t, b)
	r := oneRecord("s3:ObjectCreated:Put", encodedKey, "17A1")
	for range 2 { // a replay gives the same event
		if status := post(t, url, "Bearer sesame", body(r)); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		const key = "topics/tracking.user_behavior.validated/year=2026/a b/x+1+ü.json"
		want := map[string]string{
			"specversion": "1.0", "id": "17A0.dd90.17A1", "source": "minio:s3..validated-events-bucket",
			"type": "com.amazonaws.s3.ObjectCreated:Put", "datacontenttype": "application/json",
			"subject": key, "time": "2026-11-22T03:04:05.678Z", "bucket": "validated-events-bucket",
			"keyprefix": "topics/tracking.user_behavior.validated/", "partitionkey": "validated-events-bucket/" + key,
		}
		got := b.take()
		if len(got) != 1 {
			t.Fatalf("%d events", len(got))
		}
		attrs := map[string]string{}
		for _, a := range got[0].Attrs {
			attrs[a.Name] = a.Value
		}
		if diff := cmp.Diff(want, attrs); diff != "" {
			t.Errorf("attributes (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(r, string(got[0].Data)); diff != "" {
			t.Errorf("data (-want +got):\n%s", diff)
		}
		if _, err := got[0].Event(); err != nil {
			t.Errorf("the SDK does not take it: %v", err)
		}
	}
}

func TestSeveralRecordsAndDeletes(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain broker %v", plain), func(t *testing.T) {
			b := newBroker(t)
			b.plain = plain
			url := start(t, b)
			records := body(oneRecord("s3:ObjectCreated:Put", "a", "1"),
				oneRecord("ObjectCreated:CompleteMultipartUpload", "d/b", "2"), oneRecord("s3:ObjectRemoved:Delete", "a", "3"))
			if status := post(t, url, "sesame", records); status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
			var got []string
			for _, m := range b.take() {
				got = append(got, strings.Join([]string{m.Get("type"), m.Get("id"), m.Get("subject"), m.Get("keyprefix")}, " "))
			}
			want := []string{
				"com.amazonaws.s3.ObjectCreated:Put 17A0.dd90.1 a ",
				"com.amazonaws.s3.ObjectCreated:CompleteMultipartUpload 17A0.dd90.2 d/b d/",
				"com.amazonaws.s3.ObjectRemoved:Delete 17A0.dd90.3 a ",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSenderIsAskedToComeAgainUntilTheBrokerHasTakenIt(t *testing.T) {
	b := newBroker(t)
	b.refuse = 2
	url := start(t, b)
	var got []int
	for range 3 {
		got = append(got, post(t, url, "sesame", body(oneRecord("s3:ObjectCreated:Put", "a", "1"), oneRecord("s3:ObjectCreated:Put", "b", "2"))))
	}
	if diff := cmp.Diff([]int{503, 503, 200}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := len(b.take()); n != 2 {
		t.Errorf("%d events", n)
	}
	b.Close()
	if status := post(t, url, "sesame", body(oneRecord("s3:ObjectCreated:Put", "a", "1"))); status != 503 {
		t.Errorf("without a broker: status %d", status)
	}
}

func TestOnlyTheTokenOpens(t *testing.T) {
	b := newBroker(t)
	url := start(t, b)
	for _, token := range []string{"", "Bearer ", "Bearer sesam", "sesame x", "bearer sesame", "Bearer sesame2"} {
		if status := post(t, url, token, body(oneRecord("s3:ObjectCreated:Put", "a", "1"))); status != http.StatusUnauthorized {
			t.Errorf("token %q: status %d", token, status)
		}
	}
	if n := len(b.take()); n != 0 {
		t.Errorf("%d events", n)
	}
}

func TestProbeNeedsNoToken(t *testing.T) {
	resp, err := http.Head(start(t, newBroker(t)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestWhatIsNoRecordIsDroppedAndTheRestGoesOn(t *testing.T) {
	b := newBroker(t)
	url := start(t, b)
	for text, want := range map[string]int{
		body(`{}`, `7`, oneRecord("s3:ObjectCreated:Put", "%zz", "1"), oneRecord("s3:ObjectCreated:Put", "%ff", "1"),
			oneRecord("s3:ObjectCreated:Put", "good", "2")): 200,
		`{"Service":"Amazon S3","Event":"s3:TestEvent"}`: 200,
		``:                             400,
		`{"Records":{}}`:               400,
		strings.Repeat(" ", maxBody+1): 413,
	} {
		if status := post(t, url, "sesame", text); status != want {
			t.Errorf("%.40q: status %d, want %d", text, status, want)
		}
	}
	got := b.take()
	if len(got) != 1 || got[0].Get("subject") != "good" {
		t.Errorf("events %v", got)
	}
}

func TestRecordWithoutRequestIDIsNamedByItsContent(t *testing.T) {
	const text = `{"eventSource":"aws:s3","awsRegion":"eu-west-1","eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"b"},"object":{"key":"k"}}}`
	a, err := eventOf([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := eventOf([]byte(text))
	other, _ := eventOf([]byte(strings.Replace(text, `"k"`, `"l"`, 1)))
	if a.Get("id") == "" || a.Get("id") != again.Get("id") || a.Get("id") == other.Get("id") {
		t.Errorf("ids %q, %q, %q", a.Get("id"), again.Get("id"), other.Get("id"))
	}
}

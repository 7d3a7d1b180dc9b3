package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

const (
	rawTopic       = "tracking.raw_user_behavior"
	validTopic     = "tracking.user_behavior.validated"
	invalidTopic   = "tracking.user_behavior.invalid"
	validBucket    = "validated-events-bucket"
	invalidBucket  = "invalidated-events-bucket"
	validateSource = "/millrace/validate"
)

// spine is the platform as a test sees it, and what the test has sent. Every test
// has sessions of its own and numbers its events by product_id.
type spine struct {
	t       *testing.T
	session string
	broker  endpoint
	kafka   string // address of the port-forward

	mu       sync.Mutex
	sent     map[int]bool // product_id -> valid
	verdicts map[int][]verdict
}

// verdict is a record of a verdict topic.
type verdict struct {
	topic, id, typ, source, key string
}

func givenSpine(t *testing.T) *spine {
	t.Helper()
	given(t)
	s := &spine{
		t: t, session: fmt.Sprintf("%s-%d", t.Name(), time.Now().UnixNano()),
		broker: reach(t, get(t, "get", "broker", "default", "-o", "jsonpath={.status.address.url}")),
		kafka:  forward(t, namespace, "kafka", "9092"),
		sent:   map[int]bool{}, verdicts: map[int][]verdict{},
	}
	s.watch()
	return s
}

// client is a Kafka client. The broker's advertised name is of the cluster.
func (s *spine) client(opts ...kgo.Opt) *kgo.Client {
	s.t.Helper()
	cl, err := kgo.NewClient(append(opts,
		kgo.SeedBrokers(s.kafka),
		kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.kafka)
		}))...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(cl.Close)
	return cl
}

// watch collects this test's verdicts from the topics, from their beginning.
func (s *spine) watch() {
	cl := s.client(kgo.ConsumeTopics(validTopic, invalidTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	go func() {
		for ctx.Err() == nil {
			cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				session, product := payload(r.Value)
				if session != s.session {
					return
				}
				m, ok := kafka.FromRecord(r)
				if !ok {
					return
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				s.verdicts[product] = append(s.verdicts[product], verdict{
					topic: r.Topic, id: m.Get("id"), typ: m.Get("type"), source: m.Get("source"), key: string(r.Key),
				})
			})
		}
	}()
}

func payload(value []byte) (session string, product int) {
	var v struct {
		Payload struct {
			Session string `json:"user_session"`
			Product int    `json:"product_id"`
		} `json:"payload"`
	}
	if json.Unmarshal(value, &v) != nil {
		return "", 0
	}
	return v.Payload.Session, v.Payload.Product
}

// raw is event number n of this test as the tracking producer writes it. Every
// tenth has a price that no contract allows.
func (s *spine) raw(n int) []byte {
	price := "19.99"
	if n%10 == 0 {
		price = "-100"
	}
	s.mu.Lock()
	s.sent[n] = n%10 != 0
	s.mu.Unlock()
	return fmt.Appendf(nil, `{"schema":{"type":"struct","fields":[{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},`+
		`{"name":"product_id","type":"long"},{"name":"category_id","type":"long"},{"name":"category_code","type":["null","string"],"default":null},`+
		`{"name":"brand","type":["null","string"],"default":null},{"name":"price","type":"double"},{"name":"user_id","type":"long"},{"name":"user_session","type":"string"}]},`+
		`"payload":{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":%d,"category_id":2053013558920217191,`+
		`"category_code":"computers.notebook","brand":"xiaomi","price":%s,"user_id":512900744,"user_session":%q}}`, n, price, s.session)
}

// post gives a raw event to the Broker. It repeats what the Broker did not accept,
// as any sender would.
func (s *spine) post(n int) {
	s.t.Helper()
	body := s.raw(n)
	eventually(s.t, fmt.Sprintf("the Broker accepts event %d", n), func() error {
		status, answer, err := s.broker.request(s.t.Context(), http.MethodPost, "", s.header(n), body)
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("%d %s", status, answer)
		}
		return err
	})
}

func (s *spine) header(n int) http.Header {
	return http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {strconv.Itoa(n)}, "Ce-Source": {"/e2e/" + s.session},
		"Ce-Type": {events.BehaviorRaw}, "Content-Type": {"application/json"},
	}
}

// produce writes raw records from..to-1 to the raw topic.
func (s *spine) produce(from, to int) {
	s.t.Helper()
	cl := s.client()
	// As any producer of this topic does.
	if err := kafka.EnsureTopics(s.t.Context(), cl, map[string]int32{rawTopic: 12}, 1); err != nil {
		s.t.Fatalf("creating the raw topic: %v", err)
	}
	var records []*kgo.Record
	for n := from; n < to; n++ {
		records = append(records, &kgo.Record{Topic: rawTopic, Key: []byte(s.session), Value: s.raw(n)})
	}
	if err := cl.ProduceSync(s.t.Context(), records...).FirstErr(); err != nil {
		s.t.Fatalf("producing: %v", err)
	}
}

// expectVerdicts waits until everything that was sent has its verdict, in the right
// topic, with the right type, and each under one id however often it was delivered.
func (s *spine) expectVerdicts() {
	s.t.Helper()
	eventually(s.t, "every event has its verdict", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for n := range s.sent {
			if len(s.verdicts[n]) == 0 {
				return fmt.Errorf("%d of %d have one, event %d has not", len(s.verdicts), len(s.sent), n)
			}
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, got := range s.verdicts {
		want := verdict{topic: validTopic, typ: events.BehaviorValidated, source: validateSource, key: s.session, id: got[0].id}
		if !s.sent[n] {
			want.topic, want.typ = invalidTopic, events.BehaviorInvalid
		}
		for _, v := range got {
			if v != want {
				s.t.Errorf("event %d: verdict %+v, want %+v", n, v, want)
			}
		}
	}
}

// expectInLake waits until each verdict is in the lake, and requires that it is
// there once.
func (s *spine) expectInLake() {
	s.t.Helper()
	secret := func(key string) string {
		b, err := base64.StdEncoding.DecodeString(get(s.t, "get", "secret", "millrace-s3", "-o", "jsonpath={.data."+key+"}"))
		if err != nil {
			s.t.Fatal(err)
		}
		return string(b)
	}
	store, err := minio.New(forward(s.t, namespace, "minio", "9000"), &minio.Options{
		Creds: credentials.NewStaticV4(secret("access-key"), secret("secret-key"), ""),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "every verdict is in the lake once", func() error {
		seen := map[int]int{}
		for _, bucket := range []string{validBucket, invalidBucket} {
			if err := s.readBucket(store, bucket, seen); err != nil {
				return err
			}
		}
		for n, count := range seen {
			if count > 1 {
				s.t.Fatalf("event %d is in the lake %d times", n, count)
			}
		}
		if len(seen) != len(s.sent) {
			return fmt.Errorf("%d of %d are there", len(seen), len(s.sent))
		}
		return nil
	})
}

func (s *spine) readBucket(store *minio.Client, bucket string, seen map[int]int) error {
	ctx := s.t.Context()
	for o := range store.ListObjects(ctx, bucket, minio.ListObjectsOptions{Prefix: "topics/", Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		r, err := store.GetObject(ctx, bucket, o.Key, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		lines := bufio.NewReader(r)
		for {
			line, err := lines.ReadBytes('\n')
			if session, product := payload(line); session == s.session {
				seen[product]++
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("reading %s: %w", o.Key, err)
			}
		}
		_ = r.Close()
	}
	return nil
}

// pods are the names of a function's pods that are not on their way out.
func pods(t *testing.T, function string) []string {
	t.Helper()
	return strings.Fields(get(t, "get", "pod", "-l", "app.kubernetes.io/name="+function,
		"-o", `go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}`))
}

func expectNoPod(t *testing.T, function string) {
	t.Helper()
	eventually(t, function+" scales to zero", func() error {
		if p := pods(t, function); len(p) > 0 {
			return fmt.Errorf("there are %v", p)
		}
		return nil
	})
}

func TestPostedEventsBecomeVerdicts(t *testing.T) {
	s := givenSpine(t)
	for n := range 20 {
		s.post(n)
	}
	s.expectVerdicts()
	for n := range 20 {
		want := events.ReplyID("/e2e/"+s.session, strconv.Itoa(n), "validate")
		if got := s.verdicts[n][0].id; got != want {
			t.Errorf("event %d: reply id %s, want %s", n, got, want)
		}
	}
	s.expectInLake()
}

func TestRawRecordsGoThroughTheRelay(t *testing.T) {
	s := givenSpine(t)
	s.produce(0, 2000)
	s.expectVerdicts()
	s.expectInLake()
}

func TestRefusedEventIsADeadLetterWithItsReason(t *testing.T) {
	s := givenSpine(t)
	header := s.header(1)
	header.Set("Ce-Dataschema", "urn:millrace:contract:no-such-contract")
	eventually(t, "the Broker accepts the event", func() error {
		status, body, err := s.broker.request(t.Context(), http.MethodPost, "", header, []byte(`{}`))
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	letters := reach(t, get(t, "get", "kservice", "deadletter", "-o", "jsonpath={.status.address.url}"))
	var letter struct{ Key, ID, Source, Type, Code, Reason string }
	eventually(t, "the event is a dead letter", func() error {
		status, body, err := letters.request(t.Context(), http.MethodGet, "/deadletters?limit=500&type="+url.QueryEscape(events.BehaviorRaw), nil, nil)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		var page struct {
			Letters []struct{ Key, ID, Source, Type, Code, Reason string } `json:"deadletters"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return fmt.Errorf("%s: %w", body, err)
		}
		for _, l := range page.Letters {
			if l.Source == "/e2e/"+s.session {
				letter = l
				return nil
			}
		}
		return fmt.Errorf("not among %s", body)
	})
	if letter.Code != "400" || !strings.Contains(letter.Reason, `the event's dataschema names contract "no-such-contract"`) {
		t.Errorf("dead letter %+v, want code 400 and the reason that validate gave", letter)
	}
	// Sent again it is refused again: the replay reached the Broker and validate.
	status, body, err := letters.request(t.Context(), http.MethodPost, "/deadletters/"+letter.Key+"/replay", nil, nil)
	if err != nil || status != http.StatusOK {
		t.Errorf("replay: %d %s %v", status, body, err)
	}
}

func TestScaledToZeroComesBackForAnEvent(t *testing.T) {
	s := givenSpine(t)
	expectNoPod(t, "validate")
	for n := range 10 {
		s.post(n)
	}
	s.expectVerdicts()
	expectNoPod(t, "validate")
	s.post(11)
	s.expectVerdicts()
}

func TestBurstScalesOutAndBack(t *testing.T) {
	s := givenSpine(t)
	// Straight to the function, so that nothing but it sets the pace.
	validate := reach(t, get(t, "get", "kservice", "validate", "-o", "jsonpath={.status.address.url}"))
	batch := s.batch(1000)
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 64 {
		load.Go(func() {
			for ctx.Err() == nil {
				// What fails under load fails for the sender to see; here only the load counts.
				_, _, _ = validate.request(ctx, http.MethodPost, "", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, batch)
			}
		})
	}
	eventually(t, "validate scales out", func() error {
		if p := pods(t, "validate"); len(p) < 2 {
			return fmt.Errorf("there are %v", p)
		}
		return nil
	})
	stop()
	load.Wait()
	eventually(t, "validate scales back", func() error {
		if p := pods(t, "validate"); len(p) > 1 {
			return fmt.Errorf("there are %v", p)
		}
		return nil
	})
}

// batch is a batch of n raw events, as a request body.
func (s *spine) batch(n int) []byte {
	var ms []events.Message
	for i := range n {
		m := events.Message{Data: s.raw(i)}
		for _, a := range [][2]string{
			{"specversion", "1.0"}, {"id", strconv.Itoa(i)}, {"source", "/e2e/" + s.session},
			{"type", events.BehaviorRaw}, {"datacontenttype", "application/json"},
		} {
			m.Set(a[0], a[1])
		}
		ms = append(ms, m)
	}
	return events.AppendBatch(nil, ms)
}

// Pods of the path are killed while records go through it.
func TestKilledPodLosesNothing(t *testing.T) {
	s := givenSpine(t)
	const step, steps = 1000, 6
	for i := range steps {
		s.produce(i*step, (i+1)*step)
		function := []string{"validate", "relay"}[i%2]
		if p := pods(t, function); len(p) > 0 {
			get(t, "delete", "pod", p[0], "--grace-period=0", "--force", "--wait=false")
		}
		s.post(steps*step + i)
	}
	s.expectVerdicts()
	s.expectInLake()
}

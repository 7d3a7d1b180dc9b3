package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// serve starts a console and gives its address.
func serve(t *testing.T, c Config) (*console, string) {
	t.Helper()
	con, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(con.close)
	mux := http.NewServeMux()
	con.routes(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return con, s.URL + root
}

// ask gives the status and the body of an answer.
func ask(t *testing.T, method, address, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestPageLoadsNothingFromElsewhere(t *testing.T) {
	_, at := serve(t, Config{})
	resp, err := http.Get(at)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(page), "<title>Millrace</title>") {
		t.Errorf("answered %s: %.200s", resp.Status, page)
	}
	if policy := resp.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
}

// What was not configured is said, and is no error.
func TestSourcesThatAreNotThere(t *testing.T) {
	_, at := serve(t, Config{})
	for path, want := range map[string]string{
		"live":           "neither STATUS_URL nor PROMETHEUS_URL is set",
		"predictions":    "DATABASE_URL is not set",
		"models":         "MLFLOW_TRACKING_URI is not set",
		"deadletters":    "DEADLETTER_URL is not set",
		"story?q=x":      "DATABASE_URL is not set",
		"drift/reports/": "DRIFT_URL is not set",
	} {
		status, body := ask(t, http.MethodGet, at+"api/"+path, "")
		var answer struct{ Absent struct{ Message string } }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || answer.Absent.Message != want {
			t.Errorf("%s: %d %s, want %q", path, status, body, want)
		}
	}
}

func TestWrongAddressIsNamed(t *testing.T) {
	_, err := Config{DriftURL: "drift:8080"}.open(t.Context())
	if err == nil || err.Error() != "DRIFT_URL: must be like http://host:port" {
		t.Errorf("error %v", err)
	}
}

func TestWhoMayChangeSomething(t *testing.T) {
	letters := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"path":"`+r.Method+" "+r.URL.EscapedPath()+`"}`)
	}))
	defer letters.Close()
	local := Config{DeadLetterURL: letters.URL, Function: function.Config{Host: "127.0.0.1"}}
	open := Config{DeadLetterURL: letters.URL}
	guarded := Config{DeadLetterURL: letters.URL, Token: "secret"}
	const done = `{"path":"POST /deadletters/a%2Fb/replay"}`
	for _, tc := range []struct {
		name   string
		config Config
		header []string
		status int
		want   string
	}{
		{"on its own machine", local, nil, 200, done},
		{"of another page", local, []string{"Sec-Fetch-Site", "cross-site"}, 403, "cross-origin"},
		{"from elsewhere", open, nil, 403, "CONSOLE_TOKEN is not set"},
		{"without the token", guarded, nil, 401, "token is needed"},
		{"with another token", guarded, []string{"Authorization", "Bearer other"}, 401, "token is needed"},
		{"with the token", guarded, []string{"Authorization", "Bearer secret"}, 200, done},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, at := serve(t, tc.config)
			status, body := ask(t, http.MethodPost, at+"api/deadletters/a%2Fb/replay", "{}", tc.header...)
			if status != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("%d %s, want %d %s", status, body, tc.status, tc.want)
			}
		})
	}
}

// A source that fails is told from a request that was wrong, and since when it fails
// is remembered until it is well again.
func TestSinceWhenASourceFails(t *testing.T) {
	status, text := http.StatusInternalServerError, `{"error":"no disk"}`
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}))
	defer source.Close()
	con, at := serve(t, Config{DeadLetterURL: source.URL})
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	con.watch.now = func() time.Time { return now }

	began := now
	for range 2 {
		if code, body := ask(t, http.MethodGet, at+"api/deadletters", ""); code != http.StatusServiceUnavailable || !strings.Contains(body, "500 Internal Server Error: no disk") {
			t.Errorf("%d %s", code, body)
		}
		now = now.Add(time.Minute)
	}
	got := con.watch.all()["deadletter"]
	if got.Well || !got.Since.Equal(began) || !got.Asked.Equal(began.Add(time.Minute)) {
		t.Errorf("%+v", got)
	}
	status, text = http.StatusBadRequest, `{"error":"since \"x\": must be a time"}`
	if code, body := ask(t, http.MethodGet, at+"api/deadletters?since=x", ""); code != http.StatusBadRequest || !strings.Contains(body, "must be a time") {
		t.Errorf("%d %s", code, body)
	}
	if got := con.watch.all()["deadletter"]; !got.Well || !got.Since.Equal(now) {
		t.Errorf("%+v", got)
	}
}

func TestStoryOfARecord(t *testing.T) {
	con, at := serve(t, Config{DatabaseURL: pgtest.URL(t)})
	if err := con.db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	const hash = `\xabababababababababababababababababababababababababababababababab`
	for _, sql := range []string{
		`INSERT INTO etl.objects (bucket, key) VALUES ('lake', 'topics/t/one.json')`,
		`INSERT INTO etl.loads (object_id, etag, lines, rows, duplicates, quarantined, stage, loaded_at, gold_at)
			VALUES (1, 'e', 1, 1, 0, 0, 'gold', '2026-01-01 10:00:05Z', '2026-01-01 10:00:07Z')`,
		`INSERT INTO bronze.events (load_id, kafka_offset, kafka_timestamp, product_id, user_id, price, event_time, kafka_partition, checksum, line, event_type, record_hash, user_session, ce_id)
			VALUES (1, 7, '2026-01-01 10:00:01Z', 5, 3, 9.5, '2026-01-01 10:00:00', 0, 1, 1, 'cart', '` + hash + `', 'mine', 'id-1')`,
		`INSERT INTO feature_store.streaming_features (user_id, product_id, event_timestamp, processed_at, record_hash, event_type, user_session)
			VALUES (3, 5, '2026-01-01 10:00:00', '2026-01-01 10:00:02', '` + hash + `', 'cart', 'mine')`,
		`INSERT INTO public.predictions ("timestamp", model, entity, model_version, prediction, details, predicted_at)
			VALUES ('2026-01-01 10:00:00Z', 'm', '3:5', '1', 0.7, '{}', '2026-01-01 10:00:03Z')`,
	} {
		if _, err := con.db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	want := []string{"verdict in its topic", "features stored", "predicted", "in the lake and loaded to bronze"}
	for _, q := range []string{"id-1", strings.TrimPrefix(hash, `\x`)} {
		answer := tell(t, at, q)
		if diff := cmp.Diff(want, answer.whats()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", q, diff)
		}
	}
	if _, body := ask(t, http.MethodGet, at+"api/story?q=nobody", ""); !strings.Contains(body, `"hops":[]`) {
		t.Error(body)
	}
}

type told struct {
	Unknown string
	Hops    []hop
}

func (s told) whats() []string {
	var list []string
	for _, h := range s.Hops {
		list = append(list, h.What)
	}
	return list
}

// tell asks for a story.
func tell(t *testing.T, at, q string) told {
	t.Helper()
	status, body := ask(t, http.MethodGet, at+"api/story?q="+url.QueryEscape(q), "")
	var answer told
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || answer.Unknown != "" {
		t.Fatalf("%s: %d %s", q, status, body)
	}
	return answer
}

// What came before an event and after it is found by the ids of replies, and by the
// trace that events carry whether it was recorded or not.
func TestStoryFromTheBroker(t *testing.T) {
	const topic, trace = "broker", "0af7651916cd43dd8448eb211c80319c"
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topic))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at := time.Now().Add(-time.Minute)
	write := func(source, id, typ, key, traceparent string) string {
		m := &events.Message{Data: []byte(`{"a":1}`), Attrs: []events.Attr{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: id}, {Name: "source", Value: source}, {Name: "type", Value: typ},
			{Name: "datacontenttype", Value: "application/json"}, {Name: events.PartitionKey, Value: key},
		}}
		m.Set("traceparent", traceparent)
		r := kafka.ToRecord(topic, m)
		at = at.Add(time.Millisecond)
		r.Timestamp = at
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		return id
	}
	// Two records of one session, the second without a trace.
	raw := write("/kafka#raw", "partition:0/offset:1", "dev.knative.kafka.event", "mine", "00-"+trace+"-b7ad6b7169203331-00")
	valid := write("/millrace/validate", events.ReplyID("/kafka#raw", raw, "validate"), events.BehaviorValidated, "mine", "00-"+trace+"-b7ad6b7169203332-00")
	write("/millrace/featurize", events.ReplyID("/millrace/validate", valid, "featurize"), events.FeaturesReady, "mine", "00-"+trace+"-b7ad6b7169203333-00")
	write("/millrace/detect", "of-its-own", events.AnomalyDetected, "other", "00-"+trace+"-b7ad6b7169203334-00")
	raw2 := write("/kafka#raw", "partition:0/offset:2", "dev.knative.kafka.event", "mine", "")
	invalid2 := write("/millrace/validate", events.ReplyID("/kafka#raw", raw2, "validate"), events.BehaviorInvalid, "mine", "")

	_, address := serve(t, Config{Kafka: kafka.Config{Brokers: cluster.ListenAddrs()}, BrokerTopic: topic})
	all := []string{"record taken from its topic", "judged valid", "features online", "anomaly detected"}
	for q, want := range map[string][]string{
		trace:                                  all,
		"00-" + trace + "-b7ad6b7169203331-00": all,
		valid:                                  all,
		invalid2:                               {"record taken from its topic", "judged invalid"},
		"partition:0/offset:2":                 {"record taken from its topic", "judged invalid"},
		"mine":                                 {"record taken from its topic", "judged valid", "features online", "record taken from its topic", "judged invalid"},
		"nobody":                               nil,
	} {
		if diff := cmp.Diff(want, tell(t, address, q).whats()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", q, diff)
		}
	}
}

// Every statement fits the tables of today.
func TestViewsOfAnEmptyWarehouse(t *testing.T) {
	con, at := serve(t, Config{DatabaseURL: pgtest.URL(t)})
	if err := con.db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"predictions", "anomalies", "drift", "drift/measurements?model=m", "alerts", "quality", "runs"} {
		if status, body := ask(t, http.MethodGet, at+"api/"+path, ""); status != http.StatusOK || strings.TrimSpace(body) != `{"rows":[]}` {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := ask(t, http.MethodGet, at+"api/series?entity=s&metric=cpu_usage_percent", ""); status != http.StatusOK || !strings.Contains(body, `"points":[]`) {
		t.Errorf("series: %d %s", status, body)
	}
	for path, want := range map[string]string{
		"series?entity=s&metric=x;drop": "metric: must be",
		"runs?limit=0":                  "limit",
		"story?q=":                      "q: must be",
	} {
		if status, body := ask(t, http.MethodGet, at+"api/"+path, ""); status != http.StatusBadRequest || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

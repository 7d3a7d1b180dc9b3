package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
)

var now = time.Date(2026, 11, 22, 2, 41, 0, 123456000, time.UTC)

const (
	schema = `{"type":"struct","fields":[{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},` +
		`{"name":"product_id","type":"long"},{"name":"category_id","type":"long"},{"name":"category_code","type":["null","string"],"default":null},` +
		`{"name":"brand","type":["null","string"],"default":null},{"name":"price","type":"double"},{"name":"user_id","type":"long"},{"name":"user_session","type":"string"}]}`
	row = `{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,"category_id":2053013558920217191,` +
		`"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f"}`
	record = `{"schema":` + schema + `,"payload":` + row + `}`
	server = `{"type":"server_metric","timestamp":"2026-01-24T12:34:56.000000+00:00","server_id":"srv-001","rack_id":"R01","datacenter_zone":"marseille-1",` +
		`"cpu_usage_percent":31.42,"memory_usage_percent":44.1,"memory_available_gb":23.5,"disk_usage_percent":55.3,"disk_read_mbps":20.1,` +
		`"disk_write_mbps":11.7,"network_rx_mbps":150.2,"network_tx_mbps":98.4,"cpu_temperature_celsius":49.8,"power_consumption_watts":251.3}`
	application = `{"type":"application_metric","timestamp":"2026-01-24T12:34:56.000000+00:00","service_name":"api-gateway-1","server_id":"srv-007",` +
		`"request_rate_per_sec":410.22,"response_time_p50_ms":21.5,"response_time_p95_ms":60.13,"response_time_p99_ms":99.99,"error_rate_percent":0.412,` +
		`"error_count":1,"active_connections":120,"queue_depth":0,"endpoint":"/api/users"}`
)

// kafkaRecord is a record as a KafkaSource sends it.
func kafkaRecord(topic, value string, offset int, more ...events.Attr) events.Message {
	return events.Message{
		Attrs: append([]events.Attr{
			{Name: "specversion", Value: "1.0"},
			{Name: "id", Value: fmt.Sprintf("partition:3/offset:%d", offset)},
			{Name: "source", Value: "/apis/v1/namespaces/millrace/kafkasources/raw#" + topic},
			{Name: "type", Value: events.KafkaRecord},
			{Name: "subject", Value: fmt.Sprintf("partition:3#%d", offset)},
			{Name: "time", Value: "2026-11-22T02:40:59Z"},
		}, more...),
		Data: []byte(value),
	}
}

func posted(typ, value string, more ...events.Attr) events.Message {
	return events.Message{
		Attrs: append([]events.Attr{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: "e-1"}, {Name: "source", Value: "/shop/web"},
			{Name: "type", Value: typ}, {Name: "datacontenttype", Value: "application/json"},
		}, more...),
		Data: []byte(value),
	}
}

func start(t testing.TB) (url string) {
	t.Helper()
	contracts, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	v, err := newValidator("validate", contracts, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	s, err := function.New(function.Config{Name: "validate"}, v, function.WithRoutes(func(mux *http.ServeMux) {
		mux.HandleFunc("GET /contracts", v.serveContracts)
	}))
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	return ts.URL
}

// send posts an event in binary mode and returns the status, and the reply or the
// text of the error.
func send(t testing.TB, url string, m events.Message) (status int, reply events.Message, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(m.Data))
	if err != nil {
		t.Fatal(err)
	}
	events.SetHTTP(r.Header, &m)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode == http.StatusOK {
		if reply, err = events.FromHTTP(response.Header, body); err != nil {
			t.Fatal(err)
		}
	}
	return response.StatusCode, reply, string(body)
}

func attrs(m events.Message) map[string]string {
	all := map[string]string{}
	for _, a := range m.Attrs {
		all[a.Name] = a.Value
	}
	return all
}

func TestKafkaRecordBecomesItsVerdict(t *testing.T) {
	url := start(t)
	in := kafkaRecord("tracking.raw_user_behavior", record, 42,
		events.Attr{Name: "partitionkey", Value: "of the record"}, events.Attr{Name: "key", Value: "of the record"},
		events.Attr{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
	status, reply, text := send(t, url, in)
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	want := map[string]string{
		"specversion":     "1.0",
		"id":              events.ReplyID(in.Get("source"), in.Get("id"), "validate"),
		"source":          "/millrace/validate",
		"type":            "dev.millrace.behavior.validated.v1",
		"time":            "2019-10-01T02:30:12Z",
		"datacontenttype": "application/json",
		"dataschema":      "urn:millrace:contract:shop-clickstream",
		"partitionkey":    "76b918d5-b344-41fc-8632-baf222ec760f",
		"contract":        "shop-clickstream",
		"traceparent":     "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	if diff := cmp.Diff(want, attrs(reply)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !bytes.HasPrefix(reply.Data, []byte(`{"schema":`+schema+`,"payload":`+row+`,"valid":"VALID"`)) {
		t.Errorf("%s", reply.Data)
	}

	if _, again, _ := send(t, url, in); !cmp.Equal(reply, again) {
		t.Errorf("redelivered, the record got another verdict: %v", again)
	}
	if _, other, _ := send(t, url, kafkaRecord("tracking.raw_user_behavior", record, 43)); other.Get("id") == reply.Get("id") {
		t.Error("another record has the same verdict id")
	}
}

func TestVerdictAttributes(t *testing.T) {
	url := start(t)
	change := `{"before":` + row + `,"after":null,"source":{"lsn":24023128},"op":"d"}`
	for _, c := range []struct {
		name string
		in   events.Message
		want map[string]string // the attributes named here; "" is absent
	}{
		{"invalid", kafkaRecord("tracking.raw_user_behavior", strings.Replace(record, "1029.37", "-100", 1), 1),
			map[string]string{"type": "dev.millrace.behavior.invalid.v1", "partitionkey": "76b918d5-b344-41fc-8632-baf222ec760f", "time": "2019-10-01T02:30:12Z", "op": ""}},
		{"unreadable: key and time of the record", kafkaRecord("tracking.raw_user_behavior", "{", 1, events.Attr{Name: "partitionkey", Value: "k"}),
			map[string]string{"type": "dev.millrace.behavior.invalid.v1", "partitionkey": "k", "time": "2026-11-22T02:40:59Z", "contract": "shop-clickstream"}},
		{"no bytes", kafkaRecord("tracking.raw_user_behavior", "", 1),
			map[string]string{"type": "dev.millrace.behavior.invalid.v1", "partitionkey": "", "contract": "shop-clickstream"}},
		{"deleted row", kafkaRecord("tracking_postgres_cdc.public.events", change, 1),
			map[string]string{"type": "dev.millrace.behavior.validated.v1", "op": "d", "lsn": "24023128", "contract": "shop-cdc", "partitionkey": "76b918d5-b344-41fc-8632-baf222ec760f"}},
		{"server metric", kafkaRecord("datacenter-metrics", server, 1),
			map[string]string{"type": "dev.millrace.metric.validated.v1", "contract": "datacenter-server", "partitionkey": "srv-001", "time": "2026-01-24T12:34:56Z"}},
		{"application metric", kafkaRecord("datacenter-metrics", application, 1),
			map[string]string{"type": "dev.millrace.metric.validated.v1", "contract": "datacenter-application", "partitionkey": "srv-007"}},
		{"neither", kafkaRecord("datacenter-metrics", `{"type":"gpu_metric"}`, 1),
			map[string]string{"type": "dev.millrace.metric.invalid.v1", "contract": "", "dataschema": ""}},
		{"posted, bare", posted("dev.millrace.behavior.raw.v1", row),
			map[string]string{"type": "dev.millrace.behavior.validated.v1", "contract": "shop-clickstream"}},
		{"posted, in an envelope", posted("dev.millrace.behavior.raw.v1", record),
			map[string]string{"type": "dev.millrace.behavior.validated.v1", "contract": "shop-clickstream"}},
		{"posted, with its contract", posted("dev.millrace.metric.raw.v1", server, events.Attr{Name: "dataschema", Value: "urn:millrace:contract:datacenter-server"}),
			map[string]string{"type": "dev.millrace.metric.validated.v1", "contract": "datacenter-server"}},
		{"posted, with the other contract", posted("dev.millrace.metric.raw.v1", server, events.Attr{Name: "dataschema", Value: "urn:millrace:contract:datacenter-application"}),
			map[string]string{"type": "dev.millrace.metric.invalid.v1", "contract": "datacenter-application"}},
		{"posted, with a schema of somebody else", posted("dev.millrace.metric.raw.v1", server, events.Attr{Name: "dataschema", Value: "https://example.com/metric"}),
			map[string]string{"type": "dev.millrace.metric.validated.v1", "contract": "datacenter-server", "dataschema": "urn:millrace:contract:datacenter-server"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, reply, text := send(t, url, c.in)
			if status != http.StatusOK {
				t.Fatalf("%d %s", status, text)
			}
			for name, want := range c.want {
				if got := reply.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if !json.Valid(reply.Data) {
				t.Errorf("%s", reply.Data)
			}
		})
	}
}

func TestTombstoneGetsNoVerdict(t *testing.T) {
	url := start(t)
	for _, value := range []string{"", "null"} {
		if status, _, text := send(t, url, kafkaRecord("tracking_postgres_cdc.public.events", value, 1)); status != http.StatusAccepted {
			t.Errorf("%q: %d %s", value, status, text)
		}
	}
}

func TestEventsWithoutContractAreRefusedForGood(t *testing.T) {
	url := start(t)
	noTopic := kafkaRecord("x", record, 1)
	noTopic.Set("source", "/apis/v1/namespaces/millrace/kafkasources/raw")
	for _, c := range []struct {
		name string
		in   events.Message
		want string
	}{
		{"unknown topic", kafkaRecord("orders", record, 1),
			`there is no contract for topic "orders", only for: datacenter-metrics, tracking.raw_user_behavior, tracking_postgres_cdc.public.events`},
		{"no topic", noTopic,
			`looking for the contract of a Kafka record: its source "/apis/v1/namespaces/millrace/kafkasources/raw" names no topic after a #`},
		{"unknown type", posted("com.example.order", row),
			`there is no contract for events of type "com.example.order", only for: dev.millrace.behavior.raw.v1, dev.millrace.metric.raw.v1; and for Kafka records of topics: datacenter-metrics, tracking.raw_user_behavior, tracking_postgres_cdc.public.events`},
		{"a verdict is not judged again", posted("dev.millrace.behavior.validated.v1", record, events.Attr{Name: "dataschema", Value: "urn:millrace:contract:shop-clickstream"}),
			`there is no contract for events of type "dev.millrace.behavior.validated.v1"`},
		{"a contract for other events", posted("dev.millrace.behavior.raw.v1", row, events.Attr{Name: "dataschema", Value: "urn:millrace:contract:datacenter-server"}),
			`the event's dataschema names contract "datacenter-server", which is not one for events of type "dev.millrace.behavior.raw.v1"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, _, text := send(t, url, c.in)
			if status != http.StatusBadRequest || !strings.HasPrefix(text, c.want) {
				t.Errorf("%d %s", status, text)
			}
		})
	}
}

// One event that nothing can judge does not hold up the others of its batch.
func TestBatchKeepsOrderAndSeparatesWhatIsRefused(t *testing.T) {
	url := start(t)
	var batch []events.Message
	for i := range 100 {
		value, topic := record, "tracking.raw_user_behavior"
		switch {
		case i%10 == 3:
			value = strings.Replace(record, "1029.37", "-100", 1)
		case i == 50:
			topic = "orders"
		case i == 60:
			topic, value = "tracking_postgres_cdc.public.events", ""
		}
		batch = append(batch, kafkaRecord(topic, value, i))
	}
	response, err := http.Post(url, "application/cloudevents-batch+json", bytes.NewReader(events.AppendBatch(nil, batch)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%d %s %v", response.StatusCode, body, err)
	}
	replies, err := events.ParseBatch(body)
	if err != nil {
		t.Fatal(err)
	}
	batch = slices.Delete(batch, 60, 61) // the tombstone has no verdict
	if len(replies) != len(batch) {
		t.Fatalf("%d replies", len(replies))
	}
	for i, in := range batch {
		got := replies[i]
		if in.Get("id") == "partition:3/offset:50" {
			if got.Get("id") != in.Get("id") || got.Get("knativeerrorcode") != "400" || !strings.Contains(got.Get("knativeerrordata"), "orders") {
				t.Errorf("dead letter: %v", got.Attrs)
			}
			continue
		}
		want := "dev.millrace.behavior.validated.v1"
		if bytes.Contains(in.Data, []byte("-100")) {
			want = "dev.millrace.behavior.invalid.v1"
		}
		if got.Get("id") != events.ReplyID(in.Get("source"), in.Get("id"), "validate") || got.Get("type") != want {
			t.Errorf("%s: %v", in.Get("id"), got.Attrs)
		}
	}
}

func TestMegabyteBodies(t *testing.T) {
	url := start(t)
	note := func(n int) string {
		return record[:len(record)-2] + `,"note":"` + strings.Repeat("n", n) + `"}}`
	}
	status, reply, text := send(t, url, kafkaRecord("tracking.raw_user_behavior", note(1_000_000), 1))
	if status != http.StatusOK || reply.Get("type") != "dev.millrace.behavior.validated.v1" || len(reply.Data) < 1_000_000 {
		t.Errorf("1 MB: %d %.200s", status, text)
	}
	status, reply, text = send(t, url, kafkaRecord("tracking.raw_user_behavior", note(1<<20-len(record)-10), 1))
	if status != http.StatusOK || reply.Get("type") != "dev.millrace.behavior.invalid.v1" || len(reply.Data) > 1<<20-8<<10 {
		t.Errorf("1 MiB: %d %.200s", status, text)
	}
	if status, _, _ = send(t, url, kafkaRecord("tracking.raw_user_behavior", note(2<<20), 1)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("2 MiB: %d", status)
	}
}

func TestContractsAreShown(t *testing.T) {
	response, err := http.Get(start(t) + "/contracts")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var list []struct {
		Name, File string
		Fields     []string
	}
	if err := json.NewDecoder(response.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 4 || list[3].Name != "shop-clickstream" || list[3].File != "embedded contract shop-clickstream.yaml" || list[3].Fields[6] != "price double" {
		t.Errorf("%+v", list)
	}
}

var update = flag.Bool("update", false, "write the golden events that are missing; those that are there stay")

// Golden events are the whole replies, one for each type and contract. Consumers
// were written for them, so none is ever deleted.
func TestGoldenEvents(t *testing.T) {
	url := start(t)
	create := `{"before":null,"after":` + row + `,"source":{"lsn":24023128},"op":"c"}`
	for name, in := range map[string]events.Message{
		"behavior-validated":        kafkaRecord("tracking.raw_user_behavior", record, 42),
		"behavior-validated-create": kafkaRecord("tracking_postgres_cdc.public.events", create, 7),
		"behavior-validated-posted": posted("dev.millrace.behavior.raw.v1", row),
		"behavior-invalid-rule":     kafkaRecord("tracking.raw_user_behavior", strings.Replace(record, "1029.37", "-100", 1), 43),
		"behavior-invalid-error":    kafkaRecord("tracking.raw_user_behavior", "not JSON", 44),
		"metric-validated-server":   kafkaRecord("datacenter-metrics", server, 45),
		"metric-validated-app":      kafkaRecord("datacenter-metrics", application, 46),
		"metric-invalid":            kafkaRecord("datacenter-metrics", strings.Replace(server, "31.42", "131.42", 1), 47),
	} {
		t.Run(name, func(t *testing.T) {
			status, reply, text := send(t, url, in)
			if status != http.StatusOK {
				t.Fatalf("%d %s", status, text)
			}
			slices.SortFunc(reply.Attrs, func(a, b events.Attr) int { return strings.Compare(a.Name, b.Name) })
			var got bytes.Buffer
			for _, a := range reply.Attrs {
				fmt.Fprintf(&got, "%s: %s\n", a.Name, a.Value)
			}
			fmt.Fprintf(&got, "\n%s\n", reply.Data)
			file := filepath.Join("testdata", "golden", name+".event")
			want, err := os.ReadFile(file)
			if os.IsNotExist(err) && *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The program as it is started: with contracts of its own, and with wrong ones.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CONTRACTS_DIR", dir)
	t.Setenv("LISTEN_HOST", "127.0.0.1")
	t.Run("wrong contract", func(t *testing.T) {
		bad := filepath.Join(dir, "bad.yaml")
		if err := os.WriteFile(bad, []byte("name: bad\nkind: xml\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), "loading contracts: "+bad+`:2:7: unknown kind "xml": connect, debezium or json`) {
			t.Errorf("%v", err)
		}
		if err := os.Remove(bad); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("missing folder", func(t *testing.T) {
		t.Setenv("CONTRACTS_DIR", dir+"/nowhere")
		if err := run(t.Context()); err == nil || err.Error() != "loading contracts: reading contracts folder "+dir+"/nowhere: no such file or directory" {
			t.Errorf("%v", err)
		}
	})
	t.Run("wrong environment", func(t *testing.T) {
		t.Setenv("PORT", "eighty")
		if err := run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "reading the environment: ") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a contract of one's own, no code", func(t *testing.T) {
		own := "name: orders\nkind: json\ntopics: [orders]\nverdicts: {valid: com.example.order.validated.v1, invalid: com.example.order.invalid.v1}\n" +
			"key: order\neventTime: at\nfields:\n  - {name: order, type: int64}\n  - {name: at, type: timestamp, formats: [rfc3339]}\n"
		if err := os.WriteFile(filepath.Join(dir, "orders.yaml"), []byte(own), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		l.Close()
		t.Setenv("PORT", port)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- run(ctx) }()
		url := "http://127.0.0.1:" + port
		for {
			r, err := http.Get(url + "/readyz")
			if err == nil {
				r.Body.Close()
				if r.StatusCode == http.StatusOK {
					break
				}
			}
			select {
			case err := <-ended:
				t.Fatalf("ended: %v", err)
			case <-time.After(5 * time.Millisecond):
			}
		}
		status, reply, text := send(t, url, kafkaRecord("orders", `{"order":7,"at":"2026-01-01T00:00:00Z"}`, 1))
		if status != http.StatusOK || reply.Get("type") != "com.example.order.validated.v1" || reply.Get("partitionkey") != "7" {
			t.Errorf("%d %s %v", status, text, reply.Attrs)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	contracts, err := contract.Open("")
	if err != nil {
		b.Fatal(err)
	}
	v, err := newValidator("validate", contracts, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch-%d", size), func(b *testing.B) {
			batch := make([]event.Event, size)
			for i := range batch {
				m := kafkaRecord("tracking.raw_user_behavior", record, i, events.Attr{Name: "partitionkey", Value: "k"})
				if batch[i], err = m.Event(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				for _, r := range v.Handle(b.Context(), batch) {
					if r.Reply == nil {
						b.Fatal(r.Err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/event")
		})
	}
}

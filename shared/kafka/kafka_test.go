package kafka

import (
	"bytes"
	"strings"
	"testing"
	"testing/quick"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

func sample() events.Message {
	return events.Message{
		Attrs: []events.Attr{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: "1"}, {Name: "source", Value: "/a?b=%20#c"},
			{Name: "type", Value: "t"}, {Name: "datacontenttype", Value: "application/json"},
			{Name: "partitionkey", Value: "s1"}, {Name: "note", Value: "100 % größer €\n"},
		},
		Data: []byte(`{"a":1}`),
	}
}

func TestToRecord_isTheBinaryBinding(t *testing.T) {
	m := sample()
	r := ToRecord("topic", &m)
	got := map[string]string{}
	for _, h := range r.Headers {
		got[h.Key] = string(h.Value)
	}
	// Values are UTF-8 as they are: percent-encoding is for HTTP headers only.
	want := map[string]string{
		"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/a?b=%20#c", "ce_type": "t", "content-type": "application/json",
		"ce_partitionkey": "s1", "ce_note": "100 % größer €\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if string(r.Key) != "s1" || string(r.Value) != `{"a":1}` || r.Topic != "topic" {
		t.Errorf("key %q, value %q, topic %q", r.Key, r.Value, r.Topic)
	}
}

func TestRecord_roundTrip(t *testing.T) {
	withoutData := sample()
	withoutData.Data = nil
	withoutKey := sample()
	withoutKey.Set("partitionkey", "")
	for name, m := range map[string]events.Message{"full": sample(), "null value": withoutData, "no key": withoutKey} {
		t.Run(name, func(t *testing.T) {
			r := ToRecord("topic", &m)
			if (m.Data == nil) != (r.Value == nil) {
				t.Errorf("value is null: %t", r.Value == nil)
			}
			got, ok := FromRecord(r)
			if !ok {
				t.Fatal("the record is not an event")
			}
			if diff := cmp.Diff(m, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRecord_roundTripOfAnything(t *testing.T) {
	property := func(id, source, value string, data []byte) bool {
		m := events.Message{Data: data, Attrs: []events.Attr{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: id}, {Name: "source", Value: source}, {Name: "x", Value: value},
		}}
		got, ok := FromRecord(ToRecord("t", &m))
		return ok && cmp.Equal(m, got)
	}
	if err := quick.Check(property, nil); err != nil {
		t.Error(err)
	}
}

func TestRecord_structured(t *testing.T) {
	m := sample()
	r := ToStructuredRecord("topic", &m)
	if string(r.Key) != "s1" {
		t.Errorf("key %q", r.Key)
	}
	got, ok := FromRecord(r)
	if !ok {
		t.Fatalf("not an event: %s", r.Value)
	}
	for _, a := range m.Attrs {
		if got.Get(a.Name) != a.Value {
			t.Errorf("%s: got %q, want %q", a.Name, got.Get(a.Name), a.Value)
		}
	}
	if !bytes.Equal(got.Data, m.Data) {
		t.Errorf("data %s", got.Data)
	}
}

func TestFromRecord_otherRecords(t *testing.T) {
	header := func(pairs ...string) *kgo.Record {
		r := &kgo.Record{Value: []byte("v")}
		for i := 0; i < len(pairs); i += 2 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return r
	}
	for name, r := range map[string]*kgo.Record{
		"plain":             header(),
		"content type only": header("content-type", "application/json"),
		"other headers":     header("trace", "1", "ce", "2", "ce_", "3"),
		"broken structured": header("content-type", "application/cloudevents+json; charset=utf-8"),
	} {
		if _, ok := FromRecord(r); ok {
			t.Errorf("%s: taken for an event", name)
		}
	}
	m, ok := FromRecord(header("ce_specversion", "1.0", "ce_id", "1", "ce_id", "2", "ce_datacontenttype", "x", "other", "y"))
	want := []events.Attr{{Name: "specversion", Value: "1.0"}, {Name: "id", Value: "2"}}
	if diff := cmp.Diff(want, m.Attrs); !ok || diff != "" {
		t.Errorf("repeated header (-want +got):\n%s", diff)
	}
}

func TestType(t *testing.T) {
	m := sample()
	twice := ToRecord("t", &m)
	twice.Headers = append(twice.Headers, kgo.RecordHeader{Key: "ce_type", Value: []byte("last")})
	for _, test := range []struct {
		name   string
		record *kgo.Record
		typ    string
		known  bool
	}{
		{"binary", ToRecord("t", &m), "t", true},
		{"twice", twice, "last", true},
		{"no event", &kgo.Record{Value: []byte("v")}, "", true},
		{"structured", ToStructuredRecord("t", &m), "", false},
	} {
		if typ, known := Type(test.record); typ != test.typ || known != test.known {
			t.Errorf("%s: got %q, %t", test.name, typ, known)
		}
	}
}

func FuzzFromRecord(f *testing.F) {
	f.Add("ce_id", []byte("1"), "content-type", []byte("application/cloudevents+json"), []byte(`{"specversion":"1.0"}`))
	f.Add("ce_", []byte{0xff}, "ce_specversion", []byte("1.0"), []byte(nil))
	f.Fuzz(func(t *testing.T, k1 string, v1 []byte, k2 string, v2, value []byte) {
		r := &kgo.Record{Value: value, Headers: []kgo.RecordHeader{{Key: k1, Value: v1}, {Key: k2, Value: v2}}}
		m, ok := FromRecord(r)
		if typ, known := Type(r); ok && known && typ != m.Get("type") {
			t.Errorf("Type is %q, that of the event %q", typ, m.Get("type"))
		}
		if !ok || m.Validate() != nil {
			return
		}
		again, ok := FromRecord(ToRecord("t", &m))
		if !ok || !cmp.Equal(m.Attrs, again.Attrs) || !bytes.Equal(m.Data, again.Data) {
			t.Errorf("an event changes on its way: %v, %v", m, again)
		}
		for _, a := range m.Attrs {
			if !utf8.ValidString(a.Value) {
				t.Errorf("a valid event has the value %q", a.Value)
			}
		}
	})
}

func TestConfig_Options(t *testing.T) {
	for _, test := range []struct {
		name, want string
		config     Config
	}{
		{"plain", "", Config{Brokers: []string{"a:1"}}},
		{"scram", "", Config{Brokers: []string{"a:1"}, TLS: true, SASLMechanism: "scram-sha-512", Username: "u"}},
		{"none", "KAFKA_BROKERS", Config{}},
		{"url", "host:port", Config{Brokers: []string{"kafka://a"}}},
		{"mechanism", "GSSAPI", Config{Brokers: []string{"a:1"}, SASLMechanism: "GSSAPI", Username: "u"}},
		{"no user", "KAFKA_USERNAME", Config{Brokers: []string{"a:1"}, SASLMechanism: "PLAIN"}},
		{"no mechanism", "KAFKA_SASL_MECHANISM", Config{Brokers: []string{"a:1"}, Username: "u"}},
		{"no file", "KAFKA_CA_FILE", Config{Brokers: []string{"a:1"}, CAFile: "/does/not/exist"}},
	} {
		opts, err := test.config.Options()
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			} else if err := kgo.ValidateOpts(opts...); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", test.name, err, test.want)
		}
	}
}

func TestSASL_againstABroker(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "u", "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	opts, err := Config{Brokers: cluster.ListenAddrs(), SASLMechanism: "SCRAM-SHA-256", Username: "u", Password: "p"}.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEnsureTopics(t *testing.T) {
	client, ctx := testClient(t), t.Context()
	for range 2 { // the second time everything is there already
		if err := EnsureTopics(ctx, client, map[string]int32{"a": 3, "b": 0}, 1); err != nil {
			t.Fatal(err)
		}
	}
	topics, err := kadm.NewClient(client).ListTopics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := [2]int{len(topics["a"].Partitions), len(topics["b"].Partitions)}; got != [2]int{3, 1} {
		t.Errorf("partitions %v", got)
	}
	limits, err := MaxBytes(ctx, client, "a")
	if err != nil || limits["a"] != TopicMaxBytes {
		t.Errorf("limits %v, %v", limits, err)
	}
}

func TestLag(t *testing.T) {
	client, ctx := testClient(t), t.Context()
	if err := EnsureTopics(ctx, client, map[string]int32{"a": 1}, 1); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := client.ProduceSync(ctx, &kgo.Record{Topic: "a", Value: []byte("v")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	offsets := kadm.Offsets{}
	offsets.AddOffset("a", 0, 2, -1)
	if err := kadm.NewClient(client).CommitAllOffsets(ctx, "g", offsets); err != nil {
		t.Fatal(err)
	}
	got, err := Lag(ctx, client, "g")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]map[int32]int64{"a": {0: 3}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func testClient(t *testing.T) *kgo.Client {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	opts, err := Config{Brokers: cluster.ListenAddrs()}.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func BenchmarkToRecord(b *testing.B) {
	m := sample()
	b.ReportAllocs()
	for b.Loop() {
		ToRecord("topic", &m)
	}
}

func BenchmarkFromRecord(b *testing.B) {
	m := sample()
	r := ToRecord("topic", &m)
	b.ReportAllocs()
	for b.Loop() {
		FromRecord(r)
	}
}

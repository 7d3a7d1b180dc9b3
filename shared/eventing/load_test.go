package eventing

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The manifests that ship are the first that have to load.
func TestLoad_shippedManifests(t *testing.T) {
	services, err := filepath.Glob("../../functions/*/service.yaml")
	if err != nil {
		t.Fatal(err)
	}
	g, err := Load(append([]string{"../../triggers"}, services...)...)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Brokers) == 0 || len(g.Triggers) == 0 || len(g.Services) == 0 {
		t.Errorf("got %d brokers, %d triggers, %d services", len(g.Brokers), len(g.Triggers), len(g.Services))
	}
}

// write puts a manifest into a file of its own and returns its path.
func write(tb testing.TB, text string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "graph.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

const brokerManifest = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default, namespace: m}
---
`

// sourceManifest has a KafkaSource too, which sends the Broker the records of topic raw.
const sourceManifest = brokerManifest + `
apiVersion: sources.knative.dev/v1
kind: KafkaSource
metadata: {name: raw, namespace: m}
spec:
  topics: [raw]
  initialOffset: earliest
  sink:
    ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}
---
`

func TestLoad_errors(t *testing.T) {
	trigger := func(spec string) string {
		return brokerManifest + "apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: t, namespace: m}\nspec:\n" + spec
	}
	const subscriber = "  broker: default\n  subscriber: {uri: http://a.test}\n"
	for _, test := range []struct {
		name, manifest string
		// want are parts of the message; the first is the position.
		want []string
	}{
		{"unknown field", trigger(subscriber + "  delivry: {retry: 3}\n"), []string{"graph.yaml:12:3", "Trigger t", "delivry"}},
		{"nested unknown field", trigger(subscriber + "  delivery:\n    retries: 3\n"), []string{"graph.yaml:13:5", "retries"}},
		{"wrong type", trigger(subscriber + "  delivery:\n    retry: often\n"), []string{"graph.yaml:13", "retry", "string"}},
		{"duplicate key", trigger(subscriber + "  broker: other\n"), []string{"graph.yaml:12", "broker"}},
		{"missing broker", trigger("  broker: nope\n  subscriber: {uri: http://a.test}\n"), []string{"graph.yaml:10", "spec.broker", "no Broker m/nope"}},
		{"no subscriber", trigger("  broker: default\n"), []string{"graph.yaml:9", "spec.subscriber", "ref or a uri"}},
		{"relative uri", trigger("  broker: default\n  subscriber: {uri: /a}\n"), []string{"graph.yaml:11", "spec.subscriber.uri", "absolute"}},
		{"missing sink", trigger("  broker: default\n  subscriber:\n    ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: x}\n"),
			[]string{"graph.yaml:12", "spec.subscriber.ref", "no KafkaSink m/x"}},
		{"wrong version of a ref", trigger("  broker: default\n  subscriber:\n    ref: {apiVersion: v1, kind: Service, name: x}\n"),
			[]string{"graph.yaml:12", "ref.apiVersion", "serving.knative.dev/v1"}},
		{"channel as subscriber", trigger("  broker: default\n  subscriber:\n    ref: {apiVersion: messaging.knative.dev/v1, kind: Channel, name: x}\n"),
			[]string{"graph.yaml:12", "ref.kind", "Channel"}},
		{"bad duration", trigger(subscriber + "  delivery:\n    backoffDelay: 200ms\n"), []string{"graph.yaml:13", "spec.delivery.backoffDelay", "200ms"}},
		{"no timeout", trigger(subscriber + "  delivery:\n    timeout: PT0S\n"), []string{"graph.yaml:13", "spec.delivery.timeout"}},
		{"bad policy", trigger(subscriber + "  delivery:\n    backoffPolicy: fibonacci\n"), []string{"graph.yaml:13", "backoffPolicy", "fibonacci"}},
		{"negative retry", trigger(subscriber + "  delivery:\n    retry: -1\n"), []string{"graph.yaml:13", "retry", "negative"}},
		{"bad cesql", trigger(subscriber + "  filters:\n  - cesql: \"type = \"\n"), []string{"graph.yaml:13", "spec.filters[0].cesql"}},
		{"two dialects", trigger(subscriber + "  filters:\n  - exact: {type: a}\n    prefix: {type: b}\n"), []string{"graph.yaml:13", "spec.filters[0]", "several dialects"}},
		{"empty filter value", trigger(subscriber + "  filters:\n  - exact: {type: \"\"}\n"), []string{"graph.yaml:13", "spec.filters[0].exact", "empty"}},
		{"attribute name", trigger(subscriber + "  filter:\n    attributes: {Type: a}\n"), []string{"graph.yaml:13", "spec.filter.attributes", "Type"}},
		{"bad order", brokerManifest + "apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata:\n  name: t\n  namespace: m\n  annotations: {kafka.eventing.knative.dev/delivery.order: sorted}\nspec:\n" + subscriber,
			[]string{"graph.yaml:11", "metadata.annotations", "sorted"}},
		{"old version", "apiVersion: eventing.knative.dev/v1beta1\nkind: Broker\nmetadata: {name: b}\n", []string{"graph.yaml:1", "apiVersion", "eventing.knative.dev/v1"}},
		{"foreign kind", brokerManifest + "apiVersion: messaging.knative.dev/v1\nkind: Channel\nmetadata: {name: c}\n", []string{"graph.yaml:7", "Channel"}},
		{"twice", brokerManifest + brokerManifest, []string{"graph.yaml:9", "Broker m/default", "graph.yaml:2"}},
		{"no name", "apiVersion: eventing.knative.dev/v1\nkind: Broker\n", []string{"graph.yaml:1", "metadata.name", "missing"}},
		{"not yaml", "a: [1", []string{"graph.yaml:1"}},
		{"not a manifest", "- a\n- b\n", []string{"graph.yaml:1", "not a manifest"}},
		{"nothing", "# nothing\n", []string{"no event graph"}},
		{"source without topics", "apiVersion: sources.knative.dev/v1\nkind: KafkaSource\nmetadata: {name: s}\nspec:\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:4", "spec.topics", "missing"}},
		{"initialOffset", "apiVersion: sources.knative.dev/v1\nkind: KafkaSource\nmetadata: {name: s}\nspec:\n  topics: [a]\n  initialOffset: first\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:6", "spec.initialOffset", "first"}},
		{"contentMode", "apiVersion: eventing.knative.dev/v1alpha1\nkind: KafkaSink\nmetadata: {name: s}\nspec:\n  topic: a\n  contentMode: avro\n", []string{"graph.yaml:6", "spec.contentMode", "avro"}},
		{"schedule", "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: s}\nspec:\n  schedule: daily\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:5", "spec.schedule", "daily"}},
		{"every", "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: s}\nspec:\n  schedule: \"@every 5s\"\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:5", "@every"}},
		{"time zone", "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: s}\nspec:\n  timezone: Mars/Olympus\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:4", "Mars/Olympus"}},
		{"ping data", "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: s}\nspec:\n  contentType: application/json\n  data: \"{\"\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:6", "spec.data", "JSON"}},
		{"override of an attribute", "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: s}\nspec:\n  ceOverrides: {extensions: {type: a}}\n  sink: {uri: http://a.test}\n", []string{"graph.yaml:5", "ceOverrides", "type"}},
		{"job", "apiVersion: sinks.knative.dev/v1alpha1\nkind: JobSink\nmetadata: {name: s}\nspec: {}\n", []string{"graph.yaml:4", "spec.job", "missing"}},
		{"subject", "apiVersion: sources.knative.dev/v1\nkind: SinkBinding\nmetadata: {name: s}\nspec:\n  sink: {uri: http://a.test}\n  subject: {apiVersion: v1, kind: Pod}\n", []string{"graph.yaml:6", "spec.subject", "name or a selector"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Load(write(t, test.manifest))
			if err == nil {
				t.Fatal("it loaded")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not have %q: %v", want, err)
				}
			}
		})
	}
}

func TestLoad_reportsEverything(t *testing.T) {
	_, err := Load(write(t, brokerManifest+`
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: a, namespace: m}
spec:
  broker: default
  subscriber: {uri: x}
  delivery: {retry: -1, timeout: 5s}
`))
	if err == nil {
		t.Fatal("it loaded")
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != 3 {
		t.Errorf("got %d errors, want 3: %v", got, err)
	}
}

func TestLoad_defaultsAndReferences(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"kustomization.yaml": "namespace: m\nresources: [a.yaml]\n",
		"notes.txt":          "not a manifest",
		"a.yaml": `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
spec:
  config: {apiVersion: v1, kind: ConfigMap, name: kafka, namespace: knative-eventing}
  delivery: {retry: 5, backoffDelay: PT0.2S, backoffPolicy: linear}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kafka, namespace: knative-eventing}
data: {default.topic.partitions: "12", default.topic.replication.factor: "3"}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: inherits}
spec:
  broker: default
  subscriber:
    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: fn}
    uri: /path
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: replaces}
spec:
  broker: default
  subscriber: {uri: "http://a.test/x"}
  delivery: {timeout: PT5S}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: fn, labels: {role: writer}}
spec: {template: {}}
---
apiVersion: sources.knative.dev/v1
kind: KafkaSource
metadata: {name: src}
spec:
  bootstrapServers: [kafka:9092]
  topics: [raw]
  sink:
    ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}
---
apiVersion: sources.knative.dev/v1
kind: SinkBinding
metadata: {name: bind}
spec:
  subject:
    apiVersion: serving.knative.dev/v1
    kind: Service
    selector: {matchLabels: {role: writer}}
  sink:
    ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}
  ceOverrides: {extensions: {site: paris}}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := g.Brokers[0]
	if b.Topic != "knative-broker-m-default" || b.Partitions != 12 || b.Replication != 3 {
		t.Errorf("broker topic %s, %d partitions, replication %d", b.Topic, b.Partitions, b.Replication)
	}
	inherits, replaces := g.Triggers[0], g.Triggers[1]
	if inherits.Delivery == nil || inherits.Delivery.Retry != 5 || inherits.Delivery.Exponential {
		t.Errorf("a Trigger without delivery does not have the Broker's: %+v", inherits.Delivery)
	}
	if replaces.Delivery.Retry != 0 || replaces.Delivery.Backoff != 0 {
		t.Errorf("a Trigger's delivery is merged with the Broker's: %+v", replaces.Delivery)
	}
	if inherits.Ordered || inherits.Group() != "knative-trigger-m-inherits" {
		t.Errorf("ordered %t, group %s", inherits.Ordered, inherits.Group())
	}
	if s := g.KafkaSources[0]; !s.Ordered || s.FromEarliest || s.Group != "knative-kafka-source-m-src" {
		t.Errorf("source defaults: %+v", s)
	}
	a := Addresses{Ingress: "http://127.0.0.1:1/", Service: func(_, name string) (string, error) { return "http://" + name + ".test", nil }}
	got, err := a.URL(inherits.Subscriber)
	if err != nil || got != "http://fn.test/path" {
		t.Errorf("subscriber address %q, %v", got, err)
	}
	binding, ok, err := g.Binding("m", "fn", a)
	want := Binding{Sink: "http://127.0.0.1:1/m/default", Overrides: `{"extensions":{"site":"paris"}}`}
	if diff := cmp.Diff(want, binding); !ok || err != nil || diff != "" {
		t.Errorf("binding: %t, %v (-want +got):\n%s", ok, err, diff)
	}
	if _, ok, _ := g.Binding("m", "other", a); ok {
		t.Error("an unbound Service has a binding")
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]string{
		"PT0.2S": "200ms", "PT5M": "5m0s", "PT1M30S": "1m30s", "P1DT12H": "36h0m0s", "P1W": "168h0m0s", "PT0S": "0s", "PT0,5S": "500ms",
	} {
		if got, err := parseDuration(text); err != nil || got.String() != want {
			t.Errorf("%s: got %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "P", "PT", "5s", "PT5", "P1Y", "P1M", "PT1S2M", "-PT1S", "PT.S", "P1DT"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The repository's own manifests are clean, those of every overlay included.
func TestRepository(t *testing.T) {
	if problems := check(t, "../.."); len(problems) > 0 {
		t.Errorf("problems:\n%s", strings.Join(problems, "\n"))
	}
}

// The graph in triggers/README.md is that of the manifests.
func TestReadme(t *testing.T) {
	repo, err := Load(t.Context(), "../..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../triggers/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, got, _, err := cutGraph(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(repo.Graph().Markdown(), got); diff != "" {
		t.Errorf("triggers/README.md is not up to date, run `go run . -write` in infra/lint (-want +got):\n%s", diff)
	}
}

// The console draws the graph of the manifests.
func TestConsoleGraph(t *testing.T) {
	repo, err := Load(t.Context(), "../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../" + consoleGraph)
	if err != nil {
		t.Fatal(err)
	}
	want, err := repo.Graph().JSON()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not up to date, run `go run . -write` in infra/lint (-want +got):\n%s", consoleGraph, diff)
	}
}

// The metrics in the README are those of the code, each with a kind, a unit where there
// is one, and what it counts.
func TestMetrics(t *testing.T) {
	all, err := readInstruments("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 30 {
		t.Errorf("%d metrics were found", len(all))
	}
	for _, i := range all {
		if i.about == "" {
			t.Errorf("%s of %s says not what it is", i.name, i.folder)
		}
	}
	text, err := os.ReadFile("../../" + metricsFile)
	if err != nil {
		t.Fatal(err)
	}
	_, got, _, err := cut(string(text), metricsBegin, metricsEnd)
	if err != nil {
		t.Fatal(err)
	}
	want, err := MetricsTable("../..")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s is not up to date, run `go run . -write` in infra/lint (-want +got):\n%s", metricsFile, diff)
	}
}

func TestTestdataIsClean(t *testing.T) {
	if diff := cmp.Diff([]string(nil), check(t, "testdata/repo")); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

// Each case breaks the clean manifests in one place. What is reported is compared
// as a whole: the file, the line, the field and the reason, as a person reads it.
func TestCheck(t *testing.T) {
	const (
		broker    = "triggers/broker.yaml"
		greet     = "triggers/greet.yaml"
		greetings = "triggers/greetings.yaml"
		tick      = "triggers/tick.yaml"
		service   = "functions/greet/service.yaml"
	)
	for name, c := range map[string]struct {
		file     string
		old, new string
		want     []string
	}{
		// What a cluster's API server and webhooks would refuse.
		"unknown field": {
			greet, "    retry: 3", "    retrys: 3\n    retry: 3",
			[]string{
				`triggers/greet.yaml:25: Trigger greet: spec.delivery.retrys: unknown field`,
			},
		},
		"field given twice": {
			greet, "    retry: 3", "    retry: 3\n    retry: 4",
			[]string{
				`triggers/greet.yaml:26: Trigger greet: spec.delivery.retry: given twice`,
			},
		},
		"not YAML": {
			greet, "spec:", "spec: [",
			[]string{
				`triggers/greet.yaml: yaml: line 7: did not find expected ',' or ']'`,
			},
		},
		"wrong type": {
			greet, "retry: 3", "retry: many",
			[]string{
				`triggers/greet.yaml:25: Trigger greet: spec.delivery.retry: is a string, must be int32`,
			},
		},
		"unknown kind": {
			greet, "kind: Trigger", "kind: Triger",
			[]string{
				`triggers/greet.yaml:1: Triger greet: unknown apiVersion and kind: eventing.knative.dev/v1 Triger`,
			},
		},
		"no kind": {
			greet, "kind: Trigger\n", "",
			[]string{
				`triggers/greet.yaml:1: greet: is no Kubernetes manifest: apiVersion or kind is missing`,
			},
		},
		"unknown version": {
			greet, "eventing.knative.dev/v1\n", "eventing.knative.dev/v2\n",
			[]string{
				`triggers/greet.yaml:1: Trigger greet: unknown apiVersion and kind: eventing.knative.dev/v2 Trigger`,
			},
		},
		"bad name": {
			tick, "  name: tick\n  namespace: test\nspec:\n  schedule", "  name: Tick_10s\n  namespace: test\nspec:\n  schedule",
			[]string{
				`triggers/tick.yaml:4: PingSource Tick_10s: metadata.name: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`,
			},
		},
		"back-off delay without unit": {
			greet, "backoffDelay: PT1S", "backoffDelay: 1s",
			[]string{
				`triggers/greet.yaml:27: Trigger greet: spec.delivery.backoffDelay: invalid value: 1s`,
			},
		},
		"back-off policy misspelt": {
			greet, "backoffPolicy: linear", "backoffPolicy: exponentional",
			[]string{
				`triggers/greet.yaml:26: Trigger greet: spec.delivery.backoffPolicy: invalid value: exponentional`,
			},
		},
		"filter with two dialects": {
			greet, "        - exact:\n            type: dev.millrace.name.v1", "        - exact:\n            type: dev.millrace.name.v1\n          prefix:\n            type: dev",
			[]string{
				`triggers/greet.yaml:1: Trigger greet: multiple dialects found, filters can have only one dialect set`,
			},
		},
		"attribute that can not be": {
			greet, "source: \"#names\"", "Data_Schema: x",
			[]string{
				`triggers/greet.yaml:18: Trigger greet: spec.filters[0].any[1].all[1].suffix[Data_Schema]: invalid key name "Data_Schema" (Attribute name must start with a letter and can only contain lowercase alphanumeric)`,
			},
		},
		"schedule with @every": {
			tick, `"*/10 * * * * *"`, `"@every 10s"`,
			[]string{
				`triggers/tick.yaml:7: PingSource tick: spec.schedule: invalid value: unsupported descriptor @every`,
			},
		},
		"schedule with seven fields": {
			tick, `"*/10 * * * * *"`, `"*/10 * * * * * *"`,
			[]string{
				`triggers/tick.yaml:7: PingSource tick: spec.schedule: invalid value: expected 5 to 6 fields, found 7: [*/10 * * * * * *]`,
			},
		},
		"CESQL that does not parse": {
			tick, "type = 'dev", "type == 'dev",
			[]string{
				`triggers/tick.yaml:22: Trigger tick: spec.filters[0].cesql: invalid value: type == 'dev.knative.sources.ping' AND source LIKE '%/tick'`,
			},
		},
		"Broker without class": {
			broker, "    eventing.knative.dev/broker.class: MTChannelBasedBroker\n", "",
			[]string{
				`triggers/broker.yaml:1: Broker default: eventing.knative.dev/broker.class: missing field(s)`,
			},
		},
		"pod field that Knative refuses": {
			service, "      enableServiceLinks: false", "      enableServiceLinks: false\n      hostNetwork: true",
			[]string{
				`functions/greet/service.yaml:10: Service greet: spec.template.spec: must not share the node's network or processes`,
				`functions/greet/service.yaml:12: Service greet: spec.template.spec.hostNetwork: must not set the field(s)`,
			},
		},
		"container concurrency below zero": {
			service, "      enableServiceLinks: false", "      enableServiceLinks: false\n      containerConcurrency: -1",
			[]string{
				`functions/greet/service.yaml:12: Service greet: spec.template.spec.containerConcurrency: expected 0 <= -1 <= 1000`,
			},
		},
		"autoscaling annotation of the wrong form": {
			service, "  template:\n", "  template:\n    metadata:\n      annotations:\n        autoscaling.knative.dev/max-scale: many\n",
			[]string{
				`functions/greet/service.yaml:11: Service greet: spec.template.metadata.annotations.autoscaling.knative.dev/max-scale: invalid value: many`,
			},
		},
		"KafkaSource without topics": {
			greetings, "  topics: [names]\n", "  topics: []\n",
			[]string{
				`triggers/greetings.yaml:8: KafkaSource names: spec.topics: missing field(s)`,
			},
		},
		"KafkaSource that would skip records": {
			greetings, "  initialOffset: earliest\n", "",
			[]string{
				`triggers/greetings.yaml:6: KafkaSource names: spec.initialOffset: invalid value: latest (must be earliest: with latest, records from before the first start are lost)`,
			},
		},
		"KafkaSource without a group": {
			greetings, "  consumerGroup: names\n", "",
			[]string{
				`triggers/greetings.yaml:6: KafkaSource names: spec.consumerGroup: missing field(s)`,
			},
		},
		"KafkaSink in structured mode": {
			greetings, "  topic: greetings\n", "  topic: greetings\n  contentMode: structured\n",
			[]string{
				`triggers/greetings.yaml:61: KafkaSink greetings: spec.contentMode: invalid value: structured (must be binary: the lake and the relay read no structured events)`,
			},
		},
		"JobSink whose job is no Job": {
			tick, "      backoffLimit: 2\n", "      backoffLimits: 2\n",
			[]string{
				`triggers/tick.yaml:46: JobSink train: spec.job.spec.backoffLimit: missing: say how often a failed run is tried again`,
				`triggers/tick.yaml:48: JobSink train: spec.job.spec.backoffLimits: unknown field`,
			},
		},
		"JobSink whose jobs stay": {
			tick, "      ttlSecondsAfterFinished: 600\n", "",
			[]string{
				`triggers/tick.yaml:46: JobSink train: spec.job.spec.ttlSecondsAfterFinished: missing: one Job an event would stay for ever`,
			},
		},
		"JobSink that restarts for ever": {
			tick, "restartPolicy: Never", "restartPolicy: Always",
			[]string{
				`triggers/tick.yaml:54: JobSink train: spec.job.spec.template.spec.restartPolicy: must be Never or OnFailure, as for any Job`,
			},
		},

		// The event graph.
		"Trigger without delivery": {
			greet, delivery, "",
			[]string{
				`triggers/greet.yaml:8: Trigger greet: spec.delivery: missing: events would be discarded at the first failure`,
			},
		},
		"delivery without retries": {
			greet, "    retry: 3\n", "",
			[]string{
				`triggers/greet.yaml:24: Trigger greet: spec.delivery.retry: missing: the first failure would be the last`,
			},
		},
		"delivery without pause": {
			greet, "    backoffDelay: PT1S\n", "",
			[]string{
				`triggers/greet.yaml:24: Trigger greet: spec.delivery.backoffDelay: missing: retries would follow each other at once`,
			},
		},
		"delivery without end": {
			greet, "    timeout: PT10S\n", "",
			[]string{
				`triggers/greet.yaml:24: Trigger greet: spec.delivery.timeout: missing: a subscriber that hangs would hold its events for ever`,
			},
		},
		"KafkaSource without dead-letter sink": {
			greetings, "    timeout: PT10S\n" + deadLetterSink + "  sink:", "    timeout: PT10S\n  sink:",
			[]string{
				`triggers/greetings.yaml:11: KafkaSource names: spec.delivery.deadLetterSink: missing: what can not be delivered would be lost`,
			},
		},
		"dead-letter sink that is not there": {
			greet, "name: deadletter", "name: dead-letter",
			[]string{
				`triggers/greet.yaml:33: Trigger greet: spec.delivery.deadLetterSink.ref.name: there is no Service dead-letter of serving.knative.dev/v1`,
			},
		},
		"subscriber that is not there": {
			greet, "      name: greet\n", "      name: greeter\n",
			[]string{
				`triggers/greet.yaml:23: Trigger greet: spec.subscriber.ref.name: there is no Service greeter of serving.knative.dev/v1`,
			},
		},
		"subscriber of another API": {
			greet, "apiVersion: serving.knative.dev/v1\n      kind: Service\n      name: greet\n", "apiVersion: v1\n      kind: Service\n      name: greet\n",
			[]string{
				`triggers/greet.yaml:23: Trigger greet: spec.subscriber.ref.name: there is no Service greet of v1`,
			},
		},
		"subscriber in another namespace": {
			greet, "      name: greet\n", "      name: greet\n      namespace: other\n",
			[]string{
				`triggers/greet.yaml:24: Trigger greet: spec.subscriber.ref.namespace: must be test like the referring object's`,
			},
		},
		"Broker that is not there": {
			greet, "broker: default", "broker: main",
			[]string{
				`triggers/greet.yaml:9: Trigger greet: spec.broker: there is no Broker main`,
			},
		},
		"order misspelt": {
			greet, "order: ordered", "order: orderly",
			[]string{
				`triggers/greet.yaml:7: Trigger greet: metadata.annotations[kafka.eventing.knative.dev/delivery.order]: must be ordered or unordered, not "orderly"`,
			},
		},
		"emitted type that nobody takes": {
			service, "emits: \"dev.millrace.greeting.v1\"", "emits: \"dev.millrace.greeting.v1 dev.millrace.name.v2\"",
			[]string{
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/emits]: dev.millrace.name.v2 is no event type of shared/events/events.go`,
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/emits]: no Trigger takes dev.millrace.name.v2 from Service greet; add one, or name it in millrace.dev/terminal`,
			},
		},
		"type called terminal that is taken": {
			service, "  annotations:", "  annotations:\n    millrace.dev/terminal: dev.millrace.greeting.v1",
			[]string{
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/terminal]: dev.millrace.greeting.v1 is not terminal, Trigger greetings takes it`,
			},
		},
		"type called terminal that nobody emits": {
			service, "  annotations:", "  annotations:\n    millrace.dev/terminal: dev.millrace.name.v2",
			[]string{
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/terminal]: dev.millrace.name.v2 is no event type of shared/events/events.go`,
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/terminal]: nothing emits dev.millrace.name.v2`,
			},
		},
		"function that does not say what it emits": {
			service, "    millrace.dev/emits: \"dev.millrace.greeting.v1\"\n", "    a: b\n",
			[]string{
				`functions/greet/service.yaml:6: Service greet: metadata.annotations: millrace.dev/emits is missing: say what greet replies with, or "" if nothing`,
				`triggers/greetings.yaml:34: Trigger greetings: spec.filters: no event that anything emits passes`,
			},
		},
		"filter on a type that nobody emits": {
			greet, "type: dev.millrace.name.v1", "type: dev.millrace.nam.v1",
			[]string{
				`triggers/greet.yaml:13: Trigger greet: spec.filters[0].any[0].exact.type: nothing emits an event whose type is "dev.millrace.nam.v1"`,
			},
		},
		"filter on a topic that nobody reads": {
			greet, `"#names"`, `"#name"`,
			[]string{
				`triggers/greet.yaml:18: Trigger greet: spec.filters[0].any[1].all[1].suffix.source: nothing emits an event whose source ends with "#name"`,
				`triggers/greetings.yaml:6: KafkaSource names: spec: no Trigger takes dev.knative.kafka.event from KafkaSource names; add one, or name it in millrace.dev/terminal`,
			},
		},
		"CESQL that nothing passes": {
			tick, "'%/tick'", "'%/tock'",
			[]string{
				`triggers/tick.yaml:6: PingSource tick: spec: no Trigger takes dev.knative.sources.ping from PingSource tick; add one, or name it in millrace.dev/terminal`,
			},
		},
		"cycle through a Trigger": {
			greet, "type: dev.millrace.name.v1", "type: dev.millrace.greeting.v1",
			[]string{
				`triggers/greet.yaml:10: Trigger greet: spec.filters: closes a cycle, in which an event would go round for ever: Service greet -[dev.millrace.greeting.v1, Trigger greet]-> Service greet`,
			},
		},
		"cycle by a Trigger without filter": {
			greet, filters, "",
			[]string{
				`triggers/greet.yaml:8: Trigger greet: spec.filters: closes a cycle, in which an event would go round for ever: Service greet -[dev.millrace.greeting.v1, Trigger greet]-> Service greet`,
			},
		},
		"cycle through a topic": {
			greetings, "  topic: greetings\n", "  topic: names\n",
			[]string{
				`triggers/greet.yaml:10: Trigger greet: spec.filters: closes a cycle, in which an event would go round for ever: Service greet -[dev.millrace.greeting.v1, Trigger greetings]-> KafkaSink greetings -[topic names]-> KafkaSource names -[dev.knative.kafka.event, Trigger greet]-> Service greet`,
				`triggers/greetings.yaml:34: Trigger greetings: spec.filters: closes a cycle, in which an event would go round for ever: KafkaSink greetings -[topic names]-> KafkaSource names -[dev.millrace.greeting.v1, Trigger greetings]-> KafkaSink greetings`,
			},
		},
		"chain of steps within one function": {
			service, greets, greets + `    millrace.dev/causes: |
      dev.millrace.name.v1 -> dev.millrace.greeting.v1
      dev.knative.kafka.event ->
`,
			nil,
		},
		"cycle through the steps of a function": {
			service, greets, `    millrace.dev/emits: dev.millrace.greeting.v1 dev.millrace.name.v1
    millrace.dev/causes: |
      dev.millrace.name.v1 -> dev.millrace.greeting.v1
      dev.knative.kafka.event -> dev.millrace.name.v1
      dev.millrace.name.v1 -> dev.millrace.name.v1
`,
			[]string{
				`triggers/greet.yaml:10: Trigger greet: spec.filters: closes a cycle, in which an event would go round for ever: Service greet -[dev.millrace.name.v1, Trigger greet]-> Service greet`,
			},
		},
		"causes that leave out and say too much": {
			service, greets, greets + `    millrace.dev/causes: |
      dev.knative.kafka.event -> dev.millrace.name.v1
      dev.knative.sources.ping
      dev.millrace.greeting.v1 ->
`,
			[]string{
				`functions/greet/service.yaml:8: Service greet: metadata.annotations[millrace.dev/causes]: "dev.knative.sources.ping" must be a type, an arrow -> and types`,
				`functions/greet/service.yaml:8: Service greet: metadata.annotations[millrace.dev/causes]: dev.millrace.greeting.v1 follows nothing`,
				`functions/greet/service.yaml:8: Service greet: metadata.annotations[millrace.dev/causes]: dev.millrace.name.v1 is not among the types of millrace.dev/emits`,
				`functions/greet/service.yaml:8: Service greet: metadata.annotations[millrace.dev/causes]: has no line for dev.millrace.name.v1, which Trigger greet delivers`,
				`functions/greet/service.yaml:8: Service greet: metadata.annotations[millrace.dev/causes]: nothing delivers dev.millrace.greeting.v1`,
			},
		},
		"type that no code knows": {
			"shared/events/events.go", "greeting.v1", "greeting.v2",
			[]string{
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/emits]: dev.millrace.greeting.v1 is no event type of shared/events/events.go`,
			},
		},
		"object defined twice": {
			greetings, "  name: greetings\n  namespace: test\nspec:\n  broker", "  name: greet\n  namespace: test\nspec:\n  broker",
			[]string{
				`triggers/greetings.yaml:30: Trigger greet: metadata.name: is defined twice, also in triggers/greet.yaml`,
			},
		},

		// Containers.
		"root": {
			service, "            runAsNonRoot: true\n", "",
			[]string{
				`functions/greet/service.yaml:30: Service greet: spec.template.spec.containers[0].securityContext.runAsNonRoot: must be true`,
			},
		},
		"writable root": {
			service, "            readOnlyRootFilesystem: true\n", "",
			[]string{
				`functions/greet/service.yaml:30: Service greet: spec.template.spec.containers[0].securityContext.readOnlyRootFilesystem: must be true; mount an emptyDir where it has to write`,
			},
		},
		"privilege escalation": {
			service, "            allowPrivilegeEscalation: false\n", "",
			[]string{
				`functions/greet/service.yaml:30: Service greet: spec.template.spec.containers[0].securityContext.allowPrivilegeEscalation: must be false`,
			},
		},
		"capabilities": {
			service, "drop: [ALL]", "add: [NET_ADMIN]",
			[]string{
				`functions/greet/service.yaml:34: Service greet: spec.template.spec.containers[0].securityContext.capabilities: must drop [ALL] and add none`,
				`functions/greet/service.yaml:35: Service greet: spec.template.spec.containers[0].securityContext.capabilities.add: must not set the field(s)`,
			},
		},
		"no seccomp profile": {
			service, "              type: RuntimeDefault", "              type: Unconfined",
			[]string{
				`functions/greet/service.yaml:37: Service greet: spec.template.spec.containers[0].securityContext.seccompProfile.type: must be RuntimeDefault`,
			},
		},
		"no memory limit": {
			service, "            limits:\n              memory: 64Mi\n", "",
			[]string{
				`functions/greet/service.yaml:21: Service greet: spec.template.spec.containers[0].resources.limits.memory: missing`,
			},
		},
		"soft memory limit above the hard one": {
			service, "value: 48MiB", "value: 64MiB",
			[]string{
				`functions/greet/service.yaml:20: Service greet: spec.template.spec.containers[0].env[1].value: GOMEMLIMIT 64MiB must be below limits.memory 64Mi`,
			},
		},
		"readiness on another path": {
			service, "path: /readyz", "path: /healthz",
			[]string{
				`functions/greet/service.yaml:29: Service greet: spec.template.spec.containers[0].readinessProbe.httpGet.path: must be /readyz`,
			},
		},
		"service links": {
			service, "      enableServiceLinks: false\n", "",
			[]string{
				`functions/greet/service.yaml:10: Service greet: spec.template.spec.enableServiceLinks: must be false: else every Service of the namespace adds variables to each start`,
			},
		},
		"API token": {
			service, "      automountServiceAccountToken: false\n", "",
			[]string{
				`functions/greet/service.yaml:10: Service greet: spec.template.spec.automountServiceAccountToken: must be false: nothing here talks to the API server`,
			},
		},
		"secret in the manifest": {
			service, "            - name: GOMEMLIMIT", "            - name: S3_SECRET_KEY\n              value: hunter2\n            - name: GOMEMLIMIT",
			[]string{
				`functions/greet/service.yaml:20: Service greet: spec.template.spec.containers[0].env[1].value: S3_SECRET_KEY is a secret: take it from one with valueFrom.secretKeyRef`,
			},
		},
		"password in a URL": {
			service, "            - name: GOMEMLIMIT", "            - name: DATABASE_URL\n              value: postgres://app:hunter2@db/app\n            - name: GOMEMLIMIT",
			[]string{
				`functions/greet/service.yaml:20: Service greet: spec.template.spec.containers[0].env[1].value: DATABASE_URL holds a password in its URL: take it from a Secret`,
			},
		},
		"image that changes": {
			tick, "registry.example/train:1.2.3", "registry.example:5000/train",
			[]string{
				`triggers/tick.yaml:57: JobSink train: spec.job.spec.template.spec.containers[0].image: "registry.example:5000/train" is not pinned: name a version or a digest`,
			},
		},
		"image latest": {
			tick, "registry.example/train:1.2.3", "registry.example/train:latest",
			[]string{
				`triggers/tick.yaml:57: JobSink train: spec.job.spec.template.spec.containers[0].image: "registry.example/train:latest" is not pinned: name a version or a digest`,
			},
		},
		"exemption that is not needed": {
			service, "  annotations:", "  annotations:\n    millrace.dev/allow-root: it was needed once",
			[]string{
				`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/allow-root]: exempts from nothing: remove it`,
			},
		},

		// One name everywhere.
		"image of another function": {
			service, "functions/greet", "functions/deadletter",
			[]string{
				`functions/greet/service.yaml:15: Service greet: spec.template.spec.containers[0].image: must be ko://github.com/millrace-dev/millrace/functions/greet`,
			},
		},
		"image of no function": {
			service, "functions/greet", "functions/greeter",
			[]string{
				`functions/greet/service.yaml:15: Service greet: spec.template.spec.containers[0].image: must be ko://github.com/millrace-dev/millrace/functions/greet`,
			},
		},
		"other function name": {
			service, "value: greet", "value: hello",
			[]string{
				`functions/greet/service.yaml:16: Service greet: spec.template.spec.containers[0].env: FUNCTION_NAME must be greet: replies are named after it`,
			},
		},
		"function that ko would build elsewhere": {
			"ko.yaml", "main: ./functions/greet\n", "main: ./functions/great\n",
			[]string{
				`ko.yaml: builds has no entry for ./functions/greet`,
			},
		},
		"manifest that is not deployed": {
			"triggers/Kustomization", "  - tick.yaml\n", "",
			[]string{
				`triggers/Kustomization: tick.yaml is not among the resources`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.CopyFS(root, os.DirFS("testdata/repo")); err != nil {
				t.Fatal(err)
			}
			// Overlays would report the same once more.
			if err := os.RemoveAll(filepath.Join(root, "infra")); err != nil {
				t.Fatal(err)
			}
			edit(t, filepath.Join(root, c.file), c.old, c.new)
			if diff := cmp.Diff(c.want, check(t, root)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// A patch of an overlay is checked in what it renders to.
func TestCheck_overlays(t *testing.T) {
	for name, c := range map[string]struct {
		patch string
		want  []string
	}{
		"bad value": {
			`
patches:
  - target: {kind: Trigger, name: greet}
    patch: |
      - {op: replace, path: /spec/delivery/backoffDelay, value: soon}
`,
			[]string{
				`infra/knative/overlays/plain: Trigger greet: spec.delivery.backoffDelay: invalid value: soon`,
			},
		},
		"deleted dead-letter sink": {
			`
patches:
  - target: {group: serving.knative.dev, kind: Service, name: deadletter}
    patch: |
      $patch: delete
      apiVersion: serving.knative.dev/v1
      kind: Service
      metadata: {name: deadletter}
`,
			[]string{
				`infra/knative/overlays/plain: Broker default: spec.delivery.deadLetterSink.ref.name: there is no Service deadletter of serving.knative.dev/v1`,
				`infra/knative/overlays/plain: KafkaSource names: spec.delivery.deadLetterSink.ref.name: there is no Service deadletter of serving.knative.dev/v1`,
				`infra/knative/overlays/plain: SinkBinding deadletter: spec.subject.name: there is no Service deadletter`,
				`infra/knative/overlays/plain: Trigger greet: spec.delivery.deadLetterSink.ref.name: there is no Service deadletter of serving.knative.dev/v1`,
				`infra/knative/overlays/plain: Trigger greetings: spec.delivery.deadLetterSink.ref.name: there is no Service deadletter of serving.knative.dev/v1`,
				`infra/knative/overlays/plain: Trigger tick: spec.delivery.deadLetterSink.ref.name: there is no Service deadletter of serving.knative.dev/v1`,
			},
		},
		"does not render": {"\nresourses: []\n", []string{
			`infra/knative/overlays/plain: invalid Kustomization: json: unknown field "resourses"`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.CopyFS(root, os.DirFS("testdata/repo")); err != nil {
				t.Fatal(err)
			}
			edit(t, filepath.Join(root, "infra/knative/overlays/plain/kustomization.yaml"), "kind: Kustomization\n", "kind: Kustomization"+c.patch)
			if diff := cmp.Diff(c.want, check(t, root)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// An annotation exempts an object from one container check, if it gives a reason.
func TestCheck_exemption(t *testing.T) {
	for annotation, want := range map[string][]string{
		`millrace.dev/allow-writable-root: "the store writes beside its binaries"`: nil,
		`millrace.dev/allow-writable-root: ""`: {
			`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/allow-writable-root]: give the reason as its value`,
			`functions/greet/service.yaml:31: Service greet: spec.template.spec.containers[0].securityContext.readOnlyRootFilesystem: must be true; mount an emptyDir where it has to write`,
		},
		`millrace.dev/allow-root: "it was needed once"`: {
			`functions/greet/service.yaml:7: Service greet: metadata.annotations[millrace.dev/allow-root]: exempts from nothing: remove it`,
			`functions/greet/service.yaml:31: Service greet: spec.template.spec.containers[0].securityContext.readOnlyRootFilesystem: must be true; mount an emptyDir where it has to write`,
		},
	} {
		t.Run(annotation, func(t *testing.T) {
			root := t.TempDir()
			if err := os.CopyFS(root, os.DirFS("testdata/repo")); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(root, "infra")); err != nil {
				t.Fatal(err)
			}
			service := filepath.Join(root, "functions/greet/service.yaml")
			edit(t, service, "            readOnlyRootFilesystem: true\n", "")
			edit(t, service, "  annotations:\n", "  annotations:\n    "+annotation+"\n")
			if diff := cmp.Diff(want, check(t, root)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"-root", "testdata/repo"}, &out); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff("11 manifests, 11 rendered by 1 overlays, 0 problems\n", out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	err := run(t.Context(), []string{"-root", t.TempDir()}, &out)
	if err == nil || !strings.Contains(err.Error(), "is it the repository?") {
		t.Errorf("in an empty folder: %v", err)
	}
}

const (
	greets  = "    millrace.dev/emits: \"dev.millrace.greeting.v1\"\n"
	filters = `  filters:
    - any:
        - exact:
            type: dev.millrace.name.v1
        - all:
            - exact:
                type: dev.knative.kafka.event
            - suffix:
                source: "#names"
`
	deadLetterSink = `    deadLetterSink:
      ref:
        apiVersion: serving.knative.dev/v1
        kind: Service
        name: deadletter
`
	delivery = `  delivery:
    retry: 3
    backoffPolicy: linear
    backoffDelay: PT1S
    timeout: PT10S
` + deadLetterSink
)

func check(t *testing.T, root string) []string {
	t.Helper()
	repo, err := Load(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, p := range repo.Check(t.Context()) {
		lines = append(lines, p.String())
	}
	return lines
}

// edit replaces the first occurrence of from, which has to be there.
func edit(t *testing.T, file, from, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), from) {
		t.Fatalf("%s does not contain %q", file, from)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

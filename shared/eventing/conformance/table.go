package conformance

// Feature is something that not every Knative has.
type Feature string

const (
	// KafkaSource is that of Knative's Kafka extension.
	KafkaSource Feature = "KafkaSource"
	// KafkaSink is that of Knative's Kafka extension.
	KafkaSink Feature = "KafkaSink"
	// Ordering is that of a Kafka-class Broker.
	Ordering Feature = "Ordering"
	// Discarding is that an event without retries and dead-letter sink is gone when its
	// first delivery fails. The plain Broker answers its sender after the deliveries,
	// and its ingress tries again whatever the Trigger says.
	Discarding Feature = "Discarding"
	// DeadLetterReplies are replies with an error code, which this project's engine
	// brings to the dead-letter sink.
	DeadLetterReplies Feature = "DeadLetterReplies"
)

// Event is an event to be sent. Source and type default to "/conformance" and
// "test", data to {} of type application/json.
type Event struct {
	ID, Type, Source, Subject string
	Extensions                map[string]string
	Data                      string
}

// Record is a Kafka record to be produced.
type Record struct {
	Topic, Key, Value string
}

// Got is an event that a subscriber is expected to get: the attributes that are
// named have to be as given. The value "*" is any value that is not empty.
type Got map[string]string

// Case is one row of the table.
type Case struct {
	Name  string
	Needs []Feature
	// Manifests use ${namespace}, ${topic} (a topic of the case's own) and
	// ${<subscriber>}, its URI. A Broker named default is there already.
	Manifests   string
	Subscribers map[string]Script
	// Send are sent to the Broker one after the other, Produce to Kafka.
	Send    []Event
	Produce []Record
	// Accepted is what each subscriber has accepted in the end: exactly these events,
	// apart from repetitions, in any order unless InOrder is set.
	Accepted map[string][]Got
	InOrder  bool
	// Attempts is how often events were delivered to each subscriber, refused
	// deliveries included, by event id. Events that are not named are not checked.
	Attempts map[string]map[string]int
}

// trigger is a Trigger on the Broker; the rest of its spec follows.
func trigger(name, spec string) string {
	return "---\napiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: " + name + ", namespace: \"${namespace}\"}\nspec:\n  broker: default\n" + spec
}

func orderedTrigger(name, spec string) string {
	return "---\napiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata:\n  name: " + name + "\n  namespace: \"${namespace}\"\n" +
		"  annotations: {kafka.eventing.knative.dev/delivery.order: ordered}\nspec:\n  broker: default\n" + spec
}

const (
	toA = "  subscriber: {uri: \"${a}\"}\n"
	// quick is a delivery that fails fast, to the dead-letter subscriber.
	quick = "  delivery: {retry: 2, backoffPolicy: linear, backoffDelay: PT0.01S, timeout: PT5S, deadLetterSink: {uri: \"${dead}\"}}\n"
)

func filtered(filters string) string { return trigger("filtered", filters+toA) }

// sample are the events that the filter cases are tried on.
var sample = []Event{
	{ID: "1", Type: "com.example.created", Source: "/shop/a", Subject: "x"},
	{ID: "2", Type: "com.example.deleted", Source: "/shop/b", Extensions: map[string]string{"contract": "metrics", "op": "u", "count": "5"}},
	{ID: "3", Type: "org.other", Source: "/store/a", Extensions: map[string]string{"contract": "clicks"}},
}

func filterCase(name, filters string, ids ...string) Case {
	c := Case{
		Name: "filter/" + name, Manifests: filtered(filters), Subscribers: map[string]Script{"a": {}}, Send: sample,
		Accepted: map[string][]Got{"a": {}},
	}
	for _, id := range ids {
		c.Accepted["a"] = append(c.Accepted["a"], Got{"id": id})
	}
	return c
}

// Table is all cases.
func Table() []Case {
	cases := []Case{
		filterCase("none", "", "1", "2", "3"),
		filterCase("empty", "  filters: []\n", "1", "2", "3"),
		filterCase("attributes", "  filter: {attributes: {type: org.other}}\n", "3"),
		filterCase("attributes, all of them", "  filter: {attributes: {type: org.other, source: /shop/a}}\n"),
		filterCase("attributes, any value", "  filter: {attributes: {contract: \"\"}}\n", "2", "3"),
		filterCase("exact", "  filters: [{exact: {type: com.example.created}}]\n", "1"),
		filterCase("exact, several", "  filters: [{exact: {type: com.example.deleted, op: u}}]\n", "2"),
		filterCase("exact, extension missing", "  filters: [{exact: {region: eu}}]\n"),
		filterCase("exact is case-sensitive", "  filters: [{exact: {type: Org.Other}}]\n"),
		filterCase("prefix", "  filters: [{prefix: {type: com.example.}}]\n", "1", "2"),
		filterCase("prefix, extension missing", "  filters: [{prefix: {op: u}}]\n", "2"),
		filterCase("suffix", "  filters: [{suffix: {source: /a}}]\n", "1", "3"),
		filterCase("all", "  filters: [{all: [{prefix: {type: com.}}, {suffix: {source: /b}}]}]\n", "2"),
		filterCase("any", "  filters: [{any: [{exact: {subject: x}}, {exact: {contract: clicks}}]}]\n", "1", "3"),
		filterCase("not", "  filters: [{not: {exact: {type: org.other}}}]\n", "1", "2"),
		filterCase("not, extension missing", "  filters: [{not: {exact: {contract: metrics}}}]\n", "1", "3"),
		filterCase("list is a conjunction", "  filters: [{prefix: {source: /shop/}}, {not: {exact: {op: u}}}]\n", "1"),
		filterCase("nested", "  filters: [{any: [{all: [{exact: {contract: metrics}}, {not: {prefix: {type: org}}}]}, {not: {any: [{prefix: {type: com}}, {exact: {contract: none}}]}}]}]\n", "2", "3"),
		filterCase("filters replace filter", "  filter: {attributes: {type: com.example.created}}\n  filters: [{exact: {type: org.other}}]\n", "3"),
		filterCase("cesql", "  filters: [{cesql: \"type LIKE 'com.example.%' AND NOT EXISTS op\"}]\n", "1"),
		filterCase("cesql, numbers", "  filters: [{cesql: \"EXISTS count AND INT(count) > 4\"}]\n", "2"),
		filterCase("cesql, evaluation fails", "  filters: [{cesql: \"INT(contract) = 1\"}]\n"),
		filterCase("cesql, missing attribute", "  filters: [{cesql: \"contract = 'clicks'\"}]\n", "3"),
		filterCase("cesql in any", "  filters: [{any: [{cesql: \"contract = 'clicks'\"}, {exact: {op: u}}]}]\n", "2", "3"),
	}
	return append(cases, deliveryCases()...)
}

func deliveryCases() []Case {
	failing := func(name string, rule Rule, attempts int, dead Got) Case {
		c := Case{
			Name: "delivery/" + name, Manifests: trigger("failing", toA+quick),
			Subscribers: map[string]Script{"a": {Rules: []Rule{rule}}, "dead": {}},
			Send:        []Event{{ID: "bad"}, {ID: "good"}},
			Accepted:    map[string][]Got{"a": {{"id": "good"}}, "dead": {}},
			Attempts:    map[string]map[string]int{"a": {"bad": attempts}},
		}
		if dead == nil {
			c.Accepted["a"] = append(c.Accepted["a"], Got{"id": "bad"})
		} else {
			c.Accepted["dead"] = []Got{dead}
		}
		return c
	}
	dead := func(code string) Got { return Got{"id": "bad", "knativeerrorcode": code, "knativeerrordest": "*"} }
	return []Case{
		failing("400 is not retried", Rule{ID: "bad", Status: 400, Body: "no such thing"}, 1, dead("400")),
		failing("401 is not retried", Rule{ID: "bad", Status: 401}, 1, dead("401")),
		failing("403 is not retried", Rule{ID: "bad", Status: 403}, 1, dead("403")),
		failing("413 is not retried", Rule{ID: "bad", Status: 413}, 1, dead("413")),
		failing("422 is not retried", Rule{ID: "bad", Status: 422}, 1, dead("422")),
		failing("404 is retried", Rule{ID: "bad", Status: 404}, 3, dead("404")),
		failing("408 is retried", Rule{ID: "bad", Status: 408}, 3, dead("408")),
		failing("409 is retried", Rule{ID: "bad", Status: 409}, 3, dead("409")),
		failing("429 is retried", Rule{ID: "bad", Status: 429}, 3, dead("429")),
		failing("500 is retried", Rule{ID: "bad", Status: 500}, 3, dead("500")),
		failing("502 is retried", Rule{ID: "bad", Status: 502}, 3, dead("502")),
		failing("503 is retried", Rule{ID: "bad", Status: 503}, 3, dead("503")),
		failing("a retry succeeds", Rule{ID: "bad", Status: 503, Attempts: 2}, 3, nil),
		{
			Name: "delivery/none at all", Needs: []Feature{Discarding},
			Manifests:   trigger("plain", toA),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{ID: "bad", Status: 500}}}},
			Send:        []Event{{ID: "bad"}, {ID: "good"}},
			Accepted:    map[string][]Got{"a": {{"id": "good"}}},
			Attempts:    map[string]map[string]int{"a": {"bad": 1}},
		},
		{
			Name:        "delivery/every Trigger for itself",
			Manifests:   trigger("failing", toA+quick) + trigger("other", "  subscriber: {uri: \"${b}\"}\n"),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{Status: 500}}}, "b": {}, "dead": {}},
			Send:        []Event{{ID: "1"}},
			Accepted:    map[string][]Got{"a": {}, "b": {{"id": "1"}}, "dead": {{"id": "1"}}},
		},
		{
			Name:        "reply/goes to the Broker",
			Manifests:   trigger("asks", "  filters: [{exact: {type: question}}]\n"+toA) + trigger("hears", "  filters: [{exact: {type: answer}}]\n  subscriber: {uri: \"${b}\"}\n"),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{Reply: "answer", ReplyExtensions: map[string]string{"op": "r"}}}}, "b": {}},
			Send:        []Event{{ID: "1", Type: "question", Data: `{"n":1}`}, {ID: "2", Type: "other"}},
			Accepted: map[string][]Got{
				"a": {{"id": "1"}},
				"b": {{"id": "1-reply", "type": "answer", "source": "/conformance", "op": "r", "data": `{"n":1}`}},
			},
		},
		{
			Name:        "reply/none is sent for a refused event",
			Manifests:   trigger("asks", "  filters: [{exact: {type: question}}]\n"+toA+quick) + trigger("hears", "  filters: [{exact: {type: answer}}]\n  subscriber: {uri: \"${b}\"}\n"),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{Status: 400, Reply: "answer"}}}, "b": {}, "dead": {}},
			Send:        []Event{{ID: "1", Type: "question"}},
			Accepted:    map[string][]Got{"a": {}, "b": {}, "dead": {{"id": "1", "type": "question"}}},
		},
		{
			Name: "reply/with an error code is a dead letter", Needs: []Feature{DeadLetterReplies},
			Manifests: trigger("asks", "  filters: [{exact: {type: question}}]\n"+toA+quick) + trigger("hears", "  filters: [{exact: {type: answer}}]\n  subscriber: {uri: \"${b}\"}\n"),
			Subscribers: map[string]Script{
				"a": {Rules: []Rule{{Reply: "answer", ReplyExtensions: map[string]string{"knativeerrorcode": "400", "knativeerrordata": "no price"}}}},
				"b": {}, "dead": {},
			},
			Send:     []Event{{ID: "1", Type: "question"}},
			Accepted: map[string][]Got{"a": {{"id": "1"}}, "b": {}, "dead": {{"id": "1-reply", "knativeerrorcode": "400", "knativeerrordata": "no price"}}},
		},
		{
			Name: "reply/what is no event is a failed delivery", Needs: []Feature{Ordering},
			Manifests:   trigger("asks", toA+quick),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{ID: "bad", Body: "thank you"}}}, "dead": {}},
			Send:        []Event{{ID: "bad"}, {ID: "good"}},
			Accepted:    map[string][]Got{"a": {{"id": "good"}, {"id": "bad"}}, "dead": {{"id": "bad", "knativeerrorcode": "200"}}},
		},
		{
			Name: "order/of a key is kept, also over retries", Needs: []Feature{Ordering},
			Manifests:   orderedTrigger("ordered", toA+quick),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{ID: "2", Status: 503, Attempts: 2}}}, "dead": {}},
			Send:        keyed("s", "1", "2", "3", "4"),
			Accepted:    map[string][]Got{"a": {{"id": "1"}, {"id": "2"}, {"id": "3"}, {"id": "4"}}, "dead": {}},
			InOrder:     true,
		},
		{
			Name: "source/records become events", Needs: []Feature{KafkaSource},
			Manifests: "---\napiVersion: sources.knative.dev/v1\nkind: KafkaSource\nmetadata: {name: records, namespace: \"${namespace}\"}\nspec:\n" +
				"  bootstrapServers: [\"${kafka}\"]\n  topics: [\"${topic}\"]\n  consumerGroup: \"${topic}-group\"\n  initialOffset: earliest\n" +
				"  sink:\n    ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}\n" +
				trigger("records", "  filters: [{exact: {type: dev.knative.kafka.event}}, {suffix: {source: \"#${topic}\"}}]\n"+toA),
			Subscribers: map[string]Script{"a": {}},
			Produce:     []Record{{Topic: "${topic}", Key: "k", Value: `{"n":1}`}, {Topic: "${topic}", Value: "no JSON"}},
			Accepted: map[string][]Got{"a": {
				{"type": "dev.knative.kafka.event", "partitionkey": "k", "key": "k", "time": "*", "id": "*", "subject": "*", "data": `{"n":1}`},
				{"type": "dev.knative.kafka.event", "partitionkey": "", "key": "", "data": "no JSON"},
			}},
		},
		{
			Name: "sink/events go through a topic", Needs: []Feature{KafkaSource, KafkaSink},
			Manifests: "---\napiVersion: eventing.knative.dev/v1alpha1\nkind: KafkaSink\nmetadata: {name: out, namespace: \"${namespace}\"}\nspec:\n" +
				"  bootstrapServers: [\"${kafka}\"]\n  topic: \"${topic}\"\n  numPartitions: 3\n  replicationFactor: 1\n  contentMode: binary\n" +
				trigger("out", "  filters: [{exact: {type: stored}}]\n  subscriber:\n    ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: out}\n") +
				"---\napiVersion: sources.knative.dev/v1\nkind: KafkaSource\nmetadata: {name: back, namespace: \"${namespace}\"}\nspec:\n" +
				"  bootstrapServers: [\"${kafka}\"]\n  topics: [\"${topic}\"]\n  initialOffset: earliest\n  sink: {uri: \"${a}\"}\n",
			Subscribers: map[string]Script{"a": {}},
			Send:        []Event{{ID: "1", Type: "stored", Extensions: map[string]string{"partitionkey": "k"}, Data: `{"n":1}`}, {ID: "2", Type: "other"}},
			Accepted:    map[string][]Got{"a": {{"id": "1", "type": "stored", "source": "/conformance", "partitionkey": "k", "data": `{"n":1}`}}},
		},
		{
			Name:        "batch/a subscriber that takes single events only gets all of them",
			Manifests:   trigger("single", toA+quick),
			Subscribers: map[string]Script{"a": {NoBatches: true}, "dead": {}},
			Send:        keyed("s", "1", "2", "3", "4", "5"),
			Accepted:    map[string][]Got{"a": {{"id": "1"}, {"id": "2"}, {"id": "3"}, {"id": "4"}, {"id": "5"}}, "dead": {}},
		},
		{
			Name:        "batch/one bad event spoils no other",
			Manifests:   trigger("poison", toA+quick),
			Subscribers: map[string]Script{"a": {Rules: []Rule{{ID: "3", Status: 500}}}, "dead": {}},
			Send:        keyed("s", "1", "2", "3", "4", "5"),
			Accepted:    map[string][]Got{"a": {{"id": "1"}, {"id": "2"}, {"id": "4"}, {"id": "5"}}, "dead": {{"id": "3", "knativeerrorcode": "500"}}},
		},
	}
}

func keyed(key string, ids ...string) []Event {
	var es []Event
	for _, id := range ids {
		es = append(es, Event{ID: id, Extensions: map[string]string{"partitionkey": key}})
	}
	return es
}

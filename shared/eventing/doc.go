// Package eventing executes Knative eventing manifests against Kafka and HTTP,
// without Knative.
//
// Load reads Brokers, Triggers, KafkaSources, KafkaSinks, PingSources, JobSinks
// and SinkBindings into a Graph; New and Engine.Run do what Knative's data plane
// would do with them. A Broker is a Kafka topic in the CloudEvents Kafka binding,
// which is read once for all of its Triggers; every Trigger has its offsets in a
// group of its own name, every KafkaSource is a consumer group, and a subscriber gets
// its events over HTTP, in batches when it takes them.
//
// What is promised: every event is delivered at least once to every Trigger whose
// filter it passes, or to that Trigger's dead-letter sink. An offset is committed
// only after everything before it has had its effects: the subscriber answered,
// its replies are in the Broker's topic, its dead letters were accepted. Whatever
// is killed, at any moment, loses nothing and may repeat something.
//
// It is not a Kubernetes client and creates no resources besides Kafka topics: the
// addresses of Services and the way to start a Job come from the Config. It does
// not retry into the past: a new Trigger sees the events that come after it, as in
// Knative.
package eventing

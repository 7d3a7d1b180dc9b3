// Package kafka is how the project reaches Kafka: the client's settings from the
// environment, the CloudEvents Kafka protocol binding of an events.Message, the
// creation of topics and the lag of groups.
//
// It is not a wrapper of the client: who reads or writes topics uses kgo itself,
// with the options of Config.Options.
package kafka

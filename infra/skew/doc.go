// Package skew holds one test: a shop's stream goes through both paths to features,
// and every value is compared. One path is the live one (validate, featurize,
// store), the other the warehouse's (lake, etl-step, the SQL over gold). The
// functions are the real programs, each a process, behind the event graph of the
// real manifests; PostgreSQL, Redis and the S3 server are real ones, Kafka is kfake.
//
// What makes it hard is on purpose: times that say nothing of the order of arrival,
// events that producers send twice, corrections and deletes of rows, answers that
// get lost, functions that are killed, lake objects that come in any order.
package skew

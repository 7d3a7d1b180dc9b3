// Package lake is the object store side of Millrace: where objects are kept, how
// they are named, what a line in them says, and how they are read again.
//
// A lake object holds records of one Kafka partition and one hour, one JSON object
// a line (AppendLine), under a key that names topic, hour, partition and first
// offset (Key). Objects of other origin, with one record or with a JSON array, are
// read by the same reader (Lines).
//
// The package speaks plain S3: Amazon's, MinIO's, versitygw's. It does not decide
// which records share an object nor when they are written; that is functions/lake.
package lake

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/events"
)

// Extension attributes, for Triggers, which cannot look into the data.
const (
	// bucketAttr names the bucket.
	bucketAttr = "bucket"
	// prefixAttr is the beginning of the key: its first two folders with the slash
	// behind them, which for a lake object names the topic. A key in fewer folders
	// gives what it has, or none.
	prefixAttr = "keyprefix"
)

// notification is the body of a webhook request. Amazon's, by way of others, has
// the records only.
type notification struct {
	Records []json.RawMessage `json:"Records"`
}

// record is what is read of a record; the event's data is the whole of it.
type record struct {
	EventSource      string            `json:"eventSource"`
	AWSRegion        string            `json:"awsRegion"`
	EventTime        string            `json:"eventTime"`
	EventName        string            `json:"eventName"`
	ResponseElements map[string]string `json:"responseElements"`
	S3               struct {
		Bucket struct {
			Name string `json:"name"`
		} `json:"bucket"`
		Object struct {
			Key       string `json:"key"`
			Sequencer string `json:"sequencer"`
		} `json:"object"`
	} `json:"s3"`
}

// eventOf makes the event of a record.
//
// Where it adds to the CloudEvents adapter: the id ends with the sequencer, since
// one request may cause several records with one request id; a record without a
// request id is named by its hash; subject is the key as it is in the store, not
// URL-encoded. The partition key is bucket and key, so that a Kafka Broker keeps
// the events of an object in order.
func eventOf(raw []byte) (events.Message, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return events.Message{}, fmt.Errorf("reading the record: %w", err)
	}
	if r.S3.Bucket.Name == "" || r.S3.Object.Key == "" || r.EventName == "" || r.EventSource == "" {
		return events.Message{}, errors.New("the record lacks eventName, eventSource, s3.bucket.name or s3.object.key")
	}
	key, err := url.QueryUnescape(r.S3.Object.Key)
	if err != nil {
		return events.Message{}, fmt.Errorf("decoding s3.object.key: %w", err)
	}
	if !utf8.ValidString(key) {
		return events.Message{}, fmt.Errorf("s3.object.key %q is not UTF-8", key)
	}
	var parts []string
	for _, part := range []string{r.ResponseElements["x-amz-request-id"], r.ResponseElements["x-amz-id-2"], r.S3.Object.Sequencer} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	id := strings.Join(parts, ".")
	if r.ResponseElements["x-amz-request-id"] == "" {
		sum := sha256.Sum256(raw)
		id = hex.EncodeToString(sum[:16])
	}
	m := events.Message{Data: raw}
	m.Set("specversion", "1.0")
	m.Set("id", id)
	m.Set("source", strings.Join([]string{r.EventSource, r.AWSRegion, r.S3.Bucket.Name}, "."))
	m.Set("type", "com.amazonaws.s3."+strings.TrimPrefix(r.EventName, "s3:"))
	m.Set("datacontenttype", "application/json")
	m.Set("subject", key)
	if t, err := time.Parse(time.RFC3339, r.EventTime); err == nil {
		m.Set("time", t.UTC().Format(time.RFC3339Nano))
	}
	m.Set(bucketAttr, r.S3.Bucket.Name)
	m.Set(prefixAttr, keyPrefix(key))
	m.Set(events.PartitionKey, r.S3.Bucket.Name+"/"+key)
	if err := m.Validate(); err != nil {
		return events.Message{}, fmt.Errorf("making the event: %w", err)
	}
	return m, nil
}

func keyPrefix(key string) string {
	end := 0
	for range 2 {
		i := strings.IndexByte(key[end:], '/')
		if i < 0 {
			break
		}
		end += i + 1
	}
	return key[:end]
}

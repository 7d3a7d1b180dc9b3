package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/lake"
)

// Config is what lake reads from the environment.
type Config struct {
	Function function.Config
	Kafka    kafka.Config
	S3       lake.Config

	// Routes are the topics to drain, each with its bucket, as topic=bucket pairs
	// separated by commas. The default buckets' names are those that readers of
	// the reference system's lake know.
	Routes Routes `envconfig:"LAKE_ROUTES" default:"tracking.user_behavior.validated=validated-events-bucket,tracking.user_behavior.invalid=invalidated-events-bucket"`
	// Group is the consumer group whose committed offsets say how far the lake is.
	// Nothing may ever join it.
	Group string `envconfig:"LAKE_GROUP" default:"millrace-lake"`

	// Chunk is how many offsets of a partition share an object at most. More makes
	// fewer, larger objects, and more to read again at each tick while a chunk
	// fills. A change of Chunk, ChunkBytes or DedupWindow holds from the committed
	// offset on; let one process finish before another starts with other values.
	Chunk int64 `envconfig:"LAKE_CHUNK" default:"10000"`
	// ChunkBytes closes objects before the chunk's end. It bounds the memory: about
	// ChunkBytes times Parallel. Twice a usual chunk, so that it seldom matters.
	ChunkBytes int `envconfig:"LAKE_CHUNK_BYTES" default:"33554432"`
	// DedupWindow is how many offsets before a chunk are searched for the same
	// event. Redelivery after a failure comes within what was in flight, which is
	// far less.
	DedupWindow int64 `envconfig:"LAKE_DEDUP_WINDOW" default:"50000"`
	// Parallel is how many partitions are drained at a time. Two a CPU, since they
	// wait for the store half of the time.
	Parallel int `envconfig:"LAKE_PARALLEL" default:"4"`
	// MaxDrain ends a drain at the next chunk boundary; the next tick goes on. It
	// has to be shorter than the timeouts of the Service and of the Trigger.
	MaxDrain time.Duration `envconfig:"LAKE_MAX_DRAIN" default:"4m"`
}

func (c *Config) check() error {
	for _, v := range []struct {
		name    string
		value   int64
		min     int64
		max     int64
		because string
	}{
		{"LAKE_CHUNK", c.Chunk, 1, 10_000_000, "offsets"},
		{"LAKE_CHUNK_BYTES", int64(c.ChunkBytes), 1, 1 << 30, "bytes"},
		{"LAKE_DEDUP_WINDOW", c.DedupWindow, 0, 10_000_000, "offsets"},
		{"LAKE_PARALLEL", int64(c.Parallel), 1, 256, "partitions"},
	} {
		if v.value < v.min || v.value > v.max {
			return fmt.Errorf("%s=%d: must be between %d and %d %s", v.name, v.value, v.min, v.max, v.because)
		}
	}
	if c.Group == "" {
		return fmt.Errorf("LAKE_GROUP: must not be empty")
	}
	if c.MaxDrain <= 0 {
		return fmt.Errorf("LAKE_MAX_DRAIN=%v: must be positive", c.MaxDrain)
	}
	if c.Function.HandlerTimeout > 0 && c.Function.HandlerTimeout <= c.MaxDrain {
		return fmt.Errorf("HANDLER_TIMEOUT=%v: must be longer than LAKE_MAX_DRAIN=%v", c.Function.HandlerTimeout, c.MaxDrain)
	}
	return nil
}

// Route says into which bucket a topic goes.
type Route struct{ Topic, Bucket string }

// Routes are the topics to drain, each once.
type Routes []Route

var (
	topicName  = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
)

// Decode reads topic=bucket pairs; it is called by envconfig.
func (r *Routes) Decode(text string) error {
	*r = nil
	for pair := range strings.SplitSeq(text, ",") {
		pair = strings.TrimSpace(pair)
		if pair == "" {
			continue
		}
		topic, bucket, ok := strings.Cut(pair, "=")
		topic, bucket = strings.TrimSpace(topic), strings.TrimSpace(bucket)
		switch {
		case !ok:
			return fmt.Errorf("%q is not topic=bucket", pair)
		case !topicName.MatchString(topic):
			return fmt.Errorf("%q: %q is no name of a Kafka topic", pair, topic)
		case !bucketName.MatchString(bucket):
			return fmt.Errorf("%q: %q is no name of a bucket (3 to 63 lower-case letters, digits, dots and hyphens)", pair, bucket)
		case slices.Contains(r.topics(), topic):
			return fmt.Errorf("topic %s is routed twice", topic)
		}
		*r = append(*r, Route{topic, bucket})
	}
	if len(*r) == 0 {
		return fmt.Errorf("no topic=bucket pair in %q", text)
	}
	return nil
}

func (r Routes) topics() []string {
	topics := make([]string, len(r))
	for i := range r {
		topics[i] = r[i].Topic
	}
	return topics
}

func (r Routes) bucket(topic string) string {
	for i := range r {
		if r[i].Topic == topic {
			return r[i].Bucket
		}
	}
	return ""
}

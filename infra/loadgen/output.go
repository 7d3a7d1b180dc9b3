package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shape"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/target"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// output holds the flags that say what messages look like and where they go.
type output struct {
	format, timeText, key string
	noKey                 bool
	updates, deletes      float64
	bad                   float64
	badKinds              string

	brokers, topic, compression string
	partitions, replication     int
	numbered                    bool
	wait                        time.Duration

	url                string
	batch, connections int
	stdout             bool
	to                 string
}

// partitions of the topics that are made when they are missing.
var partitions = map[string]int{
	shape.Connect.Topic(): 12,
	shape.CDCFlat.Topic(): 1,
}

func (o *output) flags(fs *flag.FlagSet, bad float64) {
	fs.StringVar(&o.format, "format", "connect", "shape of the messages: connect (the tracking producer's envelope), cdc-flat or cdc-full (Debezium's, unwrapped or whole), row (a change of a table, for -to postgres)")
	fs.StringVar(&o.timeText, "cdc-time", "zoned", "how CDC formats write event_time: zoned, zoned-fraction, space, space-fraction, micros, millis")
	fs.Float64Var(&o.updates, "cdc-updates", 0.02, "updates of recent rows, as a share of the inserts, in CDC formats and row")
	fs.Float64Var(&o.deletes, "cdc-deletes", 0.01, "deletes of recent rows, as a share of the inserts, in cdc-full and row")
	fs.StringVar(&o.key, "key", "", "record key: session, pk (the row's primary key as Debezium writes it), none; by default session for connect and none for CDC formats")
	fs.BoolVar(&o.noKey, "no-key", false, "the same as -key none, which is what the reference's producer does")
	fs.Float64Var(&o.bad, "bad", bad, "share of bad messages, 0 to 1")
	var kinds strings.Builder
	for k := shape.Kind(1); int(k) <= shape.Kinds; k++ {
		fmt.Fprintf(&kinds, "\n  %-21s %s", k, k.About())
	}
	fs.StringVar(&o.badKinds, "bad-kinds", "all", "kinds of bad messages, comma separated; all, or of:"+kinds.String())

	fs.StringVar(&o.brokers, "brokers", "", "Kafka brokers as host:port, comma separated (default KAFKA_BROKERS, or localhost:9092)")
	fs.StringVar(&o.topic, "topic", "", "Kafka topic (default that of the format: "+shape.Connect.Topic()+" or "+shape.CDCFlat.Topic()+")")
	fs.IntVar(&o.partitions, "partitions", 0, "partitions of the topic if it has to be made (default 12; 1 for the CDC topic)")
	fs.IntVar(&o.replication, "replication", -1, "replicas of the topic if it has to be made; -1 is the cluster's default")
	fs.StringVar(&o.compression, "compression", "snappy", "record compression: none, gzip, snappy, lz4, zstd")
	fs.BoolVar(&o.numbered, "seq-header", false, "number the messages in the record header "+target.SeqHeader)
	fs.DurationVar(&o.wait, "wait", time.Minute, "how long to wait for Kafka at the start")

	fs.StringVar(&o.url, "url", "", "post CloudEvents of type "+events.BehaviorRaw+" to this address instead of writing to Kafka")
	fs.IntVar(&o.batch, "http-batch", 1, "events a request at most; with 1 each is sent in the binary mode, else in the batch mode")
	fs.IntVar(&o.connections, "http-connections", 8, "requests under way at most")
	fs.StringVar(&o.to, "to", "kafka", "kafka, or postgres: insert the events into "+target.Table+" of the database DATABASE_URL, with updates and deletes; a missing table is made")
	fs.BoolVar(&o.stdout, "stdout", false, "print the messages, one a line, instead of writing to Kafka")
}

// keyMode says what becomes the key of a record.
type keyMode uint8

const (
	noKey keyMode = iota
	sessionKey
	rowKey
)

func (o *output) keyMode(format shape.Format) (keyMode, error) {
	key := o.key
	switch {
	case o.noKey && key != "" && key != "none":
		return 0, fmt.Errorf("-no-key and -key %s contradict each other", key)
	case o.noKey:
		key = "none"
	case key == "" && format == shape.Connect:
		key = "session"
	case key == "":
		key = "none"
	}
	switch key {
	case "none":
		return noKey, nil
	case "session":
		return sessionKey, nil
	case "pk":
		if format == shape.Connect {
			return 0, errors.New("-key pk is for CDC formats")
		}
		return rowKey, nil
	}
	return 0, fmt.Errorf("-key %q is none of session, pk, none", key)
}

// complete checks the flags that say where messages go, and derives the format from
// them.
func (o *output) complete() error {
	switch {
	case o.to != "kafka" && o.to != "postgres":
		return fmt.Errorf("-to %q is none of kafka, postgres", o.to)
	case o.to == "postgres" && (o.stdout || o.url != ""):
		return errors.New("-to postgres excludes -stdout and -url")
	case o.to == "postgres" && o.format != "connect" && o.format != "row":
		return fmt.Errorf("-to postgres writes rows, not messages: -format %s is for others", o.format)
	case o.to == "postgres":
		o.format = "row"
	case o.format == "row" && !o.stdout:
		return errors.New("-format row is for -to postgres and -stdout")
	}
	return nil
}

// maker turns events into messages as the flags say.
func (o *output) maker(seed uint64) (*maker, error) {
	format, err := shape.ParseFormat(o.format)
	if err != nil {
		return nil, fmt.Errorf("-format: %w", err)
	}
	text, err := shape.ParseTimeText(o.timeText)
	if err != nil {
		return nil, fmt.Errorf("-cdc-time: %w", err)
	}
	kinds, err := shape.ParseKinds(o.badKinds, format)
	if err != nil {
		return nil, fmt.Errorf("-bad-kinds: %w", err)
	}
	if !(o.bad >= 0 && o.bad <= 1) {
		return nil, fmt.Errorf("-bad must be between 0 and 1, got %v", o.bad)
	}
	key, err := o.keyMode(format)
	if err != nil {
		return nil, err
	}
	updates, deletes := o.updates, o.deletes
	if format == shape.Connect {
		updates, deletes = 0, 0
	}
	if format == shape.CDCFlat {
		deletes = 0 // the unwrap transform drops them
	}
	changes, err := shape.NewChanges(seed, updates, deletes)
	if err != nil {
		return nil, fmt.Errorf("-cdc-updates, -cdc-deletes: %w", err)
	}
	return &maker{
		encoder: shape.NewEncoder(format, text), changes: changes, key: key,
		seed: seed, bad: o.bad, kinds: kinds,
	}, nil
}

// target opens where messages go, the first of them numbered first.
func (o *output) target(ctx context.Context, source string, first uint64, stdout io.Writer, log *slog.Logger) (target.Target, string, error) {
	switch {
	case o.stdout && o.url != "":
		return nil, "", errors.New("-stdout and -url exclude each other")
	case o.stdout:
		return target.NewLines(stdout, first), "standard output", nil
	case o.url != "":
		t, err := target.NewHTTP(target.HTTPConfig{
			URL: o.url, Source: source, Type: events.BehaviorRaw, First: first, Batch: o.batch, Connections: o.connections,
		})
		if err != nil {
			return nil, "", fmt.Errorf("-url: %w", err)
		}
		return t, o.url, nil
	case o.to == "postgres":
		return o.postgres(ctx, first, log)
	}

	format, err := shape.ParseFormat(o.format)
	if err != nil {
		return nil, "", err
	}
	topic := o.topic
	if topic == "" {
		topic = format.Topic()
	}
	if err := target.CheckCompression(o.compression); err != nil {
		return nil, "", fmt.Errorf("-compression: %w", err)
	}
	brokers, options, err := o.kafka()
	if err != nil {
		return nil, "", err
	}
	if err := o.makeTopic(ctx, topic, brokers, options, log); err != nil {
		return nil, "", err
	}
	t, err := target.NewKafka(target.KafkaConfig{
		Options: options, Topic: topic, First: first, Compression: o.compression, NumberRecords: o.numbered, Logger: log,
	})
	return t, "topic " + topic + " at " + brokers, err
}

// postgres waits for the database and makes the table if it is missing.
func (o *output) postgres(ctx context.Context, first uint64, log *slog.Logger) (target.Target, string, error) {
	address := os.Getenv("DATABASE_URL")
	if address == "" {
		return nil, "", errors.New("-to postgres needs DATABASE_URL, as in postgres://user:password@host:5432/shop")
	}
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	t, err := target.NewPostgres(ctx, target.PostgresConfig{URL: address, First: first, Logger: log})
	return t, "table " + target.Table, err
}

// kafka says how to reach the brokers: KAFKA_BROKERS and the other variables that
// the functions read, too, with -brokers before the variable.
func (o *output) kafka() (brokers string, options []kgo.Opt, err error) {
	var cfg kafka.Config
	if err := envconfig.Process("", &cfg); err != nil {
		return "", nil, fmt.Errorf("reading the environment: %w", err)
	}
	switch {
	case o.brokers != "":
		cfg.Brokers = strings.Split(o.brokers, ",")
	case len(cfg.Brokers) == 0:
		cfg.Brokers = []string{"localhost:9092"}
	}
	cfg.ClientID = "loadgen"
	options, err = cfg.Options()
	return strings.Join(cfg.Brokers, ","), options, err
}

// makeTopic waits for Kafka and makes the topic if it is missing.
func (o *output) makeTopic(ctx context.Context, topic, brokers string, options []kgo.Opt, log *slog.Logger) error {
	client, err := kgo.NewClient(options...)
	if err != nil {
		return fmt.Errorf("making a Kafka client: %w", err)
	}
	defer client.Close()
	count := o.partitions
	if count == 0 {
		count = partitions[topic]
	}
	if count == 0 {
		count = partitions[shape.Connect.Topic()]
	}
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	told := false
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := kafka.EnsureTopics(attempt, client, map[string]int32{topic: int32(count)}, int16(o.replication))
		cancel()
		if err == nil {
			return nil
		}
		var refused *kerr.Error
		if errors.As(err, &refused) && !refused.Retriable {
			return err
		}
		if !told {
			log.Info("waiting for Kafka", "brokers", brokers, "error", err)
			told = true
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no answer from Kafka at %s: %w", brokers, err)
		}
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/target"
)

const linesAbout = `Sends the lines of a file, or of standard input, as they are, each as a record
of a Kafka topic. With -key, each line is a JSON object and the key is a field of it.

  loadgen lines -topic plant.sensors -key sensor_id -file readings.jsonl
  tail -f readings.jsonl | loadgen lines -topic plant.sensors -key sensor_id`

// longestLine is what a record may have at most, by the broker's default.
const longestLine = 1 << 20

func runLines(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("lines", flag.ContinueOnError)
	var k output
	topic := fs.String("topic", "", "Kafka topic (required)")
	field := fs.String("key", "", "field of the line, a JSON object, that becomes the record's key; none by default")
	file := fs.String("file", "-", "file of the lines; - is standard input")
	rate := fs.Float64("rate", 0, "lines a second; 0 is as fast as possible")
	fs.StringVar(&k.brokers, "brokers", "", "Kafka brokers as host:port, comma separated (default KAFKA_BROKERS, or localhost:9092)")
	fs.IntVar(&k.partitions, "partitions", 6, "partitions of the topic if it has to be made")
	fs.IntVar(&k.replication, "replication", -1, "replicas of the topic if it has to be made; -1 is the cluster's default")
	fs.DurationVar(&k.wait, "wait", time.Minute, "how long to wait for Kafka at the start")
	drain := fs.Duration("drain", 30*time.Second, "how long to wait for acknowledgements at the end")
	if done, err := parse(fs, args, linesAbout, stdout, stderr); done || err != nil {
		return err
	}
	if *topic == "" {
		return errors.New("lines needs -topic TOPIC")
	}
	in := io.Reader(os.Stdin)
	if *file != "-" {
		f, err := os.Open(*file)
		if err != nil {
			return fmt.Errorf("-file: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	brokers, options, err := k.kafka()
	if err != nil {
		return err
	}
	if err := k.makeTopic(ctx, *topic, brokers, options, log); err != nil {
		return err
	}
	to, err := target.NewKafka(target.KafkaConfig{Options: options, Topic: *topic, Compression: "snappy", Logger: log})
	if err != nil {
		return err
	}
	sendErr := sendLines(ctx, in, to, *field, *rate)
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), *drain)
	defer cancel()
	closeErr := to.Close(draining)
	o := to.Outcome()
	if closeErr == nil && !o.Complete() {
		closeErr = fmt.Errorf("not every line was delivered: %+v", o)
	}
	_, _ = fmt.Fprintf(stdout, "%d lines are in topic %s\n", o.Delivered, *topic)
	return errors.Join(sendErr, closeErr)
}

// sendLines sends until the input or ctx ends. Empty lines are left out.
func sendLines(ctx context.Context, in io.Reader, to target.Target, field string, rate float64) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, longestLine)
	began := time.Now()
	seq := uint64(0)
	for number := 1; lines.Scan(); number++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var key []byte
		if field != "" {
			var err error
			if key, err = keyOf(line, field); err != nil {
				return fmt.Errorf("line %d: %w", number, err)
			}
		}
		if rate > 0 && !pause(ctx, began, time.Duration(float64(seq)/rate*float64(time.Second))) {
			return nil
		}
		if to.Send(ctx, target.Message{Seq: seq, Key: key, Value: bytes.Clone(line)}) != nil {
			return nil //nolint:nilerr // only because ctx is done
		}
		seq++
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading lines: %w", err)
	}
	return nil
}

// keyOf is a text or number of the line, as it is written.
func keyOf(line []byte, field string) ([]byte, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(line, &members); err != nil {
		return nil, fmt.Errorf("it should be a JSON object with the field %s: %w", field, err)
	}
	value, ok := members[field]
	if !ok {
		return nil, fmt.Errorf("there is no field %s", field)
	}
	var text string
	if json.Unmarshal(value, &text) == nil {
		return []byte(text), nil
	}
	return value, nil
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake"
)

const (
	rawTopic       = "tracking.raw_user_behavior"
	validatedTopic = "tracking.user_behavior.validated"
	invalidTopic   = "tracking.user_behavior.invalid"
)

// buckets are the lake's, by topic.
var buckets = map[string]string{
	validatedTopic: "validated-events-bucket",
	invalidTopic:   "invalidated-events-bucket",
}

// ledger holds what is in Kafka and in the lake against what was produced.
type ledger struct {
	t      *testing.T
	p      *platformProcess
	reader *kgo.Client
	next   map[string]map[int32]int64 // what was read, by topic and partition

	// expected are the ids of the verdicts that there must be, with what each is of.
	expected map[string]string
	// verdicts are the records of the verdict topics, by id, in the order of their
	// partitions.
	verdicts map[string][]*kgo.Record
	// sequence counts the load generator's messages in the raw topic by their numbers.
	sequence map[uint64]int
	raw      int // records in the raw topic
}

func newLedger(p *platformProcess) *ledger {
	l := &ledger{
		t: p.t, p: p,
		next:     map[string]map[int32]int64{rawTopic: {}, validatedTopic: {}, invalidTopic: {}},
		expected: map[string]string{}, verdicts: map[string][]*kgo.Record{}, sequence: map[uint64]int{},
	}
	assigned := map[string]map[int32]kgo.Offset{}
	for topic := range l.next {
		assigned[topic] = map[int32]kgo.Offset{}
		for partition := range int32(12) {
			assigned[topic][partition] = kgo.NewOffset().AtStart()
		}
	}
	l.reader = p.kafka(kgo.ConsumePartitions(assigned), kgo.FetchMaxWait(200*time.Millisecond))
	return l
}

// read takes in everything that the topics hold now.
func (l *ledger) read(ctx context.Context) error {
	ends, err := kadm.NewClient(l.p.kafka()).ListEndOffsets(ctx, slices.Collect(maps.Keys(l.next))...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return err
	}
	behind := func() (n int64) {
		ends.Each(func(o kadm.ListedOffset) { n += max(0, o.Offset-l.next[o.Topic][o.Partition]) })
		return n
	}
	for behind() > 0 {
		fetches := l.reader.PollFetches(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if want := l.next[r.Topic][r.Partition]; r.Offset != want {
				l.t.Errorf("%s/%d: offset %d follows %d", r.Topic, r.Partition, r.Offset, want-1)
			}
			l.next[r.Topic][r.Partition] = r.Offset + 1
			l.take(r)
		})
	}
	return nil
}

func (l *ledger) take(r *kgo.Record) {
	if r.Topic == rawTopic {
		l.raw++
		// The event that a KafkaSource makes of a record.
		id := fmt.Sprintf("partition:%d/offset:%d", r.Partition, r.Offset)
		source := "/apis/v1/namespaces/millrace/kafkasources/raw-user-behavior#" + rawTopic
		l.expect(source, id)
		for _, h := range r.Headers {
			if seq, err := strconv.ParseUint(string(h.Value), 10, 64); h.Key == "loadgenseq" && err == nil {
				l.sequence[seq]++
			}
		}
		return
	}
	attrs := lake.AttrsOf(r)
	id := string(attrs.ID)
	l.verdicts[id] = append(l.verdicts[id], r)
}

// expect notes that an event must get a verdict.
func (l *ledger) expect(source, id string) {
	l.expected[events.ReplyID(source, id, "validate")] = id + " of " + source
}

// settle waits until every expected verdict is there and the lake has drained all.
func (l *ledger) settle() {
	l.t.Helper()
	missing := func() (n int) {
		for id := range l.expected {
			if len(l.verdicts[id]) == 0 {
				n++
			}
		}
		return n
	}
	var last error
	eventually(l.t, "a verdict for every record", func() bool {
		ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
		defer cancel()
		last = l.read(ctx)
		return last == nil && missing() == 0
	}, func() string {
		s, err := l.p.askStatus()
		return fmt.Sprintf("%d of %d verdicts are missing (%v)\n%s (%v)", missing(), len(l.expected), last, strings.Join(render(s, 120, 50), "\n"), err)
	})
	l.tick()
	eventually(l.t, "the lake has everything", func() bool {
		lag, err := l.lakeLag()
		last = err
		if err == nil && lag > 0 {
			l.tick()
		}
		return err == nil && lag == 0
	}, func() string { return fmt.Sprint(last) })
}

// tick wakes the lake before its time.
func (l *ledger) tick() {
	req, err := http.NewRequest(http.MethodPost, l.p.url("/millrace/default"), strings.NewReader("{}"))
	if err != nil {
		l.t.Fatal(err)
	}
	for k, v := range map[string]string{
		"ce-specversion": "1.0", "ce-id": strconv.FormatInt(time.Now().UnixNano(), 10),
		"ce-source": "/apis/v1/namespaces/millrace/pingsources/lake-tick", "ce-type": events.Tick, "content-type": "application/json",
	} {
		req.Header.Set(k, v)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
	}
}

// lakeLag is how many verdict records are not in the lake yet.
func (l *ledger) lakeLag() (int64, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	adm := kadm.NewClient(l.p.kafka())
	ends, err := adm.ListEndOffsets(ctx, validatedTopic, invalidTopic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, err
	}
	committed, err := adm.FetchOffsets(ctx, "millrace-lake")
	if err != nil {
		return 0, err
	}
	var lag int64
	ends.Each(func(o kadm.ListedOffset) {
		c, _ := committed.Lookup(o.Topic, o.Partition)
		lag += o.Offset - max(c.At, 0)
	})
	return lag, nil
}

// lakeLines reads the whole lake: the lines by the ids of their events.
func (l *ledger) lakeLines() map[string][][]byte {
	l.t.Helper()
	lines := map[string][][]byte{}
	for _, bucket := range buckets {
		for line, err := range l.p.store().Records(running(l.t), bucket, lake.Root, "") {
			if errors.Is(err, lake.ErrNotFound) {
				break // no such verdict
			}
			if err != nil {
				l.t.Fatalf("reading the lake: %v", err)
			}
			id := lineID(line.JSON)
			lines[id] = append(lines[id], bytes.Clone(line.JSON))
		}
	}
	return lines
}

// lineID is the id of the event that a lake line is of.
func lineID(line []byte) string {
	i := bytes.LastIndex(line, []byte(`"_kafka":{`))
	if i < 0 {
		return ""
	}
	_, rest, _ := bytes.Cut(line[i:], []byte(`"id":"`))
	id, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(id)
}

// check requires that every expected verdict is in exactly one of the topics, is in
// the lake exactly once and reads there as it does in the topic, and that nothing
// else is anywhere.
func (l *ledger) check() {
	l.t.Helper()
	lines := l.lakeLines()
	repeated, wrong := 0, 0
	complain := func(format string, args ...any) {
		if wrong++; wrong <= 10 {
			l.t.Errorf(format, args...)
		}
	}
	for id, what := range l.expected {
		records := l.verdicts[id]
		if len(records) == 0 {
			complain("no verdict for %s", what)
			continue
		}
		repeated += len(records) - 1
		for _, r := range records[1:] {
			if r.Topic != records[0].Topic {
				complain("%s is in both topics", what)
			}
			if r.Partition != records[0].Partition {
				complain("%s is in partitions %d and %d", what, records[0].Partition, r.Partition)
			}
		}
		if len(lines[id]) != 1 {
			complain("%s is %d times in the lake", what, len(lines[id]))
			continue
		}
		// The lake keeps the first of several, which is what its own line says.
		first := slices.MinFunc(records, func(a, b *kgo.Record) int { return int(a.Offset - b.Offset) })
		attrs := lake.AttrsOf(first)
		want := bytes.TrimRight(lake.AppendLine(nil, first, &attrs), "\n")
		if diff := cmp.Diff(string(want), string(lines[id][0])); diff != "" {
			complain("the lake's line of %s (-topic +lake):\n%s", what, diff)
		}
	}
	for id := range l.verdicts {
		if _, ok := l.expected[id]; !ok {
			complain("a verdict of nothing that was produced: %s", id)
		}
	}
	for id := range lines {
		if _, ok := l.expected[id]; !ok {
			complain("a line of nothing that was produced: %s", id)
		}
	}
	if wrong > 10 {
		l.t.Errorf("and %d more", wrong-10)
	}
	l.t.Logf("%d raw records, %d verdicts, %d of them repeated in the topics, %d lines in the lake",
		l.raw, len(l.expected), repeated, len(lines))
}

// checkProduced requires that every message that the generator numbered is in the raw
// topic exactly once, and no other. With check, which holds the lake against the raw
// topic record by record, so it is in the lake.
func (l *ledger) checkProduced(r loadReport) {
	l.t.Helper()
	if !r.Complete {
		l.t.Errorf("the load generator could not send everything: %+v", r)
	}
	missing, repeated := 0, 0
	for seq := range r.Next {
		switch n := l.sequence[seq]; {
		case n == 0:
			missing++
		case n > 1:
			repeated++
		}
	}
	if missing > 0 || repeated > 0 || uint64(len(l.sequence)) > r.Next {
		l.t.Errorf("of %d messages, %d are not in the raw topic and %d more than once; it has %d different ones",
			r.Next, missing, repeated, len(l.sequence))
	}
	l.t.Logf("%d messages produced", r.Next)
}

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// fetchBytes is what one fetch asks for. A broker sends one whole batch even
	// if that is larger. It is small because batches are mostly compressed, and one
	// answer in use and one waiting are held unpacked for each partition at work.
	fetchBytes = 512 << 10
	// fetchWait is how long a broker may wait when it has nothing, in milliseconds.
	// It does not come to that: only offsets that are there are asked for.
	fetchWait = 1000
	// fetchTries is how many answers without progress end a read.
	fetchTries = 10
)

// source is a partition to read from.
type source struct {
	topic     string
	id        [16]byte
	partition int32
	leader    int32
}

// topicID is the topic's id as text; all zeros from brokers that have none.
func (s source) topicID() string { return hex.EncodeToString(s.id[:]) }

// anotherTopic tells whether an id that was noted is that of another topic than s's.
func (s source) anotherTopic(noted string) bool {
	return noted != "" && noted != s.topicID() && s.id != [16]byte{}
}

// fetchRange calls f for every record in the offsets [from, to) in their order,
// while the next fetch is on its way. Offsets without a record (control records,
// aborted transactions, gaps) are passed over. It returns when to is reached, also
// when the last offsets before to have no record, which a consumer could not tell.
//
// Fetches are made by hand rather than by a consumer because of that, and because
// nothing is then held in memory but two answers.
func fetchRange(ctx context.Context, client *kgo.Client, src source, from, to int64, f func(*kgo.Record) error) error {
	type answer struct {
		records []*kgo.Record
		err     error
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answer) // unbuffered: one answer is used, one waits here
	go func() {
		defer close(answers)
		idle := 0
		for at := from; at < to; {
			records, next, err := fetch(ctx, client, src, at)
			if err == nil && next <= at {
				if idle++; idle == fetchTries {
					err = fmt.Errorf("reading %s/%d: nothing at offset %d, which is before the end %d", src.topic, src.partition, at, to)
				}
			} else {
				idle = 0
			}
			select {
			case answers <- answer{records, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
			at = next
		}
	}()
	defer func() {
		cancel()
		for range answers { // until the other side has ended
		}
	}()
	for a := range answers {
		if a.err != nil {
			return a.err
		}
		for _, r := range a.records {
			if r.Offset >= to {
				return nil
			}
			if err := f(r); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// fetch makes one fetch and returns its records and the offset behind them.
func fetch(ctx context.Context, client *kgo.Client, src source, at int64) ([]*kgo.Record, int64, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = fetchWait
	req.MinBytes = 1
	req.MaxBytes = fetchBytes
	req.IsolationLevel = 1 // read committed
	req.SessionEpoch = -1  // no fetch session
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.Partition = src.partition
	partition.FetchOffset = at
	partition.PartitionMaxBytes = fetchBytes
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = src.topic, src.id // which of them counts depends on the version
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)

	failed := func(err error) ([]*kgo.Record, int64, error) {
		return nil, at, fmt.Errorf("reading %s/%d at offset %d: %w", src.topic, src.partition, at, err)
	}
	answer, err := client.Broker(int(src.leader)).RetriableRequest(ctx, req)
	if err != nil {
		return failed(err)
	}
	res := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(res.ErrorCode); err != nil {
		return failed(err)
	}
	if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
		return failed(errors.New("the broker answered for other partitions"))
	}
	p, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset:         at,
		IsolationLevel: kgo.ReadCommitted(),
		Topic:          src.topic,
		Partition:      src.partition,
	}, &res.Topics[0].Partitions[0], decompressor, nil)
	if p.Err != nil {
		return failed(p.Err)
	}
	return p.Records, next, nil
}

var decompressor = kgo.DefaultDecompressor()

package eventing

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// fetched counts the records that clients have fetched.
type fetched struct{ records atomic.Int64 }

func (f *fetched) OnFetchRecordBuffered(*kgo.Record) { f.records.Add(1) }

// Two Triggers that are behind in all partitions catch up, each level now here and now
// there, without fetching the same again and again.
func TestCatchUp_fetchesLittleTwice(t *testing.T) {
	const partitions, n, triggers = 6, 24_000, 2
	cluster := newCluster(t)
	release := make(chan struct{})
	subscribers := make([]*subscriber, triggers)
	var manifests []string
	for i := range subscribers {
		subscribers[i] = newSubscriber(t, func([]events.Message) (int, []events.Message) {
			<-release
			return 202, nil
		})
		manifests = append(manifests, triggerFor("t"+strconv.Itoa(i), "type", subscribers[i].url))
	}
	var hook fetched
	e := startEngine(t, cluster, graphOf(manifests...), func(c *Config) {
		c.Partitions, c.BufferBytes, c.KafkaOptions = partitions, 128<<10, []kgo.Opt{kgo.WithHooks(&hook)}
	})
	text := strings.Repeat("text ", 100)
	for at := 0; at < n; {
		ms := make([]events.Message, 0, 500)
		for range cap(ms) {
			m := message(strconv.Itoa(at), "type", "/s", `{"n":`+strconv.Itoa(at)+`,"text":"`+text+`"}`)
			m.Set(events.PartitionKey, "k"+strconv.Itoa(at%100))
			ms, at = append(ms, m), at+1
		}
		if err := e.send(t.Context(), ms...); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	for _, s := range subscribers {
		s.wait(t, n)
	}
	e.level(t, partitions)
	e.close(t)
	// Once for the Broker's reader and once for each Trigger.
	if got := hook.records.Load(); got > (1+triggers)*n*5/4 {
		t.Errorf("%d records were fetched for %d events and %d Triggers", got, n, triggers)
	} else {
		t.Logf("%d records were fetched for %d events and %d Triggers", got, n, triggers)
	}
}

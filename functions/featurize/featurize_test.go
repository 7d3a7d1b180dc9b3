package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
)

func TestRepliesWithFeaturesInOrder(t *testing.T) {
	h := start(t, nil)
	a, b, c := shopEvent("s", 0, 1, 2), shopEvent("s", 1, 1, 3), shopEvent("t", 2, 1, 2)
	status, replies := h.send(validated(&a), validated(&b), validated(&c), validated(&a))
	if status != http.StatusOK || len(replies) != 4 {
		t.Fatalf("%d with %d replies", status, len(replies))
	}
	for i, want := range []struct {
		event features.Event
		rank  int64
	}{{a, 1}, {b, 2}, {c, 1}, {a, 1}} {
		got := ready(t, replies[i])
		if diff := cmp.Diff(features.Of(&want.event, want.rank), got.Features, cmp.AllowUnexported(features.Value{})); diff != "" {
			t.Errorf("reply %d (-want +got):\n%s", i, diff)
		}
		if got.RecordHash != want.event.Hash() {
			t.Errorf("reply %d has another record_hash", i)
		}
		e := replies[i]
		if e.Type() != events.FeaturesReady || !e.Time().Equal(want.event.Time) || e.Extensions()[events.PartitionKey] != want.event.Session {
			t.Errorf("reply %d: %s", i, e)
		}
	}
	if replies[0].ID() != replies[3].ID() || replies[0].ID() == replies[1].ID() {
		t.Errorf("ids %s, %s, %s", replies[0].ID(), replies[1].ID(), replies[3].ID())
	}
}

// What is bad in a batch becomes a dead letter that says why; the rest goes on.
func TestBadEventsAndDeletesInABatch(t *testing.T) {
	h := start(t, nil)
	good, bad, deleted := shopEvent("s", 0, 1, 2), shopEvent("s", 1, 1, 2), shopEvent("s", 2, 1, 2)
	deleted.Op = "d"
	broken := validated(&bad)
	broken.DataEncoded = []byte(strings.Replace(string(broken.DataEncoded), `"price":11`, `"price":"11"`, 1))
	odd := validated(&bad)
	odd.SetType("com.example.odd")
	status, replies := h.send(broken, odd, validated(&deleted), validated(&good))
	if status != http.StatusOK || len(replies) != 3 {
		t.Fatalf("%d with %d replies: %v", status, len(replies), replies)
	}
	for i, want := range []string{"field price should be a number", `of type "com.example.odd"`} {
		if got, _ := replies[i].Extensions()[events.ErrorData].(string); !strings.Contains(got, want) {
			t.Errorf("dead letter %d says %q, not %q", i, got, want)
		}
	}
	if got := ready(t, replies[2]).Features[features.ActivityCount].Int(); got != 1 {
		t.Errorf("activity_count %d", got)
	}
}

func TestEventWithoutKeyGetsItsSession(t *testing.T) {
	h := start(t, nil)
	e := shopEvent("s", 0, 1, 2)
	ev := validated(&e)
	ev.SetExtension(events.PartitionKey, nil)
	_, replies := h.send(ev)
	if len(replies) != 1 || replies[0].Extensions()[events.PartitionKey] != "s" {
		t.Errorf("%v", replies)
	}
}

func TestRedisAway(t *testing.T) {
	h := start(t, nil)
	h.redis.NeedsProcess()
	a, b := shopEvent("s", 0, 1, 2), shopEvent("s", 1, 1, 2)
	h.send(validated(&a))
	h.redis.Kill()
	if status, _ := h.send(validated(&b)); status != http.StatusServiceUnavailable {
		t.Errorf("an event without Redis: %d", status)
	}
	if status, body := h.post("/features", `{}`); status != http.StatusServiceUnavailable {
		t.Errorf("a request without Redis: %d %s", status, body)
	}
	h.redis.Restart()
	var replies []event.Event
	waitFor(t, "Redis is used again", func() bool {
		var status int
		status, replies = h.send(validated(&b), validated(&a))
		return status == http.StatusOK
	})
	if x, y := ready(t, replies[0]).Features[features.ActivityCount].Int(), ready(t, replies[1]).Features[features.ActivityCount].Int(); x != 2 || y != 1 {
		t.Errorf("ranks %d and %d", x, y)
	}
}

package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/testkit/child"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// The process is killed while it opens an alert and while it tells of one, and PostgreSQL
// with what is still to be told: each alert is one row, and is told, what was told twice
// by the same key.
func TestKilled_alertsAreOneRowEachAndTold(t *testing.T) {
	server := pgtest.Own(t)
	db, err := warehouse.Config{URL: server.URL(), MaxConns: 2}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The first delivery hangs until the process is dead: its answer is lost.
	arrived, hang := make(chan struct{}, 100), make(chan struct{})
	hook := receiver.New(t, func(int) int {
		arrived <- struct{}{}
		<-hang
		return http.StatusOK
	})
	p := child.Start(t, "FUNCTION_NAME=alert", "DATABASE_URL="+server.URL(), "ALERT_WEBHOOK_URL="+hook.URL)
	send := func(e event.Event) (done chan int) {
		done = make(chan int, 1)
		m := events.FromEvent(&e)
		go func() { done <- p.Post(&m) }()
		return done
	}
	first := anomalyEvent("1", "srv-1", "cpu", "high", 1)

	// Killed within the transaction that opens the alert.
	unlock := server.Lock("alerts.deliveries")
	done := send(first)
	p.Eventually("alert waits to write what is to be told", func() bool {
		return rowsOf(t, db, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'alerts.deliveries'::regclass AND mode = 'RowExclusiveLock'
			AND EXISTS (SELECT FROM pg_locks own WHERE own.pid = pg_locks.pid AND own.granted AND own.relation = 'alerts.alerts'::regclass AND own.mode = 'RowExclusiveLock')`)[0] != "0"
	})
	p.Kill()
	if status := <-done; status != 0 {
		t.Fatalf("the event was answered with %d", status)
	}
	unlock()
	p.Eventually("its transaction is undone", func() bool {
		return rowsOf(t, db, `SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' OR wait_event_type = 'Lock'`)[0] == "0"
	})
	if got := rowsOf(t, db, `SELECT (SELECT count(*) FROM alerts.alerts), (SELECT count(*) FROM alerts.deliveries)`); got[0] != "0 0" {
		t.Errorf("alerts and deliveries after the first kill: %v", got)
	}

	// Killed while the webhook has the alert and has not said so.
	p.Run()
	if status := <-send(first); status/100 != 2 {
		t.Fatalf("the event was answered with %d", status)
	}
	<-arrived
	p.Kill()
	close(hang)
	p.Eventually("the webhook has it", func() bool { return len(hook.Requests()) == 1 })
	if got := rowsOf(t, db, `SELECT count(*), count(sent_at) FROM alerts.deliveries WHERE sink = 'webhook'`); got[0] != "1 0" {
		t.Errorf("deliveries after the second kill, and told: %v", got)
	}
	// Nobody waits out the lease of a test.
	hurry := func() {
		if _, err := db.Exec(t.Context(), `UPDATE alerts.deliveries SET leased_until = now() - interval '1 s', due_at = now() WHERE sent_at IS NULL`); err != nil {
			t.Fatal(err)
		}
	}
	hurry()
	p.Run()
	told := func(want int) func() bool {
		return func() bool {
			return rowsOf(t, db, `SELECT count(sent_at) FROM alerts.deliveries WHERE sink = 'webhook'`)[0] == fmt.Sprint(want)
		}
	}
	p.Eventually("the alert is told", told(1))

	// An alert is opened and the webhook is away; then PostgreSQL dies with the outbox, and
	// alert too.
	hook.Away(true)
	if status := <-send(anomalyEvent("2", "srv-2", "cpu", "high", 2)); status/100 != 2 {
		t.Fatalf("the event was answered with %d", status)
	}
	server.Crash()
	if status := <-send(anomalyEvent("3", "srv-3", "cpu", "high", 3)); status != http.StatusServiceUnavailable {
		t.Errorf("without a database an event is answered with %d", status)
	}
	p.Kill()
	server.Start()
	hook.Away(false)
	p.Run()
	p.Eventually("the database answers the test again", func() bool { return db.Ping(t.Context()) == nil })
	// All of it comes again.
	for i, e := range []event.Event{first, anomalyEvent("2", "srv-2", "cpu", "high", 2), anomalyEvent("3", "srv-3", "cpu", "high", 3)} {
		p.Eventually(fmt.Sprintf("event %d is taken", i+1), func() bool { return <-send(e)/100 == 2 })
	}
	began := time.Now()
	p.Eventually("all alerts are told", func() bool {
		if time.Since(began) > time.Second {
			hurry()
			began = time.Now()
		}
		return told(3)()
	})
	if got := rowsOf(t, db, `SELECT count(*), count(DISTINCT group_key) FROM alerts.alerts`); got[0] != "3 3" {
		t.Errorf("alerts, groups: %v", got)
	}
	if got := rowsOf(t, db, `SELECT string_agg(events::text, ' ') FROM alerts.alerts`); got[0] != "1 1 1" {
		t.Errorf("events of the alerts: %v", got)
	}
	keys := deliveries(hook)
	if len(keys) != 3 || len(hook.Requests()) < 4 {
		t.Errorf("%d deliveries were accepted in %d requests", len(keys), len(hook.Requests()))
	}
}

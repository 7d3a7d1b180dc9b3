package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
)

func TestAlert_isRaisedOnceForAGroupAndAnsweredAlikeAgain(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	batch := []event.Event{
		invalidEvent("1", "SCHEMA_VALIDATION_ERROR"), invalidEvent("2", "SCHEMA_VALIDATION_ERROR"), invalidEvent("3", "PROCESSING_ERROR"),
		anomalyEvent("4", "srv-1", "stl_zscore_cpu", "low", 10), anomalyEvent("5", "srv-1", "isolation_forest", "critical", 12),
		anomalyEvent("6", "srv-2", "stl_zscore_cpu", "high", 10),
		newEvent(events.DriftDetected, "7", "power_prediction_model", 20, `{"model_version":"3","reasons":["a","b"]}`),
		newEvent(events.TrainingFailed, "8", "power_prediction_model", 20, `{"reason":"one_class","message":"no"}`),
	}
	etl := newEvent(events.ETLFailed, "9", "topics/x", 20, `{"reason":"too many nulls"}`)
	etl.SetExtension("step", "silver")
	etl.SetExtension("severity", "critical")
	batch = append(batch, etl)
	first := handle(t, a, batch...)
	got := rowsOf(t, db, `SELECT rule, group_key, severity, events, state, summary FROM alerts.alerts ORDER BY 1, 2`)
	want := []string{
		"anomaly entity_type=server, entity=srv-1 CRITICAL 2 open Anomaly of server srv-1: isolation_forest",
		"anomaly entity_type=server, entity=srv-2 HIGH 1 open Anomaly of server srv-2: stl_zscore_cpu",
		"drift model=power_prediction_model MEDIUM 1 open power_prediction_model gets other data than it used to: a; b",
		"etl-failed step=silver, level=critical CRITICAL 1 open Batches are held back at silver: too many nulls",
		"invalid-events contract=shop-clickstream, error_type=PROCESSING_ERROR MEDIUM 1 open Invalid events of shop-clickstream: PROCESSING_ERROR",
		"invalid-events contract=shop-clickstream, error_type=SCHEMA_VALIDATION_ERROR HIGH 2 open Invalid events of shop-clickstream: SCHEMA_VALIDATION_ERROR",
		"training-failed model=power_prediction_model HIGH 1 open Training of power_prediction_model failed: one_class",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	// Each opener is answered; the others are not.
	for i, opens := range []bool{true, false, true, true, false, true, true, true, true} {
		if (first[i] != "") != opens {
			t.Errorf("event %d is answered %q", i, first[i])
		}
	}
	// Again by another process: the same answers, no second alert, nobody told again.
	again := handle(t, start(t, db, nil), batch...)
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("answers (-first +again):\n%s", diff)
	}
	if got := rowsOf(t, db, `SELECT count(*), count(DISTINCT (rule, group_key)) FROM alerts.alerts`); got[0] != "7 7" {
		t.Errorf("alerts: %v", got)
	}
	if got := rowsOf(t, db, `SELECT sum(events) FILTER (WHERE rule = 'anomaly') FROM alerts.alerts`); !strings.Contains(got[0], "3") {
		t.Errorf("events of rules that remember are counted once: %v", got)
	}
	if got := rowsOf(t, db, `SELECT count(*) FROM alerts.deliveries`); got[0] != "7" {
		t.Errorf("deliveries: %v", got)
	}
}

func TestAlert_isResolvedWhenAllMembersAre(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	state := func() string {
		return strings.Join(rowsOf(t, db, `SELECT state, events FROM alerts.alerts ORDER BY alert_id`), ", ")
	}
	step := func(want string, batch ...event.Event) {
		t.Helper()
		handle(t, a, batch...)
		if got := state(); got != want {
			t.Errorf("after %s %s: %s, want %s", batch[0].Type(), batch[0].ID(), got, want)
		}
	}
	step("open 1", anomalyEvent("1", "srv-1", "cpu", "high", 10))
	step("open 2", anomalyEvent("2", "srv-1", "power", "low", 12))
	step("open 2", overEvent("3", "srv-1", "cpu", 30))
	step("resolved 2", overEvent("4", "srv-1", "power", 31))
	// Late: before the end of what is over.
	step("resolved 2", anomalyEvent("5", "srv-1", "cpu", "high", 29))
	// Another one, whose end comes first.
	step("resolved 2", overEvent("6", "srv-1", "cpu", 60))
	step("resolved 2", anomalyEvent("7", "srv-1", "cpu", "high", 50))
	step("resolved 2, open 1", anomalyEvent("8", "srv-1", "cpu", "high", 70))
	// Begun and ended in one batch.
	step("resolved 2, open 1, resolved 1", anomalyEvent("9", "srv-9", "cpu", "high", 70), overEvent("10", "srv-9", "cpu", 80))
	// A model that is promoted ends its drift.
	step("resolved 2, open 1, resolved 1, open 1", newEvent(events.DriftDetected, "11", "m", 100, `{"model_version":"1","reasons":"x"}`))
	step("resolved 2, open 1, resolved 1, resolved 1", newEvent(events.ModelPromoted, "12", "m", 100, `{}`))
	step("resolved 2, open 1, resolved 1, resolved 1, open 1", newEvent(events.DriftDetected, "13", "m", 200, `{"model_version":"2","reasons":"x"}`))
	// And so do data that have come back, but not those that have not.
	measured := func(id, state string) event.Event {
		e := newEvent(events.DriftMeasured, id, "m", 300, `{"model_version":"2","reasons":[]}`)
		e.SetExtension("state", state)
		return e
	}
	step("resolved 2, open 1, resolved 1, resolved 1, open 1", measured("14", "drifting"))
	step("resolved 2, open 1, resolved 1, resolved 1, resolved 1", measured("15", "resolved"))
}

func TestAlert_resolvesByQuietAndStartsAnew(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	handle(t, a, invalidEvent("1", "X"))
	handle(t, a, tickEvent())
	if got := rowsOf(t, db, `SELECT state FROM alerts.alerts`); got[0] != "open" {
		t.Fatal(got)
	}
	if _, err := db.Exec(t.Context(), `UPDATE alerts.alerts SET updated_at = now() - interval '6 minutes'`); err != nil {
		t.Fatal(err)
	}
	handle(t, a, tickEvent())
	if got := rowsOf(t, db, `SELECT state, resolution FROM alerts.alerts`); got[0] != "resolved quiet" {
		t.Fatal(got)
	}
	// The event that opened it comes again: it is answered, and opens nothing.
	if got := handle(t, start(t, db, nil), invalidEvent("1", "X")); got[0] != "invalid-events 1" {
		t.Errorf("answered %q", got)
	}
	if got := handle(t, start(t, db, nil), invalidEvent("2", "X")); got[0] == "" {
		t.Error("a new event opens a new one")
	}
	if got := rowsOf(t, db, `SELECT state FROM alerts.alerts ORDER BY alert_id`); !slices.Equal(got, []string{"resolved", "open"}) {
		t.Error(got)
	}
}

func TestAlert_severityRises(t *testing.T) {
	db := database(t)
	r := receiver.New(t, fine)
	a := start(t, db, map[string]string{"ALERT_SLACK_URL": r.URL}) // from MEDIUM
	handle(t, a, anomalyEvent("1", "s", "cpu", "low", 1))
	handle(t, a, anomalyEvent("2", "s", "cpu", "high", 2))
	handle(t, a, anomalyEvent("3", "s", "cpu", "critical", 3))
	handle(t, a, anomalyEvent("4", "s", "cpu", "low", 4))
	got := rowsOf(t, db, `SELECT sink, occasion, number FROM alerts.deliveries ORDER BY delivery_id`)
	want := []string{"log raised 0", "log reminder 1", "slack raised 0", "log reminder 2", "slack reminder 1"}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := rowsOf(t, db, `SELECT severity FROM alerts.alerts`); got[0] != "CRITICAL" {
		t.Error(got)
	}
}

func TestAlert_rateBoundsWhatIsTold(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	for i := range 4 {
		var batch []event.Event
		for j := range 20 {
			batch = append(batch, anomalyEvent(fmt.Sprint(i, "-", j), fmt.Sprint("srv-", i, "-", j), "cpu", "high", 1))
		}
		handle(t, a, batch...)
	}
	if got := rowsOf(t, db, `SELECT count(*), count(*) FILTER (WHERE suppressed), (SELECT count(*) FROM alerts.deliveries) FROM alerts.alerts`); got[0] != "80 20 60" {
		t.Error(got)
	}
}

// Two processes, each killed again and again, get the same events in other batches, some
// lost on the way back and sent again: each alert is there once and told once.
func TestAlerts_areExactlyOnceUnderRedeliveryAndRestarts(t *testing.T) {
	db := database(t)
	hook := receiver.New(t, func(n int) int {
		if n%5 == 3 {
			return http.StatusBadGateway
		}
		return http.StatusOK
	})
	r := rand.New(rand.NewPCG(7, 7))
	var all []event.Event
	groups := map[string]bool{}
	for i := range 300 {
		switch r.IntN(4) {
		case 0:
			all = append(all, invalidEvent(fmt.Sprint(i), fmt.Sprint("ERROR_", r.IntN(5))))
		case 1:
			all = append(all, newEvent(events.TrainingFailed, fmt.Sprint(i), fmt.Sprint("model-", r.IntN(6)), i, `{"reason":"x","message":"y"}`))
		default:
			// Ends never: the last state does not hang on the order.
			all = append(all, anomalyEvent(fmt.Sprint(i), fmt.Sprint("srv-", r.IntN(20)), fmt.Sprint("type-", r.IntN(3)), "high", i))
		}
	}
	for i := range all {
		a := start(t, db, nil)
		for _, rule := range a.byType[all[i].Type()] {
			if c := rule.observe(&all[i], 0, began); c != nil {
				groups[c.id.rule+" "+c.id.key] = true
			}
		}
	}
	answers := make([]map[string]bool, len(all))
	var mu sync.Mutex
	var g sync.WaitGroup
	for p := range 2 {
		seed := rand.New(rand.NewPCG(uint64(p), 9))
		g.Go(func() {
			var a *alerter
			stop := func() {}
			defer func() { stop() }()
			for round := range 2 {
				left := seed.Perm(len(all))
				if round == 0 {
					slices.Sort(left)
				}
				for len(left) > 0 {
					if a == nil || seed.IntN(9) == 0 {
						stop() // and what it held is gone
						ctx, cancel := context.WithCancel(context.Background())
						a = start(t, db, map[string]string{"ALERT_WEBHOOK_URL": hook.URL})
						done := a.start(ctx)
						stop = func() { cancel(); <-done }
					}
					n := min(len(left), 1+seed.IntN(100))
					batch := make([]event.Event, n)
					for i, at := range left[:n] {
						batch[i] = all[at]
					}
					results := a.Handle(t.Context(), batch)
					if seed.IntN(5) == 0 {
						continue // the answer is lost: all of it comes again
					}
					mu.Lock()
					for i, at := range left[:n] {
						if results[i].Err != nil {
							t.Errorf("event %s: %v", batch[i].ID(), results[i].Err)
						}
						if reply := results[i].Reply; reply != nil {
							if answers[at] == nil {
								answers[at] = map[string]bool{}
							}
							answers[at][reply.ID()+string(reply.Data())] = true
						}
					}
					mu.Unlock()
					left = left[n:]
				}
			}
		})
	}
	g.Wait()
	if got := rowsOf(t, db, `SELECT count(*), count(DISTINCT (rule, group_key)) FROM alerts.alerts`); got[0] != fmt.Sprint(len(groups), " ", len(groups)) {
		t.Errorf("alerts: %v of %d groups", got, len(groups))
	}
	openers := 0
	for i, a := range answers {
		if len(a) > 1 {
			t.Errorf("event %s had %d different answers", all[i].ID(), len(a))
		}
		if len(a) == 1 {
			openers++
		}
	}
	if openers != len(groups) {
		t.Errorf("%d events were answered with an alert, of %d groups", openers, len(groups))
	}
	a := start(t, db, map[string]string{"ALERT_WEBHOOK_URL": hook.URL})
	ctx, stop := context.WithCancel(t.Context())
	done := a.start(ctx)
	eventually(t, "all deliveries", func() bool {
		// Nobody waits out the back-off of a test.
		if _, err := db.Exec(t.Context(), `UPDATE alerts.deliveries SET due_at = now() WHERE sent_at IS NULL AND lease IS NULL`); err != nil {
			t.Fatal(err)
		}
		a.wakeAll()
		return rowsOf(t, db, `SELECT count(*) FILTER (WHERE sent_at IS NULL) FROM alerts.deliveries`)[0] == "0"
	})
	stop()
	<-done
	took := deliveries(hook)
	if len(took) != len(groups) {
		t.Errorf("the webhook took %d different deliveries, of %d alerts", len(took), len(groups))
	}
	for key, n := range took {
		if n != 1 {
			t.Errorf("delivery %s was taken %d times", key, n)
		}
	}
}

// A thousand invalid events a second must cost next to nothing: one upsert a group and
// second.
func TestInvalidEvents_areCheap(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	writes := func() string {
		return rowsOf(t, db, `SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()`)[0]
	}
	_ = writes
	const batches, size = 50, 100
	began := time.Now()
	for b := range batches {
		batch := make([]event.Event, size)
		for i := range batch {
			batch[i] = invalidEvent(fmt.Sprint(b, "-", i), fmt.Sprint("ERROR_", i%3))
		}
		handle(t, a, batch...)
	}
	took := time.Since(began)
	handle(t, a, tickEvent())
	if got := rowsOf(t, db, `SELECT sum(events)::bigint FROM alerts.alerts`); got[0] != fmt.Sprint(batches*size) {
		t.Errorf("counted %v of %d", got, batches*size)
	}
	// How often each row was written: once when it was raised, once a second, once at
	// the tick.
	got := rowsOf(t, db, `SELECT n_tup_ins, n_tup_upd FROM pg_stat_xact_user_tables WHERE relname = 'alerts'`)
	t.Logf("%d events in %s, %v", batches*size, took, got)
}

func TestSinkThatFails_isTriedAgainAndHoldsNothingUp(t *testing.T) {
	db := database(t)
	// The first delivery is refused twice, the second for good.
	hook := receiver.New(t, func(n int) int { return []int{503, 429, 200, 400, 200}[min(n, 4)] })
	dead := httptest.NewServer(nil)
	dead.Close()
	a := start(t, db, map[string]string{"ALERT_WEBHOOK_URL": hook.URL, "ALERT_SLACK_URL": dead.URL})
	ctx, stop := context.WithCancel(t.Context())
	done := a.start(ctx)
	defer func() { stop(); <-done }()
	hurry := func() {
		if _, err := db.Exec(t.Context(), `UPDATE alerts.deliveries SET due_at = now() WHERE sent_at IS NULL`); err != nil {
			t.Fatal(err)
		}
		a.wakeAll()
	}
	handle(t, a, anomalyEvent("1", "srv-1", "cpu", "high", 1))
	eventually(t, "the first delivery", func() bool { hurry(); return len(hook.Requests()) >= 3 })
	handle(t, a, anomalyEvent("2", "srv-2", "cpu", "high", 1))
	handle(t, a, anomalyEvent("3", "srv-3", "cpu", "high", 1))
	eventually(t, "the others", func() bool { hurry(); return len(hook.Requests()) >= 5 })
	eventually(t, "what became of them", func() bool {
		return slices.Equal(rowsOf(t, db, `SELECT sent_at IS NOT NULL, failed_at IS NOT NULL, attempts, coalesce(error, '') FROM alerts.deliveries WHERE sink = 'webhook' ORDER BY delivery_id`),
			[]string{"true false 3 ", "false true 1 it answered 400 Bad Request: ", "true false 1 "})
	})
	if got := rowsOf(t, db, `SELECT count(*) FROM alerts.deliveries WHERE sink = 'slack' AND sent_at IS NULL AND failed_at IS NULL AND error LIKE 'reaching it: %'`); got[0] != "3" {
		eventually(t, "the dead sink's errors", func() bool {
			hurry()
			return rowsOf(t, db, `SELECT count(*) FROM alerts.deliveries WHERE sink = 'slack' AND attempts > 0 AND error LIKE 'reaching it: %'`)[0] != "0"
		})
	}
	for _, row := range rowsOf(t, db, `SELECT coalesce(error, '') FROM alerts.deliveries`) {
		if strings.Contains(row, strings.TrimPrefix(dead.URL, "http://")) && strings.Contains(row, "http://") {
			t.Errorf("an address, which may be a secret, is kept: %s", row)
		}
	}
}

// A process that is told to stop while a sink takes its time waits for the answer, so that
// nothing is told twice, and gives back at once what it has not begun.
func TestStop_waitsForTheAnswerAndReleasesTheRest(t *testing.T) {
	db := database(t)
	came, goOn := make(chan struct{}, 3), make(chan struct{})
	hook := receiver.New(t, func(int) int {
		came <- struct{}{}
		<-goOn
		return http.StatusOK
	})
	a := start(t, db, map[string]string{"ALERT_WEBHOOK_URL": hook.URL})
	handle(t, a, anomalyEvent("1", "srv-1", "cpu", "high", 1), anomalyEvent("2", "srv-2", "cpu", "high", 1), anomalyEvent("3", "srv-3", "cpu", "high", 1))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := a.start(ctx)
	<-came
	stop()
	close(goOn)
	<-done
	if n := len(hook.Requests()); n != 1 {
		t.Errorf("the webhook was told %d times", n)
	}
	want := []string{"true <nil> true", "false <nil> true", "false <nil> true"}
	if diff := cmp.Diff(want, rowsOf(t, db, `SELECT sent_at IS NOT NULL, lease, due_at <= now() FROM alerts.deliveries WHERE sink = 'webhook' ORDER BY delivery_id`)); diff != "" {
		t.Errorf("sent, lease, due (-want +got):\n%s", diff)
	}
}

// What a process has claimed and not sent when it is killed is sent by another once the
// lease is over, not before.
func TestDelivery_ofAKilledProcessIsTakenOver(t *testing.T) {
	db := database(t)
	hook := receiver.New(t, fine)
	a := start(t, db, map[string]string{"ALERT_WEBHOOK_URL": hook.URL})
	handle(t, a, anomalyEvent("1", "srv-1", "cpu", "high", 1))
	s := a.sinks["webhook"]
	list, err := a.claim(t.Context(), s, "killed")
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if n, err := a.deliver(t.Context(), hook.Client(), s); n != 0 || err != nil {
		t.Fatalf("claimed %d, %v", n, err)
	}
	if _, err := db.Exec(t.Context(), `UPDATE alerts.deliveries SET leased_until = now() - interval '1 s'`); err != nil {
		t.Fatal(err)
	}
	if n, err := a.deliver(t.Context(), hook.Client(), s); n != 1 || err != nil {
		t.Fatalf("claimed %d, %v", n, err)
	}
	// The former owner comes back too late to say anything.
	if err := a.settle(t.Context(), s, &list[0], "killed", &sinkError{err: fmt.Errorf("x")}); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, db, `SELECT sent_at IS NOT NULL, failed_at IS NULL, attempts FROM alerts.deliveries WHERE sink = 'webhook'`); got[0] != "true true 2" {
		t.Error(got)
	}
}

func TestSinks_getTheirShapes(t *testing.T) {
	db := database(t)
	hook := receiver.New(t, fine)
	addresses := map[string]string{"ALERT_WEBHOOK_URL": hook.URL + "/hook", "ALERT_SLACK_URL": hook.URL + "/slack", "ALERTMANAGER_URL": hook.URL + "/am/"}
	a := start(t, db, addresses)
	ctx, stop := context.WithCancel(t.Context())
	done := a.start(ctx)
	defer func() { stop(); <-done }()
	handle(t, a, anomalyEvent("1", "srv<1>&", "cpu", "high", 1))
	eventually(t, "three requests", func() bool { return len(hook.Requests()) == 3 })
	handle(t, a, overEvent("2", "srv<1>&", "cpu", 9))
	eventually(t, "six requests", func() bool { return len(hook.Requests()) == 6 })
	got := bodies(hook)
	slices.Sort(got)
	decode := func(at int, path string, to any) {
		t.Helper()
		text, ok := strings.CutPrefix(got[at], path+" ")
		if !ok {
			t.Fatalf("request %d: %s", at, got[at])
		}
		if err := json.Unmarshal([]byte(text), to); err != nil {
			t.Fatal(err)
		}
	}
	var am []postableAlert
	open, over := 0, 0
	for i := range 2 {
		decode(i, "/am/api/v2/alerts", &am)
		if am[0].Labels["alertname"] != "anomaly" || am[0].Labels["severity"] != "high" || am[0].Annotations["entity"] != "srv<1>&" {
			t.Errorf("%+v", am)
		}
		if am[0].EndsAt.After(time.Now()) {
			open++
		} else {
			over++
		}
	}
	if open != 1 || over != 1 {
		t.Errorf("%d open, %d over", open, over)
	}
	var m message
	decode(2, "/hook", &m)
	if m.Version != 1 || m.Alert.Severity != "HIGH" || m.Alert.Labels["entity"] != "srv<1>&" || !strings.Contains(string(m.Alert.Details), "anomaly_score") {
		t.Errorf("%+v", m)
	}
	var s slack
	decode(4, "/slack", &s)
	if !strings.Contains(s.Text, "srv&lt;1&gt;&amp;") || len(s.Attachments) != 1 || s.Attachments[0].Color == "" {
		t.Errorf("%+v", s)
	}
}

func TestHTTP_listsAlerts(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	handle(t, a, anomalyEvent("1", "s", "cpu", "high", 1), invalidEvent("2", "X"), anomalyEvent("3", "t", "cpu", "low", 1), overEvent("4", "t", "cpu", 3))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /alerts", a.serveAlerts)
	mux.HandleFunc("GET /alerts/{id}", a.serveAlert)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	for path, want := range map[string]int{"": 3, "?state=open": 2, "?state=resolved": 1, "?rule=anomaly": 2, "?severity=HIGH": 1, "?limit=1": 1, "?before=2": 1} {
		status, body := get("/alerts" + path)
		var got struct{ Alerts []Alert }
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 || len(got.Alerts) != want {
			t.Errorf("%s: %d, %d alerts, want %d: %v", path, status, len(got.Alerts), want, err)
		}
	}
	for path, want := range map[string]int{"?state=x": 400, "?limit=0": 400, "?limit=a": 400, "?severity=x": 400, "?stat=open": 400, "/x": 400, "/999": 404, "/1": 200} {
		if status, body := get("/alerts" + path); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
	if _, body := get("/alerts/1"); !strings.Contains(body, `"sink":"log"`) {
		t.Error(body)
	}
}

func TestDatabaseThatIsAway_pushesBack(t *testing.T) {
	db := database(t)
	a := start(t, db, nil)
	handle(t, a, invalidEvent("1", "X"))
	handle(t, a, invalidEvent("2", "X")) // held back
	db.Close()
	r := a.Handle(t.Context(), []event.Event{invalidEvent("3", "Y")})
	if r[0].Err == nil {
		t.Fatal("the event was taken")
	}
	if r := a.Handle(t.Context(), []event.Event{newEvent("dev.millrace.other.v1", "4", "", 0, `{}`)}); r[0].Err == nil || !strings.Contains(r[0].Err.Error(), "dev.millrace.other.v1") {
		t.Errorf("%v", r[0].Err)
	}
}

// In whichever order and however often events of one entity come, in the end its alert
// is open or not as the latest of them say.
func TestOrder_doesNotMatterInTheEnd(t *testing.T) {
	db := database(t)
	for seed := range 12 {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		entity := fmt.Sprint("srv-", seed)
		var list []event.Event
		active := false
		for m := range 3 {
			at := 0
			for i := range 1 + r.IntN(3) {
				id := fmt.Sprint(seed, "-", m, "-", i)
				at += 1 + r.IntN(50)
				list = append(list, anomalyEvent(id, entity, fmt.Sprint("m", m), "high", at))
				if ends := r.IntN(3) > 0; !ends {
					active = true
					break
				}
				at += 1 + r.IntN(50)
				list = append(list, overEvent(id+"e", entity, fmt.Sprint("m", m), at))
			}
		}
		a := start(t, db, nil)
		for range 2 {
			r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			for _, e := range list {
				handle(t, a, e)
			}
		}
		if got := rowsOf(t, db, `SELECT count(*) FILTER (WHERE state = 'open') FROM alerts.alerts WHERE group_key = $1`, "entity_type=server, entity="+entity); got[0] != map[bool]string{true: "1", false: "0"}[active] {
			t.Errorf("seed %d: %v open, active %t", seed, got, active)
		}
	}
}

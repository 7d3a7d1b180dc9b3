package main

import (
	"fmt"
	"io"
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
)

// inbox is the Broker of a sweeper.
type inbox struct {
	*httptest.Server
	mu   sync.Mutex
	away bool
	got  []events.Message
}

func newInbox(t *testing.T) *inbox {
	b := &inbox{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.away {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(r.Body)
		var ms []events.Message
		var err error
		if r.Header.Get("Content-Type") == events.ContentTypeBatch {
			ms, err = events.ParseBatch(body)
		} else {
			var m events.Message
			m, err = events.FromHTTP(r.Header, body)
			ms = append(ms, m)
		}
		if err != nil {
			t.Error(err)
		}
		b.got = append(b.got, ms...)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(b.Close)
	return b
}

// sweeping gives the world a sweeper of its bucket, whose clock is an hour ahead, so
// that what was written just now is old.
func (w *world) sweeping() *inbox {
	w.t.Helper()
	b := newInbox(w.t.(*testing.T))
	s, err := newSweeper(w.steps, SweepConfig{
		Bucket: w.bucket, Prefix: "topics/" + topic + "/", Grace: time.Minute, Recent: time.Hour, Retention: 3 * time.Hour, Sink: b.URL,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	s.now = func() time.Time { return time.Now().Add(time.Hour) }
	w.steps.sweeper = s
	return b
}

// swept does a sweep and gives the events that it sent.
func (w *world) swept(b *inbox) []event.Event {
	w.t.Helper()
	tick := event.New()
	tick.SetID("tick")
	tick.SetSource("/apis/v1/namespaces/millrace/pingsources/etl-sweep")
	tick.SetType(events.Tick)
	if reply, err := w.steps.Handle(w.t.Context(), tick); err != nil || reply != nil {
		w.t.Fatal(reply, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []event.Event
	for _, m := range b.got {
		e, err := m.Event()
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, e)
	}
	b.got = nil
	return list
}

// forget makes what was asked for due again.
func (w *world) forget() { w.exec(`UPDATE etl.objects SET swept_at = now() - interval '1 day'`) }

func (w *world) exec(sql string) {
	w.t.Helper()
	if _, err := w.db.Exec(w.t.Context(), sql); err != nil {
		w.t.Fatal(err)
	}
}

func subjects(es []event.Event) []string {
	var list []string
	for _, e := range es {
		list = append(list, e.Subject())
	}
	slices.Sort(list)
	return list
}

func TestSweepBringsWhatNoNotificationToldOf(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	es := shop(rng(5), 0, 90)
	w.load(w.put(key(0, 0), lines(0, 0, es[:30]...)))
	w.put(key(0, 30), lines(0, 30, es[30:60]...))
	w.put(key(0, 60), lines(0, 60, es[60:]...))
	got := w.swept(b)
	if diff := cmp.Diff([]string{key(0, 30), key(0, 60)}, subjects(got)); diff != "" {
		t.Fatalf("asked for (-want +got):\n%s", diff)
	}
	for name, want := range map[string]any{"bucket": w.bucket, "keyprefix": "topics/" + topic + "/", "partitionkey": w.bucket + "/" + got[0].Subject()} {
		if got[0].Extensions()[name] != want {
			t.Errorf("extension %s: %v, want %v", name, got[0].Extensions()[name], want)
		}
	}
	if more := w.swept(b); len(more) > 0 {
		t.Errorf("asked again at once for %v", subjects(more))
	}
	for _, e := range got {
		if diff := cmp.Diff(all, chain(t, w.steps, e)); diff != "" {
			t.Errorf("replies (-want +got):\n%s", diff)
		}
	}
	w.forget()
	if more := w.swept(b); len(more) > 0 {
		t.Errorf("asked for %v, which are loaded", subjects(more))
	}
	w.wantRebuild()
}

// The lake replaces the object of a chunk that fills, under the same key.
func TestSweepFindsObjectsThatHaveGrown(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	es := shop(rng(6), 0, 50)
	w.load(w.put(key(0, 0), lines(0, 0, es[:20]...)))
	w.put(key(0, 0), lines(0, 0, es...))
	got := w.swept(b)
	if diff := cmp.Diff([]string{key(0, 0)}, subjects(got)); diff != "" {
		t.Fatalf("asked for (-want +got):\n%s", diff)
	}
	chain(t, w.steps, got[0])
	if got := query(t, w.db, `SELECT count(*)::text FROM bronze.events`); got[0] != "50" {
		t.Errorf("%s of 50 records", got[0])
	}
	w.wantRebuild()
}

func TestSweepLeavesNewObjectsToTheirNotification(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	w.steps.sweeper.now = time.Now
	w.put(key(0, 0), lines(0, 0, event1("")))
	if got := w.swept(b); len(got) > 0 {
		t.Errorf("asked for %v", subjects(got))
	}
	// One that is written again and again is always new, but was seen long ago.
	w.exec(`UPDATE etl.objects SET seen_at = now() - interval '10 minutes'`)
	if got := w.swept(b); len(got) != 1 {
		t.Errorf("asked for %v, want the object", subjects(got))
	}
}

func TestSweepGoesOnWithWhatStoppedBetweenTwoSteps(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	objects := []object{w.put(key(0, 0), lines(0, 0, shop(rng(8), 0, 40)[:20]...)), w.put(key(0, 20), lines(0, 20, shop(rng(8), 0, 40)[20:]...))}
	e := created(objects[0])
	for range 2 { // bronze and silver
		e = *must(w.steps.Handle(t.Context(), e))
	}
	must(w.steps.Handle(t.Context(), created(objects[1])))
	if got := w.swept(b); len(got) > 0 {
		t.Errorf("asked for %v at once", subjects(got))
	}
	w.exec(`UPDATE etl.loads SET loaded_at = now() - interval '1 hour', silver_at = silver_at - interval '1 hour'`)
	got := w.swept(b)
	if diff := cmp.Diff([]string{key(0, 0), key(0, 20)}, subjects(got)); diff != "" {
		t.Fatalf("asked for (-want +got):\n%s", diff)
	}
	for _, e := range got {
		if diff := cmp.Diff(all, chain(t, w.steps, e)); diff != "" {
			t.Errorf("replies (-want +got):\n%s", diff)
		}
	}
	if open := query(t, w.db, `SELECT stage FROM etl.loads WHERE stage <> 'checked'`); len(open) > 0 {
		t.Errorf("stages %v", open)
	}
	w.wantRebuild()
}

func TestSweepAsksLessAndLessOftenForWhatDoesNotLoad(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	w.put(key(0, 0), lines(0, 0, event1("")))
	var asked []int
	for _, minutes := range []int{0, 9, 21, 39, 41, 61, 100} {
		w.exec(fmt.Sprintf(`UPDATE etl.objects SET swept_at = now() - interval '%d minutes'`, minutes))
		asked = append(asked, len(w.swept(b)))
	}
	if diff := cmp.Diff([]int{1, 0, 1, 0, 1, 0, 1}, asked); diff != "" {
		t.Errorf("asked after 0, 9, 21, 39, 41, 61 and 100 minutes (-want +got):\n%s", diff)
	}
}

// What was refused is told of once; a foreign file may be refused for its name alone.
func TestSweepTellsOfForeignFilesOnce(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	w.put("topics/"+topic+"/README.txt", []byte("hello\n"))
	w.put(key(0, 0), []byte("PK\x03\x04"))
	for _, e := range w.swept(b) {
		if diff := cmp.Diff([]string{"failed.v1"}, chain(t, w.steps, e)); diff != "" {
			t.Errorf("replies (-want +got):\n%s", diff)
		}
	}
	w.forget()
	if got := w.swept(b); len(got) > 0 {
		t.Errorf("asked again for %v", subjects(got))
	}
	if got := query(t, w.db, `SELECT count(*)::text FROM etl.objects WHERE refused IS NOT NULL`); got[0] != "2" {
		t.Errorf("%s objects refused", got[0])
	}
}

func TestSweepThatCannotSendAsksAgain(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	w.put(key(0, 0), lines(0, 0, event1("")))
	b.away = true
	if err := w.steps.sweeper.sweep(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("error %v", err)
	}
	b.away = false
	if got := w.swept(b); len(got) != 1 {
		t.Errorf("asked for %v", subjects(got))
	}
}

// More objects than a sweep may ask for are found by several, and none is left out.
func TestSweepsWalkThroughTheWholeLake(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	const room = 10
	w.steps.sweeper.page, w.steps.sweeper.open = 7, room
	for n := range 3*room - 5 {
		w.put(key(int32(n%12), int64(n)), []byte("{}\n"))
	}
	found := map[string]bool{}
	var sizes []int
	for range 4 {
		got := w.swept(b)
		for _, e := range got {
			if found[e.Subject()] {
				t.Errorf("asked twice for %s", e.Subject())
			}
			found[e.Subject()] = true
		}
		sizes = append(sizes, len(got))
		w.exec(`UPDATE etl.objects SET swept = 0`) // as when they are heard
	}
	if diff := cmp.Diff([]int{room, room, room - 5, 0}, sizes); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	if got := query(t, w.db, `SELECT concat(after, walked_at IS NOT NULL) FROM etl.sweeps`); got[0] != "t" {
		t.Errorf("place after the walk, and whether it ended: %s", got[0])
	}
}

// Events that were lost on their way do not keep the sweep from asking.
func TestSweepAsksAgainWhenAllThatItSentWasLost(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	w.steps.sweeper.open = 3
	for n := range int64(5) {
		w.put(key(0, 10*n), lines(0, 10*n, event1("")))
	}
	var asked []int
	for range 2 {
		asked = append(asked, len(w.swept(b)), len(w.swept(b)))
		w.forget()
	}
	if diff := cmp.Diff([]int{3, 0, 3, 0}, asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}

func TestSweepExpiresRunsAndNotesThoseThatDied(t *testing.T) {
	w := newWorld(t)
	b := w.sweeping()
	w.load(w.put(key(0, 0), lines(0, 0, event1(""))))
	w.exec(`UPDATE etl.runs SET started_at = started_at - interval '4 hours' WHERE step IN ('bronze', 'silver');
		UPDATE etl.quality_reports SET made_at = made_at - interval '4 hours' WHERE layer = 'bronze';
		INSERT INTO etl.runs (step, bucket, key, event_id, state, started_at) VALUES ('gold', 'b', 'k', 'e', 'running', now() - interval '2 hours'), ('gold', 'b', 'k', 'e', 'running', now())`)
	w.swept(b)
	got := query(t, w.db, `SELECT concat_ws(' ', step, state, error) FROM etl.runs ORDER BY run_id`)
	if diff := cmp.Diff([]string{"gold succeeded", "check succeeded", "gold failed the process died", "gold running"}, got); diff != "" {
		t.Errorf("runs (-want +got):\n%s", diff)
	}
	if got := query(t, w.db, `SELECT layer FROM etl.quality_reports ORDER BY 1`); !cmp.Equal(got, []string{"gold", "silver"}) {
		t.Errorf("reports of %v", got)
	}
}

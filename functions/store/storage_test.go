package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// handle sends a batch and gives the statuses.
func handle(t testing.TB, s *storage, batch ...event.Event) []int {
	t.Helper()
	results := s.Handle(t.Context(), batch)
	statuses := make([]int, len(batch))
	if len(results) != len(batch) {
		t.Fatalf("%d results of %d events", len(results), len(batch))
	}
	for i, r := range results {
		statuses[i] = function.Status(r.Err)
	}
	return statuses
}

// stored lists the served features.
func stored(t testing.TB, db *warehouse.DB) [][]string {
	t.Helper()
	return query(t, db, `SELECT user_id, product_id, user_session, event_type, event_timestamp, processed_at, record_hash, category_code,
		brand, price, event_weekday, category_code_level1, category_code_level2, activity_count, is_purchased
		FROM feature_store.streaming_features ORDER BY record_hash`)
}

// row is how an event's features are listed.
func storedRow(e *features.Event, rank int64) []string {
	null := func(s string) string {
		if s == "" {
			return "NULL"
		}
		return s
	}
	line := []string{
		strconv.FormatInt(e.UserID, 10), strconv.FormatInt(e.ProductID, 10), e.Session, e.Type, e.Time.Format("2006-01-02T15:04:05.999999Z"),
		"2026-02-03T04:05:06.000007Z", fmt.Sprintf("%x", e.Hash()), null(e.CategoryCode),
	}
	for _, v := range features.Of(e, rank) {
		if v.Null() {
			line = append(line, "NULL")
		} else {
			line = append(line, fmt.Sprint(v.Any()))
		}
	}
	return append(line, "NULL")
}

func TestHandle_writesFeaturesAsServed(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	full := features.Event{Time: served.AddDate(0, 0, -1), Type: "cart", Session: "s", UserID: 1 << 60, ProductID: -3,
		CategoryCode: "appliances.kitchen.hood", Brand: "ü \\ \"'", Price: 1029.37}
	bare := features.Event{Time: served, Type: "view", Session: "s", Price: 0.1 + 0.2}
	handle(t, s, ready(&full, 7))
	handle(t, s, ready(&bare, 8))
	want := [][]string{storedRow(&full, 7), storedRow(&bare, 8)}
	if want[0][6] > want[1][6] {
		want[0], want[1] = want[1], want[0]
	}
	if diff := cmp.Diff(want, stored(t, db)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An event that comes again, alone, in one batch with itself, or corrected, changes
// nothing.
func TestHandle_firstSightStays(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	e := features.Event{Time: served, Type: "cart", Session: "s", Brand: "first", Price: 1}
	again, corrected := e, e
	again.Brand, corrected.Brand = "again", "corrected"
	batch := []event.Event{ready(&e, 1), ready(&again, 1), ready(&e, 1)}
	for range 2 {
		if diff := cmp.Diff([]int{200, 200, 200}, handle(t, s, batch...)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		handle(t, s, ready(&corrected, 1))
	}
	if diff := cmp.Diff([][]string{storedRow(&e, 1)}, stored(t, db)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Of a batch, too, the first of each event stays, wherever the database finds room for
// the rows on their way.
func TestHandle_firstOfABatchStays(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	rng := rand.New(rand.NewPCG(3, 3))
	for round := range int64(5) {
		want := map[string]string{} // ranks by product
		batch := make([]event.Event, 1000)
		for i := range batch {
			e := features.Event{Time: served, Type: "cart", Session: "s", UserID: round, ProductID: int64(rng.IntN(600)), Price: 1, Brand: strings.Repeat("x", rng.IntN(256))}
			batch[i] = ready(&e, int64(i))
			if product := fmt.Sprint(e.ProductID); want[product] == "" {
				want[product] = fmt.Sprint(i)
			}
		}
		handle(t, s, batch...)
		got := map[string]string{}
		for _, row := range query(t, db, "SELECT product_id, activity_count FROM feature_store.streaming_features WHERE user_id = $1", round) {
			got[row[0]] = row[1]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%.2000s", diff)
		}
	}
}

// What is wrong with an event is said, and the rest of its batch is written.
func TestHandle_badEventsAreRefusedAlone(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	good := features.Event{Time: served, Type: "cart", Session: "good", Price: 1}
	nul := features.Event{Time: served, Type: "cart", Session: "nul", Brand: "a\x00b", Price: 1}
	foreign := ready(&good, 1)
	foreign.SetType("dev.millrace.behavior.validated.v1")
	results := s.Handle(t.Context(), []event.Event{ready(&nul, 1), readyData([]byte(`[1]`)), ready(&good, 1), readyData([]byte(`{}`)), foreign})
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprint(function.Status(r.Err), " ", r.Err))
	}
	want := []string{
		"400 feature_store.streaming_features: field brand has a NUL character, which PostgreSQL cannot store",
		"400 feature_store.streaming_features: reading features: should be a JSON object",
		"200 <nil>",
		"400 feature_store.streaming_features: reading features: field event_timestamp is required",
		"400 there is no table for events of type dev.millrace.behavior.validated.v1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]string{storedRow(&good, 1)}, stored(t, db)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// percentages is a second table, with a rule that only the database knows.
func percentages(t *testing.T, db *warehouse.DB) *table {
	t.Helper()
	if _, err := db.Exec(t.Context(), `CREATE TABLE dwh.percentages (id text, part int DEFAULT 3, value double precision CHECK (value <= 100), UNIQUE (id, part))`); err != nil {
		t.Fatal(err)
	}
	return &table{event: "test.percentage", name: "dwh.percentages", columns: []string{"id", "part", "value"}, key: []string{"id", "part"},
		write: func(e *event.Event, r *row) error {
			v, err := strconv.ParseFloat(string(e.Data()), 64)
			r.text("id", e.ID())
			r.length(4)
			r.buf = append(r.buf, 0, 0, 0, 1)
			r.float64(v)
			return errors.Join(err, r.err)
		}}
}

func percentage(id, value string) event.Event {
	e := event.New()
	e.SetID(id)
	e.SetSource("/test")
	e.SetType("test.percentage")
	_ = e.SetData("text/plain", []byte(value))
	return e
}

// A row that the database refuses is found among those of its batch, whatever their
// tables.
func TestHandle_rowsThatTheDatabaseRefusesAreRefusedAlone(t *testing.T) {
	db, _ := open(t)
	s := start(t, db, percentages(t, db))
	e := features.Event{Time: served, Type: "cart", Session: "s", Price: 1}
	batch := []event.Event{percentage("a", "1"), ready(&e, 1), percentage("b", "101"), percentage("c", "100"), percentage("a", "5"), percentage("d", "1e9")}
	for range 2 {
		if diff := cmp.Diff([]int{200, 200, 400, 200, 200, 400}, handle(t, s, batch...)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff([][]string{{"a", "1", "1"}, {"c", "1", "100"}}, query(t, db, "SELECT * FROM dwh.percentages ORDER BY id")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := stored(t, db); len(got) != 1 {
		t.Errorf("served features: %v", got)
	}
	// A batch that is copied.
	batch = nil
	var want []int
	for i := range 3 * few {
		e.ProductID = int64(i)
		batch = append(batch, ready(&e, 1), percentage(fmt.Sprint("copied", i), fmt.Sprint(i)))
		want = append(want, 200, map[bool]int{true: 200, false: 400}[i <= 100])
	}
	if diff := cmp.Diff(want, handle(t, s, batch...)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, parts := stored(t, db), query(t, db, "SELECT * FROM dwh.percentages"); len(got) != 3*few || len(parts) != 101+2 {
		t.Errorf("%d served features, %d percentages", len(got), len(parts))
	}
}

func TestHandle_schemaThatDoesNotFitIsNotTheEventsFault(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	if _, err := db.Exec(t.Context(), "ALTER TABLE feature_store.streaming_features RENAME brand TO brand_was"); err != nil {
		t.Fatal(err)
	}
	e := features.Event{Time: served, Type: "cart", Session: "s", Price: 1}
	if got := handle(t, s, ready(&e, 1)); got[0] != http.StatusInternalServerError {
		t.Errorf("status %d", got[0])
	}
}

// outage makes a database refuse and end all connections, until the returned
// function is called.
func outage(t testing.TB, url string) (end func()) {
	t.Helper()
	name := strings.TrimPrefix(url[:strings.IndexByte(url, '?')], "postgres://postgres@/")
	admin, err := pgx.Connect(t.Context(), strings.Replace(url, "/"+name+"?", "/postgres?", 1))
	if err != nil {
		t.Fatal(err)
	}
	exec := func(sql string, args ...any) {
		if _, err := admin.Exec(context.WithoutCancel(t.Context()), sql, args...); err != nil {
			t.Error(err)
		}
	}
	exec("ALTER DATABASE " + name + " ALLOW_CONNECTIONS false")
	exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
	return func() {
		exec("ALTER DATABASE " + name + " ALLOW_CONNECTIONS true")
		if err := admin.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}
}

func TestHandle_pushesBackWhileTheDatabaseIsAway(t *testing.T) {
	db, url := open(t)
	s := start(t, db)
	one := features.Event{Time: served, Type: "cart", Session: "one", Price: 1}
	two := features.Event{Time: served, Type: "cart", Session: "two", Price: 1}
	handle(t, s, ready(&one, 1))
	end := outage(t, url)
	if diff := cmp.Diff([]int{503, 400, 503}, handle(t, s, ready(&two, 1), readyData([]byte(`{}`)), tick())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	end()
	if diff := cmp.Diff([]int{200, 200}, handle(t, s, ready(&two, 1), tick())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := stored(t, db); len(got) != 2 {
		t.Errorf("served features: %v", got)
	}
}

// Senders that send again what was not taken, with the same events at the same time
// in any order and connections that break at any moment, lose and double nothing.
func TestHandle_nothingIsLostOrDoubled(t *testing.T) {
	db, url := open(t)
	const senders, rounds = 4, 30
	all := make([]features.Event, 200)
	want := map[string][]string{}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range all {
		all[i] = shopEvent(rng)
		all[i].Session = fmt.Sprint("unique-", i)
		want[fmt.Sprintf("%x", all[i].Hash())] = storedRow(&all[i], int64(i))
	}
	s := start(t, db)
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.WithoutCancel(t.Context()))
	var senderGroup, breaker sync.WaitGroup
	stop := make(chan struct{})
	breaker.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND random() < 0.3`); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var mu sync.Mutex
	acknowledged, pushedBack := map[string]bool{}, 0
	for sender := range senders {
		rng := rand.New(rand.NewPCG(uint64(sender), 9))
		senderGroup.Go(func() {
			for range rounds {
				picked := rng.Perm(len(all))[:1+rng.IntN(2*few)] // by either way into the table
				batch := make([]event.Event, len(picked))
				for i, p := range picked {
					batch[i] = ready(&all[p], int64(p))
				}
				for attempt := 0; ; attempt++ {
					results := s.Handle(t.Context(), batch)
					if results[0].Err == nil || attempt == 1000 {
						break
					}
					mu.Lock()
					pushedBack++
					mu.Unlock()
					if status := function.Status(results[0].Err); status != http.StatusServiceUnavailable {
						t.Errorf("status %d: %v", status, results[0].Err)
						return
					}
				}
				mu.Lock()
				for _, p := range picked {
					acknowledged[fmt.Sprintf("%x", all[p].Hash())] = true
				}
				mu.Unlock()
			}
		})
	}
	senderGroup.Wait()
	close(stop)
	breaker.Wait()
	db.Reset() // its idle connections may be broken
	got := map[string][]string{}
	for _, line := range stored(t, db) {
		got[line[6]] = line
	}
	for hash := range acknowledged {
		if diff := cmp.Diff(want[hash], got[hash]); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
	for hash := range got {
		if !acknowledged[hash] {
			t.Errorf("%s was stored though all its senders gave up", hash)
		}
	}
	t.Logf("%d events stored, %d batches pushed back", len(got), pushedBack)
}

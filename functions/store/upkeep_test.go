package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// serve stores the features of all events as the live system has to serve them.
func serve(t testing.TB, s *storage, all map[string]*truth) {
	t.Helper()
	var batch []event.Event
	for _, truth := range all {
		batch = append(batch, ready(&truth.first.Event, truth.rank))
	}
	if statuses := handle(t, s, batch...); slices.Max(statuses) != 200 {
		t.Fatalf("statuses %v", statuses)
	}
}

func compare(t testing.TB, s *storage) *skew {
	t.Helper()
	found, err := s.upkeep.compare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// counted is what matters of a comparison: differences but those of 0.
func counted(s *skew) map[string]int64 {
	if s == nil {
		return nil
	}
	m := map[string]int64{"equal": s.Equal, "differing": s.Differing, "missing": s.Missing, "unsettled": s.Unsettled, "deleted": s.Deleted}
	for name, n := range s.Differences {
		m[name] = n
	}
	for name, n := range m {
		if n == 0 {
			delete(m, name)
		}
	}
	return m
}

// world is a warehouse with a stream in gold and its features served.
func world(t testing.TB) (*warehouse.DB, *storage, map[string]*truth) {
	t.Helper()
	db, _ := open(t)
	s := start(t, db)
	records := shopStream(rand.New(rand.NewPCG(7, 7)), 0, 300)
	load(t, db, records)
	all := truths(records)
	serve(t, s, all)
	return db, s, all
}

func deleted(all map[string]*truth) (n int64) {
	for _, truth := range all {
		if truth.deleted {
			n++
		}
	}
	return n
}

func TestCompare_findsNothingWhereAllIsWell(t *testing.T) {
	db, s, all := world(t)
	n := deleted(all)
	if n == 0 {
		t.Fatal("the stream has no deletes")
	}
	if diff := cmp.Diff(map[string]int64{"equal": int64(len(all)) - n, "deleted": n}, counted(compare(t, s))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Each row is looked at once, and what found nothing to compare leaves no note.
	if again := compare(t, s); again != nil {
		t.Errorf("compared again: %+v", again)
	}
	if got := query(t, db, "SELECT compared, differing, deleted, examples FROM feature_store.skew_checks"); len(got) != 1 || got[0][1] != "0" || got[0][3] != "[]" {
		t.Errorf("noted: %v", got)
	}
}

func TestCompare_tellsWhatDiffers(t *testing.T) {
	db, s, all := world(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	const some = ` WHERE record_hash IN (SELECT record_hash FROM dwh.fact_events ORDER BY record_hash OFFSET `
	exec(`UPDATE feature_store.streaming_features SET activity_count = activity_count + 1` + some + `0 LIMIT 7)`)
	exec(`UPDATE feature_store.streaming_features SET price = price + 1e-9` + some + `5 LIMIT 3)`)
	exec(`UPDATE feature_store.streaming_features SET brand = CASE WHEN brand IS NULL THEN 'x' END` + some + `20 LIMIT 1)`)
	lost := features.Event{Time: served, Type: "view", Session: "not in gold", Price: 1}
	handle(t, s, ready(&lost, 1))
	n := deleted(all)
	found := compare(t, s)
	want := map[string]int64{"equal": int64(len(all)) - n - 9, "deleted": n, "missing": 1, "differing": 9, "activity_count": 7, "price": 3, "brand": 1}
	if diff := cmp.Diff(want, counted(found)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// What was noted, with a few rows to look at.
	got := query(t, db, "SELECT compared, missing, differing, differences->>'price', jsonb_array_length(examples) FROM feature_store.skew_checks")
	if diff := cmp.Diff([][]string{{fmt.Sprint(int64(len(all)) - n), "1", "9", "3", "5"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var example string
	if err := db.QueryRow(t.Context(), "SELECT examples->0 FROM feature_store.skew_checks").Scan(&example); err != nil {
		t.Fatal(err)
	}
	var e struct {
		Hash   string            `json:"record_hash"`
		Values map[string][2]any `json:"served_and_recomputed"`
	}
	if err := json.Unmarshal([]byte(example), &e); err != nil || len(e.Hash) != 64 || len(e.Values) != features.Count {
		t.Errorf("example %s: %v", example, err)
	}
}

// While loads are stuck before gold, ranks there are too low: no skew, and not
// equal either.
func TestCompare_withholdsItsVerdictWhileLoadsAreStuck(t *testing.T) {
	db, s, all := world(t)
	if _, err := db.Exec(t.Context(), `UPDATE etl.loads SET stage = 'silver', loaded_at = now() - interval '1 hour';
		UPDATE feature_store.streaming_features SET activity_count = activity_count + 1 WHERE event_type = 'cart'`); err != nil {
		t.Fatal(err)
	}
	carts := int64(0)
	for _, truth := range all {
		if !truth.deleted && truth.first.Type == "cart" {
			carts++
		}
	}
	n := deleted(all)
	if diff := cmp.Diff(map[string]int64{"equal": int64(len(all)) - n - carts, "deleted": n, "unsettled": carts}, counted(compare(t, s))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Portions follow each other, whole batches at a time, and what fell behind too far
// is left out.
func TestCompare_goesOnWhereItEnded(t *testing.T) {
	db, s, all := world(t)
	s.upkeep.config.SkewRows = 20
	// Batches of ten a second apart, the oldest too old.
	if _, err := db.Exec(t.Context(), `WITH numbered AS (SELECT record_hash, (row_number() OVER (ORDER BY record_hash) - 1) / 10 AS batch FROM feature_store.streaming_features)
		UPDATE feature_store.streaming_features s SET created_timestamp = CASE batch WHEN 0 THEN created_timestamp - interval '2 hours' ELSE created_timestamp - interval '1 minute' + batch * interval '1 s' END
		FROM numbered n WHERE n.record_hash = s.record_hash`); err != nil {
		t.Fatal(err)
	}
	var portions []int64
	for {
		found := compare(t, s)
		if found == nil {
			break
		}
		portions = append(portions, found.Equal+found.Deleted)
	}
	want := []int64{}
	for left := int64(len(all)) - 10; left > 0; left -= 20 {
		want = append(want, min(left, 20))
	}
	if diff := cmp.Diff(want, portions); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s.upkeep.config.SkewLag = time.Hour
	handle(t, s, ready(&features.Event{Time: served, Type: "view", Session: "new", Price: 1}, 1))
	if found := compare(t, s); found != nil {
		t.Errorf("a row was compared before its time: %+v", found)
	}
}

func TestTick_comparesAndDeletesWhatIsOld(t *testing.T) {
	db, s, all := world(t)
	s.upkeep.config.FeaturesRetention = 24 * time.Hour
	if _, err := db.Exec(t.Context(), `UPDATE feature_store.streaming_features SET created_timestamp = created_timestamp - interval '25 hours' WHERE event_type = 'view'`); err != nil {
		t.Fatal(err)
	}
	views := 0
	for _, truth := range all {
		if truth.first.Type == "view" {
			views++
		}
	}
	if diff := cmp.Diff([]int{200, 200}, handle(t, s, tick(), tick())); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if got := stored(t, db); len(got) != len(all)-views {
		t.Errorf("%d rows are left of %d with %d old ones", len(got), len(all), views)
	}
	if got := query(t, db, "SELECT compared + deleted FROM feature_store.skew_checks"); len(got) != 1 || got[0][0] != fmt.Sprint(len(all)-views) {
		t.Errorf("compared: %v", got)
	}
}

func TestUpkeepConfig_isChecked(t *testing.T) {
	good := UpkeepConfig{SkewLag: time.Minute, SkewCatchUp: time.Hour, SkewRows: 1, FeaturesRetention: 24 * time.Hour}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*UpkeepConfig){
		func(c *UpkeepConfig) { c.SkewLag = -1 }, func(c *UpkeepConfig) { c.SkewCatchUp = 0 }, func(c *UpkeepConfig) { c.SkewRows = -1 },
		func(c *UpkeepConfig) { c.FeaturesRetention = -1 }, func(c *UpkeepConfig) { c.FeaturesRetention = time.Hour },
	} {
		c := good
		change(&c)
		if c.check() == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

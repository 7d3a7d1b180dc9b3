package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// The view that recomputes features is SQL that was written once, in a migration;
// the definition of the features is in Go. They have to say the same.
func TestRecomputedFeatures_areThoseOfTheDefinition(t *testing.T) {
	names, err := filepath.Glob("../../shared/warehouse/migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	var view string // as the last migration that has it
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, v, ok := strings.Cut(string(text), "VIEW feature_store.recomputed_features AS"); ok {
			view, _, _ = strings.Cut(v, ";")
		}
	}
	for _, f := range features.All() {
		if want := "\n       " + f.SQL + " AS " + f.Name; !strings.Contains(view, want+",") && !strings.Contains(view, want+"\n") {
			t.Errorf("the view has no %q: a feature that changes needs a migration", strings.TrimSpace(want))
		}
	}
	if got := strings.Count(view, "\n       f.") + strings.Count(view, "\n       nullif") + strings.Count(view, "\n       extract"); got < features.Count {
		t.Errorf("the view has %d features, the definition %d", got, features.Count)
	}
}

// sets of parameters of the training set.
type parameters struct {
	asOf, since time.Time
	settled     time.Duration
}

// expected is the training set by the rules, one row at a time.
func expected(all map[string]*truth, served map[string]features.Vector, p parameters) [][]string {
	rows := [][]string{}
	for hash, t := range all {
		f := t.first
		if t.deleted || f.Type != "cart" || !f.arrived.After(p.since) || f.arrived.After(p.asOf.Add(-p.settled)) {
			continue
		}
		bought := 0
		for _, o := range all {
			if o.first.Type == "purchase" && !o.deleted && o.first.Session == f.Session && o.first.ProductID == f.ProductID &&
				o.first.position() > f.position() && !o.first.arrived.After(p.asOf) {
				bought = 1
			}
		}
		values, source := features.Of(&f.Event, t.rank), "recomputed"
		if v, ok := served[hash]; ok {
			values, source = v, "served"
		}
		row := []string{hash, f.Time.Format(time.RFC3339Nano), f.arrived.Format(time.RFC3339Nano), f.Session, fmt.Sprint(f.UserID), fmt.Sprint(f.ProductID)}
		for _, v := range values {
			if v.Null() {
				row = append(row, "NULL")
			} else {
				row = append(row, fmt.Sprint(v.Any()))
			}
		}
		rows = append(rows, append(row, fmt.Sprint(bought), source))
	}
	slices.SortFunc(rows, slices.Compare)
	return rows
}

func trainingSet(t testing.TB, db *warehouse.DB, p parameters) [][]string {
	t.Helper()
	rows := query(t, db, `SELECT record_hash, event_timestamp, arrived_at, user_session, user_id, product_id,
		`+strings.Join(featureNames(), ", ")+`, is_purchased, source FROM feature_store.training_set($1, $2, $3)`, p.asOf, p.since, p.settled)
	slices.SortFunc(rows, slices.Compare)
	return rows
}

// The training set is what the rules say, for random streams, at any time that it is
// asked about; and what arrives later changes nothing of an earlier set but by deletes.
func TestTrainingSet_isWhatTheRulesSay(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		db, _ := open(t)
		s := start(t, db)
		var records []record
		for partition := range int32(3) {
			records = append(records, shopStream(rng, partition, 150)...)
		}
		all := truths(records)
		// Some events were served, with values that show it.
		served := map[string]features.Vector{}
		var batch []event.Event
		for hash, truth := range all {
			if rng.IntN(2) == 0 {
				e := truth.first.Event
				e.Brand, e.Price = "served", 0.25
				if e.Time.Second()%2 == 0 {
					e.Brand = ""
				}
				served[hash] = features.Of(&e, 77)
				m := features.OfEvent(&e, truth.first.Hash(), 77, truth.first.arrived)
				batch = append(batch, readyData(m.AppendJSON(nil)))
			}
		}
		if statuses := handle(t, s, batch...); slices.Max(statuses) != 200 {
			t.Fatalf("statuses %v", statuses)
		}
		load(t, db, records)
		end := arrival.Add(200 * time.Second)
		rows, ones, bySource := 0, 0, map[string]int{}
		for range 20 {
			p := parameters{asOf: arrival.Add(time.Duration(rng.IntN(300)) * time.Second)}
			if rng.IntN(2) == 0 {
				p.since = arrival.Add(time.Duration(rng.IntN(100)) * time.Second)
			}
			if rng.IntN(2) == 0 {
				p.settled = time.Duration(rng.IntN(60)) * time.Second
			}
			want, got := expected(all, served, p), trainingSet(t, db, p)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("seed %d, %+v (-want +got):\n%s", seed, p, diff)
			}
			rows += len(got)
			for _, row := range got {
				bySource[row[len(row)-1]]++
				if row[len(row)-2] == "1" {
					ones++
				}
			}
		}
		if rows == 0 || ones == 0 || ones == rows || len(bySource) != 2 {
			t.Errorf("seed %d shows little: %d rows, %d bought, %v", seed, rows, ones, bySource)
		}
		// What arrives later of the same sessions.
		before := trainingSet(t, db, parameters{asOf: end})
		later := slices.Clone(records)
		for partition := range int32(3) {
			for _, r := range shopStream(rng, partition, 100) {
				// No deletes, and nothing that was deleted and now comes back.
				if r.offset, r.arrived = r.offset+1_000_000, end.Add(time.Second); r.Op != "d" && (all[r.hash()] == nil || !all[r.hash()].deleted) {
					later = append(later, r)
				}
			}
		}
		load(t, db, later)
		if diff := cmp.Diff(before, trainingSet(t, db, parameters{asOf: end})); diff != "" {
			t.Errorf("seed %d: what arrived later changed the set (-before +after):\n%s", seed, diff)
		}
	}
}

// An event is in a topic that was deleted and filled again a second time, at its old
// place.
func TestTrainingSet_hasAnEventOnceThoughItsTopicBeganAgain(t *testing.T) {
	db, _ := open(t)
	first := record{Event: features.Event{Time: arrival, Type: "cart", Session: "s", Price: 1}, offset: 3, arrived: arrival}
	again := first
	again.arrived = arrival.Add(time.Hour)
	load(t, db, []record{again, first})
	if got := trainingSet(t, db, parameters{asOf: arrival.Add(2 * time.Hour)}); len(got) != 1 || got[0][2] != "2026-03-01T00:00:00Z" {
		t.Errorf("got %v", got)
	}
}

func TestTrainingSet_defaultsToNow(t *testing.T) {
	db, _ := open(t)
	load(t, db, []record{{Event: features.Event{Time: arrival, Type: "cart", Session: "s", Price: 1}, offset: 3, arrived: arrival}})
	if got := query(t, db, `SELECT is_purchased, source FROM feature_store.training_set()`); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	if got := query(t, db, `SELECT 1 FROM feature_store.training_set(settled => '10 years')`); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

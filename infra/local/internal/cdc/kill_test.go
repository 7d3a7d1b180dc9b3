package cdc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// writers change the table: each inserts rows, raises their price by one at a time,
// and deletes some, so that a change that is missing from the records leaves a gap
// in the prices of its row.
type writers struct {
	w       *world
	changes atomic.Int64
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

// write starts writers. They pause between two transactions, so that a slow capture
// does not find ever more to do.
func (w *world) write(n int) *writers { w.Helper(); return w.writeEvery(n, 5*time.Millisecond) }

// writeEvery is write with another pause.
func (w *world) writeEvery(n int, pause time.Duration) *writers {
	w.Helper()
	ctx, cancel := context.WithCancel(w.Context())
	l := &writers{w: w, cancel: cancel}
	for i := range n {
		dice := rand.New(rand.NewPCG(uint64(i), 1))
		l.done.Go(func() { l.run(ctx, i, dice, pause) })
	}
	w.Cleanup(l.stop)
	return l
}

func (l *writers) run(ctx context.Context, writer int, dice *rand.Rand, pause time.Duration) {
	var mine []string
	for n := 0; ctx.Err() == nil; n++ {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		err := pgx.BeginFunc(context.WithoutCancel(ctx), l.w.db, func(tx pgx.Tx) error {
			for range 1 + dice.IntN(4) {
				name := fmt.Sprintf("w%d-%d-%d", writer, n, dice.Uint32())
				var err error
				switch d := dice.IntN(10); {
				case len(mine) == 0 || d < 4:
					_, err = tx.Exec(ctx, insert, name, 0)
					mine = append(mine, name)
				case d < 9:
					_, err = tx.Exec(ctx, `UPDATE events SET price = price + 1 WHERE user_session = $1`, mine[dice.IntN(len(mine))])
				default:
					i := dice.IntN(len(mine))
					_, err = tx.Exec(ctx, `DELETE FROM events WHERE user_session = $1`, mine[i])
					mine = append(mine[:i], mine[i+1:]...)
				}
				if err != nil {
					return err
				}
				l.changes.Add(1)
			}
			return nil
		})
		if err != nil {
			if ctx.Err() == nil {
				l.w.Errorf("writing: %v", err)
			}
			return
		}
	}
}

// until waits for that many more changes.
func (l *writers) until(n int64) {
	l.w.Helper()
	goal := l.changes.Load() + n
	l.w.eventually("the writers", func() bool { return l.changes.Load() >= goal })
}

func (l *writers) stop() { l.cancel(); l.done.Wait() }

// settled waits until the capture has confirmed all that was written.
func (w *world) settled() {
	w.Helper()
	now := w.text("SELECT pg_current_wal_insert_lsn()::text")
	w.eventually("that everything is captured", func() bool {
		return w.text("SELECT (confirmed_flush_lsn >= $2::pg_lsn)::text FROM pg_replication_slots WHERE slot_name = $1", w.slot(), now) == "true"
	})
}

// checkHistory compares the records with the table, and looks for gaps in what
// became of each row. Records whose id came before are left out, as consumers may.
func (w *world) checkHistory(snapshot bool) (twice int) {
	w.Helper()
	seen := map[string]bool{}
	rows := map[string]int64{} // price by session; absent when deleted
	gone := map[string]bool{}
	problems := 0
	problem := func(format string, args ...any) {
		if problems++; problems < 10 {
			w.Errorf(format, args...)
		}
	}
	price := func(row map[string]any) int64 {
		n, err := strconv.ParseInt(fmt.Sprint(row["price"]), 10, 64)
		if err != nil {
			w.Fatalf("row %v: %v", row, err)
		}
		return n
	}
	for _, e := range w.records() {
		if e.ID == "" {
			w.Fatalf("record %d has no id", e.Offset)
		}
		if seen[e.ID] {
			twice++
			continue
		}
		seen[e.ID] = true
		session := fmt.Sprint(e.Key["user_session"])
		if e.Dropped {
			continue
		}
		have, known := rows[session]
		switch e.Op {
		case "r":
			if !snapshot {
				problem("a snapshot holds %s", session)
			}
			// One that was interrupted is replaced by the next.
			if mark := fmt.Sprint(e.Source["snapshot"]); mark == "first" {
				clear(rows)
			}
			rows[session] = price(e.After)
		case "c":
			if known || gone[session] {
				problem("%s is created twice", session)
			}
			rows[session] = price(e.After)
		case "u":
			if !known || price(e.After) != have+1 || price(e.Before) != have {
				problem("%s has price %d (known: %t) and is updated from %v to %v", session, have, known, e.Before["price"], e.After["price"])
			}
			rows[session] = price(e.After)
		case "d":
			if !known || price(e.Before) != have {
				problem("%s has price %d (known: %t) and is deleted with %v", session, have, known, e.Before["price"])
			}
			delete(rows, session)
			gone[session] = true
		}
	}
	result, err := w.db.Query(w.Context(), "SELECT user_session, price::bigint FROM events")
	if err != nil {
		w.Fatal(err)
	}
	want := map[string]int64{}
	var session string
	var p int64
	if _, err := pgx.ForEachRow(result, []any{&session, &p}, func() error { want[session] = p; return nil }); err != nil {
		w.Fatal(err)
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		w.Errorf("rows (-table +records):\n%.2000s", diff)
	}
	return twice
}

// A capture that is killed at any moment, also during its snapshot, loses nothing.
// CDC_KILLS says how often it is killed.
func TestKilled_nothingIsLost(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	w.exec(`INSERT INTO events SELECT '2019-10-01 00:00:00+00', 'view', 1, 2, 'a.b', NULL, 0, 3, 'old' || i FROM generate_series(1, 3000) i`)
	kills := 6
	if n, err := strconv.Atoi(os.Getenv("CDC_KILLS")); err == nil {
		kills = n
	}
	dice := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	writers := w.write(3)
	for range kills {
		started := w.log.count("msg=capturing")
		kill := w.process()
		if dice.IntN(3) > 0 {
			w.eventually("that it captures", func() bool { return w.log.count("msg=capturing") > started })
			writers.until(dice.Int64N(400))
		} else {
			// At its start, wherever it is by then.
			writers.until(dice.Int64N(100))
		}
		kill()
	}
	w.process()
	writers.until(100)
	writers.stop()
	// There is no slot before a snapshot is complete.
	w.eventually("the slot", func() bool {
		return w.text("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", w.slot()) == "1"
	})
	w.settled()
	twice := w.checkHistory(true)
	t.Logf("%d kills, %d changes, %d records twice, snapshots: %d", kills, writers.changes.Load(), twice, w.log.count("the snapshot is complete"))
}

package cdc

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-dev/millrace/shared/contract"
)

const createEvents = `CREATE TABLE public.events (
	event_time timestamptz, event_type varchar(50), product_id bigint, category_id bigint, category_code varchar(255),
	brand varchar(255), price double precision, user_id bigint, user_session varchar(255), PRIMARY KEY (user_session, event_time));
	ALTER TABLE public.events REPLICA IDENTITY FULL;`

// insert adds a row whose price is also its version.
const insert = `INSERT INTO events VALUES ('2019-10-01 00:00:00+00', 'view', 1, 2053013558920217191, 'a.b', NULL, $2, 3, $1)`

func (w *world) briefs(n int, columns ...string) []string {
	w.Helper()
	w.eventually(fmt.Sprintf("%d records", n), func() bool { return len(w.records()) >= n })
	var lines []string
	for _, e := range w.records() {
		lines = append(lines, e.brief(columns...))
	}
	return lines
}

func TestCapture_everyKindOfChange(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	for i, s := range []string{"a", "b", "c"} {
		w.exec(insert, s, i+1)
	}
	stop := w.capture()
	w.eventually("the snapshot", func() bool { return len(w.records()) == 3 })
	w.exec(insert, "d", 4)
	w.exec(`UPDATE events SET price = 5 WHERE user_session = 'd'`)
	w.exec(`DELETE FROM events WHERE user_session = 'a'`)
	w.exec(`UPDATE events SET user_session = 'e' WHERE user_session = 'b'`)
	w.exec(`BEGIN; UPDATE events SET price = 6 WHERE user_session = 'c'; ROLLBACK`)
	w.exec(`BEGIN; UPDATE events SET price = 7 WHERE user_session = 'c'; SAVEPOINT s; UPDATE events SET price = 8; ROLLBACK TO s;
		DELETE FROM events WHERE user_session = 'd'; COMMIT`)
	w.exec(`TRUNCATE events`)
	w.exec(insert, "f", 9)

	k := func(s string) string {
		return `{"event_time":"2019-10-01T00:00:00.000000Z","user_session":"` + s + `"}`
	}
	want := []string{
		"r " + k("a") + " - a,1 first",
		"r " + k("b") + " - b,2 true",
		"r " + k("c") + " - c,3 last",
		"c " + k("d") + " - d,4",
		"u " + k("d") + " d,4 d,5",
		"d " + k("a") + " a,1 -",
		"tombstone " + k("a"),
		"d " + k("b") + " b,2 -",
		"tombstone " + k("b"),
		"c " + k("e") + " - e,2",
		"u " + k("c") + " c,3 c,7",
		"d " + k("d") + " d,5 -",
		"tombstone " + k("d"),
		"c " + k("f") + " - f,9",
	}
	if diff := cmp.Diff(want, w.briefs(len(want), "user_session", "price")); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	stop()
	if n := w.log.count("was truncated"); n != 1 {
		t.Errorf("the log speaks of %d truncations, want 1", n)
	}

	contracts, err := contract.Load(contract.Embedded())
	if err != nil {
		t.Fatal(err)
	}
	stream, _ := contracts.ByTopic(topic)
	for _, e := range w.records() {
		v := stream.Check(e.Value, time.Now())
		if e.Dropped {
			if v.Outcome != contract.Skipped {
				t.Errorf("a tombstone gets %v", v.Outcome)
			}
			continue
		}
		if v.Outcome != contract.Valid || v.Op != e.Op || v.LSN != fmt.Sprint(e.Source["lsn"]) || v.Key == "" {
			t.Errorf("verdict %v (%s), op %s, lsn %s, key %q of %s", v.Outcome, v.ErrorMessage, v.Op, v.LSN, v.Key, e.Value)
		}
	}
	for _, e := range w.records()[7:10] {
		if !e.Dropped && e.Op == "d" && e.NewKey != `{"user_session":"e","event_time":"2019-10-01T00:00:00.000000Z"}` {
			t.Errorf("the old row's record names the new key as %q", e.NewKey)
		}
		if e.Op == "c" && e.OldKey != `{"user_session":"b","event_time":"2019-10-01T00:00:00.000000Z"}` {
			t.Errorf("the new row's record names the old key as %q", e.OldKey)
		}
	}
}

// What happens while the capture is away comes when it is back, and nothing comes
// again that was confirmed or is at the end of the topic.
func TestCapture_goesOn(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	stop := w.capture()
	w.eventually("the capture", func() bool { return w.log.count("msg=capturing") == 1 })
	w.exec(insert, "a", 1)
	w.eventually("the first record", func() bool { return len(w.records()) == 1 })
	stop()
	w.exec(insert, "b", 2)
	w.exec(`DELETE FROM events WHERE user_session = 'a'`)
	stop = w.capture()
	w.eventually("four records", func() bool { return len(w.records()) >= 4 })
	stop()
	stop = w.capture()
	w.exec(insert, "c", 3)
	var got []string
	w.eventually("the last record", func() bool {
		got = nil
		for _, e := range w.records() {
			got = append(got, strings.Fields(e.brief("user_session"))[0])
		}
		return len(got) >= 5
	})
	stop()
	if diff := cmp.Diff([]string{"c", "c", "d", "tombstone", "c"}, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestCapture_newColumn(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	w.capture()
	w.eventually("the capture", func() bool { return w.log.count("msg=capturing") == 1 })
	w.exec(insert, "a", 1)
	w.exec(`ALTER TABLE events ADD COLUMN note text`)
	w.exec(`UPDATE events SET note = 'new'`)
	w.exec(`ALTER TABLE events DROP COLUMN note`)
	w.exec(insert, "b", 2)
	got := w.briefs(3, "user_session", "note")
	for i, line := range got {
		got[i] = line[strings.Index(line, "} ")+2:]
	}
	if diff := cmp.Diff([]string{"- a,(absent)", "a,null a,new", "- b,(absent)"}, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	for i, e := range w.records() {
		if has := strings.Contains(string(e.Schema), `{"type":"string","optional":true,"field":"note"}`); has != (i == 1) {
			t.Errorf("record %d: the schema has the new column: %t", i, has)
		}
	}
}

// A value that is stored out of line and did not change is not in the log.
func TestCapture_unchangedLongValue(t *testing.T) {
	for _, c := range []struct{ identity, want string }{
		{"FULL", "long"}, // of the old row, which is there as a whole
		{"DEFAULT", placeholder},
	} {
		t.Run(c.identity, func(t *testing.T) {
			w := newWorld(t)
			w.exec(`CREATE TABLE public.events (id int PRIMARY KEY, n int, long text); ALTER TABLE events ALTER long SET STORAGE EXTERNAL`)
			w.exec(`ALTER TABLE events REPLICA IDENTITY ` + c.identity)
			w.capture()
			w.eventually("the capture", func() bool { return w.log.count("msg=capturing") == 1 })
			w.exec(`INSERT INTO events VALUES (1, 1, repeat('long', 5000))`)
			w.exec(`UPDATE events SET n = 2`)
			w.eventually("two records", func() bool { return len(w.records()) == 2 })
			got := fmt.Sprint(w.records()[1].After["long"])
			if got = strings.ReplaceAll(got, strings.Repeat("long", 5000), "long"); got != c.want {
				t.Errorf("the value is %.80q, want %q", got, c.want)
			}
		})
	}
}

// A row that no consumer could be given becomes a record without it, and the next
// ones come.
func TestCapture_rowTooLong(t *testing.T) {
	w := newWorld(t)
	w.exec(`CREATE TABLE public.events (id int PRIMARY KEY, long text)`)
	w.capture()
	w.eventually("the capture", func() bool { return w.log.count("msg=capturing") == 1 })
	w.exec(`INSERT INTO events VALUES (1, repeat('x', 2000000)), (2, 'y')`)
	if diff := cmp.Diff([]string{`c {"id":1} - -`, `c {"id":2} - y`}, w.briefs(2, "long")); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// The table of a shop may be dropped and made again.
func TestCapture_tableMadeAgain(t *testing.T) {
	w := newWorld(t)
	w.capture() // before there is a table
	w.eventually("that the capture waits", func() bool { return w.log.count("waiting for the table") == 1 })
	w.exec(createEvents)
	w.exec(insert, "a", 1)
	w.eventually("the first row", func() bool { return len(w.records()) == 1 })
	w.exec(`DROP TABLE events`)
	w.exec(createEvents)
	w.exec(insert, "b", 2)
	w.eventually("the second table's row", func() bool { return len(w.records()) == 2 })
	if got := w.records()[1].brief("user_session"); !strings.HasSuffix(got, " - b last") || !strings.HasPrefix(got, "r ") {
		t.Errorf("the second table's row comes as %s, want a snapshot", got)
	}
}

// The server is told to forget a change only once Kafka has it.
func TestCapture_confirmsWhatKafkaHas(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	w.capture()
	w.eventually("the capture", func() bool { return w.log.count("msg=capturing") == 1 })
	confirmed := func() pglogrepl.LSN {
		lsn, err := pglogrepl.ParseLSN(w.text("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.slot()))
		if err != nil {
			t.Fatal(err)
		}
		return lsn
	}

	release := make(chan struct{})
	w.kafka.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		w.kafka.KeepControl()
		w.kafka.SleepControl(func() { <-release })
		return nil, nil, false
	})
	before, err := pglogrepl.ParseLSN(w.text("SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		t.Fatal(err)
	}
	w.exec(insert, "a", 1)
	// The capture reports once a second: let it have had the chance.
	reply := func() string {
		return w.text("SELECT coalesce(max(reply_time)::text, 'none') FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE slot_name = $1", w.slot())
	}
	for range 2 {
		last := reply()
		w.eventually("another report to the server", func() bool { return reply() != last })
	}
	if got := confirmed(); got > before {
		t.Errorf("confirmed up to %s, want at most %s, where the row was written that Kafka does not have", got, before)
	}
	close(release)
	w.eventually("the confirmation", func() bool { return confirmed() > before })
	if n := len(w.records()); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

// A capture that was away for longer than the server keeps its log says so and
// starts with a new snapshot.
func TestCapture_lostSlot(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	stop := w.capture()
	w.exec(insert, "a", 1)
	w.exec(insert, "b", 2)
	w.eventually("two records", func() bool { return len(w.records()) == 2 })
	stop()
	w.exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`)
	w.exec(`SELECT pg_reload_conf()`)
	t.Cleanup(func() {
		if _, err := w.db.Exec(t.Context(), `ALTER SYSTEM RESET max_slot_wal_keep_size`); err == nil {
			_, _ = w.db.Exec(t.Context(), `SELECT pg_reload_conf()`)
		}
	})
	w.exec(`UPDATE events SET price = 3 WHERE user_session = 'a'`)
	w.exec(`DELETE FROM events WHERE user_session = 'b'`)
	w.eventually("the loss of the slot", func() bool {
		w.exec(`SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'cdc', 'x')`)
		w.exec(`CHECKPOINT`)
		return w.text("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", w.slot()) == "lost"
	})
	w.capture()
	w.eventually("the new snapshot", func() bool { return len(w.records()) == 3 })
	w.exec(insert, "c", 4)
	if got := w.briefs(4, "user_session", "price"); !strings.HasSuffix(got[2], " - a,3 last") || !strings.HasSuffix(got[3], " - c,4") {
		t.Errorf("after the loss come %s and %s, want the row's last state and what follows", got[2], got[3])
	}
	if w.log.count("has removed log that was not captured yet") != 1 {
		t.Error("the log does not say that changes were lost")
	}
}

// A snapshot and the stream meet without a gap and without a change twice, whatever
// is written meanwhile.
func TestCapture_snapshotUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	w.exec(`INSERT INTO events SELECT '2019-10-01 00:00:00+00', 'view', 1, 2, 'a.b', NULL, 0, 3, 'old' || i FROM generate_series(1, 4000) i`)
	writers := w.write(3)
	w.capture()
	w.eventually("the snapshot", func() bool { return w.log.count("the snapshot is complete") == 1 })
	writers.until(500)
	writers.stop()
	w.settled()
	w.checkHistory(true)
}

func TestRun_refusesWhatCannotWork(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"table", func(c *Config) { c.Table = "events" }, "it has to be schema.table"},
		{"address", func(c *Config) { c.DatabaseURL = "postgres://%" }, "reading the database's address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config("postgres:///x", "127.0.0.1:1")
			c.change(&cfg)
			if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// commitOf is where in the log the transaction of an id was committed.
func commitOf(t *testing.T, id string) uint64 {
	t.Helper()
	place := id[strings.LastIndexByte(id, ' ')+1:]
	lsn, err := strconv.ParseUint(place[:strings.IndexByte(place, '/')], 10, 64)
	if err != nil {
		t.Fatalf("id %q: %v", id, err)
	}
	return lsn
}

func TestCapture_recordsComeInTheOrderOfCommits(t *testing.T) {
	w := newWorld(t)
	w.exec(createEvents)
	w.capture()
	w.eventually("the capture", func() bool { return w.log.count("msg=capturing") == 1 })
	writers := w.write(4)
	writers.until(300)
	writers.stop()
	w.settled()
	var commits []uint64
	ids := map[string]bool{}
	for _, e := range w.records() {
		commits = append(commits, commitOf(t, e.ID))
		if ids[e.ID] {
			t.Errorf("id %s is there twice", e.ID)
		}
		ids[e.ID] = true
	}
	if !slices.IsSorted(commits) {
		t.Error("records are not in the order of their commits")
	}
}

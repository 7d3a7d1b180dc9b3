package cdc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/millrace-dev/millrace/shared/contract"
)

// debezium is a real one: Kafka Connect with the connector of infra/debezium.
type debezium struct {
	*world
	script string
	dir    string
	env    []string
	rest   string

	cmd  *exec.Cmd
	done chan struct{}
}

// newDebezium prepares one that captures w's database into w's Kafka. The test is
// skipped, with the reason, where there is none to be had.
func newDebezium(w *world) *debezium {
	w.Helper()
	script, err := filepath.Abs("../../../debezium/connect.sh")
	if err != nil {
		w.Fatal(err)
	}
	out, err := exec.Command(script, "fetch").CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		w.Skip(strings.TrimSpace(string(out)))
	}
	if err != nil {
		w.Fatalf("fetching Debezium: %v: %s", err, out)
	}
	parsed, err := pgx.ParseConfig(w.address)
	if err != nil {
		w.Fatal(err)
	}
	host, port := w.proxy(filepath.Join(parsed.Host, fmt.Sprint(".s.PGSQL.", parsed.Port)))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	restPort := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	d := &debezium{world: w, script: script, dir: w.TempDir(), rest: "http://127.0.0.1:" + restPort}
	d.env = append(os.Environ(), "CONNECT_BROKERS="+w.brokers, "CONNECT_PORT="+restPort,
		"DEBEZIUM_HOST="+host, "DEBEZIUM_PORT="+port, "DEBEZIUM_USER="+parsed.User, "DEBEZIUM_PASSWORD=none", "DEBEZIUM_DATABASE="+parsed.Database)
	w.Cleanup(func() {
		d.signal(syscall.SIGKILL)
		w.dropSlotNamed("millrace_debezium")
	})
	return d
}

// proxy lets a program that knows TCP only reach a server that listens on a socket.
func (w *world) proxy(socket string) (host, port string) {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", socket)
			if err != nil {
				_ = client.Close()
				continue
			}
			pipe := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_, _ = to.Close(), from.Close()
			}
			go pipe(server, client)
			go pipe(client, server)
		}
	}()
	host, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		w.Fatal(err)
	}
	return host, port
}

func (d *debezium) start() {
	d.Helper()
	d.cmd = exec.Command(d.script, "run", d.dir)
	d.cmd.Env, d.cmd.Stdout, d.cmd.Stderr = d.env, d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		d.Fatal(err)
	}
	done := make(chan struct{})
	d.done = done
	go func() { _ = d.cmd.Wait(); close(done) }()
}

// signal ends it, at once or cleanly.
func (d *debezium) signal(s syscall.Signal) {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(s)
	<-d.done
}

// running waits until the connector streams.
func (d *debezium) running() {
	d.Helper()
	d.eventually("that Debezium streams", func() bool {
		select {
		case <-d.done:
			d.Fatal("Kafka Connect has ended")
		default:
		}
		resp, err := http.Get(d.rest + "/connectors/cdc-postgresql/status")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var status struct {
			Tasks []struct{ State, Trace string }
		}
		if json.NewDecoder(resp.Body).Decode(&status) != nil || len(status.Tasks) == 0 {
			return false
		}
		if status.Tasks[0].State == "FAILED" {
			d.Fatalf("the connector has failed: %s", status.Tasks[0].Trace)
		}
		return status.Tasks[0].State == "RUNNING" &&
			d.text("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = 'millrace_debezium' AND active") == "1"
	})
}

func (d *debezium) restart() {
	d.Helper()
	resp, err := http.Post(d.rest+"/connectors/cdc-postgresql/restart?includeTasks=true", "application/json", nil)
	if err != nil {
		d.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		body, _ := io.ReadAll(resp.Body)
		d.Fatalf("restarting the connector: %s %s", resp.Status, body)
	}
}

// distinct leaves out records that are there twice, after a restart: what they say,
// and where in the log that stands, is the same. Debezium's have no id.
func distinct(list []event) (kept []event, twice int) {
	seen := map[string]bool{}
	for _, e := range list {
		if e.Dropped {
			continue // compared with the deletes that they follow
		}
		key, _ := json.Marshal([]any{e.Key, e.Op, e.Source["lsn"]})
		if e.Op == "r" {
			key, _ = json.Marshal([]any{e.Key, e.Op})
		}
		if seen[string(key)] {
			twice++
			continue
		}
		seen[string(key)] = true
		kept = append(kept, e)
	}
	return kept, twice
}

// moreTypes are columns of the types that both know, and rows of them.
const moreTypes = `
	ALTER TABLE events ADD tz3 timestamptz(3), ADD tz0 timestamptz(0), ADD ts timestamp, ADD ts3 timestamp(3), ADD d date, ADD t time, ADD t3 time(3),
		ADD ttz timetz, ADD u uuid, ADD j json, ADD jb jsonb, ADD x xml, ADD by bytea, ADD b bool, ADD i2 int2, ADD i4 int4, ADD f4 float4,
		ADD n numeric, ADD n2 numeric(10,2), ADD tx text, ADD bc char(5), ADD m mood, ADD c cents, ADD ip inet, ADD cd cidr, ADD mac macaddr,
		ADD o oid, ADD ch "char", ADD tsv tsvector, ADD r int4range;
	INSERT INTO events VALUES ('2019-10-01 00:00:00.123456+02', 'view', 1, 2, NULL, '', 9.99, 3, 'types1',
		'2019-10-01 00:00:00.120+02', '2019-10-01 00:00:00+02', '2019-10-01 00:00:00.123456', '2019-10-01 00:00:00.12', '2019-10-01', '01:02:03.45', '01:02:03.45',
		'01:02:03.45+02:30', 'A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": 1}', '{"a": 1}', '<a/>', '\x00ff10', true, 1, 2, 1.5,
		123.456, 12.3, E't"\\\n\t\u2028x', 'de', 'very, happy', 5, '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', 7, 'c', 'a b', '[1,5)');
	INSERT INTO events (event_time, user_session, event_type, ts, ts3, d, price, f4, n, t) VALUES
		('infinity', 'types2', 'view', 'infinity', '-infinity', 'infinity', 'NaN', 'Infinity', 'NaN', '00:00'),
		('-infinity', 'types3', 'view', '-infinity', NULL, '-infinity', '-Infinity', 1e-10, 1e30, '23:59:59.999999'),
		('0044-03-15 BC', 'types4', 'view', NULL, NULL, '0044-03-15 BC', 1e300, 0.1, 0.1, NULL),
		('12019-10-01 00:00:00+00', 'types5', 'view', '12019-10-01', NULL, '12019-10-01', 5e-324, 16777216, 12345678901234567890.123456789, NULL),
		('1815-01-01 00:00:00.1+00:19:32', 'types6', 'view', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999', '1900-01-01', 0.1, 3.4e38, 0, NULL);
	UPDATE events SET tx = 'other' WHERE user_session = 'types1';
	UPDATE events SET user_session = 'moved' WHERE user_session = 'types1';
	DELETE FROM events WHERE user_session LIKE 'types%' OR user_session = 'moved';`

// A real Debezium and the capture see the same changes, both restarted and killed
// meanwhile, and say the same of each, so that every record gets the same verdict.
func TestDebezium(t *testing.T) {
	if os.Getenv("TEST_DEBEZIUM") == "" {
		t.Skip("it takes a minute and needs Java and Maven: make test-debezium")
	}
	theirs := newWorld(t)
	d := newDebezium(theirs)
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	ours := *theirs
	ours.kafka, ours.brokers, ours.log = kafka, kafka.ListenAddrs()[0], &output{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the capture said:\n%s", ours.log)
		}
	})

	theirs.exec(createEvents)
	theirs.exec(`CREATE TYPE mood AS ENUM ('sad', 'ok', 'very, happy'); CREATE DOMAIN cents AS int`)
	theirs.exec(`INSERT INTO events SELECT '2019-10-01 00:00:00+00', 'view', 1, 2, 'a.b', NULL, 0, 3, 'old' || i FROM generate_series(1, 300) i`)
	kill := ours.process()
	d.start()
	d.running()
	for _, w := range []*world{theirs, &ours} {
		w.eventually("the snapshot", func() bool { return len(w.records()) >= 300 })
	}

	dice := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	// It forgets a snapshot of which it has not written down yet that it is complete.
	before := theirs.text("SELECT pg_current_wal_insert_lsn()::text")
	writers := theirs.writeEvery(2, 40*time.Millisecond)
	theirs.eventually("that Debezium keeps its offsets", func() bool {
		return theirs.text("SELECT (confirmed_flush_lsn > $1::pg_lsn)::text FROM pg_replication_slots WHERE slot_name = 'millrace_debezium'", before) == "true"
	})
	writers.until(100 + dice.Int64N(100))
	d.signal(syscall.SIGKILL)
	kill()
	writers.until(100)
	kill = ours.process()
	d.start()
	d.running()
	writers.until(100)
	d.restart()
	writers.until(100)
	d.running()
	writers.until(100)
	kill()
	d.signal(syscall.SIGTERM)
	writers.until(100)
	writers.stop()
	ours.process()
	d.start()
	d.running()
	// All kinds of changes and columns, in quiet: what the table is like now is then
	// what it was like at each change.
	caughtUp := func(session string) {
		theirs.exec(insert, session, 0)
		for _, w := range []*world{theirs, &ours} {
			w.eventually("the row "+session, func() bool {
				list := w.records()
				return len(list) > 0 && fmt.Sprint(list[len(list)-1].Key["user_session"]) == session
			})
		}
	}
	caughtUp("the writers' end")
	theirs.exec(moreTypes)
	caughtUp("the end")

	genuine, twice := distinct(theirs.records())
	mine, _ := distinct(ours.records())
	t.Logf("%d changes by the writers; Debezium: %d records and %d twice; the capture: %d records in all, %d distinct changes",
		writers.changes.Load(), len(genuine), twice, len(ours.records()), len(mine))
	compareChanges(t, genuine, mine)
	if a, b := tombstones(theirs.records()), tombstones(ours.records()); a != b {
		t.Errorf("keys with a tombstone: Debezium has %d, the capture %d", a, b)
	}
	compareTable(theirs, genuine)
}

// tombstones counts the keys that have one.
func tombstones(list []event) int {
	keys := map[string]bool{}
	for _, e := range list {
		if e.Dropped {
			key, _ := json.Marshal(e.Key)
			keys[string(key)] = true
		}
	}
	return len(keys)
}

// number brings the spellings of a number together: Java writes 1.0E21, Go 1e+21.
func number(v any) any {
	switch v := v.(type) {
	case json.Number:
		if f, err := v.Float64(); err == nil && strings.ContainsAny(v.String(), ".eE") {
			return json.Number(strconv.FormatFloat(f, 'g', -1, 64))
		}
	case map[string]any:
		for name, member := range v {
			v[name] = number(member)
		}
	}
	return v
}

func compareChanges(t *testing.T, genuine, mine []event) {
	t.Helper()
	contracts, err := contract.Load(contract.Embedded())
	if err != nil {
		t.Fatal(err)
	}
	stream, _ := contracts.ByTopic(topic)
	if len(genuine) != len(mine) {
		t.Errorf("Debezium has %d changes, the capture %d", len(genuine), len(mine))
	}
	valid, problems := 0, 0
	for i := range min(len(genuine), len(mine)) {
		a, b := genuine[i], mine[i]
		for _, e := range []*event{&a, &b} {
			number(e.Before)
			number(e.After)
			e.Offset, e.ID = 0, ""
			// Where the connector was before is not the same after other restarts.
			delete(e.Source, "sequence")
			if e.Op == "r" {
				// Two snapshots, at two moments.
				for _, name := range []string{"lsn", "txId", "ts_ms", "ts_us", "ts_ns"} {
					delete(e.Source, name)
				}
			}
			var schema any
			decode(t, e.Schema, &schema)
			e.Schema, err = json.Marshal(schema)
			if err != nil {
				t.Fatal(err)
			}
		}
		now := time.Now()
		va, vb := verdict(t, stream, a, now), verdict(t, stream, b, now)
		if va["valid"] == "VALID" {
			valid++
		}
		a.Value, b.Value = nil, nil
		if reflect.DeepEqual(a, b) && reflect.DeepEqual(va, vb) {
			continue
		}
		if problems++; problems <= 3 {
			t.Errorf("change %d and its verdict (-Debezium +capture):\n%s%s", i, cmp.Diff(a, b), cmp.Diff(va, vb))
		}
	}
	if problems > 0 {
		t.Errorf("%d changes differ", problems)
	}
	t.Logf("%d verdicts are the same, %d of them VALID", min(len(genuine), len(mine))-problems, valid)
}

// verdict is a record's verdict with its body taken apart.
func verdict(t *testing.T, stream *contract.Stream, e event, now time.Time) map[string]any {
	t.Helper()
	v := stream.Check(e.Value, now)
	var body map[string]any
	decode(t, v.Body, &body)
	number(body)
	for name, member := range map[string]any{"outcome": v.Outcome.String(), "key": v.Key, "type": v.Type, "time": v.Time.String(), "message": v.ErrorMessage} {
		body["verdict "+name] = member
	}
	if e.Op == "r" {
		delete(body, "lsn")
	} else {
		body["verdict lsn"] = v.LSN
	}
	return body
}

// compareTable holds Debezium's records, too, to the table.
func compareTable(w *world, list []event) {
	w.Helper()
	rows := map[string]string{}
	for _, e := range list {
		session := fmt.Sprint(e.Key["user_session"])
		if e.Op == "d" {
			delete(rows, session)
			continue
		}
		price, _ := strconv.ParseFloat(fmt.Sprint(e.After["price"]), 64)
		rows[session] = fmt.Sprint(price)
	}
	result, err := w.db.Query(w.Context(), "SELECT user_session, price FROM events")
	if err != nil {
		w.Fatal(err)
	}
	want := map[string]string{}
	var session string
	var price float64
	if _, err := pgx.ForEachRow(result, []any{&session, &price}, func() error { want[session] = fmt.Sprint(price); return nil }); err != nil {
		w.Fatal(err)
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		w.Errorf("rows (-table +Debezium's records):\n%.2000s", diff)
	}
}

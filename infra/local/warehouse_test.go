package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/online"
)

const readyTopic = "model.features.ready"

// goldTables are what a rebuild from the lake has to give again, with their order.
var goldTables = [][2]string{
	{"dwh.dim_user", "user_id"}, {"dwh.dim_product", "product_id"}, {"dwh.product_price_history", "product_id, price"},
	{"dwh.dim_category", "category_id"}, {"dwh.dim_date", "event_date"}, {"dwh.fact_events", "record_hash"},
	{"dwh.vw_ml_purchase_prediction", "record_hash"}, {"dwh.vw_user_session_summary", "user_id, user_session"},
}

// TestGoldAndFeaturesSurviveKills kills the parts between the lake and gold, and
// between validated events and features, at random moments under load. Then gold is
// what a rebuild from the lake gives, byte for byte, and the features that were served
// are those of a replay. CHAOS_ROUNDS and CHAOS_SEED are as in the other.
func TestGoldAndFeaturesSurviveKills(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	p.needDatabase()
	victims := []string{"postgres", "etl-step", "ingest", "runner", "featurize", "s3", "store"}
	if s, err := p.askStatus(); err != nil {
		t.Fatal(err)
	} else if !s.Features.InMemory {
		// One that keeps nothing loses ranks by design.
		victims = append(victims, "redis")
	}
	chaos(t, p, map[string]func(){}, "rows", victims...)
}

// needDatabase skips the test on a machine without PostgreSQL.
func (p *platformProcess) needDatabase() {
	p.t.Helper()
	s, err := p.askStatus()
	if err != nil {
		p.t.Fatal(err)
	}
	if reason := s.noWarehouse(); reason != "" {
		p.t.Skip(reason)
	}
}

// databaseURL is a database of the platform's PostgreSQL.
func (p *platformProcess) databaseURL(name string) string {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.state, "secrets.json"))
	var s secrets
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return (&url.URL{Scheme: "postgres", User: url.UserPassword(databaseName, s.PostgresPassword), Host: local(p.base + 3), Path: name}).String()
}

func (p *platformProcess) database(name string) *pgx.Conn {
	p.t.Helper()
	conn, err := pgx.Connect(running(p.t), p.databaseURL(name))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close(running(p.t)) })
	return conn
}

// objects are the lake's objects of valid verdicts, with their ETags.
func (l *ledger) objects() map[string]string {
	l.t.Helper()
	found := map[string]string{}
	for o, err := range l.p.store().List(running(l.t), buckets[validatedTopic], lake.Root, "") {
		if errors.Is(err, lake.ErrNotFound) {
			break
		}
		if err != nil {
			l.t.Fatalf("listing the lake: %v", err)
		}
		found[o.Key] = o.ETag
	}
	return found
}

// settleGold waits until every object of the lake has come through all steps.
func (l *ledger) settleGold() {
	l.t.Helper()
	want := l.objects()
	conn := l.p.database(databaseName)
	var state string
	eventually(l.t, "the lake is in gold", func() bool {
		rows, err := conn.Query(running(l.t), `SELECT key, coalesce(etag, ''), coalesce((SELECT string_agg(DISTINCT stage, ' ') FROM etl.loads AS l WHERE l.object_id = o.object_id), '') FROM etl.objects AS o`)
		if err != nil {
			l.t.Fatal(err)
		}
		var key, etag, stages string
		done := map[string]bool{}
		waiting := []string{}
		_, err = pgx.ForEachRow(rows, []any{&key, &etag, &stages}, func() error {
			if etag == want[key] && (stages == "checked" || stages == "") {
				done[key] = true
			} else {
				waiting = append(waiting, fmt.Sprint(key, " is at ", stages))
			}
			return nil
		})
		if err != nil {
			l.t.Fatal(err)
		}
		state = fmt.Sprintf("%d of %d objects; %s", len(done), len(want), strings.Join(waiting, ", "))
		return len(done) == len(want)
	}, func() string { return state })
}

// checkGold requires that gold has one row a distinct valid event, and that a rebuild
// from the lake alone gives the same bytes.
func (l *ledger) checkGold() {
	l.t.Helper()
	want := map[string]bool{}
	for _, record := range l.validated() {
		e := parsed(l.t, record)
		hash := e.Hash()
		want[hex.EncodeToString(hash[:])] = true
	}
	gold := l.p.database(databaseName)
	rows, err := gold.Query(running(l.t), `SELECT encode(record_hash, 'hex') FROM dwh.fact_events`)
	if err != nil {
		l.t.Fatal(err)
	}
	facts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		l.t.Fatal(err)
	}
	missing, foreign := 0, 0
	have := map[string]bool{}
	for _, hash := range facts {
		have[hash] = true
		if !want[hash] {
			foreign++
		}
	}
	for hash := range want {
		if !have[hash] {
			missing++
		}
	}
	if missing > 0 || foreign > 0 || len(facts) != len(have) {
		l.t.Errorf("gold has %d rows of %d events; %d of %d valid events are missing, %d are of none", len(facts), len(have), missing, len(want), foreign)
	}

	if _, err := gold.Exec(running(l.t), "CREATE DATABASE rebuild"); err != nil {
		l.t.Fatal(err)
	}
	l.rebuild("rebuild")
	before, after := dump(l.t, gold), dump(l.t, l.p.database("rebuild"))
	for _, table := range goldTables {
		if before[table[0]] != after[table[0]] {
			diff := cmp.Diff(strings.Split(after[table[0]], "\n"), strings.Split(before[table[0]], "\n"))
			l.t.Errorf("%s differs from a rebuild (-rebuilt +gold):\n%s", table[0], diff[:min(len(diff), 2000)])
		}
	}
	l.t.Logf("%d rows in gold, as in a rebuild", len(facts))
}

func dump(t *testing.T, conn *pgx.Conn) map[string]string {
	t.Helper()
	tables := map[string]string{}
	for _, table := range goldTables {
		var b bytes.Buffer
		if _, err := conn.PgConn().CopyTo(running(t), &b, fmt.Sprintf("COPY (SELECT * FROM %s ORDER BY %s) TO STDOUT", table[0], table[1])); err != nil {
			t.Fatal(err)
		}
		tables[table[0]] = b.String()
	}
	return tables
}

// rebuild brings every object of the lake through a second etl-step into an empty
// database, in another order than the first.
func (l *ledger) rebuild(database string) {
	l.t.Helper()
	port := freePorts(l.t, 1)
	cmd := exec.Command(filepath.Join(bin(l.t), "etl-step"))
	cmd.Env = cleanEnv("FUNCTION_NAME=etl-step", "LISTEN_HOST=127.0.0.1", "PORT="+strconv.Itoa(port), "LOG_LEVEL=error",
		"DATABASE_URL="+l.p.databaseURL(database), "S3_ENDPOINT=http://"+local(l.p.base+2), "S3_REGION="+defaultRegion,
		"S3_ACCESS_KEY="+defaultAccessKey, "S3_SECRET_KEY="+defaultSecretKey, "ETL_REPORTS_BUCKET=rebuild-reports")
	output := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	base := "http://" + local(port)
	eventually(l.t, "the second etl-step is ready", func() bool {
		resp, err := http.Get(base + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, output.String)
	objects := l.objects()
	keys := make([]string, 0, len(objects))
	for key := range objects { // in any order
		keys = append(keys, key)
	}
	for _, key := range keys {
		data := fmt.Sprintf(`{"s3":{"bucket":{"name":%q},"object":{"key":%q}}}`, buckets[validatedTopic], url.QueryEscape(key))
		m := events.Message{Data: []byte(data), Attrs: []events.Attr{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: "rebuild-" + key}, {Name: "source", Value: "minio:s3..lake"},
			{Name: "type", Value: events.ObjectPut}, {Name: "datacontenttype", Value: "application/json"},
		}}
		for next := &m; next != nil && next.Get("type") != events.GoldChecked; {
			next = l.post(base, next)
		}
	}
}

// post sends an event and returns the reply to it, nil when there is none.
func (l *ledger) post(to string, m *events.Message) *events.Message {
	l.t.Helper()
	req, err := http.NewRequestWithContext(running(l.t), http.MethodPost, to, bytes.NewReader(m.Data))
	if err != nil {
		l.t.Fatal(err)
	}
	events.SetHTTP(req.Header, m)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		l.t.Fatalf("%s of %s answered %s: %s", m.Get("type"), m.Get("id"), resp.Status, body)
	}
	if resp.Header.Get("Ce-Id") == "" {
		return nil
	}
	reply, err := events.FromHTTP(resp.Header, body)
	if err != nil {
		l.t.Fatal(err)
	}
	return &reply
}

// validated are the valid verdicts in the order of their partitions.
func (l *ledger) validated() []*kgo.Record {
	var all []*kgo.Record
	for _, records := range l.verdicts {
		for _, r := range records {
			if r.Topic == validatedTopic {
				all = append(all, r)
			}
		}
	}
	slices.SortFunc(all, func(a, b *kgo.Record) int {
		if a.Partition != b.Partition {
			return int(a.Partition - b.Partition)
		}
		return int(a.Offset - b.Offset)
	})
	return all
}

func parsed(t *testing.T, r *kgo.Record) features.Event {
	t.Helper()
	e, err := features.ParseEvent(r.Value)
	if err != nil {
		t.Fatalf("reading a validated event: %v", err)
	}
	return e
}

// checkFeatures requires that the features that were served are those of a replay of
// the validated topic: the same of each event however often it came, and each event's
// rank its place among the distinct events of its session.
func (l *ledger) checkFeatures() {
	l.t.Helper()
	want := map[[32]byte]features.Ready{}
	ranks := map[string]int64{}
	for _, record := range l.validated() {
		e := parsed(l.t, record)
		hash := e.Hash()
		if _, again := want[hash]; again {
			continue
		}
		ranks[e.Session]++
		want[hash] = features.OfEvent(&e, hash, ranks[e.Session], record.Timestamp)
	}
	served := map[[32]byte]features.Ready{}
	wrong := 0
	check := func(r *kgo.Record) {
		got, err := features.ParseReady(r.Value)
		if err != nil {
			l.t.Fatalf("reading features: %v", err)
		}
		expected, ok := want[got.RecordHash]
		got.ProcessedAt = expected.ProcessedAt
		if !ok || !bytes.Equal(expected.AppendJSON(nil), got.AppendJSON(nil)) {
			if wrong++; wrong <= 5 {
				l.t.Errorf("features (-replayed +served):\n%s", cmp.Diff(string(expected.AppendJSON(nil)), string(got.AppendJSON(nil))))
			}
		}
		served[got.RecordHash] = got
	}
	reader := l.p.kafka(kgo.ConsumeTopics(readyTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	var left int64
	seen := map[int32]int64{}
	eventually(l.t, "features of every event", func() bool {
		ends, err := kadm.NewClient(reader).ListEndOffsets(running(l.t), readyTopic)
		if err != nil {
			return false
		}
		for left = behind(ends, seen); left > 0; left = behind(ends, seen) {
			reader.PollFetches(running(l.t)).EachRecord(func(r *kgo.Record) {
				seen[r.Partition] = r.Offset + 1
				check(r)
			})
		}
		return len(served) >= len(want)
	}, func() string { return fmt.Sprintf("%d of %d", len(served), len(want)) })
	if wrong > 0 {
		l.t.Errorf("%d features are not those of a replay", wrong)
	}

	// The online store has each session's latest rank.
	store, err := online.Config{URL: "redis://" + local(l.p.base+4) + "/0", PoolSize: 2, Timeout: patience, FeatureTTL: time.Hour, SessionTTL: time.Hour}.Open()
	if err != nil {
		l.t.Fatal(err)
	}
	defer store.Close()
	bad := 0
	for sessions := range slices.Chunk(slices.Collect(maps.Keys(ranks)), 1000) {
		keys := make([]online.Key, len(sessions))
		for i, session := range sessions {
			keys[i] = online.Session(session)
		}
		rows, err := store.Get(running(l.t), keys)
		if err != nil {
			l.t.Fatal(err)
		}
		for i, session := range sessions {
			if got := rows[i].Features[features.ActivityCount]; !rows[i].Found || got.Null() || got.Int() != ranks[session] {
				if bad++; bad <= 5 {
					l.t.Errorf("session %s is %+v online, want rank %d", session, rows[i], ranks[session])
				}
			}
		}
	}
	if bad > 0 {
		l.t.Errorf("%d of %d sessions are not online as in a replay", bad, len(ranks))
	}
	l.t.Logf("%d features served, %d sessions online, as in a replay", len(served), len(ranks))
}

func behind(ends kadm.ListedOffsets, seen map[int32]int64) (n int64) {
	ends.Each(func(o kadm.ListedOffset) { n += max(0, o.Offset-seen[o.Partition]) })
	return n
}

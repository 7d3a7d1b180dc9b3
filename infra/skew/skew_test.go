package skew

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// The topics.
const (
	raw       = "tracking.raw_user_behavior"
	cdc       = "tracking_postgres_cdc.public.events"
	validated = "tracking.user_behavior.validated"
	served    = "model.features.ready"
	broker    = "knative-broker-millrace-default"
)

// row is an event of the shop as a producer writes it: JSON texts.
type row struct {
	at       time.Time
	kind     string
	session  string
	product  int
	user     int
	category string
	code     string
	brand    string
	price    string
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// payload writes the row with one of the spellings of its time.
func (r *row) payload(rng *rand.Rand, zoned bool) string {
	var at string
	switch n := rng.IntN(5); {
	case n == 0:
		at = quote(r.at.Format("2006-01-02T15:04:05.999999Z"))
	case n == 1 && r.at.Year() > 1 && r.at.Year() < 9999:
		at = quote(r.at.In(time.FixedZone("", 19800)).Format("2006-01-02 15:04:05.000000-0700"))
	case n == 2 && zoned && r.at.Year() > 1980 && r.at.Year() < 9999:
		at = strconv.FormatInt(r.at.UnixMicro(), 10)
	case !zoned && r.at.Nanosecond() == 0:
		at = quote(r.at.Format("2006-01-02 15:04:05 UTC"))
	default:
		at = quote(r.at.Format("2006-01-02 15:04:05.000000+0000"))
	}
	return fmt.Sprintf(`{"event_time":%s,"event_type":%s,"product_id":%d,"category_id":%s,"category_code":%s,"brand":%s,"price":%s,"user_id":%d,"user_session":%s}`,
		at, quote(r.kind), r.product, r.category, r.code, r.brand, r.price, r.user, quote(r.session))
}

const schema = `{"type":"struct","fields":[{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},` +
	`{"name":"product_id","type":"long"},{"name":"category_id","type":"long"},{"name":"category_code","type":["null","string"],"default":null},` +
	`{"name":"brand","type":["null","string"],"default":null},{"name":"price","type":"double"},{"name":"user_id","type":"long"},{"name":"user_session","type":"string"}]}`

// shop is the stream: what it has produced so far, and how much of it is what.
type shop struct {
	rng      *rand.Rand
	seed     uint64
	sessions int
	rows     []row // those of the tracking producer
	table    []row // those of the database
	n        int

	valid, invalid, deletes, again, late int
}

func (s *shop) one(list ...string) string { return list[s.rng.IntN(len(list))] }

func (s *shop) row() row {
	r := s.rng
	s.n++
	// A few sessions have most of the events. They go on for the whole stream.
	session := int(float64(s.sessions) * r.Float64() * r.Float64())
	at := time.Date(2026, 10, 30, 22, 0, 0, 0, time.UTC).Add(time.Duration(s.n) * 7 * time.Second)
	if r.IntN(5) == 0 {
		at = at.Add(-time.Duration(r.Int64N(int64(48 * time.Hour)))).Truncate(time.Second)
		s.late++
	}
	if r.IntN(4) == 0 {
		at = at.Add(time.Duration(r.IntN(1_000_000)) * time.Microsecond)
	}
	if r.IntN(50) == 0 {
		at = at.AddDate([]int{1, 1582, 1900, 1969, 2024, 9999}[r.IntN(6)]-at.Year(), 0, 0)
	}
	id := fmt.Sprintf("%08x-b344-41fc-8632-%012d", s.seed, session)
	if session%7 == 0 {
		id = []string{" ", "ü \"' \\ :{}", strings.Repeat("ü", 255), "0", "null"}[session/7%5] + id
		id = string([]rune(id)[:min(255, len([]rune(id)))])
	}
	user := 512900000 + session%20
	if session%11 == 0 {
		user = []int{0, -1, 1<<63 - 1, -1 << 63}[session/11%4]
	}
	category := "2053013558920217191"
	if r.IntN(3) == 0 {
		category = `"2053013558920217192"`
	}
	return row{
		at: at, kind: s.one("view", "view", "view", "cart", "cart", "purchase", "remove_from_cart"),
		session: id, product: r.IntN(30), user: user, category: category,
		code:  s.one("null", `""`, `"appliances.kitchen.hood"`, `"computers.notebook"`, `"kids"`, `".x.y"`, `"a..b"`, `"a."`, `"\u00fc.\"\\.z"`),
		brand: s.one("null", `""`, `"xiaomi"`, `"samsung"`, `" "`, `"`+strings.Repeat("ü", 255)+`"`, `"sam\"sung \\ \u00fc"`, `"ü'; --"`),
		price: s.one("0.1", "1029.37", "7", "1.05e2", "1E-7", "58.41", "123456.789012345", strconv.Itoa(1+r.IntN(900))+".99"),
	}
}

// next gives the next record.
func (s *shop) next() *kgo.Record {
	r := s.rng
	if r.IntN(6) == 0 {
		return s.change()
	}
	var e row
	if len(s.rows) > 0 && r.IntN(6) == 0 {
		// The same event again: as it was, in another spelling, or telling something else.
		e = s.rows[r.IntN(len(s.rows))]
		if r.IntN(2) == 0 {
			e.price, e.brand = "3.5", `"again"`
		}
		s.again++
	} else {
		e = s.row()
		s.rows = append(s.rows, e)
	}
	if r.IntN(15) == 0 {
		e.price = s.one("-100", "0", `"7"`, "null")
		s.invalid++
	} else {
		s.valid++
	}
	return &kgo.Record{Topic: raw, Key: []byte(e.session), Value: []byte(`{"schema":` + schema + `,"payload":` + e.payload(r, false) + `}`)}
}

// change gives the record of a changed row, whole or unwrapped.
func (s *shop) change() *kgo.Record {
	r := s.rng
	var e row
	var op string
	i := len(s.table)
	if i == 0 || r.IntN(2) == 0 {
		if len(s.rows) > 0 && r.IntN(4) == 0 {
			e = s.rows[r.IntN(len(s.rows))] // which the tracking producer has sent as well
			s.again++
		} else {
			e = s.row()
		}
		op = s.one("c", "r")
		s.table = append(s.table, e)
	} else {
		i = r.IntN(i)
		switch r.IntN(3) {
		case 0:
			op = "d"
			s.deletes++
		default:
			op = "u"
			s.table[i].price, s.table[i].brand = strconv.Itoa(1+r.IntN(99))+".25", s.one("null", `"corrected"`)
			if r.IntN(8) == 0 {
				s.table[i].kind = s.one("view", "cart", "purchase") // another event, or one that is known
			}
		}
		e = s.table[i]
	}
	s.valid++
	if e.category[0] == '"' {
		e.category = e.category[1 : len(e.category)-1]
	}
	before, after := "null", e.payload(r, true)
	if op == "d" {
		before, after = after, before
		if r.IntN(4) == 0 {
			before = `{"event_type":` + quote(e.kind) + `,"product_id":null}` // too little to know the event
		}
	}
	value := fmt.Sprintf(`{"before":%s,"after":%s,"source":{"version":"1.9","lsn":%d,"table":"events"},"op":%q,"ts_ms":1569897012345,"transaction":null}`,
		before, after, 24023128+s.n, op)
	if op != "d" && r.IntN(3) == 0 {
		value = fmt.Sprintf(`{"payload":%s,"__op":%q,"__lsn":%d}}`, strings.TrimSuffix(after, "}"), op, 24023128+s.n)
	}
	return &kgo.Record{Topic: cdc, Key: fmt.Appendf(nil, `{"id":%d}`, i), Value: []byte(value)}
}

func (p *platform) produce(s *shop, n int) {
	p.t.Helper()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = s.next()
	}
	if err := p.client.ProduceSync(p.t.Context(), records...).FirstErr(); err != nil {
		p.t.Fatal(err)
	}
}

// toGold drains the lake and brings what it has to gold: the objects in any order,
// some of them and of their steps again, three at a time.
func (p *platform) toGold(rng *rand.Rand) {
	p.t.Helper()
	p.tick("lake")
	var list []events.Message
	for o, err := range p.s3.List(p.t.Context(), p.bucket, "topics/"+validated+"/", "") {
		if err != nil {
			p.t.Fatal(err)
		}
		for range 1 + rng.IntN(2) {
			list = append(list, events.Message{
				Attrs: []events.Attr{
					{Name: "specversion", Value: "1.0"}, {Name: "id", Value: strconv.FormatUint(rng.Uint64(), 36)}, {Name: "type", Value: events.ObjectPut},
					{Name: "source", Value: "minio:s3..test"}, {Name: "subject", Value: o.Key},
				},
				Data: fmt.Appendf(nil, `{"s3":{"bucket":{"name":%q},"object":{"key":%q}}}`, p.bucket, url.QueryEscape(o.Key)),
			})
		}
	}
	if len(list) == 0 {
		p.t.Fatal("the lake has no objects")
	}
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	queue := make(chan events.Message, len(list))
	for _, m := range list {
		queue <- m
	}
	close(queue)
	var wg sync.WaitGroup
	for worker := range uint64(3) {
		rng := rand.New(rand.NewPCG(worker, rng.Uint64()))
		wg.Go(func() {
			for m := range queue {
				for reply := &m; reply != nil && reply.Get("type") != events.GoldChecked; {
					if reply.Get("type") == events.ETLFailed {
						p.t.Errorf("a batch goes no further: %s", reply.Data)
						break
					}
					if rng.IntN(5) == 0 {
						p.post("etl-step", *reply)
					}
					reply = p.post("etl-step", *reply)
				}
			}
		})
	}
	wg.Wait()
}

// message is the features of one event as they were served, under the event's id.
func (p *platform) messages() (byID map[string]features.Ready, deliveries int) {
	p.t.Helper()
	byID = map[string]features.Ready{}
	records := p.read(served)
	for _, r := range records {
		m, ok := kafka.FromRecord(r)
		if !ok {
			p.t.Fatalf("no event in %s: %s", served, r.Value)
		}
		ready, err := features.ParseReady(m.Data)
		if err != nil {
			p.t.Fatal(err)
		}
		ready.ProcessedAt = time.Time{}
		// Whatever is delivered again says the same, but for when.
		if before, ok := byID[m.Get("id")]; ok && before != ready {
			p.t.Errorf("event %s was served as %+v and as %+v", m.Get("id"), before, ready)
		}
		byID[m.Get("id")] = ready
	}
	return byID, len(records)
}

// The same event has the same features on both paths, every one of them, to the last
// bit; and what is stored, compared in the running system and trained on is that.
//
// SKEW_EVENTS is how many records, SKEW_SEED of which stream.
func TestServedAndRecomputedFeaturesAreTheSame(t *testing.T) {
	total, seed := 1200, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("SKEW_EVENTS")); err == nil {
		total = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SKEW_SEED"), 10, 64); err == nil {
		seed = n
	}
	p := start(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &shop{rng: rand.New(rand.NewPCG(seed, 2)), seed: seed, sessions: 8 + total/60}
	for _, service := range []string{"validate", "featurize", "store"} {
		p.services[service].flaky.Store(true)
	}
	p.runEngine()
	p.produce(s, total/4)
	p.produce(s, total/4)
	eventually(t, "something is served", func() bool {
		ends, err := p.admin.ListEndOffsets(t.Context(), served)
		if err != nil {
			return false
		}
		n := int64(0)
		for _, o := range ends[served] {
			n += o.Offset
		}
		return n > int64(total/20)
	})
	for _, name := range []string{"featurize", "validate", "store"} {
		p.services[name].kill()
		p.services[name].run()
		p.services[name].await()
	}
	p.settle(s)
	p.toGold(rng)
	// Ranks come back from what is stored.
	if err := p.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	p.produce(s, total/4)
	// What the functions have made so far comes again, after a crash of the engine.
	p.stop()
	repeated := p.repeat(total / 40)
	p.runEngine()
	p.produce(s, total-3*(total/4))

	messages, deliveries, distinct := p.settle(s)
	p.toGold(rng)

	if len(messages) != s.valid-s.deletes {
		t.Errorf("%d events were served, %d are valid and no delete", len(messages), s.valid-s.deletes)
	}
	p.compareMessages(messages)
	p.compareRanks(messages)
	p.compareStored(distinct)
	p.control()
	lost, refused := int64(0), int64(0)
	for _, s := range p.services {
		lost, refused = lost+s.lost.Load(), refused+s.refused.Load()
	}
	if lost == 0 || deliveries == len(messages) {
		t.Errorf("%d answers were lost, %d of %d messages are repeats: the test shows less than it should", lost, deliveries-len(messages), deliveries)
	}
	t.Logf("%d records: %d valid, %d of them deletes, %d repeats by producers, %d late; %d events served in %d messages; %d answers lost, %d requests refused, %d records repeated",
		total, s.valid, s.deletes, s.again, s.late, len(messages), deliveries, lost, refused, repeated)
}

// settle waits until all that was produced is served, stored, and in the topic that
// the lake reads.
func (p *platform) settle(s *shop) (messages map[string]features.Ready, deliveries, distinct int) {
	t := p.t
	t.Helper()
	eventually(t, "everything is served", func() bool {
		messages, deliveries = p.messages()
		return len(messages) >= s.valid-s.deletes
	})
	hashes := map[[32]byte]bool{}
	for _, m := range messages {
		hashes[m.RecordHash] = true
	}
	eventually(t, "everything served is stored", func() bool {
		var n int
		if err := p.db.QueryRow(t.Context(), "SELECT count(*) FROM feature_store.streaming_features").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n >= len(hashes)
	})
	eventually(t, "everything is in the validated topic", func() bool {
		ids := map[string]bool{}
		for _, r := range p.read(validated) {
			m, _ := kafka.FromRecord(r)
			ids[m.Get("id")] = true
		}
		return len(ids) >= s.valid
	})
	return messages, deliveries, len(hashes)
}

// compareMessages compares every feature of every event that was served with what
// the warehouse computes of the same record.
func (p *platform) compareMessages(messages map[string]features.Ready) {
	t := p.t
	t.Helper()
	deleted := map[string]bool{}
	for _, line := range p.query("SELECT encode(record_hash, 'hex') FROM silver.events WHERE deleted") {
		deleted[line[0].(string)] = true
	}
	list := features.All()
	names := make([]string, len(list))
	for i, f := range list {
		names[i] = f.Name
	}
	compared, differing, firsts := 0, 0, 0
	found := map[string]bool{}
	for _, line := range p.query("SELECT event_id, first_sight, " + strings.Join(names, ", ") + " FROM feature_store.recomputed_features") {
		id := events.ReplyID("/millrace/validate", line[0].(string), "featurize")
		m, ok := messages[id]
		if !ok {
			t.Errorf("gold has event %s, whose features were not served", line[0])
			continue
		}
		found[id] = true
		if line[1].(bool) {
			firsts++
		}
		for i, f := range list {
			compared++
			if want := m.Features[i].Any(); want != line[2+i] {
				if differing++; differing <= 10 {
					t.Errorf("%s of event %s: served %v, recomputed %v (%+v)", f.Name, line[0], want, line[2+i], m)
				}
			}
		}
	}
	gone := 0
	for id, m := range messages {
		switch hash := hex.EncodeToString(m.RecordHash[:]); {
		case found[id]:
		case deleted[hash]:
			gone++
		default:
			t.Errorf("the features of %s were served, and gold does not have it: %+v", id, m)
		}
	}
	t.Logf("%d values of %d events compared, %d of them the first of their kind; %d events were deleted since; %d values differ", compared, len(found), firsts, gone, differing)
}

// compareRanks also looks at what was deleted since, which silver knows.
func (p *platform) compareRanks(messages map[string]features.Ready) {
	t := p.t
	t.Helper()
	ranks := map[string]int64{}
	for _, line := range p.query(`SELECT encode(record_hash, 'hex'), row_number() OVER (PARTITION BY user_session ORDER BY first_position)
		FROM silver.events WHERE first_position IS NOT NULL`) {
		ranks[line[0].(string)] = line[1].(int64)
	}
	largest := int64(0)
	for id, m := range messages {
		hash := hex.EncodeToString(m.RecordHash[:])
		if got := m.Features[features.ActivityCount].Int(); got != ranks[hash] {
			t.Errorf("event %s was served rank %d, silver gives %d", id, got, ranks[hash])
		}
		largest = max(largest, ranks[hash])
	}
	t.Logf("the longest session has %d events", largest)
}

// compareStored looks at what the live system makes of it.
func (p *platform) compareStored(distinct int) {
	t := p.t
	t.Helper()
	p.tick("store")
	got := p.query("SELECT sum(compared)::bigint, sum(differing)::bigint, sum(missing)::bigint, sum(unsettled)::bigint, sum(deleted)::bigint, count(*)::bigint, jsonb_agg(examples)::text FROM feature_store.skew_checks")[0]
	facts := p.query("SELECT count(*)::bigint FROM dwh.fact_events")[0][0].(int64)
	if got[0] != facts || got[1] != int64(0) || got[2] != int64(0) || got[3] != int64(0) || got[4] != int64(distinct)-facts {
		t.Errorf("the running comparison found %v: compared, differing, missing, unsettled, deleted; there are %d facts and %d events were served", got, facts, distinct)
		for _, line := range p.query("SELECT e->>'record_hash' FROM feature_store.skew_checks, jsonb_array_elements(examples) e") {
			p.trace(line[0].(string))
		}
	}
	// The same number as a metric.
	if equal := p.metric("store", "millrace_feature_skew_rows_total", `outcome="equal"`); equal != strconv.FormatInt(facts, 10) {
		t.Errorf("the metric counts %q equal rows of %d", equal, facts)
	}
	for _, f := range features.All() {
		if n := p.metric("store", "millrace_feature_skew_differences_total", `feature="`+f.Name+`"`); n != "0" {
			t.Errorf("the metric counts %q differences of %s", n, f.Name)
		}
	}
	carts := p.query(`SELECT count(*), count(*) FILTER (WHERE source = 'served'), count(*) FILTER (WHERE is_purchased = 1),
		(SELECT count(*) FROM dwh.fact_events WHERE event_type = 'cart') FROM feature_store.training_set('infinity')`)[0]
	if carts[0] != carts[1] || carts[0] != carts[3] || carts[2] == int64(0) || carts[2] == carts[0] {
		t.Errorf("the training set has %v: rows, served, bought, facts", carts)
	}
	t.Logf("the training set has %v rows, %v of them bought", carts[0], carts[2])
}

// trace logs where an event is in the topics, in what order.
func (p *platform) trace(hash string) {
	p.t.Helper()
	for _, topic := range []string{broker, validated, served} {
		for _, r := range p.read(topic) {
			m, _ := kafka.FromRecord(r)
			of := ""
			switch m.Get("type") {
			case events.BehaviorValidated:
				if e, err := features.ParseEvent(m.Data); err == nil {
					h := e.Hash()
					of = hex.EncodeToString(h[:])
				}
			case events.FeaturesReady:
				if e, err := features.ParseReady(m.Data); err == nil {
					of = hex.EncodeToString(e.RecordHash[:])
				}
			}
			if of == hash {
				p.t.Logf("%s %d/%d at %s: %s %s %s", topic, r.Partition, r.Offset, r.Timestamp.Format("05.000"), m.Get("id"), m.Get("type"), m.Data[max(0, len(m.Data)-700):])
			}
		}
	}
}

// control makes sure that the test could have failed: with another order than that
// of arrival, or without the care for repeats and corrections, values differ.
func (p *platform) control() {
	t := p.t
	t.Helper()
	for what, sql := range map[string]string{
		"ranks by event time are those by arrival": `SELECT count(*) FROM (SELECT activity_count, row_number() OVER (PARTITION BY user_session ORDER BY event_timestamp, record_hash) AS rank
			FROM dwh.fact_events) f WHERE activity_count <> rank`,
		"no event came again and told something else": `SELECT count(*) FROM feature_store.recomputed_features r JOIN dwh.fact_events f USING (record_hash) WHERE NOT r.first_sight AND r.price <> f.price`,
		"no correction changed gold":                  `SELECT count(*) FROM feature_store.recomputed_features r JOIN dwh.fact_events f USING (record_hash) WHERE r.first_sight AND r.price <> f.price`,
		"no event was deleted":                        `SELECT count(*) FROM silver.events WHERE deleted AND first_position IS NOT NULL`,
		"no object was replaced by a longer one":      `SELECT count(*) FROM (SELECT FROM etl.loads GROUP BY object_id HAVING count(*) > 1) o`,
	} {
		if n := p.query(sql)[0][0].(int64); n == 0 {
			t.Errorf("%s: the test shows less than it should", what)
		} else {
			t.Logf("control: %q is wrong %d times", what, n)
		}
	}
}

func (p *platform) query(sql string) [][]any {
	p.t.Helper()
	rows, err := p.db.Query(p.t.Context(), sql)
	if err != nil {
		p.t.Fatal(err)
	}
	defer rows.Close()
	var list [][]any
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			p.t.Fatal(err)
		}
		list = append(list, values)
	}
	if err := rows.Err(); err != nil {
		p.t.Fatal(err)
	}
	return list
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// asProcess makes the test binary the function itself, for tests that kill it.
const asProcess = "ETL_STEP_TEST_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(asProcess) != "" {
		main()
		return
	}
	pgtest.Main(m)
}

// world is a lake and a warehouse, both real.
type world struct {
	t       testing.TB
	s3      lake.Config
	store   *lake.Store
	bucket  string
	reports string
	url     string // of the warehouse
	db      *warehouse.DB
	steps   *Steps
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOn(t, laketest.Start(t))
}

// newWorldOn makes a lake and a warehouse, both empty, on a server that is up.
func newWorldOn(t testing.TB, s3 lake.Config) *world {
	t.Helper()
	w := &world{t: t, s3: s3, bucket: laketest.Bucket(), reports: laketest.Bucket()}
	var err error
	if w.store, err = w.s3.Connect(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.EnsureBucket(t.Context(), w.bucket); err != nil {
		t.Fatal(err)
	}
	w.url, w.db, w.steps = w.warehouse()
	return w
}

// warehouse gives another, empty, warehouse for the same lake.
func (w *world) warehouse() (string, *warehouse.DB, *Steps) {
	w.t.Helper()
	url := pgtest.URL(w.t)
	db, err := warehouse.Config{URL: url, MaxConns: 8}.Open(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(db.Close)
	steps, err := NewSteps(db, w.store, "etl-step", w.reports, "", stepsAtOnce)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := steps.Ready(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return url, db, steps
}

const topic = "tracking.user_behavior.validated"

func key(partition int32, offset int64) string {
	return lake.Key{Topic: topic, Partition: partition, Hour: time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC), Offset: offset}.String()
}

// shopEvent is a validated event as a test writes it.
type shopEvent struct {
	at       string // event_time
	kind     string
	product  int64
	category int64
	code     string // "" is null
	brand    string // "" is null
	price    float64
	user     int64
	session  string
	op       string // of CDC
}

func (e shopEvent) payload() string {
	text := func(s string) string {
		if s == "" {
			return "null"
		}
		b, _ := json.Marshal(s)
		return string(b)
	}
	return fmt.Sprintf(`{"event_time":%s,"event_type":%s,"product_id":%d,"category_id":%d,"category_code":%s,"brand":%s,"price":%v,"user_id":%d,"user_session":%s}`,
		text(e.at), text(e.kind), e.product, e.category, text(e.code), text(e.brand), e.price, e.user, text(e.session))
}

// value is the verdict envelope.
func (e shopEvent) value() string {
	op := ""
	if e.op != "" {
		op = fmt.Sprintf(`,"op":%q,"lsn":77`, e.op)
	}
	return `{"schema":{"type":"struct","fields":[{"name":"event_time","type":"string"}]},"payload":` + e.payload() + op +
		`,"valid":"VALID","error_message":null,"error_type":null,"metadata":{"processed_at":"2026-01-02T03:04:05.000006"}}`
}

// line is a record as the lake writes it.
func line(partition int32, offset int64, value string) []byte {
	r := &kgo.Record{
		Partition: partition, Offset: offset, Timestamp: time.Date(2026, 1, 2, 3, 4, 5, int(offset%1000)*1e6, time.UTC), Key: []byte("k"),
		Headers: []kgo.RecordHeader{{Key: "ce_id", Value: fmt.Appendf(nil, "id-%d-%d", partition, offset)}, {Key: "ce_source", Value: []byte("/millrace/validate")}},
	}
	if value != "" {
		r.Value = []byte(value)
	}
	attrs := lake.AttrsOf(r)
	return lake.AppendLine(nil, r, &attrs)
}

func lines(partition int32, first int64, es ...shopEvent) []byte {
	var b []byte
	for i, e := range es {
		b = append(b, line(partition, first+int64(i), e.value())...)
	}
	return b
}

func (w *world) put(key string, data []byte) object {
	w.t.Helper()
	meta := map[string]string{metaRecords: fmt.Sprint(bytes.Count(data, []byte("\n")))}
	if _, err := w.store.Put(w.t.Context(), w.bucket, key, data, "application/x-ndjson", meta, lake.Condition{}); err != nil {
		w.t.Fatal(err)
	}
	return object{w.bucket, key}
}

// created is the notification of an object as an event.
func created(o object) event.Event {
	e := event.New()
	e.SetID("put-" + o.Key)
	e.SetSource("minio:s3..lake")
	e.SetType(events.ObjectPut)
	e.SetSubject(o.Key)
	_ = e.SetData(event.ApplicationJSON, []byte(fmt.Sprintf(`{"s3":{"bucket":{"name":%q},"object":{"key":%q}}}`, o.Bucket, strings.ReplaceAll(o.Key, "+", "%2B"))))
	return e
}

// chain sends an event and each reply to it until there is none, and returns the
// types of the replies, without what is the same in all.
func chain(t testing.TB, s *Steps, e event.Event) []string {
	t.Helper()
	var types []string
	for {
		reply, err := s.Handle(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		if reply == nil {
			return types
		}
		types = append(types, strings.TrimPrefix(reply.Type(), "dev.millrace.etl."))
		if stepOf(reply.Type()) == nil {
			return types
		}
		e = *reply
	}
}

func (w *world) load(o object) []string {
	w.t.Helper()
	return chain(w.t, w.steps, created(o))
}

// all is what chain returns when everything went well.
var all = []string{"bronze.loaded.v1", "silver.transformed.v1", "gold.loaded.v1", "gold.checked.v1"}

// goldTables are what a rebuild has to give again, with their order.
var goldTables = [][2]string{
	{"dwh.dim_user", "user_id"}, {"dwh.dim_product", "product_id"}, {"dwh.product_price_history", "product_id, price"},
	{"dwh.dim_category", "category_id"}, {"dwh.dim_date", "event_date"}, {"dwh.fact_events", "record_hash"},
	{"dwh.vw_ml_purchase_prediction", "record_hash"}, {"dwh.vw_user_session_summary", "user_id, user_session"},
	{"dwh.vw_category_performance", "category_l1, category_l2, category_l3"}, {"dwh.vw_product_price_changes", "product_id, valid_from, price"},
}

// dump writes gold down, sorted.
func dump(t testing.TB, db *warehouse.DB) string {
	t.Helper()
	var b bytes.Buffer
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, table := range goldTables {
		b.WriteString(table[0] + "\n")
		if _, err := conn.Conn().PgConn().CopyTo(t.Context(), &b, fmt.Sprintf("COPY (SELECT * FROM %s ORDER BY %s) TO STDOUT", table[0], table[1])); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// query gives the first column of all rows as text.
func query(t testing.TB, db *warehouse.DB, sql string, args ...any) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	list := []string{}
	for rows.Next() {
		var v *string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		if v == nil {
			list = append(list, "NULL")
			continue
		}
		list = append(list, *v)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// shop makes a stream of validated events of a partition, with all that makes it
// hard: sessions that go on from object to object, times out of order, the same
// event several times, corrections, deletes before and after, events that come back.
func shop(rng *rand.Rand, partition int32, n int) []shopEvent {
	codes := []string{"electronics.smartphone", "appliances.kitchen.hood", "computers.notebook", "", "kids"}
	brands := []string{"xiaomi", "samsung", "", "sam\"sung \\ ü", "bosch"}
	kinds := []string{"view", "view", "view", "cart", "cart", "purchase", "remove_from_cart"}
	var list []shopEvent
	for len(list) < n {
		var e shopEvent
		if len(list) > 0 && rng.IntN(10) < 3 {
			e = list[rng.IntN(len(list))]
			switch rng.IntN(4) {
			case 0: // again, and as another producer says it
				e.at = strings.Replace(strings.Replace(e.at, " UTC", "Z", 1), " ", "T", 1)
			case 1:
				e.op = "d"
			case 2:
				e.op, e.price, e.brand = "u", e.price+1, brands[rng.IntN(len(brands))]
			case 3: // the first counts
				e.op, e.price, e.category = "", e.price+2, int64(rng.IntN(8))
			}
		} else {
			product := int64(rng.IntN(20))
			e = shopEvent{
				at:   time.Date(2026, 1, 1+rng.IntN(3), rng.IntN(24), rng.IntN(60), rng.IntN(60), 0, time.UTC).Format("2006-01-02 15:04:05 UTC"),
				kind: kinds[rng.IntN(len(kinds))], product: product, category: 2053013558920217191 + product%5, code: codes[rng.IntN(len(codes))],
				brand: brands[rng.IntN(len(brands))], price: float64(1+rng.IntN(200000)) / 100, user: int64(rng.IntN(30)),
				session: fmt.Sprintf("76b918d5-b344-41fc-8632-%04d%08d", partition, rng.IntN(n/6+1)),
			}
		}
		list = append(list, e)
	}
	return list
}

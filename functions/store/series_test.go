package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// verdict is the event that validate makes of a record; it must be a valid one.
func verdict(t testing.TB, set *contract.Set, topic, record string) event.Event {
	t.Helper()
	stream, ok := set.ByTopic(topic)
	if !ok {
		t.Fatalf("there is no contract for topic %s", topic)
	}
	v := stream.Check([]byte(record), time.Now())
	if v.Outcome != contract.Valid {
		t.Fatalf("%s: %s", record, v.ErrorMessage)
	}
	e := event.New()
	e.SetID(fmt.Sprintf("%x", rand.Uint64()))
	e.SetSource("/millrace/validate")
	e.SetType(v.Type)
	e.SetTime(v.Time)
	e.SetExtension(events.PartitionKey, v.Key)
	e.SetExtension(events.Contract, v.Contract.Name)
	_ = e.SetData(event.ApplicationJSON, v.Body)
	return e
}

// readings are those of a small datacenter, in the order in which they are sent.
func readings(t testing.TB, set *contract.Set, from time.Time, step time.Duration, n int) []event.Event {
	t.Helper()
	cfg, err := datacenter.Named("dev", "h")
	if err != nil {
		t.Fatal(err)
	}
	sim, err := datacenter.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]event.Event, 0, n)
	var server datacenter.ServerReading
	var service datacenter.ServiceReading
	for at := from; len(list) < n; at = at.Add(step) {
		for i := range cfg.Servers {
			sim.Server(i, at, &server)
			list = append(list, verdict(t, set, "datacenter-metrics", string(server.AppendJSON(nil))))
		}
		for i := range cfg.Services {
			sim.Service(i, at, &service)
			list = append(list, verdict(t, set, "datacenter-metrics", string(service.AppendJSON(nil))))
		}
	}
	return list[:n]
}

// lately is a time that no retention takes, at the begin of a day.
func lately() time.Time { return time.Now().UTC().AddDate(0, 0, -3).Truncate(24 * time.Hour) }

// accept sends a batch, all of whose events must be taken.
func accept(t testing.TB, s *storage, batch ...event.Event) {
	t.Helper()
	for i, r := range s.Handle(t.Context(), batch) {
		if r.Err != nil {
			t.Fatalf("event %d: %v", i, r.Err)
		}
	}
}

func TestSeries_readingsBecomeRows(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	server := `{"type":"server_metric","timestamp":"2026-01-24T12:34:56.000000+00:00","server_id":"srv-001","rack_id":"R01","datacenter_zone":"marseille-1","cpu_usage_percent":31.42,"memory_usage_percent":44.1,"memory_available_gb":23.5,"disk_usage_percent":55.3,"disk_read_mbps":20.1,"disk_write_mbps":11.7,"network_rx_mbps":150.2,"network_tx_mbps":98.4,"cpu_temperature_celsius":49.8,"power_consumption_watts":251.3}`
	application := `{"type":"application_metric","timestamp":"2026-01-24T12:34:56.5+01:00","service_name":"api-gateway-1","server_id":"srv-007","request_rate_per_sec":410.22,"response_time_p50_ms":21.5,"response_time_p95_ms":60.13,"response_time_p99_ms":99.99,"error_rate_percent":0.412,"error_count":1,"active_connections":120,"queue_depth":0,"endpoint":"/api/users"}`
	accept(t, s, verdict(t, contracts(t), "datacenter-metrics", server), verdict(t, contracts(t), "datacenter-metrics", application))
	want := [][]string{{"2026-01-24T12:34:56Z", "srv-001", "R01", "marseille-1", "31.42", "44.1", "23.5", "55.3", "20.1", "11.7", "150.2", "98.4", "49.8", "251.3"}}
	if diff := cmp.Diff(want, query(t, db, `SELECT timestamp, server_id, rack_id, datacenter_zone, cpu_usage_percent, memory_usage_percent, memory_available_gb,
		disk_usage_percent, disk_read_mbps, disk_write_mbps, network_rx_mbps, network_tx_mbps, cpu_temperature_celsius, power_consumption_watts FROM public.server_metrics`)); diff != "" {
		t.Errorf("server (-want +got):\n%s", diff)
	}
	want = [][]string{{"2026-01-24T11:34:56.5Z", "api-gateway-1", "srv-007", "410.22", "21.5", "60.13", "99.99", "0.412", "1", "120", "0", "/api/users"}}
	if diff := cmp.Diff(want, query(t, db, `SELECT timestamp, service_name, server_id, request_rate_per_sec, response_time_p50_ms, response_time_p95_ms, response_time_p99_ms,
		error_rate_percent, error_count, active_connections, queue_depth, endpoint FROM public.application_metrics`)); diff != "" {
		t.Errorf("application (-want +got):\n%s", diff)
	}
}

// Readings that come again and out of order, while the database goes away in between,
// are in the tables once each.
func TestSeries_duplicateStormHoldsDistinctRows(t *testing.T) {
	if pgtest.Timescale() {
		t.Skip("it has one session for all, which cannot be ended")
	}
	distinct, total := 4_000, 5_600
	if os.Getenv("STORE_STORM") != "" {
		distinct, total = 20_000, 28_000
	}
	db, url := open(t)
	s := start(t, db)
	all := readings(t, contracts(t), lately(), 2*time.Minute, distinct)
	rng := rand.New(rand.NewPCG(5, 5))
	storm := slices.Clone(all)
	for len(storm) < total {
		storm = append(storm, all[rng.IntN(distinct)])
	}
	rng.Shuffle(len(storm), func(i, j int) { storm[i], storm[j] = storm[j], storm[i] })
	batches := make(chan []event.Event, len(storm))
	for len(storm) > 0 {
		n := min(1+rng.IntN(400), len(storm))
		batches <- storm[:n]
		storm = storm[n:]
	}
	close(batches)
	var senders sync.WaitGroup
	for range 3 {
		senders.Go(func() {
			for batch := range batches {
				for {
					results := s.Handle(t.Context(), batch)
					status := function.Status(results[0].Err)
					if status == http.StatusOK {
						break
					}
					if status != http.StatusServiceUnavailable {
						t.Errorf("status %d: %v", status, results[0].Err)
						return
					}
				}
			}
		})
	}
	for range 3 {
		outage(t, url)()
	}
	senders.Wait()
	db.Reset()
	got := query(t, db, `SELECT (SELECT count(*) FROM public.server_metrics), (SELECT count(*) FROM public.application_metrics)`)[0]
	if want := []string{strconv.Itoa(distinct / 8 * 5), strconv.Itoa(distinct / 8 * 3)}; !slices.Equal(want, got) {
		t.Errorf("%v rows, want %v", got, want)
	}
}

func TestSeries_refusalsNameFieldAndRule(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	good := readings(t, contracts(t), lately(), time.Minute, 1)[0]
	change := func(how func(*event.Event)) event.Event {
		e := good.Clone()
		how(&e)
		return e
	}
	data := func(from, to string) event.Event {
		return change(func(e *event.Event) {
			_ = e.SetData(event.ApplicationJSON, []byte(strings.Replace(string(e.Data()), from, to, 1)))
		})
	}
	var got []string
	for _, r := range s.Handle(t.Context(), []event.Event{
		change(func(e *event.Event) { e.SetExtension(events.Contract, nil) }),
		change(func(e *event.Event) { e.SetExtension(events.Contract, "weather") }),
		data(`"payload":{`, `"payload":[{`),
		data(`"server_id":"srv-001",`, ``),
		data(`"cpu_usage_percent":`, `"cpu_usage_percent":"x","was":`),
		good,
	}) {
		got = append(got, fmt.Sprint(function.Status(r.Err), " ", r.Err))
	}
	want := []string{
		"400 extension contract is required: it names the contract of the record, one of: datacenter-application, datacenter-server",
		`400 extension contract: there is no contract "weather" for events of type dev.millrace.metric.validated.v1, only: datacenter-application, datacenter-server`,
		`400 "public"."server_metrics": reading a verdict: field payload should be an object`,
		`400 "public"."server_metrics": field server_id is required: it is in the natural key of contract datacenter-server`,
		`400 "public"."server_metrics": field cpu_usage_percent of the verdict should be of type double, as contract datacenter-server says`,
		"200 <nil>",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Each day has its partition, whenever its rows come; what is far off shares one, and
// moves when its day gets one.
func TestSeries_daysHaveTheirPartitions(t *testing.T) {
	if pgtest.Timescale() {
		t.Skip("TimescaleDB makes its chunks itself")
	}
	db, _ := open(t)
	s := start(t, db)
	s.series.retention = 90 * 24 * time.Hour
	from := lately().Add(-time.Hour)
	accept(t, s, readings(t, contracts(t), from, 10*time.Minute, 8*12)...)
	parts := func() map[string]string {
		list := map[string]string{}
		for _, row := range query(t, db, `SELECT tableoid::regclass::text, count(*) FROM public.server_metrics GROUP BY 1`) {
			list[strings.TrimPrefix(row[0], "timeseries.")] = row[1]
		}
		return list
	}
	name := func(at time.Time) string { return "server_metrics_" + at.Format("20060102") }
	want := map[string]string{name(from): "30", name(lately()): "30"}
	if diff := cmp.Diff(want, parts()); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	// A clock that is wrong in both directions, and today.
	today := time.Now().UTC().Truncate(24 * time.Hour)
	old, future := today.AddDate(-3, 0, 0), today.AddDate(0, 0, 5)
	for _, at := range []time.Time{old, future, today} {
		accept(t, s, readings(t, contracts(t), at, time.Minute, 5)...)
	}
	want["server_metrics_other"], want[name(today)] = "10", "5"
	if diff := cmp.Diff(want, parts()); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	// The future arrives, and the past is too old to be kept.
	if _, err := db.Exec(t.Context(), "SELECT timeseries.cover('server_metrics', $1)", []time.Time{future}); err != nil {
		t.Fatal(err)
	}
	accept(t, s, tick())
	delete(want, "server_metrics_other")
	want[name(future)] = "5"
	if diff := cmp.Diff(want, parts()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Two days later by what is kept.
	s.series.retention = time.Since(lately())
	accept(t, s, tick())
	delete(want, name(from))
	if diff := cmp.Diff(want, parts()); diff != "" {
		t.Errorf("after retention (-want +got):\n%s", diff)
	}
}

// The aggregates are what the rows say, also of hours that are loaded later, and stay
// when the rows go.
func TestSeries_aggregatesAreOfAllHours(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	check := func() {
		t.Helper()
		accept(t, s, tick())
		for aggregate, sql := range map[string]string{
			"server_metrics_hourly": `SELECT date_trunc('hour', timestamp) AS hour, server_id, avg(cpu_usage_percent) AS avg_cpu, max(cpu_usage_percent) AS max_cpu,
				avg(memory_usage_percent) AS avg_memory, max(memory_usage_percent) AS max_memory, avg(cpu_temperature_celsius) AS avg_temperature,
				max(cpu_temperature_celsius) AS max_temperature, avg(power_consumption_watts) AS avg_power, count(*) AS sample_count FROM public.server_metrics GROUP BY 1, 2 ORDER BY 1, 2`,
			"application_metrics_hourly": `SELECT date_trunc('hour', timestamp) AS hour, service_name, avg(request_rate_per_sec) AS avg_request_rate, avg(response_time_p95_ms) AS avg_p95_latency,
				max(response_time_p99_ms) AS max_p99_latency, avg(error_rate_percent) AS avg_error_rate, sum(error_count)::bigint AS total_errors, count(*) AS sample_count
				FROM public.application_metrics GROUP BY 1, 2 ORDER BY 1, 2`,
		} {
			// Sums of floating-point numbers depend on their order.
			var alike, rows int
			row := query(t, db, `SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (
					SELECT FROM jsonb_each(to_jsonb(w)) a JOIN jsonb_each(to_jsonb(g)) b USING (key)
					WHERE CASE jsonb_typeof(a.value) WHEN 'number' THEN abs(a.value::float8 - b.value::float8) > 1e-9 * abs(a.value::float8) ELSE a.value <> b.value END))
				FROM (`+sql+`) w FULL JOIN public.`+aggregate+` g ON w.hour = g.hour AND to_jsonb(w) -> $1 = to_jsonb(g) -> $1`,
				map[bool]string{true: "server_id", false: "service_name"}[aggregate == "server_metrics_hourly"])[0]
			if _, err := fmt.Sscan(row[0]+" "+row[1], &rows, &alike); err != nil || rows == 0 || alike != rows {
				t.Errorf("%s: %d of %d rows are what the readings say (%v)", aggregate, alike, rows, err)
			}
		}
		if left := query(t, db, "SELECT count(*) FROM timeseries.touched")[0][0]; left != "0" {
			t.Errorf("%s hours are left", left)
		}
	}
	few := readings(t, contracts(t), lately(), 7*time.Minute, 8*3)
	handle(t, s, few...) // one by one
	check()
	handle(t, s, readings(t, contracts(t), lately().Add(time.Hour), 7*time.Minute, 8*20)...)
	check()
	handle(t, s, readings(t, contracts(t), lately().Add(-31*time.Hour), 11*time.Minute, 8*150)...)
	check()
	if pgtest.Timescale() {
		return // it drops by a policy of its own, see package timeseries
	}
	before := query(t, db, "SELECT * FROM public.server_metrics_hourly ORDER BY 1, 2")
	s.series.retention = 24 * time.Hour
	accept(t, s, tick())
	if n := query(t, db, "SELECT count(*) FROM public.server_metrics")[0][0]; n != "0" {
		t.Errorf("%s rows are left", n)
	}
	if diff := cmp.Diff(before, query(t, db, "SELECT * FROM public.server_metrics_hourly ORDER BY 1, 2")); diff != "" {
		t.Errorf("without rows (-before +after):\n%.2000s", diff)
	}
}

func found(t testing.TB, a *anomaly.Anomaly) event.Event {
	t.Helper()
	e := event.New()
	e.SetID(fmt.Sprintf("%x", rand.Uint64()))
	e.SetSource("/millrace/detect")
	e.SetType(events.AnomalyDetected)
	if a.Resolved {
		e.SetType(events.AnomalyResolved)
	}
	if err := e.SetData(event.ApplicationJSON, a); err != nil {
		t.Fatal(err)
	}
	return e
}

// The events of an anomaly make one row, the same in whatever order and how often they
// come, alone or together.
func TestAnomalies_oneRowWhateverTheOrder(t *testing.T) {
	at := lately().Add(time.Hour)
	over := at.Add(5 * time.Minute)
	db, _ := open(t)
	s := start(t, db)
	for n, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}, {2, 0, 1}, {0, 0, 1, 2, 2, 0}} {
		for _, together := range []bool{true, false} {
			a := anomaly.Anomaly{Timestamp: at, EntityType: "server", EntityID: fmt.Sprint("srv-", n, together), Type: "stl_zscore_cpu_usage_percent", Severity: "medium", Score: 0.5,
				Details: anomaly.Details{Metric: "cpu_usage_percent", Actual: 80}}
			worse, end := a, a
			worse.Severity, worse.Score, worse.Details.Actual = "critical", 0.9, 95
			end.Severity, end.Score, end.Resolved, end.ResolvedAt = "critical", 0.9, true, &over
			end.Details.Points = 7
			want := [][]string{{at.Format(time.RFC3339), "server", a.EntityID, "stl_zscore_cpu_usage_percent", "critical", "0.9", "7", "true", over.Format(time.RFC3339)}}
			list := []event.Event{found(t, &a), found(t, &worse), found(t, &end)}
			var batch []event.Event
			for _, i := range order {
				batch = append(batch, list[i])
			}
			if together {
				// Many of another entity, so that the rows are copied.
				for n := range 2 * few {
					other := a
					other.EntityID = fmt.Sprint("other-", n)
					batch = append(batch, found(t, &other))
				}
				accept(t, s, batch...)
			} else {
				for _, e := range batch {
					accept(t, s, e)
				}
			}
			got := query(t, db, `SELECT timestamp, entity_type, entity_id, anomaly_type, severity, anomaly_score, details ->> 'points', resolved, resolved_at
				FROM public.anomalies WHERE entity_id = $1`, a.EntityID)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%v, together %t (-want +got):\n%s", order, together, diff)
			}
		}
	}
}

func TestAnomalies_whatIsWrongIsSaid(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	a := anomaly.Anomaly{Timestamp: lately(), EntityType: "server", EntityID: "srv-001", Type: "isolation_forest", Severity: "worst", Score: 1}
	nobody := a
	nobody.EntityID = ""
	over := found(t, &a)
	over.SetType(events.AnomalyResolved)
	got := s.Handle(t.Context(), []event.Event{found(t, &a), found(t, &nobody), over})
	for i, want := range []string{"violates check constraint", "field entity_id is required", "fields resolved and resolved_at should be"} {
		if function.Status(got[i].Err) != http.StatusBadRequest || !strings.Contains(got[i].Err.Error(), want) {
			t.Errorf("%v, want %s", got[i].Err, want)
		}
	}
}

func predicted(data string) event.Event {
	e := event.New()
	e.SetID(fmt.Sprintf("%x", rand.Uint64()))
	e.SetSource("/millrace/predict")
	e.SetType(events.PredictionMade)
	_ = e.SetData(event.ApplicationJSON, []byte(data))
	return e
}

func TestPredictions_firstStays(t *testing.T) {
	db, _ := open(t)
	s := start(t, db)
	at := lately().Format(time.RFC3339)
	power := `{"model_name":"power_prediction_model","model_version":"3","entity_id":"srv-001","timestamp":"` + at + `","prediction":251.5,"actual":250,"error":1.5,"error_percent":0.6,"confidence":0.9,"low":240,"high":260,"predicted_at":"` + at + `","contract":"datacenter-server"}`
	shop := `{"model_name":"purchase_prediction_model","model_version":"1","entity_id":"5:7","timestamp":"` + at + `","prediction":[0.25,0.75],"actual":null,"error":null,"error_percent":null,"confidence":null,"predicted_at":"` + at + `","user_id":5,"product_id":7,"user_session":"s","event_type":"cart","record_hash":"ab"}`
	accept(t, s, predicted(power), predicted(strings.Replace(power, `"3"`, `"4"`, 1)), predicted(shop), predicted(power))
	want := [][]string{
		{"power_prediction_model", "srv-001", "3", "251.5", "250", "1.5", "0.6", "0.9", "240", "260", "map[contract:datacenter-server]"},
		{"purchase_prediction_model", "5:7", "1", "NULL", "NULL", "NULL", "NULL", "NULL", "NULL", "NULL", "map[event_type:cart predictions:[0.25 0.75] product_id:7 record_hash:ab user_id:5 user_session:s]"},
	}
	if diff := cmp.Diff(want, query(t, db, `SELECT model, entity, model_version, prediction, actual, error, prediction_error_percent, confidence_score, low, high, details FROM public.predictions ORDER BY model`)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for data, want := range map[string]string{
		`{}`: "field model_name is required",
		strings.Replace(power, `251.5`, `"x"`, 1):                "field prediction should be a number or a list of them",
		strings.Replace(power, `"prediction":251.5`, `"p":1`, 1): "field prediction is required",
		strings.Replace(power, at, "today", 1):                   "reading a prediction: ",
	} {
		r := s.Handle(t.Context(), []event.Event{predicted(data)})[0]
		if function.Status(r.Err) != http.StatusBadRequest || !strings.Contains(r.Err.Error(), want) {
			t.Errorf("%s: %v, want %s", data, r.Err, want)
		}
	}
}

// own are the contracts that ship and one more.
func own(t testing.TB, odd string) *contract.Set {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "odd.yaml"), []byte(odd), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := contract.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func startWith(t testing.TB, db *warehouse.DB, set *contract.Set) *storage {
	t.Helper()
	s, err := newStorage(db, tables, set, config())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const oddContract = `name: odd
kind: json
topics: [odd]
verdicts: {valid: com.example.odd.ok.v1, invalid: com.example.odd.bad.v1}
key: who
eventTime: "when \"it\" was"
naturalKey: [who, "when \"it\" was"]
table: odd_readings
fields:
  - {name: who, type: int64}
  - {name: "when \"it\" was", type: timestamp, formats: [rfc3339]}
  - {name: "Robert'); DROP TABLE x; --", type: double, metric: true, optional: true}
  - {name: select, type: string, nullable: true}
  - {name: on, type: boolean}
`

// Whatever a contract's fields are called, and however the contract changes, its rows
// are stored, or it is said why not.
func TestContracts_anyTableIsMadeAndWidened(t *testing.T) {
	db, _ := open(t)
	set := own(t, oddContract)
	record := `{"who":7,"when \"it\" was":"` + lately().Format(time.RFC3339) + `","Robert'); DROP TABLE x; --":1.5,"select":null,"on":true}`
	s := startWith(t, db, set)
	accept(t, s, verdict(t, set, "odd", record))
	want := [][]string{{"7", lately().Format(time.RFC3339), "1.5", "NULL", "true"}}
	columns := `who, "when ""it"" was", "Robert'); DROP TABLE x; --", "select", "on"`
	if diff := cmp.Diff(want, query(t, db, "SELECT "+columns+" FROM public.odd_readings")); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	// Another field, and one that is gone.
	wider := strings.Replace(oddContract, "  - {name: select, type: string, nullable: true}\n", "  - {name: more, type: int64, optional: true}\n", 1)
	set = own(t, wider)
	s = startWith(t, db, set)
	accept(t, s, verdict(t, set, "odd", strings.Replace(strings.Replace(record, `"who":7`, `"who":8`, 1), `"select":null`, `"more":3`, 1)))
	want = append(want, []string{"8", want[0][1], "1.5", "NULL", "true"})
	want[0], want[1] = append(want[0], "NULL"), append(want[1], "3")
	if diff := cmp.Diff(want, query(t, db, "SELECT "+columns+", more FROM public.odd_readings ORDER BY who")); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	// What does not fit refuses the contract's records and nobody else's, until it does.
	for _, c := range []struct{ from, to, want string }{
		{"{name: select, type: string, nullable: true}", "{name: select, type: double, optional: true}",
			"contract odd cannot be stored in table odd_readings: field select is a double, but its column is text: give the field another name, or change the column"},
		{`naturalKey: [who, "when`, `naturalKey: [who, on, "when`,
			`contract odd cannot be stored in table odd_readings: the naturalKey is who, on, when "it" was, but the table was made with who, when "it" was`},
		{"table: odd_readings", "table: anomalies", "contract odd cannot be stored in table anomalies: the table is that of other events"},
		{"table: odd_readings", "table: server_metrics_hourly", "contract odd cannot be stored in table server_metrics_hourly: a table of this name is there that was not made for a contract"},
	} {
		set = own(t, strings.Replace(oddContract, c.from, c.to, 1))
		s = startWith(t, db, set)
		odd := verdict(t, set, "odd", strings.Replace(record, `"select":null`, `"select":`+map[bool]string{true: "2", false: "null"}[strings.Contains(c.to, "double")], 1))
		results := s.Handle(t.Context(), []event.Event{odd, readings(t, set, lately(), time.Minute, 1)[0]})
		if function.Status(results[0].Err) != http.StatusBadRequest || results[0].Err.Error() != c.want || results[1].Err != nil {
			t.Errorf("%s: %v and %v", c.to, results[0].Err, results[1].Err)
		}
	}
	if _, err := db.Exec(t.Context(), "ALTER TABLE public.odd_readings RENAME \"select\" TO selected"); err != nil {
		t.Fatal(err)
	}
	db.Reset() // its connections know the column that was
	set = own(t, strings.Replace(oddContract, "{name: select, type: string, nullable: true}", "{name: select, type: double, nullable: true}", 1))
	s = startWith(t, db, set)
	accept(t, s, verdict(t, set, "odd", strings.Replace(record, `"select":null`, `"select":2`, 1)))
}

// A contract without a table shares its type with one that has one: its records are
// for others.
func TestContracts_withoutATableAreLeftAlone(t *testing.T) {
	db, _ := open(t)
	set := own(t, strings.NewReplacer("table: odd_readings\n", "", "com.example.odd.ok.v1", "dev.millrace.metric.validated.v1").Replace(oddContract))
	s := startWith(t, db, set)
	accept(t, s, verdict(t, set, "odd", `{"who":7,"when \"it\" was":"2026-01-01T00:00:00Z","select":null,"on":true}`))
}

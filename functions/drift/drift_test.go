package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/testkit/child"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) {
	if !child.Main(main) {
		pgtest.Main(m)
	}
}

// toldOf are the events that have come since it was asked last, as type, subject and state.
func toldOf(b *receiver.Receiver) (list []string) {
	for _, m := range b.Take() {
		list = append(list, strings.TrimSuffix(strings.TrimPrefix(m.Get("type"), "dev.millrace.drift."), ".v1")+" "+m.Get("subject")+" "+m.Get("state"))
	}
	return list
}

// known gives baselines that a test has made.
type known map[string]*baseline

func (k known) of(_ context.Context, w *watched) (*baseline, error) {
	if b := k[w.Name]; b != nil {
		return b, nil
	}
	return nil, errNoVersion
}

// A registry that does not answer fails no tick, and the window is measured once it does.
func TestRegistryIsAway(t *testing.T) {
	c, err := registry.Config{URL: "http://127.0.0.1:1"}.Connect()
	if err != nil {
		t.Fatal(err)
	}
	b := &bundles{registry: c, alias: "current"}
	if _, err := b.of(t.Context(), &watched{Name: "m"}); !errors.Is(err, errUnknown) {
		t.Fatalf("error %v, want %v", err, errUnknown)
	}
	away := unknown{errors.Join(errUnknown, errors.New("connection refused"))}
	m, _ := start(t, receiver.New(t, nil), away, func(*plan) {})
	at := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	if err := m.tick(t.Context(), at); err != nil {
		t.Errorf("a tick without the registry: %v", err)
	}
	for _, w := range m.plan.Models {
		if w.metrics == nil && !m.due(w.Name, last(at, m.lag, m.plan.Every, m.plan.Window)) {
			t.Errorf("%s is not due any more", w.Name)
		}
	}
}

// unknown gives no baselines.
type unknown struct{ err error }

func (u unknown) of(context.Context, *watched) (*baseline, error) { return nil, u.err }

func start(t testing.TB, b *receiver.Receiver, base baselines, change func(*plan)) (*monitor, *warehouse.DB) {
	t.Helper()
	db, err := warehouse.Config{URL: pgtest.URL(t), MaxConns: 4}.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	set, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPlan(&Config{}, set.Contracts())
	if err != nil {
		t.Fatal(err)
	}
	change(p)
	out, err := sink.New(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &monitor{name: "drift", plan: p, db: db, bundles: base, sink: out, retention: 24 * time.Hour}, db
}

func only(p *plan, name string) {
	p.Models = slices.DeleteFunc(p.Models, func(w *watched) bool { return w.Name != name })
}

func tick(t testing.TB, m *monitor, at time.Time) error {
	t.Helper()
	e := event.New()
	e.SetID(fmt.Sprint(rand.Uint64()))
	e.SetSource("/apis/v1/namespaces/millrace/pingsources/drift-tick")
	e.SetType(events.Tick)
	e.SetTime(at)
	return m.Handle(t.Context(), []event.Event{e})[0].Err
}

// servers writes readings of a simulated datacenter into the warehouse.
func servers(t testing.TB, db *warehouse.DB, sim *datacenter.Sim, from, to time.Time, step time.Duration) {
	t.Helper()
	columns := append([]string{"timestamp", "server_id", "rack_id", "datacenter_zone"}, datacenter.ServerMetrics[:]...)
	var rows [][]any
	var r datacenter.ServerReading
	for at := from; at.Before(to); at = at.Add(step) {
		for i := range sim.Config().Servers {
			sim.Server(i, at, &r)
			row := []any{at, r.Server, r.Rack, r.Zone}
			for _, v := range r.Values {
				row = append(row, v)
			}
			rows = append(rows, row)
		}
	}
	if _, err := db.CopyFrom(t.Context(), pgx.Identifier{"public", "server_metrics"}, columns, pgx.CopyFromRows(rows)); err != nil {
		t.Fatal(err)
	}
}

func rowsOf(t testing.TB, db *warehouse.DB, sql string) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		v, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintln(v...)))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

var live = time.Date(2026, 3, 18, 9, 0, 0, 0, time.UTC)

func sim(t testing.TB, change datacenter.Drift) *datacenter.Sim {
	t.Helper()
	c, err := datacenter.Named("normal", "h")
	if err != nil {
		t.Fatal(err)
	}
	c.Servers, c.LiveFrom, c.AnomalyProbability, c.Drift = 40, live, 0, change
	s, err := datacenter.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A stream's data drifts and comes back: each window is measured once, whatever comes
// twice or late; drift is told of once, and its end.
func TestStream_driftIsToldOfOnceAndItsEnd(t *testing.T) {
	b := receiver.New(t, nil)
	m, db := start(t, b, known{}, func(p *plan) {
		only(p, "stream/datacenter-server")
		p.Window, p.Every, p.Hold, p.MinRows = 10*time.Minute, 5*time.Minute, 2, 300
	})
	store, err := laketest.Start(t).Connect()
	if err != nil {
		t.Fatal(err)
	}
	m.store, m.bucket = store, laketest.Bucket()
	calm, busy := sim(t, datacenter.Drift{}), sim(t, datacenter.Drift{Kind: datacenter.WorkloadDrift, At: live, Size: 0.8})
	for day := range 4 {
		servers(t, db, calm, live.AddDate(0, 0, -1-day).Add(-30*time.Minute), live.AddDate(0, 0, -1-day).Add(2*time.Hour), time.Minute)
	}
	servers(t, db, calm, live.Add(-20*time.Minute), live, 30*time.Second)
	servers(t, db, busy, live, live.Add(30*time.Minute), 30*time.Second)
	servers(t, db, calm, live.Add(30*time.Minute), live.Add(time.Hour), 30*time.Second)
	var came []string
	for at := live; !at.After(live.Add(time.Hour)); at = at.Add(5 * time.Minute) {
		if at.Equal(live.Add(15 * time.Minute)) {
			// The Broker is away: what was measured waits.
			b.Away(true)
			if err := tick(t, m, at); err == nil {
				t.Fatal("the tick must come again")
			}
			b.Away(false)
		}
		for range 2 { // again
			if err := tick(t, m, at.Add(time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		if err := tick(t, m, at.Add(-7*time.Minute)); err != nil { // late
			t.Fatal(err)
		}
		came = append(came, toldOf(b)...)
	}
	ids := map[string]bool{}
	for _, m := range b.Events() {
		if id := m.Get("id"); ids[id] {
			t.Errorf("event %s was sent twice", id)
		} else {
			ids[id] = true
		}
	}
	var states []string
	for _, s := range came {
		what, _, _ := strings.Cut(s, " ")
		states = append(states, what+s[strings.LastIndexByte(s, ' '):])
	}
	want := []string{"measured stable", "measured stable", "measured detected", "detected detected"}
	if got := states[:min(len(states), 4)]; !slices.Equal(got, want) {
		t.Errorf("told of %v, want %v first", states, want)
	}
	count := func(s string) (n int) {
		for _, x := range states {
			if x == s {
				n++
			}
		}
		return n
	}
	if count("detected detected") != 1 || count("measured resolved") != 1 || states[len(states)-1] != "measured stable" || count("measured drifting") < 3 {
		t.Errorf("told of %v", states)
	}
	if got := rowsOf(t, db, `SELECT count(*), count(DISTINCT window_end), count(*) FILTER (WHERE sent_at IS NULL) FROM drift.windows`); got[0] != "13 13 0" {
		t.Errorf("windows: %v", got)
	}
	got := rowsOf(t, db, `SELECT DISTINCT statistic FROM drift.measurements WHERE name = 'cpu_usage_percent' ORDER BY 1`)
	if diff := cmp.Diff([]string{"chisquare", "jensenshannon", "ks", "missing", "psi", "wasserstein"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The report is in the object store, and the same over HTTP.
	detectedAt := rowsOf(t, db, `SELECT to_char(window_end, 'YYYYMMDD"T"HH24MISS"Z"') FROM drift.windows WHERE state = 'detected'`)[0]
	page, _, err := store.Read(t.Context(), m.bucket, "drift/stream/datacenter-server/"+detectedAt+".html", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /reports", m.serveReports)
	mux.HandleFunc("GET /reports/{report...}", m.serveReport)
	get := func(path, accept string) (int, string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.Header.Set("Accept", accept)
		mux.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if status, body := get("/reports/stream/datacenter-server/"+detectedAt, ""); status != 200 || body != string(page) {
		t.Errorf("%d, %d bytes; %d in the store", status, len(body), len(page))
	}
	for _, want := range []string{"<svg", `lang="en"`, "prefers-color-scheme: dark", "Drift was detected with this window", "cpu_usage_percent", "the same hours of former days"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the report has no %q", want)
		}
	}
	if strings.Contains(string(page), "ZgotmplZ") || strings.Contains(string(page), "http") && strings.Contains(string(page), "src=") {
		t.Error("the report is not whole by itself")
	}
	for path, want := range map[string]int{"/reports": 200, "/reports?model=x": 200, "/reports/stream/datacenter-server/latest": 200, "/reports/x/latest": 404, "/reports/x/y": 404, "/reports/x": 404} {
		if status, _ := get(path, ""); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	if _, body := get("/reports", "text/html"); !strings.Contains(body, detectedAt) {
		t.Error("the list does not link the report")
	}
	if out := os.Getenv("DRIFT_REPORT"); out != "" {
		if err := os.WriteFile(out, page, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A model of a number that is wrong is drift, though nothing that it is told looks
// different; and rows of anomalies that ended do not count.
func TestRegression_isJudgedByItsErrors(t *testing.T) {
	b := receiver.New(t, nil)
	base := &baseline{version: "4", rows: 50_000, training: model.Training{From: live.AddDate(0, 0, -4), To: live, Rows: 50_000},
		features: []model.Feature{{Name: "cpu_usage_percent", Type: model.Float}},
		known:    []model.Distribution{{Name: "cpu_usage_percent", Edges: []float64{30}, Counts: []int64{25_000, 25_000}}},
		score:    model.Distribution{Name: "power", Edges: []float64{250}, Counts: []int64{25_000, 25_000}},
		residual: &model.Residuals{Rows: []int64{1000}, Levels: []float64{0.05, 0.5, 0.95}, Quantiles: [][]float64{{-10, 0, 10}}}}
	m, db := start(t, b, known{"power_prediction_model": base}, func(p *plan) {
		only(p, "power_prediction_model")
		p.Window, p.Every, p.Hold, p.MinRows = 5*time.Minute, 5*time.Minute, 2, 100
		// One column of forty servers in five minutes says little; what is not left out
		// would be a distance of 0.6.
		p.Distance = 0.4
	})
	calm := sim(t, datacenter.Drift{})
	for day := range 4 {
		servers(t, db, calm, live.AddDate(0, 0, -1-day).Add(-30*time.Minute), live.AddDate(0, 0, -1-day).Add(time.Hour), time.Minute)
	}
	servers(t, db, calm, live, live.Add(30*time.Minute), 30*time.Second)
	if _, err := db.Exec(t.Context(), `INSERT INTO public.predictions ("timestamp", model, entity, model_version, prediction, actual, error, details, predicted_at)
		SELECT "timestamp", 'power_prediction_model', server_id, '4', power_consumption_watts - CASE WHEN "timestamp" >= $1::timestamptz + interval '10 minutes' THEN 40 ELSE 2 END,
			power_consumption_watts, 0, '{}', now() FROM public.server_metrics WHERE "timestamp" >= $1`, live); err != nil {
		t.Fatal(err)
	}
	// A tenth of the servers has an anomaly that shows in the CPU, and ends.
	if _, err := db.Exec(t.Context(), `WITH odd AS (UPDATE public.server_metrics SET cpu_usage_percent = 99 WHERE "timestamp" >= $1 AND server_id LIKE '%7' RETURNING server_id)
		INSERT INTO public.anomalies ("timestamp", entity_type, entity_id, anomaly_type, severity, anomaly_score, details, resolved, resolved_at)
		SELECT DISTINCT $1::timestamptz, 'server', server_id, 'stl', 'high', 0.9, '{}'::jsonb, true, $1::timestamptz + interval '40 minutes' FROM odd`, live); err != nil {
		t.Fatal(err)
	}
	for at := live.Add(5 * time.Minute); !at.After(live.Add(25 * time.Minute)); at = at.Add(5 * time.Minute) {
		if err := tick(t, m, at); err != nil {
			t.Fatal(err)
		}
	}
	got := rowsOf(t, db, `SELECT over, state, drifted_columns, reasons FROM drift.windows ORDER BY window_end`)
	want := []string{"false stable 0 []", "false stable 0 []",
		"true stable 0 [only 0 % of the actual values are where 90 % should be]", "true detected 0 [only 0 % of the actual values are where 90 % should be]",
		"true drifting 0 [only 0 % of the actual values are where 90 % should be]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Another version starts anew.
	base.version = "5"
	if err := tick(t, m, live.Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, db, `SELECT model_version, over, state, consecutive FROM drift.windows ORDER BY window_end DESC LIMIT 1`); got[0] != "5 false stable -1" {
		t.Error(got)
	}
	if got := toldOf(b); !slices.Contains(got, "detected power_prediction_model detected") {
		t.Error(got)
	}
}

// The purchase model with the bundle that ships, against features drawn from its
// baseline, and then against others.
func TestPurchaseModel_isMeasuredAgainstItsBundle(t *testing.T) {
	b := receiver.New(t, nil)
	m, db := start(t, b, &bundles{alias: "current", data: "kodata"}, func(p *plan) {
		only(p, "purchase_prediction_model")
		p.Window, p.Every, p.Hold, p.MinRows = 5*time.Minute, 5*time.Minute, 1, 1000
	})
	base, err := m.bundles.of(t.Context(), m.plan.Models[0])
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	draw := func(d *model.Distribution) (string, float64) {
		if len(d.Sample) > 0 {
			return "", d.Sample[r.IntN(len(d.Sample))]
		}
		at, n := 0, r.Int64N(base.rows)
		for n -= d.Missing; n >= 0 && at < len(d.Counts); at++ {
			n -= d.Counts[at]
		}
		if at == 0 {
			return "", 0
		}
		at--
		if d.Values == nil {
			low, high := d.Edges[max(0, at-1)], d.Edges[min(at, len(d.Edges)-1)]
			return "", low + (high-low)*(0.01+0.99*r.Float64())
		}
		list, _ := places(d.Values)
		for name, place := range list {
			if place == at {
				return name, 0
			}
		}
		return "another", 0
	}
	fill := func(from time.Time, change func(column string, text *string, number *float64)) {
		var rows [][]any
		for i := range 3000 {
			row := []any{int64(1), int64(2), from, from, from.Add(time.Duration(i) * 90 * time.Millisecond), fmt.Appendf(nil, "%d-%d", from.Unix(), i), "cart", "s"}
			for _, name := range []string{"brand", "price", "category_code_level1", "category_code_level2", "event_weekday", "activity_count"} {
				k := slices.IndexFunc(base.known, func(d model.Distribution) bool { return d.Name == name })
				text, number := draw(&base.known[k])
				change(name, &text, &number)
				switch name {
				case "price":
					row = append(row, number)
				case "event_weekday", "activity_count":
					row = append(row, int64(3))
				default:
					var p *string
					if text != "" {
						p = &text
					}
					row = append(row, p)
				}
			}
			rows = append(rows, row)
		}
		if _, err := db.CopyFrom(t.Context(), pgx.Identifier{"feature_store", "streaming_features"}, []string{"user_id", "product_id", "event_timestamp", "processed_at",
			"created_timestamp", "record_hash", "event_type", "user_session", "brand", "price", "category_code_level1", "category_code_level2", "event_weekday", "activity_count"},
			pgx.CopyFromRows(rows)); err != nil {
			t.Fatal(err)
		}
		// Its scores: those of the training data, and then of other sessions.
		if _, err := db.Exec(t.Context(), `INSERT INTO public.predictions ("timestamp", model, entity, model_version, prediction, details, predicted_at)
			SELECT created_timestamp, 'purchase_prediction_model', encode(record_hash, 'hex'), $1, ('x' || substr(md5(record_hash), 1, 6))::bit(24)::int / 16777216.0, '{}', now()
			FROM feature_store.streaming_features WHERE created_timestamp >= $2`, base.version, from); err != nil {
			t.Fatal(err)
		}
	}
	fill(live, func(string, *string, *float64) {})
	fill(live.Add(5*time.Minute), func(column string, text *string, number *float64) {
		*number *= 3
		if column != "price" && *text != "" {
			*text = "unheard of"
		}
	})
	for i := 1; i <= 2; i++ {
		if err := tick(t, m, live.Add(time.Duration(i)*5*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	got := rowsOf(t, db, `SELECT rows, state, coalesce((SELECT string_agg(name, ' ' ORDER BY name) FROM drift.measurements m WHERE m.window_end = w.window_end AND drifted AND kind = 'feature'), '') FROM drift.windows w ORDER BY window_end`)
	// Those that do not count are measured too: each row of both has one weekday.
	want := []string{"3000 stable activity_count event_weekday", "3000 detected activity_count brand category_code_level1 category_code_level2 event_weekday price"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var report Report
	if err := db.QueryRow(t.Context(), `SELECT report FROM drift.windows ORDER BY window_end DESC LIMIT 1`).Scan(&report); err != nil {
		t.Fatal(err)
	}
	if report.Performance == nil || report.Performance.Current.Rows != 3000 || report.Performance.Current.AUC == nil {
		t.Errorf("estimated performance: %+v", report.Performance)
	}
	if out := os.Getenv("DRIFT_REPORT_SHOP"); out != "" {
		var page strings.Builder
		if err := report.render(&page); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(out, []byte(page.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Each model of the plan has a bundle that ships, whose features its table has; models of
// servers are compared with its samples of the same hours, and a stream, of which there
// is no sample, with nothing.
func TestModelsThatShip_canBeMeasured(t *testing.T) {
	b := receiver.New(t, nil)
	m, db := start(t, b, &bundles{alias: "current", data: "kodata"}, func(p *plan) { p.MinRows = 100 })
	calm := sim(t, datacenter.Drift{})
	servers(t, db, calm, live.Add(-time.Hour), live, time.Minute)
	if err := tick(t, m, live); err != nil {
		t.Fatal(err)
	}
	got := rowsOf(t, db, `SELECT model, model_version <> '', rows > 100, columns, state FROM drift.windows ORDER BY model`)
	want := []string{"power_prediction_model true true 8 stable", "server_anomaly_model true true 10 stable", "stream/datacenter-server false true 0 stable"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, w := range m.plan.Models {
		if w.metrics != nil {
			continue
		}
		base, err := m.bundles.of(t.Context(), w)
		if err != nil {
			t.Errorf("%s: %v", w.Name, err)
			continue
		}
		list, err := columnsOf(base.features)
		if err != nil {
			t.Error(err)
		}
		if err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			_, err := read(t.Context(), tx, w, list, []window{{live.Add(-time.Hour), live}}, 100)
			return err
		}); err != nil {
			t.Errorf("%s: %v", w.Name, err)
		}
	}
}

func TestNothingThere_isNoFailure(t *testing.T) {
	b := receiver.New(t, nil)
	m, db := start(t, b, known{}, func(*plan) {})
	if err := tick(t, m, live); err != nil {
		t.Error(err)
	}
	if got := rowsOf(t, db, `SELECT count(*) FROM drift.windows`); got[0] != "0" || len(toldOf(b)) != 0 {
		t.Error(got)
	}
	if err := m.Handle(t.Context(), []event.Event{event.New()})[0].Err; err == nil {
		t.Error("an event that is no tick was taken")
	}
	db.Close()
	if err := tick(t, m, live); err == nil {
		t.Error("without a database the tick must come again")
	}
}

func TestFollow_isSlowBothWays(t *testing.T) {
	run := func(hold int, windows string) (out string) {
		var past []row
		for _, c := range windows {
			r := &Report{Version: "1", Judged: c != '?', Over: c == 'x'}
			if c == 'v' {
				r.Version = "2"
			}
			follow(r, past, hold)
			past = []row{{version: r.Version, consecutive: r.Consecutive, state: r.State}}
			out += map[string]string{stable: ".", detected: "D", drifting: "d", resolved: "R"}[r.State]
		}
		return out
	}
	for _, c := range []struct {
		hold          int
		windows, want string
	}{
		{3, "xxxxx", "..Ddd"},
		{3, "xx.xx.xxx", "........D"},
		{3, "xxx..x...x", "..Dddddd" + "R."},
		{3, "xx?x?xx", "...Dddd"},
		{1, "x.x.", "DRDR"},
		{2, "xxxvxx", ".Dd..D"},
		{2, "....", "...."},
	} {
		if got := run(c.hold, c.windows); got != c.want {
			t.Errorf("hold %d, %s: %s, want %s", c.hold, c.windows, got, c.want)
		}
	}
}

func TestWindow_isComparedWithItsHours(t *testing.T) {
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 3, day, hour, minute, 0, 0, time.UTC) }
	now := window{at(18, 9, 0), at(18, 10, 0)} // a Wednesday
	got := now.slices(window{at(13, 9, 30), at(18, 9, 0)})
	want := []window{{at(17, 9, 0), at(17, 10, 0)}, {at(16, 9, 0), at(16, 10, 0)}, {at(13, 9, 30), at(13, 10, 0)}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workdays (-want +got):\n%s", diff)
	}
	// There are weekends alone.
	if got := now.slices(window{at(14, 0, 0), at(16, 0, 0)}); len(got) != 2 || got[0].From != at(15, 9, 0) {
		t.Errorf("%v", got)
	}
	if got := now.slices(window{at(17, 11, 0), at(18, 5, 0)}); len(got) != 0 {
		t.Errorf("of a range without that hour: %v", got)
	}
	short := window{at(18, 0, 10), at(18, 0, 20)}
	if got := short.slices(window{at(17, 0, 0), at(18, 0, 0)}); len(got) != 2 || got[0].From != at(17, 23, 45) || got[1].To != at(17, 0, 45) {
		t.Errorf("%v", got)
	}
	day := window{at(17, 9, 0), at(18, 9, 0)}
	if got := day.slices(window{at(1, 0, 0), at(17, 0, 0)}); len(got) != 1 || got[0].From != at(1, 0, 0) {
		t.Errorf("%v", got)
	}
	if w := last(at(18, 9, 7), 10*time.Second, 5*time.Minute, time.Hour); w.To != at(18, 9, 5) || w.From != at(18, 8, 5) {
		t.Errorf("%v", w)
	}
	if !now.at(at(4, 9, 30)) || now.at(at(4, 10, 1)) || now.at(at(7, 9, 30)) {
		t.Error("other times are of the hour")
	}
}

func TestPlan_isStrict(t *testing.T) {
	text := string(embeddedModels)
	for _, c := range []struct{ old, new, want string }{
		{"every: 5m", "every: 5m\nevry: 1m", `unknown field "evry"`},
		{"every: 5m", "every: 1ms", "every:"},
		{"window: 1h", "window: 1m", "window:"},
		{"hold: 3", "hold: 0", "hold:"},
		{"minRows: 500", "minRows: 0", "minRows"},
		{"minRows: 500", "minRows: 500\nshare: 2", "share:"},
		{"public.server_metrics", "server_metrics", "table:"},
		{"classifier: true", "classifier: true\n    regression: true", "only one"},
		{"power_prediction_model", "purchase_prediction_model", "given twice"},
		{"power_prediction_model", "a/b", "name:"},
		{"fallback: power", "fallback: ../power", "fallback:"},
	} {
		file := t.TempDir() + "/models.yaml"
		if err := os.WriteFile(file, []byte(strings.Replace(text, c.old, c.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openPlan(&Config{Models: file}, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.new, err, c.want)
		}
	}
}

// The report has no number that JSON cannot write, whatever the data.
func TestReport_ofOddData(t *testing.T) {
	for _, c := range [][2][]float64{{{1, 1, 1}, {1, 1}}, {{1, 2, 3}, nil}, {nil, {1}}, {nil, nil}, {{-1e300, 1e300}, {0}}} {
		r := &Report{Kind: "stream", Columns: []Column{}, Reasons: []string{}}
		w := &watched{Seasonal: true}
		results := r.judgeColumns(w, nil, []column{{name: "<x>"}}, &table{columns: []values{{numbers: c[1]}}},
			newHistory([]*table{{rows: 3, columns: []values{{numbers: c[0]}}}}), (&plan{}).limits())
		r.conclude(&plan{}, results)
		if _, err := json.Marshal(r); err != nil {
			t.Errorf("%v: %v", c, err)
		}
		var page strings.Builder
		if err := r.render(&page); err != nil || strings.Contains(page.String(), "<x>") {
			t.Errorf("%v: %v", c, err)
		}
	}
}

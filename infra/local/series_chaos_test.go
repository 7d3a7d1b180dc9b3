package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/model"
)

// The size of a round: how many readings there are, of which two of five come again,
// and how many parts of the platform are killed meanwhile. SERIES_ROUNDS and
// SERIES_READINGS make the test longer, SERIES_SEED repeats one.
const (
	seriesRounds   = 1
	seriesReadings = 4200
	seriesKills    = 3
)

// While parts of the platform are killed at random, PostgreSQL and Redis among them,
// and readings come again, late and in another order, the tables of readings have each
// of them once, and that of anomalies has exactly those that the same models find in
// the same readings when nothing is disturbed.
func TestAnomaliesAreExactWhateverIsKilled(t *testing.T) {
	t.Parallel()
	rounds, readings := number(t, "SERIES_ROUNDS", seriesRounds), number(t, "SERIES_READINGS", seriesReadings)
	seed := number(t, "SERIES_SEED", int(rand.Int32()))
	t.Logf("SERIES_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	p := newPlatform(t, "MILLRACE_FUNCTIONS=validate,store,detect,deadletter")
	p.start()
	p.needDatabase()
	s := newSeries(t, p, uint64(seed))
	s.learn()
	for round := range rounds {
		s.storm(rng, readings, seriesKills)
		s.check()
		t.Logf("round %d: %d readings and %d anomalies are as they should be", round+1, len(s.readings), len(s.anomalies))
	}
	p.stop()
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// series is what is sent, and what should become of it.
type series struct {
	t      *testing.T
	p      *platformProcess
	sim    *datacenter.Sim
	cfg    datacenter.Config
	stream *contract.Stream
	plans  map[string]*anomaly.Plan
	know   map[string]*entityOf
	next   time.Time

	readings  []string // sorted, of all that was sent
	anomalies map[string]string
}

// entityOf is an undisturbed detector's of one entity.
type entityOf struct {
	plan  *anomaly.Plan
	state *anomaly.State
	known anomaly.Entity
}

func newSeries(t *testing.T, p *platformProcess, seed uint64) *series {
	t.Helper()
	cfg, err := datacenter.Named("dev", "h")
	if err != nil {
		t.Fatal(err)
	}
	// Of days that are kept, and nothing depends on the clock.
	cfg.Servers, cfg.Services, cfg.Seed, cfg.LiveFrom = 20, 8, seed, time.Now().UTC().AddDate(0, 0, -5).Truncate(24*time.Hour)
	s := &series{t: t, p: p, cfg: cfg, plans: map[string]*anomaly.Plan{}, know: map[string]*entityOf{}, next: cfg.LiveFrom, anomalies: map[string]string{}}
	if s.sim, err = datacenter.New(cfg); err != nil {
		t.Fatal(err)
	}
	set, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	s.stream, _ = set.ByTopic("datacenter-metrics")
	bundle, err := model.Load(t.Context(), model.Folder(filepath.Join(checkout(), "functions", "detect", "kodata", "forests", "server_anomaly_model")))
	if err != nil {
		t.Fatal(err)
	}
	forest := &anomaly.Forest{}
	if err := forest.Use(bundle, "starter"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"datacenter-server", "datacenter-application"} {
		c, _ := set.Contract(name)
		if s.plans[name], err = anomaly.NewPlan(c, forest); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// at are the records of all entities at a time.
func (s *series) at(at time.Time) (list []*kgo.Record) {
	add := func(key string, value []byte) {
		list = append(list, &kgo.Record{Topic: "datacenter-metrics", Key: []byte(key), Value: value})
	}
	var server datacenter.ServerReading
	for i := range s.cfg.Servers {
		s.sim.Server(i, at, &server)
		add(server.Server, server.AppendJSON(nil))
	}
	var service datacenter.ServiceReading
	for i := range s.cfg.Services {
		s.sim.Service(i, at, &service)
		add(service.Server, service.AppendJSON(nil))
	}
	return list
}

// expect notes that records are sent, and what they should lead to.
func (s *series) expect(records []*kgo.Record) {
	s.t.Helper()
	var lines []byte
	for _, r := range records {
		lines = append(append(lines, r.Value...), '\n')
		s.judge(r)
	}
	s.readings = append(s.readings, validReadings(s.t, lines)...)
}

// judge does what detect should do.
func (s *series) judge(record *kgo.Record) {
	s.t.Helper()
	v := s.stream.Check(record.Value, time.Now())
	if v.Outcome != contract.Valid {
		s.t.Fatalf("%s", v.Body)
	}
	plan := s.plans[v.Contract.Name]
	values, err := v.Contract.Reader().Read(v.Body)
	var r anomaly.Reading
	if err == nil {
		err = plan.Fill(&r, values)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	e := s.know[v.Contract.Name+":"+r.Entity]
	if e == nil {
		return // of the history, of which nothing is judged yet
	}
	events, _, _ := e.plan.Observe(e.state, &e.known, &r, nil)
	e.state.Version++
	e.state.Forget()
	for _, event := range events {
		a := &event.Anomaly
		s.anomalies[a.EntityType+" "+a.EntityID+" "+a.Type+" "+micros(a.Timestamp)] = outcomeOf(a.Severity, a.Score, a.ResolvedAt)
	}
}

func micros(at time.Time) string { return strconv.FormatInt(at.UnixMicro(), 10) }

func outcomeOf(severity string, score float64, resolved *time.Time) string {
	end := "open"
	if resolved != nil {
		end = micros(*resolved)
	}
	return fmt.Sprintf("%s %.4f until %s", severity, score, end)
}

// produce sends records in their order, 1000 a second and no more than upTo allows, so
// that parts are killed in the middle of them; done counts.
func (s *series) produce(records []*kgo.Record, upTo, done *atomic.Int64) {
	client := s.p.kafka(kgo.ProducerLinger(0), kgo.RecordDeliveryTimeout(patience))
	const chunk = 20
	for i := 0; i < len(records); i += chunk {
		for int64(i) >= upTo.Load() && !s.t.Failed() {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(chunk * time.Millisecond) // the rate is what is wanted
		for _, record := range records[i:min(i+chunk, len(records))] {
			client.Produce(context.WithoutCancel(s.t.Context()), record, func(_ *kgo.Record, err error) {
				if err != nil {
					s.t.Errorf("sending a reading: %v", err)
				}
				done.Add(1)
			})
		}
	}
	if err := client.Flush(running(s.t)); err != nil {
		s.t.Errorf("sending readings: %v", err)
	}
}

// learn sends a day of history, lets detect learn from it, and takes what it then
// knows: models, and what it remembers of the readings.
func (s *series) learn() {
	s.t.Helper()
	var records []*kgo.Record
	for at := s.next.Add(-24 * time.Hour); at.Before(s.next); at = at.Add(10 * time.Minute) {
		records = append(records, s.at(at)...)
	}
	s.expect(records)
	client := s.p.kafka()
	if err := client.ProduceSync(running(s.t), records...).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
	s.stored()
	detect, ok := s.p.process("detect")
	if !ok {
		s.t.Fatal("there is no process detect")
	}
	var said string
	eventually(s.t, "detect has learnt", func() bool {
		said = s.tick("http://" + detect.Address)
		return said == ""
	}, func() string { return said })

	all := redis.NewClient(&redis.Options{Addr: local(s.p.base + 4), Protocol: 2, DisableIdentity: true})
	defer all.Close()
	get := func(key string) []byte {
		b, err := all.Get(running(s.t), key).Bytes()
		if err != nil {
			s.t.Fatalf("%s: %v", key, err)
		}
		return b
	}
	for name, plan := range s.plans {
		entities, err := all.SMembers(running(s.t), "anomaly:entities:"+name).Result()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, entity := range entities {
			models, err := anomaly.ParseModels(get("anomaly:model:" + name + ":" + entity))
			if err != nil {
				s.t.Fatal(err)
			}
			e := &entityOf{plan: plan, known: anomaly.Entity{Models: make([]*anomaly.Model, len(plan.Metrics))}}
			for i, metric := range plan.Metrics {
				e.known.Models[i] = models[metric]
			}
			if e.state, err = plan.ParseState(get("anomaly:state:" + name + ":" + entity)); err != nil {
				s.t.Fatal(err)
			}
			s.know[name+":"+entity] = e
		}
	}
	if len(s.know) != s.cfg.Servers+s.cfg.Services {
		s.t.Fatalf("%d entities are known", len(s.know))
	}
	for key, outcome := range s.anomalyRows() {
		s.anomalies[key] = outcome // of the history: by the forest, which comes with the program
	}
}

// tick lets detect learn, and says what is still missing.
func (s *series) tick(address string) string {
	body := `{"specversion":"1.0","id":"` + strconv.FormatInt(time.Now().UnixNano(), 10) +
		`","source":"/apis/v1/namespaces/millrace/pingsources/detect-train","type":"dev.knative.sources.ping","datacontenttype":"application/json","data":{}}`
	resp, err := http.Post(address, "application/cloudevents+json", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	_ = resp.Body.Close()
	if resp, err = http.Get(address + "/models"); err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var answer struct {
		Models []struct {
			Entity string `json:"entity"`
			Status string `json:"status"`
		} `json:"models"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err.Error()
	}
	warming := 0
	for _, m := range answer.Models {
		if m.Status == "warming" {
			warming++
		}
	}
	if warming > 0 || len(answer.Models) == 0 {
		return fmt.Sprintf("%d of %d metrics have no model", warming, len(answer.Models))
	}
	return ""
}

// storm sends new readings in their order, and among them others again, while parts of
// the platform are killed.
func (s *series) storm(rng *rand.Rand, readings, kills int) {
	s.t.Helper()
	var records []*kgo.Record
	for len(records) < readings {
		records = append(records, s.at(s.next)...)
		s.next = s.next.Add(s.cfg.Interval)
	}
	s.expect(records)
	// Two of five come again, in any order, somewhere behind where they came first.
	type delivery struct {
		place  float64
		record kgo.Record
	}
	var all []delivery
	for i, r := range records {
		all = append(all, delivery{float64(i), *r})
		if rng.IntN(5) < 2 {
			all = append(all, delivery{float64(i) + rng.Float64()*float64(len(records)-i), *r})
		}
	}
	slices.SortStableFunc(all, func(a, b delivery) int { return cmp.Compare(a.place, b.place) })
	list := make([]*kgo.Record, len(all))
	for i := range all {
		list[i] = &all[i].record
	}
	var done, upTo atomic.Int64
	part := int64(len(list)) / int64(2*kills+2)
	upTo.Store(2 * part)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		s.produce(list, &upTo, &done)
	}()
	parts := []string{"store", "detect", "validate", "runner", "redis", "postgres", "kafka"}
	rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	for k := range kills {
		reached := int64(2*k+1) * part
		eventually(s.t, "more readings are sent", func() bool { return done.Load() >= reached }, func() string { return fmt.Sprint(done.Load(), " of ", len(list)) })
		victim := parts[k%len(parts)]
		if _, ok := s.p.process(victim); !ok && victim != "runner" {
			victim = "runner" // it is embedded there
		}
		upTo.Store(reached + 2*part)
		s.t.Logf("killing %s after %d of %d deliveries", victim, done.Load(), len(list))
		s.p.killParts(victim)
	}
	upTo.Store(int64(len(list)))
	<-sent
}

// stored waits until all readings are in their tables, and requires that nothing else
// is.
func (s *series) stored() {
	s.t.Helper()
	slices.Sort(s.readings)
	var got []string
	eventually(s.t, "all readings are stored", func() bool {
		rows, err := s.query(`
			SELECT to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') || ' ' || server_id || ' ' || cpu_usage_percent || ' ' || power_consumption_watts FROM public.server_metrics
			UNION ALL
			SELECT to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') || ' ' || service_name || ' ' || response_time_p99_ms || ' ' || error_count FROM public.application_metrics`)
		if err == nil {
			got = rows
		}
		return err == nil && len(got) >= len(s.readings)
	}, func() string { return fmt.Sprint(len(got), " of ", len(s.readings)) })
	slices.Sort(got)
	if diff := gocmp.Diff(s.readings, got); diff != "" {
		s.t.Fatalf("readings (-sent +stored):\n%.2000s", diff)
	}
}

func (s *series) query(sql string) ([]string, error) {
	// A connection of its own: PostgreSQL may have been killed since.
	conn, err := pgx.Connect(running(s.t), s.p.databaseURL(databaseName))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(running(s.t)) }()
	rows, err := conn.Query(running(s.t), sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// anomalyRows are those of the table, by key.
func (s *series) anomalyRows() map[string]string {
	rows, err := s.query(`SELECT json_build_object('timestamp', "timestamp", 'entity_type', entity_type, 'entity_id', entity_id, 'anomaly_type', anomaly_type,
		'severity', severity, 'anomaly_score', anomaly_score, 'resolved', resolved, 'resolved_at', resolved_at, 'details', details)::text FROM public.anomalies`)
	if err != nil {
		return nil // it is asked again
	}
	all := map[string]string{}
	for _, text := range rows {
		var a anomaly.Anomaly
		if err := json.NewDecoder(bytes.NewReader([]byte(text))).Decode(&a); err != nil {
			s.t.Fatalf("%v: %s", err, text)
		}
		all[a.EntityType+" "+a.EntityID+" "+a.Type+" "+micros(a.Timestamp)] = outcomeOf(a.Severity, a.Score, a.ResolvedAt)
	}
	return all
}

// check compares the tables with what should be in them.
func (s *series) check() {
	s.t.Helper()
	s.stored()
	var diff string
	eventually(s.t, "all anomalies are stored", func() bool {
		diff = gocmp.Diff(s.anomalies, s.anomalyRows())
		return diff == ""
	}, func() string { return fmt.Sprintf("anomalies (-computed +stored):\n%.4000s", diff) })
	// What is still on its way would be too much.
	eventually(s.t, "nothing is on its way", func() bool {
		status, err := s.p.askStatus()
		if err != nil {
			return false
		}
		return !slices.ContainsFunc(status.Deliveries, func(d Delivery) bool { return d.Lag > 0 || d.InFlight > 0 })
	}, func() string { return "events are on their way" })
	s.stored()
	if diff := gocmp.Diff(s.anomalies, s.anomalyRows()); diff != "" {
		s.t.Fatalf("anomalies (-computed +stored):\n%.4000s", diff)
	}
	if len(s.anomalies) == 0 {
		s.t.Fatal("there are no anomalies")
	}
}

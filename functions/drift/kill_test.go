package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
	"github.com/millrace-dev/millrace/shared/testkit/child"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/receiver"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// The process is killed while it writes a window, while it tells of one, and so is the
// database: each window has one row, its statistics and its report are there once, and its
// events have come, each with the id that it always has.
func TestKilled_eachWindowIsStoredOnceAndTold(t *testing.T) {
	server := pgtest.Own(t)
	db, err := warehouse.Config{URL: server.URL(), MaxConns: 2}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	calm := sim(t, datacenter.Drift{})
	servers(t, db, calm, live.AddDate(0, 0, -1).Add(-30*time.Minute), live.AddDate(0, 0, -1).Add(time.Hour), time.Minute)
	servers(t, db, sim(t, datacenter.Drift{Kind: datacenter.WorkloadDrift, At: live, Size: 0.8}), live, live.Add(30*time.Minute), 30*time.Second)
	// The first request hangs until the process is dead: its answer is lost.
	arrived, hang := make(chan struct{}, 100), make(chan struct{})
	broker := receiver.New(t, func(int) int {
		arrived <- struct{}{}
		<-hang
		return http.StatusAccepted
	})
	models := filepath.Join(t.TempDir(), "models.yaml")
	if err := os.WriteFile(models, []byte("every: 5m\nwindow: 10m\nhold: 1\nminRows: 300\nmaxRows: 12000\nstreams: true\nstreamDays: 7\nmodels: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s3, bucket := laketest.Start(t), laketest.Bucket()
	p := child.Start(t, "FUNCTION_NAME=drift", "DATABASE_URL="+server.URL(), "K_SINK="+broker.URL, "DRIFT_MODELS="+models, "DRIFT_LAG=0s", "DRIFT_BUCKET="+bucket,
		"S3_ENDPOINT="+s3.Endpoint, "S3_ACCESS_KEY="+s3.AccessKey, "S3_SECRET_KEY="+s3.SecretKey, "S3_REGION="+s3.Region)
	tickOf := func(at time.Time) *events.Message {
		return &events.Message{Data: []byte("{}"), Attrs: []events.Attr{{Name: "specversion", Value: "1.0"}, {Name: "id", Value: fmt.Sprint(time.Now().UnixNano())},
			{Name: "source", Value: "/apis/v1/namespaces/millrace/pingsources/drift-tick"}, {Name: "type", Value: events.Tick},
			{Name: "time", Value: at.Format(time.RFC3339)}, {Name: "datacontenttype", Value: "application/json"}}}
	}
	send := func(at time.Time) (done chan int) {
		done = make(chan int, 1)
		go func() { done <- p.Post(tickOf(at)) }()
		return done
	}
	// Killed with a window half written: it waits for a lock within its transaction.
	unlock := server.Lock("drift.measurements")
	first := live.Add(10 * time.Minute)
	done := send(first)
	p.Eventually("drift waits within its transaction", func() bool {
		return rowsOf(t, db, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'drift.measurements'::regclass`)[0] != "0"
	})
	p.Kill()
	if status := <-done; status != 0 {
		t.Fatalf("the tick was answered with %d", status)
	}
	unlock()
	p.Eventually("what was half written is undone", func() bool {
		return rowsOf(t, db, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'`)[0] == "0"
	})
	if got := rowsOf(t, db, `SELECT count(*) FROM drift.windows`); got[0] != "0" {
		t.Errorf("windows after the first kill: %v", got)
	}
	// Killed while the Broker has its event and has not said so.
	p.Run()
	done = send(first)
	<-arrived
	p.Kill()
	if status := <-done; status != 0 {
		t.Fatalf("the tick was answered with %d", status)
	}
	close(hang)
	if got := rowsOf(t, db, `SELECT count(*), count(sent_at) FROM drift.windows`); got[0] != "1 0" {
		t.Errorf("windows after the second kill, and told of: %v", got)
	}
	// PostgreSQL is away when the next tick comes, and back with all that it had said.
	p.Run()
	server.Crash()
	if status := p.Post(tickOf(first.Add(5 * time.Minute))); status != http.StatusServiceUnavailable {
		t.Errorf("without a database a tick is answered with %d", status)
	}
	server.Start()
	for i := range 3 {
		p.Eventually("a tick is done", func() bool {
			return p.Post(tickOf(first.Add(time.Duration(i)*5*time.Minute)))/100 == 2
		})
	}
	p.Eventually("the database answers the test again", func() bool { return db.Ping(t.Context()) == nil })
	if got := rowsOf(t, db, `SELECT count(*), count(DISTINCT window_end), count(sent_at) FROM drift.windows`); got[0] != "3 3 3" {
		t.Errorf("windows, different, told of: %v", got)
	}
	if got := rowsOf(t, db, `SELECT count(*), count(DISTINCT (model, window_end, kind, name, statistic)) FROM drift.measurements`); got[0] == "0 0" ||
		strings.Fields(got[0])[0] != strings.Fields(got[0])[1] {
		t.Errorf("statistics, and different ones: %v", got)
	}
	store, err := s3.Connect()
	if err != nil {
		t.Fatal(err)
	}
	var reports []string
	for o, err := range store.List(t.Context(), bucket, "drift/", "") {
		if err != nil {
			t.Fatal(err)
		}
		reports = append(reports, o.Key)
	}
	if len(reports) != 3 {
		t.Errorf("reports: %v", reports)
	}
	// What was told twice is one event: same id, same data.
	data, times := map[string]string{}, map[string]int{}
	var kinds []string
	for _, m := range broker.Events() {
		id := m.Get("id")
		if times[id]++; times[id] == 1 {
			data[id] = string(m.Data)
			kinds = append(kinds, strings.TrimPrefix(m.Get("type"), "dev.millrace.drift.")+" "+m.Get("state"))
		} else if data[id] != string(m.Data) {
			t.Errorf("event %s came with other data", id)
		}
	}
	slices.Sort(kinds)
	if want := []string{"detected.v1 detected", "measured.v1 detected", "measured.v1 drifting", "measured.v1 drifting"}; !slices.Equal(kinds, want) {
		t.Errorf("told of %v, want %v", kinds, want)
	}
	if len(data) == len(broker.Events()) {
		t.Error("nothing was told twice: the kill came too late")
	}
}

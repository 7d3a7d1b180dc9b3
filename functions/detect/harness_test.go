package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// childVariable makes the test program the function itself, as a process that can be
// killed.
const childVariable = "DETECT_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		main()
		return
	}
	pgtest.Main(m)
}

// harness is the function as a process, with a Redis, a PostgreSQL and a Broker that
// keeps what is sent to it.
type harness struct {
	t        testing.TB
	redis    *redistest.Server
	database string
	broker   *httptest.Server
	port     int
	cmd      *exec.Cmd
	contract *contract.Stream

	mu   sync.Mutex
	told map[string]event.Event // by id: what comes twice is one
}

func start(t testing.TB, env ...string) *harness {
	t.Helper()
	h := &harness{t: t, redis: redistest.Start(t), database: pgtest.URL(t), told: map[string]event.Event{}}
	h.redis.NeedsProcess()
	db, err := warehouse.Config{URL: h.database, MaxConns: 1}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	contracts, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	h.contract, _ = contracts.ByTopic("datacenter-metrics")
	h.broker = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if strings.HasPrefix(r.Header.Get("Content-Type"), events.ContentTypeBatch) {
			h.note(body)
		} else {
			e := event.New()
			e.SetID(r.Header.Get("Ce-Id"))
			e.SetType(r.Header.Get("Ce-Type"))
			_ = e.SetData(event.ApplicationJSON, json.RawMessage(body))
			h.keep(e)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(h.broker.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.port = listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()
	t.Cleanup(h.kill)
	h.run(env...)
	return h
}

// run starts the process and waits until it is ready.
func (h *harness) run(env ...string) {
	h.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1", "FUNCTION_NAME=detect", "LISTEN_HOST=127.0.0.1", "PORT="+strconv.Itoa(h.port),
		"REDIS_URL="+h.redis.URL, "DATABASE_URL="+h.database, "K_SINK="+h.broker.URL, "LOG_LEVEL=error", "REDIS_TIMEOUT=20s")
	cmd.Env = append(cmd.Env, env...)
	var said bytes.Buffer // what it says of outages is for when something else is wrong
	cmd.Stderr = &said
	h.t.Cleanup(func() {
		h.kill()
		if h.t.Failed() {
			h.t.Logf("the process said: %s", said.Bytes()[max(0, said.Len()-4000):])
		}
	})
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.cmd = cmd
	h.wait("the function is ready", func() bool {
		resp, err := http.Get(h.url() + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (h *harness) url() string { return fmt.Sprintf("http://127.0.0.1:%d", h.port) }

func (h *harness) kill() {
	if h.cmd != nil {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait() // that it was killed
		h.cmd = nil
	}
}

func (h *harness) wait(what string, met func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// note keeps the events of a batch.
func (h *harness) note(body []byte) {
	var list []event.Event
	if err := json.Unmarshal(body, &list); err != nil {
		h.t.Errorf("%v: %s", err, body)
		return
	}
	for _, e := range list {
		h.keep(e)
	}
}

func (h *harness) keep(e event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before, ok := h.told[e.ID()]; ok && !bytes.Equal(before.Data(), e.Data()) {
		h.t.Errorf("event %s says two things:\n%s\n%s", e.ID(), before.Data(), e.Data())
	}
	h.told[e.ID()] = e
}

// send delivers a batch once. It tells whether it was taken.
func (h *harness) send(list []event.Event) bool {
	h.t.Helper()
	body, err := json.Marshal(list)
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.Post(h.url(), events.ContentTypeBatch, strings.NewReader(string(body)))
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return false
	}
	switch resp.StatusCode {
	case http.StatusOK:
		h.note(text)
	case http.StatusAccepted:
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return false
	default:
		h.t.Fatalf("%s: %s", resp.Status, text)
	}
	return true
}

// deliver sends a batch until it is taken.
func (h *harness) deliver(list []event.Event) {
	h.t.Helper()
	h.wait("a batch is taken", func() bool { return h.send(list) })
}

// validated is the event of a reading as validate replies it.
func (h *harness) validated(reading []byte) event.Event {
	v := h.contract.Check(reading, time.Now())
	if v.Outcome != contract.Valid {
		h.t.Fatalf("%s", v.Body)
	}
	e := event.New()
	e.SetID(fmt.Sprintf("%s@%d", v.Key, v.Time.UnixMicro()))
	e.SetSource("/millrace/validate")
	e.SetType(v.Type)
	e.SetTime(v.Time)
	e.SetExtension(events.PartitionKey, v.Key)
	e.SetExtension(events.Contract, v.Contract.Name)
	_ = e.SetData(event.ApplicationJSON, json.RawMessage(v.Body))
	return e
}

func (h *harness) tick() {
	h.t.Helper()
	e := event.New()
	e.SetID(fmt.Sprint(time.Now().UnixNano()))
	e.SetSource("/apis/v1/namespaces/millrace/pingsources/detect-train")
	e.SetType(events.Tick)
	_ = e.SetData(event.ApplicationJSON, json.RawMessage("{}"))
	h.deliver([]event.Event{e})
}

// models asks for the models, and counts them by status.
func (h *harness) models() (list []shownModel, by map[string]int) {
	h.t.Helper()
	resp, err := http.Get(h.url() + "/models")
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Models []shownModel }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		h.t.Fatal(err)
	}
	by = map[string]int{}
	for _, m := range answer.Models {
		by[m.Status]++
	}
	return answer.Models, by
}

// backfill writes days of a simulation's servers into the table that store writes.
func (h *harness) backfill(cfg datacenter.Config, days int) {
	h.t.Helper()
	sim, err := datacenter.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	conn, err := pgx.Connect(h.t.Context(), h.database)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = conn.Close(h.t.Context()) }()
	var rows [][]any
	var r datacenter.ServerReading
	for at := cfg.LiveFrom.Add(-time.Duration(days) * 24 * time.Hour); at.Before(cfg.LiveFrom); at = at.Add(5 * time.Minute) {
		for i := range cfg.Servers {
			sim.Server(i, at, &r)
			row := []any{r.Time, r.Server}
			for _, v := range r.Values {
				row = append(row, v)
			}
			rows = append(rows, row)
		}
	}
	columns := append([]string{"timestamp", "server_id"}, datacenter.ServerMetrics[:]...)
	if _, err := conn.CopyFrom(h.t.Context(), pgx.Identifier{"public", "server_metrics"}, columns, pgx.CopyFromRows(rows)); err != nil {
		h.t.Fatal(err)
	}
}

// anomalies are what was told, by key, as they stand in a table: one row each.
func (h *harness) anomalies() map[string]anomaly.Anomaly {
	h.mu.Lock()
	defer h.mu.Unlock()
	rows := map[string]anomaly.Anomaly{}
	for _, e := range h.told {
		var a anomaly.Anomaly
		if err := json.Unmarshal(e.Data(), &a); err != nil {
			h.t.Fatalf("%v: %s", err, e.Data())
		}
		key := a.EntityType + " " + a.EntityID + " " + a.Type + " " + a.Timestamp.Format(time.RFC3339Nano)
		if before, ok := rows[key]; !ok || a.Resolved && !before.Resolved || a.Resolved == before.Resolved && a.Score > before.Score {
			rows[key] = a
		}
	}
	return rows
}

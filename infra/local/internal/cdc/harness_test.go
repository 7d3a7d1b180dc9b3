package cdc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

// patience bounds every wait for a condition, on slow machines too.
const patience = 2 * time.Minute

// childVariable makes the test binary a capture that can be killed.
const childVariable = "CDC_TEST_CHILD"

func TestMain(m *testing.M) {
	if brokers := os.Getenv(childVariable); brokers != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		cfg := config(os.Getenv("DATABASE_URL"), brokers)
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
		err := Run(ctx, cfg)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

const topic = "tracking_postgres_cdc.public.events"

// config captures public.events; the slot is named for the database, since the
// server's slots share one space of names.
func config(address, brokers string) Config {
	parsed, err := pgx.ParseConfig(address)
	if err != nil {
		panic(err) // pgtest's
	}
	return Config{
		DatabaseURL: address, Table: "public.events", Prefix: "tracking_postgres_cdc",
		Slot: "cdc_" + parsed.Database, Publication: "cdc",
		Kafka: []kgo.Opt{kgo.SeedBrokers(brokers), kgo.MetadataMinAge(100 * time.Millisecond)},
	}
}

// world is a database, a Kafka and a capture between them.
type world struct {
	*testing.T
	db      *pgxpool.Pool
	address string
	brokers string
	kafka   *kfake.Cluster
	log     *output
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, address: pgtest.URL(t), log: &output{}}
	var err error
	if w.kafka, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topic)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.kafka.Close)
	w.brokers = w.kafka.ListenAddrs()[0]
	if w.db, err = pgxpool.New(t.Context(), w.address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.db.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the capture said:\n%s", w.log)
		}
		w.dropSlot()
	})
	return w
}

// dropSlot makes room: a server has few slots.
func (w *world) dropSlot() { w.dropSlotNamed(w.slot()) }

func (w *world) dropSlotNamed(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for slots := 1; slots > 0 && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		_, _ = w.db.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active", name)
		_ = w.db.QueryRow(ctx, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", name).Scan(&slots)
	}
}

func (w *world) slot() string { return config(w.address, w.brokers).Slot }

func (w *world) exec(sql string, args ...any) {
	w.Helper()
	if _, err := w.db.Exec(w.Context(), sql, args...); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) text(sql string, args ...any) string {
	w.Helper()
	var s string
	if err := w.db.QueryRow(w.Context(), sql, args...).Scan(&s); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	return s
}

// eventually waits for a condition.
func (w *world) eventually(what string, holds func() bool) {
	w.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("still waiting: %s", what)
		}
	}
}

// output is written by a capture and read by the test.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) count(text string) int { return strings.Count(o.String(), text) }

// capture runs a capture in this process; stop ends it cleanly.
func (w *world) capture() (stop func()) {
	w.Helper()
	cfg := config(w.address, w.brokers)
	cfg.Log = slog.New(slog.NewTextHandler(w.log, nil))
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Run(ctx, cfg); err != nil {
			w.Errorf("the capture ended: %v", err)
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	w.Cleanup(stop)
	return stop
}

// process runs a capture as a process of its own, which kill ends at once.
func (w *world) process() (kill func()) {
	w.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+w.brokers, "DATABASE_URL="+w.address)
	cmd.Stdout, cmd.Stderr = w.log, w.log
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	var once sync.Once
	kill = func() { once.Do(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) }
	w.Cleanup(kill)
	return kill
}

// event is a record of the topic, as far as tests look at it.
type event struct {
	Offset  int64
	ID      string
	Key     map[string]any // nil: no key
	NewKey  string         // header
	OldKey  string         // header
	Value   []byte
	Op      string
	Before  map[string]any
	After   map[string]any
	Source  map[string]any
	Schema  json.RawMessage
	Dropped bool // a tombstone
}

// records reads the whole topic.
func (w *world) records() []event { return readTopic(w.T, w.brokers, topic) }

func readTopic(t *testing.T, brokers, topic string) []event {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	end := ends[topic][0].Offset
	var list []event
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for next := int64(0); next < end; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			list = append(list, parseEvent(t, r))
		})
	}
	return list
}

func parseEvent(t *testing.T, r *kgo.Record) event {
	t.Helper()
	e := event{Offset: r.Offset, Value: r.Value, Dropped: r.Value == nil}
	for _, h := range r.Headers {
		switch h.Key {
		case IDHeader:
			e.ID = string(h.Value)
		case newKeyHeader:
			e.NewKey = string(h.Value)
		case oldKeyHeader:
			e.OldKey = string(h.Value)
		}
	}
	if r.Key != nil {
		var key struct {
			Schema  json.RawMessage
			Payload map[string]any
		}
		decode(t, r.Key, &key)
		e.Key = key.Payload
	}
	if r.Value != nil {
		var value struct {
			Schema  json.RawMessage
			Payload struct {
				Op                    string
				Before, After, Source map[string]any
			}
		}
		decode(t, r.Value, &value)
		p := value.Payload
		e.Schema, e.Op, e.Before, e.After, e.Source = value.Schema, p.Op, p.Before, p.After, p.Source
	}
	return e
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// brief is a record in a line: op, key, and the row before and after by the columns
// that the test names.
func (e event) brief(columns ...string) string {
	row := func(r map[string]any) string {
		if r == nil {
			return "-"
		}
		parts := make([]string, len(columns))
		for i, c := range columns {
			parts[i] = fmt.Sprint(r[c])
			if v, ok := r[c]; !ok {
				parts[i] = "(absent)"
			} else if v == nil {
				parts[i] = "null"
			}
		}
		return strings.Join(parts, ",")
	}
	key, _ := json.Marshal(e.Key)
	if e.Dropped {
		return "tombstone " + string(key)
	}
	s := fmt.Sprintf("%s %s %s %s", e.Op, key, row(e.Before), row(e.After))
	if snapshot := fmt.Sprint(e.Source["snapshot"]); snapshot != "false" {
		s += " " + snapshot
	}
	return s
}

package embedkafka

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The broker runs in a process of its own, so that a test can kill it: with
// EMBEDKAFKA_TEST_DIR set, the test binary is that process.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EMBEDKAFKA_TEST_DIR"); dir != "" {
		port, err := strconv.Atoi(os.Getenv("EMBEDKAFKA_TEST_PORT"))
		if err == nil {
			err = Run(context.Background(), Config{
				Port: port, Advertise: os.Getenv("EMBEDKAFKA_TEST_ADVERTISE"),
				DataDir: dir, PartitionBytes: MinPartitionBytes,
			})
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

type broker struct {
	t         *testing.T
	dir       string
	port      int
	advertise string // when clients are to come another way
	cmd       *exec.Cmd
}

func startBroker(t *testing.T) *broker {
	t.Helper()
	b := newBroker(t)
	b.start()
	return b
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, dir: t.TempDir(), port: l.Addr().(*net.TCPAddr).Port}
	l.Close()
	t.Cleanup(func() {
		if b.cmd != nil {
			b.kill()
		}
	})
	return b
}

func (b *broker) start() {
	b.t.Helper()
	b.cmd = exec.Command(os.Args[0])
	b.cmd.Env = append(os.Environ(), "EMBEDKAFKA_TEST_DIR="+b.dir, "EMBEDKAFKA_TEST_PORT="+strconv.Itoa(b.port), "EMBEDKAFKA_TEST_ADVERTISE="+b.advertise)
	b.cmd.Stderr = os.Stderr
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	cl := b.client()
	eventually(b.t, "the broker answers", func() bool { return cl.Ping(b.t.Context()) == nil })
}

func (b *broker) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

func (b *broker) client(opts ...kgo.Opt) *kgo.Client {
	b.t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", b.port)),
		// A broker that is killed at the beginning of a connection is no error.
		kgo.AlwaysRetryEOF())...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(cl.Close)
	return cl
}

func (b *broker) endOffset(topic string) int64 {
	b.t.Helper()
	offsets, err := kadm.NewClient(b.client()).ListEndOffsets(b.t.Context(), topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	o, _ := offsets.Lookup(topic, 0)
	return o.Offset
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
	}
}

func TestAcknowledgedRecordsAndCommitsSurviveAKill(t *testing.T) {
	b := startBroker(t)
	cl := b.client()
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), 1, 1, nil, "events"); err != nil {
		t.Fatal(err)
	}
	const n = 5000
	produce := func(from int) {
		records := make([]*kgo.Record, n)
		for i := range records {
			records[i] = &kgo.Record{Topic: "events", Value: []byte(strconv.Itoa(from + i))}
		}
		if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce(0)
	offsets := kadm.Offsets{}
	offsets.AddOffset("events", 0, 1234, -1)
	if err := adm.CommitAllOffsets(t.Context(), "readers", offsets); err != nil {
		t.Fatal(err)
	}

	b.kill()
	b.start()

	committed, err := adm.FetchOffsets(t.Context(), "readers")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := committed.Lookup("events", 0); o.At != 1234 {
		t.Errorf("committed offset: got %d, want 1234", o.At)
	}
	// The producer from before the kill goes on.
	produce(n)
	reader := b.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"events": {0: kgo.NewOffset().AtStart()}}))
	for next := 0; next < 2*n; {
		fetches := reader.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if got := string(r.Value); got != strconv.Itoa(next) {
				t.Fatalf("record %d holds %s", next, got)
			}
			next++
		})
	}
}

func TestLogIsBoundedAndOffsetsGoOnAfterAKill(t *testing.T) {
	b := startBroker(t)
	cl := b.client(kgo.ProducerBatchCompression(kgo.NoCompression()))
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, nil, "big"); err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 256<<10)
	_, _ = rand.Read(value)
	const n = 160 // 40 MiB, five times the limit
	for range n {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "big", Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	size := func() (total int64) {
		_ = filepath.WalkDir(b.dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				if fi, err := d.Info(); err == nil {
					total += fi.Size()
				}
			}
			return nil
		})
		return total
	}
	// A segment goes when all of it may go.
	eventually(t, "old segments are removed", func() bool { return size() <= MinPartitionBytes+MinPartitionBytes/4+maxBatchBytes })

	b.kill()
	b.start()
	if got := b.endOffset("big"); got != n {
		t.Errorf("next offset after the kill: got %d, want %d", got, n)
	}
}

package eventing

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

// The test program is also the process that TestEngine_killed kills.
const (
	childManifest = "EVENTING_TEST_MANIFEST"
	childBrokers  = "EVENTING_TEST_BROKERS"
)

func TestMain(m *testing.M) {
	if os.Getenv(childManifest) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child() error {
	g, err := Load(os.Getenv(childManifest))
	if err != nil {
		return err
	}
	e, err := New(Config{
		Graph: g, Kafka: kafka.Config{Brokers: strings.Split(os.Getenv(childBrokers), ",")}, Partitions: 4,
		CommitInterval: 20 * time.Millisecond, SessionTimeout: 500 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return e.Run(ctx)
}

// kill -9 of a process that moves records from a topic through the Broker to a
// subscriber and its replies back, at random moments: every record has its effect
// and every effect its reply.
func TestEngine_killed(t *testing.T) {
	cluster := newCluster(t)
	client := newClient(t, cluster)
	if err := kafka.EnsureTopics(t.Context(), client, map[string]int32{"raw": 4}, 1); err != nil {
		t.Fatal(err)
	}
	s := newSubscriber(t, func(ms []events.Message) (int, []events.Message) {
		replies := make([]events.Message, len(ms))
		for i := range ms {
			replies[i] = message(events.ReplyID(ms[i].Get("source"), ms[i].Get("id"), "test"), "reply", "/r", "{}")
		}
		return 200, replies
	})
	manifest := sourceManifest + `apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: m, annotations: {kafka.eventing.knative.dev/delivery.order: ordered}}
spec:
  broker: default
  filters: [{exact: {type: dev.knative.kafka.event}}]
  subscriber: {uri: "` + s.url + `"}
  delivery: {retry: 10, backoffDelay: PT0.01S}
`
	path := filepath.Join(t.TempDir(), "graph.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	const rounds, perRound = 5, 400
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childManifest+"="+path, childBrokers+"="+strings.Join(cluster.ListenAddrs(), ","))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		for i := range perRound {
			n := round*perRound + i
			client.Produce(t.Context(), &kgo.Record{Topic: "raw", Key: []byte("k" + strconv.Itoa(n%20)), Value: []byte(strconv.Itoa(n))}, nil)
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if round < rounds-1 {
			s.wait(t, round*perRound+1+random.IntN(perRound))
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			continue
		}
		s.wait(t, rounds*perRound)
		if err := eventually(t.Context(), func() error {
			if n := repliesIn(t, cluster); n != rounds*perRound {
				return fmt.Errorf("%d different replies, want %d", n, rounds*perRound)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the last process did not end cleanly: %v", err)
		}
	}
	if got := len(s.ids()); got != rounds*perRound {
		t.Errorf("%d different events, want %d", got, rounds*perRound)
	}
}

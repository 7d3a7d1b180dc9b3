package kafka

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/health"
)

func TestWhetherKafkaAnswers(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	ask := func(addresses []string) health.State {
		client, err := kgo.NewClient(kgo.SeedBrokers(addresses...), kgo.WithHooks(Answers()), kgo.RequestRetries(0))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_ = client.Ping(ctx)
		state, _ := health.Of(health.Kafka).State()
		return state
	}
	if s := ask(cluster.ListenAddrs()); !s.Up {
		t.Errorf("after an answer: %+v", s)
	}
	nobody, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	gone := nobody.ListenAddrs()
	nobody.Close()
	if s := ask(gone); s.Up || s.Error == "" {
		t.Errorf("with nobody there: %+v", s)
	}
	if s := ask(cluster.ListenAddrs()); !s.Up || s.AwaySeconds <= 0 {
		t.Errorf("after it came back: %+v", s)
	}
}

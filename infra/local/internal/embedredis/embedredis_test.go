package embedredis

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestKeysExpireByTheClock(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	address := l.Addr().String()
	l.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, "127.0.0.1", port) }()
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	eventually(t, "the server answers", func() bool { return client.Ping(t.Context()).Err() == nil })
	if err := client.Set(t.Context(), "short", 1, 50*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.Set(t.Context(), "long", 1, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is gone", func() bool { return client.Get(t.Context(), "short").Err() == redis.Nil }) //nolint:errorlint // never wrapped
	if ttl := client.TTL(t.Context(), "long").Val(); ttl <= 0 || ttl > time.Hour {
		t.Errorf("the other lives for %v", ttl)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
	}
}

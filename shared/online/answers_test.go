package online

import (
	"net"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-dev/millrace/shared/health"
)

// What the server refuses was answered; what nobody answers was not.
func TestWhetherRedisAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	_ = l.Close()
	ask := func(address string, command ...any) health.State {
		client := Watch(redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DialerRetries: 1}))
		defer client.Close()
		_ = client.Do(t.Context(), command...).Err()
		state, _ := health.Of(health.Redis).State()
		return state
	}
	there := miniredis.RunT(t).Addr()
	if s := ask(there, "PING"); !s.Up {
		t.Errorf("after an answer: %+v", s)
	}
	if s := ask(nobody, "PING"); s.Up || s.Error == "" {
		t.Errorf("with nobody there: %+v", s)
	}
	if s := ask(there, "NOSUCHCOMMAND"); !s.Up || s.AwaySeconds <= 0 {
		t.Errorf("after a refusal: %+v", s)
	}
}

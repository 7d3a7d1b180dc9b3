package kafka

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/health"
)

// Answers is a hook of a client, for kgo.WithHooks: it notes of all that the client asks
// whether Kafka answered it, see package health.
func Answers() kgo.Hook { return answers{health.Of(health.Kafka)} }

type answers struct{ store *health.Store }

var (
	_ kgo.HookBrokerConnect = answers{}
	_ kgo.HookBrokerE2E     = answers{}
)

func (a answers) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		a.store.Failed(err)
	}
}

// OnBrokerE2E takes the end of a connection for nothing: brokers end those that idle, and
// whether there is another shows when one is made.
func (a answers) OnBrokerE2E(_ kgo.BrokerMetadata, _ int16, e2e kgo.BrokerE2E) {
	err := e2e.Err()
	switch {
	case err == nil:
		a.store.Well()
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled):
	default:
		a.store.Failed(err)
	}
}

package online

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-dev/millrace/shared/health"
)

// Watch notes of all that a client asks whether Redis answered it, see package health,
// and gives the client back.
func Watch(client *redis.Client) *redis.Client {
	client.AddHook(answers{health.Of(health.Redis)})
	return client
}

type answers struct{ store *health.Store }

// note takes a refusal for an answer. What the caller gave up says nothing.
func (a answers) note(ctx context.Context, err error) {
	_, refused := errors.AsType[redis.Error](err)
	switch {
	case err == nil || refused:
		a.store.Well()
	case errors.Is(err, redis.ErrPoolTimeout): // it was not asked
	case !errors.Is(ctx.Err(), context.Canceled):
		a.store.Failed(err)
	}
}

func (a answers) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := next(ctx, network, address)
		if err != nil {
			a.note(ctx, err)
		}
		return conn, err
	}
}

func (a answers) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		a.note(ctx, err)
		return err
	}
}

func (a answers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		a.note(ctx, err)
		return err
	}
}

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/millrace-dev/millrace/shared/online"
)

// RedisConfig says where Redis is.
type RedisConfig struct {
	// URL is redis://user:password@host:port/db, or rediss: for TLS, or
	// unix:///path/to.sock?db=0.
	URL string `envconfig:"REDIS_URL" required:"true"`
	// Timeout bounds each of connecting, writing, and reading an answer.
	Timeout time.Duration `envconfig:"REDIS_TIMEOUT" default:"2s"`
	// Remember is how long what is known of an entity is kept after its last reading.
	Remember time.Duration `envconfig:"STATE_TTL" default:"720h"`
}

// Keys. Names of contracts have no colons.
//
//	anomaly:state:<contract>:<entity>   what Plan.AppendState writes
//	anomaly:model:<contract>:<entity>   what Models.Append writes; does not expire
//	anomaly:entities:<contract>         the set of entities that were seen
//	anomaly:trained                     counts the models that were written
const trainedKey = "anomaly:trained"

func stateKey(contract, entity string) string { return "anomaly:state:" + contract + ":" + entity }
func modelKey(contract, entity string) string { return "anomaly:model:" + contract + ":" + entity }
func entitiesKey(contract string) string      { return "anomaly:entities:" + contract }

// store is what is kept in Redis.
type store struct {
	redis    *redis.Client
	remember time.Duration
}

func (c RedisConfig) open() (*store, error) {
	quiet()
	opts, err := redis.ParseURL(c.URL)
	if err != nil {
		return nil, errors.New("REDIS_URL: it is no address like redis://user:password@host:port/db")
	}
	if c.Timeout < time.Millisecond || c.Remember < time.Hour {
		return nil, fmt.Errorf("REDIS_TIMEOUT=%s, STATE_TTL=%s: want at least 1ms and 1h", c.Timeout, c.Remember)
	}
	opts.PoolSize, opts.MaxActiveConns, opts.PipelinePoolSize = 4, 4, -1
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout, opts.PoolTimeout = c.Timeout, c.Timeout, c.Timeout, c.Timeout
	opts.DialerRetries, opts.MaxRetries = 1, 1
	opts.ContextTimeoutEnabled = true
	opts.DisableIdentity = true
	opts.Protocol = 2
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return &store{redis: online.Watch(redis.NewClient(opts)), remember: c.Remember}, nil
}

func (s *store) close() { _ = s.redis.Close() }

func (s *store) ping(ctx context.Context) error {
	if err := s.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("reaching Redis: %w", err)
	}
	return nil
}

// quiet sends what the client library says on its own to the debug log.
var quiet = sync.OnceFunc(func() { redis.SetLogger(debugLog{}) })

type debugLog struct{}

func (debugLog) Printf(ctx context.Context, format string, args ...any) {
	slog.DebugContext(ctx, fmt.Sprintf(format, args...)) //nolint:sloglint // the library's text
}

// read gets values in one round trip, "" for what is not there, and notes that the
// entities are known.
func (s *store) read(ctx context.Context, keys []string, known map[string][]any) ([]string, error) {
	pipe := s.redis.Pipeline()
	got := pipe.MGet(ctx, keys...)
	for contract, entities := range known {
		pipe.SAdd(ctx, entitiesKey(contract), entities...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("reading states: %w", err)
	}
	values := make([]string, len(keys))
	for i, v := range got.Val() {
		values[i], _ = v.(string)
	}
	return values, nil
}

var (
	//go:embed write.lua
	writeLua    string
	writeScript = redis.NewScript(writeLua)
)

// errStale says that another process has written one of the states meanwhile. Nothing
// was written.
var errStale = errors.New("another process has written the same states")

// write writes states, all or none, if those that are there have the versions before.
// before and blobs are indexed as keys; a version of "" is for a state that is not
// there. It returns how many models were ever written.
func (s *store) write(ctx context.Context, keys []string, before []string, blobs [][]byte) (trained string, err error) {
	args := make([]any, 0, 1+2*len(keys))
	args = append(args, s.remember.Milliseconds())
	for i := range keys {
		args = append(args, before[i], blobs[i])
	}
	answer, err := writeScript.Run(ctx, s.redis, append(keys[:len(keys):len(keys)], trainedKey), args...).Text()
	switch {
	case err == nil:
		return answer, nil
	case strings.HasPrefix(err.Error(), "STALE "):
		return "", errStale
	}
	return "", fmt.Errorf("writing states: %w", err)
}

// writeModels keeps the models of an entity.
func (s *store) writeModels(ctx context.Context, contract, entity string, blob []byte) error {
	pipe := s.redis.TxPipeline()
	pipe.Set(ctx, modelKey(contract, entity), blob, 0)
	pipe.SAdd(ctx, entitiesKey(contract), entity)
	pipe.Incr(ctx, trainedKey)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("writing models: %w", err)
	}
	return nil
}

// entities lists those of a contract.
func (s *store) entities(ctx context.Context, contract string) ([]string, error) {
	list, err := s.redis.SMembers(ctx, entitiesKey(contract)).Result()
	if err != nil {
		return nil, fmt.Errorf("listing the entities of %s: %w", contract, err)
	}
	return list, nil
}

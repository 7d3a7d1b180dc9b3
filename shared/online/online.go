// Package online is the online feature store: the latest features of every entity
// and the ranks of a session's events, in one Redis. It is the only place that
// knows how they are kept there.
//
// Put assigns ranks and writes entities in one script, so that no reader and no crash
// sees one without the other. Everything expires a while after it arrived.
//
//	f2:s:<session>   a hash. Field f: "<last rank> <rank> <change> <time> <arrival> <values>"
//	                 of view session_features; and of each event its hash -> its rank
//	f2:p:<u>:<p>     a text: "<version> <arrival> <values>" of view user_product_features
//	f2:epoch         there as long as Redis has kept its data
//	f2:loads         see NoteLoads
//
// Rank and change (a correction's position in the log of its database, or nothing) order
// the writes to a session; a version is time, rank, a tie-break and the change, and
// orders those to a user and product. What is not greater than what is there changes
// nothing, so that writes may come again and in any order. The values are those of the
// view's features but for the rank, each with its length before it, and then the rank. A
// feature that is null is an empty text.
//
// It is packed since most of what a platform has in memory is here: an entity takes
// about 230 bytes, a session of ten events 400 (BenchmarkMemory), since a hash of a few
// texts of less than 64 bytes is one piece of memory.
//
// The 2 is the version of this layout. Data of another one is not looked at: a store
// that was written by an older version is empty to this one, which fills it from the
// warehouse as after a loss (ErrEmpty), and what is there goes when it expires.
//
// Redis has to be one server (a script reaches keys of several entities) that never
// drops keys to make room (maxmemory-policy noeviction), since a lost rank would be
// counted again. With appendonly it survives being killed; when it has lost its data
// all the same, Put says so by ErrEmpty and Restore can bring it back.
package online

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Config says where Redis is and how long features live.
type Config struct {
	// URL is redis://user:password@host:port/db, or rediss: for TLS, or
	// unix:///path/to.sock?db=0.
	URL string `envconfig:"REDIS_URL" required:"true"`
	// PoolSize bounds the connections of one process.
	PoolSize int `envconfig:"REDIS_POOL_SIZE" default:"16"`
	// Timeout bounds each of connecting, writing, and reading an answer.
	Timeout time.Duration `envconfig:"REDIS_TIMEOUT" default:"2s"`

	// FeatureTTL is how long features are valid after their event arrived. They are
	// kept for a little longer, so that a stale entity is told from an unknown one.
	FeatureTTL time.Duration `envconfig:"FEATURE_TTL" default:"24h"`
	// SessionTTL is how long a session's ranks are kept after its last event arrived,
	// if that is longer than its features are, and up to a 24th longer. A session that
	// goes on after a longer pause begins again at 1, which the warehouse does not:
	// raise it where sessions pause for long.
	SessionTTL time.Duration `envconfig:"SESSION_TTL" default:"24h"`
}

// grace is how much longer than FeatureTTL features are kept.
const grace = time.Hour

// Store is a client of the online store. It is safe for concurrent use.
type Store struct {
	redis      *redis.Client
	featureTTL time.Duration
	sessionTTL time.Duration
	now        func() time.Time
}

// Open checks the configuration. It does not connect.
func (c Config) Open() (*Store, error) {
	quiet()
	opts, err := redis.ParseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", withoutPassword(err))
	}
	switch {
	case c.PoolSize < 1:
		return nil, fmt.Errorf("REDIS_POOL_SIZE=%d: must be at least 1", c.PoolSize)
	case c.Timeout < time.Millisecond:
		return nil, fmt.Errorf("REDIS_TIMEOUT=%s: must be at least 1ms", c.Timeout)
	case c.FeatureTTL < time.Second || c.FeatureTTL > maxTTL:
		return nil, fmt.Errorf("FEATURE_TTL=%s: must be between 1s and %s", c.FeatureTTL, maxTTL)
	case c.SessionTTL < time.Second || c.SessionTTL > maxTTL:
		return nil, fmt.Errorf("SESSION_TTL=%s: must be between 1s and %s", c.SessionTTL, maxTTL)
	}
	opts.PoolSize, opts.MaxActiveConns = c.PoolSize, c.PoolSize
	opts.PipelinePoolSize = -1 // one pool, so that the bound holds
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout, opts.PoolTimeout = c.Timeout, c.Timeout, c.Timeout, c.Timeout
	opts.DialerRetries = 1
	opts.ContextTimeoutEnabled = true
	// One more try, on another connection: the first may have been one that a
	// restarted Redis no longer knows. All commands here may be sent twice.
	opts.MaxRetries = 1
	opts.ConnMaxIdleTime = 5 * time.Minute
	opts.DisableIdentity = true
	opts.Protocol = 2 // see read
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return &Store{redis: Watch(redis.NewClient(opts)), featureTTL: c.FeatureTTL, sessionTTL: max(c.SessionTTL, c.FeatureTTL+grace), now: time.Now}, nil
}

// maxTTL is what the scripts have digits for.
const maxTTL = 1000 * 24 * time.Hour

// withoutPassword leaves the address out of an error, which may hold a password.
func withoutPassword(err error) error {
	text := err.Error()
	if i := strings.Index(text, "://"); i >= 0 {
		return errors.New("it is no address like redis://user:password@host:port/db")
	}
	return err
}

// Close closes all connections.
func (s *Store) Close() error { return s.redis.Close() }

// Ping returns nil when Redis answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("reaching Redis: %w", err)
	}
	return nil
}

// quiet sends what the client library says on its own to the debug log. It writes a
// line for each connection that fails, on top of the error that it returns.
var quiet = sync.OnceFunc(func() { redis.SetLogger(debugLog{}) })

type debugLog struct{}

func (debugLog) Printf(ctx context.Context, format string, args ...any) {
	slog.DebugContext(ctx, fmt.Sprintf(format, args...)) //nolint:sloglint // the library's text
}

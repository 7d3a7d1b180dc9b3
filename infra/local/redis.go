package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/millrace-dev/millrace/infra/local/internal/embedredis"
	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
)

// onlineStore is the Redis in use. One without a url is none.
type onlineStore struct {
	url string
	// program is the machine's own server; "" when there is none and this program
	// serves in its place, in memory.
	program string
	client  *redis.Client // for asking; nil without a url
}

// openRedis decides which Redis is used.
func (w *parts) openRedis() error {
	w.redis.url = or(w.opts.redis, "redis://"+local(w.ports["redis"])+"/0")
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil && w.redis.program == "" {
			w.redis.program = path
		}
	}
	opts, err := redis.ParseURL(w.redis.url)
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	opts.PoolSize, opts.MaxRetries, opts.DialTimeout = 3, -1, 3*time.Second
	// Not every server knows these; none here needs them.
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	w.redis.client = redis.NewClient(opts)
	return nil
}

// address is the store's address without a password.
func (o *onlineStore) address() string {
	u, err := url.Parse(o.url)
	if err != nil {
		return "as REDIS_URL says"
	}
	return u.Redacted()
}

// inMemory tells whether what Redis holds is gone when it ends.
func (w *parts) inMemory() bool {
	return w.redis.url != "" && w.opts.redis == "" && w.redis.program == ""
}

func (w *parts) redisSpec() (supervise.Spec, error) {
	if w.inMemory() {
		return w.embedded("redis", []string{"GOGC=50"}, []string{"--port", strconv.Itoa(w.ports["redis"])}, w.pingRedis)
	}
	dir := w.state.join("data", "redis")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return supervise.Spec{}, fmt.Errorf("making the folder of Redis: %w", err)
	}
	return supervise.Spec{
		Name: "redis", Path: w.redis.program, Dir: dir, Env: baseEnv(), Ready: w.pingRedis, StopTimeout: 15 * time.Second,
		Args: []string{
			"--port", strconv.Itoa(w.ports["redis"]), "--bind", "127.0.0.1", "--dir", dir, "--daemonize", "no",
			// Every write is given to the system before it is answered, so killing the
			// server loses nothing. It is not forced to the disk: what the other parts
			// keep can fill Redis again, should the machine die.
			"--appendonly", "yes", "--appendfsync", "no", "--save", "",
			// Writing the file anew takes a copy of the process and its time, and what is
			// here is written about once: it is done for what has expired, not for growth.
			"--auto-aof-rewrite-min-size", "256mb", "--auto-aof-rewrite-percentage", "200",
			// A rank that is dropped to make room would be counted again.
			"--maxmemory-policy", "noeviction",
		},
	}, nil
}

func (w *parts) pingRedis(ctx context.Context) error { return w.redis.client.Ping(ctx).Err() }

// checkRedis waits a little for a Redis that the user named.
func (w *parts) checkRedis(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := w.pingRedis(ctx); err != nil {
		return fmt.Errorf("no Redis answers as REDIS_URL says: %w. Start it, correct the variable, or unset it to run one here", err)
	}
	return nil
}

// runRedis is the command redis.
func runRedis(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("redis", flag.ContinueOnError)
	port := fs.Int("port", 6379, "port to listen on")
	host := fs.String("host", "127.0.0.1", "address to listen on; it asks nobody for credentials")
	if done, err := parse(fs, args, "Runs a Redis that keeps its data in memory.", stdout, stderr); done {
		return err
	}
	return embedredis.Run(whileParentLives(ctx), *host, *port)
}

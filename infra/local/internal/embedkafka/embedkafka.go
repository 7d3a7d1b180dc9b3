// Package embedkafka runs a Kafka broker inside a Go program, on one port, with its
// log on disk.
//
// It is kfake with what makes it fit for more than a test: what was acknowledged
// survives the death of the process, an idempotent producer's records are in the log
// exactly once even so, and the log cannot fill the disk. It is one broker without replication, for a laptop and for tests; it
// does not survive the loss of power, since writes are not synced, as with Kafka's
// own defaults.
package embedkafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Config says where the broker listens and what it may keep.
type Config struct {
	Port int
	// Host is the address to listen on; the loopback interface when empty.
	Host string
	// Advertise is the host and port that clients are told to use, when it is not
	// the one listened on: the name of a Service in front of a pod.
	Advertise string
	DataDir   string // made when missing
	// PartitionBytes bounds each partition's log: the oldest batches go first.
	// At least MinPartitionBytes.
	PartitionBytes int64
}

// MinPartitionBytes is the least a partition may be bounded to. A partition's
// log must never become empty: kfake learns a partition's next offset from its
// last batch, and after a crash an empty one would start at offset 0 again.
const MinPartitionBytes = 4 * maxBatchBytes

const (
	// maxBatchBytes is the largest batch the broker takes. An event of 1 MiB, the
	// largest that Knative promises to carry, needs room for its attributes.
	maxBatchBytes = 2 << 20
	// retentionEvery bounds how far a log may outgrow its limit.
	retentionEvery = 2 * time.Second
)

// Run serves until ctx ends, then writes its state and returns.
func Run(ctx context.Context, cfg Config) error {
	if cfg.PartitionBytes < MinPartitionBytes {
		return fmt.Errorf("a partition's log must be allowed at least %d bytes, not %d", MinPartitionBytes, cfg.PartitionBytes)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o750); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	if err := recoverProducers(cfg.DataDir); err != nil {
		return fmt.Errorf("recovering producers from the log in %s: %w", cfg.DataDir, err)
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.Ports(cfg.Port),
		kfake.ListenFn(cfg.listen),
		kfake.ClusterID("millrace-local"),
		kfake.DataDir(cfg.DataDir),
		// A member that was killed is noticed after its session ends; clients
		// choose the time, this only allows them a short one.
		kfake.GroupMinSessionTimeout(time.Second),
		kfake.BrokerConfigs(map[string]string{
			"message.max.bytes": strconv.Itoa(maxBatchBytes),
			// By size alone, never by age: see MinPartitionBytes.
			"log.retention.ms":    "-1",
			"log.retention.bytes": strconv.FormatInt(cfg.PartitionBytes, 10),
			// Space is given back a segment at a time.
			"log.segment.bytes": strconv.FormatInt(max(cfg.PartitionBytes/4, maxBatchBytes), 10),
		}),
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelWarn)),
	)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return fmt.Errorf("listening on port %d: %w", cfg.Port, err)
		}
		return fmt.Errorf("opening the log in %s: %w", cfg.DataDir, err)
	}
	defer cluster.Close()
	// Opening the log read all of it; hand the memory back.
	debug.FreeOSMemory()
	fmt.Printf("kafka listens on %s:%d, log in %s\n", cfg.host(), cfg.Port, cfg.DataDir)

	// kfake's own ticker does not start again with the broker, so retention is
	// applied from here.
	tick := time.NewTicker(retentionEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			cluster.ApplyRetention()
		}
	}
}

func (c *Config) host() string {
	if c.Host == "" {
		return "127.0.0.1"
	}
	return c.Host
}

// listen is net.Listen on the configured host. kfake tells clients the address
// that its listener says it has.
func (c *Config) listen(network, address string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), network, net.JoinHostPort(c.host(), port))
	if err != nil || c.Advertise == "" {
		return l, err
	}
	return advertised{l, c.Advertise}, nil
}

type advertised struct {
	net.Listener
	address string
}

func (l advertised) Addr() net.Addr  { return l }
func (l advertised) Network() string { return "tcp" }
func (l advertised) String() string  { return l.address }

// Package embedredis runs a Redis server inside a Go program, on one port, for
// machines that have no redis-server. It keeps everything in memory: what it holds is
// gone when its process ends.
package embedredis

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// Run serves on host:port until ctx ends.
func Run(ctx context.Context, host string, port int) error {
	m := miniredis.NewMiniRedis()
	address := net.JoinHostPort(host, strconv.Itoa(port))
	if err := m.StartAddr(address); err != nil {
		return fmt.Errorf("serving Redis on %s: %w", address, err)
	}
	defer m.Close()
	fmt.Printf("redis listens on %s and keeps its data in memory\n", address)
	// Its keys age only when they are told to.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
			now := time.Now()
			m.FastForward(now.Sub(last))
			last = now
		case <-ctx.Done():
			return nil
		}
	}
}

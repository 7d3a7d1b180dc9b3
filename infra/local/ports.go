package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// awaitPort is checkPort, asked again for as long as patience lasts.
func awaitPort(ctx context.Context, part string, port int, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		err := checkPort(ctx, part, port)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// checkPort returns nil when this process could listen on the port, or else who
// has it and what to do, in the user's words.
func checkPort(ctx context.Context, part string, port int) error {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", address)
	if err == nil {
		return l.Close()
	}
	move := fmt.Sprintf("move it with --port %s=<port> or MILLRACE_PORT_%s, or all ports with --port-base",
		part, strings.ToUpper(strings.ReplaceAll(part, "-", "_")))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		who := "another program"
		if owner := portOwner(port); owner != "" {
			who = owner
		}
		hint := ""
		switch part {
		case "kafka":
			hint = fmt.Sprintf(" If it is a Kafka that you want to use, set KAFKA_BROKERS=%s.", address)
		case "s3":
			hint = fmt.Sprintf(" If it is an S3 that you want to use, set S3_ENDPOINT=http://%s, S3_ACCESS_KEY and S3_SECRET_KEY.", address)
		case "postgres":
			hint = fmt.Sprintf(" If it is a PostgreSQL that you want to use, set DATABASE_URL=postgres://user:password@%s/database.", address)
		case "redis":
			hint = fmt.Sprintf(" If it is a Redis that you want to use, set REDIS_URL=redis://%s/0.", address)
		}
		return fmt.Errorf("port %d, where %s would listen, is taken by %s. Stop that, or %s.%s", port, part, who, move, hint)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("this user may not listen on port %d, where %s would; %s", port, part, move)
	default:
		return fmt.Errorf("listening on %s for %s: %w; %s", address, part, err, move)
	}
}

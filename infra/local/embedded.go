package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/infra/local/internal/embedkafka"
	"github.com/millrace-dev/millrace/infra/local/internal/embeds3"
)

// parentVariable holds the process id of the runner that an embedded part ends
// with.
const parentVariable = "MILLRACE_PARENT_PID"

func runKafka(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("kafka", flag.ContinueOnError)
	port := fs.Int("port", 9092, "port to listen on")
	host := fs.String("host", "127.0.0.1", "address to listen on; it asks nobody for credentials")
	advertise := fs.String("advertise", "", "host:port that clients are told to use, when it is another one")
	data := fs.String("data", filepath.Join(".local", "data", "kafka"), "folder of the log; made when missing")
	partition := fs.Int64("partition-bytes", 64<<20, "most that is kept of a partition; the oldest goes first")
	if done, err := parse(fs, args, "Runs an embedded Kafka that keeps its log on disk.", stdout, stderr); done {
		return err
	}
	return embedkafka.Run(whileParentLives(ctx), embedkafka.Config{Port: *port, Host: *host, Advertise: *advertise, DataDir: *data, PartitionBytes: *partition})
}

func runS3(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("s3", flag.ContinueOnError)
	port := fs.Int("port", 9000, "port to listen on")
	host := fs.String("host", "127.0.0.1", "address to listen on")
	data := fs.String("data", filepath.Join(".local", "data", "s3"), "folder of the objects; made when missing")
	notify := fs.String("notify", os.Getenv("S3_NOTIFY_URLS"), "URLs to tell of every object created or removed, as MinIO does, comma separated (env S3_NOTIFY_URLS)")
	if done, err := parse(fs, args, "Runs an embedded S3 over a folder. Its keys are S3_ACCESS_KEY and S3_SECRET_KEY.", stdout, stderr); done {
		return err
	}
	cfg := embeds3.Config{
		Port: *port, Host: *host, DataDir: *data,
		Region:    or(os.Getenv("S3_REGION"), defaultRegion),
		AccessKey: or(os.Getenv("S3_ACCESS_KEY"), defaultAccessKey),
		SecretKey: or(os.Getenv("S3_SECRET_KEY"), defaultSecretKey),
		// The word for word value of the Authorization header.
		NotifyToken: os.Getenv("S3_NOTIFY_TOKEN"),
	}
	for u := range strings.SplitSeq(*notify, ",") {
		if u = strings.TrimSpace(u); u != "" {
			cfg.NotifyURLs = append(cfg.NotifyURLs, u)
		}
	}
	err := embeds3.Run(whileParentLives(ctx), cfg)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// whileParentLives ends the context when the runner that started this process is
// gone. On Linux the kernel has killed it by then; elsewhere nobody else does.
func whileParentLives(ctx context.Context) context.Context {
	parent, err := strconv.Atoi(os.Getenv(parentVariable))
	if err != nil {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for os.Getppid() == parent {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return
			}
		}
		fmt.Fprintln(os.Stderr, "the runner is gone, stopping")
	}()
	return ctx
}

func or(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// Package laketest gives tests a real S3 server: the one that the local runner
// embeds, as a process of its own over a temporary folder, or any other.
//
// The runner is a module of its own with heavy dependencies, so its server is built
// and started rather than imported.
package laketest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/lake"
)

// Endpoint is the environment variable that names another store to test against,
// as a URL; S3_ACCESS_KEY and S3_SECRET_KEY are its keys. What the tests write
// there is in buckets of random names and stays.
const Endpoint = "TEST_S3_ENDPOINT"

// Program is the environment variable that names a local runner that is built
// already, which saves each test process that needs one from linking it again.
const Program = "TEST_S3_PROGRAM"

// Start gives a store that is up, until the test ends.
func Start(tb testing.TB) lake.Config {
	tb.Helper()
	if url := os.Getenv(Endpoint); url != "" {
		return lake.Config{
			Endpoint: url, Region: "us-east-1",
			AccessKey: os.Getenv("S3_ACCESS_KEY"), SecretKey: os.Getenv("S3_SECRET_KEY"),
		}
	}
	s := NewServer(tb)
	s.Start()
	return s.Config
}

// Server is a store that a test can stop and start again; its folder stays.
type Server struct {
	Config lake.Config

	tb   testing.TB
	dir  string
	port int
	cmd  *exec.Cmd
}

// NewServer gives a store that is not up yet.
func NewServer(tb testing.TB) *Server {
	tb.Helper()
	port := freePort(tb)
	return &Server{
		tb: tb, dir: tb.TempDir(), port: port,
		Config: lake.Config{
			Endpoint: fmt.Sprintf("http://127.0.0.1:%d", port), Region: "us-east-1",
			AccessKey: "test-access", SecretKey: "test-secret",
		},
	}
}

// Start returns when the server answers.
func (s *Server) Start() {
	s.tb.Helper()
	program, err := build()
	if err != nil {
		s.tb.Fatalf("building the S3 server: %v", err)
	}
	var output strings.Builder
	//nolint:gosec,noctx // the program is built from this repository and killed by Cleanup
	s.cmd = exec.Command(program, "s3", "--port", strconv.Itoa(s.port), "--data", s.dir)
	s.cmd.Env = append(os.Environ(), "S3_ACCESS_KEY="+s.Config.AccessKey, "S3_SECRET_KEY="+s.Config.SecretKey)
	s.cmd.Stdout, s.cmd.Stderr = &output, &output
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("starting the S3 server: %v", err)
	}
	exited := make(chan struct{})
	cmd := s.cmd
	go func() { _ = cmd.Wait(); close(exited) }()
	s.tb.Cleanup(func() { _ = cmd.Process.Kill(); <-exited })

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		if s.answers(ctx) {
			return
		}
		select {
		case <-tick.C:
		case <-exited:
			s.tb.Fatalf("the S3 server ended:\n%s", output.String())
		case <-ctx.Done():
			s.tb.Fatal("the S3 server does not answer")
		}
	}
}

// Kill ends the server as SIGKILL does.
func (s *Server) Kill() {
	s.tb.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.tb.Fatalf("killing the S3 server: %v", err)
	}
	for s.answers(s.tb.Context()) { // until the port is free
	}
}

func (s *Server) answers(ctx context.Context) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Config.Endpoint+"/healthz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return true
}

func freePort(tb testing.TB) int {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("looking for a free port: %v", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// build makes the server's program.
var build = sync.OnceValues(func() (string, error) {
	if program := os.Getenv(Program); program != "" {
		return program, nil
	}
	_, here, _, _ := runtime.Caller(0)
	module := filepath.Join(filepath.Dir(here), "..", "..", "..", "infra", "local")
	// One place for all test processes, so that only a change links it again, and
	// one of them at a time.
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "millrace-test")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	program := filepath.Join(dir, "millrace")
	//nolint:gosec // the path is ours
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return program, nil
})

// Bucket gives a bucket name that no other test has.
func Bucket() string { return "test-" + strings.ToLower(rand.Text()) }

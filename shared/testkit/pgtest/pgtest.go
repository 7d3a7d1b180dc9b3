// Package pgtest gives tests a real PostgreSQL server: one throw-away server a test
// binary, started by the machine's own initdb and postgres, and a database of its
// own for each test that asks.
//
// The server listens on a Unix socket only and does not sync to disk: what it says
// about durability means nothing. Tests are skipped, with the reason, where the
// programs are missing.
//
// With TEST_TIMESCALE, the folder of infra/postgres/timescale with what it needs
// installed, each test gets a PostgreSQL with TimescaleDB instead; `make test-timescale`
// sets it.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/pgserver"
)

var (
	once    sync.Once
	server  *process
	failure error
	count   atomic.Int64
)

// Main runs the tests of a binary, stops the server if one was started, and exits.
// A TestMain that calls it is all that a package needs.
func Main(m *testing.M) {
	code := m.Run()
	if server != nil {
		server.stop()
	}
	os.Exit(code)
}

// URL makes an empty database and returns its address, for DATABASE_URL. The
// database lives until the binary ends.
func URL(t testing.TB) string {
	t.Helper()
	if Timescale() {
		return startTimescale(t)
	}
	return PlainURL(t)
}

// PlainURL is URL where it has to be PostgreSQL alone, whatever the run is with.
func PlainURL(t testing.TB) string {
	t.Helper()
	once.Do(func() { server, failure = start() })
	if errors.Is(failure, pgserver.ErrUnavailable) {
		t.Skip(failure)
	}
	if failure != nil {
		t.Fatalf("starting PostgreSQL: %v", failure)
	}
	name := fmt.Sprintf("test%d", count.Add(1))
	conn, err := pgx.Connect(t.Context(), server.url("postgres"))
	if err != nil {
		t.Fatalf("connecting to PostgreSQL: %v", err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("creating a database: %v", err)
	}
	return server.url(name)
}

// Program finds one of the server's programs, such as pg_dump, and skips the test
// when there is none.
func Program(t testing.TB, name string) string {
	t.Helper()
	s, err := pgserver.Open(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Skip(err)
	}
	path, err := s.Program(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

type process struct {
	dir string
	cmd *exec.Cmd
	end chan struct{}
}

func (p *process) url(database string) string {
	return fmt.Sprintf("postgres://postgres@/%s?host=%s", database, p.dir)
}

func (p *process) stop() {
	p.crash() // nothing of it is kept
	_ = os.RemoveAll(p.dir)
}

// crash ends the server at once, without writing what it holds in memory.
func (p *process) crash() {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	<-p.end
}

func start() (*process, error) {
	s, dir, err := initialised()
	if err != nil {
		return nil, err
	}
	return launch(s, dir, map[string]string{
		"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off",
		"max_wal_size": "4GB", "shared_buffers": "1GB", "wal_level": "logical", "log_min_messages": "panic",
	})
}

// initialised makes the data folder of a server, in a folder that is removed with it.
func initialised() (s *pgserver.Server, dir string, err error) {
	// Short: the path of a socket may have 107 bytes.
	dir, err = os.MkdirTemp("/tmp", "pgtest")
	if err != nil {
		return nil, "", err
	}
	s, err = pgserver.Open(filepath.Join(dir, "data"))
	if err == nil {
		err = s.Give(dir)
	}
	if err == nil {
		err = s.Init(context.Background(), pgserver.Setup{User: "postgres", NoSync: true})
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, "", err
	}
	return s, dir, nil
}

// launch starts a server on a data folder and waits until it answers.
func launch(s *pgserver.Server, dir string, settings map[string]string) (*process, error) {
	p := &process{dir: dir, end: make(chan struct{})}
	settings["unix_socket_directories"], settings["listen_addresses"] = dir, ""
	path, args := s.Command(settings)
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir = dir
	// The kernel sends it with the death of the thread that started the server.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.Credential(), Pdeathsig: syscall.SIGQUIT}
	p.cmd.Stderr = os.Stderr
	started := make(chan error)
	go func() {
		// The kernel kills the server with the thread that started it, so that a
		// test binary that is killed leaves none behind.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
		close(p.end)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting postgres: %w", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := pgx.Connect(context.Background(), p.url("postgres"))
		if err == nil {
			return p, conn.Close(context.Background())
		}
		select {
		case <-p.end:
			return nil, fmt.Errorf("postgres ended at once: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

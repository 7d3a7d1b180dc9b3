// Package pgtest gives tests a real PostgreSQL server: one throw-away server a test
// binary, started by the machine's own initdb and postgres, and a database of its
// own for each test that asks.
//
// The server listens on a Unix socket only and does not sync to disk: what it says
// about durability means nothing. Tests are skipped, with the reason, where the
// programs are missing.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	once    sync.Once
	server  *process
	failure error
	count   atomic.Int64
)

// errMissing is the reason of a skip.
var errMissing = errors.New("no PostgreSQL server programs (initdb, postgres) in PATH or /usr/lib/postgresql")

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
	once.Do(func() { server, failure = start() })
	if errors.Is(failure, errMissing) {
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
	path, err := program(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

// program prefers the newest version's own folder: what is in PATH may be a link
// that does not find its libraries.
func program(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		slices.Sort(found)
		return found[len(found)-1], nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", errMissing
	}
	return filepath.EvalSymlinks(path)
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
	_ = p.cmd.Process.Signal(syscall.SIGQUIT) // at once: nothing of it is kept
	<-p.end
	_ = os.RemoveAll(p.dir)
}

func start() (*process, error) {
	initdb, err := program("initdb")
	if err != nil {
		return nil, err
	}
	postgres, err := program("postgres")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "pgtest")
	if err != nil {
		return nil, err
	}
	attr, err := credential(dir)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	cmd := exec.Command(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	cmd.Dir, cmd.SysProcAttr = dir, attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	p := &process{dir: dir, end: make(chan struct{})}
	p.cmd = exec.Command(postgres, "-D", data, "-k", dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off",
		"-c", "max_wal_size=4GB", "-c", "shared_buffers=1GB", "-c", "wal_level=logical", "-c", "log_min_messages=panic")
	p.cmd.Dir, p.cmd.SysProcAttr = dir, attr
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

// credential makes the server run as the user postgres when the tests run as root,
// which it refuses to.
func credential(dir string) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Geteuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: running as root, and there is no user postgres to run the server as", errMissing)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr, os.Chown(dir, int(uid), int(gid))
}

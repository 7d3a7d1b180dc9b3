package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// open gives a server on a new folder, and skips the test where there is none.
func open(t *testing.T) *Server {
	t.Helper()
	// Not t.TempDir: only its user may enter that.
	dir, err := os.MkdirTemp("", "pgserver") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := Open(filepath.Join(dir, "data"))
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Give(dir); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve starts the server and waits until it answers at the returned address.
func serve(t *testing.T, s *Server, user, password string) (*exec.Cmd, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	path, args := s.Command(map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(port), "unix_socket_directories": "",
		// Commits are waited for, as in the local runner.
		"synchronous_commit": "on",
	})
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.Credential(), Setpgid: true}
	cmd.Stderr = os.Stderr // not a pipe, which its children would keep open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.EndLeftovers(context.Background()); _ = cmd.Wait() })
	url := fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/shop", user, password, port)
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := pgx.Connect(t.Context(), url)
		if err == nil {
			_ = conn.Close(t.Context())
			return cmd, url
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not answer: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestKilledServerStartsAgainWithEverythingThatWasCommitted(t *testing.T) {
	s := open(t)
	// What a process that was killed while it made the folder leaves.
	if err := os.MkdirAll(s.data+".new/base", 0o700); err != nil {
		t.Fatal(err)
	}
	setup := Setup{User: "miller", Password: "it's a secret", Databases: []string{"shop"}}
	for range 2 { // the second time it is there
		if err := s.Init(t.Context(), setup); err != nil {
			t.Fatal(err)
		}
	}
	server, url := serve(t, s, "miller", "it%27s%20a%20secret")
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "CREATE TABLE sales (n int); INSERT INTO sales VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	// A child that is at work does not notice that its server was killed.
	busy := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.WithoutCancel(t.Context()), "INSERT INTO sales SELECT count(*) FROM generate_series(1, 1000000000000)")
		busy <- err
	}()
	for len(working(t, url)) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	if n, err := s.EndLeftovers(t.Context()); err != nil || n == 0 {
		t.Errorf("EndLeftovers = %d, %v; the working child should have been one", n, err)
	}
	if err := <-busy; err == nil {
		t.Error("the child finished its work")
	}

	again, err := Open(s.data)
	if err != nil {
		t.Fatal(err)
	}
	_, url = serve(t, again, "miller", "it%27s%20a%20secret")
	if conn, err = pgx.Connect(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT sum(n) FROM sales").Scan(&n); err != nil || n != 1 {
		t.Errorf("sales: %d, %v; want the committed 1", n, err)
	}
	if _, err := pgx.Connect(t.Context(), strings.Replace(url, "secret", "guess", 1)); err == nil {
		t.Error("a wrong password was let in")
	}
	// A server whose parent is gone is stopped cleanly.
	if n, err := again.EndLeftovers(t.Context()); err != nil || n == 0 {
		t.Errorf("EndLeftovers of a running server = %d, %v", n, err)
	}
	if n, err := again.EndLeftovers(t.Context()); err != nil || n != 0 {
		t.Errorf("EndLeftovers with nothing left = %d, %v", n, err)
	}
}

// working lists the statements that are being executed, other than its own.
func working(t *testing.T, url string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), "SELECT query FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND query LIKE 'INSERT%'")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStaleLockOfAProcessIDThatIsUsedAgainDoesNotMatter(t *testing.T) {
	s := open(t)
	if err := s.Init(t.Context(), Setup{User: "u", Databases: []string{"shop"}, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	// This test's own process has the id.
	lock := filepath.Join(s.data, "postmaster.pid")
	if err := os.WriteFile(lock, fmt.Appendf(nil, "%d\n%s\n1\n1\n\n\n0 0\n", os.Getpid(), s.data), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Give(lock); err != nil {
		t.Fatal(err)
	}
	if n, err := s.EndLeftovers(t.Context()); err != nil || n != 0 {
		t.Fatalf("EndLeftovers = %d, %v", n, err)
	}
	serve(t, s, "u", "")
}

func TestUnusableProgramsAndFoldersAreNamed(t *testing.T) {
	s := open(t)
	t.Run("data of another version", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), []byte("8\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		requireError(t, func() error { _, err := Open(dir); return err }, dir, "PostgreSQL 8", strconv.Itoa(s.Major()), "POSTGRES_BIN")
	})
	t.Run("no programs", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv("POSTGRES_BIN", dir)
		requireError(t, func() error { _, err := Open(filepath.Join(dir, "data")); return err }, "POSTGRES_BIN="+dir)
	})
	t.Run("a folder that its user may not enter", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("the server runs as this user")
		}
		closed := filepath.Join(filepath.Dir(s.data), "closed")
		if err := os.Mkdir(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		inside, err := Open(filepath.Join(closed, "data"))
		if err != nil {
			t.Fatal(err)
		}
		requireError(t, func() error { return inside.Init(t.Context(), Setup{User: "u"}) }, closed, "may not enter", "chmod")
	})
}

func requireError(t *testing.T, f func() error, parts ...string) {
	t.Helper()
	err := f()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q: %v", part, err)
		}
	}
}

package pgtest

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/pgserver"
)

// Server is a server of a test's own, which can be away and come back. What it has
// committed survives that: it writes its log before it says so, though not past the
// operating system.
type Server struct {
	t       testing.TB
	data    *pgserver.Server
	dir     string
	process *process
}

// Own starts a server that ends with the test.
func Own(t testing.TB) *Server {
	t.Helper()
	data, dir, err := initialised()
	if errors.Is(err, pgserver.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("making a server: %v", err)
	}
	s := &Server{t: t, data: data, dir: dir}
	t.Cleanup(func() { s.Crash(); _ = os.RemoveAll(dir) })
	s.Start()
	return s
}

// URL is the address of its one database, for DATABASE_URL.
func (s *Server) URL() string { return (&process{dir: s.dir}).url("postgres") }

// Crash ends the server at once: connections break, and what it holds in memory is lost.
func (s *Server) Crash() {
	if s.process != nil {
		s.process.crash()
		s.process = nil
	}
}

// Start starts it again, and returns when it answers.
func (s *Server) Start() {
	s.t.Helper()
	var err error
	if s.process, err = launch(s.data, s.dir, map[string]string{"fsync": "off", "shared_buffers": "32MB", "log_min_messages": "panic"}); err != nil {
		s.t.Fatalf("starting PostgreSQL: %v", err)
	}
}

// Lock holds a table so that it can be read and not written, until unlock is called or
// the test ends: who is to be killed within a transaction waits for it there.
func (s *Server) Lock(table string) (unlock func()) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(s.t.Context())
	if err == nil {
		_, err = tx.Exec(s.t.Context(), "LOCK TABLE "+table+" IN EXCLUSIVE MODE")
	}
	if err != nil {
		s.t.Fatalf("locking %s: %v", table, err)
	}
	return func() {
		s.t.Helper()
		if err := tx.Rollback(s.t.Context()); err != nil {
			s.t.Fatalf("unlocking %s: %v", table, err)
		}
	}
}

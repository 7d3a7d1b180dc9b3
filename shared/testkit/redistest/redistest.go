// Package redistest gives tests a Redis of their own: the machine's redis-server,
// with an append-only file, so that it can be killed and started again; or, where
// there is none, an imitation inside of the test that cannot.
package redistest

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// Server is a Redis that lives until the test ends.
type Server struct {
	// URL is its address, for REDIS_URL. It stays the same when it starts again.
	URL string

	t      testing.TB
	dir    string
	binary string
	cmd    *exec.Cmd
	mini   *miniredis.Miniredis
}

// Start starts a Redis without data.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t}
	var err error
	if s.binary, err = exec.LookPath("redis-server"); err != nil {
		s.mini = miniredis.RunT(t)
		s.URL = "redis://" + s.mini.Addr()
		return s
	}
	if s.dir, err = os.MkdirTemp("", "redis"); err != nil { //nolint:usetesting // paths below t.TempDir may be too long for a socket
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		_ = os.RemoveAll(s.dir)
	})
	s.URL = "unix://" + s.socket()
	s.Restart()
	return s
}

func (s *Server) socket() string { return filepath.Join(s.dir, "redis.sock") }

// NeedsProcess skips the test if the server is no process that can be killed.
func (s *Server) NeedsProcess() {
	s.t.Helper()
	if s.mini != nil {
		s.t.Skip("there is no redis-server in PATH")
	}
}

// PID is the id of the server's process.
func (s *Server) PID() int {
	s.t.Helper()
	s.NeedsProcess()
	return s.cmd.Process.Pid
}

// Kill ends the server as kill -9 does.
func (s *Server) Kill() {
	s.t.Helper()
	s.NeedsProcess()
	s.stop()
}

func (s *Server) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait() // that it was killed
		s.cmd = nil
	}
}

// Flush removes all data, as if the server had lost it.
func (s *Server) Flush() {
	s.t.Helper()
	if s.mini != nil {
		s.mini.FlushAll()
		return
	}
	if answer, err := s.ask("FLUSHALL"); err != nil || answer != "+OK" {
		s.t.Fatalf("FLUSHALL: %q, %v", answer, err)
	}
}

// Restart starts the server again, with the data that it had.
func (s *Server) Restart() {
	s.t.Helper()
	s.NeedsProcess()
	if err := os.Remove(s.socket()); err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.binary, "--port", "0", "--unixsocket", s.socket(), "--dir", s.dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "noeviction")
	cmd.Stdout, cmd.Stderr = log, log
	// It must not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	for deadline := time.Now().Add(time.Minute); !s.answers(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("redis-server does not answer:\n%s", text)
		}
	}
}

// answers tells whether the server has loaded its data.
func (s *Server) answers() bool {
	answer, err := s.ask("PING")
	return err == nil && answer == "+PONG"
}

// ask sends a command without arguments and gives the line that is answered.
func (s *Server) ask(command string) (string, error) {
	conn, err := new(net.Dialer).Dial("unix", s.socket())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

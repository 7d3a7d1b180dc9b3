package pgtest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Timescale tells whether databases of this run have TimescaleDB. They have one session
// then, whose clients wait for each other's transactions.
func Timescale() bool { return os.Getenv("TEST_TIMESCALE") != "" }

// startTimescale gives a server of its own to a test, ended with it.
func startTimescale(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("node", filepath.Join(os.Getenv("TEST_TIMESCALE"), "server.mjs"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// It ends when nobody holds its input any more.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting TimescaleDB: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("starting TimescaleDB: it ended before it listened: %v", err)
	}
	return "postgres://postgres@127.0.0.1:" + strings.TrimSpace(port) + "/postgres?sslmode=disable"
}

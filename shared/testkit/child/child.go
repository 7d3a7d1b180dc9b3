// Package child runs a function as a process of a test: the test's own binary, started
// again, is the function. So it can be killed as the kernel kills, and what it leaves
// behind is what a machine that lost power leaves.
package child

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

const variable = "MILLRACE_TEST_CHILD"

// Main is for TestMain: in a child it runs the function and returns true.
func Main(function func()) bool {
	if os.Getenv(variable) == "" {
		return false
	}
	function()
	return true
}

// Process is a function as a process. Its methods are for one goroutine, but for URL.
type Process struct {
	t    testing.TB
	port string
	env  []string
	said lockedBuffer
	cmd  *exec.Cmd
}

// Start starts the function, waits until it is ready, and ends it with the test.
func Start(t testing.TB, env ...string) *Process {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	_ = listener.Close()
	p := &Process{t: t, port: port, env: env}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("the process said:\n%s", p.said.tail())
		}
	})
	p.Run()
	return p
}

// URL is where it listens.
func (p *Process) URL() string { return "http://127.0.0.1:" + p.port }

// Run starts it again after a Kill, and waits until it is ready.
func (p *Process) Run() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0]) // the test itself; ended by Kill
	p.cmd.Env = append(append(os.Environ(), variable+"=1", "LISTEN_HOST=127.0.0.1", "PORT="+p.port), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.Eventually("the function is ready", func() bool {
		req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.URL()+"/readyz", nil)
		if err != nil {
			p.t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Kill ends it with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	_ = p.cmd.Wait() // that it was killed
	p.cmd = nil
}

// RSS is what it holds in memory, in bytes; 0 where the system does not say.
func (p *Process) RSS() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	var size, resident int64
	_, _ = fmt.Sscan(string(b), &size, &resident)
	return resident * int64(os.Getpagesize())
}

// Post sends an event to it and gives the status, 0 without an answer.
func (p *Process) Post(m *events.Message) int {
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.URL()+"/", bytes.NewReader(m.Data))
	if err != nil {
		p.t.Error(err)
		return 0
	}
	events.SetHTTP(req.Header, m)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// Eventually waits for a condition, for minutes on a busy machine.
func (p *Process) Eventually(what string, met func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// lockedBuffer is written by the process's pipes and read by the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) tail() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Bytes()[max(0, b.b.Len()-4000):]
}

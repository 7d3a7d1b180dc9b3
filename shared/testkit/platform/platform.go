// Package platform starts the local runner as its users do, `millrace up`, for tests of
// what stands in front of it or beside it.
package platform

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Programs is the folder of the built programs, which TEST_PROGRAMS names. Without it the
// test is skipped; target is the one of the Makefile that sets it.
func Programs(t *testing.T, target string) string {
	t.Helper()
	folder := os.Getenv("TEST_PROGRAMS")
	if folder == "" {
		t.Skipf("TEST_PROGRAMS is not set: `make %s` sets it", target)
	}
	return folder
}

// Platform is a runner and all that it runs.
type Platform struct {
	// port is where it takes events and tells its status; the stores' and functions' follow.
	port            int
	state, programs string // folders
}

// Options are what a test wants other than a user who says nothing.
type Options struct {
	Programs string   // the folder of Programs
	Root     string   // the checkout
	Flags    []string // of `millrace up`
}

// ports is how many a platform may take, in a row.
const ports = 40

// Start starts one on free ports, in a folder of its own and without the trainer, waits
// until it runs, and ends it with the test. Its output is shown if that fails.
func Start(t *testing.T, o Options) *Platform {
	t.Helper()
	root, err := filepath.Abs(o.Root)
	if err != nil {
		t.Fatal(err)
	}
	p := &Platform{port: FreePorts(t, ports), state: t.TempDir(), programs: o.Programs}
	// Who runs PostgreSQL when the tests run as root has to come through.
	if err := os.Chmod(filepath.Dir(p.state), 0o711); err != nil { // nobody else can list it
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(p.state, "out"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, filepath.Join(o.Programs, "millrace"), slices.Concat([]string{
		"up", "--plain", "--root", root, "--state", p.state, "--bin", o.Programs, "--port-base", strconv.Itoa(p.port),
	}, o.Flags)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "NO_LEARNING=1")
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			text, _ := os.ReadFile(out.Name())
			t.Logf("output of the runner:\n%s", text)
		}
	})
	Await(t, "the platform", func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the platform ended: %v", err)
		default:
		}
		s, err := p.status()
		if err == nil && s.State != "running" {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	return p
}

// status is what is needed of the runner's.
type status struct {
	State     string
	Processes []struct {
		Name, Address string
		PID           int
	}
}

func (p *Platform) status() (s status, err error) {
	err = Get(p.URL()+"/status", &s)
	return s, err
}

// URL is where it takes events and tells its status.
func (p *Platform) URL() string { return fmt.Sprintf("http://127.0.0.1:%d", p.port) }

// Part is the address of a part, http://host:port, and its process.
func (p *Platform) Part(t *testing.T, name string) (url string, pid int) {
	t.Helper()
	s, err := p.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range s.Processes {
		if process.Name == name {
			return "http://" + process.Address, process.PID
		}
	}
	t.Fatalf("%s does not run", name)
	return "", 0
}

// Run gives what a command of the runner prints about this platform.
func (p *Platform) Run(t *testing.T, command string, args ...string) string {
	t.Helper()
	args = slices.Concat([]string{command}, args, []string{"--state", p.state})
	out, err := exec.CommandContext(t.Context(), filepath.Join(p.programs, "millrace"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("millrace %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Setting is one of those that `millrace env` prints.
func (p *Platform) Setting(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(p.Run(t, "env", "--name", name))
}

// Get asks for a page, which must be there, and decodes its JSON, where answer is not nil.
func Get(url string, answer any) error {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url) // bounded by the client
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// patience bounds the waiting for anything: it is for a machine that does much else.
const patience = 10 * time.Minute

// Await waits until check has no error.
func Await(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// given is the first port that this process has not given out yet. Other tests look for some
// at the same time: processes begin at different places, below the ports of connections.
var given = struct {
	sync.Mutex
	next int
}{next: 23000 + os.Getpid()%100*2*ports}

// FreePorts finds n ports in a row that nobody listens on, and gives the first. None is given
// twice: what was given may not be listened on yet.
func FreePorts(t *testing.T, n int) int {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	for base := given.next; base+n < 65536; base += n {
		if free(base, n) {
			given.next = base + n
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

func free(base, n int) bool {
	for port := base; port < base+n; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	return true
}

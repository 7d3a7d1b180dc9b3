package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
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

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/lake"
)

// patience bounds every wait of a test. It is long because machines are slow and
// because a consumer group takes seconds to notice that a member was killed; what
// is waited for usually comes at once. TEST_PATIENCE makes it longer for a machine that
// has much else to do.
var patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TEST_PATIENCE")); err == nil {
		return d
	}
	return 3 * time.Minute
}()

// checkout is the repository's folder.
var checkout = sync.OnceValue(func() string {
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		panic(err)
	}
	return dir
})

var programs struct {
	once sync.Once
	dir  string
	err  error
}

// TestMain removes the programs that the tests have built.
func TestMain(m *testing.M) {
	code := m.Run()
	if programs.dir != "" && os.Getenv("MILLRACE_TEST_BIN") == "" {
		_ = os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}

// bin is the folder of the built programs: built once, or named by
// MILLRACE_TEST_BIN.
func bin(t *testing.T) string {
	t.Helper()
	programs.once.Do(func() {
		if programs.dir = os.Getenv("MILLRACE_TEST_BIN"); programs.dir != "" {
			return
		}
		//nolint:usetesting // the programs outlive the test that builds them
		if programs.dir, programs.err = os.MkdirTemp("", "millrace-test-"); programs.err != nil {
			return
		}
		for _, b := range []struct {
			dir  string
			args []string
		}{
			{checkout(), []string{"-o", programs.dir + "/", "./functions/...", "./infra/loadgen"}},
			{".", []string{"-o", filepath.Join(programs.dir, "millrace"), "."}},
		} {
			cmd := exec.Command("go", append([]string{"build"}, b.args...)...)
			cmd.Dir = b.dir
			if out, err := cmd.CombinedOutput(); err != nil {
				programs.err = fmt.Errorf("building: %w\n%s", err, out)
				return
			}
		}
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return programs.dir
}

// eventually waits for a condition; state says what there is instead when it does
// not come.
func eventually(t *testing.T, what string, cond func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s\n%s", what, state())
		}
	}
}

// freePorts finds n ports in a row that nobody listens on.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 200 {
		base := 20000 + rand.IntN(10000) // below where outgoing connections take theirs
		if rowIsFree(base, n) {
			return base
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

func rowIsFree(base, n int) bool {
	for i := range n {
		l, err := net.Listen("tcp", local(base+i))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// platformProcess is a runner and all that it runs.
type platformProcess struct {
	t     *testing.T
	state string
	base  int
	args  []string
	env   []string

	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan struct{} // closed when cmd has ended
}

// newPlatform gives a platform with a state folder and ports of its own that is not
// started yet. It runs without the shop producer.
func newPlatform(t *testing.T, env ...string) *platformProcess {
	t.Helper()
	// Who runs PostgreSQL when the tests run as root has to come through.
	state := t.TempDir()
	if err := os.Chmod(filepath.Dir(state), 0o711); err != nil {
		t.Fatal(err)
	}
	p := &platformProcess{t: t, state: state, base: freePorts(t, 32), env: env, out: &lockedBuffer{}}
	p.args = []string{
		"up", "--root", checkout(), "--state", p.state, "--bin", bin(t), "--port-base", strconv.Itoa(p.base),
		"--no-load", "--plain",
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("output of the runner:\n%s", p.out)
			p.logTails()
		}
	})
	return p
}

// lockedBuffer is written by a process and read by the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// cleanEnv is the test's environment without what would reach the platform.
func cleanEnv(extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		for _, prefix := range []string{"KAFKA_", "S3_", "MILLRACE_", "CONTRACTS_DIR", "TRIGGERS_DIR", "DATACENTER", "RATE", "NO_LOAD", "CREATE_TOPICS", "LOG_LEVEL", "DATABASE_URL", "REDIS_URL", "INGEST_TOKEN", "POSTGRES_BIN", "MLFLOW_"} {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	})
	// MLflow and the trainer have a test of their own.
	return append(append(env, "NO_LEARNING=1"), extra...)
}

func (p *platformProcess) command() *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin(p.t), "millrace"), p.args...)
	cmd.Env = cleanEnv(p.env...)
	// A group of its own, so that the terminal's Ctrl-C reaches the test first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// start starts the runner and waits until the platform runs.
func (p *platformProcess) start() {
	p.t.Helper()
	p.cmd = p.command()
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.done = make(chan struct{})
	cmd, done := p.cmd, p.done
	go func() { _ = cmd.Wait(); close(done) }()
	eventually(p.t, "the platform runs", func() bool {
		select {
		case <-done:
			p.t.Fatalf("the runner ended:\n%s", p.out)
		default:
		}
		s, err := p.askStatus()
		return err == nil && s.State == "running"
	}, p.out.String)
}

// kill ends the runner as SIGKILL does and waits until it is gone.
func (p *platformProcess) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop ends the runner as Ctrl-C does.
func (p *platformProcess) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("the runner does not stop:\n%s", p.out)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Fatalf("the runner ended with %d:\n%s", code, p.out)
	}
}

func (p *platformProcess) url(path string) string { return "http://" + local(p.base) + path }

func (p *platformProcess) askStatus() (Status, error) {
	var s Status
	client := http.Client{Timeout: 3 * time.Second}
	resp, err := client.Get(p.url("/status"))
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&s)
	return s, err
}

// process finds a process of the platform by its name.
func (p *platformProcess) process(name string) (ProcessStatus, bool) {
	s, err := p.askStatus()
	if err != nil {
		return ProcessStatus{}, false
	}
	i := slices.IndexFunc(s.Processes, func(ps ProcessStatus) bool { return ps.Name == name })
	if i < 0 {
		return ProcessStatus{}, false
	}
	return s.Processes[i], true
}

// killParts kills processes of the platform at one moment and waits until their
// successors are ready.
func (p *platformProcess) killParts(names ...string) {
	p.t.Helper()
	pids := map[string]int{}
	for _, name := range names {
		if name == "runner" {
			continue
		}
		now, ok := p.process(name)
		if !ok || now.PID == 0 {
			p.t.Fatalf("there is no process %s", name)
		}
		pids[name] = now.PID
	}
	for name, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			p.t.Fatalf("killing %s: %v", name, err)
		}
	}
	if slices.Contains(names, "runner") {
		p.kill()
		p.start()
		return
	}
	for name, pid := range pids {
		p.awaitSuccessor(name, pid)
	}
}

func (p *platformProcess) awaitSuccessor(name string, pid int) {
	p.t.Helper()
	eventually(p.t, name+" runs again", func() bool {
		now, ok := p.process(name)
		return ok && now.State == supervise.Ready && now.PID != pid
	}, p.out.String)
}

func (p *platformProcess) logTails() {
	files, _ := filepath.Glob(filepath.Join(p.state, "log", "*.log"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		p.t.Logf("end of %s:\n%s", filepath.Base(file), b[max(0, len(b)-3000):])
	}
}

func (p *platformProcess) brokers() string {
	for _, v := range p.env {
		if b, ok := strings.CutPrefix(v, "KAFKA_BROKERS="); ok {
			return b
		}
	}
	return local(p.base + 1)
}

func (p *platformProcess) kafka(opts ...kgo.Opt) *kgo.Client {
	p.t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(p.brokers())}, opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(client.Close)
	return client
}

func (p *platformProcess) store() *lake.Store {
	p.t.Helper()
	store, err := lake.Config{
		Endpoint: "http://" + local(p.base+2), Region: defaultRegion, AccessKey: defaultAccessKey, SecretKey: defaultSecretKey,
	}.Connect()
	if err != nil {
		p.t.Fatal(err)
	}
	return store
}

// load runs the load generator.
type load struct {
	t      *testing.T
	cmd    *exec.Cmd
	report string
	errs   *lockedBuffer
	done   chan error
}

// loadReport is what is used of the generator's report.
type loadReport struct {
	Next     uint64 `json:"next"`
	Good     uint64 `json:"good"`
	Bad      uint64 `json:"bad"`
	Complete bool   `json:"complete"`
}

func (p *platformProcess) startLoad(args ...string) *load {
	p.t.Helper()
	l := &load{t: p.t, report: filepath.Join(p.t.TempDir(), "report.json"), errs: &lockedBuffer{}, done: make(chan error, 1)}
	l.cmd = exec.Command(filepath.Join(bin(p.t), "loadgen"), append([]string{
		"shop", "-brokers", p.brokers(), "-report", l.report, "-seq-header", "-drain", "2m",
	}, args...)...)
	l.cmd.Env = cleanEnv()
	l.cmd.Stdout, l.cmd.Stderr = l.errs, l.errs
	if err := l.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { l.done <- l.cmd.Wait() }()
	p.t.Cleanup(func() { _ = l.cmd.Process.Kill() })
	return l
}

// stop ends the generator, which waits for what it has sent.
func (l *load) stop() loadReport {
	l.t.Helper()
	_ = l.cmd.Process.Signal(syscall.SIGINT)
	return l.wait()
}

// wait waits for the generator's own end and returns its report.
func (l *load) wait() loadReport {
	l.t.Helper()
	select {
	case err := <-l.done:
		l.done <- err
	case <-time.After(patience):
		l.t.Fatalf("the load generator does not end:\n%s", l.errs)
	}
	var r loadReport
	b, err := os.ReadFile(l.report)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		l.t.Fatalf("reading the load generator's report: %v\n%s", err, l.errs)
	}
	return r
}

// messages has the load generator print messages.
func messages(t *testing.T, n int, args ...string) [][]byte {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin(t), "loadgen"), append([]string{
		"shop", "-stdout", "-rate", "0", "-count", strconv.Itoa(n), "-report", filepath.Join(t.TempDir(), "report.json"),
	}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("printing messages: %v", err)
	}
	var lines [][]byte
	r := bufio.NewReader(bytes.NewReader(out))
	for {
		line, err := r.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			lines = append(lines, bytes.TrimRight(line, "\n"))
		}
		if err == io.EOF {
			break
		}
	}
	if len(lines) != n {
		t.Fatalf("%d messages, want %d", len(lines), n)
	}
	return lines
}

// running is a context for one request of a test.
func running(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

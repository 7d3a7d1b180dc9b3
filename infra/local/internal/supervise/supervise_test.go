package supervise

import (
	"context"
	"errors"
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

// events collects what a supervisor reports.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) find(text string) *Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.all {
		if strings.Contains(e.all[i].Text, text) {
			return &e.all[i]
		}
	}
	return nil
}

func newSupervisor(t *testing.T) (*Supervisor, *events) {
	t.Helper()
	ev := &events{}
	s := New(t.TempDir(), t.TempDir(), ev.add)
	t.Cleanup(s.KillAll)
	return s, ev
}

func shell(t *testing.T, s *Supervisor, name, script string) *Child {
	t.Helper()
	c, err := s.Start(Spec{Name: name, Path: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
	}
}

func TestKilledChildIsStartedAgain(t *testing.T) {
	s, ev := newSupervisor(t)
	c := shell(t, s, "sleeper", "sleep 1000")
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := c.Status().PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new process", func() bool { st := c.Status(); return st.State == Ready && st.PID != first })
	if got := c.Status().Restarts; got != 1 {
		t.Errorf("restarts: got %d, want 1", got)
	}
	eventually(t, "news of the recovery", func() bool { return ev.find("is running again") != nil })
	if e := ev.find("signal 9"); e == nil || !e.Bad {
		t.Errorf("the death was not reported: %+v", ev.all)
	}
	c.Stop(t.Context())
	if st := c.Status(); st.State != Stopped || st.PID != 0 {
		t.Errorf("after Stop: %+v", st)
	}
}

func TestChildThatKeepsDyingIsReportedWithItsLastLines(t *testing.T) {
	s, ev := newSupervisor(t)
	c := shell(t, s, "broken", "echo no such bucket >&2; exit 3")
	err := c.WaitReady(t.Context())
	// A child without a Ready function is ready for the moment it runs, so wait
	// for the report itself.
	eventually(t, "the report", func() bool { return ev.find("keeps dying") != nil })
	if e := ev.find("keeps dying"); !strings.Contains(e.Text, "no such bucket") || !strings.Contains(e.Text, "exit code 3") {
		t.Errorf("report lacks the exit code or the last lines: %s (%v)", e.Text, err)
	}
	eventually(t, "state failing", func() bool { return c.Status().State == Failing })
	stopped := time.Now()
	c.Stop(t.Context())
	if d := time.Since(stopped); d > 2*time.Second {
		t.Errorf("Stop waited %v for a child that was not running", d)
	}
}

func TestMissingProgramIsReported(t *testing.T) {
	s, ev := newSupervisor(t)
	c, err := s.Start(Spec{Name: "absent", Path: filepath.Join(t.TempDir(), "absent"), Ready: func(context.Context) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "keeps dying") {
		t.Errorf("WaitReady = %v", err)
	}
	if ev.find("could not be started") == nil {
		t.Errorf("the reason was not reported: %+v", ev.all)
	}
}

func TestReadinessIsAskedAndLost(t *testing.T) {
	s, _ := newSupervisor(t)
	var mu sync.Mutex
	answer := errors.New("loading")
	c, err := s.Start(Spec{Name: "slow", Path: "/bin/sh", Args: []string{"-c", "sleep 1000"}, Ready: func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		return answer
	}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reason", func() bool { return c.Status().Err == "loading" })
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.WaitReady(short); err == nil || !strings.Contains(err.Error(), "loading") {
		t.Errorf("WaitReady = %v", err)
	}
	mu.Lock()
	answer = nil
	mu.Unlock()
	if err := c.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStopKillsAChildThatIgnoresSIGTERM(t *testing.T) {
	s, ev := newSupervisor(t)
	started := filepath.Join(t.TempDir(), "started")
	c, err := s.Start(Spec{
		Name: "deaf", Path: "/bin/sh", StopTimeout: 50 * time.Millisecond,
		Args: []string{"-c", "trap '' TERM; touch " + started + "; while :; do sleep 0.01; done"},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the trap", func() bool { _, err := os.Stat(started); return err == nil })
	c.Stop(t.Context())
	if ev.find("was killed") == nil {
		t.Error("the kill was not reported")
	}
}

func TestLogIsBoundedAndKeepsTheLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := openLog(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		if _, err := l.Write([]byte("line " + strconv.Itoa(i) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".1"} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > 1000 {
			t.Errorf("%s has %d bytes", p, fi.Size())
		}
	}
	tail := l.tail()
	if len(tail) != tailLines || tail[len(tail)-1] != "line 499" {
		t.Errorf("tail = %q", tail)
	}
}

func TestReapEndsOnlyWhatItsNoteDescribes(t *testing.T) {
	dir := t.TempDir()
	start := func() *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	ours, foreign := start(), start()
	s := &Supervisor{runDir: dir}
	s.remember("ours", ours.Process.Pid, syscall.SIGKILL)
	s.remember("foreign", foreign.Process.Pid, syscall.SIGKILL)
	// The id of "foreign" was used again by a process that started later.
	path := filepath.Join(dir, "foreign.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), `"start":"`, `"start":"1`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	died := make(chan struct{})
	go func() { _ = ours.Wait(); close(died) }()
	ended, unclean, err := Reap(dir)
	if err != nil || !unclean {
		t.Fatal(unclean, err)
	}
	if len(ended) != 1 || ended[0] != "ours" {
		t.Errorf("Reap ended %q, want only ours", ended)
	}
	<-died
	if foreign.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("a process with another start time was killed")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.json")); len(left) != 0 {
		t.Errorf("notes are left: %q", left)
	}
}

func TestChildThatRunsOnceIsNotStartedAgain(t *testing.T) {
	s, _ := newSupervisor(t)
	sh := func(script string) Spec { return Spec{Name: "once", Path: "/bin/sh", Args: []string{"-c", script}} }
	for _, tc := range []struct{ script, how, tail string }{
		{"echo done", Succeeded, "done"},
		{"echo no luck >&2; exit 3", "exit code 3", "no luck"},
	} {
		how, tail, err := s.RunOnce(t.Context(), sh(tc.script))
		if err != nil || how != tc.how || strings.Join(tail, "\n") != tc.tail {
			t.Errorf("%s: %q, %q, %v; want %q, %q", tc.script, how, tail, err, tc.how, tc.tail)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan string)
	go func() {
		how, _, _ := s.RunOnce(ctx, sh("sleep 1000"))
		ended <- how
	}()
	eventually(t, "the child runs", func() bool {
		all := s.Status()
		return len(all) == 1 && all[0].PID != 0
	})
	stop()
	if how := <-ended; !strings.HasPrefix(how, "signal 15") {
		t.Errorf("a child whose context ended: %q", how)
	}
	if all := s.Status(); len(all) != 0 {
		t.Errorf("children that have ended are listed: %+v", all)
	}
}

func TestChildIsPreparedBeforeEachStartAndStoppedByItsSignal(t *testing.T) {
	s, ev := newSupervisor(t)
	prepared := make(chan error, 3)
	prepared <- errors.New("not yet")
	prepared <- nil
	prepared <- nil
	c, err := s.Start(Spec{
		Name: "prepared", Path: "/bin/sh", Args: []string{"-c", "trap 'echo asked; exit 0' INT; echo listening; while :; do sleep 0.01; done"},
		Prepare:    func(context.Context) error { return <-prepared },
		StopSignal: syscall.SIGINT, KillSignal: syscall.SIGQUIT,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child runs", func() bool { return c.Status().State == Ready })
	if ev.find("could not be prepared: not yet") == nil {
		t.Errorf("the reason was not reported: %+v", ev.all)
	}
	eventually(t, "the child listens for its signal", func() bool { return slices.Contains(c.Tail(), "listening") })
	c.Stop(t.Context())
	if tail := c.Tail(); len(tail) == 0 || tail[len(tail)-1] != "asked" {
		t.Errorf("the child was not asked by its signal: %q", tail)
	}
}

// Package supervise keeps child processes running.
//
// A child that dies is started again, at once the first time and then after a
// pause that doubles; a child that keeps dying is reported with the last lines
// of its output and tried again at the longest pause for as long as the
// supervisor lives. What a child prints goes to a bounded log file.
//
// Children do not outlive the process that supervises them. On Linux the kernel
// kills them with it; on every system what a supervisor that was killed left
// behind is ended by the next one (see Reap).
//
// It knows nothing of what a child does: whether a child is ready is asked of a
// function in its Spec.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Pauses between a death and the next start, and what counts as dying again.
const (
	firstPause = 100 * time.Millisecond
	longPause  = 10 * time.Second
	// steadyAfter is how long a child must run for its earlier deaths to be
	// forgotten.
	steadyAfter = 15 * time.Second
	// reportAfter deaths in a row, a child is reported as failing.
	reportAfter = 4
	// logBytes bounds a child's log; one earlier file of this size is kept.
	logBytes = 4 << 20
	// tailLines are what a report quotes of a child's output.
	tailLines = 12
)

// State is what a child is doing.
type State string

// The states of a child. Failing children are still being restarted.
const (
	Starting   State = "starting"
	Ready      State = "ready"
	NotReady   State = "not ready"
	Restarting State = "restarting"
	Failing    State = "failing"
	Stopping   State = "stopping"
	Stopped    State = "stopped"
)

// Spec describes a child.
type Spec struct {
	Name string // unique; also the name of its log file
	Path string // the program
	Args []string
	Env  []string // whole environment, KEY=value
	Dir  string
	// Credential is the user that the child runs as; nil is this process's own.
	Credential *syscall.Credential

	// Prepare is called before each start. Its error counts as a death.
	Prepare func(context.Context) error
	// Ready tells whether the child can do its work; nil means as soon as it
	// runs. It is asked often while the child starts and once a second later.
	Ready func(context.Context) error
	// StopTimeout is how long the child may take after StopSignal before it is
	// killed; 10 s when zero.
	StopTimeout time.Duration
	// StopSignal asks the child to end; SIGTERM when zero.
	StopSignal syscall.Signal
	// KillSignal ends the child at once, also when the supervisor dies; SIGKILL when
	// zero. Another one is for a child that has children of its own to end.
	KillSignal syscall.Signal
}

func (spec Spec) withDefaults() Spec {
	if spec.StopTimeout == 0 {
		spec.StopTimeout = 10 * time.Second
	}
	if spec.StopSignal == 0 {
		spec.StopSignal = syscall.SIGTERM
	}
	if spec.KillSignal == 0 {
		spec.KillSignal = syscall.SIGKILL
	}
	return spec
}

// Event is something a person should know of: a death, a recovery, a report.
type Event struct {
	Child string
	Text  string
	// Bad is set when the event is not good news.
	Bad bool
}

// Status is a child's state at one moment.
type Status struct {
	Name     string
	State    State
	PID      int       // 0 when it does not run
	Since    time.Time // start of the process
	Restarts int       // starts after the first
	Err      string    // why it is not ready, or how it died last
}

// Usage is what a process uses of the machine.
type Usage struct {
	// Own and Shared are bytes in memory: those that no other process has, and those of
	// the program and of memory that it may share with others.
	Own, Shared int64
	// Program is whose Shared may be the same memory in several processes.
	Program string
	CPU     time.Duration // used since its start
}

// Supervisor runs children. Its methods are safe for concurrent use.
type Supervisor struct {
	logDir, runDir string
	notify         func(Event)
	ctx            context.Context // of the questions whether a child is ready
	spawn          chan spawnRequest

	mu       sync.Mutex
	children []*Child
}

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// New returns a supervisor that writes logs to logDir and notes of the processes
// it started to runDir, both existing folders. notify is called for each event,
// from several goroutines, and must not block.
func New(logDir, runDir string, notify func(Event)) *Supervisor {
	s := &Supervisor{logDir: logDir, runDir: runDir, notify: notify, ctx: context.Background(), spawn: make(chan spawnRequest)}
	go func() {
		// Linux sends the parent-death signal when the *thread* that started the
		// child ends, so all children are started from one thread that lives as
		// long as the process.
		runtime.LockOSThread()
		for r := range s.spawn {
			r.done <- r.cmd.Start()
		}
	}()
	return s
}

// Child is one supervised process.
type Child struct {
	s    *Supervisor
	spec Spec
	log  *logFile

	stop     chan struct{}
	stopOnce sync.Once
	done     chan struct{} // closed when the child is gone for good

	mu     sync.Mutex
	status Status
	cmd    *exec.Cmd
}

// Start starts a child and keeps it running until Stop. It fails only when the
// child's log cannot be written.
func (s *Supervisor) Start(spec Spec) (*Child, error) {
	spec = spec.withDefaults()
	log, err := openLog(filepath.Join(s.logDir, spec.Name+".log"), logBytes)
	if err != nil {
		return nil, err
	}
	c := &Child{
		s: s, spec: spec, log: log,
		stop: make(chan struct{}), done: make(chan struct{}),
		status: Status{Name: spec.Name, State: Starting},
	}
	s.mu.Lock()
	s.children = append(s.children, c)
	s.mu.Unlock()
	go c.keepRunning()
	return c, nil
}

// Status returns the state of every child, in the order of their start.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	children := slices.Clone(s.children)
	s.mu.Unlock()
	all := make([]Status, len(children))
	for i, c := range children {
		all[i] = c.Status()
	}
	return all
}

// KillAll kills every child at once and does not wait.
func (s *Supervisor) KillAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.children {
		c.stopOnce.Do(func() { close(c.stop) })
		c.signal(c.spec.KillSignal)
	}
}

// Status returns the child's state.
func (c *Child) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Tail returns the last lines the child printed.
func (c *Child) Tail() []string { return c.log.tail() }

// WaitReady waits until the child is ready. It returns an error when ctx ends first,
// with the child's last words, or as soon as the child is failing, which has been
// reported with them.
func (c *Child) WaitReady(ctx context.Context) error {
	for {
		st := c.Status()
		switch st.State {
		case Ready:
			return nil
		case Failing:
			return fmt.Errorf("%s keeps dying, see above", c.spec.Name)
		case Stopped:
			return c.lastWords(st)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return c.lastWords(c.Status())
		}
	}
}

func (c *Child) lastWords(st Status) error {
	msg := fmt.Sprintf("%s is not ready (%s)", c.spec.Name, st.State)
	if st.Err != "" {
		msg += ": " + st.Err
	}
	if tail := c.Tail(); len(tail) > 0 {
		msg += "\nLast lines of " + c.log.path + ":\n  " + strings.Join(tail, "\n  ")
	}
	return errors.New(msg)
}

// Stop sends StopSignal, waits for the child to end and kills it after StopTimeout
// or when ctx ends. It returns when the process is gone; it may be called again.
func (c *Child) Stop(ctx context.Context) {
	c.stopOnce.Do(func() { close(c.stop) })
	c.mu.Lock()
	if c.status.State != Stopped {
		c.status.State = Stopping
	}
	c.mu.Unlock()
	c.signal(c.spec.StopSignal)
	timer := time.NewTimer(c.spec.StopTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
		return
	case <-timer.C:
		c.s.notify(Event{Child: c.spec.Name, Text: fmt.Sprintf("did not stop within %v and was killed", c.spec.StopTimeout), Bad: true})
	case <-ctx.Done():
	}
	c.signal(c.spec.KillSignal)
	select {
	case <-c.done:
	case <-time.After(c.spec.StopTimeout):
		c.signal(syscall.SIGKILL)
		<-c.done
	}
}

// signal reaches the child and whatever it started: each child leads its own
// process group, which also keeps the terminal's Ctrl-C from it.
func (c *Child) signal(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd != nil {
		_ = syscall.Kill(-c.cmd.Process.Pid, sig)
	}
}

func (c *Child) keepRunning() {
	defer close(c.done)
	defer func() { _ = c.log.Close() }()
	deaths := 0 // in a row
	for {
		select {
		case <-c.stop:
			c.set(func(s *Status) { s.State, s.PID = Stopped, 0 })
			return
		default:
		}
		began := time.Now()
		how := c.runOnce()
		select {
		case <-c.stop:
			c.set(func(s *Status) { s.State, s.PID = Stopped, 0 })
			return
		default:
		}
		if time.Since(began) >= steadyAfter {
			deaths = 0
		}
		deaths++
		pause := min(firstPause<<min(deaths-1, 10), longPause)
		state := Restarting
		if deaths >= reportAfter {
			state = Failing
		}
		c.set(func(s *Status) { s.State, s.PID, s.Err = state, 0, how; s.Restarts++ })
		switch {
		case deaths == reportAfter:
			text := fmt.Sprintf("keeps dying: %d times in a row, last %s; it is tried again every %v", deaths, how, longPause)
			if tail := c.Tail(); len(tail) > 0 {
				text += "; last lines of " + c.log.path + ":\n  " + strings.Join(tail, "\n  ")
			}
			c.s.notify(Event{Child: c.spec.Name, Text: text, Bad: true})
		case deaths < reportAfter:
			c.s.notify(Event{Child: c.spec.Name, Bad: true,
				Text: fmt.Sprintf("died (%s) after %v; starting it again in %v", how, time.Since(began).Round(10*time.Millisecond), pause)})
		}
		select {
		case <-time.After(pause):
		case <-c.stop:
		}
	}
}

// runOnce starts the process, follows it until it ends and says how it ended.
func (c *Child) runOnce() string {
	if err := c.prepare(); err != nil {
		return fmt.Sprintf("could not be prepared: %v", err)
	}
	cmd := exec.Command(c.spec.Path, c.spec.Args...) //nolint:noctx // it ends by Stop or KillAll
	cmd.Env, cmd.Dir = c.spec.Env, c.spec.Dir
	cmd.Stdout, cmd.Stderr = c.log, c.log
	cmd.SysProcAttr = childAttr(c.spec)
	// Whatever the child itself started may keep its output open.
	cmd.WaitDelay = time.Second

	r := spawnRequest{cmd: cmd, done: make(chan error)}
	c.s.spawn <- r
	if err := <-r.done; err != nil {
		return fmt.Sprintf("could not be started: %v", err)
	}
	pid := cmd.Process.Pid
	c.s.remember(c.spec.Name, pid, c.spec.KillSignal)
	restarted := false
	c.mu.Lock()
	c.cmd = cmd
	c.status.State, c.status.PID, c.status.Since, c.status.Err = Starting, pid, time.Now(), ""
	restarted = c.status.Restarts > 0
	c.mu.Unlock()
	// Stop may have come between the last look and now.
	select {
	case <-c.stop:
		c.signal(c.spec.StopSignal)
	default:
	}

	ctx, cancel := context.WithCancel(c.s.ctx)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		c.followReadiness(ctx, restarted)
	}()
	err := cmd.Wait()
	cancel()
	<-followed
	c.mu.Lock()
	c.cmd = nil
	c.mu.Unlock()
	c.s.forget(c.spec.Name)

	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return fmt.Sprintf("signal %d, %s", ws.Signal(), ws.Signal())
		}
		return fmt.Sprintf("exit code %d", exit.ExitCode())
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return err.Error()
	default:
		return "exit code 0"
	}
}

// prepare calls the Spec's Prepare, if any, until the child is to stop.
func (c *Child) prepare() error {
	if c.spec.Prepare == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(c.s.ctx)
	defer cancel()
	go func() {
		select {
		case <-c.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.spec.Prepare(ctx)
}

func (c *Child) followReadiness(ctx context.Context, restarted bool) {
	const fast, slow = 20 * time.Millisecond, time.Second
	pause := fast
	for {
		var err error
		if c.spec.Ready != nil {
			ask, cancel := context.WithTimeout(ctx, 5*time.Second)
			err = c.spec.Ready(ask)
			cancel()
		}
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		was := c.status.State
		switch {
		case was == Stopping:
		case err == nil && was != Ready:
			c.status.State, c.status.Err = Ready, ""
			pause = slow
		case err != nil:
			if was == Ready {
				c.status.State = NotReady
			}
			c.status.Err = err.Error()
			pause = min(pause*3/2, slow)
		}
		now := c.status.State
		c.mu.Unlock()
		if now == Ready && was == Starting && restarted {
			c.s.notify(Event{Child: c.spec.Name, Text: "is running again"})
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (c *Child) set(change func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.status)
}

// Executable reports whether path is a program this user can run.
func Executable(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if fi.IsDir() || fi.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not a program", path)
	}
	return nil
}

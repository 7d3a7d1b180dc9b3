package supervise

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Succeeded is how a process ends that has done its work.
const Succeeded = "exit code 0"

// ExitCode is the code that how, the way in which a child ended, is about; -1 when it
// is about a signal or another end.
func ExitCode(how string) int {
	code, err := strconv.Atoi(strings.TrimPrefix(how, "exit code "))
	if err != nil {
		return -1
	}
	return code
}

// RunOnce runs a child to its end under the same care as one of Start, but does not
// start it again. It says how the child ended, Succeeded or not, and what it printed
// last. When ctx ends the child is asked to stop, and killed after its StopTimeout.
// Its Ready is not asked.
func (s *Supervisor) RunOnce(ctx context.Context, spec Spec) (how string, tail []string, err error) {
	spec.Ready = nil
	spec = spec.withDefaults()
	log, err := openLog(filepath.Join(s.logDir, spec.Name+".log"), logBytes)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = log.Close() }()
	c := &Child{
		s: s, spec: spec, log: log,
		stop: make(chan struct{}), done: make(chan struct{}),
		status: Status{Name: spec.Name, State: Starting, Since: time.Now()},
	}
	s.mu.Lock()
	s.children = append(s.children, c)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.children = slices.DeleteFunc(s.children, func(other *Child) bool { return other == c })
		s.mu.Unlock()
	}()
	stopped := context.AfterFunc(ctx, func() { c.Stop(context.WithoutCancel(ctx)) })
	defer stopped()
	how = c.runOnce()
	close(c.done)
	return how, c.Tail(), nil
}

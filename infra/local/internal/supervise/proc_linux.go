package supervise

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func childAttr(s Spec) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: s.KillSignal, Credential: s.Credential}
}

type identity struct{ start, exe string }

func identify(pid int) (identity, error) {
	f, err := statFields(pid)
	if err != nil {
		return identity{}, err
	}
	if f[0] == "Z" || f[0] == "X" {
		return identity{}, os.ErrProcessDone
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return identity{}, err
	}
	// A program that was built again while it ran reads "path (deleted)".
	return identity{start: f[19], exe: strings.TrimSuffix(exe, " (deleted)")}, nil
}

// statFields are the fields of /proc/pid/stat from the third (state) on: the
// second, the program's name, may hold blanks and parentheses.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return nil, fmt.Errorf("reading /proc/%d/stat: no program name", pid)
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 22 {
		return nil, fmt.Errorf("reading /proc/%d/stat: %d fields", pid, len(f))
	}
	return f, nil
}

// Usage returns the resident memory in bytes and the CPU time that a process and its
// children have used, those that have ended included. Memory that they share counts
// once, as far as the system tells it apart.
func Usage(pid int) (rss int64, cpu time.Duration, err error) {
	if rss, cpu, err = usage(pid); err != nil {
		return 0, 0, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return rss, cpu, nil //nolint:nilerr // some kernels do not list them
	}
	for field := range strings.FieldsSeq(string(children)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		_, used, err := usage(child)
		if err != nil {
			continue // it has ended; its parent's times have it now, or soon
		}
		cpu += used
		rss += own(child)
	}
	return rss, cpu, nil
}

// usage is about one process; its CPU time includes that of children that have ended.
func usage(pid int) (rss int64, cpu time.Duration, err error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, 0, err
	}
	var ticks int64
	for _, text := range f[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("reading /proc/%d/stat: not a number: %s", pid, text)
		}
		ticks += n
	}
	pages, err := strconv.ParseInt(f[21], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("reading /proc/%d/stat: not a number: %s", pid, f[21])
	}
	// The kernel reports to user space in hundredths of a second on every
	// architecture that Go supports.
	return pages * int64(os.Getpagesize()), time.Duration(ticks) * (time.Second / 100), nil
}

// own is the memory that a process shares with no other.
func own(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := bytes.Cut(b, []byte("\nRssAnon:"))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(line)), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

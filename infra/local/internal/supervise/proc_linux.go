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

func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
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

// Usage returns the resident memory in bytes and the CPU time a process has used.
func Usage(pid int) (rss int64, cpu time.Duration, err error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, 0, err
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	pages, err3 := strconv.ParseInt(f[21], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return 0, 0, fmt.Errorf("reading /proc/%d/stat: not numbers", pid)
	}
	// The kernel reports to user space in hundredths of a second on every
	// architecture that Go supports.
	return pages * int64(os.Getpagesize()), time.Duration(user+system) * (time.Second / 100), nil
}

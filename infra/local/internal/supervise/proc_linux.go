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

// UsageOf is about a process and its children. Its CPU time includes that of children
// that have ended.
func UsageOf(pid int) (Usage, error) {
	u, err := usage(pid)
	if err != nil {
		return Usage{}, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return u, nil //nolint:nilerr // some kernels do not list them
	}
	for field := range strings.FieldsSeq(string(children)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		c, err := usage(child)
		if err != nil {
			continue // it has ended; its parent's times have it now, or soon
		}
		u.CPU += c.CPU
		u.Own += c.Own
	}
	return u, nil
}

// usage is about one process, and in CPU about its children that have ended.
func usage(pid int) (Usage, error) {
	f, err := statFields(pid)
	if err != nil {
		return Usage{}, err
	}
	var ticks int64
	for _, text := range f[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("reading /proc/%d/stat: not a number: %s", pid, text)
		}
		ticks += n
	}
	// The kernel reports to user space in hundredths of a second on every
	// architecture that Go supports.
	u := Usage{CPU: time.Duration(ticks) * (time.Second / 100)}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, err
	}
	u.Own, u.Shared = memory(status, "RssAnon"), memory(status, "RssFile")+memory(status, "RssShmem")
	if u.Program, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
		return Usage{}, err
	}
	return u, nil
}

// memory is a line of /proc/pid/status in bytes.
func memory(status []byte, name string) int64 {
	_, rest, _ := bytes.Cut(status, []byte("\n"+name+":"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(line)), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

//go:build unix && !linux

package supervise

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func childAttr(s Spec) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: s.Credential}
}

type identity struct{ start, exe string }

func identify(pid int) (identity, error) {
	out, err := exec.Command("ps", "-o", "lstart=,comm=", "-p", strconv.Itoa(pid)).Output() //nolint:noctx // it answers at once
	if err != nil {
		return identity{}, err
	}
	// lstart is five words: Sun Nov 22 03:04:05 2026.
	f := strings.Fields(string(out))
	if len(f) < 6 {
		return identity{}, fmt.Errorf("ps knows no process %d", pid)
	}
	return identity{start: strings.Join(f[:5], " "), exe: strings.Join(f[5:], " ")}, nil
}

// UsageOf is about a process. All of its memory counts as its own here.
func UsageOf(pid int) (Usage, error) {
	out, err := exec.Command("ps", "-o", "rss=,time=", "-p", strconv.Itoa(pid)).Output() //nolint:noctx // it answers at once
	if err != nil {
		return Usage{}, err
	}
	f := strings.Fields(string(out))
	if len(f) != 2 {
		return Usage{}, fmt.Errorf("ps knows no process %d", pid)
	}
	kib, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return Usage{}, fmt.Errorf("reading ps: %w", err)
	}
	var seconds float64
	for _, part := range strings.Split(f[1], ":") {
		n, err := strconv.ParseFloat(part, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("reading ps: %w", err)
		}
		seconds = seconds*60 + n
	}
	return Usage{Own: kib << 10, CPU: time.Duration(seconds * float64(time.Second))}, nil
}

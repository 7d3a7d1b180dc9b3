package pgtest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// OwnCPU gives the CPU seconds that the test binary has used, for benchmarks: on a
// busy machine they say more than the time.
func OwnCPU(t testing.TB) float64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// ServerCPU gives the CPU seconds that the processes of the server have used that are
// alive: those of connections that have ended are not in it. Elsewhere than on Linux
// it is 0, which a note in the test's log says.
func ServerCPU(t testing.TB) float64 {
	t.Helper()
	total := 0.0
	for _, p := range ServerProcesses(t) {
		total += p.CPU
	}
	return total
}

// Process is one of the server.
type Process struct {
	// Title says what it is for, as PostgreSQL writes it.
	Title string
	// CPU are the seconds that it has used.
	CPU float64
}

// ServerProcesses lists those of the server that are alive, the first excepted, which
// starts the others.
func ServerProcesses(t testing.TB) []Process {
	t.Helper()
	if server == nil {
		t.Fatal("no server was started")
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Logf("the CPU time of PostgreSQL is not known: %v", err)
	}
	parent := fmt.Sprint(server.cmd.Process.Pid)
	var list []Process
	for _, e := range entries {
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // no process, or it has ended
		}
		// After the name, which may have anything in it: state, parent, ..., the 14th and
		// 15th field of all are ticks, of which Linux counts 100 a second.
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 || f[1] != parent {
			continue
		}
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		title, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		list = append(list, Process{strings.TrimRight(strings.ReplaceAll(string(title), "\x00", " "), " "), float64(user+system) / 100})
	}
	return list
}

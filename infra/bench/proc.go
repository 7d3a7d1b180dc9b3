package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what processes have consumed.
type usage struct {
	cpu  time.Duration // user and system, of dead children that were waited for, too
	rss  int64         // bytes resident now
	peak int64         // the most that was resident, in a single process only
	// shared is what of rss other processes of the program may share, such as its code.
	shared  int64
	program string
}

// clockTick is what /proc counts CPU time in: Linux shows user space 100 ticks a
// second on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// processUsage reads /proc for one process.
func processUsage(pid int) (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may hold anything; the fields after it do not.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 22 {
		return u, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return u, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		u.cpu += time.Duration(ticks) * clockTick
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		name, text, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "VmHWM" && name != "RssFile" && name != "RssShmem" {
			continue
		}
		kb, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
		if err != nil {
			return u, fmt.Errorf("/proc/%d/status: %w", pid, err)
		}
		switch name {
		case "VmRSS":
			u.rss = kb << 10
		case "VmHWM":
			u.peak = kb << 10
		default:
			u.shared += kb << 10
		}
	}
	u.program, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // or it shares with nobody
	return u, nil
}

// treeUsage reads a process and all that descend from it, by their names.
func treeUsage(root int) (map[string]usage, error) {
	children := map[int][]int{}
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, errPid := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, errParent := strconv.Atoi(fields[1])
		if errPid == nil && errParent == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	tree := map[string]usage{}
	for pending := []int{root}; len(pending) > 0; {
		pid := pending[0]
		pending = append(pending[1:], children[pid]...)
		u, err := processUsage(pid)
		if err != nil {
			if pid == root {
				return nil, err
			}
			continue
		}
		name := processName(pid)
		sum := tree[name]
		once := min(sum.shared, u.shared) // of a program that forks
		tree[name] = usage{
			cpu: sum.cpu + u.cpu, rss: sum.rss + u.rss - once, peak: max(sum.peak, u.peak),
			shared: max(sum.shared, u.shared), program: u.program,
		}
	}
	return tree, nil
}

// processName is the program's name, with the subcommand if there is one.
func processName(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return strconv.Itoa(pid)
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	// PostgreSQL's processes write what they do there.
	name, _, _ := strings.Cut(filepath.Base(args[0]), ":")
	name = strings.TrimSpace(name)
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		name += " " + args[1]
	}
	return name
}

// total adds up a tree. What processes of one program share counts once.
func total(tree map[string]usage) (sum usage) {
	shared := map[string]int64{}
	for _, u := range tree {
		sum.cpu += u.cpu
		sum.rss += u.rss - u.shared
		shared[u.program] = max(shared[u.program], u.shared)
	}
	for _, bytes := range shared {
		sum.rss += bytes
	}
	return sum
}

// machineCPU is the CPU time of everything on the machine since it was started.
func machineCPU() time.Duration {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal
	var busy time.Duration
	for i, field := range fields {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0
		}
		busy += time.Duration(ticks) * clockTick
	}
	return busy
}

// freePorts finds n ports in a row that nobody listens on.
func freePorts(ctx context.Context, n int) (int, error) {
	var listener net.ListenConfig
search:
	for base := 20_000; base < 60_000; base += n {
		var held []net.Listener
		for i := range n {
			l, err := listener.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", base+i))
			if err != nil {
				closeAll(held)
				continue search
			}
			held = append(held, l)
		}
		closeAll(held)
		return base, nil
	}
	return 0, errors.New("no free ports in a row")
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close() // the port is free either way
	}
}

const megabyte = 1 << 20

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func perMillion(cpu time.Duration, events uint64) float64 {
	return cpu.Seconds() / float64(events) * 1e6
}

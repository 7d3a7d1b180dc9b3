package supervise

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// note identifies a process that a supervisor started. The process id alone does
// not: ids are used again.
type note struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // the system's text for the start of the process
	Exe   string `json:"exe"`
	// Signal ends the process at once.
	Signal syscall.Signal `json:"signal"`
}

func (s *Supervisor) remember(name string, pid int, kill syscall.Signal) {
	id, err := identify(pid)
	if err != nil {
		return // it is gone already
	}
	b, err := json.Marshal(note{PID: pid, Start: id.start, Exe: id.exe, Signal: kill})
	if err != nil {
		return
	}
	// Without the note only the takeover by a later supervisor is lost.
	_ = os.WriteFile(filepath.Join(s.runDir, name+".json"), b, 0o644)
}

func (s *Supervisor) forget(name string) {
	_ = os.Remove(filepath.Join(s.runDir, name+".json"))
}

// Reap ends what an earlier supervisor with the same runDir left running, and
// returns the names of the children it ended. The caller must know that the
// earlier supervisor is gone. A process is only killed when its start time and
// its program are those that were noted.
//
// Unclean tells that the earlier supervisor was killed. Its children may then be
// dying just now, and their ports taken for a moment longer.
func Reap(runDir string) (ended []string, unclean bool, err error) {
	files, err := filepath.Glob(filepath.Join(runDir, "*.json"))
	if err != nil {
		return nil, false, err
	}
	unclean = len(files) > 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return ended, unclean, fmt.Errorf("reading the note of a running process: %w", err)
		}
		var n note
		if json.Unmarshal(b, &n) == nil && n.PID > 1 {
			if killed, err := n.kill(); err != nil {
				return ended, unclean, err
			} else if killed {
				ended = append(ended, strings.TrimSuffix(filepath.Base(file), ".json"))
			}
		}
		_ = os.Remove(file)
	}
	return ended, unclean, nil
}

func (n note) alive() bool {
	id, err := identify(n.PID)
	return err == nil && id.start == n.Start && id.exe == n.Exe
}

func (n note) kill() (bool, error) {
	if !n.alive() {
		return false, nil
	}
	for _, signal := range []syscall.Signal{n.Signal, syscall.SIGKILL} {
		if signal == 0 {
			continue // a note without one
		}
		_ = syscall.Kill(-n.PID, signal)
		_ = syscall.Kill(n.PID, signal)
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if !n.alive() {
				return true, nil
			}
		}
	}
	return false, fmt.Errorf("process %d (%s), left by an earlier run, cannot be ended", n.PID, n.Exe)
}

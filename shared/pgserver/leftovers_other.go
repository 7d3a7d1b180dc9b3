//go:build unix && !linux

package pgserver

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// leftovers is the server that the lock file names. Children of one that was killed
// cannot be told from others here; they end by themselves, and until then the server
// refuses to start.
func (s *Server) leftovers() []int {
	pid := s.lockedBy()
	if pid == 0 {
		return nil
	}
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output() //nolint:noctx // it answers at once
	if err != nil || filepath.Base(strings.TrimSpace(string(out))) != "postgres" {
		return nil
	}
	return []int{pid}
}

// removeStaleLock leaves the lock file: the server itself knows best here.
func (s *Server) removeStaleLock() error { return nil }

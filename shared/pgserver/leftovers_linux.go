package pgserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// leftovers are the processes that serve the data folder: the server and each of its
// children work in it.
func (s *Server) leftovers() []int {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	var pids []int
	for _, link := range links {
		// Those of other users cannot be read; they are not ours.
		if dir, err := os.Readlink(link); err != nil || dir != s.data {
			continue
		}
		process := filepath.Dir(link)
		if exe, err := os.Readlink(filepath.Join(process, "exe")); err != nil || strings.TrimSuffix(filepath.Base(exe), " (deleted)") != "postgres" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(process)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// removeStaleLock removes the lock file of a server that is gone. A server would
// otherwise refuse to start where another process has got the same id since.
func (s *Server) removeStaleLock() error {
	err := os.Remove(filepath.Join(s.data, "postmaster.pid"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the lock of a server that is gone: %w", err)
	}
	return nil
}

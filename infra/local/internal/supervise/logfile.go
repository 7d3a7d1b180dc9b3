package supervise

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
)

// logFile is a log that cannot grow without bound: at limit bytes it is moved to
// path.1, over the one before, and begun again. It remembers the last lines.
type logFile struct {
	path  string
	limit int64

	mu      sync.Mutex
	f       *os.File
	size    int64
	lines   []string // oldest first
	partial []byte   // begun and not yet ended line
}

// OpenLog opens a bounded log for the supervising process itself.
func OpenLog(path string) (io.WriteCloser, error) { return openLog(path, logBytes) }

func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, limit: limit}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("opening log: %w", err)
	}
	l.f, l.size = f, fi.Size()
	return nil
}

// Write never fails: a full disk must not take the child down through its own
// output. What could not be written is still in the remembered lines.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepLines(p)
	if l.f != nil && l.size+int64(len(p)) > l.limit && l.size > 0 {
		_ = l.f.Close()
		l.f = nil
		_ = os.Rename(l.path, l.path+".1")
	}
	if l.f == nil && l.open() != nil {
		return len(p), nil
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	return len(p), nil
}

func (l *logFile) keepLines(p []byte) {
	const longest = 500
	l.partial = append(l.partial, p...)
	for {
		i := bytes.IndexByte(l.partial, '\n')
		if i < 0 {
			break
		}
		if line := strings.TrimRight(string(l.partial[:min(i, longest)]), "\r "); line != "" {
			l.lines = append(l.lines, line)
		}
		l.partial = l.partial[i+1:]
	}
	if len(l.partial) > longest {
		l.partial = l.partial[:longest]
	}
	l.partial = bytes.Clone(l.partial)
	if n := len(l.lines) - tailLines; n > 0 {
		l.lines = append([]string(nil), l.lines[n:]...)
	}
}

func (l *logFile) tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := append([]string(nil), l.lines...)
	if s := strings.TrimSpace(string(l.partial)); s != "" {
		lines = append(lines, s)
	}
	// A child that dies again and again says the same each time.
	return slices.Compact(lines)
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

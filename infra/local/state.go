package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/millrace-dev/millrace/shared/telemetry"
)

// layout is the version of what lies where in the state folder. It changes when an
// older folder can no longer be gone on from.
const layout = 1

// stateDir is the folder that everything a run leaves behind is in:
//
//	state.json   layout and the version that made it
//	lock         held while a runner runs; its process id
//	endpoint     address of that runner
//	env.json     how other programs reach its parts
//	secrets.json passwords and tokens, made once
//	data/        Kafka's log, S3's objects, PostgreSQL, Redis, the producer's progress
//	jobs/        the events and results of JobSinks' jobs
//	log/         one file a process
//	run/         notes of running processes
type stateDir struct {
	path string
	lock *os.File
}

type stateFile struct {
	Layout  int    `json:"layout"`
	Version string `json:"version"`
}

// openState makes or opens the folder and locks it until Close. Its errors are
// for the user to read.
func openState(path string) (*stateDir, error) {
	unusable := func(err error) error {
		return fmt.Errorf("the state folder %s cannot be written: %w. Make it writable for this user, or choose another with --state or MILLRACE_STATE", path, cause(err))
	}
	for _, dir := range []string{path, filepath.Join(path, "data"), filepath.Join(path, "log"), filepath.Join(path, "run")} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, unusable(err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, unusable(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = lock.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, unusable(err)
		}
		pid, _ := os.ReadFile(lock.Name())
		return nil, fmt.Errorf("another runner (process %s) uses the state folder %s. Stop it, or give this one a folder of its own with --state and ports of its own with --port-base",
			strings.TrimSpace(string(pid)), path)
	}
	s := &stateDir{path: path, lock: lock}
	if err := s.claim(); err != nil {
		_ = lock.Close()
		var version *layoutError
		if errors.As(err, &version) {
			return nil, err
		}
		return nil, unusable(err)
	}
	return s, nil
}

type layoutError struct {
	path  string
	found stateFile
}

func (e *layoutError) Error() string {
	return fmt.Sprintf("the state folder %s was made by version %q with layout %d; this version reads layout %d. Run that version, choose another folder with --state, or remove the data with rm -r %s",
		e.path, e.found.Version, e.found.Layout, layout, e.path)
}

func (s *stateDir) claim() error {
	if err := s.lock.Truncate(0); err != nil {
		return err
	}
	if _, err := s.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return err
	}
	file := filepath.Join(s.path, "state.json")
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		var found stateFile
		if err := json.Unmarshal(b, &found); err != nil || found.Layout != layout {
			return &layoutError{s.path, found}
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	b, err = json.Marshal(stateFile{Layout: layout, Version: telemetry.BuildVersion()})
	if err != nil {
		return err
	}
	// Complete or absent, whenever the process dies.
	if err := os.WriteFile(file+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

func (s *stateDir) join(parts ...string) string {
	return filepath.Join(append([]string{s.path}, parts...)...)
}

// secrets are what parts of the platform show each other. They are made once and
// kept, since what was configured with them is kept.
type secrets struct {
	IngestToken      string `json:"ingestToken"`
	PostgresPassword string `json:"postgresPassword"`
}

// secrets reads the folder's secrets, and makes those that there are none of.
func (s *stateDir) secrets() (secrets, error) {
	var all secrets
	file := s.join("secrets.json")
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, fmt.Errorf("reading %s: %w", file, cause(err))
	}
	made := false
	for _, secret := range []*string{&all.IngestToken, &all.PostgresPassword} {
		if *secret == "" {
			*secret, made = rand.Text(), true
		}
	}
	if !made {
		return all, nil
	}
	if b, err = json.MarshalIndent(all, "", "  "); err != nil {
		return all, fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.WriteFile(file+".tmp", append(b, '\n'), 0o600); err != nil {
		return all, fmt.Errorf("writing %s: %w", file, cause(err))
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		return all, fmt.Errorf("writing %s: %w", file, err)
	}
	return all, nil
}

// Close gives the folder free for another runner.
func (s *stateDir) Close() error {
	_ = os.Remove(s.join("endpoint"))
	return s.lock.Close()
}

// cause strips the path from an error whose message names it already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// diskFree is the space that this user may still fill on the folder's disk.
func diskFree(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // the types differ between systems
}

// Package pgserver runs the PostgreSQL server programs that a machine has: it finds
// them, makes a data folder, says how to start a server on it, and ends what an
// earlier one left behind.
//
// It starts no server itself: who keeps it running differs between a test and the
// local runner. PostgreSQL refuses to run as root; for root everything is done as an
// unprivileged user, see Server.Credential.
package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// oldest is the first major version with SQL functions in the standard's syntax.
const oldest = 14

// ErrUnavailable begins the errors of a machine that cannot run a server: it has no
// programs, or nobody who could run them on that folder.
var ErrUnavailable = errors.New("PostgreSQL cannot run here")

// Server is a data folder, which may not exist yet, and the programs for it.
type Server struct {
	bin     string
	major   int
	data    string
	account *account
}

// Open finds the programs for a data folder: those in POSTGRES_BIN if that is set,
// else the newest, and for a folder that has data those of the version that made it.
// Its errors are for the user to read; errors.Is tells ErrUnavailable.
func Open(data string) (*Server, error) {
	data, err := filepath.Abs(data)
	if err != nil {
		return nil, fmt.Errorf("finding the data folder: %w", err)
	}
	// The system tells the real path of a process's folder, so that is what leftovers
	// are looked for by.
	if parent, err := filepath.EvalSymlinks(filepath.Dir(data)); err == nil {
		data = filepath.Join(parent, filepath.Base(data))
	}
	s := &Server{data: data}
	made, err := madeBy(data)
	if err != nil {
		return nil, err
	}
	found, err := installations()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(found, func(in installation) bool { return made == 0 && in.major >= oldest || in.major == made })
	switch {
	case i >= 0:
		s.bin, s.major = found[i].bin, found[i].major
	case made != 0:
		return nil, fmt.Errorf("%s was made by PostgreSQL %d, and this machine has %s: name the folder of that version's programs with POSTGRES_BIN, or remove the data", data, made, versions(found))
	default:
		return nil, fmt.Errorf("PostgreSQL %d or newer is needed, and this machine has %s: install a newer one or name the folder of its programs with POSTGRES_BIN", oldest, versions(found))
	}
	if os.Geteuid() == 0 {
		if s.account, err = unprivileged(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

type installation struct {
	bin   string
	major int
}

func versions(all []installation) string {
	names := make([]string, len(all))
	for i, in := range all {
		names[i] = fmt.Sprintf("%d in %s", in.major, in.bin)
	}
	return strings.Join(names, ", ")
}

// installations are the folders that hold the server's programs, newest first.
func installations() ([]installation, error) {
	if bin := os.Getenv("POSTGRES_BIN"); bin != "" {
		major, err := version(bin)
		if err != nil {
			return nil, fmt.Errorf("POSTGRES_BIN=%s has no PostgreSQL server programs: %w", bin, err)
		}
		return []installation{{bin, major}}, nil
	}
	var folders []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin", "/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		folders = append(folders, found...)
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil { //nolint:noctx // it answers at once
		folders = append(folders, strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		// What is in PATH may be a link that does not find its libraries.
		if path, err = filepath.EvalSymlinks(path); err == nil {
			folders = append(folders, filepath.Dir(path))
		}
	}
	var all []installation
	for _, bin := range folders {
		if major, err := version(bin); err == nil && !slices.Contains(all, installation{bin, major}) {
			all = append(all, installation{bin, major})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no server programs (initdb, postgres) in /usr/lib/postgresql, by pg_config or in PATH. Install them (apt-get install postgresql, dnf install postgresql-server, brew install postgresql), or name their folder with POSTGRES_BIN", ErrUnavailable)
	}
	slices.SortStableFunc(all, func(a, b installation) int { return cmp.Compare(b.major, a.major) })
	return all, nil
}

// version asks the programs in a folder for their major version.
func version(bin string) (int, error) {
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return 0, err
	}
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output() //nolint:noctx // it answers at once
	if err != nil {
		return 0, err
	}
	// postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1), or 18beta1.
	if f := strings.Fields(string(out)); len(f) > 2 {
		digits := strings.IndexFunc(f[2], func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(f[2])
		}
		if major, err := strconv.Atoi(f[2][:digits]); err == nil {
			return major, nil
		}
	}
	return 0, fmt.Errorf("%s --version printed %q", filepath.Join(bin, "postgres"), out)
}

// madeBy is the major version that made a data folder, 0 when there is none.
func madeBy(data string) (int, error) {
	b, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the version of the data folder: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s has no version number: %q", filepath.Join(data, "PG_VERSION"), b)
	}
	return major, nil
}

// account is whom the programs run as.
type account struct {
	name     string
	uid, gid int
}

// unprivileged is the user that distributions make for PostgreSQL, or the one that
// owns nothing. Programs look their own user up, so it has to exist.
func unprivileged() (*account, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("reading the ids of user %s: %w", name, err)
		}
		return &account{name, uid, gid}, nil
	}
	return nil, fmt.Errorf("%w: it does not run as root, and there is no user postgres or nobody to run it as", ErrUnavailable)
}

// Credential is whom the server has to be started as; nil is this process's user.
func (s *Server) Credential() *syscall.Credential {
	if s.account == nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(s.account.uid), Gid: uint32(s.account.gid)}
}

// Give makes a file or folder the server's own.
func (s *Server) Give(path string) error {
	if s.account == nil {
		return nil
	}
	return os.Chown(path, s.account.uid, s.account.gid)
}

// Major is the version of the programs.
func (s *Server) Major() int { return s.major }

// Program is the path of one of PostgreSQL's programs of the same version, such as
// pg_dump.
func (s *Server) Program(name string) (string, error) {
	path := filepath.Join(s.bin, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("finding a program of PostgreSQL: %w", err)
	}
	return path, nil
}

// Setup is how a data folder is made.
type Setup struct {
	// User is the superuser's name.
	User string
	// Password is asked of everybody. Without one everybody is let in.
	Password string
	// Databases are made besides PostgreSQL's own.
	Databases []string
	// NoSync leaves it to the system when the files reach the disk.
	NoSync bool
}

// Init makes the data folder; one that has data is left as it is. The folder appears
// when it is complete, so a process that is killed leaves nothing to repair. For root,
// the server's user has to be able to enter all folders above it (ErrUnavailable).
func (s *Server) Init(ctx context.Context, setup Setup) error {
	if made, err := madeBy(s.data); err != nil || made != 0 {
		return err
	}
	if err := s.mayEnter(filepath.Dir(s.data)); err != nil {
		return err
	}
	making := s.data + ".new"
	if err := os.RemoveAll(making); err != nil {
		return fmt.Errorf("removing a half made data folder: %w", err)
	}
	if err := os.Mkdir(making, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	if err := s.Give(making); err != nil {
		return fmt.Errorf("giving the data folder to PostgreSQL: %w", err)
	}
	args := []string{"-D", making, "-U", setup.User, "-E", "UTF8", "--locale=C"}
	if setup.NoSync {
		args = append(args, "--no-sync")
	}
	if setup.Password == "" {
		args = append(args, "-A", "trust")
	} else {
		file, err := s.passwordFile(setup.Password)
		if err != nil {
			return err
		}
		defer func() { _ = os.Remove(file) }()
		args = append(args, "-A", "scram-sha-256", "--pwfile", file)
	}
	if err := s.runProgram(ctx, making, "", "initdb", args...); err != nil {
		return err
	}
	for _, name := range setup.Databases {
		// One statement a line; the server alone, without connections.
		err := s.runProgram(ctx, making, fmt.Sprintf("CREATE DATABASE %q\n", name), "postgres", "--single", "-D", making, "postgres")
		if err != nil {
			return fmt.Errorf("making the database %s: %w", name, err)
		}
	}
	if err := os.Rename(making, s.data); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	return nil
}

func (s *Server) passwordFile(password string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(s.data), "password")
	if err != nil {
		return "", fmt.Errorf("writing the password for initdb: %w", err)
	}
	_, err = f.WriteString(password + "\n")
	if err = errors.Join(err, f.Close(), s.Give(f.Name())); err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("writing the password for initdb: %w", err)
	}
	return f.Name(), nil
}

func (s *Server) runProgram(ctx context.Context, dir, input, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.Credential()}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mayEnter says which folder on the way to dir keeps the server's user out.
func (s *Server) mayEnter(dir string) error {
	if s.account == nil {
		return nil
	}
	for ; ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("looking at the folders above the data: %w", err)
		}
		need := fs.FileMode(0o001)
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			switch {
			case int(st.Uid) == s.account.uid:
				need = 0o100
			case int(st.Gid) == s.account.gid:
				need = 0o010
			}
		}
		if fi.Mode()&need == 0 {
			return fmt.Errorf("%w: it does not run as root, and the user %s, whom it runs as instead, may not enter %s. Put the data elsewhere, run as another user, or chmod o+x %s", ErrUnavailable, s.account.name, dir, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Signals to a server. After Kill the next start repairs the data; SIGKILL lets its
// children live on for a while.
const (
	Stop = syscall.SIGINT  // cleanly, without waiting for clients to leave
	Kill = syscall.SIGQUIT // at once, with its children
)

// Command is the program that serves the data folder, and its arguments. It runs in
// the foreground and logs to standard error.
func (s *Server) Command(settings map[string]string) (path string, args []string) {
	args = []string{"-D", s.data}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return filepath.Join(s.bin, "postgres"), args
}

// EndLeftovers ends what still runs on the data folder: a server whose parent is
// gone, cleanly, or the children of a server that was killed. It returns their number
// when all are gone. The caller must know that nobody else wants the folder served.
//
// Without it a new server refuses to start, with reason: two on one folder destroy
// it.
func (s *Server) EndLeftovers(ctx context.Context) (int, error) {
	found := s.leftovers()
	if len(found) == 0 {
		return 0, s.removeStaleLock()
	}
	for _, step := range []struct {
		server, child syscall.Signal
		patience      time.Duration
	}{
		// A server's children are its own to end; those of a dead one are ours.
		{Stop, 0, 10 * time.Second},
		{Kill, Kill, 10 * time.Second},
		{syscall.SIGKILL, syscall.SIGKILL, 10 * time.Second},
	} {
		left := s.leftovers()
		server := s.lockedBy()
		orphans := !slices.Contains(left, server)
		for _, pid := range left {
			switch {
			case pid == server:
				_ = syscall.Kill(pid, step.server)
			case orphans && step.child == 0:
				_ = syscall.Kill(pid, Kill)
			case step.child != 0:
				_ = syscall.Kill(pid, step.child)
			}
		}
		for deadline := time.Now().Add(step.patience); time.Now().Before(deadline); {
			if len(s.leftovers()) == 0 {
				return len(found), s.removeStaleLock()
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return 0, fmt.Errorf("ending what an earlier PostgreSQL left: %w", ctx.Err())
			}
		}
	}
	return 0, fmt.Errorf("processes %v of an earlier PostgreSQL on %s cannot be ended", s.leftovers(), s.data)
}

// lockedBy is the process id in the server's lock file, 0 without one.
func (s *Server) lockedBy() int {
	b, err := os.ReadFile(filepath.Join(s.data, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0
	}
	return pid
}

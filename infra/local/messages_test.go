package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// refused runs the runner, which is to end with exit code 1 by itself, and returns
// what it prints. No message may be a stack trace.
func refused(t *testing.T, p *platformProcess) string {
	t.Helper()
	out, err := p.command().CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the runner ended with %v, want exit code 1:\n%s", err, out)
	}
	if strings.Contains(string(out), "goroutine ") {
		t.Errorf("the user sees a stack trace:\n%s", out)
	}
	return string(out)
}

func requireAll(t *testing.T, out string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(out, part) {
			t.Errorf("the message lacks %q:\n%s", part, out)
		}
	}
	t.Logf("the message:\n%s", out)
}

// replaceArg gives a flag another value.
func (p *platformProcess) replaceArg(flag, value string) {
	i := slices.Index(p.args, flag)
	p.args[i+1] = value
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// checkoutWith is a checkout in which one manifest in triggers/ is changed.
func checkoutWith(t *testing.T, file, old, changed string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Symlink(filepath.Join(checkout(), "functions"), filepath.Join(root, "functions")); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(checkout(), "triggers", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if filepath.Base(f) == file {
			if !strings.Contains(text, old) {
				t.Fatalf("%s does not contain %q", file, old)
			}
			text = strings.Replace(text, old, changed, 1)
		}
		write(t, filepath.Join(root, "triggers", filepath.Base(f)), text)
	}
	return root
}

func TestWrongContractIsNamedBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "orders.yaml"), "name: orders\ntopik: orders\n")
	p := newPlatform(t, "CONTRACTS_DIR="+dir)
	requireAll(t, refused(t, p), "CONTRACTS_DIR", "orders.yaml", "topik", "2:")
}

func TestWrongManifestIsNamedWithItsLine(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.replaceArg("--root", checkoutWith(t, "lake.yaml", "schedule:", "schedul:"))
	requireAll(t, refused(t, p), "triggers/lake.yaml", "schedul")

	p.replaceArg("--root", checkoutWith(t, "lake.yaml", "name: lake\n  delivery", "name: lakes\n  delivery"))
	requireAll(t, refused(t, p), "triggers/lake.yaml", "lakes")
}

func TestMissingTopicsAreNamed(t *testing.T) {
	t.Parallel()
	port := freePorts(t, 1)
	kafka := exec.Command(filepath.Join(bin(t), "millrace"), "kafka", "--port", strconv.Itoa(port), "--data", t.TempDir())
	if err := kafka.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kafka.Process.Kill(); _ = kafka.Wait() })
	p := newPlatform(t, "KAFKA_BROKERS="+local(port), "CREATE_TOPICS=0")
	eventually(t, "Kafka answers", func() bool {
		client := p.kafka()
		defer client.Close()
		return client.Ping(running(t)) == nil
	}, func() string { return "" })
	requireAll(t, refused(t, p), "topics are missing at "+local(port), rawTopic+" (12 partitions)", "datacenter-metrics (6 partitions)", "CREATE_TOPICS")
}

func TestUnreachableStoresAreNamed(t *testing.T) {
	t.Parallel()
	nobody := local(freePorts(t, 1))
	p := newPlatform(t, "KAFKA_BROKERS="+nobody)
	requireAll(t, refused(t, p), nobody, "KAFKA_BROKERS", "unset it")

	p = newPlatform(t, "S3_ENDPOINT=http://"+nobody, "S3_ACCESS_KEY=a", "S3_SECRET_KEY=b")
	requireAll(t, refused(t, p), nobody, "S3_ENDPOINT", "unset S3_ENDPOINT")

	p = newPlatform(t, "DATABASE_URL=postgres://u:secret@"+nobody+"/shop")
	out := refused(t, p)
	requireAll(t, out, nobody, "DATABASE_URL", "unset it")
	if strings.Contains(out, "secret") {
		t.Error("the password is shown")
	}

	p = newPlatform(t, "REDIS_URL=redis://"+nobody+"/0")
	requireAll(t, refused(t, p), nobody, "REDIS_URL", "unset it")

	p = newPlatform(t, "S3_ENDPOINT=http://"+nobody)
	requireAll(t, refused(t, p), "S3_ACCESS_KEY", "S3_SECRET_KEY")
}

func TestTakenPortsAreNamed(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	l, err := net.Listen("tcp", local(p.base+1))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	requireAll(t, refused(t, p), fmt.Sprintf("port %d", p.base+1), "kafka", "--port kafka=", "MILLRACE_PORT_KAFKA", "--port-base", "KAFKA_BROKERS="+local(p.base+1))

	// Moved, it starts.
	p.args = append(p.args, "--port", "kafka="+strconv.Itoa(freePorts(t, 1)))
	p.start()
	p.stop()
}

func TestUnusableStateFoldersAreNamed(t *testing.T) {
	t.Parallel()
	t.Run("in use", func(t *testing.T) {
		first := newPlatform(t)
		first.start()
		second := newPlatform(t)
		second.replaceArg("--state", first.state)
		requireAll(t, refused(t, second), strconv.Itoa(first.cmd.Process.Pid), first.state, "--state")
	})
	t.Run("not writable", func(t *testing.T) {
		p := newPlatform(t)
		file := filepath.Join(t.TempDir(), "file")
		write(t, file, "")
		p.replaceArg("--state", filepath.Join(file, "state"))
		requireAll(t, refused(t, p), file, "cannot be written", "MILLRACE_STATE")
	})
	t.Run("read only", func(t *testing.T) {
		if os.Getuid() == 0 {
			t.Skip("root may write everywhere")
		}
		p := newPlatform(t)
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		p.replaceArg("--state", filepath.Join(dir, "state"))
		requireAll(t, refused(t, p), dir, "cannot be written", "permission denied")
	})
	t.Run("of another version", func(t *testing.T) {
		p := newPlatform(t)
		write(t, filepath.Join(p.state, "state.json"), `{"layout":99,"version":"v9"}`)
		requireAll(t, refused(t, p), p.state, "v9", "layout 99", "layout 1")
	})
}

func TestMissingAndBrokenProgramsAreNamed(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	command := p.command()
	p.replaceArg("--bin", t.TempDir())
	command.Args = append(command.Args[:1], p.args...)
	out, err := command.CombinedOutput()
	if err == nil {
		t.Fatal("it ran")
	}
	requireAll(t, string(out), "deadletter, detect, drift, etl-step", "validate", "make build", "--bin")

	// A function that ends at once is quoted.
	programs := t.TempDir()
	built, err := os.ReadDir(bin(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range built {
		if f.Name() == "validate" {
			continue
		}
		if err := os.Symlink(filepath.Join(bin(t), f.Name()), filepath.Join(programs, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(programs, "validate"), "#!/bin/sh\necho 'loading contracts: no luck' >&2\nexit 3\n")
	p.replaceArg("--bin", programs)
	command = p.command()
	command.Args = append(command.Args[:1], p.args...)
	out, err = command.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v", err)
	}
	requireAll(t, string(out), "validate", "exit code 3", "loading contracts: no luck", filepath.Join(p.state, "log", "validate.log"))
}

func TestWrongSettingsAreNamed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		args  []string
		env   string
		wants []string
	}{
		{"rate", []string{"--rate", "many"}, "", []string{"--rate", "RATE", "many"}},
		{"port by name", []string{"--port", "ingres=8080"}, "", []string{"ingres", "ingress, kafka, s3"}},
		{"port of a variable", nil, "MILLRACE_PORT_LAKE=x", []string{"MILLRACE_PORT_LAKE", "port number"}},
		{"same port twice", []string{"--port", "kafka=9999", "--port", "s3=9999"}, "", []string{"kafka", "s3", "9999"}},
		{"port base", []string{"--port-base", "80"}, "", []string{"--port-base", "MILLRACE_PORT_BASE"}},
		{"not a checkout", []string{"--root", os.TempDir()}, "", []string{"checkout", "--root"}},
		{"number", nil, "MILLRACE_KAFKA_BYTES=4G", []string{"MILLRACE_KAFKA_BYTES", "4G"}},
		{"database", nil, "DATABASE_URL=postgres://host:port/db", []string{"DATABASE_URL", "port"}},
		{"redis", nil, "REDIS_URL=localhost:6379", []string{"REDIS_URL", "redis://"}},
		{"folder of PostgreSQL", nil, "POSTGRES_BIN=/nowhere", []string{"POSTGRES_BIN=/nowhere"}},
		{"unknown flag", []string{"--nope"}, "", []string{"-nope", "up -h"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlatform(t)
			p.args = append(p.args, tc.args...)
			if tc.env != "" {
				p.env = append(p.env, tc.env)
			}
			requireAll(t, refused(t, p), tc.wants...)
		})
	}
}

func TestWithoutPostgreSQLTheRestGoesOn(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("for root a folder that PostgreSQL's user may not enter does as well as a machine without its programs")
	}
	p := newPlatform(t)
	if err := os.Chmod(filepath.Dir(p.state), 0o700); err != nil {
		t.Fatal(err)
	}
	p.start()
	requireAll(t, p.out.String(), "etl-step, ", "not started", "may not enter "+filepath.Dir(p.state), "DATABASE_URL")
	p.startLoad("-rate", "0", "-count", "500").wait()
	eventually(t, "features are online", func() bool {
		s, err := p.askStatus()
		return err == nil && s.Validated.Total > 400 && s.Features.Entities > 0
	}, p.out.String)
	s, err := p.askStatus()
	if err != nil {
		t.Fatal(err)
	}
	if s.DeadLetters != 0 {
		t.Errorf("%d dead letters", s.DeadLetters)
	}
	if lines := strings.Join(render(s, 160, 24), "\n"); !strings.Contains(ansi.ReplaceAllString(lines, ""), " gold alert, drift, etl-step, store, train-trigger not started. PostgreSQL cannot run here") {
		t.Errorf("the screen does not say it:\n%s", lines)
	}
	p.stop()
}

func TestEnvReachesTheParts(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	env := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin(t), "millrace"), append([]string{"env", "--state", p.state}, args...)...)
		cmd.Env = cleanEnv()
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	requireAll(t, env(), "export KAFKA_BROKERS='"+local(p.base+1)+"'\n", "export S3_ENDPOINT='http://"+local(p.base+2)+"'\n", "export INGEST_TOKEN='")
	if got, want := env("--name", "REDIS_URL"), "redis://"+local(p.base+4)+"/0\n"; got != want {
		t.Errorf("REDIS_URL: got %q, want %q", got, want)
	}
	p.needDatabase()
	if got, want := env("--name", "DATABASE_URL"), p.databaseURL(databaseName)+"\n"; got != want {
		t.Errorf("DATABASE_URL: got %q, want %q", got, want)
	}
	p.stop()
}

func TestStatusSaysThatNothingRuns(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(filepath.Join(bin(t), "millrace"), "status", "--state", t.TempDir())
	cmd.Env = cleanEnv()
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("it found something")
	}
	requireAll(t, string(out), "no platform runs", "make run")
}

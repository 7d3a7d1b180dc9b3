// Bench measures the platform on this machine and prints one report: the Go
// benchmarks of the hot paths, the validate function over HTTP, the local runner
// from the raw topic to the lake, the validator against the same rules in Python, and
// what telemetry costs. Numbers of one report come from one machine in one state and can be
// compared with each other; those of two reports often cannot.
//
// It is a tool to run by hand, with the machine to itself. It asserts nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong usage")

// bench is what the parts share.
type bench struct {
	root, bin string
	seconds   float64 // length of the measured windows, see -scale
	log       func(format string, args ...any)
	tmp       string

	http      httpFlags
	e2e       e2eFlags
	reference referenceFlags
	telemetry telemetryFlags
}

type part struct {
	name, about string
	run         func(*bench, context.Context) ([]section, error)
}

var parts = []part{
	{"go", "Go benchmarks of the hot paths", (*bench).goBenchmarks},
	{"http", "the validate function over HTTP, one event and 100 a request", (*bench).overHTTP},
	{"e2e", "the local runner, from the raw topic to verdict topics, lake and features", (*bench).endToEnd},
	{"datacenter", "the local runner, from raw readings to their rows and to rows of anomalies", (*bench).datacenter},
	{"reference", "the validator in process against the same rules in Python", (*bench).againstReference},
	{"telemetry", "what metrics, traces and logs cost, with and without a Collector", (*bench).telemetryCost},
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	b := &bench{log: func(format string, args ...any) { fmt.Fprintf(stderr, "bench: "+format+"\n", args...) }}
	var jsonFile string
	fs.StringVar(&b.root, "root", ".", "the checkout")
	fs.StringVar(&b.bin, "bin", "", "folder of the built programs (default .local/bin in the checkout)")
	fs.Float64Var(&b.seconds, "seconds", 5, "length of a measured window over HTTP; the end-to-end ones are 2, 8 and 4 times as long")
	fs.StringVar(&jsonFile, "json", "", "write the report as JSON to this file, too")
	b.http.flags(fs)
	b.e2e.flags(fs)
	b.reference.flags(fs)
	b.telemetry.flags(fs)
	fs.Usage = func() {
		fmt.Fprint(stderr, "Measures the platform on this machine.\n\nUsage: bench [flags] [part ...]\n\nParts, all of them by default:\n")
		for _, p := range parts {
			fmt.Fprintf(stderr, "  %-10s %s\n", p.name, p.about)
		}
		fmt.Fprint(stderr, "\nThe programs must have been built (make build).\n\nFlags:\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return errUsage
	}
	chosen, err := choose(fs.Args())
	if err != nil {
		return err
	}
	if b.root, err = filepath.Abs(b.root); err != nil {
		return err
	}
	if b.bin == "" {
		b.bin = filepath.Join(b.root, ".local", "bin")
	}
	if b.tmp, err = os.MkdirTemp("", "millrace-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.tmp)) }()
	// Who runs PostgreSQL when this runs as root has to come through.
	if err := os.Chmod(b.tmp, 0o711); err != nil { //nolint:gosec // nobody else can list it
		return err
	}

	r := newReport(ctx, b.root)
	var errs []error
	for _, p := range chosen {
		b.log("%s: %s", p.name, p.about)
		sections, err := p.run(b, ctx)
		// What was measured before the error is worth reading.
		r.Sections = append(r.Sections, sections...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	r.finish()
	errs = append(errs, r.print(stdout))
	if jsonFile != "" {
		errs = append(errs, r.writeJSON(jsonFile))
	}
	return errors.Join(errs...)
}

func choose(names []string) ([]part, error) {
	if len(names) == 0 {
		return parts, nil
	}
	var chosen []part
	for _, name := range names {
		found := false
		for _, p := range parts {
			if p.name == name {
				chosen, found = append(chosen, p), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no part %q; parts are go, http, e2e, datacenter, reference, telemetry", name)
		}
	}
	return chosen, nil
}

// program is the path of a built program.
func (b *bench) program(name string) (string, error) {
	path := filepath.Join(b.bin, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("there is no program %s; run make build, or name the folder with -bin", path)
	}
	return path, nil
}

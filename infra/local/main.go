// Millrace is the local runner: it starts the whole platform on one machine,
// without containers and without root, and stops it again.
//
// Every function runs as a process of its own with the environment of its
// service.yaml, and so do the embedded Kafka and S3, PostgreSQL and Redis; the runner
// executes the manifests in triggers/ itself. It starts what dies, keeps its state
// in one folder and goes on from there the next time.
//
// It is for trying, developing and testing. It is not for production: one
// machine, one copy of the data.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/millrace-dev/millrace/shared/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// The second signal ends the process at once, and its children with it.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintln(os.Stderr, "millrace:", err)
		}
		os.Exit(1)
	}
}

// command is one subcommand.
type command struct {
	name, about string
	run         func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

var commands = []command{
	{"up", "run the platform until Ctrl-C (the default)", runUp},
	{"status", "print the status of the platform that runs here, once", runStatus},
	{"story", "tell what an event came from and what came of it", runStory},
	{"env", "print how other programs reach its parts, for a shell", runEnv},
	{"kafka", "run the embedded Kafka alone", runKafka},
	{"s3", "run the embedded S3 alone", runS3},
	{"redis", "run the embedded Redis alone", runRedis},
	{"cdc", "capture the changes of a PostgreSQL table", runCDC},
	{"version", "print the version", runVersion},
}

// errUsage stands for a mistake that was already explained to the user.
var errUsage = errors.New("wrong usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := "up"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		name, args = args[0], args[1:]
	} else if len(args) > 0 && isHelp(args[0]) {
		name = "help"
	}
	for _, c := range commands {
		if c.name == name {
			return c.run(ctx, args, stdout, stderr)
		}
	}
	if name == "help" {
		usage(stdout)
		return nil
	}
	fmt.Fprintf(stderr, "millrace: there is no command %q\n", name)
	usage(stderr)
	return errUsage
}

func isHelp(arg string) bool {
	return arg == "-h" || arg == "-help" || arg == "--help"
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Runs Millrace on this machine.\n\nUsage: millrace [command] [flags]\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.about)
	}
	fmt.Fprint(w, "\nmillrace <command> -h lists the flags of a command.\n")
}

// parse reads the flags of a command. Help is printed to stdout and reported as
// done; a mistake is explained and reported as errUsage.
func parse(fs *flag.FlagSet, args []string, about string, stdout, stderr io.Writer) (done bool, err error) {
	fs.SetOutput(stderr)
	fs.Usage = func() {}
	err = fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "%s\n\nFlags:\n", about)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return true, nil
	case err != nil:
		fmt.Fprintf(stderr, "millrace %s -h lists the flags\n", fs.Name())
		return true, errUsage
	case fs.NArg() > 0:
		return true, fmt.Errorf("%s takes flags only, got %q", fs.Name(), fs.Arg(0))
	}
	return false, nil
}

func runVersion(_ context.Context, _ []string, stdout, _ io.Writer) error {
	_, err := fmt.Fprintln(stdout, "millrace", telemetry.BuildVersion())
	return err
}

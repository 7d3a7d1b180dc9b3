// Loadgen produces test data for the pipelines: a simulated shop's clickstream, the
// metrics of a simulated datacenter, and replays of recorded clickstreams. It writes
// to Kafka, posts CloudEvents, or prints.
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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintln(os.Stderr, "loadgen:", err)
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
	{"shop", "simulate a shop's customers", runShop},
	{"datacenter", "simulate servers and services, with anomalies and drift", runDatacenter},
	{"replay", "send the events of a CSV file again", runReplay},
	{"lines", "send lines as records of any topic", runLines},
}

// errUsage stands for a mistake that was already explained to the user.
var errUsage = errors.New("wrong usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		for _, c := range commands {
			if c.name == args[0] {
				return c.run(ctx, args[1:], stdout, stderr)
			}
		}
		if name := args[0]; name != "help" && name != "-h" && name != "-help" && name != "--help" {
			fmt.Fprintf(stderr, "loadgen: there is no command %q\n", name)
			usage(stderr)
			return errUsage
		}
		usage(stdout)
		return nil
	}
	usage(stderr)
	return errUsage
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Produces test data for the pipelines.\n\nUsage: loadgen <command> [flags]\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-10s %s\n", c.name, c.about)
	}
	fmt.Fprint(w, "\nloadgen <command> -h lists the flags of a command.\n")
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
		fmt.Fprintf(stderr, "loadgen %s -h lists the flags\n", fs.Name())
		return true, errUsage
	case fs.NArg() > 0:
		return true, fmt.Errorf("%s takes flags only, got %q", fs.Name(), fs.Arg(0))
	}
	return false, nil
}

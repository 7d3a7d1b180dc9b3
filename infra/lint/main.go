// Command lint checks the project's manifests the way a cluster would, without
// one: strictly decoded, defaulted and validated by Knative's own Go types, and
// then for what no cluster checks, the event graph as a whole and the hardening
// of every container. It is a module of its own because Knative's types are heavy
// and must not reach the functions.
//
// KafkaSource and KafkaSink are checked by types of our own (kafka.go), since
// their module can not be had from the module proxy.
//
//	lint [-root DIR]            check; prints each problem, exits 1 if there are any
//	lint [-root DIR] -graph     print the event graph as markdown
//	lint [-root DIR] -write     bring the graph in triggers/README.md, the console's, and
//	                            the metrics in shared/telemetry/README.md up to date
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("lint", flag.ContinueOnError)
	root := flags.String("root", "../..", "the repository")
	graph := flags.Bool("graph", false, "print the event graph as markdown")
	write := flags.Bool("write", false, "write the event graph into triggers/README.md and for the console, and the metrics into shared/telemetry/README.md")
	if err := flags.Parse(args); err != nil {
		return err
	}
	repo, err := Load(ctx, *root)
	if err != nil {
		return err
	}
	switch {
	case *graph:
		_, err := io.WriteString(out, repo.Graph().Markdown())
		return err
	case *write:
		g := repo.Graph()
		return errors.Join(
			WriteReadme(filepath.Join(*root, "triggers", "README.md"), g),
			WriteJSON(filepath.Join(*root, filepath.FromSlash(consoleGraph)), g),
			WriteMetrics(*root),
		)
	}
	problems := repo.Check(ctx)
	for _, p := range problems {
		fmt.Fprintln(out, p)
	}
	fmt.Fprintf(out, "%d manifests, %d rendered by %d overlays, %d problems\n",
		len(repo.Manifests), repo.rendered(), len(repo.Overlays), len(problems))
	if len(problems) > 0 {
		return errors.New("the manifests have problems")
	}
	return nil
}

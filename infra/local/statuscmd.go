package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/term"
)

var ansi = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// runStatus is the command status: it asks a running runner and prints its answer.
func runStatus(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("status", flag.ContinueOnError)
	state := stateFlag(fs)
	asJSON := fs.Bool("json", false, "print the status as JSON")
	if done, err := parse(fs, args, "Prints the status of the platform that runs here, once.", stdout, stderr); done {
		return err
	}
	b, err := os.ReadFile(filepath.Join(*state, "endpoint"))
	if err != nil {
		return fmt.Errorf("no platform runs with the state folder %s. Start it with `make run`, or name its folder with --state", *state)
	}
	endpoint := strings.TrimSpace(string(b))
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/status", nil)
	if err != nil {
		return fmt.Errorf("asking for the status: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("no platform answers at %s; the one of %s was perhaps killed. Start it again with `make run`", endpoint, *state)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	if *asJSON {
		_, err := stdout.Write(body)
		return err
	}
	var s Status
	if err := json.Unmarshal(body, &s); err != nil || len(s.URLs) == 0 {
		return fmt.Errorf("what answers at %s is not the runner", endpoint)
	}
	width, colours := 100, false
	if f, ok := stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		colours = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			width = w
		}
	}
	// As high as everything needs.
	const few = 5
	height := 16 + len(s.Stores) + len(s.Topics) + len(s.Deliveries) + len(s.Processes) + min(len(s.Events), few)
	for _, l := range render(s, width, height) {
		if !colours {
			l = ansi.ReplaceAllString(l, "")
		}
		fmt.Fprintln(stdout, strings.TrimRight(l, " "))
	}
	return nil
}

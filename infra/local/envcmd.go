package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writeEnv notes the variables by which other programs reach the parts of this run.
// They have passwords, so nobody else may read them.
func (w *parts) writeEnv() error {
	all := map[string]string{
		"KAFKA_BROKERS": strings.Join(w.kafka.Brokers, ","),
		"S3_ENDPOINT":   w.s3.Endpoint, "S3_REGION": w.s3.Region, "S3_ACCESS_KEY": w.s3.AccessKey, "S3_SECRET_KEY": w.s3.SecretKey,
		"INGEST_TOKEN": w.ingestToken(),
	}
	if w.redis.url != "" {
		all["REDIS_URL"] = w.redis.url
	}
	if w.database.url != "" {
		all["DATABASE_URL"] = w.database.url
	}
	if w.learns() {
		all["MLFLOW_TRACKING_URI"], all["LEARNING_URL"] = w.registryURL(), "http://"+local(w.ports[learner])
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = os.WriteFile(w.state.join("env.json"), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing this run's variables: %w", err)
	}
	return nil
}

// runEnv is the command env.
func runEnv(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("env", flag.ContinueOnError)
	state := stateFlag(fs)
	name := fs.String("name", "", "print the value of this variable alone, as in psql \"$(millrace env --name DATABASE_URL)\"")
	const about = `Prints how other programs reach what the platform uses, for a shell: eval "$(millrace env)".`
	if done, err := parse(fs, args, about, stdout, stderr); done {
		return err
	}
	b, err := os.ReadFile(filepath.Join(*state, "env.json"))
	if err != nil {
		return fmt.Errorf("no platform has run with the state folder %s. Start it with `make run`, or name its folder with --state", *state)
	}
	var all map[string]string
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("reading the variables: %w", err)
	}
	if *name != "" {
		value, ok := all[*name]
		if !ok {
			return fmt.Errorf("there is no %s here; there are %s", *name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		_, err := fmt.Fprintln(stdout, value)
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(stdout, "export %s='%s'\n", key, strings.ReplaceAll(all[key], "'", `'\''`))
	}
	return nil
}

// stateFlag is the flag of commands that look at a runner's state folder.
func stateFlag(fs *flag.FlagSet) *string {
	return fs.String("state", or(os.Getenv("MILLRACE_STATE"), filepath.Join(or(os.Getenv("MILLRACE_ROOT"), "."), ".local")), "state folder of the runner (env MILLRACE_STATE)")
}

// Evaldetect measures how well anomalies are detected, against ground truth: in the
// simulated datacenter, of which all is known, and in series of the Numenta Anomaly
// Benchmark, if a folder of them is named (NAB_DIR).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/anomaly"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "evaldetect:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, w io.Writer) error {
	flags := flag.NewFlagSet("evaldetect", flag.ContinueOnError)
	flags.SetOutput(w)
	seeds := flags.String("seeds", "11,12,13", "seeds of the simulated datacenters, separated by commas: others than 1, by which the detector's thresholds were chosen")
	servers := flags.Int("servers", 30, "at most how many servers of a configuration are simulated")
	services := flags.Int("services", 12, "at most how many services")
	live := flags.Duration("live", 24*time.Hour, "at most how long is detected in each configuration")
	readings := flags.Int("readings", 10_000, "at most how many readings of each entity are judged")
	forest := flags.String("forest", "infra/training/starter/anomaly", "folder of the isolation forest's bundle; empty for none")
	only := flags.String("only", "", "names of configurations, separated by commas; all if empty")
	dir := flags.String("nab", os.Getenv("NAB_DIR"), "folder of series of the Numenta Anomaly Benchmark, with windows.json (env NAB_DIR)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	names := datacenter.Names()
	if *only != "" {
		names = strings.Split(*only, ",")
	}
	var numbers []uint64
	for text := range strings.SplitSeq(*seeds, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return fmt.Errorf("-seeds: %w", err)
		}
		numbers = append(numbers, n)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Seeds %s together. Thresholds were chosen by seed 1 alone.\n\n%s\n", *seeds, header)
	// A Thursday, so that the day after it and the weekend differ.
	start := time.Date(2026, 3, 12, 0, 0, 0, 0, time.UTC)
	var readingsTotal int
	var spent time.Duration
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		var all *outcome
		var each []string
		for _, seed := range numbers {
			o, err := evaluate(name, scope{seed: seed, servers: *servers, services: *services, live: *live, readings: *readings, start: start, forest: *forest})
			if err != nil {
				return err
			}
			each = append(each, number(o.total.f1(), 3))
			if all == nil {
				all = o
			} else {
				all.add(o)
			}
		}
		all.table(&b)
		if len(numbers) > 1 {
			fmt.Fprintf(&b, "%-12s F1 of each seed: %s\n", name, strings.Join(each, ", "))
		}
		_, _ = io.WriteString(w, b.String())
		b.Reset()
		readingsTotal, spent = readingsTotal+all.readings, spent+all.cpu
	}
	fmt.Fprintf(w, "\n%d readings judged, %.2f us each\n\n", readingsTotal, float64(spent.Microseconds())/float64(readingsTotal))
	if *dir == "" {
		fmt.Fprintln(w, "NAB: skipped, since no folder of its series is named (NAB_DIR)")
		return nil
	}
	return reportNAB(*dir, w)
}

const history = 14 * 24 * time.Hour

func metricPlan(contract, metric string) *anomaly.Plan {
	return &anomaly.Plan{
		Contract: contract, EntityType: contract, Metrics: []string{metric},
		Channels: []anomaly.Channel{{Type: "stl_zscore_" + metric, Metric: metric, Detector: anomaly.Expectation{}}},
		Limits:   anomaly.DefaultLimits(), Training: anomaly.DefaultTraining(),
	}
}

// train makes a model, nil while it is too early.
func train(c anomaly.Training, buckets []anomaly.Bucket, now time.Time) (*anomaly.Model, error) {
	m, err := c.Train(buckets, now)
	if _, early := errors.AsType[*anomaly.WarmUpError](err); early {
		return nil, nil
	}
	return m, err
}

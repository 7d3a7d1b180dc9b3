package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

type telemetryFlags struct {
	rounds int
	events uint64
}

func (f *telemetryFlags) flags(fs *flag.FlagSet) {
	fs.IntVar(&f.rounds, "telemetry-rounds", 30, "how often each kind of telemetry is measured beside the others, over HTTP; in the runner a tenth as often, 3 times at least")
	fs.Uint64Var(&f.events, "telemetry-events", 100_000, "events that go through the runner, a measurement; 0 leaves the runner out")
}

// variant is one way to be observed, as environment variables of the same programs.
type variant struct {
	name string
	env  []string
}

// telemetryCost measures what being observed costs: the same load on the same programs,
// one kind of telemetry after the other in every round, in CPU time of the processes.
// What else runs on the machine disturbs all of them alike, and the median of the
// rounds hardly at all; how far apart the two are that are not observed tells how much
// a difference is worth.
func (b *bench) telemetryCost(ctx context.Context) (sections []section, err error) {
	const (
		endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:%d"
		nobody   = 1 // a port that needs root, and that nobody uses any more
	)
	variants := []variant{
		{"off (OTEL_SDK_DISABLED)", []string{"OTEL_SDK_DISABLED=true"}},
		{"off, once more", []string{"OTEL_SDK_DISABLED=true"}},
		{"metrics for Prometheus", nil},
		{"metrics, logs and traces to a Collector that is not there", []string{fmt.Sprintf(endpoint, nobody)}},
	}
	notes := []string{
		"CPU time of the function, or of the runner and its processes; the loader and the Collector are not in it;",
		"more: than what was off in the same round, of the rounds the median, and between what it is with 95 % confidence",
	}
	if _, err := b.program("otel"); err == nil {
		c, err := b.startCollector(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.stop()) }()
		variants = slices.Insert(variants, 3, variant{"metrics, logs and traces to a Collector, at the default sampling", []string{fmt.Sprintf(endpoint, c.port)}})
	} else {
		notes = append(notes, "there is no Collector among the programs: make bench-telemetry builds one")
	}

	s, err := b.telemetryOverHTTP(ctx, variants, notes)
	sections = append(sections, s...)
	if err != nil || b.telemetry.events == 0 {
		return sections, err
	}
	one, err := b.telemetryInTheRunner(ctx, variants, notes)
	return append(sections, one), err
}

func (b *bench) telemetryOverHTTP(ctx context.Context, variants []variant, notes []string) ([]section, error) {
	values, err := b.shopMessages(ctx, 20_000)
	if err != nil {
		return nil, err
	}
	single, batches, ms := b.shopRequests(values)
	decided := make([][]byte, len(ms))
	for i := range ms {
		header := http.Header{}
		events.SetHTTP(header, &ms[i])
		header.Set("Ce-Traceparent", fmt.Sprintf("00-%032x-%016x-00", i+1, i+1))
		decided[i] = post("validate", header, ms[i].Data)
	}
	var functions []*function
	defer func() {
		for _, f := range functions {
			f.stop()
		}
	}()
	for _, v := range variants {
		f, err := b.startValidate(ctx, v.env...)
		if err != nil {
			return nil, err
		}
		functions = append(functions, f)
		if err := f.checkAnswers(ctx, ms, values); err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
	}
	// Short windows, so that what disturbs a round disturbs all of it.
	window := time.Duration(b.seconds / 20 * float64(time.Second))
	var sections []section
	for _, l := range []struct {
		name string
		loadConfig
	}{
		{fmt.Sprintf("single events whose traces begin here, %d connections", b.http.conns), loadConfig{requests: single, events: 1, conns: b.http.conns, depth: 1}},
		{fmt.Sprintf("single events of traces that are not recorded, %d connections", b.http.conns), loadConfig{requests: decided, events: 1, conns: b.http.conns, depth: 1}},
		{fmt.Sprintf("batches of %d whose traces begin here, %d connections", b.http.batch, b.http.batchConns), loadConfig{requests: batches, events: b.http.batch, conns: b.http.batchConns, depth: 1}},
	} {
		l.window = window
		costs, err := b.rounds(variants, b.telemetry.rounds+1, func(i int) (float64, error) {
			cfg := l.loadConfig
			cfg.address = functions[i].address
			before, err := threadsCPU(functions[i].cmd.Process.Pid)
			if err != nil {
				return 0, err
			}
			result := &loadResult{}
			// On a busy machine nothing may come in time.
			for try := 0; try < 20 && result.requests == 0; try++ {
				if result, err = load(ctx, cfg); err != nil {
					return 0, err
				}
			}
			if result.requests == 0 {
				return 0, errors.New("no request was answered")
			}
			after, err := threadsCPU(functions[i].cmd.Process.Pid)
			if err != nil {
				return 0, err
			}
			if result.bad() > 0 {
				return 0, fmt.Errorf("%d requests failed: %v", result.bad(), result.refused)
			}
			return perMillion(after-before, result.requests*uint64(cfg.events)), nil
		})
		if err != nil {
			return sections, fmt.Errorf("%s: %w", l.name, err)
		}
		// The first round warms the functions up.
		for i := range costs {
			costs[i] = costs[i][1:]
		}
		sections = append(sections, section{
			Title: "telemetry's cost, validate over HTTP, " + l.name,
			Rows:  compared(variants, costs), Notes: notes,
		})
	}
	return sections, nil
}

func (b *bench) telemetryInTheRunner(ctx context.Context, variants []variant, notes []string) (section, error) {
	const part = "raw topic to verdict topics"
	s := section{Title: fmt.Sprintf("telemetry's cost, the local runner, %s, %s events as fast as possible", part, thousands(int64(b.telemetry.events))), Notes: notes}
	run := 0
	costs, err := b.rounds(variants, max(3, b.telemetry.rounds/10), func(i int) (cost float64, err error) {
		run++
		p, err := b.startPlatform(ctx, e2ePart{title: part, functions: "validate,deadletter"}, variants[i].env...)
		if err != nil {
			return 0, err
		}
		defer p.end(&err)
		w, err := watch(p.brokers, filepath.Join(b.root, "triggers"), false)
		if err != nil {
			return 0, err
		}
		defer w.close()
		r, _, err := b.runPhase(ctx, p, w, &phase{name: variants[i].name, count: b.telemetry.events}, e2ePart{}, 1000+run)
		return r.get(colCPU), err
	})
	if err != nil {
		return s, err
	}
	s.Rows = compared(variants, costs)
	return s, nil
}

// threadsCPU is the CPU time of a process, to the nanosecond, as long as none of its
// threads ends, which those of Go's programs rarely do.
func threadsCPU(pid int) (sum time.Duration, err error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(paths) == 0 {
		return 0, fmt.Errorf("process %d has no threads that the kernel counts (%w)", pid, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		used, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(used, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// rounds measures each variant once a round, in an order that turns. The result has the
// costs by variant, then round.
func (b *bench) rounds(variants []variant, n int, measure func(variant int) (float64, error)) ([][]float64, error) {
	costs := make([][]float64, len(variants))
	for round := range n {
		b.log("telemetry: round %d of %d", round+1, n)
		for k := range variants {
			i := (round + k) % len(variants)
			cost, err := measure(i)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", variants[i].name, err)
			}
			costs[i] = append(costs[i], cost)
		}
	}
	return costs, nil
}

// compared are the variants' costs, and their ratios to the first one's in the same
// round.
func compared(variants []variant, costs [][]float64) []row {
	var rows []row
	for i, v := range variants {
		more := make([]float64, len(costs[i])) // in percent
		for round := range more {
			more[round] = 100 * (costs[i][round]/costs[0][round] - 1)
		}
		r := row{Name: v.name}
		r.add(colCPU, median(costs[i]))
		r.add("% more", median(more))
		from, to := medianBetween(more)
		r.add("from", from)
		r.add("to", to)
		rows = append(rows, r)
	}
	return rows
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// medianBetween is a confidence interval of 95 % for the median of what the values were
// drawn from, whatever its distribution: between two of them, whose ranks are from the
// normal approximation of the binomial distribution (W. J. Conover, Practical
// Nonparametric Statistics, section 3.2). Of fewer than 6 it is less than 95 %.
func medianBetween(values []float64) (from, to float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := float64(len(sorted))
	low := int(n/2 - 1.96*math.Sqrt(n)/2)
	low = max(0, min(low, (len(sorted)-1)/2))
	return sorted[low], sorted[len(sorted)-1-low]
}

// otelCollector is a real one, which drops what it gets.
type otelCollector struct {
	cmd    *exec.Cmd
	port   int
	exited chan struct{}
}

func (b *bench) startCollector(ctx context.Context) (*otelCollector, error) {
	program, err := b.program("otel")
	if err != nil {
		return nil, err
	}
	port, err := freePorts(ctx, 2)
	if err != nil {
		return nil, err
	}
	overlay := filepath.Join(b.tmp, "collector.yaml")
	// Nobody takes what it would send on.
	text := "exporters:\n  debug: {verbosity: basic, sampling_initial: 1, sampling_thereafter: 1000000}\nservice:\n  pipelines:\n" +
		"    traces: {exporters: [debug]}\n    metrics: {exporters: [prometheus]}\n    logs: {exporters: [debug]}\n"
	if err := os.WriteFile(overlay, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(b.tmp, "collector.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	c := &otelCollector{port: port, exited: make(chan struct{})}
	c.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, "--config", filepath.Join(b.root, "infra/otel/collector.yaml"), "--config", overlay)
	address := "127.0.0.1:" + strconv.Itoa(port)
	c.cmd.Env = append(os.Environ(), "OTLP_LISTEN="+address, "PROMETHEUS_LISTEN=127.0.0.1:"+strconv.Itoa(port+1))
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the Collector: %w", err)
	}
	go func() {
		_ = c.cmd.Wait() // its log tells more
		close(c.exited)
	}()
	const patience = time.Minute
	for began := time.Now(); ; {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close() // it listens, which is all that was asked
			return c, nil
		}
		select {
		case <-c.exited:
		case <-time.After(20 * time.Millisecond):
			if time.Since(began) < patience && ctx.Err() == nil {
				continue
			}
		}
		_ = c.stop() // the other error is the one to tell
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("the Collector does not listen: %w\n%s", err, tail(said, 15))
	}
}

// stop ends the Collector. It must have been there to the end, or what was measured is
// something else.
func (c *otelCollector) stop() error {
	select {
	case <-c.exited:
		return errors.New("the Collector ended while it was needed")
	default:
	}
	terminate(c.cmd.Process, c.exited)
	return nil
}

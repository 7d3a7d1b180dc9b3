package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/kafka"
)

type e2eFlags struct {
	runner    string
	part      string
	pace      float64
	sustained float64
	count     uint64
}

func (f *e2eFlags) flags(fs *flag.FlagSet) {
	fs.StringVar(&f.runner, "runner", "", "the local runner's program (default millrace in -bin)")
	fs.StringVar(&f.part, "e2e-part", "all", "what the runner runs: spine (raw topic to verdict topics to lake), features (raw topic to online features), datacenter (raw readings to rows of anomalies) or all")
	fs.Float64Var(&f.pace, "e2e-rate", 5000, "events a second of the row that measures latency")
	fs.Float64Var(&f.sustained, "e2e-sustained", 10_000, "events a second of the row that watches memory; more than are to be shown, as a producer has its pauses")
	fs.Uint64Var(&f.count, "e2e-count", 0, "events of the row that goes as fast as possible; 0 is as many as take about 20 s at the rate of the row before, at most 300,000")
}

const (
	rawTopic       = "tracking.raw_user_behavior"
	validatedTopic = "tracking.user_behavior.validated"
	invalidTopic   = "tracking.user_behavior.invalid"
	featuresTopic  = "model.features.ready"
	lakeGroup      = "millrace-lake"

	// stalled is how long nothing may arrive before a run is given up.
	stalled = 30 * time.Second
)

// e2ePart is a part of the platform that is measured alone.
type e2ePart struct {
	title          string
	functions      string // for the runner; "" runs all
	features, lake bool   // what it ends in, besides verdicts
}

var e2eParts = map[string]e2ePart{
	"spine":    {title: "raw topic to verdict topics to lake", functions: "validate,lake,deadletter", lake: true},
	"features": {title: "raw topic to online features", functions: "validate,featurize,deadletter", features: true},
	"all":      {title: "all functions, raw topic to verdict topics, lake and online features", features: true, lake: true},
}

// endToEnd starts the platform in a folder of its own, without its producer, sends
// raw events with the load generator, and watches the topics and the processes
// from outside.
func (b *bench) endToEnd(ctx context.Context) (sections []section, err error) {
	if b.e2e.part == "datacenter" {
		return b.datacenter(ctx)
	}
	part, ok := e2eParts[b.e2e.part]
	if !ok {
		return nil, fmt.Errorf("-e2e-part %q is none of datacenter, %s", b.e2e.part, strings.Join(slices.Sorted(maps.Keys(e2eParts)), ", "))
	}
	p, err := b.startPlatform(ctx, part)
	if err != nil {
		return nil, err
	}
	defer p.end(&err)
	w, err := watch(p.brokers, filepath.Join(b.root, "triggers"), part.features)
	if err != nil {
		return nil, err
	}
	defer w.close()

	idle, err := treeUsage(p.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	start := row{Name: "local runner with " + part.title + ", before any load"}
	start.add("s to running", p.started.Seconds())
	start.add(colRSS, float64(total(idle).rss)/megabyte)

	s := section{Title: "local runner end to end, " + part.title + ", producer on the same cores", Notes: []string{
		"events/s: of all that was sent, until the last of its verdicts, and features, was there; behind: the most raw records that had no verdict at one time;",
		"latency: from the raw record's timestamp to the verdict record's, and to that of its features, in whole milliseconds, of a sixth of the sessions;",
		"CPU and RSS: of the runner and all its processes, pages that they share counted once; the producer and this tool are not in them;",
		"RSS after 1/4, 1/2 and all of the time shows whether memory is bounded; lake: from the last verdict to all verdicts in objects",
	}}
	scale := time.Duration(b.seconds * float64(time.Second))
	phases := []phase{
		{id: "e2e-paced", name: fmt.Sprintf("paced at %s/s", number(b.e2e.pace)), rate: b.e2e.pace, duration: 2 * scale},
		{id: "e2e-sustained", name: fmt.Sprintf("sustained at %s/s for %v", number(b.e2e.sustained), 8*scale), rate: b.e2e.sustained, duration: 8 * scale},
		{id: "e2e-fast", count: max(b.e2e.count, 1)},
	}
	var processes section
	for i := range phases {
		if ph := &phases[i]; ph.count > 0 {
			if b.e2e.count == 0 {
				const most, about = 300_000, 20 // events, seconds
				ph.count = uint64(min(s.Rows[i-1].get(colRate)*about, most))
			}
			ph.name = fmt.Sprintf("%s events as fast as possible", thousands(int64(ph.count)))
		}
		b.log("e2e: %s", phases[i].name)
		var r row
		var each []row
		r, each, err = b.runPhase(ctx, p, w, &phases[i], part, i)
		if len(r.Values) > 0 {
			s.Rows = append(s.Rows, r)
			processes = section{Title: "the runner's processes in the last row above", Rows: each}
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", phases[i].name, err)
			break
		}
	}
	return []section{{Title: "local runner's start", Rows: []row{start}}, s, processes}, err
}

// phase is one load: at a rate for a duration, or so many as fast as possible.
type phase struct {
	id, name string
	rate     float64
	duration time.Duration
	count    uint64
}

func (b *bench) runPhase(ctx context.Context, p *platform, w *watcher, ph *phase, part e2ePart, number int) (r row, processes []row, err error) {
	r = row{ID: ph.id, Name: ph.name}
	program, err := b.program("loadgen")
	if err != nil {
		return r, nil, err
	}
	before, err := treeUsage(p.cmd.Process.Pid)
	if err != nil {
		return r, nil, err
	}
	if err := w.reset(ctx); err != nil {
		return r, nil, err
	}
	report := filepath.Join(b.tmp, fmt.Sprintf("phase-%d.json", number))
	// Other customers in each phase, so that no session is continued.
	args := []string{"shop", "-brokers", p.brokers, "-seed", strconv.Itoa(number + 1), "-progress", "0", "-report", report}
	if ph.count > 0 {
		args = append(args, "-rate", "0", "-count", strconv.FormatUint(ph.count, 10))
	} else {
		args = append(args, "-rate", fmt.Sprint(ph.rate), "-duration", ph.duration.String())
	}
	cmd := exec.CommandContext(ctx, program, args...)
	var failed bytes.Buffer
	cmd.Stderr = &failed
	own, machine, began := ownCPU(), machineCPU(), time.Now()
	if err := cmd.Start(); err != nil {
		return r, nil, err
	}
	sending := make(chan error, 1)
	go func() { sending <- cmd.Wait() }()

	var memory []int64
	expected := uint64(math.MaxUint64)
	var sent time.Time
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for ticks := 0; !w.complete(expected); ticks++ {
		select {
		case err := <-sending:
			if err != nil {
				return r, nil, fmt.Errorf("the load generator: %w\n%s", err, tail(failed.Bytes(), 5))
			}
			if expected, err = delivered(report); err != nil {
				return r, nil, err
			}
			sent = time.Now()
		case <-ticker.C:
			if err := w.look(ctx); err != nil {
				return r, nil, err
			}
			if ticks%5 == 0 {
				u, err := treeUsage(p.cmd.Process.Pid)
				if err != nil {
					return r, nil, fmt.Errorf("the runner has gone: %w", err)
				}
				memory = append(memory, total(u).rss)
			}
			if quiet := time.Since(w.lastGrowth(began)); quiet > stalled {
				return r, nil, fmt.Errorf("no verdict for %s; there are %d", quiet.Round(time.Second), w.now.verdicts())
			}
		case <-ctx.Done():
			return r, nil, ctx.Err()
		}
	}
	after, err := treeUsage(p.cmd.Process.Pid)
	if err != nil {
		return r, nil, err
	}
	memory = append(memory, total(after).rss)
	own, machine = ownCPU()-own, machineCPU()-machine
	took := time.Since(began)
	finished := w.lastGrowth(began)
	latencies, features, err := w.take(ctx)
	if err != nil {
		return r, nil, err
	}
	r.add(colRate, float64(expected)/finished.Sub(began).Seconds())
	r.add("sent/s", float64(expected)/sent.Sub(began).Seconds())
	r.add(colP50, quantile(latencies, 0.5))
	r.add(colP99, quantile(latencies, 0.99))
	r.add(colMax, quantile(latencies, 1))
	if part.features {
		r.add("features p50 ms", quantile(features, 0.5))
		r.add("p99 ms", quantile(features, 0.99))
	}
	r.add("behind", float64(w.behind))
	spent, loader := total(after).cpu-total(before).cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	r.add(colCPU, perMillion(spent, expected))
	r.add(colLoader, perMillion(loader, expected))
	for _, at := range []struct {
		name string
		at   int
	}{{"RSS MB 1/4", len(memory) / 4}, {"1/2", len(memory) / 2}, {"end", len(memory) - 1}} {
		r.add(at.name, float64(memory[at.at])/megabyte)
	}
	r.add(colPeak, float64(slices.Max(memory))/megabyte)
	r.add("twice", float64(w.now.verdicts()-expected))
	r.add(colOthers, (machine-own-spent-loader).Seconds()/took.Seconds())
	for _, name := range slices.Sorted(maps.Keys(after)) {
		one := row{Name: name}
		one.add(colCPU, perMillion(after[name].cpu-before[name].cpu, expected))
		one.add(colRSS, float64(after[name].rss)/megabyte)
		one.add(colPeak, float64(after[name].peak)/megabyte)
		processes = append(processes, one)
	}
	if !part.lake {
		return r, processes, nil
	}
	// Last, so that the rest is told also if the lake does not come to an end.
	drained, err := p.waitForLake(ctx, finished)
	if err != nil {
		r.add("lake s", math.NaN())
		return r, processes, err
	}
	r.add("lake s", drained.Seconds())
	return r, processes, nil
}

// delivered reads how many messages the load generator saw acknowledged.
func delivered(report string) (uint64, error) {
	content, err := os.ReadFile(report)
	if err != nil {
		return 0, err
	}
	var r struct {
		Delivered uint64 `json:"delivered"`
		Complete  bool   `json:"complete"`
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return 0, fmt.Errorf("reading the load generator's report: %w", err)
	}
	if !r.Complete {
		return 0, errors.New("not all messages were delivered")
	}
	return r.Delivered, nil
}

// platform is a local runner in a folder of its own.
type platform struct {
	cmd     *exec.Cmd
	brokers string
	url     string // of its ingress and status
	state   string // folder
	log     string
	started time.Duration
	exited  chan struct{}
}

// startPlatform starts the runner with a part of the functions, on free ports and
// without any state of a run before, with env besides the usual.
func (b *bench) startPlatform(ctx context.Context, part e2ePart, env ...string) (*platform, error) {
	program := b.e2e.runner
	if program == "" {
		var err error
		if program, err = b.program("millrace"); err != nil {
			return nil, err
		}
	}
	const ports = 40 // more than there are parts
	base, err := freePorts(ctx, ports)
	if err != nil {
		return nil, err
	}
	p := &platform{
		// In the order in which the runner hands ports out: its ingress, Kafka, S3.
		brokers: "127.0.0.1:" + strconv.Itoa(base+1),
		url:     "http://127.0.0.1:" + strconv.Itoa(base),
		state:   filepath.Join(b.tmp, "state"),
		log:     filepath.Join(b.tmp, "runner.log"),
		exited:  make(chan struct{}),
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	if err := os.RemoveAll(p.state); err != nil {
		return nil, err
	}
	// Ended by stop, in order, not by the context.
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, "up", "-root", b.root, "-bin", b.bin, "-state", p.state,
		"-port-base", strconv.Itoa(base), "-no-load", "-plain")
	p.cmd.Env = append(os.Environ(), "LOG_LEVEL=warn", "KAFKA_BROKERS=", "S3_ENDPOINT=", "DATABASE_URL=", "REDIS_URL=", "MILLRACE_FUNCTIONS="+part.functions)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the runner: %w", err)
	}
	go func() {
		_ = p.cmd.Wait() // its last lines tell more
		close(p.exited)
	}()
	for {
		if status, err := p.status(ctx); err == nil && status.State == "running" {
			p.started = time.Since(began)
			return p, nil
		}
		const patience = time.Minute
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.exited:
		case <-ctx.Done():
		}
		select {
		case <-p.exited:
			text, _ := os.ReadFile(p.log) // the error is told anyway
			return nil, fmt.Errorf("the runner ended at its start:\n%s", tail(text, 15))
		default:
		}
		if time.Since(began) > patience || ctx.Err() != nil {
			p.stop()
			text, _ := os.ReadFile(p.log) // the error is told anyway
			return nil, fmt.Errorf("the runner is not up after %s:\n%s", patience, tail(text, 15))
		}
	}
}

var statusClient = &http.Client{Timeout: time.Second}

// stop ends the runner, which ends its processes.
func (p *platform) stop() { terminate(p.cmd.Process, p.exited) }

// end stops the runner, and adds to an error what it said last.
func (p *platform) end(err *error) {
	if *err != nil {
		text, _ := os.ReadFile(p.log) // the error is told anyway
		*err = fmt.Errorf("%w\nthe runner's last lines:\n%s", *err, tail(text, 15))
	}
	p.stop()
}

// waitForLake waits until the lake has committed all verdicts, which it does when
// they are in objects.
func (p *platform) waitForLake(ctx context.Context, since time.Time) (time.Duration, error) {
	options, err := kafka.Config{Brokers: []string{p.brokers}, ClientID: "bench"}.Options()
	if err != nil {
		return 0, err
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	for began := time.Now(); ; {
		left, err := kafka.Lag(ctx, client, lakeGroup)
		behind := int64(0)
		for _, topic := range []string{validatedTopic, invalidTopic} {
			if left[topic] == nil {
				behind++ // nothing is committed yet
			}
			for _, n := range left[topic] {
				behind += max(n, 0)
			}
		}
		if err == nil && behind == 0 {
			return time.Since(since), nil
		}
		if time.Since(began) > 2*stalled {
			return 0, fmt.Errorf("the lake is %d records behind after %s (%w)", behind, 2*stalled, err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

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
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/kafka"
)

type e2eFlags struct {
	runner    string
	pace      float64
	sustained float64
	count     uint64
}

func (f *e2eFlags) flags(fs *flag.FlagSet) {
	fs.StringVar(&f.runner, "runner", "", "the local runner's program (default millrace in -bin)")
	fs.Float64Var(&f.pace, "e2e-rate", 5000, "events a second of the row that measures latency")
	fs.Float64Var(&f.sustained, "e2e-sustained", 10_000, "events a second of the row that watches memory")
	fs.Uint64Var(&f.count, "e2e-count", 0, "events of the row that goes as fast as possible; 0 is as many as take about 20 s at the rate of the row before, at most 300,000")
}

const (
	rawTopic       = "tracking.raw_user_behavior"
	validatedTopic = "tracking.user_behavior.validated"
	invalidTopic   = "tracking.user_behavior.invalid"
	lakeGroup      = "millrace-lake"

	// stalled is how long nothing may arrive before a run is given up.
	stalled = 30 * time.Second
)

// endToEnd starts the platform in a folder of its own, without its producer, sends
// raw events with the load generator, and watches the topics and the processes
// from outside.
func (b *bench) endToEnd(ctx context.Context) (sections []section, err error) {
	p, err := b.startPlatform(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			text, _ := os.ReadFile(p.log) // the error is told anyway
			err = fmt.Errorf("%w\nthe runner's last lines:\n%s", err, tail(text, 15))
		}
		p.stop()
	}()
	w, err := watchVerdicts(p.brokers, filepath.Join(b.root, "triggers"))
	if err != nil {
		return nil, err
	}
	defer w.close()

	idle, err := treeUsage(p.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	start := row{Name: "local runner with embedded Kafka and S3 and all functions, before any load"}
	start.add("s to running", p.started.Seconds())
	start.add(colRSS, float64(total(idle).rss)/megabyte)

	s := section{Title: "local runner end to end, raw topic to verdict topics, producer on the same cores", Notes: []string{
		"latency: from the raw record's timestamp to the verdict record's, both in whole milliseconds;",
		"CPU and RSS: of the runner and all its processes, shared pages counted in each; the producer and this tool are not in them;",
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
		r, each, err = b.runPhase(ctx, p, w, &phases[i], i)
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

func (b *bench) runPhase(ctx context.Context, p *platform, w *watcher, ph *phase, number int) (r row, processes []row, err error) {
	r = row{ID: ph.id, Name: ph.name}
	program, err := b.program("loadgen")
	if err != nil {
		return r, nil, err
	}
	before, err := treeUsage(p.cmd.Process.Pid)
	if err != nil {
		return r, nil, err
	}
	w.reset()
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
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for w.count() < expected {
		select {
		case err := <-sending:
			if err != nil {
				return r, nil, fmt.Errorf("the load generator: %w\n%s", err, tail(failed.Bytes(), 5))
			}
			if expected, err = delivered(report); err != nil {
				return r, nil, err
			}
			sent = time.Now()
		case <-w.grown:
		case <-ticker.C:
			u, err := treeUsage(p.cmd.Process.Pid)
			if err != nil {
				return r, nil, fmt.Errorf("the runner has gone: %w", err)
			}
			memory = append(memory, total(u).rss)
			if quiet := time.Since(w.lastGrowth(began)); quiet > stalled {
				return r, nil, fmt.Errorf("no verdict for %s; %d have arrived", quiet.Round(time.Second), w.count())
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
	latencies, twice, err := w.take()
	if err != nil {
		return r, nil, err
	}
	r.add(colRate, float64(expected)/finished.Sub(began).Seconds())
	r.add("sent/s", float64(expected)/sent.Sub(began).Seconds())
	r.add(colP50, quantile(latencies, 0.5))
	r.add(colP99, quantile(latencies, 0.99))
	r.add(colMax, quantile(latencies, 1))
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
	r.add("twice", float64(twice))
	r.add(colOthers, (machine-own-spent-loader).Seconds()/took.Seconds())
	for _, name := range slices.Sorted(maps.Keys(after)) {
		one := row{Name: name}
		one.add(colCPU, perMillion(after[name].cpu-before[name].cpu, expected))
		one.add(colRSS, float64(after[name].rss)/megabyte)
		one.add(colPeak, float64(after[name].peak)/megabyte)
		processes = append(processes, one)
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
	log     string
	started time.Duration
	exited  chan struct{}
}

func (b *bench) startPlatform(ctx context.Context) (*platform, error) {
	program := b.e2e.runner
	if program == "" {
		var err error
		if program, err = b.program("millrace"); err != nil {
			return nil, err
		}
	}
	const ports = 16 // more than there are parts
	base, err := freePorts(ctx, ports)
	if err != nil {
		return nil, err
	}
	p := &platform{
		// In the order in which the runner hands ports out: its ingress, Kafka, S3.
		brokers: "127.0.0.1:" + strconv.Itoa(base+1),
		log:     filepath.Join(b.tmp, "runner.log"),
		exited:  make(chan struct{}),
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	// Ended by stop, in order, not by the context.
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, "up", "-root", b.root, "-bin", b.bin, "-state", filepath.Join(b.tmp, "state"),
		"-port-base", strconv.Itoa(base), "-no-load", "-plain")
	p.cmd.Env = append(os.Environ(), "LOG_LEVEL=warn", "KAFKA_BROKERS=", "S3_ENDPOINT=")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the runner: %w", err)
	}
	go func() {
		_ = p.cmd.Wait() // its last lines tell more
		close(p.exited)
	}()
	for url := fmt.Sprintf("http://127.0.0.1:%d/status", base); ; {
		if p.running(ctx, url) {
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

func (p *platform) running(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := statusClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var status struct {
		State string `json:"state"`
	}
	return json.NewDecoder(resp.Body).Decode(&status) == nil && status.State == "running"
}

// stop ends the runner, which ends its processes.
func (p *platform) stop() { terminate(p.cmd.Process, p.exited) }

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

// watcher reads the raw and the verdict topics and takes the time from each raw
// record to its verdict. They are matched by the verdict's id, which follows from
// the raw record's place.
type watcher struct {
	client *kgo.Client
	source string // of the raw records' events
	stop   context.CancelFunc
	done   chan struct{}
	grown  chan struct{} // signalled when verdicts came

	mu        sync.Mutex
	err       error
	pairs     map[string]pair // by the verdict's id, of all phases
	verdicts  uint64          // in this phase
	twice     uint64
	last      time.Time
	latencies []time.Duration
}

// pair holds the timestamps of a raw record and its verdict, in milliseconds since
// the epoch; 0 is one that was not read yet.
type pair struct{ raw, verdict int64 }

func watchVerdicts(brokers, manifests string) (*watcher, error) {
	graph, err := eventing.Load(manifests)
	if err != nil {
		return nil, err
	}
	w := &watcher{done: make(chan struct{}), grown: make(chan struct{}, 1), pairs: map[string]pair{}}
	for _, s := range graph.KafkaSources {
		if slices.Contains(s.Topics, rawTopic) {
			w.source = eventing.KafkaEventSource(s.Namespace, s.Name, rawTopic)
		}
	}
	if w.source == "" {
		return nil, fmt.Errorf("no KafkaSource in %s reads topic %s", manifests, rawTopic)
	}
	options, err := kafka.Config{Brokers: []string{brokers}, ClientID: "bench"}.Options()
	if err != nil {
		return nil, err
	}
	w.client, err = kgo.NewClient(append(options, kgo.ConsumeTopics(rawTopic, validatedTopic, invalidTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))...)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	go func() {
		defer close(w.done)
		for {
			fetches := w.client.PollFetches(ctx)
			if ctx.Err() != nil {
				return
			}
			w.add(fetches)
		}
	}()
	return w, nil
}

func (w *watcher) add(fetches kgo.Fetches) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := fetches.Err(); err != nil {
		w.err = err
	}
	fetches.EachRecord(func(r *kgo.Record) {
		var id string
		if r.Topic == rawTopic {
			id = events.ReplyID(w.source, fmt.Sprintf("partition:%d/offset:%d", r.Partition, r.Offset), "validate")
		} else {
			for _, h := range r.Headers {
				if h.Key == "ce_id" {
					id = string(h.Value)
				}
			}
		}
		p := w.pairs[id]
		switch at := r.Timestamp.UnixMilli(); {
		case r.Topic == rawTopic:
			p.raw = at
		case p.verdict != 0:
			w.twice++
			return
		default:
			p.verdict = at
			w.verdicts++
			w.last = time.Now()
		}
		w.pairs[id] = p
		if p.raw != 0 && p.verdict != 0 {
			w.latencies = append(w.latencies, time.Duration(p.verdict-p.raw)*time.Millisecond)
		}
	})
	select {
	case w.grown <- struct{}{}:
	default:
	}
}

func (w *watcher) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verdicts, w.twice, w.latencies, w.last = 0, 0, nil, time.Time{}
}

// count is how many raw records have got their verdict.
func (w *watcher) count() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return uint64(len(w.latencies))
}

// lastGrowth is when the latest verdict came, or from if none has.
func (w *watcher) lastGrowth(from time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() {
		return from
	}
	return w.last
}

// take returns the phase's latencies, sorted, and how many verdicts came twice.
func (w *watcher) take() (latencies []time.Duration, twice uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.verdicts - uint64(len(w.latencies)); n > 0 && w.err == nil {
		w.err = fmt.Errorf("%d verdicts belong to no raw record", n)
	}
	slices.Sort(w.latencies)
	return w.latencies, w.twice, w.err
}

func (w *watcher) close() {
	w.stop()
	<-w.done
	w.client.Close()
}

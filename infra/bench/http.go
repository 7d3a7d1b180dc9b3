package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

type httpFlags struct {
	conns, depth, batch, batchConns int
	pace                            float64
}

func (f *httpFlags) flags(fs *flag.FlagSet) {
	fs.IntVar(&f.conns, "http-connections", 64, "kept-alive connections for single events")
	fs.IntVar(&f.depth, "http-depth", 16, "requests under way on a connection in the pipelined row, which uses an eighth of the connections")
	fs.IntVar(&f.batch, "http-batch", 100, "events of a batch")
	fs.IntVar(&f.batchConns, "http-batch-connections", 4, "connections for batches")
	fs.Float64Var(&f.pace, "http-rate", 5000, "single events a second of the paced row")
}

// rawSource is the source of the events that the KafkaSource of the clickstream
// sends.
const rawSource = "/apis/v1/namespaces/millrace/kafkasources/clickstream#tracking.raw_user_behavior"

// overHTTP measures the validate function as its senders see it.
func (b *bench) overHTTP(ctx context.Context) ([]section, error) {
	values, err := b.shopMessages(ctx, 20_000)
	if err != nil {
		return nil, err
	}
	single, batches, ms := b.shopRequests(values)

	f, err := b.startValidate(ctx)
	if err != nil {
		return nil, err
	}
	defer f.stop()
	started := row{ID: "function", Name: "validate, from exec to 200 on /readyz; resident after a second without requests"}
	started.add(colStart, milliseconds(f.started))
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	u, err := processUsage(f.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	started.add(colIdle, float64(u.rss)/megabyte)
	if err := f.checkAnswers(ctx, ms, values); err != nil {
		return nil, err
	}

	window := time.Duration(b.seconds * float64(time.Second))
	s := section{
		Title: "validate over HTTP, loader on the same cores, a tenth of the events bad",
		Notes: []string{"closed loop: a connection sends on when its answer came, so that latency is what the throughput costs;",
			fmt.Sprintf("paced: %s requests a second whatever the answers, latency from the moment of sending", number(b.http.pace))},
	}
	loads := []struct {
		id, name string
		loadConfig
	}{
		{"http-single", fmt.Sprintf("single binary events, %d connections", b.http.conns),
			loadConfig{requests: single, events: 1, conns: b.http.conns, depth: 1}},
		{"", fmt.Sprintf("single binary events, %d connections, %d pipelined on each", max(b.http.conns/8, 1), b.http.depth),
			loadConfig{requests: single, events: 1, conns: max(b.http.conns/8, 1), depth: b.http.depth}},
		{"", fmt.Sprintf("single binary events, paced at %s/s", number(b.http.pace)),
			loadConfig{requests: single, events: 1, conns: b.http.conns, depth: 1, rate: b.http.pace}},
		{"http-batch", fmt.Sprintf("batches of %d, %d connections", b.http.batch, b.http.batchConns),
			loadConfig{requests: batches, events: b.http.batch, conns: b.http.batchConns, depth: 1}},
	}
	for _, l := range loads {
		l.address, l.warm, l.window = f.address, time.Second, window
		r, err := f.measure(ctx, l.loadConfig)
		if err != nil {
			return []section{{Title: "a function's start", Rows: []row{started}}, s}, fmt.Errorf("%s: %w", l.name, err)
		}
		r.ID, r.Name = l.id, l.name
		s.Rows = append(s.Rows, r)
	}
	return []section{{Title: "a function's start", Rows: []row{started}}, s}, nil
}

// measure loads the function and accounts for both sides.
func (f *function) measure(ctx context.Context, cfg loadConfig) (row, error) {
	var r row
	before, err := processUsage(f.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	own, machine, began := ownCPU(), machineCPU(), time.Now()
	result, err := load(ctx, cfg)
	if err != nil {
		return r, err
	}
	took := time.Since(began)
	own, machine = ownCPU()-own, machineCPU()-machine
	after, err := processUsage(f.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	// CPU was counted with the warm-up, events without it.
	share := cfg.window.Seconds() / (cfg.window + cfg.warm).Seconds()
	count := result.requests * uint64(cfg.events)
	scaled := func(cpu time.Duration) time.Duration { return time.Duration(float64(cpu) * share) }
	r.add(colRate, float64(count)/result.elapsed.Seconds())
	r.add(colP50, quantile(result.latencies, 0.5))
	r.add(colP99, quantile(result.latencies, 0.99))
	r.add(colCPU, perMillion(scaled(after.cpu-before.cpu), count))
	r.add(colLoader, perMillion(scaled(own), count))
	r.add(colRSS, float64(after.rss)/megabyte)
	r.add(colPeak, float64(after.peak)/megabyte)
	r.add(colErrors, float64(result.bad()))
	r.add(colOthers, (machine-own-(after.cpu-before.cpu)).Seconds()/took.Seconds())
	return r, nil
}

// ownCPU is the CPU time of this process so far.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// shopMessages makes raw messages with the load generator, a tenth of them bad.
func (b *bench) shopMessages(ctx context.Context, count int) ([][]byte, error) {
	loadgen, err := b.program("loadgen")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, loadgen, "shop", "-stdout", "-rate", "0", "-count", strconv.Itoa(count),
		"-report", filepath.Join(b.tmp, "loadgen.json"))
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("making messages: %w\n%s", err, tail(failed.Bytes(), 5))
	}
	lines := bytes.Split(bytes.TrimSuffix(out, []byte("\n")), []byte("\n"))
	if len(lines) != count {
		return nil, fmt.Errorf("the load generator made %d messages, want %d", len(lines), count)
	}
	return lines, nil
}

// shopRequests makes the requests of raw messages: one an event, and in batches.
func (b *bench) shopRequests(values [][]byte) (single, batches [][]byte, ms []events.Message) {
	single = make([][]byte, len(values))
	ms = make([]events.Message, len(values))
	for i, value := range values {
		ms[i] = rawEvent(i, value)
		header := http.Header{}
		events.SetHTTP(header, &ms[i])
		single[i] = post("validate", header, ms[i].Data)
	}
	for from := 0; from+b.http.batch <= len(ms); from += b.http.batch {
		body := events.AppendBatch(nil, ms[from:from+b.http.batch])
		batches = append(batches, post("validate", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, body))
	}
	return single, batches, ms
}

// rawEvent is the event that a KafkaSource makes of a record.
func rawEvent(i int, value []byte) events.Message {
	var m events.Message
	partition, offset := i%12, i/12
	m.Set("specversion", "1.0")
	m.Set("id", fmt.Sprintf("partition:%d/offset:%d", partition, offset))
	m.Set("source", rawSource)
	m.Set("type", events.KafkaRecord)
	m.Set("subject", fmt.Sprintf("partition:%d#%d", partition, offset))
	m.Set("time", "2026-11-22T02:30:12.345Z")
	m.Set("datacontenttype", "application/json")
	m.Set(events.PartitionKey, "76b918d5-b344-41fc-8632-baf222ec760f")
	m.Data = value
	return m
}

// post writes a whole request.
func post(host string, header http.Header, body []byte) []byte {
	var w bytes.Buffer
	fmt.Fprintf(&w, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", host, len(body))
	if err := header.Write(&w); err != nil {
		panic(err) // writing to memory
	}
	w.WriteString("\r\n")
	w.Write(body)
	return w.Bytes()
}

// function is a function that runs as a process.
type function struct {
	cmd     *exec.Cmd
	address string
	log     string
	started time.Duration // from exec to the first 200
}

// startValidate starts the validate function on a free port, with env besides the usual.
func (b *bench) startValidate(ctx context.Context, env ...string) (*function, error) {
	program, err := b.program("validate")
	if err != nil {
		return nil, err
	}
	port, err := freePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	f := &function{address: "127.0.0.1:" + strconv.Itoa(port), log: filepath.Join(b.tmp, fmt.Sprintf("validate-%d.log", port))}
	log, err := os.Create(f.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	// Ended by stop, in order, not by the context.
	f.cmd = exec.CommandContext(context.WithoutCancel(ctx), program)
	f.cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(port), "FUNCTION_NAME=validate", "LOG_LEVEL=warn", "GOMEMLIMIT=192MiB")
	f.cmd.Env = append(f.cmd.Env, env...)
	f.cmd.Stdout, f.cmd.Stderr = log, log
	client := &http.Client{Timeout: time.Second}
	began := time.Now()
	if err := f.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting validate: %w", err)
	}
	const patience = 10 * time.Second
	for {
		err := ready(ctx, client, "http://"+f.address+"/readyz")
		if err == nil {
			f.started = time.Since(began)
			return f, nil
		}
		if time.Since(began) > patience || ctx.Err() != nil {
			f.stop()
			text, _ := os.ReadFile(f.log) // the error is told anyway
			return nil, fmt.Errorf("validate is not ready after %s: %w\n%s", patience, err, tail(text, 10))
		}
		time.Sleep(time.Millisecond)
	}
}

// ready asks for a 200.
func ready(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// stop ends the process and waits for it.
func (f *function) stop() {
	exited := make(chan struct{})
	go func() {
		_ = f.cmd.Wait() // how it ends does not matter any more
		close(exited)
	}()
	terminate(f.cmd.Process, exited)
}

// terminate asks a process to end, and ends it if it does not.
func terminate(p *os.Process, exited <-chan struct{}) {
	const patience = 30 * time.Second
	if p.Signal(syscall.SIGTERM) == nil {
		select {
		case <-exited:
			return
		case <-time.After(patience):
		}
	}
	_ = p.Kill() // fails only if it has ended
	<-exited
}

// checkAnswers sends one good and one bad event and one batch before anything is
// measured: a function that answers something else fast is not worth measuring.
func (f *function) checkAnswers(ctx context.Context, ms []events.Message, values [][]byte) error {
	good, bad := -1, -1
	for i, value := range values {
		if bytes.Contains(value, []byte(`"price":-100,`)) {
			bad = i
		} else if good < 0 && bytes.HasSuffix(value, []byte("}}")) && bytes.Contains(value, []byte(`"event_type":"view"`)) {
			good = i
		}
	}
	for want, i := range map[string]int{events.BehaviorValidated: good, events.BehaviorInvalid: bad} {
		header := http.Header{}
		events.SetHTTP(header, &ms[i])
		resp, _, err := f.send(ctx, header, ms[i].Data) //nolint:bodyclose // send does
		if err != nil {
			return err
		}
		if got := resp.Header.Get("Ce-Type"); got != want {
			return fmt.Errorf("validate answers event %d with %s of type %q, want %q", i, resp.Status, got, want)
		}
	}
	body := events.AppendBatch(nil, ms[:100])
	resp, answer, err := f.send(ctx, http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, body) //nolint:bodyclose // send does
	if err != nil {
		return err
	}
	replies, err := events.ParseBatch(answer)
	if err != nil {
		return fmt.Errorf("validate answers a batch with %s: %w", resp.Status, err)
	}
	if len(replies) != 100 {
		return fmt.Errorf("validate answers a batch of 100 with %s and %d replies", resp.Status, len(replies))
	}
	return nil
}

func (f *function) send(ctx context.Context, header http.Header, body []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+f.address+"/", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("validate answers %s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	return resp, answer, err
}

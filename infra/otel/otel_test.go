package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/collector/otelcol"
)

// patience bounds the waiting for anything: it is for a machine that does much else.
const patience = 3 * time.Minute

// The files are configurations of this Collector, each by itself and laid over the first.
func TestConfigurations(t *testing.T) {
	t.Setenv("SIGNOZ_INGESTION_KEY", "key")
	for _, files := range [][]string{{"collector.yaml"}, {"collector.yaml", "signoz.yaml"}} {
		var uris []string
		for _, f := range files {
			uris = append(uris, "file:"+f)
		}
		s := settings()
		s.ConfigProviderSettings.ResolverSettings.URIs = uris
		c, err := otelcol.NewCollector(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.DryRun(t.Context()); err != nil {
			t.Errorf("%v: %v", files, err)
		}
	}
}

// TestOneTrace follows one event through the platform: from a Kafka record that carries
// a trace to its verdict, features, prediction and rows, by what a real Collector got.
func TestOneTrace(t *testing.T) {
	programs := os.Getenv("TEST_PROGRAMS")
	if programs == "" {
		t.Skip("TEST_PROGRAMS is not set: `make test-otel` sets it")
	}
	c := startCollector(t)
	p := startPlatform(t, programs, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+c.otlp, "OTEL_METRIC_EXPORT_INTERVAL=2000", "OTEL_BSP_SCHEDULE_DELAY=500")

	const trace, producer = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	p.produce(t, "00-"+trace+"-"+producer+"-01")

	// Every span's parent is the span of the step before.
	want := map[string]string{"validate": "", "featurize": "validate", "predict": "featurize", "store": "featurize predict"}
	var seen map[string][]span
	await(t, "the spans of all steps", func() error {
		spans, err := c.spans(trace)
		if err != nil {
			return err
		}
		seen = map[string][]span{}
		for _, s := range spans {
			seen[s.service] = append(seen[s.service], s)
		}
		for service, parents := range want {
			if len(seen[service]) < max(1, len(strings.Fields(parents))) {
				return fmt.Errorf("%d spans of %s: %v", len(seen[service]), service, seen)
			}
		}
		return nil
	})
	service := map[string]string{producer: ""}
	for name, spans := range seen {
		for _, s := range spans {
			service[s.id] = name
		}
	}
	for name, parents := range want {
		got := map[string]bool{}
		for _, s := range seen[name] {
			parent, known := service[s.parent]
			if !known {
				t.Errorf("a span of %s has the parent %q, which is none of the trace's", name, s.parent)
			}
			got[parent] = true
			if s.event == "" {
				t.Errorf("a span of %s says nothing of its event", name)
			}
		}
		steps := strings.Fields(parents)
		if len(steps) == 0 {
			steps = []string{""} // the producer
		}
		for _, parent := range steps {
			if !got[parent] {
				t.Errorf("no span of %s has the parent %q: %v", name, parent, got)
			}
		}
	}

	// Metrics came by OTLP too, and logs.
	await(t, "metrics", func() error { return c.contains("metrics.json", `"function.events"`) })
	await(t, "logs", func() error { return c.contains("logs.json", `"validate"`) })
	await(t, "metrics for Prometheus", func() error {
		body, err := get("http://" + c.prometheus + "/metrics")
		if err == nil && !strings.Contains(body, `function_events_total{`) {
			err = fmt.Errorf("they lack function_events_total: %.500s", body)
		}
		return err
	})
}

// TestOneEventThenTheEnd: a pod that was woken for one event and is ended right after it
// has told of it: its span, its count and its log arrive, though no interval has passed.
func TestOneEventThenTheEnd(t *testing.T) {
	programs := os.Getenv("TEST_PROGRAMS")
	if programs == "" {
		t.Skip("TEST_PROGRAMS is not set: `make test-otel` sets it")
	}
	c := startCollector(t)
	const never = "3600000" // ms
	f := startValidate(t, programs, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+c.otlp,
		"OTEL_METRIC_EXPORT_INTERVAL="+never, "OTEL_BSP_SCHEDULE_DELAY="+never, "OTEL_BLRP_SCHEDULE_DELAY="+never)
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	f.post(t, "00-"+trace+"-"+parent+"-01")
	f.end(t)

	await(t, "the span", func() error {
		spans, err := c.spans(trace)
		if err != nil {
			return err
		}
		if len(spans) != 1 || spans[0].service != "validate" || spans[0].parent != parent || spans[0].event != "1" {
			return fmt.Errorf("spans %+v", spans)
		}
		return nil
	})
	await(t, "the metrics", func() error { return c.contains("metrics.json", `"function.events"`) })
	await(t, "the log", func() error { return c.contains("logs.json", `"drained"`) })
}

// TestNoCollector: nothing fails where the Collector is not there.
func TestNoCollector(t *testing.T) {
	programs := os.Getenv("TEST_PROGRAMS")
	if programs == "" {
		t.Skip("TEST_PROGRAMS is not set: `make test-otel` sets it")
	}
	f := startValidate(t, programs, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+freeAddress(t))
	f.post(t, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	f.end(t)
}

// process is a function that runs alone.
type process struct {
	cmd     *exec.Cmd
	address string
	exited  chan error
}

func startValidate(t *testing.T, programs string, env ...string) *process {
	t.Helper()
	f := &process{address: freeAddress(t), exited: make(chan error, 1)}
	_, port, err := net.SplitHostPort(f.address)
	if err != nil {
		t.Fatal(err)
	}
	f.cmd = exec.CommandContext(t.Context(), filepath.Join(programs, "validate"))
	f.cmd.Env = append(append(os.Environ(), "LISTEN_HOST=127.0.0.1", "PORT="+port, "FUNCTION_NAME=validate"), env...)
	var said strings.Builder
	f.cmd.Stderr = &said
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		f.exited <- f.cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = f.cmd.Process.Kill() // it has ended, unless the test failed
		<-ended
		if t.Failed() {
			t.Logf("validate said:\n%s", said.String())
		}
	})
	await(t, "validate", func() error {
		_, err := get("http://" + f.address + "/readyz")
		return err
	})
	return f
}

// post sends one raw record as an event of a trace and requires a verdict.
func (f *process) post(t *testing.T, traceparent string) {
	t.Helper()
	text, err := os.ReadFile("../../shared/contract/testdata/golden/tracking.raw_user_behavior/valid-nulls.in")
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+f.address+"/", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Type": "dev.knative.kafka.event", "Ce-Traceparent": traceparent,
		"Ce-Source": "/apis/v1/namespaces/millrace/kafkasources/clickstream#tracking.raw_user_behavior",
	} {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Ce-Type") != "dev.millrace.behavior.validated.v1" {
		t.Fatalf("validate answered %s, %v", resp.Status, resp.Header)
	}
}

// end asks the process to end, as the kubelet does, and requires that it does in order.
func (f *process) end(t *testing.T) {
	t.Helper()
	if err := f.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-f.exited:
		if err != nil {
			t.Fatalf("validate ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("validate does not end")
	}
}

// folder is for what the tests build.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "millrace-otel-"); err != nil {
		fmt.Fprintln(os.Stderr, "making a folder:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(folder) // of the temporary ones
	os.Exit(code)
}

// built makes the Collector's program once.
var built = sync.OnceValues(func() (string, error) {
	program := filepath.Join(folder, "otel")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil { // bounded by the test's deadline
		return "", fmt.Errorf("building the Collector: %w\n%s", err, out)
	}
	return program, nil
})

// collector is a Collector that writes what it gets into files as well.
type collector struct{ folder, otlp, prometheus string }

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{folder: t.TempDir(), otlp: freeAddress(t), prometheus: freeAddress(t)}
	program, err := built()
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(c.folder, "files.yaml")
	text := "exporters:\n"
	pipelines := "service:\n  pipelines:\n"
	for _, kind := range []string{"traces", "metrics", "logs"} {
		text += fmt.Sprintf("  file/%s: {path: %s, flush_interval: 200ms}\n", kind, filepath.Join(c.folder, kind+".json"))
		exporters := "file/" + kind
		if kind == "metrics" {
			exporters += ", prometheus"
		}
		pipelines += fmt.Sprintf("    %s: {exporters: [%s]}\n", kind, exporters)
	}
	if err := os.WriteFile(overlay, []byte(text+pipelines), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(c.folder, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "--config", "collector.yaml", "--config", overlay)
	cmd.Env = append(os.Environ(), "OTLP_LISTEN="+c.otlp, "PROMETHEUS_LISTEN="+c.prometheus)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("the Collector said:\n%s", said)
		}
	})
	await(t, "the Collector", func() error {
		conn, err := net.Dial("tcp", c.otlp)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	return c
}

// span is what is needed of one.
type span struct{ service, id, parent, event string }

// spans are those of a trace that have come so far.
func (c *collector) spans(trace string) ([]span, error) {
	f, err := os.Open(filepath.Join(c.folder, "traces.json"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	type attribute struct {
		Key   string
		Value struct{ StringValue string }
	}
	value := func(list []attribute, key string) string {
		for _, a := range list {
			if a.Key == key {
				return a.Value.StringValue
			}
		}
		return ""
	}
	var found []span
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var batch struct {
			ResourceSpans []struct {
				Resource   struct{ Attributes []attribute }
				ScopeSpans []struct {
					Spans []struct {
						TraceID, SpanID, ParentSpanID string
						Attributes                    []attribute
					}
				}
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &batch); err != nil {
			return nil, fmt.Errorf("a line that is not whole yet: %w", err)
		}
		for _, r := range batch.ResourceSpans {
			for _, scope := range r.ScopeSpans {
				for _, s := range scope.Spans {
					if s.TraceID == trace {
						found = append(found, span{value(r.Resource.Attributes, "service.name"), s.SpanID, s.ParentSpanID, value(s.Attributes, "cloudevents.event_id")})
					}
				}
			}
		}
	}
	return found, lines.Err()
}

func (c *collector) contains(file, text string) error {
	all, err := os.ReadFile(filepath.Join(c.folder, file))
	if err != nil {
		return err
	}
	if !strings.Contains(string(all), text) {
		return fmt.Errorf("%s has no %s", file, text)
	}
	return nil
}

// platform is a runner and all that it runs.
type platform struct{ base int }

func startPlatform(t *testing.T, programs string, env ...string) *platform {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	p := &platform{base: freePorts(t, 40)}
	state := t.TempDir()
	// Who runs PostgreSQL when the tests run as root has to come through.
	if err := os.Chmod(filepath.Dir(state), 0o711); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(state, "out"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "millrace"), "up", "--plain", "--no-load",
		"--root", root, "--state", state, "--bin", programs, "--port-base", strconv.Itoa(p.base),
		"--functions", "validate,featurize,predict,store")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(append(os.Environ(), "NO_LEARNING=1"), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(out.Name())
			t.Logf("output of the runner:\n%s", text)
		}
	})
	await(t, "the platform", func() error {
		body, err := get(fmt.Sprintf("http://127.0.0.1:%d/status", p.base))
		if err == nil && !strings.Contains(body, `"state": "running"`) {
			err = fmt.Errorf("not running yet")
		}
		return err
	})
	return p
}

// produce writes a raw record of something put into the cart, with the trace that its
// producer's instrumentation would give it.
func (p *platform) produce(t *testing.T, traceparent string) {
	t.Helper()
	text, err := os.ReadFile("../../shared/contract/testdata/golden/tracking.raw_user_behavior/valid-nulls.in")
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", p.base+1)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{
		Topic: "tracking.raw_user_behavior", Value: []byte(strings.Replace(string(text), `"event_type":"view"`, `"event_type":"cart"`, 1)),
		Headers: []kgo.RecordHeader{{Key: "traceparent", Value: []byte(traceparent)}},
	}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func get(url string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url) // bounded by the client
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var text strings.Builder
	_, err = bufio.NewReader(resp.Body).WriteTo(&text)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s", resp.Status)
	}
	return text.String(), err
}

func await(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// freePorts finds ports in a row that nobody listens on.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for base := 33000 + os.Getpid()%500*8; base < 60000; base += n {
		free := true
		for port := base; port < base+n && free; port++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				free = false
				continue
			}
			_ = l.Close()
		}
		if free {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

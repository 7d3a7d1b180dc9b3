package function

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
)

// serve serves on a port of loopback until stop is called; ended gets Serve's error.
func serve(t *testing.T, s *Server) (url string, stop func(), ended <-chan error) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	result := make(chan error, 1)
	go func() { result <- s.Serve(ctx, l) }()
	return "http://" + l.Addr().String(), cancel, result
}

func get(t *testing.T, client *http.Client, url string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// post sends the event over HTTP in binary mode.
func post(t *testing.T, client *http.Client, url string, m events.Message) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(string(m.Data)))
	if err != nil {
		t.Fatal(err)
	}
	events.SetHTTP(r.Header, &m)
	return client.Do(r)
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	s := newServer(t, Config{}, Each(func(context.Context, event.Event) (*event.Event, error) {
		close(began)
		<-release
		return nil, nil
	}))
	url, stop, ended := serve(t, s)
	answer := make(chan string, 1)
	go func() {
		r, err := post(t, http.DefaultClient, url, message("1"))
		if err != nil {
			answer <- err.Error()
			return
		}
		_ = r.Body.Close()
		answer <- r.Status
	}()
	// A connection from before, which a probe could still use.
	probe := &http.Client{Transport: &http.Transport{}}
	<-began
	if r := get(t, probe, url+"/readyz"); r.StatusCode != 200 {
		t.Fatalf("not ready at first: %s", r.Status)
	}
	stop()
	for !s.draining.Load() { // until Serve has seen it
		runtime.Gosched()
	}
	if r := do(s, httptest.NewRequest(http.MethodGet, "/readyz", nil)); r.StatusCode != 503 || text(t, r) != "draining\n" {
		t.Errorf("/readyz while draining: %d", r.StatusCode)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with an event in flight: %v", err)
	default:
	}
	close(release)
	if got := <-answer; got != "202 Accepted" {
		t.Errorf("the event in flight got %s", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if r, err := post(t, &http.Client{Transport: &http.Transport{}}, url, message("2")); err == nil {
		t.Errorf("an event after the end got %s", r.Status)
	}
}

func TestDrainIsBounded(t *testing.T) {
	began, cancelled := make(chan struct{}), make(chan struct{})
	s := newServer(t, Config{DrainTimeout: 10 * time.Millisecond}, Each(func(ctx context.Context, _ event.Event) (*event.Event, error) {
		close(began)
		<-ctx.Done()
		close(cancelled)
		return nil, ctx.Err()
	}))
	url, stop, ended := serve(t, s)
	go func() {
		if r, err := post(t, http.DefaultClient, url, message("1")); err == nil {
			_ = r.Body.Close()
		}
	}()
	<-began
	stop()
	err := <-ended
	if err == nil || !strings.Contains(err.Error(), "1 events were not finished") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Serve: %v", err)
	}
	<-cancelled
}

func TestHTTP2WithoutTLS(t *testing.T) {
	url, stop, ended := serve(t, newServer(t, Config{}, echo))
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &h2c}}
	r, err := post(t, client, url, message("1"))
	if err != nil {
		t.Fatal(err)
	}
	if body := text(t, r); r.ProtoMajor != 2 || r.StatusCode != 200 || body != `"1"` {
		t.Errorf("%s %d %s", r.Proto, r.StatusCode, body)
	}
	client.CloseIdleConnections()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Requests over one connection do not see what handlers noted in the ones before.
func TestQuickPostsReachTheirRoutes(t *testing.T) {
	s := newServer(t, Config{}, Each(func(context.Context, event.Event) (*event.Event, error) { return nil, nil }), WithQuickPosts("/things/"),
		WithRoutes(func(mux *http.ServeMux) {
			mux.HandleFunc("POST /things/{name}", func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				answer := r.PathValue("name") + r.PathValue("noted") + string(body)
				r.SetPathValue("noted", "!")
				w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
				_, _ = io.WriteString(w, answer)
			})
		}))
	url, _, _ := serve(t, s)
	client := &http.Client{}
	t.Cleanup(client.CloseIdleConnections)
	for path, want := range map[string]string{"/things/a": "200 a1", "/things/b": "200 b1", "/things/a.b": "200 a.b1", "/": "415", "/things": "404", "/things/a/b": "404"} {
		for range 2 {
			answer, err := client.Post(url+path, "text/plain", strings.NewReader("1"))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			if got := fmt.Sprintf("%d %s", answer.StatusCode, body); err != nil || !strings.HasPrefix(got, want) {
				t.Errorf("%s: %q %v, want %q", path, got, err, want)
			}
			_ = answer.Body.Close()
		}
	}
}

func TestServeReportsAListenerThatBreaks(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := newServer(t, Config{}, echo).Serve(t.Context(), l); err == nil {
		t.Error("no error")
	}
}

// childEnv makes this test binary a function of its own instead of running tests.
const childEnv = "FUNCTION_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	default:
		h := Each(func(ctx context.Context, e event.Event) (*event.Event, error) {
			if e.ID() == "slow" {
				fmt.Println("handling")
				select {
				case <-time.After(200 * time.Millisecond):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return nil, nil
		})
		if err := Run(context.Background(), Config{Name: "child", Host: "127.0.0.1", Port: freePort()}, h); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func freePort() int {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		panic(err)
	}
	return port
}

// The real thing: a process that gets SIGTERM with an event in flight answers it
// and ends with 0.
func TestRunAsProcess(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var first struct{ Msg, Address, Service string }
	logs := bufio.NewScanner(stderr)
	if !logs.Scan() {
		t.Fatal("no log")
	}
	if err := json.Unmarshal(logs.Bytes(), &first); err != nil || first.Msg != "serving" || first.Service != "child" {
		t.Fatalf("first log line %s: %v", logs.Bytes(), err)
	}
	url := "http://" + first.Address
	r, err := post(t, http.DefaultClient, url, message("quick"))
	if err != nil || r.StatusCode != 202 {
		t.Fatalf("%v %v", r, err)
	}
	_ = r.Body.Close()
	metrics := text(t, get(t, http.DefaultClient, url+"/metrics"))
	for _, want := range []string{
		`function_events_total{outcome="accepted",type="in"} 1`,
		`function_handling_seconds_bucket{le="0.0001"}`,
		`function_batch_size_sum 1`,
		`function_events_in_flight 0`,
		`process_resident_memory_bytes`,
		`go_goroutines`,
		`target_info{service_name="child"`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if t.Failed() {
		t.Log(metrics)
	}
	answer := make(chan error, 1)
	go func() {
		r, err := post(t, http.DefaultClient, url, message("slow"))
		if err == nil {
			_ = r.Body.Close()
			if r.StatusCode != 202 {
				err = errors.New(r.Status)
			}
		}
		answer <- err
	}()
	if !bufio.NewScanner(stdout).Scan() {
		t.Fatal("the slow event did not arrive")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("the event in flight: %v", err)
	}
	for logs.Scan() {
		t.Logf("%s", logs.Bytes())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
}

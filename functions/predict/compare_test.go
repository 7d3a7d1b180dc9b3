package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

// TestAgainstFastAPI measures predict and XGBoost behind FastAPI side by side, with
// the same model of 100 trees and the same requests: predictions a second of the
// server's CPU time, and latencies of both at the rate that saturates the other. It
// asserts only that both predict the same; make bench-predict prints the rest.
//
// TEST_FASTAPI names a Python that has what testdata/fastapi_server.py imports.
func TestAgainstFastAPI(t *testing.T) {
	python := os.Getenv("TEST_FASTAPI")
	if python == "" {
		t.Skip("TEST_FASTAPI is not set: no Python with FastAPI and XGBoost (make bench-predict installs them)")
	}
	files := hundredTrees(t)
	dir, uri := folder(t, files)
	ours := launch(t, "predict", buildPredict(t), nil, func(port string) []string {
		return []string{"PORT=" + port, "LISTEN_HOST=127.0.0.1", "MODEL_URI=" + uri, "LOG_LEVEL=error"}
	})
	theirs := launch(t, "FastAPI", python, []string{"testdata/fastapi_server.py", filepath.Join(dir, model.XGBoostFile)},
		func(string) []string { return []string{"OMP_NUM_THREADS=1"} })

	for _, rows := range []int{1, 10} {
		body := inferRequest(rows)
		if a, b := ours.predictions(t, body), theirs.predictions(t, body); !near(a, b) {
			t.Fatalf("predict gives %v, FastAPI %v", a, b)
		}
		duration := benchDuration(t)
		infer := request{"/v2/models/hundred/infer", []string{body}}
		var line []string
		var perCPU [2]float64
		var saturating, closed float64 // requests a second, and FastAPI's p99 then in ms
		for i, s := range []*process{theirs, ours} {
			s.load(infer, 0, duration/5) // warm
			full := s.load(infer, 0, duration)
			perCPU[i] = float64(full.requests*rows) / full.cpu.Seconds()
			line = append(line, fmt.Sprintf("%s: %.0f requests/s, %.0f predictions/CPU-s, p50 %.2f ms, p99 %.2f ms",
				s.name, full.rate(), perCPU[i], full.at(0.5), full.at(0.99)))
			if full.failed > 0 {
				t.Errorf("%s: %d requests failed", s.name, full.failed)
			}
			if s == theirs {
				saturating, closed = full.rate(), full.at(0.99)
			}
		}
		var p99 [2]float64
		for i, s := range []*process{theirs, ours} {
			same := s.load(infer, saturating, duration)
			p99[i] = same.at(0.99)
			line = append(line, fmt.Sprintf("%s, %.0f requests/s sent: p50 %.2f ms, p99 %.2f ms", s.name, saturating, same.at(0.5), same.at(0.99)))
		}
		line = append(line, fmt.Sprintf("FastAPI's p99 at the rate that saturates it: %.1f times predict's, by its eight clients that wait for answers %.1f times",
			p99[0]/p99[1], closed/p99[1]))
		t.Logf("%d rows a request\n%s\npredictions a CPU-second: %.1f times FastAPI's", rows, strings.Join(line, "\n"), perCPU[1]/perCPU[0])
	}
}

// TestLookupLatency measures POST /predict with the starter model and features from
// Redis, for 1, 10 and 100 items a request: latencies at a rate, and predictions a
// second of CPU time. It asserts only that all are answered.
func TestLookupLatency(t *testing.T) {
	if os.Getenv("BENCH_PREDICT") == "" {
		t.Skip("BENCH_PREDICT is not set: make bench-predict sets it")
	}
	redis := redistest.Start(t)
	store, err := online.Config{URL: redis.URL, PoolSize: 4, Timeout: 10 * time.Second, FeatureTTL: time.Hour, SessionTTL: time.Hour}.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	const entities = 2000
	known := make([]online.Pushed, entities)
	for user := range known {
		var v features.Vector
		v[features.Brand], v[features.Price], v[features.ActivityCount] = features.OfString("xiaomi"), features.OfFloat(float64(10+user)), features.OfInt(3)
		known[user] = online.Pushed{Key: online.UserProduct(int64(user), 1), EventTime: time.Now(), Features: v}
	}
	if n, err := store.Push(t.Context(), known); err != nil || n != entities {
		t.Fatal(n, err)
	}
	starter, err := filepath.Abs("kodata/purchase")
	if err != nil {
		t.Fatal(err)
	}
	s := launch(t, "predict", buildPredict(t), nil, func(port string) []string {
		return []string{"PORT=" + port, "LISTEN_HOST=127.0.0.1", "MODEL_URI=file://" + starter, "REDIS_URL=" + redis.URL, "LOG_LEVEL=error"}
	})
	for _, c := range []struct {
		items int
		rate  float64
	}{{1, 2000}, {10, 1000}, {100, 200}} {
		bodies := make([]string, 200)
		for i := range bodies {
			items := make([]string, c.items)
			for j := range items {
				items[j] = fmt.Sprintf(`{"user_id":%d,"product_id":1,"user_session":"040d0e0b-0a40-4d40-bdc9-c9252e877d9c"}`, rand.IntN(entities))
			}
			bodies[i] = "[" + strings.Join(items, ",") + "]"
		}
		at := request{path: "/predict", bodies: bodies}
		s.load(at, c.rate, time.Second) // warm
		m := s.load(at, c.rate, benchDuration(t))
		if m.failed > 0 {
			t.Errorf("%d requests failed", m.failed)
		}
		t.Logf("%d items with lookups, %.0f of %.0f requests/s: p50 %.2f ms, p99 %.2f ms, %.0f predictions/CPU-s",
			c.items, m.rate(), c.rate, m.at(0.5), m.at(0.99), float64(m.requests*c.items)/m.cpu.Seconds())
	}
}

// benchDuration is how long a measurement takes.
func benchDuration(t *testing.T) time.Duration {
	t.Helper()
	seconds, err := strconv.Atoi(cmp.Or(os.Getenv("BENCH_SECONDS"), "5"))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

func buildPredict(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "predict")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building predict: %v\n%s", err, out)
	}
	return binary
}

// request is what is sent over and over, one body after the other.
type request struct {
	path   string
	bodies []string
}

// process is a server that is measured.
type process struct {
	name, url string
	pid       int
}

func launch(t *testing.T, name, program string, args []string, env func(port string) []string) *process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	if args != nil {
		args = append(args, port)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), env(port)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &process{name: name, url: "http://" + address, pid: cmd.Process.Pid}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/v2/health/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		if response, err := http.DefaultClient.Do(r); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return p
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer", name)
		}
	}
}

func (p *process) predictions(t *testing.T, body string) []float64 {
	t.Helper()
	_, text := do(t, http.MethodPost, p.url+"/v2/models/hundred/infer", body)
	var answer struct {
		Outputs []struct {
			Data []float64 `json:"data"`
		} `json:"outputs"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Outputs) != 1 {
		t.Fatalf("%s: %s %v", p.name, text, err)
	}
	return answer.Outputs[0].Data
}

func near(a, b []float64) bool {
	return slices.EqualFunc(a, b, func(x, y float64) bool { return math.Abs(x-y) < 1e-6 })
}

// cpu is the CPU time that the process has used, of all its threads.
func (p *process) cpu() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

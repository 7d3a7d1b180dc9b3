package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/model"
)

// TestAgainstFastAPI measures predict and XGBoost behind FastAPI side by side, with
// the same model of 100 trees and the same requests: predictions a second of the
// server's CPU time, and latencies at the rate at which the other is saturated. It
// asserts only that both predict the same; make bench-predict prints the rest.
//
// TEST_FASTAPI names a Python that has what testdata/fastapi_server.py imports.
func TestAgainstFastAPI(t *testing.T) {
	python := os.Getenv("TEST_FASTAPI")
	if python == "" {
		t.Skip("TEST_FASTAPI is not set: no Python with FastAPI and XGBoost (make bench-predict installs them)")
	}
	seconds, err := strconv.Atoi(cmp.Or(os.Getenv("BENCH_SECONDS"), "5"))
	if err != nil {
		t.Fatal(err)
	}
	files := hundredTrees(t)
	dir, uri := folder(t, files)
	binary := filepath.Join(t.TempDir(), "predict")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building predict: %v\n%s", err, out)
	}
	ours := launch(t, "predict", binary, nil, func(port string) []string {
		return []string{"PORT=" + port, "LISTEN_HOST=127.0.0.1", "MODEL_URI=" + uri, "LOG_LEVEL=error"}
	})
	theirs := launch(t, "FastAPI", python, []string{"testdata/fastapi_server.py", filepath.Join(dir, model.XGBoostFile)},
		func(string) []string { return []string{"OMP_NUM_THREADS=1"} })

	for _, rows := range []int{1, 10} {
		body := inferRequest(rows)
		if a, b := ours.predictions(t, body), theirs.predictions(t, body); !near(a, b) {
			t.Fatalf("predict gives %v, FastAPI %v", a, b)
		}
		duration := time.Duration(seconds) * time.Second
		var line []string
		var perCPU [2]float64
		for i, s := range []*process{theirs, ours} {
			s.load(body, 8, 0, duration/5) // warm
			full := s.load(body, 8, 0, duration)
			perCPU[i] = float64(full.requests*rows) / full.cpu.Seconds()
			line = append(line, fmt.Sprintf("%s: %.0f requests/s, %.0f predictions/CPU-s, p50 %.2f ms, p99 %.2f ms",
				s.name, full.rate(), perCPU[i], full.at(0.5), full.at(0.99)))
			if s == theirs {
				same := ours.load(body, 8, full.rate(), duration)
				line = append(line, fmt.Sprintf("predict at that rate: %.0f requests/s, p50 %.2f ms, p99 %.2f ms (FastAPI's p99 over it: %.1f)",
					same.rate(), same.at(0.5), same.at(0.99), full.at(0.99)/same.at(0.99)))
			}
			if full.failed > 0 {
				t.Errorf("%s: %d requests failed", s.name, full.failed)
			}
		}
		t.Logf("%d rows a request\n%s\npredictions a CPU-second: %.1f times FastAPI's", rows, strings.Join(line, "\n"), perCPU[1]/perCPU[0])
	}
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

type measured struct {
	requests, failed int
	cpu, took        time.Duration
	latencies        []time.Duration // sorted
}

func (m *measured) rate() float64 { return float64(m.requests) / m.took.Seconds() }

// at is a quantile of the latencies, in milliseconds.
func (m *measured) at(q float64) float64 {
	return float64(m.latencies[int(q*float64(len(m.latencies)-1))].Microseconds()) / 1000
}

// load sends requests over some connections for a while: as fast as they are answered,
// or at a rate. At a rate, latency counts from when a request was due, so that a
// server that falls behind cannot hide it.
func (p *process) load(body string, connections int, rate float64, duration time.Duration) measured {
	transport := &http.Transport{MaxIdleConnsPerHost: connections}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var m measured
	var mu sync.Mutex
	var workers sync.WaitGroup
	cpu, start := p.cpu(), time.Now()
	for w := range connections {
		workers.Go(func() {
			var own []time.Duration
			failed := 0
			for n := 0; ; n++ {
				due := time.Now()
				if rate > 0 {
					due = start.Add(time.Duration(float64(n*connections+w) / rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				if due.Sub(start) > duration {
					break
				}
				if p.infer(client, body) {
					own = append(own, time.Since(due))
				} else {
					failed++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			m.latencies = append(m.latencies, own...)
			m.failed += failed
		})
	}
	workers.Wait()
	m.took, m.cpu, m.requests = time.Since(start), p.cpu()-cpu, len(m.latencies)
	slices.Sort(m.latencies)
	return m
}

func (p *process) infer(client *http.Client, body string) bool {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, p.url+"/v2/models/hundred/infer", strings.NewReader(body))
	if err != nil {
		return false
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return err == nil && response.StatusCode == http.StatusOK
}

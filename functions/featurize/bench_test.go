package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

// process starts featurize as a process and gives its address and id.
func process(b *testing.B, redis *redistest.Server) (url string, pid int) {
	b.Helper()
	port := freePort(b)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1", "FUNCTION_NAME=featurize", "LISTEN_HOST=127.0.0.1", "PORT="+strconv.Itoa(port),
		"REDIS_URL="+redis.URL, "DATABASE_URL=", "LOG_LEVEL=error", "GOMEMLIMIT=192MiB")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // that it was killed
	})
	url = "http://127.0.0.1:" + strconv.Itoa(port)
	waitFor(b, "featurize is ready", func() bool {
		resp, err := http.Get(url + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return url, cmd.Process.Pid
}

// cpuOf is the CPU time that a process has used, to a hundredth of a second.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100
}

// One request after the other, and many at a time: the time to the answer, the rate,
// and the CPU time of featurize and of Redis for a request.
func BenchmarkFeatureAPI(b *testing.B) {
	for _, clients := range []int{1, 8} {
		for _, entities := range []int{1, 100} {
			b.Run(fmt.Sprintf("clients=%d/entities=%d", clients, entities), func(b *testing.B) {
				redis := redistest.Start(b)
				redis.NeedsProcess()
				url, pid := process(b, redis)
				h := &harness{t: b, url: url}
				var list []event.Event
				var users []string
				for i := range entities {
					e := shopEvent("s"+strconv.Itoa(i), i, int64(i), int64(i))
					list, users = append(list, validated(&e)), append(users, strconv.Itoa(i))
				}
				if status, _ := h.send(list...); status != http.StatusOK {
					b.Fatalf("events were answered with %d", status)
				}
				ids := "[" + strings.Join(users, ",") + "]"
				body := []byte(`{"feature_service":"purchase_prediction","entities":{"user_id":` + ids + `,"product_id":` + ids + `}}`)
				client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
				defer client.CloseIdleConnections()
				took := make([]time.Duration, b.N)
				var next atomic.Int64
				var group sync.WaitGroup
				before, redisBefore, start := cpuOf(b, pid), cpuOf(b, redis.PID()), time.Now()
				b.ResetTimer()
				for range clients {
					group.Go(func() {
						for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
							at := time.Now()
							resp, err := client.Post(url+"/get-online-features", "application/json", bytes.NewReader(body))
							if err != nil {
								b.Error(err)
								return
							}
							_, _ = io.Copy(io.Discard, resp.Body)
							_ = resp.Body.Close()
							if took[i] = time.Since(at); resp.StatusCode != http.StatusOK {
								b.Errorf("status %d", resp.StatusCode)
							}
						}
					})
				}
				group.Wait()
				elapsed := time.Since(start)
				b.StopTimer()
				n := float64(b.N)
				slices.Sort(took)
				b.ReportMetric(n/elapsed.Seconds(), "requests/s")
				b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-us")
				b.ReportMetric(float64(took[b.N*99/100].Microseconds()), "p99-us")
				b.ReportMetric(float64((cpuOf(b, pid)-before).Microseconds())/n, "cpu-us/request")
				b.ReportMetric(float64((cpuOf(b, redis.PID())-redisBefore).Microseconds())/n, "redis-cpu-us/request")
			})
		}
	}
}

// Events in batches of a hundred, as the local engine sends them under load.
func BenchmarkFeaturize(b *testing.B) {
	redis := redistest.Start(b)
	redis.NeedsProcess()
	url, pid := process(b, redis)
	h := &harness{t: b, url: url}
	const size = 100
	n := 0
	before, redisBefore := cpuOf(b, pid), cpuOf(b, redis.PID())
	for b.Loop() {
		b.StopTimer()
		list := make([]event.Event, size)
		for i := range list {
			e := shopEvent("session "+strconv.Itoa(n%5000), n, int64(n%5000), int64(n%97))
			list[i] = validated(&e)
			n++
		}
		b.StartTimer()
		if status, _ := h.send(list...); status != http.StatusOK {
			b.Fatalf("events were answered with %d", status)
		}
	}
	b.ReportMetric(float64((cpuOf(b, pid)-before).Nanoseconds())/float64(n), "cpu-ns/event")
	b.ReportMetric(float64((cpuOf(b, redis.PID())-redisBefore).Nanoseconds())/float64(n), "redis-cpu-ns/event")
}

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// usage is what the processes of one function took at the most, one pod at a time.
type usage struct {
	memory float64 // resident, MiB
	cores  float64 // CPU seconds a second, between two looks
}

// watchUsage looks at every function's own metrics about once a second until the
// returned function is called, which gives the largest values seen, by function.
func watchUsage(t *testing.T) (stop func() map[string]usage) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	peaks := map[string]usage{}
	var watching sync.WaitGroup
	watching.Go(func() {
		type look struct {
			cpu float64
			at  time.Time
		}
		last := map[string]look{}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			for pod, function := range runningPods(t) {
				now := time.Now()
				memory, cpu, started, err := processMetrics(pod)
				if err != nil {
					continue // it has just started or is about to end
				}
				peak := peaks[function]
				peak.memory = max(peak.memory, memory)
				before, ok := last[pod]
				if !ok {
					before.at = started
				}
				peak.cores = max(peak.cores, (cpu-before.cpu)/now.Sub(before.at).Seconds())
				last[pod], peaks[function] = look{cpu, now}, peak
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() map[string]usage {
		cancel()
		watching.Wait()
		return peaks
	}
}

// runningPods gives the names of the running pods of our functions with the function's name.
func runningPods(t *testing.T) map[string]string {
	out, err := kubectl("-n", namespace, "get", "pods", "--field-selector=status.phase=Running",
		"-l", "app.kubernetes.io/part-of=millrace", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.app\.kubernetes\.io/name}{"\n"}{end}`)
	if err != nil {
		t.Errorf("listing pods: %v: %s", err, out)
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if pod, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			found[pod] = name
		}
	}
	return found
}

// processMetrics reads the memory in MiB, the CPU seconds and the start of a pod's
// function.
func processMetrics(pod string) (memory, cpu float64, started time.Time, err error) {
	out, err := kubectl("get", "--raw", "/api/v1/namespaces/"+namespace+"/pods/"+pod+":8080/proxy/metrics")
	if err != nil {
		return 0, 0, started, err
	}
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "process_resident_memory_bytes":
			memory, err = strconv.ParseFloat(value, 64)
			memory /= 1 << 20
		case "process_cpu_seconds_total":
			cpu, err = strconv.ParseFloat(value, 64)
		case "process_start_time_seconds":
			var seconds float64
			seconds, err = strconv.ParseFloat(value, 64)
			started = time.UnixMilli(int64(seconds * 1000))
		}
		if err != nil {
			return 0, 0, started, fmt.Errorf("%s: %w", name, err)
		}
	}
	if memory == 0 || started.IsZero() {
		return 0, 0, started, fmt.Errorf("%s has no process metrics", pod)
	}
	return memory, cpu, started, lines.Err()
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
)

// meterProducer is the name, among the parts, of the producer of metrics.
const meterProducer = "loadgen-datacenter"

// meterFlags are its settings: a small datacenter, quiet enough that an anomaly is one,
// with the history that detectors learn from. DATACENTER adds flags, of which the last
// counts, and DATACENTER=off leaves it out.
var meterFlags = []string{
	"-config", "production", "-servers", "20", "-services", "8", "-interval", "5s",
	"-backfill-days", "8", "-backfill-interval", "5m", "-bad", "0.002",
}

// meterProducerSpec is a simulated datacenter. It notes its progress, so that the same
// servers go on after a restart.
func (w *parts) meterProducerSpec() (supervise.Spec, bool, error) {
	own := os.Getenv("DATACENTER")
	validates := slices.ContainsFunc(w.platform.services, func(s service) bool { return s.name == "validate" })
	if w.opts.noLoad || own == "off" || !validates {
		return supervise.Spec{}, false, nil
	}
	folder := w.state.join("data", producer)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return supervise.Spec{}, false, fmt.Errorf("making the producer's folder: %w", err)
	}
	return supervise.Spec{
		Name: meterProducer, Path: filepath.Join(w.opts.bin, producer),
		Args: slices.Concat([]string{"datacenter"}, meterFlags, []string{
			"-brokers", strings.Join(w.kafka.Brokers, ","), "-resume", filepath.Join(folder, "datacenter.json"),
		}, strings.Fields(own)),
		Env: append(baseEnv(), "GOGC=50"), StopTimeout: 15 * time.Second,
	}, true, nil
}

package main

import (
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

// BenchmarkHandle judges readings of a hundred servers with models of two weeks, a
// batch a round trip to a real Redis. cpu-us/event is that of this process, the
// garbage collector's included, and not Redis's.
func BenchmarkHandle(b *testing.B) {
	for name, forest := range map[string]bool{"stl": false, "stl and forest": true} {
		b.Run(name, func(b *testing.B) { benchmarkHandle(b, forest) })
	}
}

func benchmarkHandle(b *testing.B, forest bool) {
	const servers, size = 100, 1000
	contracts, err := contract.Open("")
	if err != nil {
		b.Fatal(err)
	}
	s, err := RedisConfig{URL: redistest.Start(b).URL, Timeout: 20 * time.Second, Remember: time.Hour}.open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.close)
	to, err := sink.New("http://127.0.0.1:1")
	if err != nil {
		b.Fatal(err)
	}
	all, err := newForests(&ForestConfig{Poll: time.Second}, contracts)
	if err != nil {
		b.Fatal(err)
	}
	if forest {
		bundle, err := model.Load(b.Context(), model.Folder("kodata/forests/server_anomaly_model"))
		if err != nil {
			b.Fatal(err)
		}
		if err := all.by["server_anomaly_model"].forest.Use(bundle, "starter"); err != nil {
			b.Fatal(err)
		}
	}
	d, err := newDetector("detect", contracts, all, s, to, 2000)
	if err != nil {
		b.Fatal(err)
	}
	cfg := small(b, servers)
	cfg.AnomalyProbability = 0
	sim, err := datacenter.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	// One model a metric is enough to judge by: it is wide, so that nothing is told.
	season := make([]float32, 288)
	models := anomaly.Models{}
	for _, name := range datacenter.ServerMetrics {
		models[name] = &anomaly.Model{Trained: live, From: live.Add(-time.Hour), To: live, Points: 4032, Step: 5 * time.Minute, Season: season,
			Week: make([]float32, 168), Level: 100, Up: 1000, Down: 1000}
	}
	for i := range servers {
		var r datacenter.ServerReading
		sim.Server(i, live, &r)
		if err := s.writeModels(b.Context(), "datacenter-server", r.Server, models.Append(nil, datacenter.ServerMetrics[:])); err != nil {
			b.Fatal(err)
		}
	}
	h := &harness{t: b}
	h.contract, _ = contracts.ByTopic("datacenter-metrics")
	var r datacenter.ServerReading
	// Ever new readings, made before the clock runs.
	const batches = 40
	var list [batches][]event.Event
	for n := range list {
		for i := range size {
			sim.Server(i%servers, live.Add(time.Duration(n*size/servers+i/servers)*cfg.Interval), &r)
			list[n] = append(list[n], h.validated(r.AppendJSON(nil)))
		}
	}
	b.ReportAllocs()
	before := cpuTime()
	n := 0
	for b.Loop() {
		if n%batches == 0 && n > 0 {
			b.StopTimer()
			paused := cpuTime()
			for e := range d.cache.by {
				d.cache.by[e].state = &anomaly.State{Version: d.cache.by[e].state.Version}
			}
			before += cpuTime() - paused
			b.StartTimer()
		}
		for _, result := range d.Handle(b.Context(), list[n%batches]) {
			if result.Err != nil {
				b.Fatal(result.Err)
			}
		}
		n++
	}
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/1000/float64(n*size), "cpu-us/event")
	b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(n*size), "us/event")
}

// cpuTime is what this process has taken.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

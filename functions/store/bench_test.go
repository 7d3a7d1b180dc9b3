package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

// BenchmarkHandle writes served features, two calls at a time as the function does,
// in batches of several sizes. STORE_BENCH_ROWS is how many, 50,000 by default.
//
//	STORE_BENCH_ROWS=500000 go test -run '^$' -bench Handle -benchtime 1x ./functions/store
//
// The server does not sync to disk: what a commit waits for is missing. CPU is that
// of this process and of the server's, in microseconds a row.
func BenchmarkHandle(b *testing.B) {
	total := 50_000
	if n, err := strconv.Atoi(os.Getenv("STORE_BENCH_ROWS")); err == nil {
		total = n
	}
	rng := rand.New(rand.NewPCG(1, 1))
	all := make([]event.Event, total)
	for i := range all {
		e := shopEvent(rng)
		e.Session = fmt.Sprintf("76b918d5-b344-41fc-8632-%012d", i)
		all[i] = ready(&e, 1)
	}
	for _, size := range []int{1, 10, 100, 1000, 5000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			events := all[:min(total, 5000*size)]
			for b.Loop() {
				b.StopTimer()
				db, _ := open(b)
				s := start(b, db)
				batches := make(chan []event.Event)
				var wg sync.WaitGroup
				own, server, began := pgtest.OwnCPU(b), pgtest.ServerCPU(b), time.Now()
				b.StartTimer()
				for range 2 {
					wg.Go(func() {
						for batch := range batches {
							for _, r := range s.Handle(b.Context(), batch) {
								if status := function.Status(r.Err); status != 200 {
									b.Error(status, r.Err)
								}
							}
						}
					})
				}
				for i := 0; i < len(events); i += size {
					batches <- events[i:min(i+size, len(events))]
				}
				close(batches)
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(len(events))/time.Since(began).Seconds(), "rows/s")
				b.ReportMetric(1e6*(pgtest.OwnCPU(b)-own)/float64(len(events)), "cpu-us/row(store)")
				b.ReportMetric(1e6*(pgtest.ServerCPU(b)-server)/float64(len(events)), "cpu-us/row(pg)")
				stored := query(b, db, `SELECT count(*), pg_table_size('feature_store.streaming_features') / count(*), pg_indexes_size('feature_store.streaming_features') / count(*)
					FROM feature_store.streaming_features`)[0]
				if stored[0] != fmt.Sprint(len(events)) {
					b.Errorf("%s rows of %d", stored[0], len(events))
				}
				b.Logf("bytes a row: table %s, indexes %s", stored[1], stored[2])
				b.StartTimer()
			}
		})
	}
}

// BenchmarkReadings writes the readings of servers, by way of their contract, as
// BenchmarkHandle does: times that follow each other, as they come, and each row once,
// or two of five again.
func BenchmarkReadings(b *testing.B) {
	total := 50_000
	if n, err := strconv.Atoi(os.Getenv("STORE_BENCH_ROWS")); err == nil {
		total = n
	}
	set := contracts(b)
	sim, err := datacenter.New(datacenter.Config{Seed: 1, Servers: 100, Interval: 5 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	all := make([]event.Event, total)
	var r datacenter.ServerReading
	for i := range all {
		sim.Server(i%100, lately().Add(time.Duration(i/100)*5*time.Second), &r)
		all[i] = verdict(b, set, "datacenter-metrics", string(r.AppendJSON(nil)))
	}
	again := slices.Clone(all)
	for i := 0; i < len(all); i += 5 {
		again = append(again, all[i], all[i/2])
	}
	for _, c := range []struct {
		name   string
		size   int
		events []event.Event
	}{{"100", 100, all}, {"1000", 1000, all}, {"5000", 5000, all}, {"5000-again", 5000, again}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				db, _ := open(b)
				s := start(b, db)
				if err := s.ready(b.Context()); err != nil {
					b.Fatal(err)
				}
				batches := make(chan []event.Event)
				var wg sync.WaitGroup
				own, server, began := pgtest.OwnCPU(b), pgtest.ServerCPU(b), time.Now()
				b.StartTimer()
				for range 2 {
					wg.Go(func() {
						for batch := range batches {
							for _, r := range s.Handle(b.Context(), batch) {
								if r.Err != nil {
									b.Error(r.Err)
								}
							}
						}
					})
				}
				for i := 0; i < len(c.events); i += c.size {
					batches <- c.events[i:min(i+c.size, len(c.events))]
				}
				close(batches)
				wg.Wait()
				b.StopTimer()
				n := float64(len(c.events))
				b.ReportMetric(n/time.Since(began).Seconds(), "rows/s")
				b.ReportMetric(1e6*(pgtest.OwnCPU(b)-own)/n, "cpu-us/row(store)")
				b.ReportMetric(1e6*(pgtest.ServerCPU(b)-server)/n, "cpu-us/row(pg)")
				if stored := query(b, db, "SELECT count(*) FROM public.server_metrics")[0][0]; stored != fmt.Sprint(total) {
					b.Errorf("%s rows of %d", stored, total)
				}
				b.StartTimer()
			}
		})
	}
}

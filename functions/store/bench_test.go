package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/function"
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
				data := query(b, db, "SHOW data_directory")[0][0]
				batches := make(chan []event.Event)
				var wg sync.WaitGroup
				own, server, began := ownCPU(b), serverCPU(b, data), time.Now()
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
				b.ReportMetric(1e6*(ownCPU(b)-own)/float64(len(events)), "cpu-us/row(store)")
				b.ReportMetric(1e6*(serverCPU(b, data)-server)/float64(len(events)), "cpu-us/row(pg)")
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

func ownCPU(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// serverCPU is what the processes of the database's server have used that are alive.
func serverCPU(b *testing.B, data string) float64 {
	text, err := os.ReadFile(data + "/postmaster.pid")
	if err != nil {
		b.Log(err)
		return 0
	}
	parent, _, _ := strings.Cut(string(text), "\n")
	entries, _ := os.ReadDir("/proc")
	ticks := 0
	for _, e := range entries {
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 12 && f[1] == parent {
			user, _ := strconv.Atoi(f[11])
			system, _ := strconv.Atoi(f[12])
			ticks += user + system
		}
	}
	return float64(ticks) / 100
}

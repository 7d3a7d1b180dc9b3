package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

// BenchmarkLakeToCheckedGold brings events from objects as the lake writes them by
// default, of 10,000 lines and 12 partitions, to checked gold. Each step has a queue of
// its own, as its Trigger has. ETL_BENCH_EVENTS is how many, 100,000 by default.
//
//	ETL_BENCH_EVENTS=1000000 go test -run '^$' -bench LakeToCheckedGold -benchtime 1x ./functions/etl-step
//
// The server does not sync to disk. CPU seconds are those of this process, which
// reads and parses, and of PostgreSQL; on a busy machine they say more than the time.
func BenchmarkLakeToCheckedGold(b *testing.B) {
	total := 100_000
	if n, err := strconv.Atoi(os.Getenv("ETL_BENCH_EVENTS")); err == nil {
		total = n
	}
	w := newWorld(b)
	var objects []object
	var size int64
	const partitions, chunk = 12, 10_000
	for p := range int32(partitions) {
		r := rng(uint64(p))
		sessions := make([]shopEvent, 500)
		for first := 0; first < total/partitions; first += chunk {
			es := make([]shopEvent, min(chunk, total/partitions-first))
			for i := range es {
				es[i] = benchEvent(r, sessions, first+i)
			}
			data := lines(p, int64(first), es...)
			size += int64(len(data))
			objects = append(objects, w.put(key(p, int64(first)), data))
		}
	}
	for b.Loop() {
		_, db, steps := w.warehouse()
		// Each Trigger has a queue of its own.
		queues := map[*step]chan event.Event{}
		for _, st := range []*step{bronzeStep, silverStep, goldStep, checkStep} {
			queues[st] = make(chan event.Event, len(objects))
		}
		for i := range objects {
			// In turns over the partitions, as a lake that is being filled.
			perPartition := len(objects) / partitions
			queues[bronzeStep] <- created(objects[i%partitions*perPartition+i/partitions])
		}
		var peak atomic.Uint64
		stop := make(chan struct{})
		go func() {
			for tick := time.NewTicker(50 * time.Millisecond); ; {
				select {
				case <-tick.C:
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					peak.Store(max(peak.Load(), m.HeapInuse))
				case <-stop:
					return
				}
			}
		}()
		runtime.GC()
		began, ownBegan := time.Now(), pgtest.OwnCPU(b)
		var wg sync.WaitGroup
		done := make(chan struct{})
		finish := sync.OnceFunc(func() { close(done) })
		var left atomic.Int64
		left.Store(int64(len(objects)))
		for _, events := range queues {
			for range 16 {
				wg.Go(func() {
					for {
						var e event.Event
						select {
						case e = <-events:
						case <-done:
							return
						}
						reply, err := steps.Handle(b.Context(), e)
						if err != nil || reply == nil {
							b.Errorf("%s: reply %v, %v", e.Type(), reply, err)
							finish()
							return
						}
						if next := stepOf(reply.Type()); next != nil {
							queues[next] <- *reply
						} else if left.Add(-1) == 0 {
							finish()
						}
					}
				})
			}
		}
		wg.Wait()
		took := time.Since(began).Seconds()
		close(stop)
		b.ReportMetric(took, "s")
		b.ReportMetric(float64(total)/took, "events/s")
		b.ReportMetric(pgtest.OwnCPU(b)-ownBegan, "cpu-s(etl)")
		b.ReportMetric(pgtest.ServerCPU(b), "cpu-s(pg)")
		for _, p := range pgtest.ServerProcesses(b) {
			if p.CPU > 0.5 {
				b.Logf("%s: %.1f cpu-s", p.Title, p.CPU)
			}
		}
		b.ReportMetric(float64(peak.Load())/(1<<20), "heap-MB")
		b.ReportMetric(float64(size)/(1<<20), "lake-MB")
		if got := query(b, db, `SELECT count(*)::text FROM dwh.fact_events`); got[0] != fmt.Sprint(total/partitions*partitions) {
			b.Errorf("%s facts", got[0])
		}
		for _, line := range query(b, db, `SELECT concat_ws(' ', step, count(*), round(sum(seconds)::numeric, 2), round(max(seconds)::numeric, 2)) FROM etl.runs GROUP BY step`) {
			b.Log("step, runs, seconds, longest: ", line)
		}
	}
}

// benchEvent is the next event of one of the sessions that are open.
func benchEvent(r *rand.Rand, sessions []shopEvent, n int) shopEvent {
	s := &sessions[r.IntN(len(sessions))]
	if s.session == "" || r.IntN(8) == 0 {
		s.user = int64(r.IntN(100_000))
		s.session = fmt.Sprintf("%08x-b344-41fc-8632-%012x", r.Uint32(), r.Uint64()&0xffffffffffff)
	}
	e := *s
	product := int64(20_000 * r.Float64() * r.Float64())
	e.at = time.Date(2026, 1, 1, 0, 0, n, 0, time.UTC).Format("2006-01-02 15:04:05 UTC")
	e.kind = []string{"view", "view", "view", "view", "view", "view", "cart", "cart", "purchase", "remove_from_cart"}[r.IntN(10)]
	e.product, e.category = product, 2053013558920217191+product%500
	e.code, e.brand, e.price = "electronics.smartphone", "brand"+strconv.Itoa(int(product%300)), float64(product%1000)+0.99
	return e
}

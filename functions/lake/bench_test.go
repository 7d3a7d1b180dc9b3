package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

// verdict is a validated record of about 700 bytes, as the validate function makes it.
func verdict(n int) string {
	return fmt.Sprintf(`{"schema":{"type":"struct","fields":[{"name":"event_time","type":"string"},{"name":"event_type","type":"string"},{"name":"product_id","type":"long"},{"name":"category_id","type":"long"},{"name":"price","type":"double"}]},`+
		`"payload":{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":%d,"category_id":2053013558920217191,"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec%04d"},`+
		`"valid":"VALID","error_message":null,"error_type":null,"metadata":{"processed_at":"2025-01-07T12:00:00.000001"}}`, n, n%10000)
}

func verdictRecord(n int, partitions int32) *kgo.Record {
	r := record(int32(n)%partitions, fmt.Sprintf("%032x", n), noon.Add(time.Duration(n)*time.Millisecond), verdict(n))
	r.Headers = append(r.Headers,
		kgo.RecordHeader{Key: "content-type", Value: []byte("application/json")},
		kgo.RecordHeader{Key: "ce_time", Value: []byte("2025-01-07T12:00:00.123456Z")},
		kgo.RecordHeader{Key: "ce_partitionkey", Value: []byte("76b918d5-b344-41fc-8632-baf222ec760f")},
		kgo.RecordHeader{Key: "ce_contract", Value: []byte("behavior")},
	)
	return r
}

// verdicts makes a topic of twelve partitions with n records.
func (w *world) verdicts(n int) string {
	const partitions = 12
	topic := w.topic(partitions)
	for at := 0; at < n; {
		var batch []*kgo.Record
		for ; len(batch) < 5000 && at < n; at++ {
			batch = append(batch, verdictRecord(at, partitions))
		}
		w.produce(topic, batch...)
	}
	return topic
}

// BenchmarkDrain moves records of about 700 bytes in twelve partitions into the
// embedded S3, all on this machine, with the default layout. Kafka shares the
// process, so its CPU time is in the figures, and S3's takes a share of the CPUs.
func BenchmarkDrain(b *testing.B) {
	w := newWorld(b)
	topic := w.verdicts(b.N)
	c := config(topic, laketest.Bucket())
	c.Chunk, c.ChunkBytes, c.DedupWindow = 10_000, 32<<20, 50_000
	d := w.drainer(c)
	b.SetBytes(int64(len(verdict(1))))
	b.ResetTimer()
	w.drain(d)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkProcess is the same with lake as a process of its own with its defaults,
// from the tick to its answer; it tells the process's CPU time and largest memory.
func BenchmarkProcess(b *testing.B) {
	w := newWorld(b)
	topic := w.verdicts(b.N)
	bucket := laketest.Bucket()
	p := w.process("LAKE_GROUP="+bucket, "LAKE_ROUTES="+topic+"="+bucket)
	b.ResetTimer()
	if err := p.tick(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err == nil {
		_, peak, _ := strings.Cut(string(status), "VmHWM:")
		var kb float64
		if _, err := fmt.Sscan(peak, &kb); err == nil {
			b.ReportMetric(kb/1024, "peak-MB")
		}
	}
	p.kill()
	cpu := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	b.ReportMetric(cpu.Seconds()*1e6/float64(b.N), "CPU-s/M")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkEncode is what a record costs without Kafka and S3: its line and the
// search for its duplicate.
func BenchmarkEncode(b *testing.B) {
	records := make([]*kgo.Record, 60_000)
	for i := range records {
		records[i] = verdictRecord(i, 1)
		records[i].Offset = int64(i)
	}
	hash, cut := newHasher(seeds()), cutter{limit: 32 << 20, free: &buffers{max: 2}}
	index := newSeen(0, 0)
	b.SetBytes(int64(len(records[0].Value)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		r := records[i%len(records)]
		attrs := lake.AttrsOf(r)
		_ = index.duplicate(hash.hash(&attrs), int64(i))
		if cut.add(r, &attrs); i%10_000 == 9_999 {
			cut.free.put(cut.take())
			index.advance(int64(i-50_000), int64(i), 70_000)
		}
	}
}

// BenchmarkLines reads objects back.
func BenchmarkLines(b *testing.B) {
	var object []byte
	for i := range 10_000 {
		r := verdictRecord(i, 1)
		attrs := lake.AttrsOf(r)
		object = lake.AppendLine(object, r, &attrs)
	}
	text := string(object)
	b.SetBytes(int64(len(object)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n := 0
		for _, err := range lake.Lines("o", strings.NewReader(text)) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 10_000 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "records/s")
}

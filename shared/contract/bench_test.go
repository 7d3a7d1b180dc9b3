package contract

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func BenchmarkCheck(b *testing.B) {
	for _, c := range []struct {
		name, topic string
		records     []string
	}{
		{"clickstream", clickstream, records(1000, 1)},
		{"cdc-flat", cdc, changes(1000, 1, false)},
		{"cdc-full", cdc, changes(1000, 1, true)},
		{"server-metric", datacenter, []string{serverRow}},
		{"application-metric", datacenter, []string{applicationRow}},
	} {
		b.Run(c.name, func(b *testing.B) {
			stream := topic(b, c.topic)
			values, size := make([][]byte, len(c.records)), 0
			for i, r := range c.records {
				values[i] = []byte(r)
				size += len(r)
			}
			b.SetBytes(int64(size / len(values)))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if v := stream.Check(values[i], now); v.Body == nil {
					b.Fatal(v)
				}
				if i++; i == len(values) {
					i = 0
				}
			}
		})
	}
}

// A schema that changes with every record defeats the cache: the worst case.
func BenchmarkCheckNewSchemas(b *testing.B) {
	stream := topic(b, clickstream)
	values := make([][]byte, 64)
	for i := range values {
		values[i] = []byte(envelope(avroSchema[:len(avroSchema)-1]+`,"version":`+strings.Repeat("1", i+1)+`}`, eventRow))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		stream.Check(values[i], now)
		i = (i + 1) % len(values)
	}
}

const referenceScript = "../../infra/bench/validate_reference.py"

// reference runs the reference's algorithm on records and returns what it printed.
func reference(t testing.TB, lines []string, args ...string) []byte {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	file := filepath.Join(t.TempDir(), "records")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, append([]string{referenceScript, file}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// BenchmarkAgainstReference gives the reference's Python algorithm and Check the
// same records in the same run, and compares CPU seconds a record: times-reference,
// and against the reference with the two filters that its job splits verdicts by.
// Ours include the garbage collector's.
func BenchmarkAgainstReference(b *testing.B) {
	lines := records(20_000, 1)
	type result struct {
		Records    int     `json:"records"`
		Valid      int     `json:"valid"`
		CPUSeconds float64 `json:"cpu_seconds"`
	}
	var python, filtered result
	if err := json.Unmarshal(reference(b, lines), &python); err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(reference(b, lines, "--filters"), &filtered); err != nil {
		b.Fatal(err)
	}
	stream := topic(b, clickstream)
	values := make([][]byte, len(lines))
	for i, r := range lines {
		values[i] = []byte(r)
	}
	checked, valid := 0, 0
	start := cpu()
	for b.Loop() {
		valid = 0
		for _, value := range values {
			if stream.Check(value, time.Now()).Outcome == Valid {
				valid++
			}
		}
		checked += len(values)
	}
	ours := cpu() - start
	if valid != python.Valid || python.Records != len(lines) {
		b.Fatalf("%d valid, the reference says %d", valid, python.Valid)
	}
	perRecord := ours.Seconds() / float64(checked)
	theirs := python.CPUSeconds / float64(python.Records)
	b.ReportMetric(perRecord*1e9, "cpu-ns/record")
	b.ReportMetric(theirs*1e9, "python-cpu-ns/record")
	b.ReportMetric(theirs/perRecord, "times-reference")
	b.ReportMetric(filtered.CPUSeconds/float64(filtered.Records)/perRecord, "times-reference-with-filters")
	b.ReportMetric(0, "ns/op")
}

// cpu is the CPU time that this process has taken.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

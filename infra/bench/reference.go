package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/shared/contract"
)

type referenceFlags struct {
	count  int
	python string
}

func (f *referenceFlags) flags(fs *flag.FlagSet) {
	fs.IntVar(&f.count, "reference-records", 100_000, "records that both validators check")
	fs.StringVar(&f.python, "python", "python3", "Python to run the reference with")
}

// againstReference validates the same records with the contract's validator and
// with the reference's rules in Python, both in process and on one thread.
func (b *bench) againstReference(ctx context.Context) ([]section, error) {
	loadgen, err := b.program("loadgen")
	if err != nil {
		return nil, err
	}
	// Bad in the reference's way only: what Python's parser takes for an error of
	// its own costs it another amount.
	records := filepath.Join(b.tmp, "records.ndjson")
	file, err := os.Create(records)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // written by another process
	var failed bytes.Buffer
	cmd := exec.CommandContext(ctx, loadgen, "shop", "-stdout", "-rate", "0", "-count", strconv.Itoa(b.reference.count),
		"-bad-kinds", "price_negative", "-report", filepath.Join(b.tmp, "loadgen.json"))
	cmd.Stdout, cmd.Stderr = file, &failed
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("making records: %w\n%s", err, tail(failed.Bytes(), 5))
	}

	script := filepath.Join(b.root, "infra", "bench", "validate_reference.py")
	failed.Reset()
	cmd = exec.CommandContext(ctx, b.reference.python, script, records)
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("running the reference: %w\n%s", err, tail(failed.Bytes(), 5))
	}
	var python struct {
		Records uint64  `json:"records"`
		Valid   uint64  `json:"valid"`
		CPU     float64 `json:"cpu_seconds"`
		Version string  `json:"python"`
	}
	if err := json.Unmarshal(out, &python); err != nil {
		return nil, fmt.Errorf("reading what the reference says: %w", err)
	}

	content, err := os.ReadFile(records)
	if err != nil {
		return nil, err
	}
	contracts, err := contract.Load(contract.Embedded())
	if err != nil {
		return nil, err
	}
	stream, ok := contracts.ByTopic(rawTopic)
	if !ok {
		return nil, fmt.Errorf("there is no contract for topic %s", rawTopic)
	}
	values := bytes.Split(bytes.TrimSuffix(content, []byte("\n")), []byte("\n"))
	for _, value := range values[:min(1000, len(values))] {
		stream.Check(value, time.Now())
	}
	// Several rounds: Go is through the records too soon for the clock of the CPU
	// time. The collector's work counts, as it does in Python.
	const rounds = 5
	valid := uint64(0)
	before := ownCPU()
	for range rounds {
		valid = 0
		for _, value := range values {
			if stream.Check(value, time.Now()).Outcome == contract.Valid {
				valid++
			}
		}
	}
	spent := (ownCPU() - before).Seconds() / rounds
	if valid != python.Valid || uint64(len(values)) != python.Records {
		return nil, fmt.Errorf("the validators disagree: %d of %d valid here, %d of %d in the reference",
			valid, len(values), python.Valid, python.Records)
	}

	rate, pythonRate := float64(len(values))/spent, float64(python.Records)/python.CPU
	here := row{ID: "reference", Name: "shared/contract, in process"}
	here.add("records/CPU s", rate)
	here.add("CPU s/M records", 1e6/rate)
	here.add(colRatio, rate/pythonRate)
	there := row{Name: "the reference's rules, Python " + python.Version}
	there.add("records/CPU s", pythonRate)
	there.add("CPU s/M records", 1e6/pythonRate)
	there.add(colRatio, 1)
	return []section{{
		Title: fmt.Sprintf("Validation in process, %s records, a tenth bad", thousands(int64(len(values)))),
		Rows:  []row{here, there},
		Notes: []string{"the reference without its Kafka, Flink and second parsing, so that its number is a lower bound of its cost"},
	}}, nil
}

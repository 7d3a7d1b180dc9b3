package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/contract"
)

func fileLines(t *testing.T, path string) []string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.SplitSeq(strings.TrimSuffix(string(content), "\n"), "\n"))
}

// What is good here is VALID by the stream contracts, what is bad is INVALID.
func TestDatacenter_messagesAreWhatTheContractsSay(t *testing.T) {
	contracts, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	stream, _ := contracts.ByTopic(datacenterTopic)
	stdout, r := must(t, "datacenter", "-to", "-", "-rate", "0", "-config", "dev", "-count", "4000", "-bad", "0.2")
	verdicts := map[contract.Outcome]uint64{}
	for line := range strings.SplitSeq(strings.TrimSuffix(stdout, "\n"), "\n") {
		v := stream.Check([]byte(line), time.Now())
		verdicts[v.Outcome]++
	}
	if diff := cmp.Diff(map[contract.Outcome]uint64{contract.Valid: r.Good, contract.Invalid: r.Bad}, verdicts); diff != "" {
		t.Errorf("verdicts (-counted +given):\n%s", diff)
	}
	for _, how := range wrongs {
		if r.Kinds[how] == 0 {
			t.Errorf("nothing was %s", how)
		}
	}
}

// A CSV file has a header and a line a reading, with what the messages say, and goes on
// where it ended.
func TestDatacenter_csv(t *testing.T) {
	dir := t.TempDir()
	file, messages := filepath.Join(dir, "a.csv"), filepath.Join(dir, "a.jsonl")
	flags := []string{"datacenter", "-rate", "0", "-config", "dev", "-to"}
	must(t, append(flags, file, "-resume", filepath.Join(dir, "progress"), "-count", "24")...) // three of all eight
	must(t, append(flags, file, "-resume", filepath.Join(dir, "progress"), "-count", "40")...)
	must(t, append(flags, messages, "-count", "40")...)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := fileLines(t, messages)
	if len(rows) != len(want)+1 {
		t.Fatalf("%d rows of %d readings", len(rows)-1, len(want))
	}
	for i, row := range rows[1:] {
		var members map[string]any
		if err := json.Unmarshal([]byte(want[i]), &members); err != nil {
			t.Fatal(err)
		}
		got, said := map[string]string{}, map[string]string{}
		for c, value := range row {
			if value != "" {
				got[rows[0][c]] = value
			}
		}
		for name, v := range members {
			said[name] = fmt.Sprint(v)
		}
		if diff := cmp.Diff(said, got); diff != "" {
			t.Fatalf("row %d (-message +row):\n%s", i+1, diff)
		}
	}
	if _, _, err := loadgen(t, append(flags, file, "-bad", "0.1", "-count", "1")...); err == nil {
		t.Error("-bad was taken")
	}
}

// Each configuration runs, also those that leave one side without anomalies.
func TestDatacenter_everyConfigurationRuns(t *testing.T) {
	for _, set := range datacenter.Sets() {
		for _, name := range datacenter.Names() {
			truth := filepath.Join(t.TempDir(), "truth")
			_, r := must(t, "datacenter", "-to", "-", "-truth", truth, "-rate", "0", "-config", name, "-config-set", set, "-count", "30000")
			if r.Next != 30000 {
				t.Errorf("%s of %s: %d messages", name, set, r.Next)
			}
			if len(fileLines(t, truth)) < 2 {
				t.Errorf("%s of %s: no anomalies", name, set)
			}
		}
	}
}

// An anomaly's truth is told once, when its first reading is sent, and covers
// exactly the readings that are anomalous.
func TestDatacenter_truthIsToldOnceWithTheFirstReading(t *testing.T) {
	truth := filepath.Join(t.TempDir(), "truth")
	must(t, "datacenter", "-to", "-", "-truth", truth, "-rate", "0", "-config", "normal", "-backfill-days", "1", "-duration", "30m", "-drift", "power", "-drift-at", "10m")
	seen := map[string]bool{}
	drifts := 0
	for _, line := range fileLines(t, truth) {
		if seen[line] {
			t.Errorf("twice: %s", line)
		}
		seen[line] = true
		var v struct {
			Type  string
			Start time.Time
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		if v.Type == "drift" {
			drifts++
			if !v.Start.Equal(unpacedMonday.Add(10 * time.Minute)) {
				t.Error(line)
			}
		}
	}
	if drifts != 1 || len(seen) < 100 {
		t.Errorf("%d anomalies and drifts, %d drifts", len(seen), drifts)
	}
}

func TestDatacenter_historyComesFirstAndEndsWhereThePresentBegins(t *testing.T) {
	stdout, r := must(t, "datacenter", "-to", "-", "-rate", "0", "-servers", "1", "-services", "0", "-interval", "10", "-backfill-days", "0.5", "-backfill-interval", "300", "-duration", "5m")
	var times []time.Time
	for line := range strings.SplitSeq(strings.TrimSuffix(stdout, "\n"), "\n") {
		var v struct{ Timestamp time.Time }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		times = append(times, v.Timestamp.UTC())
	}
	var want []time.Time
	for at := unpacedMonday.Add(-12 * time.Hour); at.Before(unpacedMonday); at = at.Add(5 * time.Minute) {
		want = append(want, at)
	}
	for at := unpacedMonday; at.Before(unpacedMonday.Add(5 * time.Minute)); at = at.Add(10 * time.Second) {
		want = append(want, at)
	}
	if diff := cmp.Diff(want, times); diff != "" || r.LastEventTime != "2026-01-05T00:04:50Z" {
		t.Errorf("last %s, times (-want +got):\n%s", r.LastEventTime, diff)
	}
}

// A run that is taken up again sends what an uninterrupted one would have sent; the
// tick in which it stopped may come twice.
func TestDatacenter_resumeGoesOnWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"datacenter", "-rate", "0", "-config", "dev", "-backfill-days", "1", "-backfill-interval", "10m", "-start", "2026-02-01"}
	whole, _ := must(t, append(flags, "-to", "-", "-count", "2000")...)
	file, state := filepath.Join(dir, "lines"), filepath.Join(dir, "state")
	for _, count := range []int{500, 1300, 2000} {
		must(t, append(flags, "-to", file, "-count", fmt.Sprint(count), "-resume", state)...)
	}
	seen := map[string]bool{}
	var distinct []string
	twice := 0
	for _, line := range fileLines(t, file) {
		if seen[line] {
			twice++
			continue
		}
		seen[line] = true
		distinct = append(distinct, line)
	}
	want := slices.Collect(strings.SplitSeq(strings.TrimSuffix(whole, "\n"), "\n"))
	want = want[:min(len(want), len(distinct))]
	if diff := cmp.Diff(want, distinct); diff != "" || len(distinct) < 1980 || twice > 16 {
		t.Errorf("%d lines, %d twice (-whole +parts):\n%s", len(distinct), twice, diff)
	}
}

// What a live run missed while it was stopped is filled in the steps of history.
func TestDatacenter_resumeFillsWhatWasMissed(t *testing.T) {
	f := datacenterFlags{rate: -1, backfillInterval: seconds(5 * time.Minute)}
	live := time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	now := live.Add(3*time.Hour + 7*time.Second)
	m := &meter{flags: &f, kept: &datacenterProgress{Next: live.Add(time.Hour + 2*time.Minute).UnixNano()},
		cfg: datacenter.Config{Interval: 5 * time.Second, LiveFrom: live}}
	want := []phase{
		{from: live.Add(65 * time.Minute), until: live.Add(3*time.Hour + 5*time.Second), step: 5 * time.Minute},
		{from: live.Add(3*time.Hour + 5*time.Second), step: 5 * time.Second, paced: true},
	}
	if diff := cmp.Diff(want, m.phases(now), cmp.AllowUnexported(phase{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	m.kept.Next = now.Add(-time.Minute).Truncate(5 * time.Second).UnixNano()
	if got := m.phases(now); len(got) != 1 || !got[0].paced || got[0].from.UnixNano() != m.kept.Next {
		t.Errorf("a minute later: %+v", got)
	}
}

func TestDatacenter_kafkaHasAServersReadingsInOrderAndTheTruthBeside(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	flags := []string{"datacenter", "-rate", "0", "-config", "normal", "-count", "20000"}
	must(t, append(flags, "-brokers", cluster.ListenAddrs()[0])...)
	truth := filepath.Join(t.TempDir(), "truth")
	printed, _ := must(t, append(flags, "-to", "-", "-truth", truth)...)
	partitionOf := map[string]int32{}
	last := map[string]string{}
	var got []string
	for _, record := range records(t, cluster.ListenAddrs(), datacenterTopic) {
		got = append(got, string(record.Value))
		key := string(record.Key)
		if p, ok := partitionOf[key]; ok && p != record.Partition {
			t.Fatalf("%s is in partitions %d and %d", key, p, record.Partition)
		}
		partitionOf[key] = record.Partition
		var v struct {
			Timestamp string
			ServerID  string `json:"server_id"`
		}
		if err := json.Unmarshal(record.Value, &v); err != nil {
			t.Fatal(err)
		}
		if v.ServerID != key || v.Timestamp < last[key] {
			t.Fatalf("key %s has %s after %s", key, record.Value, last[key])
		}
		last[key] = v.Timestamp
	}
	want := slices.Sorted(strings.SplitSeq(strings.TrimSuffix(printed, "\n"), "\n"))
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-printed +in Kafka):\n%s", diff)
	}
	var told []string
	for _, record := range records(t, cluster.ListenAddrs(), datacenterTopic+truthSuffix) {
		told = append(told, string(record.Value))
		if !bytes.Contains(record.Value, append([]byte(`"entity_id":"`), record.Key...)) {
			t.Errorf("key %s of %s", record.Key, record.Value)
		}
	}
	if diff := cmp.Diff(fileLines(t, truth), told); diff != "" {
		t.Errorf("truth (-printed +in Kafka):\n%s", diff)
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/contract"
)

// Readings are in their tables once each, with what they said, whatever is killed
// between Kafka and PostgreSQL while they come, and though each comes again afterwards.
func TestReadings_areStoredOnceWhateverIsKilled(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, "MILLRACE_FUNCTIONS=validate,store")
	p.start()
	p.needDatabase()
	day := time.Now().UTC().AddDate(0, 0, -3).Format(time.DateOnly)
	flags := []string{"datacenter", "-config", "dev", "-servers", "20", "-services", "8", "-start", day, "-bad", "0.02", "-progress", "0"}
	send := func(more ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin(t), "loadgen"), append(slices.Clone(flags), more...)...)
		cmd.Stdout, cmd.Stderr = &bytes.Buffer{}, &bytes.Buffer{}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	printed := func(count string) []string {
		cmd := send("-to", "-", "-rate", "0", "-count", count)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, cmd.Stderr)
		}
		return validReadings(t, cmd.Stdout.(*bytes.Buffer).Bytes())
	}
	// 320 readings of each, and then one more.
	first, second := "8960", "8988"
	want := printed(first)
	generator := send("-brokers", p.brokers(), "-rate", "1500", "-count", first)
	stored := func() (list []string) {
		// PostgreSQL may be away.
		conn, err := pgx.Connect(running(t), p.databaseURL(databaseName))
		if err != nil {
			return []string{err.Error()}
		}
		defer func() { _ = conn.Close(running(t)) }()
		rows, err := conn.Query(running(t), `
			SELECT to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') || ' ' || server_id || ' ' || cpu_usage_percent || ' ' || power_consumption_watts FROM public.server_metrics
			UNION ALL
			SELECT to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') || ' ' || service_name || ' ' || response_time_p99_ms || ' ' || error_count FROM public.application_metrics`)
		if err != nil {
			return []string{err.Error()}
		}
		if list, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return []string{err.Error()}
		}
		slices.Sort(list)
		return list
	}
	victims := []string{"store", "postgres", "validate", "kafka"}
	rand.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	reached := 0
	for _, victim := range victims[:3] {
		eventually(t, "more readings are stored", func() bool { return len(stored()) > reached+300 || len(stored()) == len(want) },
			func() string { return fmt.Sprint(len(stored()), " of ", len(want)) })
		reached = len(stored())
		t.Logf("killing %s at %d readings", victim, reached)
		p.killParts(victim)
	}
	finish := func() {
		t.Helper()
		if err := generator.Wait(); err != nil {
			t.Fatalf("%v: %s", err, generator.Stderr)
		}
		eventually(t, "all readings are stored", func() bool { return len(stored()) >= len(want) },
			func() string { return fmt.Sprint(len(stored()), " of ", len(want)) })
		if diff := cmp.Diff(want, stored()); diff != "" {
			t.Errorf("rows (-sent +stored):\n%.2000s", diff)
		}
	}
	finish()
	// All of them again, and behind them new ones, by which they have arrived.
	want = printed(second)
	generator = send("-brokers", p.brokers(), "-rate", "0", "-count", second)
	finish()
	p.stop()
}

// validReadings are what the tables should have of printed messages.
func validReadings(t *testing.T, printed []byte) (list []string) {
	t.Helper()
	set, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	stream, _ := set.ByTopic("datacenter-metrics")
	for line := range bytes.Lines(printed) {
		if stream.Check(bytes.TrimSpace(line), time.Now()).Outcome != contract.Valid {
			continue
		}
		var v struct {
			At      string      `json:"timestamp"`
			Server  string      `json:"server_id"`
			Service string      `json:"service_name"`
			CPU     json.Number `json:"cpu_usage_percent"`
			Power   json.Number `json:"power_consumption_watts"`
			P99     json.Number `json:"response_time_p99_ms"`
			Errors  json.Number `json:"error_count"`
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		at, _, _ := strings.Cut(v.At, ".")
		if v.Service == "" {
			list = append(list, fmt.Sprint(at, " ", v.Server, " ", v.CPU, " ", v.Power))
		} else {
			list = append(list, fmt.Sprint(at, " ", v.Service, " ", v.P99, " ", v.Errors))
		}
	}
	slices.Sort(list)
	return list
}

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// A stream that nobody wrote a line of code for is validated and stored, and its
// anomalies are found: what shared/contract/README.md says of a topic of one's own.
func TestOwnTopic_needsAContractAndASource(t *testing.T) {
	t.Parallel()
	example := filepath.Join(checkout(), "shared", "contract", "example")
	p := newPlatform(t, "CONTRACTS_DIR="+filepath.Join(example, "contracts"), "TRIGGERS_DIR="+filepath.Join(example, "triggers"),
		"MILLRACE_FUNCTIONS=validate,store,detect")
	p.start()
	p.needDatabase()
	send := exec.Command(filepath.Join(bin(t), "loadgen"), "lines", "-topic", "plant.sensors", "-key", "sensor_id",
		"-file", filepath.Join(example, "readings.jsonl"), "-brokers", p.brokers())
	if out, err := send.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	db := p.database(databaseName)
	query := func(sql string) []string {
		rows, err := db.Query(t.Context(), sql)
		if err != nil {
			return []string{err.Error()}
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return []string{err.Error()}
		}
		return list
	}
	for _, c := range []struct{ what, sql, want string }{
		{"rows are stored once", `SELECT concat_ws(' ', sensor_id, to_char(measured_at AT TIME ZONE 'UTC', 'HH24:MI'), hall, temperature_celsius, coalesce(vibration_mm_s::text, '-'), door_open)
			FROM public.sensor_readings ORDER BY measured_at, sensor_id`,
			"press-1 08:00 north 61.5 2.1 f\npress-2 08:00 south 58.25 - f\npress-1 08:01 north 95.75 7.9 t\npress-1 08:02 north 97 8.2 t"},
		{"the rule finds what is too hot", `SELECT concat_ws(' ', entity_id, anomaly_type, severity) FROM public.anomalies ORDER BY 1`,
			"press-1 threshold_above_temperature_celsius critical"},
	} {
		eventually(t, c.what, func() bool { return strings.Join(query(c.sql), "\n") == c.want }, func() string {
			return cmp.Diff(strings.Split(c.want, "\n"), query(c.sql))
		})
	}
	p.stop()
}

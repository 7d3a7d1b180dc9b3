package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// tableRow is a row in the form that both the messages and the table are brought
// into.
type tableRow struct {
	Time     string  `json:"event_time"`
	Type     string  `json:"event_type"`
	Product  int64   `json:"product_id"`
	Category int64   `json:"category_id"`
	Code     *string `json:"category_code"`
	Brand    *string `json:"brand"`
	Price    float64 `json:"price"`
	User     int64   `json:"user_id"`
	Session  string  `json:"user_session"`
}

func (r tableRow) key() string { return r.Session + " " + r.Time }

// replayed are the rows that messages of the format row leave, by key.
func replayed(t *testing.T, lines string) (rows map[string]tableRow, ops map[string]int) {
	t.Helper()
	rows, ops = map[string]tableRow{}, map[string]int{}
	for line := range strings.Lines(lines) {
		var c struct {
			Op            string
			Before, After *tableRow
		}
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		ops[c.Op]++
		if c.Op == "d" {
			delete(rows, c.Before.key())
		} else {
			rows[c.After.key()] = *c.After
		}
	}
	return rows, ops
}

func stored(t *testing.T, address string) map[string]tableRow {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	result, err := conn.Query(t.Context(), `SELECT to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
		event_type, product_id, category_id, category_code, brand, price, user_id, user_session FROM public.events`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(result, pgx.RowToStructByPos[tableRow])
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]tableRow, len(list))
	for _, r := range list {
		rows[r.key()] = r
	}
	return rows
}

// The table holds what the messages of the same seed say, however often they are
// written.
func TestShop_toPostgres(t *testing.T) {
	address := pgtest.URL(t)
	t.Setenv("DATABASE_URL", address)
	flags := []string{"shop", "-rate", "0", "-count", "4000", "-seed", "5", "-cdc-updates", "0.1", "-cdc-deletes", "0.05", "-bad", "0.05"}
	lines, printed := must(t, append(flags, "-format", "row", "-stdout")...)
	want, ops := replayed(t, lines)
	if ops["c"] < 3000 || ops["u"] < 200 || ops["d"] < 100 {
		t.Fatalf("changes by op are %v, want many of each", ops)
	}
	for _, name := range []string{"price_negative", "price_zero", "unknown_type"} {
		if printed.Kinds[name] == 0 {
			t.Errorf("no message is bad as %s: %v", name, printed.Kinds)
		}
	}
	for _, try := range []string{"first", "second"} {
		_, r := must(t, append(flags, "-to", "postgres")...)
		if diff := cmp.Diff(printed.Kinds, r.Kinds); diff != "" {
			t.Errorf("%s run: kinds (-printed +written):\n%s", try, diff)
		}
		if r.Delivered != 4000 || !r.Complete {
			t.Errorf("%s run: %d changes delivered, complete %t, want all 4000", try, r.Delivered, r.Complete)
		}
		if diff := cmp.Diff(want, stored(t, address)); diff != "" {
			t.Fatalf("%s run: rows (-messages +table):\n%s", try, diff)
		}
	}
}

func TestShop_toPostgresGoesOn(t *testing.T) {
	address := pgtest.URL(t)
	t.Setenv("DATABASE_URL", address)
	flags := []string{"shop", "-rate", "0", "-seed", "6", "-bad", "0"}
	lines, _ := must(t, append(flags, "-format", "row", "-stdout", "-count", "900")...)
	want, _ := replayed(t, lines)
	resume := t.TempDir() + "/progress.json"
	for _, count := range []int{300, 900} {
		must(t, append(flags, "-to", "postgres", "-resume", resume, "-count", fmt.Sprint(count))...)
	}
	if diff := cmp.Diff(want, stored(t, address)); diff != "" {
		t.Errorf("rows (-messages +table):\n%s", diff)
	}
}

func TestShop_toPostgresTellsWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name, address string
		flags         []string
		errContains   string
	}{
		{"no address", "", nil, "-to postgres needs DATABASE_URL"},
		{"unreadable address", "postgres://%", nil, "reading the database's address"},
		{"no such database", "postgres://u@127.0.0.1:1/x", []string{"-wait", "300ms"}, "connecting to the database"},
		{"another format", "postgres://u@127.0.0.1:1/x", []string{"-format", "cdc-full"}, "-to postgres writes rows"},
		{"a kind that no column holds", "postgres://u@127.0.0.1:1/x", []string{"-bad-kinds", "wrong_type"}, "does not fit into the columns of a table"},
		{"no target", "", []string{"-to", "mysql"}, "none of kafka, postgres"},
		{"rows for Kafka", "", []string{"-to", "kafka", "-format", "row"}, "-format row is for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("DATABASE_URL", c.address)
			_, _, err := loadgen(t, append([]string{"shop", "-to", "postgres", "-count", "1"}, c.flags...)...)
			if err == nil || !strings.Contains(err.Error(), c.errContains) {
				t.Errorf("got error %v, want one with %q", err, c.errContains)
			}
		})
	}
}

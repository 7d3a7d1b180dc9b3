package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// A CSV in the format of the public clickstream files, replayed through the whole
// path, gives what is counted in the file itself, by other code than any of the path.
// REPLAY_CSV names a real file to take instead of a generated one.
func TestReplayedFileGivesItsOwnCountsInGold(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	p.needDatabase()
	file := os.Getenv("REPLAY_CSV")
	if file == "" {
		file = oddFile(t, 15_000)
	}
	want := countFile(t, file)
	cmd := exec.Command(filepath.Join(bin(t), "loadgen"), "replay", "-csv", file, "-brokers", p.brokers(), "-drain", "2m",
		"-report", filepath.Join(t.TempDir(), "report.json"))
	cmd.Env = cleanEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("replaying: %v\n%s", err, out)
	}
	conn := p.database(databaseName)
	facts := func() (n int) {
		if err := conn.QueryRow(running(t), `SELECT count(*) FROM dwh.fact_events`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "all events of the file are facts", func() bool { return facts() >= want.Facts },
		func() string { return fmt.Sprintf("%d facts, want %d", facts(), want.Facts) })
	if diff := cmp.Diff(want, countGold(t, conn)); diff != "" {
		t.Errorf("gold (-file +gold):\n%s", diff)
	}
	p.stop()
}

// counts are what a file and gold must agree on.
type counts struct {
	Facts    int
	ByType   map[string]int
	Users    int
	Products int
	Sessions int
	// Revenue is the sum of the purchases' prices, in its shortest form.
	Revenue string
	// PerSession is the number of distinct events of each session.
	PerSession map[string]int
}

// oddFile has the load generator write a file, and adds what real files have, and
// what no file should.
func oddFile(t *testing.T, n int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "events.csv")
	out, err := exec.Command(filepath.Join(bin(t), "loadgen"), "shop", "-count", strconv.Itoa(n), "-seed", "11", "-to-csv", file).CombinedOutput()
	if err != nil {
		t.Fatalf("writing a file: %v\n%s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	const session = "76b918d5-b344-41fc-8632-baf222ec760f"
	row := func(at, kind, product, rest, price, user, session string) string {
		return strings.Join([]string{at, kind, product, "2053013558920217191", rest, price, user, session}, ",")
	}
	buy := row("2019-10-01 02:30:12 UTC", "purchase", "1306133", "computers.notebook,xiaomi", "1029.37", "512900744", session)
	odd := []string{
		buy,
		buy, // once more: one event
		row("2019-10-01 02:30:12 UTC", "purchase", "1306133", "computers.notebook,xiaomi", "5.00", "512900744", session), // the same event, told otherwise later
		row("2019-10-01 02:30:12 UTC", "view", "1306133", "computers.notebook,xiaomi", "1029.37", "512900744", session),  // another of the same second
		row("2019-10-01 02:30:11 UTC", "cart", "1306133", "computers.notebook,xiaomi", "1029.37", "512900744", session),  // late
		row("2019-10-01 02:31:00 UTC", "purchase", "17", ",", "0.1", "512900744", session),                               // neither category nor brand
		row("2019-10-01 02:31:01 UTC", "purchase", "18", "kids,\"a \"\"b\"\", c\"", "0.2", "512900744", session),         // quotes and a comma
		row("2019-10-01 02:31:02 UTC", "purchase", "19", "a.b.c.d,größe", "58.41", "512900744", session),                 // a price that no float32 holds
		row("2019-10-01 02:31:03 UTC", "purchase", "20", "kids,x", "0.00", "512900744", session),                         // no valid price
		row("2019-10-01 02:31:04 UTC", "purchase", "21", "kids,x", "-100", "512900744", session),                         // nor this
		row("2019-10-01 02:31:05 UTC", "remove_from_cart", "22", "kids,x", "3", "9007199254740993", session),             // an id that no float64 holds
		row("2019-10-01 02:31:06 UTC", "wishlist", "23", "kids,x", "3", "512900744", session),                            // no type of event
		row("2019-10-01T02:31:07", "view", "24", "kids,x", "3", "512900744", session),                                    // no time
		row("2019-10-01 02:31:08 UTC", "view", "25.5", "kids,x", "3", "512900744", session),                              // no product
		row("2019-10-01 02:31:09 UTC", "view", "26", "kids,x", "3", "512900744", ""),                                     // no session
		row("2019-10-01 02:31:10 UTC", "view", "27", "kids", "3", "512900744", session),                                  // a column short
		"not a line of this file at all",
	}
	// In the middle of the file.
	half := len(lines) / 2
	lines = append(lines[:half:half], append(odd, lines[half:]...)...)
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// countFile counts in a file. What is an event, and which of them are one, follows
// the contract: all nine columns, a price above 0, the natural key.
func countFile(t *testing.T, file string) counts {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := counts{ByType: map[string]int{}, PerSession: map[string]int{}}
	users, products, seen := map[string]bool{}, map[string]bool{}, map[string]bool{}
	revenue := new(big.Rat)
	for line := range bytes.Lines(text) {
		f, err := csv.NewReader(bytes.NewReader(line)).Read()
		if errors.Is(err, io.EOF) || err != nil || len(f) != 9 || f[0] == "event_time" {
			continue
		}
		at, kind, product, user, session := f[0], f[1], f[2], f[7], f[8]
		if _, err := time.Parse("2006-01-02 15:04:05 UTC", at); err != nil {
			continue
		}
		if _, err := strconv.ParseInt(product, 10, 64); err != nil {
			continue
		}
		price, ok := new(big.Rat).SetString(f[6])
		known := map[string]bool{"view": true, "cart": true, "remove_from_cart": true, "purchase": true}
		if !ok || price.Sign() <= 0 || !known[kind] || session == "" {
			continue
		}
		event := strings.Join([]string{product, at, user, kind, session}, "|")
		if seen[event] {
			continue
		}
		seen[event] = true
		c.Facts++
		c.ByType[kind]++
		c.PerSession[session]++
		users[user], products[product] = true, true
		if kind == "purchase" {
			revenue.Add(revenue, price)
		}
	}
	c.Users, c.Products, c.Sessions, c.Revenue = len(users), len(products), len(c.PerSession), shortest(revenue.FloatString(6))
	return c
}

func shortest(decimal string) string { return strings.TrimSuffix(strings.TrimRight(decimal, "0"), ".") }

// countGold asks the same of the facts, and of the dimensions and views, which must
// say no other.
func countGold(t *testing.T, conn *pgx.Conn) counts {
	t.Helper()
	c := counts{ByType: groups(t, conn, `SELECT event_type, count(*) FROM dwh.fact_events GROUP BY 1`),
		PerSession: groups(t, conn, `SELECT user_session, sum(event_count) FROM dwh.vw_user_session_summary GROUP BY 1`)}
	var perSession, perCategory, facts string
	err := conn.QueryRow(running(t), `SELECT (SELECT count(*) FROM dwh.fact_events), (SELECT count(*) FROM dwh.dim_user), (SELECT count(*) FROM dwh.dim_product),
			(SELECT count(DISTINCT user_session) FROM dwh.fact_events),
			(SELECT sum(price::numeric) FROM dwh.fact_events WHERE event_type = 'purchase')::text,
			(SELECT sum(revenue) FROM dwh.vw_user_session_summary)::text, (SELECT sum(revenue) FROM dwh.vw_category_performance)::text`).
		Scan(&c.Facts, &c.Users, &c.Products, &c.Sessions, &facts, &perSession, &perCategory)
	if err != nil {
		t.Fatal(err)
	}
	c.Revenue = shortest(facts)
	if perSession != facts || perCategory != facts {
		t.Errorf("revenue by the facts %s, by sessions %s, by categories %s", facts, perSession, perCategory)
	}
	return c
}

func groups(t *testing.T, conn *pgx.Conn, sql string) map[string]int {
	t.Helper()
	rows, err := conn.Query(running(t), sql)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]int{}
	var name string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { m[name] = n; return nil }); err != nil {
		t.Fatal(err)
	}
	return m
}

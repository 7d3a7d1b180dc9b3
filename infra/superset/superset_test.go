// Package superset_test imports the dashboards into a real Superset, in front of a
// warehouse that the platform itself has filled, and asks for the data of every chart.
package superset_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/testkit/platform"
)

// interests is SQL for what became of each product in each session.
const interests = `WITH i AS (SELECT user_session, product_id, max(category_id) AS category_id, min(event_timestamp)::date AS day,
	bool_or(event_type IN ('cart', 'purchase'))::int AS cart, bool_or(event_type = 'purchase')::int AS bought,
	(bool_or(event_type = 'cart') AND NOT bool_or(event_type = 'purchase'))::int AS abandoned,
	extract(epoch FROM min(event_timestamp) FILTER (WHERE event_type = 'purchase') - min(event_timestamp)) / 60 AS minutes
	FROM dwh.fact_events GROUP BY 1, 2) `

// charts are what each chart has to show: the sum of one of its columns, of all but the
// axis where none is named, and its number of rows. The SQL is of the facts, not of the
// views that Superset reads.
var charts = map[string]struct{ column, sql string }{
	"Revenue":                      {"", sales + `sum(price), 1 FROM s`},
	"Orders":                       {"", sales + `count(DISTINCT user_session), 1 FROM s`},
	"Buyers":                       {"", sales + `count(DISTINCT user_id), 1 FROM s`},
	"Value of an order":            {"", sales + `sum(price) / count(DISTINCT user_session), 1 FROM s`},
	"Revenue by day and category":  {"", sales + `sum(price), count(DISTINCT event_date) FROM s`},
	"Revenue by weekday and hour":  {"revenue", sales + `sum(price), count(DISTINCT (extract(dow FROM event_date), event_hour)) FROM s`},
	"Brands":                       {"revenue", sales + `sum(price), count(DISTINCT coalesce(brand, 'unknown')) FROM s`},
	"Revenue by price tier":        {"revenue", sales + `sum(price), count(DISTINCT silver.price_tier(price)) FROM s`},
	"From looking to buying":       {"interests", interests + `SELECT sum(1 + cart + bought), 3 FROM i`},
	"Sessions by step":             {"sessions", interests + `SELECT count(DISTINCT user_session) + count(DISTINCT user_session) FILTER (WHERE cart = 1) + count(DISTINCT user_session) FILTER (WHERE bought = 1), 3 FROM i`},
	"Looked at to bought":          {"", interests + `SELECT avg(bought), 1 FROM i`},
	"Cart to bought":               {"", interests + `SELECT sum(bought)::float8 / sum(cart), 1 FROM i`},
	"Left in the cart":             {"", interests + `SELECT sum(abandoned)::float8 / sum(cart), 1 FROM i`},
	"Minutes to buy":               {"", interests + `SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY minutes), 1 FROM i`},
	"Conversion by day":            {"to_cart", interests + `SELECT sum(n), count(*) FROM (SELECT avg(cart) AS n FROM i GROUP BY day) d`},
	"Conversion by category":       {"interests", interests + `SELECT count(*), count(DISTINCT (category_l1, category_l2)) FROM i JOIN dwh.dim_category USING (category_id)`},
	"Revenue by category":          {"revenue", `SELECT sum(price) FILTER (WHERE event_type = 'purchase'), count(DISTINCT (category_l1, category_l2)) FROM dwh.fact_events JOIN dwh.dim_category USING (category_id)`},
	"Categories":                   {"views", `SELECT count(*) FILTER (WHERE event_type = 'view'), count(DISTINCT (category_l1, category_l2, category_l3)) FROM dwh.fact_events JOIN dwh.dim_category USING (category_id)`},
	"Views by day":                 {"", `SELECT count(*), count(DISTINCT event_date) FROM dwh.fact_events WHERE event_type = 'view'`},
	"Revenue of 1,000 views":       {"", `SELECT sum(n), count(*) FROM (SELECT 1000 * coalesce(sum(price) FILTER (WHERE event_type = 'purchase'), 0) / count(*) FILTER (WHERE event_type = 'view') AS n FROM dwh.fact_events JOIN dwh.dim_category USING (category_id) GROUP BY category_l1) c`},
	"Users and prices by category": {"users", `SELECT sum(n), count(*) FROM (SELECT count(DISTINCT user_id) AS n FROM dwh.fact_events JOIN dwh.dim_category USING (category_id) GROUP BY category_l1, category_l2, category_l3) c`},
}

const sales = `WITH s AS (SELECT * FROM dwh.fact_events WHERE event_type = 'purchase') SELECT `

// axes are columns that are no numbers to add up.
var axes = map[string]bool{"event_date": true, "event_hour": true, "category_l1": true}

// TestDashboards imports the dashboards as anybody would, by a user of the database who
// may read gold and nothing else. PICTURES is a folder for pictures of them.
func TestDashboards(t *testing.T) {
	venv, programs := os.Getenv("TEST_SUPERSET"), os.Getenv("TEST_PROGRAMS")
	if venv == "" || programs == "" {
		t.Skip("TEST_SUPERSET and TEST_PROGRAMS are not set: `make test-superset` sets them")
	}
	conn, reader := fillGold(t, programs)
	s := startSuperset(t, venv, reader)
	var list struct {
		Result []struct {
			ID   int
			Name string `json:"slice_name"`
		}
	}
	s.get(t, "/api/v1/chart/?q=(page_size:100)", &list)
	if len(list.Result) != len(charts) {
		t.Errorf("%d charts were imported, want %d", len(list.Result), len(charts))
	}
	for _, c := range list.Result {
		want, ok := charts[c.Name]
		if !ok {
			t.Errorf("chart %q is not known here", c.Name)
			continue
		}
		var sum, rows float64
		if err := conn.QueryRow(t.Context(), "SELECT a::float8, b::float8 FROM ("+want.sql+") x (a, b)").Scan(&sum, &rows); err != nil {
			t.Fatalf("%s: %v", want.sql, err)
		}
		gotSum, gotRows := s.data(t, c.ID, want.column)
		if math.Abs(gotSum-sum) > 1e-6*math.Abs(sum) || gotRows != int(rows) || rows == 0 || sum == 0 {
			t.Errorf("%s: sum %v in %d rows, the facts say %v in %v", c.Name, gotSum, gotRows, sum, rows)
			continue
		}
		t.Logf("%s: sum %.6g in %d rows", c.Name, gotSum, gotRows)
	}
	var dashboards struct {
		Result []struct{ Slug string }
	}
	s.get(t, "/api/v1/dashboard/?q=(page_size:100)", &dashboards)
	if len(dashboards.Result) != 3 {
		t.Errorf("dashboards %v, want 3", dashboards.Result)
	}
	if folder := os.Getenv("PICTURES"); folder != "" {
		for _, d := range dashboards.Result {
			s.picture(t, d.Slug, filepath.Join(folder, d.Slug+".png"))
		}
	}
}

// fillGold runs the platform's way to gold, sends it two weeks of a small shop, a few of
// the messages bad, and gives the warehouse to ask, and its address for a reader.
func fillGold(t *testing.T, programs string) (conn *pgx.Conn, reader string) {
	t.Helper()
	p := platform.Start(t, platform.Options{Programs: programs, Root: "../..", Flags: []string{"--functions", "validate,lake,ingest,etl-step", "--no-load"}})
	load := exec.CommandContext(t.Context(), filepath.Join(programs, "loadgen"), "shop", "-brokers", p.Setting(t, "KAFKA_BROKERS"), "-rate", "0", "-count", "20000",
		"-density", "0.0165", "-daily", "-start", "2026-01-05", "-products", "400", "-users", "2000", "-seed", "7", "-bad", "0.05")
	report, err := load.Output()
	if err != nil {
		t.Fatalf("sending events: %v", err)
	}
	var sent struct{ Good int }
	if err := json.Unmarshal(report, &sent); err != nil {
		t.Fatal(err)
	}
	address := p.Setting(t, "DATABASE_URL")
	platform.Await(t, "the warehouse", func() error {
		conn, err = pgx.Connect(t.Context(), address)
		return err
	})
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	platform.Await(t, "all of it in gold", func() error {
		var facts, open int
		err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM dwh.fact_events), (SELECT count(*) FROM etl.loads WHERE stage <> 'checked')`).Scan(&facts, &open)
		if err == nil && (facts != sent.Good || open > 0) {
			err = fmt.Errorf("%d facts of %d, %d loads under way", facts, sent.Good, open)
		}
		return err
	})
	readme, err := os.ReadFile("../../shared/warehouse/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, grants, _ := strings.Cut(string(readme), "```sql\n")
	grants, _, _ = strings.Cut(grants, "```")
	const password = `it's /@:%` // all that an address or a YAML file could stumble over
	if _, err := conn.Exec(t.Context(), strings.Replace(grants, "'...'", "'"+strings.ReplaceAll(password, "'", "''")+"'", 1)); err != nil {
		t.Fatalf("the README's grants: %v", err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("bi", password)
	return conn, u.String()
}

type superset struct{ address, token string }

// startSuperset runs `up`. Pages are open to everybody, so that pictures can be taken.
func startSuperset(t *testing.T, venv, warehouse string) *superset {
	t.Helper()
	home, port := t.TempDir(), platform.FreePorts(t, 1)
	config := filepath.Join(home, "config.py")
	if err := os.WriteFile(config, []byte("from superset_config import *\nAUTH_ROLE_PUBLIC = 'Admin'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "Superset", []string{"DATABASE_URL=" + warehouse, "SUPERSET_VENV=" + venv, "SUPERSET_HOME=" + home,
		"SUPERSET_PORT=" + strconv.Itoa(port), "SUPERSET_CONFIG_PATH=" + config}, "./up")
	s := &superset{address: fmt.Sprintf("http://127.0.0.1:%d", port)}
	platform.Await(t, "Superset", func() error {
		password, err := os.ReadFile(filepath.Join(home, "password"))
		if err != nil {
			return err
		}
		body, err := json.Marshal(map[string]any{"username": "admin", "password": strings.TrimSpace(string(password)), "provider": "db"})
		if err != nil {
			return err
		}
		var answer struct {
			Token string `json:"access_token"`
		}
		err = s.ask(t.Context(), http.MethodPost, "/api/v1/security/login", body, &answer)
		s.token = answer.Token
		return err
	})
	return s
}

func (s *superset) get(t *testing.T, path string, answer any) {
	t.Helper()
	if err := s.ask(t.Context(), http.MethodGet, path, nil, answer); err != nil {
		t.Fatal(err)
	}
}

func (s *superset) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %.1000s", path, resp.Status, text.String())
	}
	return json.Unmarshal(text.Bytes(), answer)
}

// data has Superset run a chart's query, and gives the sum of a column and the rows.
func (s *superset) data(t *testing.T, id int, column string) (sum float64, rows int) {
	t.Helper()
	var answer struct {
		Result []struct {
			Error *string
			Data  []map[string]any
		}
	}
	s.get(t, fmt.Sprintf("/api/v1/chart/%d/data/?force=true", id), &answer)
	for _, r := range answer.Result {
		if r.Error != nil {
			t.Errorf("chart %d: %s", id, *r.Error)
		}
		rows += len(r.Data)
		for _, row := range r.Data {
			for name, value := range row {
				if n, ok := value.(float64); ok && (name == column || column == "" && !axes[name]) {
					sum += n
				}
			}
		}
	}
	return sum, rows
}

// picture takes one of a dashboard; without a Chromium it says so.
func (s *superset) picture(t *testing.T, slug, file string) {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Logf("no picture of %s: %v", slug, err)
		return
	}
	cmd := exec.CommandContext(t.Context(), program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1300",
		"--user-data-dir="+t.TempDir(), "--virtual-time-budget=90000", "--screenshot="+file, s.address+"/superset/dashboard/"+slug+"/?standalone=2")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("taking a picture of %s: %v\n%s", slug, err, out)
	}
}

// run starts a program that is ended with the test, whose output is shown if that fails.
func run(t *testing.T, what string, env []string, program string, args ...string) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	// The script runs one program after another.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", what, err)
	}
	t.Cleanup(func() {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() || err != nil {
			text, _ := os.ReadFile(out.Name())
			t.Logf("output of %s:\n%s", what, text)
		}
	})
}

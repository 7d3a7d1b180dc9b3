// Package grafana_test runs the queries of every panel of the dashboards.
package grafana_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/infra/grafana"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func load(t *testing.T) []grafana.Dashboard {
	t.Helper()
	all, err := grafana.Dashboards()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDashboards(t *testing.T) {
	text, err := os.ReadFile("provisioning/datasources/millrace.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var provisioned struct{ Datasources []grafana.Source }
	if err := yaml.Unmarshal(text, &provisioned); err != nil {
		t.Fatal(err)
	}
	known := map[grafana.Source]bool{}
	for _, s := range provisioned.Datasources {
		known[s] = true
	}
	var uids []string
	for _, d := range load(t) {
		uids = append(uids, d.UID)
		if len(d.Panels) == 0 {
			t.Errorf("%s has no panels", d.UID)
		}
		for _, p := range d.Panels {
			if len(p.Targets) == 0 && p.Type != "text" {
				t.Errorf("%s, %s: no query", d.UID, p.Title)
			}
			for _, q := range p.Targets {
				if !known[q.Datasource] || q.Datasource != p.Datasource {
					t.Errorf("%s, %s: data source %v of panel and %v of query are not provisioned alike", d.UID, p.Title, p.Datasource, q.Datasource)
				}
				if q.RawSQL == "" && q.Expr == "" {
					t.Errorf("%s, %s: empty query", d.UID, p.Title)
				}
			}
		}
	}
	// Links and bookmarks name them.
	want := []string{"data-quality", "datacenter-overview", "learning", "pipeline", "production-monitoring", "serving"}
	if diff := cmp.Diff(want, uids); diff != "" {
		t.Errorf("uids (-want +got):\n%s", diff)
	}
}

// The queries fit today's tables.
func TestQueriesOnEmptyTables(t *testing.T) {
	db, err := warehouse.Config{URL: pgtest.URL(t), MaxConns: 2}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range load(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if q.RawSQL == "" {
					continue
				}
				if _, err := rows(t.Context(), db, expand(q.RawSQL, "srv-001", "cpu_usage_percent"), q.Format); err != nil {
					t.Errorf("%s, %s: %v", d.UID, p.Title, err)
				}
			}
		}
		for _, v := range d.Templating.List {
			if _, err := rows(t.Context(), db, v.Query, "table"); err != nil {
				t.Errorf("%s, variable %s: %v", d.UID, v.Name, err)
			}
		}
	}
}

// Prometheus's own tool reads the queries of metrics.
func TestExpressions(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool: install Prometheus")
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	type group struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	}
	g := group{Name: "panels"}
	for _, d := range load(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if q.Expr != "" {
					g.Rules = append(g.Rules, rule{fmt.Sprintf("panel:%d", len(g.Rules)), q.Expr})
				}
			}
		}
	}
	text, err := yaml.Marshal(map[string][]group{"groups": {g}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPanelsGiveRows asks a running platform: PANELS_DATABASE_URL is its warehouse,
// PANELS_PROMETHEUS_URL a Prometheus that scrapes it.
func TestPanelsGiveRows(t *testing.T) {
	address, prometheus := os.Getenv("PANELS_DATABASE_URL"), os.Getenv("PANELS_PROMETHEUS_URL")
	if address == "" {
		t.Skip("PANELS_DATABASE_URL is not set: `make test-console` sets it")
	}
	db, err := warehouse.Config{URL: address, MaxConns: 2}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, d := range load(t) {
		for _, p := range d.Panels {
			if p.Type == "text" {
				continue
			}
			n := 0
			for _, q := range p.Targets {
				var found int
				var err error
				switch {
				case q.RawSQL != "":
					found, err = rows(t.Context(), db, expand(q.RawSQL, "srv-001", "cpu_usage_percent"), q.Format)
				case prometheus != "":
					found, err = samples(t.Context(), prometheus, q.Expr)
				default:
					found = 1 // nobody to ask
				}
				if err != nil {
					t.Errorf("%s, %s: %v", d.UID, p.Title, err)
				}
				n += found
			}
			t.Logf("%-22s %-50s %d", d.UID, p.Title, n)
			if n == 0 && !grafana.MayBeEmpty[p.Title] {
				t.Errorf("%s, %s: no rows", d.UID, p.Title)
			}
		}
	}
}

// rows runs a query as Grafana would and counts its rows. Those of a time series need a
// column of times.
func rows(ctx context.Context, db *warehouse.DB, sql, format string) (int, error) {
	found, err := db.Query(ctx, sql)
	if err != nil {
		return 0, err
	}
	timed := false
	for _, f := range found.FieldDescriptions() {
		timed = timed || f.Name == "time"
	}
	if format == "time_series" && !timed {
		found.Close()
		return 0, fmt.Errorf("no column \"time\" in %s", sql)
	}
	list, err := pgx.CollectRows(found, pgx.RowToMap)
	if err != nil {
		return 0, fmt.Errorf("%w in %s", err, sql)
	}
	for _, row := range list {
		for _, v := range row {
			if v != nil {
				return len(list), nil
			}
		}
	}
	return 0, nil // one row of nulls is what an aggregate gives of nothing
}

func samples(ctx context.Context, prometheus, expr string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, prometheus+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("%s: %w in %s", resp.Status, err, expr)
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("%s: %s in %s", resp.Status, answer.Error, expr)
	}
	return len(answer.Data.Result), nil
}

// macros are Grafana's, for PostgreSQL.
var (
	groupAlias = regexp.MustCompile(`\$__timeGroupAlias\(([^,()]+), ([^()]+)\)`)
	group      = regexp.MustCompile(`\$__timeGroup\(([^,()]+), ([^()]+)\)`)
	filter     = regexp.MustCompile(`\$__timeFilter\(([^()]+)\)`)
)

// expand does what Grafana does with a query, for the last 15 minutes.
func expand(sql, entity, metric string) string {
	to := time.Now().UTC()
	from := to.Add(-15 * time.Minute)
	at := func(t time.Time) string { return "'" + t.Format(time.RFC3339) + "'" }
	const bucket = `floor(extract(epoch from $1) / 10) * 10`
	sql = groupAlias.ReplaceAllString(sql, strings.ReplaceAll(bucket, "$1", "${1}")+` AS "time"`)
	sql = group.ReplaceAllString(sql, strings.ReplaceAll(bucket, "$1", "${1}"))
	sql = filter.ReplaceAllString(sql, "${1} BETWEEN "+at(from)+" AND "+at(to))
	return strings.NewReplacer("$__timeFrom()", at(from), "$__timeTo()", at(to), "${entity}", entity, "${metric}", metric).Replace(sql)
}

package warehouse

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

var update = flag.Bool("update", false, "write the tables of README.md anew")

// The README's tables of gold are the comments in the database, and nothing in gold
// that people query is without one.
func TestReadmeSaysWhatGoldHas(t *testing.T) {
	db := open(t, fresh(t))
	rows, err := db.Query(t.Context(), `
		SELECT c.relname, c.relkind = 'v', coalesce(obj_description(c.oid, 'pg_class'), ''), a.attname,
			format_type(a.atttypid, NULL), coalesce(col_description(c.oid, a.attnum), '')
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = 'dwh'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
		ORDER BY c.relkind = 'v', c.relname, a.attnum`)
	if err != nil {
		t.Fatal(err)
	}
	type column struct {
		Relation string
		View     bool
		Is       string
		Name     string
		Type     string
		Meaning  string
	}
	columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	if err != nil {
		t.Fatal(err)
	}
	var summary, details strings.Builder
	summary.WriteString("| in schema dwh | what |\n| --- | --- |\n")
	last := ""
	for _, c := range columns {
		if c.Is == "" {
			t.Errorf("dwh.%s has no comment", c.Relation)
		}
		if c.View && c.Meaning == "" {
			t.Errorf("dwh.%s.%s has no comment", c.Relation, c.Name)
		}
		if c.Relation != last {
			fmt.Fprintf(&summary, "| `%s` | %s |\n", c.Relation, c.Is)
			if c.View {
				fmt.Fprintf(&details, "\n### %s\n\n%s.\n\n| column | type | what |\n| --- | --- | --- |\n", c.Relation, c.Is)
			}
		}
		last = c.Relation
		if c.View {
			fmt.Fprintf(&details, "| %s | %s | %s |\n", c.Name, c.Type, strings.ReplaceAll(c.Meaning, "|", `\|`))
		}
	}
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- gold, from the comments in migrations/ -->\n", "<!-- end of gold -->\n"
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md has no %q ... %q", begin, end)
	}
	want := head + begin + summary.String() + details.String() + end + tail
	if *update {
		if err := os.WriteFile("README.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("README.md is out of date, `go test ./shared/warehouse -run Readme -update` writes it (-want +got):\n%s", diff)
	}
}

// A session that looks, hesitates, buys without a cart, and one that abandons: the views
// count each once at each step, and agree with each other about the money.
func TestViewsOfSalesAndTheFunnel(t *testing.T) {
	db := open(t, fresh(t))
	if _, err := db.Exec(t.Context(), `
		INSERT INTO dwh.dim_user SELECT u, '2026-01-03', '2026-01-04' FROM generate_series(1, 2) u;
		INSERT INTO dwh.dim_product (product_id, brand, price, price_tier, first_seen, last_seen, price_by)
			SELECT p, CASE WHEN p = 1 THEN 'bosch' END, 10, 'low', '2026-01-03', '2026-01-04', '' FROM generate_series(1, 3) p;
		INSERT INTO dwh.dim_category (category_id, category_code, category_l1, category_l2, category_l3, first_seen, last_seen)
			VALUES (7, 'appliances.kitchen.hood', 'appliances', 'kitchen', 'hood', '2026-01-03', '2026-01-04'), (8, NULL, NULL, NULL, NULL, '2026-01-03', '2026-01-04');
		INSERT INTO dwh.dim_date VALUES ('2026-01-03', 2026, 1, 1, 3, 1, 6, 'Saturday', true), ('2026-01-04', 2026, 1, 1, 4, 1, 0, 'Sunday', true)`); err != nil {
		t.Fatal(err)
	}
	for i, e := range []struct {
		kind, session, at string
		product, category int
		price             float64
	}{
		{"view", "a", "2026-01-03 23:50:00", 1, 7, 60}, {"cart", "a", "2026-01-03 23:55:00", 1, 7, 60},
		{"remove_from_cart", "a", "2026-01-03 23:56:00", 1, 7, 60}, {"purchase", "a", "2026-01-04 00:05:00", 1, 7, 59.99},
		{"purchase", "a", "2026-01-04 00:06:00", 1, 7, 59.99},
		{"purchase", "a", "2026-01-04 00:07:00", 2, 8, 0.01}, // never looked at, never in the cart
		{"view", "b", "2026-01-04 10:00:00", 3, 7, 1500}, {"cart", "b", "2026-01-04 10:01:00", 3, 7, 1500},
		{"view", "b", "2026-01-04 10:02:00", 1, 7, 60},
	} {
		_, err := db.Exec(t.Context(), `INSERT INTO dwh.fact_events
			SELECT $1::int, $1::int, 0, CASE $4 WHEN 'a' THEN 1 ELSE 2 END, $2::int, $5::int, $6::float8, $7::timestamp, $7::timestamp::date,
				extract(hour FROM $7::timestamp), 1, 1, $3, int8send($1::int), $4, NULL, NULL`,
			i, e.product, e.kind, e.session, e.category, e.price, e.at)
		if err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string][]string{
		`SELECT concat_ws(' ', event_date, brand, category_l1, price_tier, revenue, is_weekend) FROM dwh.vw_sales ORDER BY sold_at`: {
			"2026-01-04 bosch appliances medium 59.99 t", "2026-01-04 bosch appliances medium 59.99 t", "2026-01-04 unknown unknown low 0.01 t",
		},
		`SELECT concat_ws(' ', user_session, product_id, event_date, views, carts, removals, purchases, revenue, reached_cart, reached_purchase, abandoned, round(minutes_to_purchase))
			FROM dwh.vw_product_interest ORDER BY user_session, product_id`: {
			"a 1 2026-01-03 1 1 1 2 119.98 t t f 15", "a 2 2026-01-04 0 0 0 1 0.01 t t f 0",
			"b 1 2026-01-04 1 0 0 0 0 f f f", "b 3 2026-01-04 1 1 0 0 0 t f t",
		},
		`SELECT concat_ws(' ', step_number, step, count(*), count(DISTINCT user_session)) FROM dwh.vw_funnel GROUP BY step_number, step ORDER BY 1`: {
			"1 looked at 4 2", "2 put into the cart 3 2", "3 bought 2 1",
		},
		`SELECT concat_ws(' ', event_date, category_l1, events, views, carts, removals, purchases, users, sessions, products, revenue) FROM dwh.vw_category_daily ORDER BY 1`: {
			"2026-01-03 appliances 3 1 1 1 0 1 1 1 0", "2026-01-04 appliances 5 2 1 0 2 2 2 2 119.98", "2026-01-04 unknown 1 0 0 0 1 1 1 1 0.01",
		},
		`SELECT (SELECT sum(revenue) FROM dwh.vw_sales) - (SELECT sum(revenue) FROM dwh.vw_category_performance) || ''`: {"0.00"},
	} {
		rows, err := db.Query(t.Context(), query)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
}

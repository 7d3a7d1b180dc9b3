package quality

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func connect(t testing.TB, sql string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	return conn
}

func suite(t testing.TB, checks string) *Suite {
	t.Helper()
	suites, err := Parse([]byte("suites:\n- name: s\n  table: public.t\n  checks:\n" + checks))
	if err != nil {
		t.Fatal(err)
	}
	return suites["s"]
}

const table = `CREATE TABLE public.t (id int, kind text, price float8, at timestamptz, other int);
	CREATE TABLE public.o (id int PRIMARY KEY);
	INSERT INTO public.o VALUES (1), (2);
	INSERT INTO public.t VALUES (1, 'view', 1, '2026-01-01T00:00Z', 1), (2, 'cart', 0, '2026-01-02T00:00Z', 2),
		(2, 'sell', 5, NULL, 3), (3, NULL, 'NaN', NULL, NULL)`

func TestWhereOfASuiteIsThatOfItsChecks(t *testing.T) {
	suites, err := Parse([]byte(`suites:
- name: s
  table: public.t
  where: t.id < 3
  checks:
  - {type: expect_column_values_to_not_be_null, column: kind}
  - {type: expect_column_values_to_not_be_null, column: kind, where: t.id < 2}
  - {type: expect_metric_to_reconcile, metric: bad, max: 0}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range suites["s"].Checks {
		got = append(got, c.Where)
	}
	if diff := cmp.Diff([]string{"t.id < 3", "t.id < 2", ""}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEachTypeOfCheck(t *testing.T) {
	conn := connect(t, table)
	for check, want := range map[string]string{
		"{type: expect_table_row_count_to_be_between, min: 4, max: 4}":                                                                 "true 4",
		"{type: expect_table_row_count_to_be_between, min: 5}":                                                                         "false 4",
		"{type: expect_table_row_count_to_be_between, max: 2, where: price > 0}":                                                       "false 3",
		"{type: expect_column_values_to_not_be_null, column: id}":                                                                      "true 4/0",
		"{type: expect_column_values_to_not_be_null, column: kind}":                                                                    "false 4/1",
		"{type: expect_column_values_to_not_be_null, column: kind, mostly: 0.75}":                                                      "true 4/1",
		"{type: expect_column_values_to_not_be_null, column: kind, mostly: 0.76}":                                                      "false 4/1",
		"{type: expect_column_values_to_be_in_set, column: kind, set: [view, cart]}":                                                   "false 4/1 [sell]",
		"{type: expect_column_values_to_be_in_set, column: id, set: ['1', '2', '3']}":                                                  "true 4/0",
		"{type: expect_column_values_to_be_between, column: price, min: 0}":                                                            "false 4/1 [NaN]",
		"{type: expect_column_values_to_be_between, column: price, min: 0, strictMin: true}":                                           "false 4/2 [0 NaN]",
		"{type: expect_column_values_to_be_between, column: id, max: 2}":                                                               "false 4/1 [3]",
		"{type: expect_column_values_to_match_regex, column: kind, regex: '^[a-z]{4}$'}":                                               "true 4/0",
		"{type: expect_compound_columns_to_be_unique, columns: [id]}":                                                                  "false 4/2",
		"{type: expect_compound_columns_to_be_unique, columns: [id, kind]}":                                                            "true 4/0",
		"{type: expect_column_values_to_exist_in_other_table, column: other, references: {table: public.o, column: id}}":               "false 4/1",
		"{type: expect_column_values_to_exist_in_other_table, column: id, references: {table: public.o, column: id}, where: t.id < 3}": "true 3/0",
		"{type: expect_column_max_to_be_recent, column: at, maxAge: 25h}":                                                              "true 2026-01-02T00:00:00Z",
		"{type: expect_column_max_to_be_recent, column: at, maxAge: 23h}":                                                              "false 2026-01-02T00:00:00Z",
		"{type: expect_metric_to_reconcile, metric: lines, equals: [rows, bad]}":                                                       "true 10",
		"{type: expect_metric_to_reconcile, metric: lines, equals: [rows]}":                                                            "false 10",
		"{type: expect_metric_to_reconcile, metric: bad, max: 0}":                                                                      "false 1",
	} {
		r, err := suite(t, "  - "+check).Run(t.Context(), conn, Scope{
			Now: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Metrics: map[string]float64{"lines": 10, "rows": 9, "bad": 1}})
		if err != nil {
			t.Errorf("%s: %v", check, err)
			continue
		}
		o := r.Results[0].Result
		got := fmt.Sprint(r.Success, " ", o.Observed)
		if o.Elements != nil {
			got = fmt.Sprintf("%v %d/%d", r.Success, *o.Elements, *o.Unexpected)
			if len(o.Sample) > 0 {
				got += fmt.Sprint(" ", o.Sample)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", check, got, want)
		}
	}
}

func TestWarningsDoNotBlock(t *testing.T) {
	conn := connect(t, table)
	s := suite(t, `  - {type: expect_column_values_to_not_be_null, column: kind, severity: warning}
  - {type: expect_column_values_to_not_be_null, column: id}
`)
	r, err := s.Run(t.Context(), conn, Scope{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Success || len(r.Blocked()) != 0 {
		t.Errorf("success %v, blocked by %v", r.Success, r.Blocked())
	}
	s.Checks[0].Severity = Critical
	if r, err = s.Run(t.Context(), conn, Scope{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"expect_column_values_to_not_be_null(kind)"}, r.Blocked()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestScopeReplacesTheTable(t *testing.T) {
	conn := connect(t, table)
	r, err := suite(t, "  - {type: expect_table_row_count_to_be_between, max: 2}\n").Run(t.Context(), conn,
		Scope{From: "SELECT * FROM public.t WHERE id = 2"})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Success {
		t.Errorf("%+v", r.Results[0])
	}
}

func TestMissingMetricIsNotEvaluated(t *testing.T) {
	conn := connect(t, table)
	r, err := suite(t, "  - {type: expect_metric_to_reconcile, metric: lines, equals: [rows]}\n").Run(t.Context(), conn,
		Scope{Metrics: map[string]float64{"lines": 1}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Statistics.Evaluated != 0 || !r.Success {
		t.Errorf("%+v", r.Statistics)
	}
}

func TestReportHasTheShapeOfGreatExpectations(t *testing.T) {
	conn := connect(t, table)
	r, err := suite(t, "  - {type: expect_column_values_to_be_in_set, column: kind, set: [view, cart]}\n").Run(t.Context(), conn,
		Scope{Run: "r1", Batch: map[string]any{"load": 1}, Now: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
 "success": false,
 "results": [
  {
   "success": false,
   "expectation_config": {
    "type": "expect_column_values_to_be_in_set",
    "kwargs": {
     "column": "kind",
     "value_set": [
      "view",
      "cart"
     ]
    },
    "severity": "critical",
    "meta": {}
   },
   "result": {
    "element_count": 4,
    "unexpected_count": 1,
    "unexpected_percent": 33.333333333333336,
    "partial_unexpected_list": [
     "sell"
    ],
    "missing_count": 1,
    "missing_percent": 25
   },
   "meta": {},
   "exception_info": {
    "raised_exception": false,
    "exception_traceback": null,
    "exception_message": null
   }
  }
 ],
 "suite_name": "s",
 "suite_parameters": {},
 "statistics": {
  "evaluated_expectations": 1,
  "successful_expectations": 0,
  "unsuccessful_expectations": 1,
  "success_percent": 0
 },
 "meta": {
  "active_batch_definition": {
   "load": 1
  },
  "batch_spec": {
   "table_name": "public.t"
  },
  "run_id": {
   "run_name": "r1",
   "run_time": "2026-01-03T00:00:00Z"
  },
  "validation_time": "2026-01-03T00:00:00Z"
 },
 "id": null
}`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMistakesInSuitesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"suites:\n- {name: s, table: t}\n":                                                                                                      "table with its schema",
		"suites:\n- {name: s, table: a.t}\n- {name: s, table: a.t}\n":                                                                           "defined twice",
		"suites:\n- {name: s, table: a.t, chekcs: []}\n":                                                                                        "chekcs",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_nothing}]}\n":                                                                  "unknown type",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_column_values_to_be_in_set, column: a}]}\n":                                    "needs set",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_table_row_count_to_be_between, min: 1, column: a}]}\n":                         "takes no column",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_column_values_to_not_be_null, column: a, severity: bad}]}\n":                   "severity",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_column_values_to_not_be_null, column: a, mostly: 2}]}\n":                       "mostly",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_column_max_to_be_recent, column: a, maxAge: soon}]}\n":                         "soon",
		"suites:\n- {name: s, table: a.t, checks: [{type: expect_column_values_to_exist_in_other_table, column: a, references: {table: b}}]}\n": "needs references",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// BenchmarkMillionRows is 25 checks over a million rows of nine columns, with the
// memory that a step of the warehouse gives to a statement.
func BenchmarkMillionRows(b *testing.B) {
	conn := connect(b, `CREATE TABLE public.o (id bigint PRIMARY KEY);
		INSERT INTO public.o SELECT generate_series(0, 49999);
		CREATE TABLE public.t AS SELECT sha256(int8send(i)) AS hash, i AS id, i % 50000 AS product_id, i % 1000 AS category_id, i % 200000 AS user_id,
			(ARRAY['view', 'cart', 'purchase'])[1 + i % 3] AS kind, (i % 999 + 1)::float8 AS price, md5((i / 6)::text) AS session,
			'2026-01-01'::timestamptz + i * interval '1 second' AS at
		FROM generate_series(0::bigint, 999999) i;
		ALTER TABLE public.t ADD PRIMARY KEY (hash); ANALYZE public.t; ANALYZE public.o; SET work_mem = '64MB'`)
	checks := "  - {type: expect_table_row_count_to_be_between, min: 1, max: 1000000}\n" +
		"  - {type: expect_compound_columns_to_be_unique, columns: [hash]}\n" +
		"  - {type: expect_compound_columns_to_be_unique, columns: [id]}\n" +
		"  - {type: expect_column_values_to_exist_in_other_table, column: product_id, references: {table: public.o, column: id}}\n" +
		"  - {type: expect_column_values_to_exist_in_other_table, column: category_id, references: {table: public.o, column: id}}\n" +
		"  - {type: expect_column_max_to_be_recent, column: at, maxAge: 24h}\n" +
		"  - {type: expect_column_values_to_be_in_set, column: kind, set: [view, cart, purchase]}\n" +
		"  - {type: expect_column_values_to_match_regex, column: session, regex: '^[0-9a-f]+$'}\n"
	for _, column := range []string{"hash", "id", "product_id", "category_id", "user_id", "kind", "price", "session", "at"} {
		checks += "  - {type: expect_column_values_to_not_be_null, column: " + column + "}\n"
	}
	for _, column := range []string{"id", "product_id", "category_id", "user_id", "price"} {
		checks += "  - {type: expect_column_values_to_be_between, column: " + column + ", min: 0, max: 1e9}\n"
	}
	for _, kind := range []string{"view", "cart", "purchase"} {
		checks += "  - {type: expect_table_row_count_to_be_between, min: 1000, where: kind = '" + kind + "'}\n"
	}
	s := suite(b, checks)
	if len(s.Checks) != 25 {
		b.Fatal(len(s.Checks))
	}
	for b.Loop() {
		r, err := s.Run(b.Context(), conn, Scope{Now: time.Date(2026, 1, 12, 0, 0, 0, 0, time.UTC)})
		if err != nil {
			b.Fatal(err)
		}
		if !r.Success {
			b.Fatalf("%+v", r.Blocked())
		}
	}
}

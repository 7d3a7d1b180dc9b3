package quality

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Querier is a connection, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Scope says what a run looks at.
type Scope struct {
	// From takes the table's place: a SELECT of all its columns for some of its
	// rows, without parameters. Empty for the whole table.
	From string
	// Metrics are the numbers for checks that reconcile. A check whose metric is
	// missing is not evaluated and not in the report.
	Metrics map[string]float64
	// Run names the run in the report, Batch describes what was looked at.
	Run   string
	Batch map[string]any
	// Now is the time of the report; freshness is measured against it.
	Now time.Time
}

// maxSample bounds the unexpected values that a report shows a check.
const maxSample = 20

// Run evaluates the suite. An error means that it could not be evaluated; failed
// checks are in the report.
func (s *Suite) Run(ctx context.Context, q Querier, scope Scope) (*Report, error) {
	from := s.Table
	if scope.From != "" {
		from = "(" + scope.From + ")"
	}
	r := &runner{suite: s, q: q, from: from, scope: scope}
	if err := r.aggregates(ctx); err != nil {
		return nil, err
	}
	report := &Report{SuiteName: s.Name, SuiteParameters: map[string]any{}, Meta: r.meta(), Results: []Result{}}
	for i := range s.Checks {
		if s.Checks[i].Type == Reconcile && !r.reconciles(&s.Checks[i]) {
			continue
		}
		result, err := r.result(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("checking %s, %s: %w", s.Name, s.Checks[i].Type, err)
		}
		report.add(result, s.Checks[i].blocking())
	}
	report.finish()
	return report, nil
}

type runner struct {
	suite *Suite
	q     Querier
	from  string
	scope Scope
	args  []any
	// found are the aggregates of each check, in the order in which it asked.
	found [][]any
}

func (r *runner) arg(v any) string {
	r.args = append(r.args, v)
	return fmt.Sprintf("$%d", len(r.args))
}

// column is the check's column in SQL.
func (c *Check) column() string { return "t." + pgx.Identifier{c.Column}.Sanitize() }

func (c *Check) where() string {
	if c.Where == "" {
		return "true"
	}
	return "(" + c.Where + ")"
}

// unexpected is the SQL condition of a value that is not as expected, "" for a check
// that does not look at one value at a time.
func (r *runner) unexpected(c *Check) string {
	col := c.column()
	switch c.Type {
	case NotNull:
		return col + " IS NULL"
	case InSet:
		return fmt.Sprintf("%s::text <> ALL (%s::text[])", col, r.arg(c.Set))
	case Match:
		return fmt.Sprintf("%s::text !~ %s", col, r.arg(c.Regex))
	case Between:
		var parts []string
		if c.Min != nil {
			op := "<"
			if c.StrictMin {
				op = "<="
			}
			parts = append(parts, fmt.Sprintf("%s::float8 %s %s", col, op, r.arg(*c.Min)))
		}
		// NaN is greater than all numbers in PostgreSQL, but in no range.
		if c.Max != nil {
			parts = append(parts, fmt.Sprintf("%s::float8 > %s", col, r.arg(*c.Max)))
		} else {
			parts = append(parts, fmt.Sprintf("%s::float8 = 'NaN'", col))
		}
		return "(" + strings.Join(parts, " OR ") + ")"
	}
	return ""
}

// aggregates evaluates in one scan all that is cheap to say of each row by itself.
func (r *runner) aggregates(ctx context.Context) error {
	var columns []string
	owner := []int{}
	add := func(check int, format string, args ...any) {
		columns, owner = append(columns, fmt.Sprintf(format, args...)), append(owner, check)
	}
	for i := range r.suite.Checks {
		c := &r.suite.Checks[i]
		count := func(cond string) {
			add(i, "count(*) FILTER (WHERE %s AND %s)", c.where(), cond)
		}
		switch c.Type {
		case RowCount:
			count("true")
		case NotNull, InSet, Between:
			count("true")
			count(c.column() + " IS NULL")
			count(r.unexpected(c))
		case Match:
			count("true")
			count(c.column() + " IS NULL")
		case Fresh:
			add(i, "max(%s) FILTER (WHERE %s)", c.column(), c.where())
		case Unique, Refers:
			count("true")
		}
	}
	r.found = make([][]any, len(r.suite.Checks))
	if len(columns) == 0 {
		return nil
	}
	row, err := r.row(ctx, "SELECT "+strings.Join(columns, ",\n")+" FROM "+r.from+" t", r.args...)
	if err != nil {
		return fmt.Errorf("checking %s: %w", r.suite.Name, err)
	}
	for i, v := range row {
		r.found[owner[i]] = append(r.found[owner[i]], v)
	}
	return nil
}

func (r *runner) row(ctx context.Context, sql string, args ...any) ([]any, error) {
	rows, err := r.q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		return nil, rows.Err()
	}
	values, err := rows.Values()
	if err != nil {
		return nil, err
	}
	rows.Close()
	return values, rows.Err()
}

func (r *runner) result(ctx context.Context, i int) (Result, error) {
	c := &r.suite.Checks[i]
	result := Result{ExpectationConfig: c.config(), ExceptionInfo: ExceptionInfo{}, Meta: map[string]any{}}
	count := func(n int) int64 { return r.found[i][n].(int64) }
	switch c.Type {
	case RowCount:
		result.Success = c.inRange(float64(count(0)))
		result.Result.Observed = count(0)
	case Fresh:
		return r.freshness(c, r.found[i][0], result), nil
	case Reconcile:
		return r.reconcile(c, result), nil
	case Unique:
		columns := make([]string, len(c.Columns))
		for i, name := range c.Columns {
			columns[i] = "t." + pgx.Identifier{name}.Sanitize()
		}
		row, err := r.row(ctx, fmt.Sprintf("SELECT coalesce(sum(n), 0)::bigint FROM (SELECT count(*) n FROM %s t WHERE %s GROUP BY %s HAVING count(*) > 1) d",
			r.from, c.where(), strings.Join(columns, ", ")))
		if err != nil {
			return result, err
		}
		result.counts(c, count(0), 0, row[0].(int64))
	case Refers:
		other := strings.Split(c.References.Table, ".")
		row, err := r.row(ctx, fmt.Sprintf(`SELECT coalesce(sum(n) FILTER (WHERE value IS NULL), 0)::bigint, coalesce(sum(n) FILTER (WHERE value IS NOT NULL), 0)::bigint
			FROM %s d WHERE NOT EXISTS (SELECT FROM %s o WHERE o.%s = d.value)`,
			r.distinct(c), pgx.Identifier(other).Sanitize(), pgx.Identifier{c.References.Column}.Sanitize()))
		if err != nil {
			return result, err
		}
		result.counts(c, count(0), row[0].(int64), row[1].(int64))
	case Match:
		row, err := r.row(ctx, fmt.Sprintf(`SELECT coalesce(sum(n), 0)::bigint FROM %s d WHERE value::text !~ $1`, r.distinct(c)), c.Regex)
		if err != nil {
			return result, err
		}
		result.counts(c, count(0), count(1), row[0].(int64))
		if row[0].(int64) > 0 {
			if result.Result.Sample, err = r.sample(ctx, c); err != nil {
				return result, err
			}
		}
	default:
		missing := count(1)
		if c.Type == NotNull {
			missing = 0 // what is missing is what is unexpected
		}
		result.counts(c, count(0), missing, count(2))
		if count(2) > 0 && c.Type != NotNull {
			var err error
			if result.Result.Sample, err = r.sample(ctx, c); err != nil {
				return result, err
			}
		}
	}
	return result, nil
}

// distinct selects the distinct values of the check's column, and how many rows have
// each. A regular expression, or a look into another table, costs many times what
// grouping does, and most columns repeat their values.
func (r *runner) distinct(c *Check) string {
	return fmt.Sprintf("(SELECT %s AS value, count(*) AS n FROM %s t WHERE %s GROUP BY 1)", c.column(), r.from, c.where())
}

func (r *runner) sample(ctx context.Context, c *Check) ([]any, error) {
	r.args = nil
	cond := r.unexpected(c)
	rows, err := r.q.Query(ctx, fmt.Sprintf("SELECT %s::text FROM %s t WHERE %s AND %s ORDER BY 1 LIMIT %d", c.column(), r.from, c.where(), cond, maxSample), r.args...)
	if err != nil {
		return nil, err
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	sample := make([]any, len(texts))
	for i := range texts {
		sample[i] = texts[i]
	}
	return sample, nil
}

func (r *runner) freshness(c *Check, newest any, result Result) Result {
	t, ok := newest.(time.Time)
	// Nothing is not stale; that there is nothing is for another check.
	result.Success = !ok || !t.Before(r.scope.Now.Add(-time.Duration(c.MaxAge)))
	if ok {
		result.Result.Observed = t.UTC().Format(time.RFC3339Nano)
	}
	return result
}

// reconciles tells whether the caller gave the numbers that the check needs.
func (r *runner) reconciles(c *Check) bool {
	for _, name := range append([]string{c.Metric}, c.Equals...) {
		if _, ok := r.scope.Metrics[name]; !ok {
			return false
		}
	}
	return true
}

func (r *runner) reconcile(c *Check, result Result) Result {
	v := r.scope.Metrics[c.Metric]
	result.Result.Observed = v
	result.Success = c.inRange(v)
	if len(c.Equals) > 0 {
		sum := 0.0
		for _, name := range c.Equals {
			sum += r.scope.Metrics[name]
		}
		result.Success = result.Success && v == sum
		result.Result.Details = map[string]any{"expected_value": sum}
	}
	return result
}

func (c *Check) inRange(v float64) bool {
	return (c.Min == nil || v > *c.Min || v == *c.Min && !c.StrictMin) && (c.Max == nil || v <= *c.Max) && !math.IsNaN(v)
}

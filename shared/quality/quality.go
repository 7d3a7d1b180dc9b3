// Package quality checks tables against expectations that are declared in YAML,
// and reports in the JSON shape of Great Expectations' validation results, so that
// what reads those reads these.
//
// Checks of a table are evaluated by as few statements as they can: all that look
// at one row at a time share one scan. The package neither stores reports nor
// decides what a failure means beyond saying whether it blocks.
package quality

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
)

// Suite is a set of checks on one table.
type Suite struct {
	// Name names the suite in reports, Table is what it looks at, with its schema.
	Name  string `yaml:"name"`
	Table string `yaml:"table"`
	// Where is that of all checks that have none of their own, but for those of metrics.
	Where  string  `yaml:"where"`
	Checks []Check `yaml:"checks"`
}

// Check is one expectation. Which fields it takes depends on its type.
type Check struct {
	Type Type `yaml:"type"`
	// Severity is critical, the default, or warning.
	Severity Severity `yaml:"severity"`
	// Where restricts the rows to those for which this SQL expression is true. The
	// row's alias is t.
	Where string `yaml:"where"`

	Column  string   `yaml:"column"`
	Columns []string `yaml:"columns"`
	// Set is what a value may be.
	Set []string `yaml:"set"`
	// Min and Max bound a value, a row count or a metric, themselves allowed unless
	// StrictMin.
	Min       *float64 `yaml:"min"`
	Max       *float64 `yaml:"max"`
	StrictMin bool     `yaml:"strictMin"`
	Regex     string   `yaml:"regex"`
	// MaxAge bounds how old the newest value may be.
	MaxAge Duration `yaml:"maxAge"`
	// References is the table and column that has to hold every value.
	References *Reference `yaml:"references"`
	// Metric and Equals name numbers that the caller gives: Metric has to be equal
	// to the sum of Equals, or within Min and Max.
	Metric string   `yaml:"metric"`
	Equals []string `yaml:"equals"`
	// Mostly is the share of values that has to be as expected; 1 by default.
	Mostly *float64 `yaml:"mostly"`
}

// Reference is a column of another table.
type Reference struct {
	Table  string `yaml:"table"`
	Column string `yaml:"column"`
}

// Duration is a time.Duration as Go writes it.
type Duration time.Duration

// UnmarshalYAML reads 36h.
func (d *Duration) UnmarshalYAML(b []byte) error {
	var text string
	if err := yaml.Unmarshal(b, &text); err != nil {
		return err
	}
	v, err := time.ParseDuration(text)
	*d = Duration(v)
	return err
}

// Type is a kind of expectation. The names are those of Great Expectations where it
// has the same.
type Type string

// The types.
const (
	RowCount  Type = "expect_table_row_count_to_be_between"
	NotNull   Type = "expect_column_values_to_not_be_null"
	InSet     Type = "expect_column_values_to_be_in_set"
	Between   Type = "expect_column_values_to_be_between"
	Match     Type = "expect_column_values_to_match_regex"
	Unique    Type = "expect_compound_columns_to_be_unique"
	Fresh     Type = "expect_column_max_to_be_recent"
	Refers    Type = "expect_column_values_to_exist_in_other_table"
	Reconcile Type = "expect_metric_to_reconcile"
)

// Severity says whether a failure blocks.
type Severity string

// The severities.
const (
	Critical Severity = "critical"
	Warning  Severity = "warning"
)

// Parse reads a document of suites, by name. It is strict: what it does not know,
// or a check that lacks what its type needs, is an error that names the place.
func Parse(text []byte) (map[string]*Suite, error) {
	var doc struct {
		Suites []*Suite `yaml:"suites"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading suites: %s", yaml.FormatError(err, false, true))
	}
	suites := make(map[string]*Suite, len(doc.Suites))
	for _, s := range doc.Suites {
		if s.Name == "" || !tableName.MatchString(s.Table) {
			return nil, fmt.Errorf("suite %q: needs a name, and a table with its schema, not %q", s.Name, s.Table)
		}
		if suites[s.Name] != nil {
			return nil, fmt.Errorf("suite %s: defined twice", s.Name)
		}
		for i := range s.Checks {
			c := &s.Checks[i]
			if c.Severity == "" {
				c.Severity = Critical
			}
			if c.Where == "" && c.Type != Reconcile {
				c.Where = s.Where
			}
			if err := c.check(); err != nil {
				return nil, fmt.Errorf("suite %s, check %d (%s): %w", s.Name, i+1, c.Type, err)
			}
		}
		suites[s.Name] = s
	}
	return suites, nil
}

var tableName = regexp.MustCompile(`^[a-z_]+\.[a-z0-9_]+$`)

func (c *Check) check() error {
	if c.Severity != Critical && c.Severity != Warning {
		return fmt.Errorf("severity %q: want critical or warning", c.Severity)
	}
	if c.Mostly != nil && (*c.Mostly <= 0 || *c.Mostly > 1) {
		return fmt.Errorf("mostly %v: want more than 0, at most 1", *c.Mostly)
	}
	takes := map[Type][]string{
		RowCount: {"min or max"}, NotNull: {"column"}, InSet: {"column", "set"}, Between: {"column", "min or max"},
		Match: {"column", "regex"}, Unique: {"columns"}, Fresh: {"column", "maxAge"}, Refers: {"column", "references"},
		Reconcile: {"metric", "equals, min or max"},
	}[c.Type]
	if takes == nil {
		return fmt.Errorf("unknown type")
	}
	has := map[string]bool{
		"column": c.Column != "", "columns": len(c.Columns) > 0, "set": len(c.Set) > 0, "min or max": c.Min != nil || c.Max != nil,
		"regex": c.Regex != "", "maxAge": c.MaxAge > 0, "metric": c.Metric != "",
		"references":         c.References != nil && tableName.MatchString(c.References.Table) && c.References.Column != "",
		"equals, min or max": len(c.Equals) > 0 || c.Min != nil || c.Max != nil,
	}
	for _, name := range takes {
		if !has[name] {
			return fmt.Errorf("needs %s", name)
		}
	}
	if has["column"] && !slices.Contains(takes, "column") {
		return fmt.Errorf("takes no column")
	}
	return nil
}

// blocking tells whether a failure of the check blocks.
func (c *Check) blocking() bool { return c.Severity == Critical }

package quality

import "time"

// Report is a validation result in the JSON shape of Great Expectations 1.x, for
// one suite and one batch.
type Report struct {
	Success         bool           `json:"success"`
	Results         []Result       `json:"results"`
	SuiteName       string         `json:"suite_name"`
	SuiteParameters map[string]any `json:"suite_parameters"`
	Statistics      Statistics     `json:"statistics"`
	Meta            map[string]any `json:"meta"`
	ID              *string        `json:"id"`

	blocking []string
}

// Statistics counts the checks.
type Statistics struct {
	Evaluated    int     `json:"evaluated_expectations"`
	Successful   int     `json:"successful_expectations"`
	Unsuccessful int     `json:"unsuccessful_expectations"`
	Percent      float64 `json:"success_percent"`
}

// Result is what became of one check.
type Result struct {
	Success           bool              `json:"success"`
	ExpectationConfig ExpectationConfig `json:"expectation_config"`
	Result            Observation       `json:"result"`
	Meta              map[string]any    `json:"meta"`
	ExceptionInfo     ExceptionInfo     `json:"exception_info"`
}

// ExpectationConfig repeats the check.
type ExpectationConfig struct {
	Type     string         `json:"type"`
	Kwargs   map[string]any `json:"kwargs"`
	Severity string         `json:"severity"`
	Meta     map[string]any `json:"meta"`
}

// Observation is what was seen. Which fields are there depends on the check.
type Observation struct {
	Elements          *int64         `json:"element_count,omitempty"`
	Unexpected        *int64         `json:"unexpected_count,omitempty"`
	UnexpectedPercent *float64       `json:"unexpected_percent,omitempty"`
	Sample            []any          `json:"partial_unexpected_list,omitempty"`
	Missing           *int64         `json:"missing_count,omitempty"`
	MissingPercent    *float64       `json:"missing_percent,omitempty"`
	Observed          any            `json:"observed_value,omitempty"`
	Details           map[string]any `json:"details,omitempty"`
}

// ExceptionInfo is always empty: a check that cannot be evaluated is an error of
// the run.
type ExceptionInfo struct {
	Raised    bool    `json:"raised_exception"`
	Traceback *string `json:"exception_traceback"`
	Message   *string `json:"exception_message"`
}

// Blocked names the critical checks that failed, none if the batch may go on.
func (r *Report) Blocked() []string { return r.blocking }

func (r *Report) add(result Result, blocking bool) {
	r.Results = append(r.Results, result)
	r.Statistics.Evaluated++
	if result.Success {
		r.Statistics.Successful++
		return
	}
	r.Statistics.Unsuccessful++
	if blocking {
		name := result.ExpectationConfig.Type
		if column, ok := result.ExpectationConfig.Kwargs["column"].(string); ok {
			name += "(" + column + ")"
		}
		r.blocking = append(r.blocking, name)
	}
}

func (r *Report) finish() {
	r.Success = r.Statistics.Unsuccessful == 0
	r.Statistics.Percent = 100
	if r.Statistics.Evaluated > 0 {
		r.Statistics.Percent = 100 * float64(r.Statistics.Successful) / float64(r.Statistics.Evaluated)
	}
}

func (r *runner) meta() map[string]any {
	return map[string]any{
		"run_id":                  map[string]any{"run_name": r.scope.Run, "run_time": r.scope.Now.UTC().Format(time.RFC3339Nano)},
		"validation_time":         r.scope.Now.UTC().Format(time.RFC3339Nano),
		"batch_spec":              map[string]any{"table_name": r.suite.Table},
		"active_batch_definition": r.scope.Batch,
	}
}

func (c *Check) config() ExpectationConfig {
	kwargs := map[string]any{}
	set := func(name string, v any, ok bool) {
		if ok {
			kwargs[name] = v
		}
	}
	set("column", c.Column, c.Column != "")
	set("column_list", c.Columns, len(c.Columns) > 0)
	set("value_set", c.Set, len(c.Set) > 0)
	if c.Min != nil {
		kwargs["min_value"] = *c.Min
	}
	if c.Max != nil {
		kwargs["max_value"] = *c.Max
	}
	set("strict_min", true, c.StrictMin)
	set("regex", c.Regex, c.Regex != "")
	set("max_age_seconds", time.Duration(c.MaxAge).Seconds(), c.MaxAge > 0)
	if c.References != nil {
		kwargs["other_table"], kwargs["other_column"] = c.References.Table, c.References.Column
	}
	set("metric", c.Metric, c.Metric != "")
	set("equals", c.Equals, len(c.Equals) > 0)
	if c.Mostly != nil {
		kwargs["mostly"] = *c.Mostly
	}
	set("row_condition", c.Where, c.Where != "")
	return ExpectationConfig{Type: string(c.Type), Kwargs: kwargs, Severity: string(c.Severity), Meta: map[string]any{}}
}

// counts fills in what a check of single values has seen, and its verdict.
func (r *Result) counts(c *Check, elements, missing, unexpected int64) {
	percent := func(n, of int64) *float64 {
		p := 0.0
		if of > 0 {
			p = 100 * float64(n) / float64(of)
		}
		return &p
	}
	r.Result.Elements, r.Result.Unexpected, r.Result.Missing = &elements, &unexpected, &missing
	r.Result.UnexpectedPercent, r.Result.MissingPercent = percent(unexpected, elements-missing), percent(missing, elements)
	r.Success = unexpected == 0
	if c.Mostly != nil && elements > missing {
		r.Success = float64(elements-missing-unexpected)/float64(elements-missing) >= *c.Mostly
	}
}

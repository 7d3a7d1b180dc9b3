package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// live is what flows now. The rates are of the last seconds.
type live struct {
	// From is where it was read: "runner", or "prometheus", which knows of functions
	// only.
	From  string    `json:"from"`
	Time  time.Time `json:"time"`
	State string    `json:"state,omitempty"`

	Raw          *rate   `json:"raw,omitempty"`
	Validated    *rate   `json:"validated,omitempty"`
	Invalid      *rate   `json:"invalid,omitempty"`
	InvalidShare float64 `json:"invalidShare"`
	DeadLetters  uint64  `json:"deadLettersSinceStart"`

	Topics     []json.RawMessage `json:"topics"`
	Deliveries []json.RawMessage `json:"deliveries"`
	Processes  []process         `json:"processes"`
	Lake       json.RawMessage   `json:"lake,omitempty"`
	Warehouse  json.RawMessage   `json:"warehouse,omitempty"`
	Features   json.RawMessage   `json:"features,omitempty"`
	Learning   json.RawMessage   `json:"learning,omitempty"`
	Events     []json.RawMessage `json:"events,omitempty"`
	LeftOut    []json.RawMessage `json:"leftOut,omitempty"`
	RSSBytes   int64             `json:"rssBytes,omitempty"`
	URLs       []json.RawMessage `json:"urls,omitempty"`
}

type rate struct {
	Total     int64   `json:"total"`
	PerSecond float64 `json:"perSecond"`
}

// process is a part of the platform.
type process struct {
	Name       string    `json:"name"`
	State      string    `json:"state"`
	Address    string    `json:"address,omitempty"`
	RSSBytes   int64     `json:"rssBytes,omitempty"`
	CPUPercent float64   `json:"cpuPercent,omitempty"`
	Restarts   int       `json:"restarts,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Error      string    `json:"error,omitempty"`
	// PerSecond and FailuresPerSecond are events of a function, as Prometheus has them.
	PerSecond         *float64 `json:"perSecond,omitempty"`
	FailuresPerSecond *float64 `json:"failuresPerSecond,omitempty"`
}

// sources of what flows.
const (
	runnerSource     = "runner"
	prometheusSource = "Prometheus"
)

func (c *console) live(ctx context.Context, _ *http.Request) (any, error) {
	switch {
	case c.status != "":
		return c.runner(ctx)
	case c.prometheus != "":
		return c.scraped(ctx)
	}
	return nil, absent("live", "neither STATUS_URL nor PROMETHEUS_URL is set")
}

func (c *console) runner(ctx context.Context) (live, error) {
	l := live{From: "runner"}
	err := c.get(ctx, runnerSource, c.status, &l)
	return l, err
}

// scraped is the functions' rates over the last minute.
func (c *console) scraped(ctx context.Context) (live, error) {
	l := live{From: "prometheus", Time: time.Now().UTC()}
	functions := map[string]int{}
	for _, q := range []struct {
		text string
		set  func(p *process, v float64)
	}{
		{`sum by (service_name) (rate(function_events_total[1m]))`, func(p *process, v float64) { p.PerSecond = &v }},
		{`sum by (service_name) (rate(function_events_total{outcome=~"invalid|overloaded|unavailable|failed"}[1m]))`, func(p *process, v float64) { p.FailuresPerSecond = &v }},
	} {
		samples, err := c.query(ctx, q.text)
		if err != nil {
			return l, err
		}
		for _, s := range samples {
			name := string(s.Metric["service_name"])
			if _, known := functions[name]; !known {
				functions[name] = len(l.Processes)
				l.Processes = append(l.Processes, process{Name: name, State: "running"})
			}
			q.set(&l.Processes[functions[name]], float64(s.Value))
		}
	}
	return l, nil
}

// query asks Prometheus for the present values of an expression.
func (c *console) query(ctx context.Context, text string) (model.Vector, error) {
	var answer struct {
		Data struct{ Result model.Vector }
	}
	err := c.get(ctx, prometheusSource, c.prometheus+"/api/v1/query?"+url.Values{"query": {text}}.Encode(), &answer)
	return answer.Data.Result, err
}

// verdict is how many records of a contract got one.
type verdict struct {
	Contract string  `json:"contract"`
	Verdict  string  `json:"verdict"`
	Error    string  `json:"error"`
	Records  float64 `json:"records"`
}

// verdicts are validate's counts since it started.
func (c *console) verdicts(ctx context.Context) ([]verdict, error) {
	var list []verdict
	if c.status == "" {
		if c.prometheus == "" {
			return nil, absent("live", "neither STATUS_URL nor PROMETHEUS_URL is set")
		}
		samples, err := c.query(ctx, `sum by (contract, verdict, error_type) (validate_verdicts_total)`)
		for _, s := range samples {
			list = append(list, verdict{string(s.Metric["contract"]), string(s.Metric["verdict"]), string(s.Metric["error_type"]), float64(s.Value)})
		}
		return list, err
	}
	l, err := c.runner(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range l.Processes {
		if p.Name != "validate" || p.Address == "" {
			continue
		}
		return c.scrape(ctx, p)
	}
	return nil, away("validate", fmt.Errorf("it is not running"))
}

func (c *console) scrape(ctx context.Context, p process) ([]verdict, error) {
	body, _, err := c.call(ctx, p.Name, http.MethodGet, "http://"+p.Address+"/metrics", nil, nil)
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, away(p.Name, fmt.Errorf("reading its metrics: %w", err))
	}
	var list []verdict
	for _, m := range families["validate_verdicts_total"].GetMetric() {
		v := verdict{Records: m.GetCounter().GetValue()}
		for _, label := range m.GetLabel() {
			switch label.GetName() {
			case "contract":
				v.Contract = label.GetValue()
			case "verdict":
				v.Verdict = label.GetValue()
			case "error_type":
				v.Error = label.GetValue()
			}
		}
		list = append(list, v)
	}
	return list, nil
}

// limit reads how many rows are wanted.
func limit(r *http.Request, usual, most int) (int, error) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return usual, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, &failure{http.StatusBadRequest, "console", fmt.Errorf("limit %q: must be between 1 and %d", text, most)}
	}
	return n, nil
}

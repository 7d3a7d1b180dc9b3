package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/millrace-dev/millrace/shared/health"
)

// live is what flows now. The rates are of the last seconds.
type live struct {
	// From is where it was read: "runner" or "prometheus".
	From  string    `json:"from"`
	Time  time.Time `json:"time"`
	State string    `json:"state,omitempty"`

	Raw          *rate   `json:"raw,omitempty"`
	Validated    *rate   `json:"validated,omitempty"`
	Invalid      *rate   `json:"invalid,omitempty"`
	InvalidShare float64 `json:"invalidShare"`
	DeadLetters  uint64  `json:"deadLettersSinceStart"`

	Topics     []json.RawMessage `json:"topics"`
	Deliveries []delivery        `json:"deliveries"`
	// Taken are what functions took, by type of event, where nobody knows of Triggers.
	Taken     []taken         `json:"taken,omitempty"`
	Processes []process       `json:"processes"`
	Stores    []store         `json:"stores"`
	Lake      json.RawMessage `json:"lake,omitempty"`
	Warehouse json.RawMessage `json:"warehouse,omitempty"`
	Features  json.RawMessage `json:"features,omitempty"`
	Learning  json.RawMessage `json:"learning,omitempty"`

	Events   []json.RawMessage `json:"events,omitempty"`
	LeftOut  []json.RawMessage `json:"leftOut,omitempty"`
	RSSBytes int64             `json:"rssBytes,omitempty"`
	URLs     []json.RawMessage `json:"urls,omitempty"`
}

type rate struct {
	Total     int64   `json:"total"`
	PerSecond float64 `json:"perSecond"`
}

// delivery is what a source or Trigger does.
type delivery struct {
	Kind         string    `json:"kind"`
	Name         string    `json:"name"`
	PerSecond    float64   `json:"perSecond"`
	Delivered    uint64    `json:"delivered"`
	Lag          int64     `json:"lag"`
	Retries      uint64    `json:"retries"`
	DeadLettered uint64    `json:"deadLettered"`
	FailingSince time.Time `json:"failingSince,omitzero"`
	LastError    string    `json:"lastError,omitempty"`
}

// taken is what a function took of one type of event in a second, and how much of it it
// did not do.
type taken struct {
	Function          string  `json:"function"`
	Type              string  `json:"type"`
	PerSecond         float64 `json:"perSecond"`
	FailuresPerSecond float64 `json:"failuresPerSecond"`
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

// store is what a store's users say of it.
type store struct {
	health.State
	// By are the functions that find it so; none where the runner asks it.
	By []string `json:"by,omitempty"`
}

// sources of what flows.
const (
	runnerSource     = "runner"
	prometheusSource = "Prometheus"
)

// freshFor is how long an answer about what flows is good for all who ask. The runner
// looks once a second.
const freshFor = 900 * time.Millisecond

// kept is the last answer about what flows, so that a page with several questions, and
// several pages, make one.
type kept struct {
	mu   sync.Mutex
	at   time.Time
	last live
	err  error
}

// flows is what flows now, at most freshFor old.
func (c *console) flows(ctx context.Context) (live, error) {
	c.kept.mu.Lock()
	defer c.kept.mu.Unlock()
	if c.kept.at.IsZero() || time.Since(c.kept.at) > freshFor {
		// Others wait for the answer too: one that was given up is nobody's.
		last, err := c.readFlows(ctx)
		if ctx.Err() != nil {
			return last, ctx.Err()
		}
		c.kept.last, c.kept.err, c.kept.at = last, err, time.Now()
	}
	return c.kept.last, c.kept.err
}

func (c *console) readFlows(ctx context.Context) (live, error) {
	switch {
	case c.status != "":
		l := live{From: "runner"}
		err := c.get(ctx, runnerSource, c.status, &l)
		return l, err
	case c.prometheus != "":
		return c.scraped(ctx)
	}
	return live{}, absent("live", "neither STATUS_URL nor PROMETHEUS_URL is set")
}

func (c *console) live(ctx context.Context, _ *http.Request) (any, error) { return c.flows(ctx) }

// verdict is how many records of a contract got one.
type verdict struct {
	Contract string  `json:"contract"`
	Verdict  string  `json:"verdict"`
	Error    string  `json:"error"`
	Records  float64 `json:"records"`
}

// verdicts are validate's counts since it started.
func (c *console) verdicts(ctx context.Context) ([]verdict, error) {
	if c.status == "" && c.prometheus != "" {
		var list []verdict
		samples, err := c.query(ctx, `sum by (contract, verdict, error_type) (validate_verdicts_total)`)
		for _, s := range samples {
			list = append(list, verdict{string(s.Metric["contract"]), string(s.Metric["verdict"]), string(s.Metric["error_type"]), float64(s.Value)})
		}
		return list, err
	}
	l, err := c.flows(ctx)
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

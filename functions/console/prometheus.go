package main

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"

	"github.com/millrace-dev/millrace/shared/health"
)

// query asks Prometheus for the present values of an expression.
func (c *console) query(ctx context.Context, text string) (model.Vector, error) {
	var answer struct {
		Data struct{ Result model.Vector }
	}
	err := c.get(ctx, prometheusSource, c.prometheus+"/api/v1/query?"+url.Values{"query": {text}}.Encode(), &answer)
	return answer.Data.Result, err
}

// refused are the outcomes of events that a function did not do.
const refused = `outcome=~"invalid|overloaded|unavailable|failed"`

// scraped is what Prometheus knows: of functions, of the event graph where the relay or
// the runner executes it, and of stores. The rates are of the last minute.
func (c *console) scraped(ctx context.Context) (live, error) {
	s := scrape{live: live{From: "prometheus", Time: time.Now().UTC(), State: "running", Raw: &rate{}, Validated: &rate{}, Invalid: &rate{}},
		functions: map[string]*process{}, flows: map[string]*delivery{}, taken: map[string]*taken{}, stores: map[string]*store{}, well: map[string]time.Time{}}
	for _, q := range questions {
		samples, err := c.query(ctx, q.text)
		if err != nil {
			return s.live, err
		}
		for _, sample := range samples {
			q.note(&s, sample.Metric, float64(sample.Value))
		}
	}
	return s.done(), nil
}

// scrape is an answer in the making.
type scrape struct {
	live
	functions map[string]*process
	flows     map[string]*delivery
	taken     map[string]*taken
	stores    map[string]*store
	well      map[string]time.Time // when a store was last found well again
}

// known gives the entry of a key, which it makes the first time.
func known[T any](all map[string]*T, key string) *T {
	if all[key] == nil {
		all[key] = new(T)
	}
	return all[key]
}

func (s *scrape) function(m model.Metric) *process {
	p := known(s.functions, string(m["service_name"]))
	p.Name = string(m["service_name"])
	return p
}

func (s *scrape) flow(m model.Metric) *delivery {
	d := known(s.flows, string(m["kind"]+"/"+m["name"]))
	d.Kind, d.Name = string(m["kind"]), string(m["name"])
	return d
}

func (s *scrape) take(m model.Metric) *taken {
	t := known(s.taken, string(m["service_name"]+"/"+m["type"]))
	t.Function, t.Type = string(m["service_name"]), string(m["type"])
	return t
}

func (s *scrape) store(m model.Metric) *store {
	st := known(s.stores, string(m["store"]))
	st.Name = string(m["store"])
	return st
}

// add adds to a number that a process may not have.
func add(to **float64, v float64) {
	if *to == nil {
		*to = new(float64)
	}
	**to += v
}

// moment is a Unix time.
func moment(v float64) time.Time { return time.UnixMilli(int64(v * 1000)).UTC() }

// questions are what Prometheus is asked, and what its answers mean, in this order.
var questions = []struct {
	text string
	note func(s *scrape, m model.Metric, v float64)
}{
	{`max by (service_name) (up{service_name!=""})`, func(s *scrape, m model.Metric, v float64) {
		p := s.function(m)
		if p.State = "running"; v == 0 {
			p.State, p.Error = "away", "it does not answer Prometheus"
		}
	}},
	{`sum by (service_name) (process_resident_memory_bytes{service_name!=""})`, func(s *scrape, m model.Metric, v float64) {
		s.function(m).RSSBytes = int64(v)
		s.RSSBytes += int64(v)
	}},
	{`sum by (service_name) (rate(process_cpu_seconds_total{service_name!=""}[1m]))`, func(s *scrape, m model.Metric, v float64) { s.function(m).CPUPercent = 100 * v }},
	{`min by (service_name) (process_start_time_seconds{service_name!=""})`, func(s *scrape, m model.Metric, v float64) { s.function(m).Since = moment(v) }},
	{`sum by (service_name, type) (rate(function_events_total[1m]))`, func(s *scrape, m model.Metric, v float64) {
		s.take(m).PerSecond = v
		add(&s.function(m).PerSecond, v)
	}},
	{`sum by (service_name, type) (rate(function_events_total{` + refused + `}[1m]))`, func(s *scrape, m model.Metric, v float64) {
		s.take(m).FailuresPerSecond = v
		add(&s.function(m).FailuresPerSecond, v)
	}},
	{`sum by (kind, name) (rate(eventing_delivered_total[1m]))`, func(s *scrape, m model.Metric, v float64) { s.flow(m).PerSecond = v }},
	{`sum by (kind, name) (eventing_delivered_total)`, func(s *scrape, m model.Metric, v float64) { s.flow(m).Delivered = uint64(v) }},
	{`sum by (kind, name) (eventing_retries_total)`, func(s *scrape, m model.Metric, v float64) { s.flow(m).Retries = uint64(v) }},
	{`sum by (kind, name) (eventing_dead_lettered_total)`, func(s *scrape, m model.Metric, v float64) { s.flow(m).DeadLettered = uint64(v) }},
	{`sum by (kind, name) (eventing_lag)`, func(s *scrape, m model.Metric, v float64) { s.flow(m).Lag = int64(v) }},
	{`max by (kind, name) (eventing_failing_seconds) > 0`, func(s *scrape, m model.Metric, v float64) {
		d := s.flow(m)
		d.FailingSince, d.LastError = s.Time.Add(-time.Duration(v*float64(time.Second))), "its log says why"
	}},
	{`sum by (verdict) (rate(validate_verdicts_total[1m]))`, func(s *scrape, m model.Metric, v float64) {
		if r := s.verdict(m); r != nil {
			r.PerSecond += v
			s.Raw.PerSecond += v
		}
	}},
	{`sum by (verdict) (validate_verdicts_total)`, func(s *scrape, m model.Metric, v float64) {
		if r := s.verdict(m); r != nil {
			r.Total += int64(v)
			s.Raw.Total += int64(v)
		}
	}},
	{`sum(deadletter_stored_total)`, func(s *scrape, _ model.Metric, v float64) { s.DeadLetters = uint64(v) }},
	// The latest news of a store counts: one of its users who has not asked since knows
	// nothing of its being well again. It is away since the first of the latest found so.
	{`max by (store) (millrace_store_changed_timestamp_seconds and millrace_store_up == 1)`, func(s *scrape, m model.Metric, v float64) {
		st := s.store(m)
		st.Up, st.Since = true, moment(v)
		s.well[st.Name] = st.Since
	}},
	{`(millrace_store_changed_timestamp_seconds and millrace_store_up == 0)`, func(s *scrape, m model.Metric, v float64) {
		st, at := s.store(m), moment(v)
		if !at.After(s.well[st.Name]) {
			return
		}
		if st.Up || st.Since.IsZero() || at.Before(st.Since) {
			st.Since = at
		}
		st.Up = false
		if name := string(m["service_name"]); !slices.Contains(st.By, name) {
			st.By = append(st.By, name)
		}
	}},
	// How long it was away: from the first to the last time that it was seen so.
	{`max by (store) (max_over_time((timestamp(millrace_store_up == 0))[15m:5s])) - min by (store) (min_over_time((timestamp(millrace_store_up == 0))[15m:5s]))`, func(s *scrape, m model.Metric, v float64) {
		if st := s.store(m); st.Up {
			st.AwaySeconds = max(v, 1)
		}
	}},
}

// verdict is the count of a verdict, nil of one that is neither.
func (s *scrape) verdict(m model.Metric) *rate {
	switch m["verdict"] {
	case "VALID":
		return s.Validated
	case "INVALID":
		return s.Invalid
	}
	return nil
}

// done orders what was found by name.
func (s *scrape) done() live {
	l := s.live
	l.Topics, l.Deliveries, l.Processes, l.Stores = []json.RawMessage{}, []delivery{}, []process{}, []store{}
	for _, p := range s.functions {
		l.Processes = append(l.Processes, *p)
	}
	for _, d := range s.flows {
		l.Deliveries = append(l.Deliveries, *d)
	}
	for _, t := range s.taken {
		l.Taken = append(l.Taken, *t)
	}
	for _, name := range []string{health.Kafka, health.S3, health.Redis, health.Postgres} {
		if st := s.stores[name]; st != nil {
			slices.Sort(st.By)
			if st.Error = ""; !st.Up {
				st.Error = "as " + strings.Join(st.By, ", ") + " found"
			}
			l.Stores = append(l.Stores, *st)
		}
	}
	slices.SortFunc(l.Processes, func(a, b process) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(l.Deliveries, func(a, b delivery) int {
		return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name)
	})
	slices.SortFunc(l.Taken, func(a, b taken) int {
		return strings.Compare(a.Function+" "+a.Type, b.Function+" "+b.Type)
	})
	if all := l.Validated.PerSecond + l.Invalid.PerSecond; all > 0 {
		l.InvalidShare = l.Invalid.PerSecond / all
	}
	return l
}

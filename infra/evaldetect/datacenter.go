package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/model"
)

// scope is how much of a configuration is simulated.
type scope struct {
	seed uint64
	// servers and services are at most how many; rates a day are for all that the
	// configuration has.
	servers, services int
	// live is at most how long, readings at most how many of each entity.
	live     time.Duration
	readings int
	start    time.Time
	// forest is the folder of the isolation forest's bundle, "" for none.
	forest string
}

// tally is what came of the anomalies of one type, or of all.
type tally struct {
	episodes, found int
	// wrong are the anomalies that were detected where there is none.
	wrong int
	// delays are from the beginning to the detection, in readings.
	delays []float64
}

func (t *tally) add(o *tally) {
	t.episodes, t.found, t.wrong = t.episodes+o.episodes, t.found+o.found, t.wrong+o.wrong
	t.delays = append(t.delays, o.delays...)
}

func (t *tally) precision() float64 { return ratio(t.found, t.found+t.wrong) }
func (t *tally) recall() float64    { return ratio(t.found, t.episodes) }

func (t *tally) f1() float64 {
	return ratio(2*t.found, 2*t.found+t.wrong+t.episodes-t.found)
}

func (t *tally) delay() float64 {
	if len(t.delays) == 0 {
		return math.NaN()
	}
	slices.Sort(t.delays)
	return t.delays[len(t.delays)/2]
}

func ratio(a, b int) float64 {
	if b == 0 {
		return math.NaN()
	}
	return float64(a) / float64(b)
}

// outcome is what came of one configuration.
type outcome struct {
	name     string
	interval time.Duration
	types    map[datacenter.Type]*tally
	other    tally // wrong ones in metrics that no type changes
	forest   tally // what the isolation forest alone finds, of servers
	total    tally
	days     float64 // simulated
	scale    float64 // entities of the configuration for each simulated one
	readings int
	cpu      time.Duration // of judging alone
	severity map[string]int
}

// add takes up what came of the same configuration with another seed.
func (o *outcome) add(p *outcome) {
	for t, v := range p.types {
		o.types[t].add(v)
	}
	o.other.add(&p.other)
	o.forest.add(&p.forest)
	o.total.add(&p.total)
	o.days, o.readings, o.cpu = o.days+p.days, o.readings+p.readings, o.cpu+p.cpu
	for name, n := range p.severity {
		o.severity[name] += n
	}
}

// simulated is one entity with all of its readings.
type simulated struct {
	plan    *anomaly.Plan
	name    string
	service bool
	read    func(at time.Time, values []float64)
}

// found is an anomaly that was detected.
type found struct {
	metric string
	at     time.Time
}

func evaluate(name string, sc scope) (*outcome, error) {
	cfg, err := datacenter.Named(name, "h")
	if err != nil {
		return nil, err
	}
	cfg.Seed, cfg.LiveFrom = sc.seed, sc.start
	all := cfg.Servers + cfg.Services
	cfg.Servers, cfg.Services = min(cfg.Servers, sc.servers), min(cfg.Services, sc.services)
	contracts, err := contract.Open("")
	if err != nil {
		return nil, err
	}
	forest := &anomaly.Forest{}
	if sc.forest != "" {
		bundle, err := model.Load(context.Background(), model.Folder(sc.forest))
		if err != nil {
			return nil, err
		}
		if err := forest.Use(bundle, "starter"); err != nil {
			return nil, err
		}
	}
	plan := func(name string) (*anomaly.Plan, error) {
		c, ok := contracts.Contract(name)
		if !ok {
			return nil, fmt.Errorf("there is no contract %s", name)
		}
		return anomaly.NewPlan(c, forest)
	}
	servers, err := plan("datacenter-server")
	if err != nil {
		return nil, err
	}
	services, err := plan("datacenter-application")
	if err != nil {
		return nil, err
	}
	n := min(int(sc.live/cfg.Interval), sc.readings)
	out := &outcome{name: name, interval: cfg.Interval, types: map[datacenter.Type]*tally{}, severity: map[string]int{},
		days: (time.Duration(n) * cfg.Interval).Hours() / 24, scale: float64(all) / float64(cfg.Servers+cfg.Services)}
	for _, t := range cfg.Anomalies {
		out.types[t] = &tally{}
	}
	sim, err := datacenter.New(cfg)
	if err != nil {
		return nil, err
	}
	end := sc.start.Add(time.Duration(n) * cfg.Interval)
	truth := map[string][]datacenter.Episode{}
	for _, e := range sim.Episodes(sc.start, end) {
		truth[e.Entity] = append(truth[e.Entity], e)
	}

	// Each worker has a Sim of its own and takes the next entity.
	var next atomic.Int64
	var mu sync.Mutex
	var wait sync.WaitGroup
	var failure error
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			sim, err := datacenter.New(cfg)
			for err == nil {
				i := int(next.Add(1)) - 1
				if i >= cfg.Servers+cfg.Services {
					return
				}
				e := &simulated{plan: servers}
				if i < cfg.Servers {
					var r datacenter.ServerReading
					sim.Server(i, sc.start, &r)
					e.name = r.Server
					e.read = func(at time.Time, values []float64) { sim.Server(i, at, &r); copy(values, r.Values[:]) }
				} else {
					var r datacenter.ServiceReading
					i -= cfg.Servers
					sim.Service(i, sc.start, &r)
					e.plan, e.name, e.service = services, r.Service, true
					e.read = func(at time.Time, values []float64) { sim.Service(i, at, &r); copy(values, r.Values[:]) }
				}
				var list []found
				var spent time.Duration
				list, spent, err = e.detect(sc.start, cfg.Interval, n, out, &mu)
				mu.Lock()
				out.readings += n
				out.cpu += spent
				out.match(truth[e.name], list, sc.start, end)
				mu.Unlock()
			}
			mu.Lock()
			failure = err
			mu.Unlock()
		})
	}
	wait.Wait()
	if failure != nil {
		return nil, fmt.Errorf("configuration %s: %w", name, failure)
	}
	out.total = out.other
	out.total.wrong += out.forest.wrong
	for _, t := range out.types {
		out.total.add(t)
	}
	return out, nil
}

// detect learns from two weeks of five minutes, as the backfill gives them, and judges
// the readings that follow.
func (e *simulated) detect(start time.Time, interval time.Duration, n int, out *outcome, mu *sync.Mutex) (list []found, spent time.Duration, err error) {
	step := e.plan.Training.Step
	values := make([]float64, len(e.plan.Metrics))
	history := make([][]anomaly.Bucket, len(values))
	for at := start.Add(-e.plan.History); at.Before(start); at = at.Add(step) {
		e.read(at, values)
		for i, v := range values {
			history[i] = append(history[i], anomaly.Bucket{Number: at.UnixNano() / int64(step), N: 1, Mean: v, Low: v, High: v})
		}
	}
	known := anomaly.Entity{Models: make([]*anomaly.Model, len(values))}
	for i := range values {
		training := e.plan.Training
		training.Floor = e.plan.Floors[i]
		if known.Models[i], err = train(training, history[i], start); err != nil {
			return nil, 0, err
		}
	}
	var state anomaly.State
	var events []anomaly.Event
	readings := make([][]float64, n)
	room := make([]float64, n*len(values))
	for k := range n {
		readings[k] = room[k*len(values) : (k+1)*len(values)]
		e.read(start.Add(time.Duration(k)*interval), readings[k])
	}
	severity := map[string]int{}
	begin := time.Now()
	for k := range n {
		r := anomaly.Reading{Time: start.Add(time.Duration(k) * interval), Entity: e.name, Values: readings[k]}
		events, _, _ = e.plan.Observe(&state, &known, &r, events[:0])
		for _, v := range events {
			switch v.Kind {
			case anomaly.Detected:
				list = append(list, found{v.Anomaly.Details.Metric, v.Anomaly.Timestamp})
				severity["first "+v.Anomaly.Severity]++
			case anomaly.Resolved:
				severity["peak "+v.Anomaly.Severity]++
			}
		}
	}
	spent = time.Since(begin)
	mu.Lock()
	for name, count := range severity {
		out.severity[name] += count
	}
	mu.Unlock()
	return list, spent, nil
}

// match compares what was detected with the truth. An anomaly is right if it was
// detected within an episode of its entity, in a metric that such an episode changes;
// nothing is adjusted.
func (o *outcome) match(truth []datacenter.Episode, list []found, start, end time.Time) {
	first, byForest := make([]time.Time, len(truth)), make([]bool, len(truth))
	for _, f := range list {
		right := false
		for i := range truth {
			e := &truth[i]
			if f.at.Before(e.Start) || !f.at.Before(e.End) || f.metric != "" && !slices.Contains(e.Type.Metrics(), f.metric) {
				continue
			}
			right = true
			byForest[i] = byForest[i] || f.metric == ""
			if first[i].IsZero() || f.at.Before(first[i]) {
				first[i] = f.at
			}
		}
		switch {
		case right:
		case f.metric == "":
			o.forest.wrong++
		default:
			o.blame(f.metric).wrong++
		}
	}
	for i := range truth {
		e := &truth[i]
		// One that began before, or has hardly any reading, cannot be found as such.
		if e.Start.Before(start) || e.Start.Add(10*o.interval).After(end) {
			continue
		}
		t := o.types[e.Type]
		t.episodes++
		if !first[i].IsZero() {
			t.found++
			t.delays = append(t.delays, float64(first[i].Sub(e.Start))/float64(o.interval))
		}
		if byForest[i] {
			o.forest.found++
		}
		if !e.OfService {
			o.forest.episodes++
		}
	}
}

// blame is the tally of the type that a metric is the first sign of.
func (o *outcome) blame(metric string) *tally {
	for _, t := range datacenter.Types() {
		if tally := o.types[t]; tally != nil && slices.Contains(t.Metrics(), metric) {
			return tally
		}
	}
	return &o.other
}

// rows of the table.
func (o *outcome) table(b *strings.Builder) {
	line := func(name string, t *tally) {
		delay := t.delay()
		fmt.Fprintf(b, "%-12s %-20s %8d %6d %9s %7s %7s %9s %9s %11s\n", o.name, name, t.episodes, t.found, number(t.precision(), 3), number(t.recall(), 3),
			number(t.f1(), 3), number(delay, 1), number(delay*o.interval.Seconds(), 1), number(float64(t.wrong)/o.days*o.scale, 1))
	}
	for _, t := range datacenter.Types() {
		if v := o.types[t]; v != nil {
			line(t.String(), v)
		}
	}
	if o.other.wrong > 0 {
		line("(other metrics)", &o.other)
	}
	line("all", &o.total)
	if o.forest.found+o.forest.wrong > 0 {
		line("(forest alone)", &o.forest)
	}
}

func number(v float64, decimals int) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf("%.*f", decimals, v)
}

const header = "configuration type                 episodes  found precision  recall      F1  delay(r)  delay(s) false/day"

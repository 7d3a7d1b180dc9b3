package anomaly

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/shared/contract"
)

// DefaultHistory is how far back models look.
const DefaultHistory = 14 * 24 * time.Hour

// NewPlan makes the plan of a contract, nil if it has no metrics. forest is for
// contracts that name one.
func NewPlan(c *contract.Contract, forest *Forest) (*Plan, error) {
	metrics := c.Metrics()
	if len(metrics) == 0 {
		return nil, nil
	}
	d := c.Detect
	if d == nil {
		d = &contract.Detect{}
	}
	p := &Plan{Contract: c.Name, EntityType: c.Name, History: DefaultHistory, Limits: DefaultLimits(), Training: DefaultTraining()}
	set(&p.EntityType, d.EntityType)
	set(&p.History, d.History)
	set(&p.Training.Step, d.Step)
	set(&p.Training.Period, d.Period)
	set(&p.Training.Margin, d.Margin)
	set(&p.Limits.Alarm, d.Alarm)
	set(&p.Limits.Warn, d.Warn)
	set(&p.Limits.AlarmPoints, d.Points)
	p.Limits.Usual = p.Limits.Warn / cmp.Or(p.Training.Margin, 1)
	p.Limits.AlarmOf = 2*p.Limits.AlarmPoints - 1
	set(&p.Limits.Clear, d.Clear)
	set(&p.Limits.CoolDown, d.CoolDown)
	p.Limits.Follow = p.Training.Period / 12
	p.Limits.Apart = 6 * p.Training.Step

	stl := len(d.Detectors) == 0 || slices.Contains(d.Detectors, contract.STL)
	for i, f := range metrics {
		p.Metrics = append(p.Metrics, f.Name)
		floor := 0.0
		if f.Type == contract.Int64 {
			floor = 0.5
		}
		p.Floors = append(p.Floors, floor)
		p.Learnt = append(p.Learnt, stl && !slices.Contains(d.Except, f.Name))
		if p.Learnt[i] {
			p.Channels = append(p.Channels, Channel{Type: "stl_zscore_" + f.Name, Metric: f.Name, Detector: Expectation{Metric: i}})
		}
	}
	for _, r := range d.Rules {
		score, ok := ScoreOf(r.Severity)
		if !ok {
			return nil, fmt.Errorf("contract %s: a rule of %s has no severity %q", c.Name, r.Field, r.Severity)
		}
		rule := Rule{Metric: slices.Index(p.Metrics, r.Field), Score: score}
		if r.Below != nil {
			rule.Limit, rule.Below = *r.Below, true
		} else {
			rule.Limit = *r.Above
		}
		side := "above"
		if rule.Below {
			side = "below"
		}
		p.Channels = append(p.Channels, Channel{Type: "threshold_" + side + "_" + r.Field, Metric: r.Field, Detector: rule, Rule: true})
	}
	if slices.Contains(d.Detectors, contract.Forest) {
		if forest == nil {
			return nil, fmt.Errorf("contract %s: detect names the model %s, and there is none", c.Name, d.Model)
		}
		p.Forest = d.Model
		p.Channels = append(p.Channels, Channel{Type: "isolation_forest", Detector: forest.of(p.Metrics), Calm: true})
	}
	p.hashes = make([]uint32, len(p.Channels))
	for i, ch := range p.Channels {
		p.hashes[i] = hashOf(ch.Type)
	}
	if err := p.bind(c); err != nil {
		return nil, err
	}
	return p, nil
}

func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// binding says where in a contract's record the parts of a reading are.
type binding struct {
	entity, time int
	key          []int
	metrics      []int
	types        []contract.Type
}

func (p *Plan) bind(c *contract.Contract) error {
	at := func(name string) int {
		return slices.IndexFunc(c.Fields, func(f contract.Field) bool { return f.Name == name })
	}
	p.fields = binding{entity: at(c.Entity), time: at(c.EventTime)}
	for _, name := range c.NaturalKey {
		if name != c.EventTime {
			p.fields.key = append(p.fields.key, at(name))
		}
	}
	for _, name := range p.Metrics {
		p.fields.metrics = append(p.fields.metrics, at(name))
	}
	for i := range c.Fields {
		p.fields.types = append(p.fields.types, c.Fields[i].Type)
	}
	if p.fields.entity < 0 || p.fields.time < 0 {
		return fmt.Errorf("contract %s: entity %q and event time %q should be fields", c.Name, c.Entity, c.EventTime)
	}
	return nil
}

// Fill makes a reading of a record's values, as a contract.Reader gives them. The room
// of r.Values is used again.
func (p *Plan) Fill(r *Reading, values []contract.Value) error {
	b := &p.fields
	e := &values[b.entity]
	if !e.Present || !values[b.time].Present {
		return fmt.Errorf("the record has no entity or no time")
	}
	if b.types[b.entity] == contract.Int64 {
		r.Entity = strconv.FormatInt(e.Int, 10)
	} else {
		r.Entity = string(e.Text)
	}
	r.Time = values[b.time].Time
	h := uint32(2166136261)
	mix := func(c byte) { h = (h ^ uint32(c)) * 16777619 }
	for _, i := range b.key {
		v := &values[i]
		for _, c := range v.Text {
			mix(c)
		}
		for n := uint64(v.Int) ^ math.Float64bits(v.Float) ^ uint64(v.Time.UnixNano()); n != 0; n >>= 8 {
			mix(byte(n))
		}
		mix(0xff)
	}
	r.Key = h
	r.Values = r.Values[:0]
	for _, i := range b.metrics {
		v := &values[i]
		switch {
		case !v.Present:
			r.Values = append(r.Values, math.NaN())
		case b.types[i] == contract.Int64:
			r.Values = append(r.Values, float64(v.Int))
		default:
			r.Values = append(r.Values, v.Float)
		}
	}
	return nil
}

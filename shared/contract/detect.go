package contract

import (
	"fmt"
	"slices"
	"time"
)

// Detect says how anomalies are looked for in the metrics of a contract. All of it has
// defaults: a contract that says nothing has its metrics judged by what is expected of
// the hour.
type Detect struct {
	// EntityType is the entity_type of anomalies; by default the contract's name.
	EntityType string `yaml:"entityType"`
	// Detectors are stl, what is expected of the hour, and forest, an isolation forest;
	// stl if none is named. Rules are judged in any case.
	Detectors []string `yaml:"detectors"`
	// Model is the name of the forest's model, as the registry has it.
	Model string `yaml:"model"`
	// Except are metrics that are not judged by stl.
	Except []string `yaml:"except"`
	Rules  []Rule   `yaml:"rules"`

	// Step is the width of the steps that history is looked at in, Period the season,
	// History how far back is looked; by default 5m, 24h and 336h.
	Step    time.Duration `yaml:"step"`
	Period  time.Duration `yaml:"period"`
	History time.Duration `yaml:"history"`

	// Margin is how far beyond what usual readings reached in the history the warning
	// band begins, as a factor; by default 1. Many entities and few false alarms want more.
	Margin float64 `yaml:"margin"`
	// Alarm and Warn are the distances, in what is usual for the metric, of anomalies
	// and of the warning band. Points is how many readings the former takes, Clear how
	// many usual ones end it, CoolDown for how many nothing is said then. 0 takes the
	// defaults, which package anomaly states.
	Alarm    float64 `yaml:"alarm"`
	Warn     float64 `yaml:"warn"`
	Points   int     `yaml:"points"`
	Clear    int     `yaml:"clear"`
	CoolDown int     `yaml:"coolDown"`
}

// Rule is a limit of a metric.
type Rule struct {
	Field string `yaml:"field"`
	// One of Above and Below is given: the value is odd above, or below, that.
	Above *float64 `yaml:"above"`
	Below *float64 `yaml:"below"`
	// Severity is low, medium, high or critical.
	Severity string `yaml:"severity"`
}

// The detectors that can be named.
const (
	STL    = "stl"
	Forest = "forest"
)

// maxSteps bounds a season, and so the size of a model.
const maxSteps = 10_000

func (k *checker) detect(c *Contract) {
	d := c.Detect
	if d == nil {
		return
	}
	if len(c.Metrics()) == 0 {
		k.at("$.detect", "detect: no field is a metric")
	}
	for i, name := range d.Detectors {
		path := fmt.Sprintf("$.detect.detectors[%d]", i)
		if name != STL && name != Forest {
			k.at(path, "detect: there is no detector %q: %s or %s", name, STL, Forest)
		}
		if slices.Contains(d.Detectors[:i], name) {
			k.at(path, "detect: detector %s is named twice", name)
		}
	}
	if slices.Contains(d.Detectors, Forest) != (d.Model != "") {
		k.at("$.detect", "detect: model and the detector %s need each other", Forest)
	}
	metric := func(path, name string) {
		if f := c.Field(name); f == nil || !f.Metric {
			k.at(path, "detect: there is no metric %q", name)
		}
	}
	for i, name := range d.Except {
		metric(fmt.Sprintf("$.detect.except[%d]", i), name)
	}
	for i, r := range d.Rules {
		path := fmt.Sprintf("$.detect.rules[%d]", i)
		metric(path+".field", r.Field)
		if (r.Above == nil) == (r.Below == nil) {
			k.at(path, "detect: a rule of %s needs one of above and below", r.Field)
		}
		if !slices.Contains([]string{"low", "medium", "high", "critical"}, r.Severity) {
			k.at(path, "detect: a rule of %s needs a severity: low, medium, high or critical", r.Field)
		}
		if slices.ContainsFunc(d.Rules[:i], func(o Rule) bool { return o.Field == r.Field && (o.Above == nil) == (r.Above == nil) }) {
			k.at(path, "detect: %s has two rules for the same side", r.Field)
		}
	}
	for _, v := range []struct {
		name      string
		of, least time.Duration
	}{{"step", d.Step, time.Second}, {"period", d.Period, time.Minute}, {"history", d.History, time.Hour}} {
		if v.of != 0 && v.of < v.least {
			k.at("$.detect."+v.name, "detect: %s: %s is less than %s", v.name, v.of, v.least)
		}
	}
	step, period := d.Step, d.Period
	if step == 0 {
		step = 5 * time.Minute
	}
	if period == 0 {
		period = 24 * time.Hour
	}
	if step > 0 && (period%step != 0 || period/step < 2 || period/step > maxSteps) {
		k.at("$.detect", "detect: a period of %s should be 2 to %d steps of %s", period, maxSteps, step)
	}
	for _, v := range []struct {
		name string
		bad  bool
	}{{"margin", d.Margin != 0 && !(d.Margin >= 0.1 && d.Margin <= 10)}, {"alarm", d.Alarm < 0}, {"warn", d.Warn < 0}, {"points", d.Points < 0 || d.Points > 16}, {"clear", d.Clear < 0 || d.Clear > 16},
		{"coolDown", d.CoolDown < 0 || d.CoolDown > 100_000}} {
		if v.bad {
			k.at("$.detect."+v.name, "detect: %s is out of range", v.name)
		}
	}
	if d.Warn > 0 && d.Alarm > 0 && d.Warn > d.Alarm {
		k.at("$.detect.warn", "detect: warn is greater than alarm")
	}
}

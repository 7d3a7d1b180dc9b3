package main

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/millrace-dev/millrace/shared/events"
)

//go:embed rules.yaml
var embeddedRules []byte

// rules is a file of rules.
type rules struct {
	Rules []*rule `yaml:"rules"`
	Sinks []*sink `yaml:"sinks"`
}

// rule is one of them; rules.yaml says what its fields mean.
type rule struct {
	Name         string              `yaml:"name"`
	On           []string            `yaml:"on"`
	ResolvedBy   []string            `yaml:"resolvedBy"`
	Labels       map[string]string   `yaml:"labels"`
	Group        []string            `yaml:"group"`
	Member       []string            `yaml:"member"`
	Only         map[string][]string `yaml:"only"`
	Severity     severityOf          `yaml:"severity"`
	Unreadable   severity            `yaml:"unreadable"`
	Summary      string              `yaml:"summary"`
	Remember     bool                `yaml:"remember"`
	ResolveAfter time.Duration       `yaml:"resolveAfter"`
	Rate         *rate               `yaml:"rate"`
	Sinks        []string            `yaml:"sinks"`

	summary summary
	sinks   []*sink
}

// rate bounds the alerts that are told of.
type rate struct {
	Alerts int           `yaml:"alerts"`
	Per    time.Duration `yaml:"per"`
}

// severity says how bad it is.
type severity string

// ranks orders severities.
var ranks = map[severity]int{"LOW": 1, "MEDIUM": 2, "HIGH": 3, "CRITICAL": 4}

// severityOf is a severity, or how it follows from a label.
type severityOf struct {
	Fixed    severity
	From     string
	Contains map[string]severity
	Default  severity
}

// UnmarshalYAML reads one or the other.
func (s *severityOf) UnmarshalYAML(b []byte) error {
	if yaml.Unmarshal(b, &s.Fixed) == nil {
		return nil
	}
	var raw struct {
		From     string              `yaml:"from"`
		Contains map[string]severity `yaml:"contains"`
		Default  severity            `yaml:"default"`
	}
	if err := yaml.UnmarshalWithOptions(b, &raw, yaml.Strict()); err != nil {
		return err
	}
	s.From, s.Contains, s.Default = raw.From, raw.Contains, raw.Default
	return nil
}

// of gives the severity that labels ask for.
func (s *severityOf) of(labels map[string]string) severity {
	if s.Fixed != "" {
		return s.Fixed
	}
	value := strings.ToLower(labels[s.From])
	best := s.Default
	found := false
	for part, level := range s.Contains {
		if strings.Contains(value, strings.ToLower(part)) && (!found || ranks[level] > ranks[best]) {
			best, found = level, true
		}
	}
	return best
}

// openRules reads the rules of a file, or those that ship. getenv finds the addresses
// of sinks.
func openRules(file string, getenv func(string) string) (*rules, error) {
	text, name := embeddedRules, "embedded rules"
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("ALERT_RULES: %w", err)
		}
		name = file
	}
	r := &rules{}
	if err := yaml.UnmarshalWithOptions(text, r, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("reading %s: %s", name, yaml.FormatError(err, false, true))
	}
	if err := r.compile(getenv); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return r, nil
}

// taken are the types that a rule may be on.
var taken = []string{events.BehaviorInvalid, events.MetricInvalid, events.AnomalyDetected, events.AnomalyResolved, events.DriftDetected, events.DriftMeasured,
	events.ModelPromoted, events.TrainingFailed, events.TrainingCompleted, events.ETLFailed}

var names = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// labelNames are those that Alertmanager takes.
var labelNames = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,62}$`)

func (r *rules) compile(getenv func(string) string) error {
	known := map[string]*sink{}
	for i, s := range r.Sinks {
		if err := s.compile(getenv); err != nil {
			return fmt.Errorf("sinks[%d] (%s): %w", i, s.Name, err)
		}
		if known[s.Name] != nil {
			return fmt.Errorf("sinks[%d]: name: %q is given twice", i, s.Name)
		}
		known[s.Name] = s
	}
	if len(r.Rules) == 0 {
		return errors.New("rules: none")
	}
	seen := map[string]bool{}
	for i, rule := range r.Rules {
		if err := rule.compile(r.Sinks, known); err != nil {
			return fmt.Errorf("rules[%d] (%s): %w", i, rule.Name, err)
		}
		if seen[rule.Name] {
			return fmt.Errorf("rules[%d]: name: %q is given twice", i, rule.Name)
		}
		seen[rule.Name] = true
	}
	return nil
}

func (r *rule) compile(all []*sink, known map[string]*sink) error {
	if !names.MatchString(r.Name) {
		return fmt.Errorf("name: %q must be of a-z, 0-9, - and _", r.Name)
	}
	if len(r.On) == 0 {
		return errors.New("on: required")
	}
	for _, typ := range slices.Concat(r.On, r.ResolvedBy) {
		if !slices.Contains(taken, typ) {
			return fmt.Errorf("on, resolvedBy: %q is none of the types that are delivered here: %s", typ, strings.Join(taken, ", "))
		}
	}
	for _, typ := range r.ResolvedBy {
		if slices.Contains(r.On, typ) {
			return fmt.Errorf("resolvedBy: %q stands under on too", typ)
		}
	}
	for label, from := range r.Labels {
		if !labelNames.MatchString(label) || slices.Contains(reserved, label) {
			return fmt.Errorf("labels: %q is no name of a label, or one that every alert has (%s)", label, strings.Join(reserved, ", "))
		}
		if from == "" || from == "data." {
			return fmt.Errorf("labels: %s: says not where it is from", label)
		}
	}
	if len(r.Group) == 0 {
		return errors.New("group: required")
	}
	for _, label := range slices.Concat(r.Group, r.Member, slices.Collect(maps.Keys(r.Only))) {
		if r.Labels[label] == "" {
			return fmt.Errorf("group, member, only: there is no label %q", label)
		}
	}
	if len(r.Member) > 0 && len(r.ResolvedBy) == 0 {
		return errors.New("member: needs resolvedBy")
	}
	if err := r.Severity.check(r.Labels); err != nil {
		return fmt.Errorf("severity: %w", err)
	}
	if r.Unreadable = cmp.Or(r.Unreadable, "LOW"); ranks[r.Unreadable] == 0 {
		return fmt.Errorf("unreadable: %q is none of LOW, MEDIUM, HIGH, CRITICAL", r.Unreadable)
	}
	if r.ResolveAfter < 0 {
		return errors.New("resolveAfter: must not be negative")
	}
	if r.ResolveAfter == 0 && len(r.ResolvedBy) == 0 {
		return errors.New("resolveAfter: nothing would resolve it: set it, or resolvedBy")
	}
	if r.Rate != nil && (r.Rate.Alerts < 1 || r.Rate.Per <= 0) {
		return errors.New("rate: wants alerts and per above 0")
	}
	var err error
	if r.summary, err = parseSummary(r.Summary, r.Labels); err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	chosen := all
	if r.Sinks != nil {
		chosen = nil
		for _, name := range r.Sinks {
			if known[name] == nil {
				return fmt.Errorf("sinks: there is no sink %q", name)
			}
			chosen = append(chosen, known[name])
		}
	}
	for _, s := range chosen {
		if s.on() {
			r.sinks = append(r.sinks, s)
		}
	}
	return nil
}

// reserved are labels that every alert has.
var reserved = []string{"alertname", "severity", "rule"}

func (s *severityOf) check(labels map[string]string) error {
	if s.Fixed != "" {
		if ranks[s.Fixed] == 0 {
			return fmt.Errorf("%q is none of LOW, MEDIUM, HIGH, CRITICAL", s.Fixed)
		}
		return nil
	}
	if labels[s.From] == "" {
		return fmt.Errorf("from: there is no label %q", s.From)
	}
	for _, level := range append(slices.Collect(maps.Values(s.Contains)), s.Default) {
		if ranks[level] == 0 {
			return fmt.Errorf("contains, default: %q is none of LOW, MEDIUM, HIGH, CRITICAL", level)
		}
	}
	return nil
}

// summary is a text with places for labels.
type summary []piece

// piece is a text and the label behind it, "" for none, with what stands for an empty one.
type piece struct{ text, label, fallback string }

// place is what stands for a label. It looks like one of text/template, which is not used:
// with it in a program the linker keeps every method of every type, which is a fifth of the
// program and so of its memory.
var place = regexp.MustCompile(`^\{\{ *(?:\.([a-zA-Z0-9_]+)|or +\.([a-zA-Z0-9_]+) +"([^"{}]*)") *\}\}`)

// parseSummary reads a summary over labels.
func parseSummary(text string, labels map[string]string) (summary, error) {
	if text == "" {
		return nil, errors.New("required")
	}
	var out summary
	for text != "" {
		before, _, more := strings.Cut(text, "{{")
		p := piece{text: before}
		text = text[len(before):]
		if more {
			m := place.FindStringSubmatch(text)
			if m == nil {
				return nil, fmt.Errorf(`%q: want {{.label}} or {{or .label "what stands for an empty one"}}`, cut(text, 60))
			}
			p.label, p.fallback = cmp.Or(m[1], m[2]), m[3]
			if _, ok := labels[p.label]; !ok {
				return nil, fmt.Errorf("there is no label %q", p.label)
			}
			text = text[len(m[0]):]
		}
		out = append(out, p)
	}
	return out, nil
}

// of writes the summary, on one line.
func (s summary) of(labels map[string]string) string {
	var b strings.Builder
	for _, p := range s {
		b.WriteString(p.text)
		if p.label != "" {
			b.WriteString(cmp.Or(labels[p.label], p.fallback))
		}
	}
	return cut(strings.Join(strings.Fields(b.String()), " "), 500)
}

// cut bounds a text.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-3], "") + "..."
}

// kinds of sinks.
const (
	kindLog          = "log"
	kindWebhook      = "webhook"
	kindSlack        = "slack"
	kindAlertmanager = "alertmanager"
)

// sink is somebody who is told.
type sink struct {
	Name     string        `yaml:"name"`
	Kind     string        `yaml:"kind"`
	URLEnv   string        `yaml:"urlEnv"`
	TokenEnv string        `yaml:"tokenEnv"`
	AtLeast  severity      `yaml:"atLeast"`
	Remind   time.Duration `yaml:"remind"`

	url, token string
}

func (s *sink) compile(getenv func(string) string) error {
	if !names.MatchString(s.Name) {
		return fmt.Errorf("name: %q must be of a-z, 0-9, - and _", s.Name)
	}
	if s.AtLeast != "" && ranks[s.AtLeast] == 0 {
		return fmt.Errorf("atLeast: %q is none of LOW, MEDIUM, HIGH, CRITICAL", s.AtLeast)
	}
	if s.Remind < 0 {
		return errors.New("remind: must not be negative")
	}
	switch s.Kind {
	case kindLog:
		if s.URLEnv != "" || s.TokenEnv != "" {
			return errors.New("urlEnv, tokenEnv: a log has none")
		}
		return nil
	case kindWebhook, kindSlack, kindAlertmanager:
	default:
		return fmt.Errorf("kind: %q is none of log, webhook, slack, alertmanager", s.Kind)
	}
	if s.URLEnv == "" {
		return errors.New("urlEnv: required")
	}
	s.url = strings.TrimSuffix(getenv(s.URLEnv), "/")
	if s.TokenEnv != "" {
		s.token = getenv(s.TokenEnv)
	}
	if s.url == "" {
		return nil
	}
	// The address itself may be a secret, and is not repeated.
	if u, err := url.Parse(s.url); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%s: must be an http or https address", s.URLEnv)
	}
	return nil
}

// on tells whether it has an address, if it needs one.
func (s *sink) on() bool { return s.Kind == kindLog || s.url != "" }

// wants tells whether it is told of a severity.
func (s *sink) wants(level severity) bool { return ranks[level] >= ranks[s.AtLeast] }

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

//go:embed policies.yaml
var builtinPolicies []byte

// policy is when a model is trained and served; policies.yaml explains the fields.
type policy struct {
	Rows *rowsPolicy `yaml:"rows"`
	// Every is 0 where there is no schedule.
	Every         time.Duration  `yaml:"every"`
	Drift         bool           `yaml:"drift"`
	Cooldown      time.Duration  `yaml:"cooldown"`
	DriftCooldown time.Duration  `yaml:"drift_cooldown"`
	Deadline      time.Duration  `yaml:"deadline"`
	Retry         time.Duration  `yaml:"retry"`
	Request       map[string]any `yaml:"request"`
	DriftRequest  map[string]any `yaml:"drift_request"`
	SinceDrift    bool           `yaml:"since_drift"`
	Gate          gate           `yaml:"gate"`
}

type rowsPolicy struct {
	Query  string `yaml:"query"`
	First  int64  `yaml:"first"`
	More   int64  `yaml:"more"`
	OnGold bool   `yaml:"on_gold"`
}

// longestRetry bounds the pause after failed runs.
const longestRetry = time.Hour

// readPolicies reads the policies of a file, or the built-in ones. Its errors name the
// model and the field.
func readPolicies(file string) (map[string]*policy, error) {
	text, name := builtinPolicies, "the built-in policies"
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("LEARNING_POLICIES: %w", err)
		}
		name = "LEARNING_POLICIES " + file
	}
	var all struct {
		Models map[string]*policy `yaml:"models"`
	}
	if err := yaml.UnmarshalWithOptions(text, &all, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %s", name, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if len(all.Models) == 0 {
		return nil, fmt.Errorf("%s: models is empty", name)
	}
	for _, model := range slices.Sorted(maps.Keys(all.Models)) {
		if err := all.Models[model].check(); err != nil {
			return nil, fmt.Errorf("%s: model %s: %w", name, model, err)
		}
	}
	return all.Models, nil
}

func (p *policy) check() error {
	switch {
	case p == nil:
		return errors.New("is empty")
	case p.Rows != nil && (p.Rows.Query == "" || p.Rows.First < 1 || p.Rows.More < 1):
		return errors.New("rows: query is required, first and more have to be at least 1")
	case p.Every < 0 || p.Cooldown < 0 || p.DriftCooldown < 0:
		return errors.New("every, cooldown, drift_cooldown: must not be negative")
	case p.Deadline <= 0:
		return errors.New("deadline: is required and has to be above 0")
	case p.Retry <= 0:
		return errors.New("retry: is required and has to be above 0")
	case p.Gate.Tolerance < 0:
		return errors.New("gate.tolerance: must not be negative")
	}
	for _, field := range []string{"model", "reason", "as_of"} {
		for name, fields := range map[string]map[string]any{"request": p.Request, "drift_request": p.DriftRequest} {
			if _, set := fields[field]; set {
				return fmt.Errorf("%s.%s: is set by each request itself", name, field)
			}
		}
	}
	if _, set := p.DriftRequest["since"]; set && p.SinceDrift {
		return errors.New("drift_request.since: is set by since_drift")
	}
	return nil
}

// Why a run is asked for.
const (
	forRows     = "rows"
	forSchedule = "schedule"
	forDrift    = "drift"
	forDemand   = "demand"
	forRetry    = "retry"
)

// want is a run that could not be asked for yet.
type want struct {
	For, Source, ID string
	// Since is when the window began in which drift was detected, zero if unknown.
	Since time.Time
}

// memory is what the policy of a model remembers.
type memory struct {
	// TrainedUntil is zero before the first model.
	TrainedUntil time.Time
	Wanted       *want
	Failures     int
	// Requested and Ended are those of the last run; zero when there is none, or when it
	// has not ended.
	Requested, Ended time.Time
	// Open is set while a run has not been judged.
	Open bool
}

// due tells whether to ask for a run now, for what, and why in words. rows counts the
// new rows; it is called only when they decide.
func (p *policy) due(m memory, now time.Time, rows func() (int64, error)) (what, why string, err error) {
	if m.Open {
		return "", "", nil
	}
	if m.Failures > 0 && now.Before(m.Ended.Add(p.pause(m.Failures))) {
		return "", "", nil
	}
	rested := func(d time.Duration) bool { return m.Requested.IsZero() || !now.Before(m.Requested.Add(d)) }
	if m.Wanted != nil {
		switch {
		case m.Wanted.For == forRetry:
			return forRetry, "the run before could not do its work", nil
		case rested(p.DriftCooldown):
			return m.Wanted.For, "drift was detected", nil
		}
	}
	// Before the first model, only failed runs make it wait.
	if !m.TrainedUntil.IsZero() && !rested(p.Cooldown) {
		return "", "", nil
	}
	if p.Every > 0 && !m.TrainedUntil.IsZero() && !now.Before(m.TrainedUntil.Add(p.Every)) {
		return forSchedule, fmt.Sprintf("the last model is of %s, more than %s ago", m.TrainedUntil.UTC().Format(time.RFC3339), p.Every), nil
	}
	if p.Rows == nil {
		return "", "", nil
	}
	enough := p.Rows.More
	if m.TrainedUntil.IsZero() {
		enough = p.Rows.First
	}
	n, err := rows()
	if err != nil || n < enough {
		return "", "", err
	}
	return forRows, fmt.Sprintf("%d new rows, of which %d are enough", n, enough), nil
}

// pause is how long to wait after so many failed runs in a row.
func (p *policy) pause(failures int) time.Duration {
	return min(p.Retry<<min(failures-1, 20), max(longestRetry, p.Retry))
}

package main

import (
	"fmt"
	"math"
)

// gate is what a model has to pass to be served.
type gate struct {
	Gain      string  `yaml:"gain"`
	Tolerance float64 `yaml:"tolerance"`
	Baseline  string  `yaml:"baseline"`
}

// report is the data of training.completed, as far as it is judged by.
type report struct {
	Model    string             `json:"model"`
	Version  string             `json:"version"`
	RunID    string             `json:"run_id"`
	Digest   string             `json:"digest"`
	Metrics  map[string]measure `json:"metrics"`
	Champion *champion          `json:"champion"`
	Request  request            `json:"request"`
}

// request names the event that asked for a run.
type request struct {
	Source string `json:"source"`
	ID     string `json:"id"`
}

// measure is a number and its confidence interval of 95 %, if there is one.
type measure struct {
	Value float64  `json:"value"`
	Low   *float64 `json:"low,omitempty"`
	High  *float64 `json:"high,omitempty"`
}

func (m measure) String() string {
	if m.Low == nil || m.High == nil {
		return fmt.Sprintf("%+.5f", m.Value)
	}
	return fmt.Sprintf("%+.5f (95 %% between %+.5f and %+.5f)", m.Value, *m.Low, *m.High)
}

// champion is the version that a model was compared with.
type champion struct {
	Version string `json:"version"`
	// Error says why it could not be.
	Error string `json:"error"`
	// SawTestRows is set when it was trained on rows of the window that both were
	// judged by, so that it looks better than it is.
	SawTestRows bool `json:"saw_test_rows"`
}

// verdict is what the gate says.
type verdict struct {
	promote bool
	reason  string
}

// judge decides whether a model is to be served. serving is the version that is, ""
// if there is none; broken says why the new bundle cannot be served, nil if it can.
//
// The new model passes when it beats the baseline, and is not worse than the version
// that serves on the window that came after all it has seen. Where none serves, it has
// to beat the baseline for sure: predict has another model to serve meanwhile.
func (g *gate) judge(r *report, serving string, broken error) verdict {
	keep := func(format string, args ...any) verdict { return verdict{reason: fmt.Sprintf(format, args...)} }
	if r.Version == "" {
		return keep("it was not registered")
	}
	if r.Version == serving {
		return keep("it serves already")
	}
	if broken != nil {
		return keep("its bundle cannot be served: %v", broken)
	}
	beats := ""
	if g.Baseline != "" {
		m, err := r.measure(g.Baseline)
		if err != nil {
			return keep("%v", err)
		}
		if m.Value <= 0 {
			return keep("it is no better than no model: %s is %s", g.Baseline, m)
		}
		if serving == "" && m.Low != nil && *m.Low <= 0 {
			return keep("it may be no better than no model: %s is %s", g.Baseline, m)
		}
		beats = fmt.Sprintf("; %s is %s", g.Baseline, m)
	}
	switch {
	case serving == "":
		return verdict{true, "it is the first" + beats}
	case r.Champion == nil || r.Champion.Version != serving:
		with := "nothing"
		if r.Champion != nil {
			with = "version " + r.Champion.Version
		}
		return keep("it was compared with %s, and version %s serves", with, serving)
	case r.Champion.Error != "":
		return verdict{true, fmt.Sprintf("version %s, which serves, cannot be compared with: %s%s", serving, r.Champion.Error, beats)}
	case g.Gain == "":
		return verdict{true, "every model is served" + beats}
	}
	m, err := r.measure(g.Gain)
	if err != nil {
		return keep("%v", err)
	}
	saw := ""
	if r.Champion.SawTestRows {
		saw = ", which has seen rows of the window"
	}
	if m.Value < -g.Tolerance {
		return keep("it is worse than version %s%s: %s is %s, allowed is %g", serving, saw, g.Gain, m, -g.Tolerance)
	}
	return verdict{true, fmt.Sprintf("it is not worse than version %s%s: %s is %s%s", serving, saw, g.Gain, m, beats)}
}

func (r *report) measure(name string) (measure, error) {
	m, ok := r.Metrics[name]
	if !ok {
		return m, fmt.Errorf("the trainer has not measured %s", name)
	}
	if math.IsNaN(m.Value) || math.IsInf(m.Value, 0) {
		return m, fmt.Errorf("%s is %g", name, m.Value)
	}
	return m, nil
}

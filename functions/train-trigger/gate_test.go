package main

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func TestGate(t *testing.T) {
	number := func(f float64) *float64 { return &f }
	const gain, baseline = "champion_log_loss_gain", "baseline_log_loss_gain"
	g := gate{Gain: gain, Tolerance: 0.001, Baseline: baseline}
	metrics := func(over map[string]float64) map[string]measure {
		m := map[string]measure{baseline: {Value: 0.02, Low: number(0.01), High: number(0.03)}, gain: {Value: 0.004}}
		for name, v := range over {
			m[name] = measure{Value: v}
			if math.IsInf(v, -1) {
				delete(m, name)
			}
		}
		return m
	}
	gone := math.Inf(-1)
	for _, c := range []struct {
		name    string
		report  report
		serving string
		broken  error
		gate    gate
		promote bool
		says    string
	}{
		{"the first model", report{Version: "1", Metrics: metrics(nil)}, "", nil, g, true, "it is the first; baseline_log_loss_gain is +0.02000 (95 % between +0.01000 and +0.03000)"},
		{"the first, no better than none", report{Version: "1", Metrics: metrics(map[string]float64{baseline: -0.001})}, "", nil, g, false, "no better than no model: baseline_log_loss_gain is -0.00100"},
		{"the first, which may be luck", report{Version: "1", Metrics: map[string]measure{baseline: {Value: 0.02, Low: number(-0.01), High: number(0.05)}}}, "", nil, g, false, "may be no better than no model: baseline_log_loss_gain is +0.02000 (95 % between -0.01000 and +0.05000)"},
		{"as good as none", report{Version: "1", Metrics: metrics(map[string]float64{baseline: 0})}, "", nil, g, false, "no better"},
		{"better", report{Version: "2", Metrics: metrics(nil), Champion: &champion{Version: "1"}}, "1", nil, g, true, "not worse than version 1: champion_log_loss_gain is +0.00400"},
		{"worse within the tolerance", report{Version: "2", Metrics: metrics(map[string]float64{gain: -0.001}), Champion: &champion{Version: "1"}}, "1", nil, g, true, "not worse"},
		{"worse", report{Version: "2", Metrics: metrics(map[string]float64{gain: -0.0011}), Champion: &champion{Version: "1"}}, "1", nil, g, false, "worse than version 1: champion_log_loss_gain is -0.00110, allowed is -0.001"},
		{"worse than one that has seen the window", report{Version: "2", Metrics: metrics(map[string]float64{gain: -1}), Champion: &champion{Version: "1", SawTestRows: true}}, "1", nil, g, false, "which has seen rows of the window"},
		{"better than the champion, worse than none", report{Version: "2", Metrics: metrics(map[string]float64{baseline: -1}), Champion: &champion{Version: "1"}}, "1", nil, g, false, "no better than no model"},
		{"compared with another", report{Version: "3", Metrics: metrics(nil), Champion: &champion{Version: "1"}}, "2", nil, g, false, "compared with version 1, and version 2 serves"},
		{"compared with none", report{Version: "3", Metrics: metrics(nil)}, "2", nil, g, false, "compared with nothing, and version 2 serves"},
		{"champion that cannot be read", report{Version: "2", Metrics: metrics(nil), Champion: &champion{Version: "1", Error: "half a file"}}, "1", nil, g, true, "cannot be compared with: half a file"},
		{"corrupt", report{Version: "2", Metrics: metrics(nil), Champion: &champion{Version: "1"}}, "1", errors.New("model.json: 50 bytes"), g, false, "cannot be served: model.json: 50 bytes"},
		{"corrupt and the first", report{Version: "1", Metrics: metrics(nil)}, "", errors.New("x"), g, false, "cannot be served"},
		{"serves already", report{Version: "2", Metrics: metrics(nil)}, "2", nil, g, false, "serves already"},
		{"not registered", report{Metrics: metrics(nil)}, "", nil, g, false, "not registered"},
		{"not measured", report{Version: "2", Metrics: metrics(map[string]float64{gain: gone}), Champion: &champion{Version: "1"}}, "1", nil, g, false, "has not measured champion_log_loss_gain"},
		{"baseline not measured", report{Version: "2", Metrics: metrics(map[string]float64{baseline: gone})}, "", nil, g, false, "has not measured baseline_log_loss_gain"},
		{"no number", report{Version: "2", Metrics: metrics(map[string]float64{gain: math.NaN()}), Champion: &champion{Version: "1"}}, "1", nil, g, false, "is NaN"},
		{"no measures asked for", report{Version: "2", Champion: &champion{Version: "1"}}, "1", nil, gate{}, true, "every model is served"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := c.gate.judge(&c.report, c.serving, c.broken)
			if v.promote != c.promote || !strings.Contains(v.reason, c.says) {
				t.Errorf("%t: %s\nwant %t: ...%s", v.promote, v.reason, c.promote, c.says)
			}
		})
	}
}

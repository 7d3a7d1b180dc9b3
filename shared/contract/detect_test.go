package contract

import (
	"strings"
	"testing"
	"time"
)

func TestDetectIsRead(t *testing.T) {
	const detect = `detect:
  entityType: scale
  detectors: [stl, forest]
  model: good_model
  except: [pieces]
  rules:
    - {field: weight, above: 9, severity: high}
    - {field: weight, below: 1, severity: low}
  step: 1m
  period: 1h
  margin: 1.5
fields:
`
	metrics := strings.ReplaceAll(strings.Replace(good, "fields:\n", detect, 1), "    max: 10\n", "    max: 10\n    metric: true\n")
	metrics = strings.Replace(metrics, "    type: int64\n", "    type: int64\n    metric: true\n", 1)
	set, err := load(map[string]string{"good.yaml": metrics})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := set.Contract("good")
	if d := c.Detect; d.EntityType != "scale" || d.Step != time.Minute || len(d.Rules) != 2 || *d.Rules[1].Below != 1 || d.Margin != 1.5 {
		t.Errorf("%+v", d)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "  margin: 1.5", "  marge: 1.5", `unknown field "marge"`},
		{"unknown detector", "[stl, forest]", "[stl, woods]", `there is no detector "woods": stl or forest`},
		{"detector twice", "[stl, forest]", "[stl, forest, stl]", "detector stl is named twice"},
		{"forest without a model", "  model: good_model\n", "", "model and the detector forest need each other"},
		{"model without a forest", "[stl, forest]", "[stl]", "model and the detector forest need each other"},
		{"exception that is no metric", "except: [pieces]", "except: [colour]", `there is no metric "colour"`},
		{"rule of what is no metric", "{field: weight, above", "{field: id, above", `there is no metric "id"`},
		{"rule without a limit", "above: 9, ", "", "a rule of weight needs one of above and below"},
		{"rule without a severity", "above: 9, severity: high", "above: 9", "a rule of weight needs a severity: low, medium, high or critical"},
		{"two rules of a side", "below: 1", "above: 1", "weight has two rules for the same side"},
		{"step", "step: 1m", "step: 1ms", "step: 1ms is less than 1s"},
		{"period of no whole steps", "step: 1m", "step: 7m", "a period of 1h0m0s should be 2 to 10000 steps of 7m0s"},
		{"no duration", "step: 1m", "step: soon", "soon"},
		{"margin", "margin: 1.5", "margin: 50", "margin is out of range"},
		{"warn above alarm", "margin: 1.5", "alarm: 2\n  warn: 3", "warn is greater than alarm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(metrics, c.old, c.new, 1)
			if text == metrics {
				t.Fatalf("there is no %q", c.old)
			}
			_, err := load(map[string]string{"good.yaml": text})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "good.yaml:") {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	if _, err := load(map[string]string{"good.yaml": strings.Replace(good, "fields:\n", "detect: {entityType: scale}\nfields:\n", 1)}); err == nil || !strings.Contains(err.Error(), "no field is a metric") {
		t.Error(err)
	}
}

package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
)

const small = `rules:
  - name: a
    on: [dev.millrace.etl.failed.v1]
    labels: {step: step}
    group: [step]
    severity: HIGH
    summary: "at {{.step}}"
    resolveAfter: 1h
sinks:
  - {name: hook, kind: webhook, urlEnv: HOOK}
`

func TestRules_areStrict(t *testing.T) {
	read := func(text, address string) error {
		file := filepath.Join(t.TempDir(), "rules.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openRules(file, func(string) string { return address })
		return err
	}
	if err := read(small, "http://127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"resolveAfter: 1h", "resolveAfter: 1h\n    when: always", `unknown field "when"`},
		{"resolveAfter: 1h", "", "resolveAfter: nothing would resolve it"},
		{"dev.millrace.etl.failed.v1", "dev.millrace.tick.v1", `"dev.millrace.tick.v1" is none of the types`},
		{"group: [step]", "group: [steps]", `there is no label "steps"`},
		{"group: [step]", "", "group: required"},
		{"HIGH", "URGENT", `"URGENT" is none of`},
		{"severity: HIGH", "severity: {from: level, default: LOW}", `severity: from: there is no label "level"`},
		{"severity: HIGH", "severity: {from: step, default: no}", `contains, default: "no" is none`},
		{"severity: HIGH", "severity: {of: step, default: LOW}", `unknown field "of"`},
		{"{{.step}}", "{{.other}}", "summary:"},
		{"{{.step}}", "{{.step", "summary:"},
		{"name: a", "name: A b", "name:"},
		{"labels: {step: step}", "labels: {step: step, severity: x}", `labels: "severity"`},
		{"summary:", "rate: {alerts: 0, per: 1h}\n    summary:", "rate: wants"},
		{"summary:", "sinks: [pager]\n    summary:", `there is no sink "pager"`},
		{"summary:", "member: [step]\n    summary:", "member: needs resolvedBy"},
		{"kind: webhook", "kind: pigeon", `kind: "pigeon" is none of`},
		{"kind: webhook, urlEnv: HOOK", "kind: webhook", "urlEnv: required"},
	} {
		if err := read(strings.Replace(small, c.old, c.new, 1), "http://127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s instead of %s: %v, want %q", c.new, c.old, err, c.want)
		}
	}
	if err := read(small, "secret-path"); err == nil || strings.Contains(err.Error(), "secret-path") {
		t.Errorf("a wrong address must be refused and not be repeated: %v", err)
	}
}

// The contract's severities of invalid events: HIGH for the schema's errors, MEDIUM for
// others, LOW for what cannot be read.
func TestInvalidEvents_haveTheContractsSeverities(t *testing.T) {
	r, err := openRules("", func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	broken := func(data string) event.Event { return newEvent(events.BehaviorInvalid, "1", "", 0, data) }
	for name, c := range map[string]struct {
		event  event.Event
		level  severity
		labels string
	}{
		"schema":           {invalidEvent("1", "SCHEMA_VALIDATION_ERROR"), "HIGH", "SCHEMA_VALIDATION_ERROR"},
		"processing":       {invalidEvent("1", "PROCESSING_ERROR"), "MEDIUM", "PROCESSING_ERROR"},
		"escaped":          {broken(`{"error_type":"a\u0053chema error"}`), "HIGH", "aSchema error"},
		"within a payload": {broken(`{"payload":{"note":"\"error_type\":\"SCHEMA\""},"error_type":"OTHER"}`), "MEDIUM", "OTHER"},
		"not JSON":         {broken(`no json`), "LOW", "PROCESSING_ERROR"},
		"no object":        {broken(`[1]`), "LOW", "PROCESSING_ERROR"},
		"nothing":          {broken(``), "LOW", "PROCESSING_ERROR"},
		"no type":          {broken(`{}`), "MEDIUM", ""},
		"zero character":   {broken(`{"error_type":"a\u0000b"}`), "MEDIUM", "a\ufffdb"},
	} {
		got := r.Rules[0].observe(&c.event, 0, began)
		if got.severity != c.level || got.labels["error_type"] != c.labels {
			t.Errorf("%s: %s %q, want %s %q", name, got.severity, got.labels["error_type"], c.level, c.labels)
		}
		if name == "not JSON" && string(got.details) != `{"raw_event":"no json"}` {
			t.Errorf("%s: %s", name, got.details)
		}
	}
}

func TestSummary_hasItsLabels(t *testing.T) {
	labels := map[string]string{"model": "", "reasons": ""}
	for _, c := range []struct{ text, want, err string }{
		{"{{.model}} drifts: {{ .reasons }}", "m drifts: a b", ""},
		{"{{or .none \"x\"}}", "", `no label "none"`},
		{"of {{or .model \"any\"}}, {{or .empty \"unknown thing\"}}.", "of m, unknown thing.", ""},
		{"no label", "no label", ""},
		{"{{.model", "", "want {{.label}}"},
		{"{{printf .model}}", "", "want {{.label}}"},
		{"", "", "required"},
	} {
		known := maps.Clone(labels)
		if strings.Contains(c.text, ".empty") {
			known["empty"] = ""
		}
		s, err := parseSummary(c.text, known)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want %q", c.text, err, c.err)
			}
			continue
		}
		if got := s.of(map[string]string{"model": "m", "reasons": "a\n b"}); err != nil || got != c.want {
			t.Errorf("%q: %q, %v, want %q", c.text, got, err, c.want)
		}
	}
}

// Package prometheus_test checks Prometheus's files by Prometheus's own tool.
package prometheus_test

import (
	"os/exec"
	"testing"
)

func TestFiles(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool: install Prometheus")
	}
	// kubernetes.yml is left out: Debian's build knows no clusters.
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"test", "rules", "rules_test.yml"}} {
		if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

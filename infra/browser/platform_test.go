package browser

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/testkit/platform"
)

// running is the platform as it runs.
type running struct{ *platform.Platform }

func startPlatform(t *testing.T, programs string, flags ...string) *running {
	t.Helper()
	return &running{platform.Start(t, platform.Options{Programs: programs, Root: "../..", Flags: append([]string{"--rate", "100"}, flags...)})}
}

// console is the address of the console's page.
func (p *running) console(t *testing.T) string {
	t.Helper()
	url, _ := p.Part(t, "console")
	return url + "/console/"
}

// sendCart posts something put into the cart, with a trace that nobody records.
func (p *running) sendCart(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../../shared/contract/testdata/golden/tracking.raw_user_behavior/valid-nulls.in")
	if err != nil {
		t.Fatal(err)
	}
	// Of now: predictions of long ago are dropped at the next full minute.
	now := time.Now().UTC().Format("2006-01-02 15:04:05 UTC")
	p.send(t, strings.NewReplacer(`"event_type":"view"`, `"event_type":"cart"`, "2019-10-01 02:30:12 UTC", now).Replace(string(text)),
		"ce-dataschema", "urn:millrace:contract:shop-clickstream", "ce-traceparent", "00-"+trace+"-b7ad6b7169203331-00", "ce-id", "of-a-trace")
}

// send posts an event of the shop, with more headers.
func (p *running) send(t *testing.T, body string, headers ...string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL()+"/millrace/default", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/me", "ce-type": "dev.millrace.behavior.raw.v1"} {
		req.Header.Set(k, v)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("the Broker answered %s", resp.Status)
	}
}

// panels runs every query of Grafana's panels against the platform, and a Prometheus
// that scrapes it where there is one.
func (p *running) panels(t *testing.T, prometheus string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^TestPanelsGiveRows$", "-v", "./infra/grafana")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "PANELS_DATABASE_URL="+p.Setting(t, "DATABASE_URL"), "PANELS_PROMETHEUS_URL="+prometheus)
	out, err := cmd.CombinedOutput()
	t.Logf("panels:\n%s", out)
	if err != nil {
		t.Errorf("running the queries of the panels: %v", err)
	}
}

// prometheus starts one that scrapes the platform and waits until it has seen every
// function twice; "" where there is none.
func (p *running) prometheus(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Log("there is no prometheus: the queries that it would answer are not run")
		return ""
	}
	text, err := os.ReadFile("../prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs("../prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	config := strings.NewReplacer("127.0.0.1:8080", strings.TrimPrefix(p.URL(), "http://"), "rules.yml", rules).Replace(string(text))
	if err := os.WriteFile(filepath.Join(folder, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", platform.FreePorts(t, 1))
	cmd := exec.CommandContext(t.Context(), program, "--config.file="+filepath.Join(folder, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address="+address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	platform.Await(t, "Prometheus to have seen the platform", func() error {
		for _, query := range []string{`min(up)`, `min(count_over_time(up[1m]) > bool 2)`, `sum(rate(function_events_total[1m])) > bool 0`} {
			var answer struct {
				Data struct{ Result []struct{ Value [2]any } }
			}
			if err := platform.Get("http://"+address+"/api/v1/query?query="+url.QueryEscape(query), &answer); err != nil {
				return err
			}
			if len(answer.Data.Result) != 1 || answer.Data.Result[0].Value[1] != "1" {
				return fmt.Errorf("%s is %v", query, answer.Data.Result)
			}
		}
		return nil
	})
	return "http://" + address
}

// awaitMetric waits until the runner's metrics say of a store whether it is up.
func (p *running) awaitMetric(t *testing.T, store string, up int) {
	t.Helper()
	platform.Await(t, fmt.Sprintf("millrace_store_up of %s to be %d", store, up), func() error {
		resp, err := http.Get(p.URL() + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		for _, line := range []string{fmt.Sprintf("millrace_store_up{store=%q} %d", store, up), fmt.Sprintf("millrace_store_changed_timestamp_seconds{store=%q} ", store)} {
			if !strings.Contains(string(text), line) {
				return fmt.Errorf("no %s", line)
			}
		}
		return nil
	})
}

// awaitAlert waits until Prometheus fires the alert about a store, or does not any more.
func awaitAlert(t *testing.T, prometheus, store string, firing bool) {
	t.Helper()
	platform.Await(t, fmt.Sprintf("the alert StoreAway of %s: %t", store, firing), func() error {
		var answer struct{ Data struct{ Result []any } }
		query := fmt.Sprintf(`ALERTS{alertname="StoreAway", store=%q, alertstate="firing"}`, store)
		if err := platform.Get(prometheus+"/api/v1/query?query="+url.QueryEscape(query), &answer); err != nil {
			return err
		}
		if (len(answer.Data.Result) > 0) != firing {
			return fmt.Errorf("%s is %v", query, answer.Data.Result)
		}
		return nil
	})
}

// signal sends a signal to processes, of which some may have ended.
func signal(t *testing.T, processes []int, s syscall.Signal) {
	t.Helper()
	for _, p := range processes {
		if err := syscall.Kill(p, s); err != nil && err != syscall.ESRCH {
			t.Error(err)
		}
	}
}

// processes are a part's process and those that it has started.
func (p *running) processes(t *testing.T, name string) []int {
	t.Helper()
	_, pid := p.Part(t, name)
	first := strconv.Itoa(pid)
	// Each of its processes is a group of its own.
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	all := []int{pid}
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent
		rest := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if child, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && rest[1] == first {
			all = append(all, child)
		}
	}
	return all
}

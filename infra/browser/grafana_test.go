package browser

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/infra/grafana"
	"github.com/millrace-dev/millrace/shared/testkit/platform"
)

// TestGrafana looks at every dashboard in a real Grafana, in front of the running platform
// and a Prometheus that scrapes it: each panel draws what it was given. GRAFANA_HOME is the
// folder of a Grafana, with bin, conf and public.
func TestGrafana(t *testing.T) {
	home := os.Getenv("GRAFANA_HOME")
	if home == "" {
		t.Skip("GRAFANA_HOME is not set: `make test-grafana GRAFANA_HOME=...` sets it")
	}
	programs := platform.Programs(t, "test-grafana")
	dashboards, err := grafana.Dashboards()
	if err != nil {
		t.Fatal(err)
	}
	b := startBrowser(t)
	p := startPlatform(t, programs)
	prometheus := p.prometheus(t)
	if prometheus == "" {
		t.Skip("half of the panels ask Prometheus")
	}
	at := p.grafana(t, home, prometheus)
	for _, d := range dashboards {
		t.Run(d.UID, func(t *testing.T) {
			// All of it, as panels load when they come into view.
			b.screen(t, size{d.UID, 1600, height(d)}, "light")
			b.do(t, chromedp.Navigate(at+"/d/"+d.UID+"?kiosk"))
			platform.Await(t, "all panels", func() error { return b.drawn(t, d) })
			b.picture(t, "grafana-"+d.UID)
		})
	}
	if errs := without(b.errors(), "apple-mobile-web-app-capable"); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}
}

// height is how many pixels a dashboard takes without a menu.
func height(d grafana.Dashboard) int64 {
	const row, margin = 38, 24
	var rows int64
	for _, p := range d.Panels {
		rows = max(rows, p.GridPos.Y+p.GridPos.H)
	}
	return row*rows + margin
}

// drawn gives what is wrong with the panels of the dashboard that is on the screen.
func (b *browser) drawn(t *testing.T, d grafana.Dashboard) error {
	t.Helper()
	var panels []struct {
		Title, Text            string
		Failed, Chart, Nothing bool
	}
	b.do(t, chromedp.Evaluate(`[...document.querySelectorAll("[data-testid^='data-testid Panel header']")].map((e) => {
		const title = e.dataset.testid.replace("data-testid Panel header ", "");
		const text = e.innerText.replace(title, "").trim();
		return {
			title, text,
			failed: e.querySelector("[data-testid^='data-testid Panel status']") !== null,
			chart: [...e.querySelectorAll("canvas, svg g path")].some((x) => x.getBoundingClientRect().height > 0),
			nothing: /^(No data|Data is missing .*)$/m.test(text),
		};
	})`, &panels))
	if len(panels) != len(d.Panels) {
		return fmt.Errorf("%d panels of %d", len(panels), len(d.Panels))
	}
	for i, p := range panels {
		want := d.Panels[i]
		switch title := p.Title; {
		case title != want.Title && !strings.Contains(want.Title, "$"):
			return fmt.Errorf("%s is where %s should be", title, want.Title)
		case p.Failed:
			return fmt.Errorf("%s failed: %s", title, p.Text)
		case p.Nothing && !grafana.MayBeEmpty[want.Title]:
			return fmt.Errorf("%s: %s", title, p.Text)
		case !p.Nothing && charts[want.Type] && !p.Chart:
			return fmt.Errorf("%s has no chart", title)
		case !charts[want.Type] && p.Text == "":
			return fmt.Errorf("%s says nothing", title)
		}
	}
	return nil
}

// charts are the types of panels that draw one; the others are text.
var charts = map[string]bool{"timeseries": true, "state-timeline": true, "heatmap": true, "piechart": true}

// grafana starts one as infra/grafana/README.md says, open to everybody.
func (p *running) grafana(t *testing.T, home, prometheus string) string {
	t.Helper()
	here, err := filepath.Abs("../grafana")
	if err != nil {
		t.Fatal(err)
	}
	database, err := pgconn.ParseConfig(p.Setting(t, "DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	port, data := platform.FreePorts(t, 1), t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(home, "bin", "grafana"), "server", "--homepath", home)
	cmd.Env = append(os.Environ(),
		fmt.Sprintf("MILLRACE_POSTGRES_ADDRESS=%s:%d", database.Host, database.Port), "MILLRACE_POSTGRES_DATABASE="+database.Database,
		"MILLRACE_POSTGRES_SSLMODE=disable", "MILLRACE_POSTGRES_USER="+database.User, "MILLRACE_POSTGRES_PASSWORD="+database.Password,
		"MILLRACE_PROMETHEUS_URL="+prometheus, "MILLRACE_DASHBOARDS="+filepath.Join(here, "dashboards"), "GF_PATHS_PROVISIONING="+filepath.Join(here, "provisioning"),
		"GF_PATHS_DATA="+data, "GF_PATHS_LOGS="+filepath.Join(data, "log"), "GF_PATHS_PLUGINS="+filepath.Join(data, "plugins"),
		"GF_SERVER_HTTP_ADDR=127.0.0.1", fmt.Sprintf("GF_SERVER_HTTP_PORT=%d", port),
		"GF_AUTH_ANONYMOUS_ENABLED=true", "GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer", "GF_USERS_DEFAULT_THEME=light",
		"GF_ANALYTICS_REPORTING_ENABLED=false", "GF_ANALYTICS_CHECK_FOR_UPDATES=false", "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES=false", "GF_NEWS_NEWS_FEED_ENABLED=false",
	)
	log, err := os.Create(filepath.Join(data, "out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("Grafana said:\n%s", text)
		}
	})
	at := fmt.Sprintf("http://127.0.0.1:%d", port)
	platform.Await(t, "Grafana", func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("Grafana ended: %v", err)
		default:
		}
		return platform.Get(at+"/api/health", nil)
	})
	return at
}

// without leaves out lines that contain a text: what Chromium says of Grafana's own page.
func without(lines []string, text string) []string {
	return slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, text) })
}

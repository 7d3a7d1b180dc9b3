// Package browser looks at the console in a real Chromium, in front of the platform as
// it really runs. It is a module of its own because its driver must not reach the
// functions.
package browser

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/millrace-dev/millrace/shared/testkit/platform"
)

// target is the Makefile's that runs these tests.
const target = "test-console"

// size is a screen.
type size struct {
	name          string
	width, height int64
}

var sizes = []size{{"wide", 1600, 1200}, {"laptop", 1280, 800}, {"phone", 390, 844}}

// view is a hash of the page and what must come to be on it.
type view struct{ hash, want string }

// trace is that of an event which is posted, and not recorded by anybody.
const trace = "0af7651916cd43dd8448eb211c80319c"

// TestConsole runs the platform with little load, measures how long it takes until the
// console is filled, and looks at every view at three sizes, light and dark. The queries
// of Grafana's panels are run on the way.
func TestConsole(t *testing.T) {
	programs := platform.Programs(t, target)
	b := startBrowser(t)
	began := time.Now()
	p := startPlatform(t, programs)
	page := p.console(t)

	// As somebody sees it who opens the page as soon as there is one.
	b.screen(t, sizes[0], "light")
	b.do(t, chromedp.Navigate(page))
	b.await(t, "a graph in which events flow", `document.querySelectorAll("main .edge.flows").length > 5`)
	b.await(t, "rows in gold", `[...document.querySelectorAll(".tile")].some((e) => e.innerText.startsWith("gold") && /[1-9]/.test(e.innerText))`)
	b.do(t, chromedp.Navigate(page+"#/predictions"))
	b.await(t, "predictions", `document.querySelectorAll("main tbody tr").length > 5`)
	t.Logf("from the start of the platform to a filled console: %.1f s", time.Since(began).Seconds())

	// Something that is refused, to be seen among the dead letters.
	p.send(t, "{}", "ce-dataschema", "urn:millrace:contract:nope")

	views := []view{
		{"#/", "raw-user-behavior"}, {"#/invalid", "SCHEMA_VALIDATION_ERROR"}, {"#/predictions", "purchase_prediction_model"},
		{"#/anomalies", ""}, {"#/drift", ""}, {"#/models", "Decisions"}, {"#/warehouse", "passed"}, {"#/alerts", ""},
		{"#/deadletters", "nope"}, {"#/story?q=server-1", ""},
	}
	for _, size := range sizes {
		for _, theme := range []string{"light", "dark"} {
			b.screen(t, size, theme)
			for i, v := range views {
				// In the dark, those with a graph, a chart and a story have all that there is.
				if theme == "dark" && i != 0 && i != 3 && i != len(views)-1 {
					continue
				}
				b.look(t, page, v)
				// Nothing may be wider than the screen but what scrolls by itself.
				if wide := b.eval(t, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); wide != "0" {
					t.Errorf("%s on %s is %s pixels too wide", v.hash, size.name, wide)
				}
				b.picture(t, size.name+"-"+theme+"-"+cmp.Or(strings.Trim(strings.SplitN(v.hash, "?", 2)[0], "#/"), "overview"))
			}
			b.readable(t)
			b.namesOfControls(t)
		}
	}
	b.screen(t, sizes[1], "light")

	p.panels(t, p.prometheus(t))
	if errs := b.errors(); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}

	// A button asks first, and then does what it says.
	b.do(t, chromedp.Navigate(page+"#/deadletters"))
	b.await(t, "the button", `document.querySelector("main td button") !== null`)
	b.do(t, chromedp.Click("main td button", chromedp.ByQuery))
	b.await(t, "the question", `document.querySelector("dialog").open`)
	b.do(t, chromedp.Click("dialog button[type=submit]", chromedp.ByQuery))
	b.await(t, "that it was sent", `[...document.querySelectorAll("main td button")].some((x) => x.textContent.startsWith("Sent 1 times"))`)
}

// TestStory follows one event through a platform to which nothing else happens, by its
// trace.
func TestStory(t *testing.T) {
	programs := platform.Programs(t, target)
	b := startBrowser(t)
	p := startPlatform(t, programs, "--no-load", "--functions", "validate,featurize,predict,store,lake,ingest,etl-step,console")
	p.sendCart(t)
	page := p.console(t)
	for _, size := range sizes {
		b.screen(t, size, "light")
		b.look(t, page, view{"#/story?q=" + trace, "predicted"})
	}
	b.do(t, chromedp.Navigate(page+"#/story?q="+trace))
	for _, hop := range []string{"event posted", "judged valid", "features online", "predicted", "verdict in its topic", "in the lake and loaded to bronze", "features stored", "prediction stored"} {
		b.await(t, hop+" in the story", fmt.Sprintf(`document.querySelector("main").textContent.includes(%q)`, hop))
		platform.Await(t, hop+" by millrace story", func() error {
			if said := p.Run(t, "story", trace); !strings.Contains(said, hop) {
				return fmt.Errorf("it says:\n%s", said)
			}
			return nil
		})
	}
	for _, size := range sizes {
		b.screen(t, size, "light")
		b.picture(t, size.name+"-trace")
	}
	if errs := b.errors(); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}
	t.Logf("millrace story %s\n%s", trace, p.Run(t, "story", trace))
}

// TestStoresThatGo stops Redis, PostgreSQL and Kafka while the page is looked at, and lets
// them go on: which one is away and since when, and that it is well again, is said by the
// page, by millrace status, by the metrics, and by the alert.
func TestStoresThatGo(t *testing.T) {
	programs := platform.Programs(t, target)
	t.Setenv("DATACENTER", "off") // as little as is needed to see events flow
	b := startBrowser(t)
	p := startPlatform(t, programs, "--functions", "validate,featurize,store,deadletter,console")
	page := p.console(t)
	b.screen(t, sizes[1], "light")
	prometheus := p.prometheus(t)

	// A store goes: the page says which and since when, and so do the metrics and the
	// alert; then that it is well again.
	b.do(t, chromedp.Navigate(page+"#/"))
	for _, s := range []struct{ store, name string }{{"redis", "Redis"}, {"postgres", "PostgreSQL"}, {"kafka", "Kafka"}} {
		stopped := p.processes(t, s.store)
		signal(t, stopped, syscall.SIGSTOP)
		t.Cleanup(func() { signal(t, stopped, syscall.SIGCONT) })
		b.await(t, "that "+s.name+" is away", fmt.Sprintf(`/%s is away since \d\d:\d\d:\d\d/.test(document.querySelector("#trouble").textContent)`, s.name))
		b.picture(t, "away-"+s.store)
		p.awaitMetric(t, s.store, 0)
		if said := p.Run(t, "status"); !strings.Contains(said, s.store+" is away since ") {
			t.Errorf("millrace status says:\n%s", said)
		}
		if prometheus != "" {
			awaitAlert(t, prometheus, s.store, true)
		}
		signal(t, stopped, syscall.SIGCONT)
		b.await(t, "that "+s.name+" is well again", fmt.Sprintf(`/%s is well again since \d\d:\d\d:\d\d, away for \d+ s/.test(document.querySelector("#trouble").textContent)`, s.name))
		b.picture(t, "again-"+s.store)
		p.awaitMetric(t, s.store, 1)
		if prometheus != "" {
			awaitAlert(t, prometheus, s.store, false)
		}
		t.Logf("%s: %s", s.store, b.eval(t, `document.querySelector("#trouble").innerText`))
	}

	// The console itself goes.
	console := p.processes(t, "console")
	signal(t, console, syscall.SIGSTOP)
	t.Cleanup(func() { signal(t, console, syscall.SIGCONT) })
	b.await(t, "that the console is away", `document.querySelector("#trouble").textContent.includes("The console does not answer")`)
	signal(t, console, syscall.SIGCONT)
	b.await(t, "that the console is back", `!document.querySelector("#trouble").textContent.includes("The console does not answer")`)

	if prometheus != "" {
		p.scraped(t, b, programs, prometheus)
	}
}

// scraped looks at a console that has no runner to ask, as on a cluster.
func (p *running) scraped(t *testing.T, b *browser, programs, prometheus string) {
	t.Helper()
	deadletters, _ := p.Part(t, "deadletter")
	page := startConsole(t, programs, "PROMETHEUS_URL="+prometheus, "DATABASE_URL="+p.Setting(t, "DATABASE_URL"),
		"DEADLETTER_URL="+deadletters)
	for _, size := range sizes {
		b.screen(t, size, "light")
		b.look(t, page, view{"#/", "raw-user-behavior"})
		b.await(t, "a graph in which events flow", `document.querySelectorAll("main .edge.flows").length > 5`)
		b.picture(t, size.name+"-prometheus")
	}
	b.look(t, page, view{"#/invalid", "SCHEMA_VALIDATION_ERROR"})
	redis := p.processes(t, "redis")
	signal(t, redis, syscall.SIGSTOP)
	t.Cleanup(func() { signal(t, redis, syscall.SIGCONT) })
	b.await(t, "that Redis is away, by Prometheus", `/Redis is away since \d\d:\d\d:\d\d: as .*runner.* found/.test(document.querySelector("#trouble").textContent)`)
	signal(t, redis, syscall.SIGCONT)
	b.await(t, "that Redis is well again, by Prometheus", `/Redis is well again since \d\d:\d\d:\d\d/.test(document.querySelector("#trouble").textContent)`)
}

// TestConsoleOfNothing looks at the views of a platform to which nothing has happened.
func TestConsoleOfNothing(t *testing.T) {
	programs := platform.Programs(t, target)
	p := startPlatform(t, programs, "--no-load", "--functions", "validate,etl-step,store,alert,drift,deadletter,console")
	b := startBrowser(t)
	for _, v := range []view{
		{"#/", "raw-user-behavior"}, {"#/invalid", "No alert about invalid events."}, {"#/predictions", "Nothing was predicted yet."},
		{"#/anomalies", "No anomaly yet."}, {"#/drift", "No drift was measured yet"}, {"#/models", "None yet."},
		{"#/warehouse", "No load was checked yet."}, {"#/alerts", "No alert was raised."}, {"#/deadletters", "None. Everything was delivered."},
		{"#/story?q=nobody", "Nothing is known of nobody"}, {"#/story", "What did one event become?"},
	} {
		b.look(t, p.console(t), v)
	}
	if errs := b.errors(); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}
}

// TestConsoleAlone looks at a console that was given no source.
func TestConsoleAlone(t *testing.T) {
	programs := platform.Programs(t, target)
	page := startConsole(t, programs)
	b := startBrowser(t)
	for _, hash := range []string{"#/", "#/invalid", "#/predictions", "#/anomalies", "#/drift", "#/models", "#/warehouse", "#/alerts", "#/deadletters", "#/story?q=x"} {
		b.do(t, chromedp.Navigate("about:blank"), chromedp.Navigate(page+hash))
		b.await(t, hash, `document.querySelector("main").textContent.includes("Nothing here")`)
	}
	if errs := b.errors(); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}
}

// startConsole starts a console by itself and gives the address of its page.
func startConsole(t *testing.T, programs string, env ...string) string {
	t.Helper()
	port := platform.FreePorts(t, 1)
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "console"))
	cmd.Env = append([]string{"FUNCTION_NAME=console", "LISTEN_HOST=127.0.0.1", "PORT=" + strconv.Itoa(port)}, env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	at := fmt.Sprintf("http://127.0.0.1:%d", port)
	platform.Await(t, "the console", func() error { return platform.Get(at+"/readyz", nil) })
	return at + "/console/"
}

// Package browser looks at the console in a real Chromium, in front of the platform as
// it really runs. It is a module of its own because its driver must not reach the
// functions.
package browser

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience bounds the waiting for anything: it is for a machine that does much else.
const patience = 3 * time.Minute

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

// programs is the folder of the built programs.
func programs(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("TEST_PROGRAMS")
	if folder == "" {
		t.Skip("TEST_PROGRAMS is not set: `make test-console` sets it")
	}
	return folder
}

// TestConsole runs the platform with little load, measures how long it takes until the
// console is filled, and looks at every view at three sizes, light and dark. The queries
// of Grafana's panels are run on the way.
func TestConsole(t *testing.T) {
	programs := programs(t)
	b := startBrowser(t)
	began := time.Now()
	p := startPlatform(t, programs)
	page := p.url("console") + "/console/"

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
	programs := programs(t)
	b := startBrowser(t)
	p := startPlatform(t, programs, "--no-load", "--functions", "validate,featurize,predict,store,lake,ingest,etl-step,console")
	p.sendCart(t)
	page := p.url("console") + "/console/"
	for _, size := range sizes {
		b.screen(t, size, "light")
		b.look(t, page, view{"#/story?q=" + trace, "predicted"})
	}
	b.do(t, chromedp.Navigate(page+"#/story?q="+trace))
	for _, hop := range []string{"event posted", "judged valid", "features online", "predicted", "verdict in its topic", "in the lake and loaded to bronze", "features stored", "prediction stored"} {
		b.await(t, hop+" in the story", fmt.Sprintf(`document.querySelector("main").textContent.includes(%q)`, hop))
		await(t, hop+" by millrace story", func() error {
			if said := p.run(t, "story", trace, "--state", p.state); !strings.Contains(said, hop) {
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
	t.Logf("millrace story %s\n%s", trace, p.run(t, "story", trace, "--state", p.state))
}

// TestStoresThatGo stops Redis, PostgreSQL and Kafka while the page is looked at, and lets
// them go on: which one is away and since when, and that it is well again, is said by the
// page, by millrace status, by the metrics, and by the alert.
func TestStoresThatGo(t *testing.T) {
	programs := programs(t)
	t.Setenv("DATACENTER", "off") // as little as is needed to see events flow
	b := startBrowser(t)
	p := startPlatform(t, programs, "--functions", "validate,featurize,store,deadletter,console")
	page := p.url("console") + "/console/"
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
		if said := p.run(t, "status", "--state", p.state); !strings.Contains(said, s.store+" is away since ") {
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
func (p *platform) scraped(t *testing.T, b *browser, programs, prometheus string) {
	t.Helper()
	page := startConsole(t, programs, "PROMETHEUS_URL="+prometheus, "DATABASE_URL="+strings.TrimSpace(p.run(t, "env", "--state", p.state, "--name", "DATABASE_URL")),
		"DEADLETTER_URL="+p.url("deadletter"))
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
	programs := programs(t)
	p := startPlatform(t, programs, "--no-load", "--functions", "validate,etl-step,store,alert,drift,deadletter,console")
	b := startBrowser(t)
	for _, v := range []view{
		{"#/", "raw-user-behavior"}, {"#/invalid", "No alert about invalid events."}, {"#/predictions", "Nothing was predicted yet."},
		{"#/anomalies", "No anomaly yet."}, {"#/drift", "No drift was measured yet"}, {"#/models", "None yet."},
		{"#/warehouse", "No load was checked yet."}, {"#/alerts", "No alert was raised."}, {"#/deadletters", "None. Everything was delivered."},
		{"#/story?q=nobody", "Nothing is known of nobody"}, {"#/story", "What did one event become?"},
	} {
		b.look(t, p.url("console")+"/console/", v)
	}
	if errs := b.errors(); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}
}

// TestConsoleAlone looks at a console that was given no source.
func TestConsoleAlone(t *testing.T) {
	programs := programs(t)
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
	port := freePorts(t, 1)
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "console"))
	cmd.Env = append([]string{"FUNCTION_NAME=console", "LISTEN_HOST=127.0.0.1", "PORT=" + strconv.Itoa(port)}, env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	at := fmt.Sprintf("http://127.0.0.1:%d", port)
	await(t, "the console", func() error { return get(at+"/readyz", nil) })
	return at + "/console/"
}

// browser is a tab of a Chromium.
type browser struct {
	ctx context.Context

	mu  sync.Mutex
	log []string
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	program := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil && program == "" {
			program = found
		}
	}
	if program == "" {
		t.Skip("there is no Chromium: install it, or name it by CHROMIUM")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()),
		// In a container, as root; nothing but the test's own pages is opened.
		chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(patience),
	)
	ctx, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	// Chromium writes into its folder until it has ended; closed and waited for, it no
	// longer does when the folder is removed.
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("closing Chromium: %v", err)
		}
	})
	b := &browser{ctx: ctx}
	chromedp.ListenTarget(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.log = append(b.log, "exception: "+ev.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if ev.Entry.Level == cdplog.LevelError || ev.Entry.Level == cdplog.LevelWarning {
				b.log = append(b.log, fmt.Sprintf("%s: %s %s", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL))
			}
		}
	})
	b.do(t, cdplog.Enable(), runtime.Enable())
	return b
}

func (b *browser) do(t *testing.T, actions ...chromedp.Action) {
	t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// screen takes another screen, and a theme as people's systems ask for it.
func (b *browser) screen(t *testing.T, s size, theme string) {
	t.Helper()
	b.do(t, emulation.SetDeviceMetricsOverride(s.width, s.height, 1, false),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}))
}

// look opens a view anew and waits for what must come to be on it.
func (b *browser) look(t *testing.T, page string, v view) {
	t.Helper()
	b.do(t, chromedp.Navigate("about:blank"), chromedp.Navigate(page+v.hash))
	b.await(t, v.hash, `document.querySelector("main h1") !== null && !document.querySelector("main").textContent.includes("Loading.")`)
	if v.want != "" {
		b.await(t, v.hash+" with "+v.want, fmt.Sprintf(`document.querySelector("main").textContent.includes(%q)`, v.want))
	}
}

// readable requires that text stands out from what it stands on, by the contrast that
// WCAG 2 asks of text of this size.
func (b *browser) readable(t *testing.T) {
	t.Helper()
	if got := b.eval(t, `(() => {
		const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
		const light = (colour) => {
			canvas.fillStyle = colour;
			canvas.fillRect(0, 0, 1, 1);
			const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
			return 0.2126 * r + 0.7152 * g + 0.0722 * b;
		};
		const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } return "white"; };
		return [...document.querySelectorAll("body *:not(option)")].filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && !(e instanceof SVGElement) && !e.disabled)
			.map((e) => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort().reverse(); return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className + " " + e.textContent.slice(0, 30)]; })
			.filter(([c]) => c < 4.5).slice(0, 5);
	})()`); got != "[]" {
		t.Errorf("hard to read: %s", got)
	}
}

// eval gives an expression's value as JSON.
func (b *browser) eval(t *testing.T, expression string) string {
	t.Helper()
	var value any
	b.do(t, chromedp.Evaluate(expression, &value))
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (b *browser) await(t *testing.T, what, expression string) {
	t.Helper()
	await(t, what, func() error {
		if got := b.eval(t, expression); got != "true" {
			return fmt.Errorf("%s is %s; the page says %.1000s", expression, got, b.eval(t, `document.body.innerText`))
		}
		return nil
	})
}

// namesOfControls requires a name of everything that can be used, and one heading.
func (b *browser) namesOfControls(t *testing.T) {
	t.Helper()
	if got := b.eval(t, `[...document.querySelectorAll("button, input, select, a")].filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label"))).map((e) => e.outerHTML)`); got != "[]" {
		t.Errorf("without a name: %s", got)
	}
	if got := b.eval(t, `document.querySelectorAll("h1").length`); got != "1" {
		t.Errorf("%s headings of the first level", got)
	}
}

// picture keeps what is on the screen in PICTURES, for people to look at.
func (b *browser) picture(t *testing.T, name string) {
	t.Helper()
	folder := os.Getenv("PICTURES")
	if folder == "" {
		return
	}
	var png []byte
	b.do(t, chromedp.CaptureScreenshot(&png))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *browser) errors() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

// platform is a runner and all that it runs.
type platform struct {
	base  int
	state string
}

func startPlatform(t *testing.T, programs string, flags ...string) *platform {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	// Who runs PostgreSQL when the tests run as root has to come through.
	p := &platform{base: freePorts(t, 40), state: t.TempDir()}
	if err := os.Chmod(filepath.Dir(p.state), 0o711); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "millrace"), append([]string{
		"up", "--plain", "--root", root, "--state", p.state, "--bin", programs, "--port-base", strconv.Itoa(p.base), "--rate", "100",
	}, flags...)...)
	out, err := os.Create(filepath.Join(p.state, "out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "NO_LEARNING=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			text, _ := os.ReadFile(out.Name())
			t.Logf("output of the runner:\n%s", text)
		}
	})
	await(t, "the platform", func() error {
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(out.Name())
			t.Fatalf("the platform ended: %v\n%s", err, text)
		default:
		}
		var s status
		if err := p.status(&s); err != nil {
			return err
		}
		if s.State != "running" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return p
}

// status is what is needed of the runner's.
type status struct {
	State     string
	Processes []struct {
		Name, Address string
		PID           int
	}
}

func (p *platform) status(s *status) error {
	return get(fmt.Sprintf("http://127.0.0.1:%d/status", p.base), s)
}

// url is the address of a part.
func (p *platform) url(name string) string {
	var s status
	if err := p.status(&s); err != nil {
		return err.Error()
	}
	for _, process := range s.Processes {
		if process.Name == name {
			return "http://" + process.Address
		}
	}
	return "no part " + name
}

// run gives what a command of the runner prints.
func (p *platform) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(os.Getenv("TEST_PROGRAMS"), "millrace"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("millrace %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sendCart posts something put into the cart, with a trace that nobody records.
func (p *platform) sendCart(t *testing.T) {
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
func (p *platform) send(t *testing.T, body string, headers ...string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/millrace/default", p.base), strings.NewReader(body))
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
func (p *platform) panels(t *testing.T, prometheus string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^TestPanelsGiveRows$", "-v", "./infra/grafana")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "PANELS_DATABASE_URL="+strings.TrimSpace(p.run(t, "env", "--state", p.state, "--name", "DATABASE_URL")), "PANELS_PROMETHEUS_URL="+prometheus)
	out, err := cmd.CombinedOutput()
	t.Logf("panels:\n%s", out)
	if err != nil {
		t.Errorf("running the queries of the panels: %v", err)
	}
}

// prometheus starts one that scrapes the platform and waits until it has seen every
// function twice; "" where there is none.
func (p *platform) prometheus(t *testing.T) string {
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
	config := strings.NewReplacer("127.0.0.1:8080", fmt.Sprintf("127.0.0.1:%d", p.base), "rules.yml", rules).Replace(string(text))
	if err := os.WriteFile(filepath.Join(folder, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
	cmd := exec.CommandContext(t.Context(), program, "--config.file="+filepath.Join(folder, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address="+address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	await(t, "Prometheus to have seen the platform", func() error {
		for _, query := range []string{`min(up)`, `min(count_over_time(up[1m]) > bool 2)`, `sum(rate(function_events_total[1m])) > bool 0`} {
			var answer struct {
				Data struct{ Result []struct{ Value [2]any } }
			}
			if err := get("http://"+address+"/api/v1/query?query="+url.QueryEscape(query), &answer); err != nil {
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
func (p *platform) awaitMetric(t *testing.T, store string, up int) {
	t.Helper()
	await(t, fmt.Sprintf("millrace_store_up of %s to be %d", store, up), func() error {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", p.base)) //nolint:noctx // the test's own
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
	await(t, fmt.Sprintf("the alert StoreAway of %s: %t", store, firing), func() error {
		var answer struct{ Data struct{ Result []any } }
		query := fmt.Sprintf(`ALERTS{alertname="StoreAway", store=%q, alertstate="firing"}`, store)
		if err := get(prometheus+"/api/v1/query?query="+url.QueryEscape(query), &answer); err != nil {
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
func (p *platform) processes(t *testing.T, name string) []int {
	t.Helper()
	var s status
	if err := p.status(&s); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, process := range s.Processes {
		if process.Name == name {
			pid = process.PID
		}
	}
	if pid == 0 {
		t.Fatalf("%s does not run", name)
	}
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

func get(url string, answer any) error {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url) //nolint:noctx // bounded by the client
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

func await(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// freePorts finds ports in a row that nobody listens on.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for base := 23000 + os.Getpid()%1000*8; base < 60000; base += n {
		free := true
		for port := base; port < base+n && free; port++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				free = false
				continue
			}
			_ = l.Close()
		}
		if free {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

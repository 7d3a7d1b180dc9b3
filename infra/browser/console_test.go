// Package browser looks at the console in a real Chromium, in front of the platform as
// it really runs. It is a module of its own because its driver must not reach the
// functions.
package browser

import (
	"context"
	"encoding/json"
	"fmt"
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

// TestConsole runs the platform with little load and looks at every view at three
// sizes, runs the queries of Grafana's panels, then looks at what is said when PostgreSQL
// is gone, and when it is back.
func TestConsole(t *testing.T) {
	programs := os.Getenv("TEST_PROGRAMS")
	if programs == "" {
		t.Skip("TEST_PROGRAMS is not set: `make test-console` sets it")
	}
	p := startPlatform(t, programs)
	b := startBrowser(t)
	page := p.url("console") + "/console/"

	// Something that is refused, to be seen among the dead letters.
	p.send(t, "ce-dataschema", "urn:millrace:contract:nope")

	views := []struct{ hash, want string }{
		{"#/", "raw-user-behavior"},
		{"#/invalid", "SCHEMA_VALIDATION_ERROR"},
		{"#/predictions", "purchase_prediction_model"},
		{"#/anomalies", ""},
		{"#/drift", ""},
		{"#/models", "Decisions"},
		{"#/warehouse", "passed"},
		{"#/alerts", ""},
		{"#/deadletters", "nope"},
		{"#/story?q=me", ""},
	}
	for _, size := range []struct {
		name          string
		width, height int64
	}{{"wide", 1600, 1200}, {"laptop", 1280, 800}, {"phone", 390, 844}} {
		b.do(t, emulation.SetDeviceMetricsOverride(size.width, size.height, 1, false))
		for _, v := range views {
			b.do(t, chromedp.Navigate("about:blank"), chromedp.Navigate(page+v.hash))
			b.await(t, v.hash, `document.querySelector("main h1") !== null && !document.querySelector("main").textContent.includes("Loading.")`)
			if v.want != "" {
				b.await(t, v.hash+" with "+v.want, fmt.Sprintf(`document.querySelector("main").textContent.includes(%q)`, v.want))
			}
			// Nothing may be wider than the screen but what scrolls by itself.
			if wide := b.eval(t, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); wide != "0" {
				t.Errorf("%s on %s is %s pixels too wide", v.hash, size.name, wide)
			}
			b.picture(t, size.name+"-"+strings.Trim(strings.SplitN(v.hash, "?", 2)[0], "#/"))
		}
	}
	b.namesOfControls(t)
	p.panels(t)
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

	// The database goes: the page says which, and since when; and that it is well again.
	b.do(t, chromedp.Navigate(page+"#/"))
	p.stopPostgres(t, syscall.SIGSTOP)
	b.await(t, "that PostgreSQL is away", `document.querySelector("#trouble").textContent.includes("PostgreSQL has not answered for")`)
	b.picture(t, "trouble")
	p.stopPostgres(t, syscall.SIGCONT)
	b.await(t, "that PostgreSQL is well", `!document.querySelector("#trouble").textContent.includes("PostgreSQL")`)
}

// TestConsoleAlone looks at a console that was given no source.
func TestConsoleAlone(t *testing.T) {
	programs := os.Getenv("TEST_PROGRAMS")
	if programs == "" {
		t.Skip("TEST_PROGRAMS is not set: `make test-console` sets it")
	}
	port := freePorts(t, 1)
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "console"))
	cmd.Env = []string{"FUNCTION_NAME=console", "LISTEN_HOST=127.0.0.1", "PORT=" + strconv.Itoa(port)}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	b := startBrowser(t)
	at := fmt.Sprintf("http://127.0.0.1:%d", port)
	await(t, "the console", func() error { return get(at+"/readyz", nil) })
	for _, hash := range []string{"#/", "#/invalid", "#/predictions", "#/anomalies", "#/drift", "#/models", "#/warehouse", "#/alerts", "#/deadletters", "#/story?q=x"} {
		b.do(t, chromedp.Navigate("about:blank"), chromedp.Navigate(at+"/console/"+hash))
		b.await(t, hash, `document.querySelector("main").textContent.includes("Nothing here")`)
	}
	if errs := b.errors(); len(errs) > 0 {
		t.Errorf("in the browser's log:\n%s", strings.Join(errs, "\n"))
	}
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

func startPlatform(t *testing.T, programs string) *platform {
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
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "millrace"),
		"up", "--plain", "--root", root, "--state", p.state, "--bin", programs, "--port-base", strconv.Itoa(p.base), "--rate", "100")
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
		if s.State != "running" || s.Warehouse.Facts == 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return p
}

// status is what is needed of the runner's.
type status struct {
	State     string
	Warehouse struct{ Facts int }
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

// send posts an event of the shop, with one more header.
func (p *platform) send(t *testing.T, name, value string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/millrace/default", p.base), strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/me", "ce-type": "dev.millrace.behavior.raw.v1", name: value} {
		req.Header.Set(k, v)
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
func (p *platform) panels(t *testing.T) {
	t.Helper()
	database, err := exec.CommandContext(t.Context(), filepath.Join(os.Getenv("TEST_PROGRAMS"), "millrace"), "env", "--state", p.state, "--name", "DATABASE_URL").Output()
	if err != nil {
		t.Fatalf("asking for the database's address: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^TestPanelsGiveRows$", "-v", "./infra/grafana")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "PANELS_DATABASE_URL="+strings.TrimSpace(string(database)), "PANELS_PROMETHEUS_URL="+p.prometheus(t))
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

// stopPostgres sends a signal to every process of the platform's PostgreSQL.
func (p *platform) stopPostgres(t *testing.T, signal syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.state, "data", "postgres", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
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
	for _, p := range all {
		if err := syscall.Kill(p, signal); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
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

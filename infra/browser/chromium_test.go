package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/millrace-dev/millrace/shared/testkit/platform"
)

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
		chromedp.WSURLReadTimeout(3*time.Minute),
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
	platform.Await(t, what, func() error {
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

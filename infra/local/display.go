package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// ANSI sequences of the live screen. The alternate screen keeps the user's
// scrollback as it was; a synchronized update is shown whole, without flicker.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	beginFrame  = "\x1b[?2026h\x1b[H"
	endFrame    = "\x1b[J\x1b[?2026l"
	clearLine   = "\x1b[K"
)

// summaryEvery is how often a line is printed where there is no terminal.
const summaryEvery = 10 * time.Second

// display shows a run: as lines while it starts and stops, and in between as a
// live screen on a terminal, else as lines. It is safe for concurrent use.
type display struct {
	out      io.Writer
	terminal *os.File // nil: lines only

	mu       sync.Mutex
	screen   bool // the live screen is on
	phase    string
	lastLine time.Time
	withheld []LogEvent // came while the screen was on
}

func newDisplay(out io.Writer, plain bool) *display {
	d := &display{out: out, phase: "starting"}
	if f, ok := out.(*os.File); ok && !plain && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())) {
		d.terminal = f
	}
	return d
}

// progress reports a part that has become ready.
func (d *display) progress(part string, began time.Time, where string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "%-12s ready after %5.2f s  %s\n", part, time.Since(began).Seconds(), where)
}

// running begins the live part.
func (d *display) running() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.phase = "running"
	if d.terminal != nil {
		d.screen = true
		fmt.Fprint(d.out, enterScreen)
	}
}

// update shows the newest status.
func (d *display) update(s Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.phase != "running":
	case d.screen:
		width, height, err := term.GetSize(int(d.terminal.Fd()))
		if err != nil {
			width, height = 80, 24
		}
		var b strings.Builder
		b.WriteString(beginFrame)
		for i, l := range render(s, width, max(height, 12)) {
			if i > 0 {
				b.WriteString("\r\n")
			}
			b.WriteString(l + clearLine)
		}
		b.WriteString(endFrame)
		_, _ = io.WriteString(d.out, b.String())
	case time.Since(d.lastLine) >= summaryEvery:
		d.lastLine = time.Now()
		fmt.Fprintln(d.out, s.Time.Format("15:04:05"), summaryLine(s))
	}
}

// event prints what happened, except on the live screen, which shows it itself.
func (d *display) event(e LogEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.screen {
		d.withheld = append(d.withheld, e)
		if n := len(d.withheld) - keptEvents; n > 0 {
			d.withheld = d.withheld[n:]
		}
		return
	}
	printEvent(d.out, e)
}

func printEvent(w io.Writer, e LogEvent) {
	fmt.Fprintln(w, e.Time.Format("15:04:05"), e.Part, e.Text)
}

// stopping ends the live part; failure is why, nil when the user asked for it.
func (d *display) stopping(failure error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leave()
	d.phase = "stopping"
	if failure != nil {
		return
	}
	for _, e := range d.withheld {
		printEvent(d.out, e)
	}
	d.withheld = nil
	fmt.Fprintln(d.out, "stopping: what is in flight is settled first; Ctrl-C again ends at once")
}

// summary is the last word of a run.
func (d *display) summary(s Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "stopped after %s: %s raw, %s valid, %s invalid, lake %s records in %s objects, gold %s rows; the next start goes on from here (%s)\n",
		age(time.Since(s.Started)), count(s.Raw.Total), count(s.Validated.Total), count(s.Invalid.Total),
		count(s.Lake.Records), count(s.Lake.Objects), count(s.Warehouse.Facts), s.StateIn)
}

// close gives the terminal back. It may be called at any time, more than once.
func (d *display) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leave()
}

func (d *display) leave() {
	if d.screen {
		d.screen = false
		fmt.Fprint(d.out, leaveScreen)
	}
}

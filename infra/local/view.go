package main

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
)

// Looks of a piece of text, as ANSI sequences; "" is plain.
const (
	plain = ""
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	reset = "\x1b[0m"
)

// line is a screen line in the making: it knows how many columns its text takes,
// which the bytes do not tell once it has colours.
type line struct {
	text  strings.Builder
	width int
}

func (l *line) add(look, text string) *line {
	if look != plain && text != "" {
		l.text.WriteString(look + text + reset)
	} else {
		l.text.WriteString(text)
	}
	l.width += utf8.RuneCountInString(text)
	return l
}

// to pads the line up to a column.
func (l *line) to(column int) *line {
	if n := column - l.width; n > 0 {
		l.add(plain, strings.Repeat(" ", n))
	}
	return l
}

// right adds text that ends at a column.
func (l *line) right(look, text string, column int) *line {
	return l.to(column-utf8.RuneCountInString(text)).add(look, text)
}

func (l *line) String() string { return l.text.String() }

// cut shortens text to a number of columns, with an ellipsis.
func cut(text string, columns int) string {
	if columns <= 0 {
		return ""
	}
	if utf8.RuneCountInString(text) <= columns {
		return text
	}
	return string([]rune(text)[:columns-1]) + "…"
}

// render draws a Status on a screen of this size, as at most height lines of at
// most width columns. What matters least is left out where room is short.
func render(s Status, width, height int) []string {
	width = max(width, 60)
	right := width - 1

	title := new(line)
	title.add(bold, " Millrace ").add(plain, cut(s.Version, 16)+"  ")
	look := green
	if s.State != "running" {
		look = red
	}
	title.add(look, s.State).add(plain, " "+age(s.Time.Sub(s.Started)))
	title.right(plain, fmt.Sprintf("%d processes, %s", len(s.Processes), bytesText(s.RSSBytes)), right)

	flow := new(line)
	flow.add(plain, " raw ").add(bold, rateText(s.Raw.PerSecond)+"/s").
		add(plain, "  →  valid ").add(bold, rateText(s.Validated.PerSecond)+"/s").
		add(plain, "  invalid ").add(bold, rateText(s.Invalid.PerSecond)+"/s").
		add(plain, fmt.Sprintf(" (%.1f %%)", 100*s.InvalidShare))
	if predictions := "predictions " + rateText(s.Predictions.PerSecond) + "/s"; flow.width+len(predictions)+1 < right {
		flow.right(plain, predictions, right)
	}

	lake := new(line)
	lake.add(plain, " lake ").add(bold, shortCount(s.Lake.Records)).add(plain, " records in ").
		add(bold, count(s.Lake.Objects)).add(plain, " objects, "+bytesText(s.Lake.Bytes))
	dead, deadLook := "dead letters "+shortCount(int64(s.DeadLetters)), plain
	if s.DeadLetters > 0 {
		deadLook = red
	}
	if since := ", " + ago(s.Time.Sub(s.Lake.LastWrite)); !s.Lake.LastWrite.IsZero() && lake.width+len(since)+len(dead) < right {
		lake.add(plain, since)
	}
	lake.right(deadLook, dead, right)

	foot := new(line)
	foot.add(dim, cut(fmt.Sprintf(" %s   logs %s   Ctrl-C stops", s.URLs[0].URL, filepath.Join(s.StateIn, "log")), width-1))

	out := []string{title.String(), flow.String(), lake.String()}
	out = append(append(out, storeLines(s, right)...), "")
	body := height - len(out) - 1
	out = append(out, tables(s, right, body)...)
	for len(out) < height-1 {
		out = append(out, "")
	}
	return append(out[:height-1], foot.String())
}

// storeLines are about the warehouse and the online store.
func storeLines(s Status, right int) []string {
	w := s.Warehouse
	gold := new(line)
	gold.add(plain, " gold ")
	if reason := s.noWarehouse(); reason != "" {
		gold.add(red, cut(reason, right-gold.width))
	} else {
		gold.add(bold, shortCount(w.Facts)).add(plain, " rows")
		if last := w.LastRun; !last.Finished.IsZero() {
			gold.add(plain, ", last step "+last.Step)
			if since := " " + ago(s.Time.Sub(last.Finished)); gold.width+len(since) < right-20 {
				gold.add(plain, since)
			}
		}
		look := plain
		if w.FailedRuns > 0 {
			look = red
		}
		gold.right(look, "failed steps "+shortCount(w.FailedRuns), right)
	}
	features := new(line)
	features.add(plain, " features of ").add(bold, shortCount(s.Features.Entities)).add(plain, " entities, ").
		add(bold, shortCount(s.Features.Sessions)).add(plain, " sessions")
	for _, u := range s.URLs {
		if u.Name == "features" && features.width+len(u.URL)+6 < right {
			features.right(plain, "API "+u.URL, right)
		}
	}
	lines := []string{gold.String(), features.String()}
	away, back := storeNews(s)
	for _, text := range away {
		lines = append(lines, new(line).add(red, cut(text, right)).String())
	}
	for _, text := range back {
		lines = append(lines, new(line).add(green, cut(text, right)).String())
	}
	if s.Learning.State != "" && s.Learning.State != "off" {
		lines = append(lines, learningLine(s.Learning, right))
	}
	return lines
}

// learningLine is about the models: which version of each serves, and what is done for
// another.
func learningLine(s LearningStatus, right int) string {
	l := new(line)
	l.add(plain, " learning ")
	switch s.State {
	case "failed":
		return l.add(red, cut(s.Detail, right-l.width)).String()
	case "up":
	default:
		l.add(bold, s.State)
		if s.Detail != "" {
			l.add(dim, cut(", "+s.Detail, right-l.width))
		}
		return l.String()
	}
	if len(s.Models) == 0 {
		return l.add(plain, cut(s.Detail+", no model was trained yet", right-l.width)).String()
	}
	for i, m := range s.Models {
		name, look := strings.TrimSuffix(strings.TrimSuffix(m.Model, "_model"), "_prediction"), plain
		what := ", waits for rows"
		switch {
		case m.Run == "requested":
			what = ", training"
		case m.Run == "completed":
			what = ", judging"
		case m.Run == "failed":
			what, look = ", "+m.Failure, red
		case m.Decision == "keep":
			what = ", new one kept out"
		case m.Version != "":
			what = ""
		}
		version := "starter"
		if m.Version != "" {
			version = "version " + m.Version
		}
		head := name + " "
		if i > 0 {
			head = " · " + head
		}
		room := right - l.width
		taken := utf8.RuneCountInString(head + version)
		if taken > room {
			break
		}
		l.add(plain, head).add(bold, version).add(look, cut(what, room/(len(s.Models)-i)-taken))
	}
	return l.String()
}

// tables are the deliveries, the processes, what happened and the topics, in this
// order of importance, on a number of lines. Each has a header and a blank line.
func tables(s Status, right, room int) []string {
	topics := topicLines(s, right)
	active, idle := deliveryLines(s, right)
	processes, header := processLines(s, right), processHeader(right)
	events := eventLines(s, right)
	few := 3 // events that are shown at least
	if room < 24 {
		few = 2
	}
	if len(processes)+min(len(active), 6)+min(len(events), few)+5 > room {
		processes, header = processCells(s, right), new(line).add(dim, " PROCESS, memory, cpu").String()
	}
	take := func(lines []string, spare int) []string {
		n := max(0, min(len(lines), room-spare))
		room -= n
		return lines[:n]
	}
	room -= 3 // two headers and a blank line between the tables
	shownProcesses := take(processes, min(len(active), 3))
	room-- // the blank line before the events
	shownActive := take(active, min(len(events), few))
	shownEvents := take(events, 0)
	if len(idle) > 0 && room < len(idle) && len(shownEvents) > few {
		room += len(shownEvents) - few
		shownEvents = shownEvents[:few]
	}
	shownIdle := take(idle, 0)

	var out []string
	if room >= len(topics)+2 {
		out = append(out, new(line).add(dim, " TOPIC").right(dim, "now/s", right-14).right(dim, "records", right).String())
		out = append(append(out, topics...), "")
	}
	hidden := len(active) + len(idle) - len(shownActive) - len(shownIdle)
	out = append(out, deliveryHeader(right, hidden))
	out = append(append(out, shownActive...), shownIdle...)
	out = append(out, "", header)
	out = append(out, shownProcesses...)
	if len(shownEvents) > 0 {
		out = append(out, "")
		// The newest are shown; they read from top to bottom.
		for i := len(shownEvents) - 1; i >= 0; i-- {
			out = append(out, shownEvents[i])
		}
	}
	return out
}

func topicLines(s Status, right int) []string {
	var lines []string
	for _, t := range s.Topics {
		l := new(line).add(plain, " "+cut(t.Name, right-32))
		l.right(plain, rateText(t.PerSecond), right-14).right(plain, count(t.Total), right)
		lines = append(lines, l.String())
	}
	return lines
}

// Columns of the tables, counted from the right edge.
const (
	deliveredColumn = 24
	lagColumn       = 14
	retryColumn     = 6

	pidColumn     = 46
	memoryColumn  = 38
	cpuColumn     = 30
	restartColumn = 23
	addressColumn = 0
)

func deliveryHeader(right, hidden int) string {
	l := new(line).add(dim, " DELIVERY")
	if hidden > 0 {
		l.add(dim, fmt.Sprintf(" (%d more)", hidden))
	}
	return l.right(dim, "now/s", right-36).right(dim, "delivered", right-deliveredColumn).
		right(dim, "lag", right-lagColumn).right(dim, "retries", right-retryColumn).right(dim, "dead", right).String()
}

// deliveryLines are the sources and triggers, those in trouble and those with the most
// work first, and apart those that had nothing to do.
func deliveryLines(s Status, right int) (active, idle []string) {
	trouble := func(d Delivery) int {
		if !d.FailingSince.IsZero() || d.DeadLettered > 0 {
			return 0
		}
		return 1
	}
	deliveries := slices.SortedStableFunc(slices.Values(s.Deliveries), func(a, b Delivery) int {
		return cmp.Or(cmp.Compare(trouble(a), trouble(b)), cmp.Compare(b.Delivered, a.Delivered))
	})
	for _, d := range deliveries {
		l := new(line)
		look := plain
		if !d.FailingSince.IsZero() {
			look = red
		}
		l.add(look, " "+cut(d.Name, right-46)).add(dim, " "+strings.ToLower(strings.TrimSuffix(d.Kind, "Source")))
		l.right(plain, rateText(d.PerSecond), right-36).right(plain, shortCount(int64(d.Delivered)), right-deliveredColumn)
		l.right(plain, shortCount(d.Lag), right-lagColumn)
		l.right(plain, shortCount(int64(d.Retries)), right-retryColumn)
		deadLook := plain
		if d.DeadLettered > 0 {
			deadLook = red
		}
		l.right(deadLook, shortCount(int64(d.DeadLettered)), right)
		if d.Received+d.Delivered == 0 && d.Lag == 0 {
			idle = append(idle, l.String())
		} else {
			active = append(active, l.String())
		}
	}
	return active, idle
}

func processHeader(right int) string {
	return new(line).add(dim, " PROCESS").to(15).add(dim, "state").right(dim, "pid", right-pidColumn).right(dim, "memory", right-memoryColumn).
		right(dim, "cpu", right-cpuColumn).right(dim, "starts", right-restartColumn).right(dim, "address", right-addressColumn).String()
}

func processLines(s Status, right int) []string {
	var lines []string
	for _, p := range s.Processes {
		l := new(line)
		look := green
		if p.State != supervise.Ready {
			look = red
		}
		l.add(plain, " "+cut(p.Name, 13)).to(14).add(look, " "+string(p.State))
		pid := "-"
		if p.PID != 0 {
			pid = strconv.Itoa(p.PID)
		}
		l.right(plain, pid, right-pidColumn).right(plain, bytesText(p.RSSBytes), right-memoryColumn)
		l.right(plain, fmt.Sprintf("%.0f %%", p.CPUPercent), right-cpuColumn)
		restarts := plain
		if p.Restarts > 0 {
			restarts = red
		}
		l.right(restarts, strconv.Itoa(p.Restarts+1), right-restartColumn)
		l.right(plain, p.Address, right-addressColumn)
		lines = append(lines, l.String())
	}
	return lines
}

// processCells are the processes in short, several a line.
func processCells(s Status, right int) []string {
	const cell = 26
	var lines []string
	var l *line
	for i, p := range s.Processes {
		perLine := max(1, (right+2)/cell)
		if i%perLine == 0 {
			if l != nil {
				lines = append(lines, l.String())
			}
			l = new(line)
		}
		start := i % perLine * cell
		l.to(start)
		if p.State != supervise.Ready {
			l.add(red, " "+cut(p.Name+" "+string(p.State), cell-2))
			continue
		}
		look := plain
		if p.Restarts > 0 {
			look = red
		}
		l.add(look, " "+cut(p.Name, 10)).right(plain, bytesText(p.RSSBytes), start+18).right(plain, fmt.Sprintf("%.0f %%", p.CPUPercent), start+cell-2)
	}
	if l != nil {
		lines = append(lines, l.String())
	}
	return lines
}

// eventLines are the events, newest first, each on one line.
func eventLines(s Status, right int) []string {
	var lines []string
	for i := len(s.Events) - 1; i >= 0; i-- {
		e := s.Events[i]
		look := dim
		if e.Bad {
			look = red
		}
		text, _, _ := strings.Cut(e.Text, "\n")
		l := new(line).add(dim, " "+e.Time.Format("15:04:05")+" ").add(bold, e.Part+" ")
		lines = append(lines, l.add(look, cut(text, right-l.width)).String())
	}
	return lines
}

// summaryLine is the status in one line, for logs.
func summaryLine(s Status) string {
	var lag int64
	restarts := 0
	for _, d := range s.Deliveries {
		lag += d.Lag
	}
	for _, p := range s.Processes {
		restarts += p.Restarts
	}
	gold := "no warehouse"
	if s.noWarehouse() == "" {
		gold = fmt.Sprintf("gold %s rows, failed steps %s", count(s.Warehouse.Facts), count(s.Warehouse.FailedRuns))
	}
	learning := ""
	for _, m := range s.Learning.Models {
		if m.Version != "" {
			learning += fmt.Sprintf(", %s version %s", m.Model, m.Version)
		}
	}
	return fmt.Sprintf("raw %s/s, valid %s/s, invalid %s/s (%.1f %%), lag %s, lake %s records in %s objects (%s), %s, features of %s entities%s, dead letters %s, restarts %d, memory %s",
		rateText(s.Raw.PerSecond), rateText(s.Validated.PerSecond), rateText(s.Invalid.PerSecond), 100*s.InvalidShare, count(lag),
		count(s.Lake.Records), count(s.Lake.Objects), bytesText(s.Lake.Bytes), gold, count(s.Features.Entities), learning,
		count(int64(s.DeadLetters)), restarts, bytesText(s.RSSBytes))
}

// count writes a number with commas.
func count(n int64) string {
	text := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(text) - 3; i > start; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// shortCount is count for a narrow column.
func shortCount(n int64) string {
	if n < 100_000_000 {
		return count(n)
	}
	return count(n/1_000_000) + "M"
}

func rateText(perSecond float64) string {
	if perSecond > 0 && perSecond < 9.95 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64)
	}
	return count(int64(math.Round(perSecond)))
}

func bytesText(n int64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"KB", "MB", "GB", "TB"} {
		if value < 1000 {
			break
		}
		value, unit = value/1000, next
	}
	if unit != "B" && value < 9.95 {
		return fmt.Sprintf("%.1f %s", value, unit)
	}
	return fmt.Sprintf("%.0f %s", value, unit)
}

func age(d time.Duration) string {
	d = max(d, 0).Truncate(time.Second)
	return fmt.Sprintf("%02d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

func ago(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	}
	return fmt.Sprintf("%d h ago", int(d.Hours()))
}

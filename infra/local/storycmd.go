package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// story is the console's answer about an event.
type story struct {
	Asked string `json:"asked"`
	Hops  []struct {
		At    time.Time      `json:"at"`
		What  string         `json:"what"`
		Where string         `json:"where"`
		Data  map[string]any `json:"data"`
	} `json:"hops"`
	// Unknown is a source that did not answer, and why.
	Unknown string `json:"unknown"`
	// SearchedBack is how far back Kafka was searched, when not to the beginning.
	SearchedBack time.Time `json:"searchedBack"`
}

// runStory is the command story: it asks the console of a running platform.
func runStory(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("story", flag.ContinueOnError)
	state := stateFlag(fs)
	console := fs.String("console", os.Getenv("CONSOLE_URL"), "address of the console, as http://127.0.0.1:8093; default that of the platform that runs here (env CONSOLE_URL)")
	asJSON := fs.Bool("json", false, "print the console's answer as it is")
	asked := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		asked, args = args[0], args[1:]
	}
	const about = `Tells what an event came from and what came of it, with times: millrace story <id> [flags],
the id of an event, of a trace, a record's hash, a session or a server.`
	if done, err := parse(fs, args, about, stdout, stderr); done {
		return err
	}
	if asked == "" {
		return errors.New("story needs to know of what, before any flag: the id of an event or of a trace, a session or a server")
	}
	if *console == "" {
		var err error
		if *console, err = consoleOf(ctx, *state); err != nil {
			return err
		}
	}
	body, err := fetch(ctx, strings.TrimSuffix(strings.TrimSuffix(*console, "/"), "/console")+"/console/api/story?"+url.Values{"q": {asked}}.Encode())
	if err != nil {
		return fmt.Errorf("asking the console: %w", err)
	}
	if *asJSON {
		_, err := stdout.Write(body)
		return err
	}
	var answer struct {
		story
		Absent *struct{ Source, Message string }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("reading the console's answer: %w", err)
	}
	if answer.Absent != nil {
		return fmt.Errorf("the console cannot tell: %s (%s)", answer.Absent.Message, answer.Absent.Source)
	}
	printStory(stdout, answer.story)
	return nil
}

// consoleOf is the address of the console of the platform that runs with a state folder.
func consoleOf(ctx context.Context, state string) (string, error) {
	b, err := os.ReadFile(filepath.Join(state, "endpoint"))
	if err != nil {
		return "", fmt.Errorf("no platform runs with the state folder %s. Start it with `make run`, name its folder with --state, or a console with --console", state)
	}
	body, err := fetch(ctx, strings.TrimSpace(string(b))+"/status")
	if err != nil {
		return "", fmt.Errorf("asking the platform of %s: %w", state, err)
	}
	var s Status
	if err := json.Unmarshal(body, &s); err != nil {
		return "", fmt.Errorf("reading the status: %w", err)
	}
	for _, u := range s.URLs {
		if u.Name == "console" {
			return strings.TrimSuffix(u.URL, "/console/"), nil
		}
	}
	return "", errors.New("the platform runs without its console")
}

// fetch gets an address. What is answered with an error is one.
func fetch(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answered %s: %.300s", resp.Status, body)
	}
	return body, err
}

// printStory prints a line a hop: when, how long after the first, what, where, and what
// one reads first of it.
func printStory(w io.Writer, s story) {
	if s.Unknown != "" {
		fmt.Fprintf(w, "not told by %s\n", s.Unknown)
	}
	if len(s.Hops) == 0 {
		fmt.Fprintf(w, "Nothing is known of %s", s.Asked)
		if !s.SearchedBack.IsZero() {
			fmt.Fprintf(w, "; Kafka was searched back to %s", s.SearchedBack.Local().Format(time.DateTime))
		}
		fmt.Fprintln(w, ".")
		return
	}
	widest := 0
	for _, h := range s.Hops {
		widest = max(widest, utf8.RuneCountInString(h.What))
	}
	first := s.Hops[0].At
	for _, h := range s.Hops {
		pad := strings.Repeat(" ", widest-utf8.RuneCountInString(h.What))
		fmt.Fprintf(w, "%s %10s  %s%s  %-10s  %s\n", h.At.Local().Format("2006-01-02 15:04:05.000"), laterText(h.At.Sub(first)), h.What, pad, h.Where, hopText(h.Data))
	}
}

// laterText is how long after the first hop another was.
func laterText(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("+%d ms", d.Milliseconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("+%.0f s", d.Seconds())
	}
	return fmt.Sprintf("+%.0f h", d.Hours())
}

// hopText is what one reads first: of an event its source and id, else its data's.
func hopText(data map[string]any) string {
	if event, ok := data["event"].(map[string]any); ok {
		text := fmt.Sprintf("%v %v", event["source"], event["id"])
		if inner, ok := data["data"].(map[string]any); ok {
			if more := members(inner); more != "" {
				text += "  " + more
			}
		}
		return text
	}
	return members(data)
}

// members are those of a row that tell most.
func members(data map[string]any) string {
	var list []string
	for _, name := range []string{
		"event", "event_type", "product_id", "user_session", "price", "activity_count", "object", "load", "server_id", "entity_id",
		"severity", "summary", "error_message", "model", "model_name", "model_version", "prediction", "anomaly_type", "anomaly_score",
	} {
		switch v := data[name].(type) {
		case nil, map[string]any, []any:
		case float64:
			list = append(list, fmt.Sprintf("%s=%s", name, numberText(v)))
		default:
			list = append(list, fmt.Sprintf("%s=%v", name, v))
		}
	}
	return strings.Join(list, " ")
}

func numberText(v float64) string {
	if v == float64(int64(v)) {
		return strconv.FormatInt(int64(v), 10)
	}
	return fmt.Sprintf("%.4g", v)
}

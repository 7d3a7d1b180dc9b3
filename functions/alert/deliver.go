package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const (
	// sinkTimeout bounds one request.
	sinkTimeout = 10 * time.Second
	// atOnce is how many deliveries are claimed together.
	atOnce = 20
	// poll is how often is looked for deliveries that nobody told of: what another
	// process left, or what is due again.
	poll = 5 * time.Second
	// firstBackoff doubles with each try up to maxBackoff; after maxAttempts, more than a
	// day, a delivery has failed.
	firstBackoff = time.Second
	maxBackoff   = 15 * time.Minute
	maxAttempts  = 110
)

// occasion says why a sink is told.
type occasion string

// delivery is one claimed.
type delivery struct {
	ID       int64
	Occasion occasion
	Number   int
	Attempts int
	Alert    Alert
}

// start sends what is due until ctx ends, each sink by itself; done is closed when all
// have stopped and the counts are written.
func (a *alerter) start(ctx context.Context) (done <-chan struct{}) {
	var g sync.WaitGroup
	client := &http.Client{Timeout: sinkTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for name, s := range a.sinks {
		g.Go(func() { a.serve(ctx, client, s, a.wake[name]) })
	}
	stopped := make(chan struct{})
	go func() {
		g.Wait()
		<-ctx.Done()
		end, cancel := unstopped(ctx)
		defer cancel()
		a.flush(end)
		close(stopped)
	}()
	return stopped
}

func (a *alerter) wakeAll() {
	for _, c := range a.wake {
		select {
		case c <- struct{}{}:
		default: // it is awake
		}
	}
}

// serve sends to one sink. A failure of the sink is noted in the delivery; one of the
// database is logged, and tried again.
func (a *alerter) serve(ctx context.Context, client *http.Client, s *sink, wake <-chan struct{}) {
	t := time.NewTicker(poll)
	defer t.Stop()
	said := ""
	for {
		n, err := a.deliver(ctx, client, s)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != said:
			said = err.Error()
			slog.ErrorContext(ctx, "alerts wait", "sink", s.Name, "error", said)
		case err == nil:
			said = ""
			if n == atOnce {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-t.C:
		}
	}
}

// deliver claims what is due for a sink and sends it, in order of each alert. It returns
// how many it claimed. When ctx ends, what is being sent is sent, since nobody could tell
// whether it was; the rest is left for the next process at once.
func (a *alerter) deliver(ctx context.Context, client *http.Client, s *sink) (int, error) {
	if err := a.db.Ready(ctx); err != nil {
		return 0, err
	}
	lease := rand.Text()
	list, err := a.claim(ctx, s, lease)
	if err != nil {
		return 0, fmt.Errorf("claiming deliveries: %w", err)
	}
	for i := range list {
		if ctx.Err() != nil {
			return 0, a.release(ctx, lease, 0)
		}
		d := &list[i]
		sent := send(context.WithoutCancel(ctx), client, s, d) // the client has a timeout
		if err := a.settle(ctx, s, d, lease, sent); err != nil {
			return len(list), err
		}
		var f *sinkError
		if errors.As(sent, &f) && f.again {
			// What would fail alike is left for later.
			return 0, a.release(ctx, lease, f.after(1))
		}
	}
	return len(list), nil
}

// unstopped is for what has to be said of deliveries though the process is told to stop:
// what nobody says of a lease lasts until it runs out.
func unstopped(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), sinkTimeout)
}

// release gives back what was claimed and not tried, to be due after a while.
func (a *alerter) release(ctx context.Context, lease string, after time.Duration) error {
	ctx, cancel := unstopped(ctx)
	defer cancel()
	if _, err := a.db.Exec(ctx, `UPDATE alerts.deliveries SET leased_until = NULL, lease = NULL, attempts = attempts - 1, due_at = now() + $2::interval
		WHERE lease = $1 AND sent_at IS NULL AND failed_at IS NULL`, lease, after); err != nil {
		return fmt.Errorf("releasing deliveries: %w", err)
	}
	return nil
}

// claim takes deliveries for the length of a lease. What is claimed by others is left
// alone, as is what has something of the same alert before it.
func (a *alerter) claim(ctx context.Context, s *sink, lease string) ([]delivery, error) {
	ctx, cancel := unstopped(ctx)
	defer cancel()
	rows, err := a.db.Query(ctx, `WITH due AS (
			SELECT delivery_id FROM alerts.deliveries d WHERE sent_at IS NULL AND failed_at IS NULL AND sink = $1 AND due_at <= now()
				AND (leased_until IS NULL OR leased_until < now()) AND NOT EXISTS (SELECT FROM alerts.deliveries before
					WHERE before.alert_id = d.alert_id AND before.sink = d.sink AND before.delivery_id < d.delivery_id AND before.sent_at IS NULL AND before.failed_at IS NULL)
			ORDER BY delivery_id LIMIT $4 FOR UPDATE SKIP LOCKED
		), claimed AS (
			UPDATE alerts.deliveries d SET leased_until = now() + $3::interval, lease = $2, attempts = attempts + 1 FROM due WHERE d.delivery_id = due.delivery_id
			RETURNING d.delivery_id, d.occasion, d.number, d.attempts, d.alert_id
		)
		SELECT delivery_id, occasion, number, attempts, `+columns+` FROM claimed JOIN alerts.alerts USING (alert_id) ORDER BY delivery_id`, s.Name, lease, a.lease, atOnce)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (delivery, error) {
		var d delivery
		r := &d.Alert
		err := row.Scan(&d.ID, &d.Occasion, &d.Number, &d.Attempts, &r.ID, &r.Rule, &r.Group, &r.Labels, &r.Severity, &r.Summary, &r.Details,
			&r.Events, &r.FirstEvent, &r.LastEvent, &r.State, &r.Suppressed, &r.RaisedAt, &r.ResolvedAt, &r.Resolution)
		return d, err
	})
}

// settle notes what became of a delivery. One whose lease ran out meanwhile is another's.
func (a *alerter) settle(ctx context.Context, s *sink, d *delivery, lease string, sent error) error {
	outcome, sql, args := "sent", `sent_at = now(), error = NULL`, []any{d.ID, lease}
	if sent != nil {
		var f *sinkError
		if !errors.As(sent, &f) {
			return sent
		}
		text := cut(clean(sent.Error()), 500)
		if f.again && d.Attempts < maxAttempts {
			outcome, sql, args = "again", `due_at = now() + $3::interval, error = $4`, append(args, f.after(d.Attempts), text)
		} else {
			outcome, sql, args = "failed", `failed_at = now(), error = $3`, append(args, text)
		}
		slog.WarnContext(ctx, "a sink was not told", "sink", s.Name, "alert", d.Alert.ID, "attempt", d.Attempts, "outcome", outcome, "error", text)
	}
	a.told.Add(ctx, 1, metric.WithAttributes(attribute.String("sink", s.Name), attribute.String("outcome", outcome)))
	ctx, cancel := unstopped(ctx)
	defer cancel()
	if _, err := a.db.Exec(ctx, `UPDATE alerts.deliveries SET leased_until = NULL, lease = NULL, `+sql+` WHERE delivery_id = $1 AND lease = $2`, args...); err != nil {
		return fmt.Errorf("settling delivery %d: %w", d.ID, err)
	}
	return nil
}

// sinkError is an answer that a sink should not have given, or none.
type sinkError struct {
	again bool
	wait  time.Duration // that the sink asked for
	err   error
}

func (f *sinkError) Error() string { return f.err.Error() }
func (f *sinkError) Unwrap() error { return f.err }

// after is when to try again.
func (f *sinkError) after(attempts int) time.Duration {
	return max(f.wait, min(maxBackoff, firstBackoff<<min(attempts-1, 20)))
}

// send tells a sink. The error is a *sinkError.
func send(ctx context.Context, client *http.Client, s *sink, d *delivery) error {
	at := s.url
	var body any
	switch s.Kind {
	case kindLog:
		r := &d.Alert
		level := slog.LevelWarn
		if d.Occasion == "resolved" {
			level = slog.LevelInfo
		}
		//nolint:sloglint // there are few occasions
		slog.Log(ctx, level, "alert "+string(d.Occasion), "alert", r.ID, "rule", r.Rule, "group", r.Group, "severity", string(r.Severity), "summary", r.Summary, "events", r.Events)
		return nil
	case kindSlack:
		body = slackMessage(d)
	case kindAlertmanager:
		at, body = s.url+"/api/v2/alerts", []postableAlert{alertmanagerAlert(s, d, time.Now())}
	default:
		body = webhookMessage(d)
	}
	data, err := json.Marshal(body)
	if err != nil {
		return &sinkError{err: fmt.Errorf("writing the request: %w", err)}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(data))
	if err != nil {
		return &sinkError{err: fmt.Errorf("addressing sink %s", s.Name)} // the address may be a secret
	}
	req.Header.Set("Content-Type", "application/json")
	// The same for each try, so that who was told and could not say so can tell.
	req.Header.Set("Idempotency-Key", "millrace-alert-"+strconv.FormatInt(d.ID, 10))
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := client.Do(req)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // without the address
		}
		return &sinkError{again: true, err: fmt.Errorf("reaching it: %w", err)}
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // what can be read of it is enough
	if resp.StatusCode/100 == 2 {
		return nil
	}
	f := &sinkError{err: fmt.Errorf("it answered %s: %s", resp.Status, strings.Join(strings.Fields(string(text)), " "))}
	switch c := resp.StatusCode; {
	case c >= 500, c == http.StatusTooManyRequests, c == http.StatusRequestTimeout, c == http.StatusNotFound, c == http.StatusConflict:
		f.again = true
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			f.wait = min(time.Duration(n)*time.Second, maxBackoff)
		}
	}
	return f
}

// message is what a webhook gets.
type message struct {
	Version  int      `json:"version"` // of this shape
	Delivery int64    `json:"delivery_id"`
	Occasion occasion `json:"occasion"` // raised, reminder or resolved
	Alert    Alert    `json:"alert"`
}

func webhookMessage(d *delivery) message { return message{1, d.ID, d.Occasion, d.Alert} }

// postableAlert is Alertmanager's (its api/v2/openapi.yaml).
type postableAlert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// alertmanagerAlert names an alert by its rule and group, which is its identity there.
// One that is open ends when reminders have failed three times; Alertmanager's clients
// tell it again and again of what is still so.
func alertmanagerAlert(s *sink, d *delivery, now time.Time) postableAlert {
	r := &d.Alert
	p := postableAlert{
		Labels:      map[string]string{"alertname": r.Rule, "group": r.Group, "service": "millrace"},
		Annotations: map[string]string{"summary": r.Summary, "severity": string(r.Severity), "events": strconv.FormatInt(r.Events, 10), "alert_id": strconv.FormatInt(r.ID, 10)},
		StartsAt:    r.RaisedAt.UTC(),
		EndsAt:      now.Add(3 * max(s.Remind, time.Minute)).UTC(),
	}
	for _, name := range slices.Sorted(maps.Keys(r.Labels)) {
		p.Annotations[name] = r.Labels[name]
	}
	// Receivers are chosen by it; an alert whose severity rises is another one there, and
	// the former one ends by itself.
	p.Labels["severity"] = strings.ToLower(string(r.Severity))
	if r.ResolvedAt != nil {
		p.EndsAt = r.ResolvedAt.UTC()
	}
	return p
}

// slack is a message to a Slack-compatible incoming webhook.
type slack struct {
	Text        string            `json:"text"`
	Attachments []slackAttachment `json:"attachments"`
}

type slackAttachment struct {
	Color    string       `json:"color"`
	Fallback string       `json:"fallback"`
	Fields   []slackField `json:"fields"`
	TS       int64        `json:"ts"`
}

type slackField struct {
	Title string `json:"title"`
	Value string `json:"value"`
	Short bool   `json:"short"`
}

// slackEscape is what Slack asks for in texts.
var slackEscape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func slackMessage(d *delivery) slack {
	r := &d.Alert
	text := fmt.Sprintf("[%s] %s", r.Severity, r.Summary)
	color := map[severity]string{"LOW": "#6b7280", "MEDIUM": "#b45309", "HIGH": "#c2410c", "CRITICAL": "#b91c1c"}[r.Severity]
	switch d.Occasion {
	case "resolved":
		text, color = "Resolved: "+r.Summary, "#15803d"
	case "reminder":
		text = "Still: " + text
	}
	text = slackEscape.Replace(text)
	fields := []slackField{{"Rule", slackEscape.Replace(r.Rule), true}, {"Events", strconv.FormatInt(r.Events, 10), true}}
	for _, name := range slices.Sorted(maps.Keys(r.Labels)) {
		if v := r.Labels[name]; v != "" {
			fields = append(fields, slackField{slackEscape.Replace(name), slackEscape.Replace(v), len(v) < 40})
		}
	}
	return slack{Text: text, Attachments: []slackAttachment{{Color: color, Fallback: text, Fields: fields, TS: r.RaisedAt.Unix()}}}
}

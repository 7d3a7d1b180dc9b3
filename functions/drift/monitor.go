package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// monitor is the handler.
type monitor struct {
	name           string
	plan           *plan
	db             *warehouse.DB
	bundles        baselines
	sink           *sink.Sink
	store          *lake.Store // nil without one
	bucket         string
	lag, retention time.Duration
	metrics        metrics

	mu   sync.Mutex
	said map[string]string    // the last failure of a model
	done map[string]time.Time // the end of the last window that was looked at
}

// States of a model's drift.
const (
	stable   = "stable"
	detected = "detected" // with this window
	drifting = "drifting" // since a former one
	resolved = "resolved" // with this window
)

// Handle measures the windows of all ticks of a batch, which are mostly of one, and
// sends what is to be sent.
func (m *monitor) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	for i := range batch {
		e := &batch[i]
		if e.Type() != events.Tick {
			results[i].Err = function.Invalid("events of type %q are no ticks", e.Type())
			continue
		}
		when := e.Time()
		if when.IsZero() {
			when = time.Now()
		}
		if err := m.tick(ctx, when); err != nil {
			results[i].Err = function.Unavailable(err, 2*time.Second)
		}
	}
	return results
}

// tick measures what is due at a time. A model that cannot be measured is logged and
// does not keep the others from it; what may pass makes the tick come again.
func (m *monitor) tick(ctx context.Context, when time.Time) error {
	if err := m.db.Ready(ctx); err != nil {
		return err
	}
	now := last(when, m.lag, m.plan.Every, m.plan.Window)
	var failed error
	worked := false
	for _, w := range m.plan.Models {
		// Most ticks are of a window that was measured: they cost nothing.
		if !m.due(w.Name, now) {
			continue
		}
		worked = true
		err := m.watch(ctx, w, now)
		if err == nil || notThere(err) || errors.Is(err, errNoVersion) {
			m.finish(w.Name, now)
		}
		if notThere(err) || errors.Is(err, errNoVersion) {
			m.say(ctx, slog.LevelInfo, w.Name, err)
			continue
		}
		if errors.Is(err, errUnknown) {
			// The window stays due, and the next tick comes soon: this one coming again and
			// again would end among the dead letters, for as long as there is no registry.
			m.say(ctx, slog.LevelWarn, w.Name, err)
			continue
		}
		m.say(ctx, slog.LevelError, w.Name, err)
		if err != nil && failed == nil {
			failed = fmt.Errorf("measuring %s: %w", w.Name, err)
		}
	}
	if err := m.send(ctx); err != nil && failed == nil {
		failed = err
	}
	if worked {
		// Rows of windows and bundles take many times what is kept of them, and the next are
		// far away.
		debug.FreeOSMemory()
	}
	if failed == nil {
		if _, err := m.db.Exec(ctx, `DELETE FROM drift.windows WHERE (model, window_end) IN (SELECT model, window_end FROM drift.windows
			WHERE window_end < $1 AND sent_at IS NOT NULL LIMIT 1000)`, now.To.Add(-m.retention)); err != nil {
			return fmt.Errorf("deleting old windows: %w", err)
		}
	}
	return failed
}

func (m *monitor) due(name string, now window) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.To.After(m.done[name])
}

func (m *monitor) finish(name string, now window) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done == nil {
		m.done = map[string]time.Time{}
	}
	m.done[name] = now.To
}

// say logs a failure when it is another than the last.
func (m *monitor) say(ctx context.Context, level slog.Level, name string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.said == nil {
		m.said = map[string]string{}
	}
	if m.said[name] == text {
		return
	}
	m.said[name] = text
	if text != "" {
		slog.Log(ctx, level, "drift is not measured", "model", name, "error", text)
	}
}

// watch measures a window of a model, if it is later than all that were.
func (m *monitor) watch(ctx context.Context, w *watched, now window) error {
	var b *baseline
	if w.metrics == nil {
		var err error
		if b, err = m.bundles.of(ctx, w); err != nil {
			return err
		}
	}
	var kept *Report
	err := pgx.BeginFunc(ctx, m.db, func(tx pgx.Tx) error {
		var free bool
		if err := tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock(hashtextextended('millrace drift ' || $1, 0))", w.Name).Scan(&free); err != nil {
			return fmt.Errorf("waiting for others: %w", err)
		}
		if !free {
			return nil // another process measures it
		}
		past, err := former(ctx, tx, w.Name)
		if err != nil {
			return err
		}
		if len(past) > 0 && !past[0].to.Before(now.To) {
			return nil
		}
		r, err := measure(ctx, tx, m.plan, w, b, now)
		if err != nil {
			return err
		}
		if !r.Judged && len(past) == 0 && r.Rows == 0 {
			return nil // nothing has come yet
		}
		follow(r, past, m.plan.Hold)
		for i := len(past) - 1; i >= 0; i-- {
			r.Past = append(r.Past, Past{past[i].to, past[i].share, past[i].state})
		}
		kept = r
		return keep(ctx, tx, r)
	})
	if err == nil && kept != nil {
		m.metrics.note(kept)
	}
	return err
}

// row is a former window.
type row struct {
	version     string
	to          time.Time
	consecutive int
	state       string
	share       float64
}

// former reads the windows before, the latest first.
func former(ctx context.Context, tx pgx.Tx, name string) ([]row, error) {
	rows, err := tx.Query(ctx, `SELECT model_version, window_end, consecutive, state, CASE WHEN columns > 0 THEN drifted_columns::float / columns ELSE 0 END
		FROM drift.windows WHERE model = $1 ORDER BY window_end DESC LIMIT 60`, name)
	if err != nil {
		return nil, fmt.Errorf("reading former windows: %w", err)
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (row, error) {
		var w row
		err := r.Scan(&w.version, &w.to, &w.consecutive, &w.state, &w.share)
		w.to = w.to.UTC()
		return w, err
	})
}

// follow decides what a window means after those before it. Drift is detected when hold
// windows in a row are over the limits, once; it is resolved when as many are not, or
// when another version serves. A window that could not be judged changes nothing.
func follow(r *Report, past []row, hold int) {
	var before row
	if len(past) > 0 && past[0].version == r.Version {
		before = past[0]
	}
	on := before.state == detected || before.state == drifting
	r.Consecutive, r.State = before.consecutive, stable
	if r.Judged {
		switch {
		case r.Over:
			r.Consecutive = max(0, before.consecutive) + 1
		default:
			r.Consecutive = min(0, before.consecutive) - 1
		}
	}
	switch {
	case on && r.Judged && r.Consecutive <= -hold:
		r.State = resolved
	case on:
		r.State = drifting
	case r.Judged && r.Consecutive >= hold:
		r.State = detected
	}
}

// keep writes a window and its statistics.
func keep(ctx context.Context, tx pgx.Tx, r *Report) error {
	_, err := tx.Exec(ctx, `INSERT INTO drift.windows (model, window_start, window_end, model_version, rows, reference_rows, columns, drifted_columns,
			over, reasons, consecutive, state, report)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`, r.Model, r.From, r.To, r.Version, r.Rows, r.ReferenceRows, r.Counted, r.Drifted,
		r.Over, r.Reasons, r.Consecutive, r.State, r)
	if err != nil {
		return fmt.Errorf("keeping the window: %w", err)
	}
	var rows [][]any
	add := func(kind, name, statistic string, value float64, p, threshold *float64, drifted *bool) {
		rows = append(rows, []any{r.Model, r.To, kind, name, statistic, value, p, threshold, drifted})
	}
	for i := range r.Columns {
		c := &r.Columns[i]
		for _, s := range c.Statistics {
			var threshold *float64
			var drifted *bool
			if s.Name == c.Method {
				threshold, drifted = &c.Limit, &c.Drifted
			}
			add(c.Kind, c.Name, s.Name, s.Value, s.P, threshold, drifted)
		}
		if c.Method != "" {
			add(c.Kind, c.Name, "missing", c.MissingCurrent, &c.MissingP, nil, nil)
		}
	}
	if e := r.Errors; e != nil {
		add("error", "error", "within_interval_90", e.Within, nil, &e.Limit, &e.Drifted)
		add("error", "error", "mean_absolute_error", e.MAE, nil, nil, nil)
		add("error", "error", "mean_error", e.Mean, nil, nil, nil)
	}
	if p := r.Performance; p != nil {
		for name, v := range map[string]float64{"estimated_log_loss": p.Current.LogLoss, "estimated_brier": p.Current.Brier, "estimated_accuracy": p.Current.Accuracy} {
			add("score", "performance", name, v, nil, nil, nil)
		}
		if p.Current.AUC != nil {
			add("score", "performance", "estimated_auc", *p.Current.AUC, nil, nil, nil)
		}
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"drift", "measurements"},
		[]string{"model", "window_end", "kind", "name", "statistic", "value", "p_value", "threshold", "drifted"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("keeping statistics: %w", err)
	}
	return nil
}

// sendAtOnce bounds what a tick sends; the next one sends the rest.
const sendAtOnce = 200

// send sends events and reports of windows that were measured and not told of, in order.
// Their ids follow from model and window: what is sent twice is the same event.
func (m *monitor) send(ctx context.Context) error {
	rows, err := m.db.Query(ctx, `SELECT report FROM drift.windows WHERE sent_at IS NULL ORDER BY window_end, model LIMIT $1`, sendAtOnce)
	if err != nil {
		return fmt.Errorf("reading what is to be sent: %w", err)
	}
	reports, err := pgx.CollectRows(rows, pgx.RowTo[Report])
	if err != nil {
		return fmt.Errorf("reading what is to be sent: %w", err)
	}
	for i := range reports {
		r := &reports[i]
		if err := m.publish(ctx, r); err != nil {
			return err
		}
		list := []events.Message{m.message(r, events.DriftMeasured)}
		if r.State == detected {
			list = append(list, m.message(r, events.DriftDetected))
			slog.WarnContext(ctx, "drift detected", "model", r.Model, "version", r.Version, "window_end", r.To, "reasons", strings.Join(r.Reasons, "; "))
		}
		if err := m.sink.Send(ctx, list); err != nil {
			return fmt.Errorf("telling of the drift of %s: %w", r.Model, err)
		}
		if _, err := m.db.Exec(ctx, `UPDATE drift.windows SET sent_at = now() WHERE model = $1 AND window_end = $2`, r.Model, r.To); err != nil {
			return fmt.Errorf("noting what was sent: %w", err)
		}
	}
	return nil
}

// told is the data of drift.measured and drift.detected.
type told struct {
	Model     string    `json:"model"`
	Version   string    `json:"model_version"`
	From      time.Time `json:"window_start"`
	To        time.Time `json:"window_end"`
	Rows      int       `json:"rows"`
	Reference string    `json:"reference"`
	State     string    `json:"state"`
	Over      bool      `json:"over"`
	Windows   int       `json:"windows"`
	Share     float64   `json:"drift_share"`
	Reasons   []string  `json:"reasons"`
	Drifted   []string  `json:"drifted_columns"`
	Report    string    `json:"report"`
}

func (m *monitor) message(r *Report, typ string) events.Message {
	d := told{Model: r.Model, Version: r.Version, From: r.From, To: r.To, Rows: r.Rows, Reference: r.Reference, State: r.State, Over: r.Over,
		Windows: max(0, r.Consecutive), Share: r.Share, Reasons: r.Reasons, Drifted: []string{}, Report: "/reports/" + path(r)}
	for _, c := range r.Columns {
		if c.Drifted && c.Ignored == "" {
			d.Drifted = append(d.Drifted, c.Name)
		}
	}
	data, _ := json.Marshal(d) // finite numbers and texts can be written
	part := "drift-measured"
	if typ == events.DriftDetected {
		part = "drift-detected"
	}
	source := events.FunctionSource + m.name
	return events.Message{Data: data, Attrs: []events.Attr{
		{Name: "specversion", Value: "1.0"},
		{Name: "id", Value: events.ReplyID(source, r.Model+" "+r.To.Format(time.RFC3339Nano), part)},
		{Name: "source", Value: source}, {Name: "type", Value: typ}, {Name: "subject", Value: r.Model},
		{Name: "time", Value: r.To.Format(time.RFC3339Nano)}, {Name: "datacontenttype", Value: "application/json"},
		{Name: events.PartitionKey, Value: r.Model},
		// For Triggers: model or stream, and the state.
		{Name: "kind", Value: r.Kind}, {Name: "state", Value: r.State},
	}}
}

// path names a report: model and end of its window.
func path(r *Report) string {
	return r.Model + "/" + r.To.UTC().Format("20060102T150405Z")
}

// publish writes a report into the object store: the same bytes each time.
func (m *monitor) publish(ctx context.Context, r *Report) error {
	if m.store == nil {
		return nil
	}
	var b bytes.Buffer
	if err := r.render(&b); err != nil {
		return err
	}
	key := "drift/" + path(r) + ".html"
	meta := map[string]string{"model": strings.ReplaceAll(r.Model, "/", "-"), "state": r.State, "over": strconv.FormatBool(r.Over)}
	_, err := m.store.Put(ctx, m.bucket, key, b.Bytes(), "text/html; charset=utf-8", meta, lake.Condition{})
	if errors.Is(err, lake.ErrNotFound) {
		if _, err = m.store.EnsureBucket(ctx, m.bucket); err == nil {
			_, err = m.store.Put(ctx, m.bucket, key, b.Bytes(), "text/html; charset=utf-8", meta, lake.Condition{})
		}
	}
	if err != nil {
		return fmt.Errorf("writing the report of %s: %w", r.Model, err)
	}
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// alerter is the handler.
type alerter struct {
	name      string
	rules     map[string]*rule
	byType    map[string][]*rule
	sinks     map[string]*sink // those that are on
	db        *warehouse.DB
	lease     time.Duration
	retention time.Duration
	wake      map[string]chan struct{} // by sink
	raised    metric.Int64Counter
	told      metric.Int64Counter

	mu sync.Mutex
	// held are groups of rules that do not remember events, whose alert was open a
	// moment ago: for quiet, their events are counted here and written together.
	held map[groupID]*held
}

// held is a group with an open alert.
type held struct {
	until   time.Time
	pending *change // nil when there is nothing to write
}

// hold is how long the events of such a group are counted before they are written. A
// kill loses the counts of at most that long; alerts it loses none.
const hold = time.Second

func newAlerter(c *Config, r *rules, db *warehouse.DB) (*alerter, error) {
	a := &alerter{name: c.Function.Name, rules: map[string]*rule{}, byType: map[string][]*rule{}, sinks: map[string]*sink{}, db: db,
		lease: c.Lease, retention: c.Retention, wake: map[string]chan struct{}{}, held: map[groupID]*held{}}
	for _, rule := range r.Rules {
		a.rules[rule.Name] = rule
		for _, typ := range slices.Concat(rule.On, rule.ResolvedBy) {
			a.byType[typ] = append(a.byType[typ], rule)
		}
	}
	for _, s := range r.Sinks {
		if s.on() {
			a.sinks[s.Name], a.wake[s.Name] = s, make(chan struct{}, 1)
		}
	}
	meter := otel.Meter("github.com/millrace-dev/millrace/functions/alert")
	var err error
	if a.raised, err = meter.Int64Counter("millrace.alerts.raised", metric.WithUnit("{alert}"),
		metric.WithDescription("Alerts that were raised, by rule and severity.")); err != nil {
		return nil, fmt.Errorf("making metric millrace.alerts.raised: %w", err)
	}
	if a.told, err = meter.Int64Counter("millrace.alerts.deliveries", metric.WithUnit("{delivery}"),
		metric.WithDescription("Tries to tell a sink of an alert, by sink and outcome: sent, again, failed.")); err != nil {
		return nil, fmt.Errorf("making metric millrace.alerts.deliveries: %w", err)
	}
	return a, nil
}

// Handle raises and resolves what the events of a batch ask for, in one transaction. It
// replies to an event that opened an alert, each time that it comes.
func (a *alerter) Handle(ctx context.Context, batch []event.Event) []function.Result {
	results := make([]function.Result, len(batch))
	now := time.Now().UTC()
	changes := map[groupID]*change{}
	var remembered []seen
	tick := false
	for i := range batch {
		e := &batch[i]
		if e.Type() == events.Tick {
			tick = true
			continue
		}
		rules := a.byType[e.Type()]
		if rules == nil {
			if !slices.Contains(taken, e.Type()) {
				results[i].Err = function.Invalid("events of type %q are none that alerts are made of", e.Type())
			}
			continue
		}
		for _, r := range rules {
			c := r.observe(e, i, now)
			switch {
			case c == nil:
			case r.Remember:
				remembered = append(remembered, seen{c, e.Source(), e.ID()})
			default:
				add(changes, c)
			}
		}
	}
	waited := a.holdBack(changes, now, tick)
	fail := func(err error) []function.Result {
		a.putBack(waited)
		for i := range results {
			if results[i].Err == nil {
				results[i].Err = err
			}
		}
		return results
	}
	if len(changes)+len(remembered) > 0 {
		raised, err := a.write(ctx, changes, remembered)
		if err != nil {
			return fail(function.Unavailable(fmt.Errorf("writing alerts: %w", err), time.Second))
		}
		a.wakeAll()
		for _, r := range raised {
			if r.at < 0 || r.Suppressed {
				continue
			}
			reply, err := a.reply(&batch[r.at], r)
			results[r.at] = function.Result{Reply: reply, Err: err}
		}
	}
	if tick {
		if err := a.upkeep(ctx); err != nil {
			return fail(function.Unavailable(err, time.Second))
		}
		a.wakeAll()
	}
	return results
}

// seen is a change by one event of a rule that remembers events.
type seen struct {
	change     *change
	source, id string
}

func add(changes map[groupID]*change, c *change) {
	if have := changes[c.id]; have != nil {
		have.join(c)
		return
	}
	changes[c.id] = c
}

// holdBack takes the changes out that can wait, and adds those that have waited, which
// it returns: their events were answered before.
func (a *alerter) holdBack(changes map[groupID]*change, now time.Time, all bool) (waited map[groupID]*change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	waited = map[groupID]*change{}
	for id, c := range changes {
		h := a.held[id]
		if h == nil || len(c.rule.ResolvedBy) > 0 {
			continue
		}
		if now.Before(h.until) && !all {
			if h.pending == nil {
				h.pending = c
			} else {
				h.pending.join(c)
			}
			// The event is answered now and must not be kept.
			h.pending.opener = nil
			delete(changes, id)
			continue
		}
		if h.pending != nil {
			waited[id] = h.pending
			both := *h.pending
			both.join(c)
			changes[id] = &both
		}
		delete(a.held, id)
	}
	for id, h := range a.held {
		if all || now.After(h.until) {
			if h.pending != nil {
				waited[id], changes[id] = h.pending, h.pending
			}
			delete(a.held, id)
		}
	}
	return waited
}

// putBack keeps what has waited when it could not be written.
func (a *alerter) putBack(waited map[groupID]*change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, c := range waited {
		if h := a.held[id]; h == nil {
			a.held[id] = &held{until: time.Now(), pending: c}
		} else if h.pending == nil {
			h.pending = c
		} else {
			h.pending.join(c)
		}
	}
}

// Alert is an alert as it is shown, sent and replied.
type Alert struct {
	ID         int64             `json:"alert_id"`
	Rule       string            `json:"rule"`
	Group      string            `json:"group"`
	Labels     map[string]string `json:"labels"`
	Severity   severity          `json:"severity"`
	Summary    string            `json:"summary"`
	Details    json.RawMessage   `json:"details,omitempty"`
	Events     int64             `json:"events"`
	FirstEvent time.Time         `json:"first_event_at"`
	LastEvent  time.Time         `json:"last_event_at"`
	State      string            `json:"state"`
	Suppressed bool              `json:"suppressed,omitempty"`
	RaisedAt   time.Time         `json:"raised_at"`
	ResolvedAt *time.Time        `json:"resolved_at,omitempty"`
	Resolution *string           `json:"resolution,omitempty"`

	at int // the event of the batch that opened it, -1 if none did
}

// write does all that a batch asks for, and returns the alerts that its events opened,
// now or before.
func (a *alerter) write(ctx context.Context, changes map[groupID]*change, remembered []seen) (raised []Alert, err error) {
	if err := a.db.Ready(ctx); err != nil {
		return nil, err
	}
	err = pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		raised = nil
		all := make(map[groupID]*change, len(changes))
		for id, c := range changes {
			joined := *c
			joined.members = maps.Clone(c.members)
			all[id] = &joined
		}
		again, err := remember(ctx, tx, remembered, all)
		if err != nil {
			return err
		}
		known, err := a.load(ctx, tx, all)
		if err != nil {
			return err
		}
		if err := keepMembers(ctx, tx, all); err != nil {
			return err
		}
		for _, id := range slices.SortedFunc(maps.Keys(all), func(x, y groupID) int {
			return strings.Compare(x.rule+"\x00"+x.key, y.rule+"\x00"+y.key)
		}) {
			r, err := a.apply(ctx, tx, all[id], known[id])
			if err != nil {
				return err
			}
			if r != nil {
				raised = append(raised, *r)
			}
		}
		// What was opened before by an event that came again is answered alike.
		old, err := openedBy(ctx, tx, again)
		raised = append(raised, old...)
		return err
	})
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, c := range changes {
		if !c.rule.Remember && len(c.rule.ResolvedBy) == 0 && c.events > 0 {
			a.held[id] = &held{until: time.Now().Add(hold)}
		}
	}
	for _, r := range raised {
		if r.State == "open" && r.at >= 0 {
			a.raised.Add(ctx, 1, metric.WithAttributes(attribute.String("rule", r.Rule), attribute.String("severity", string(r.Severity))))
		}
	}
	return raised, nil
}

// remember notes the events of rules that count each once, adds the changes of those
// that are new, and returns those that came again.
func remember(ctx context.Context, tx pgx.Tx, list []seen, changes map[groupID]*change) (again []seen, err error) {
	if len(list) == 0 {
		return nil, nil
	}
	// The order keeps two transactions from waiting for each other.
	order := slices.Clone(list)
	slices.SortStableFunc(order, func(x, y seen) int {
		return strings.Compare(x.change.id.rule+"\x00"+x.source+"\x00"+x.id, y.change.id.rule+"\x00"+y.source+"\x00"+y.id)
	})
	rules, sources, ids := make([]string, len(order)), make([]string, len(order)), make([]string, len(order))
	for i, s := range order {
		rules[i], sources[i], ids[i] = s.change.id.rule, s.source, s.id
	}
	rows, err := tx.Query(ctx, `INSERT INTO alerts.seen (rule, event_source, event_id) SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
		ON CONFLICT DO NOTHING RETURNING rule, event_source, event_id`, rules, sources, ids)
	if err != nil {
		return nil, fmt.Errorf("noting events: %w", err)
	}
	type key struct{ rule, source, id string }
	fresh := map[key]bool{}
	for rows.Next() {
		var k key
		if err := rows.Scan(&k.rule, &k.source, &k.id); err != nil {
			return nil, fmt.Errorf("noting events: %w", err)
		}
		fresh[k] = true
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("noting events: %w", err)
	}
	for _, s := range list {
		k := key{s.change.id.rule, s.source, s.id}
		if !fresh[k] {
			again = append(again, s)
			continue
		}
		delete(fresh, k) // twice in one batch is once
		c := *s.change
		c.members = maps.Clone(c.members)
		add(changes, &c)
	}
	return again, nil
}

// group is what is known of one.
type group struct {
	open    *open
	members map[string]span
	opened  bool // the change's first event has opened an alert before
}

// load locks the rules that are concerned and reads what is known of the groups.
func (a *alerter) load(ctx context.Context, tx pgx.Tx, changes map[groupID]*change) (map[groupID]*group, error) {
	known := make(map[groupID]*group, len(changes))
	var rules, keys, openers []string
	for id, c := range changes {
		known[id] = &group{members: map[string]span{}}
		rules, keys = append(rules, id.rule), append(keys, id.key)
		if c.opener != nil {
			openers = append(openers, c.opener.ID())
		}
	}
	if len(known) == 0 {
		return known, nil
	}
	locks := slices.Clone(rules)
	slices.Sort(locks)
	for _, r := range slices.Compact(locks) {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('millrace alerts ' || $1, 0))", r); err != nil {
			return nil, fmt.Errorf("waiting for rule %s: %w", r, err)
		}
	}
	rows, err := tx.Query(ctx, `SELECT 'open', rule, group_key, severity, alert_id, NULL::timestamptz, NULL::timestamptz FROM alerts.alerts
			JOIN unnest($1::text[], $2::text[]) AS g (rule, group_key) USING (rule, group_key) WHERE state = 'open'
		UNION ALL SELECT 'member', rule, group_key, member, 0, nullif(began_at, '-infinity'), nullif(ended_at, '-infinity') FROM alerts.members
			JOIN unnest($1::text[], $2::text[]) AS g (rule, group_key) USING (rule, group_key)
		UNION ALL SELECT 'opened', rule, group_key, opened_source || ' ' || opened_id, 0, NULL, NULL FROM alerts.alerts WHERE opened_id = ANY ($3)`, rules, keys, openers)
	if err != nil {
		return nil, fmt.Errorf("reading alerts: %w", err)
	}
	for rows.Next() {
		var what, text string
		var id groupID
		var alert int64
		var began, ended *time.Time
		if err := rows.Scan(&what, &id.rule, &id.key, &text, &alert, &began, &ended); err != nil {
			return nil, fmt.Errorf("reading alerts: %w", err)
		}
		g := known[id]
		if g == nil {
			continue
		}
		switch what {
		case "open":
			g.open = &open{alert, severity(text)}
		case "member":
			var s span
			if began != nil {
				s.began = began.UTC()
			}
			if ended != nil {
				s.ended = ended.UTC()
			}
			g.members[text] = s
		case "opened":
			if c := changes[id]; c.opener != nil && text == c.opener.Source()+" "+c.opener.ID() {
				g.opened = true
			}
		}
	}
	return known, rows.Err()
}

// apply carries out what is decided for one group. It returns an alert that it opened,
// or that the change's first event had opened before.
func (a *alerter) apply(ctx context.Context, tx pgx.Tx, c *change, g *group) (*Alert, error) {
	d := decide(c, g.open, g.members, g.opened)
	var raised *Alert
	var id int64
	switch {
	case d.raise:
		var err error
		if raised, err = a.raise(ctx, tx, c); err != nil {
			return nil, err
		}
		id = raised.ID
	case d.update:
		if err := a.update(ctx, tx, c, g.open, d.escalate); err != nil {
			return nil, err
		}
		id = g.open.id
	case g.open != nil:
		id = g.open.id
	case c.events > 0 && len(c.rule.ResolvedBy) == 0:
		// Counted for an alert that was resolved meanwhile, or by an event that came
		// again: it is one of the last alert's.
		if _, err := tx.Exec(ctx, `UPDATE alerts.alerts SET events = events + $3 WHERE alert_id =
			(SELECT alert_id FROM alerts.alerts WHERE rule = $1 AND group_key = $2 ORDER BY alert_id DESC LIMIT 1)`, c.id.rule, c.id.key, c.events); err != nil {
			return nil, fmt.Errorf("counting for %s: %w", c.id.key, err)
		}
	}
	if d.resolve {
		if err := resolve(ctx, tx, id, c.resolution); err != nil {
			return nil, err
		}
	}
	if g.opened && raised == nil && c.opener != nil {
		old, err := openedBy(ctx, tx, []seen{{c, c.opener.Source(), c.opener.ID()}})
		if err != nil || len(old) == 0 {
			return nil, err
		}
		return &old[0], nil
	}
	return raised, nil
}

// keepMembers notes when the members of groups began and ended.
func keepMembers(ctx context.Context, tx pgx.Tx, changes map[groupID]*change) error {
	var rules, keys, members []string
	var began, ended []*time.Time
	for id, c := range changes {
		for name, s := range c.members {
			rules, keys, members = append(rules, id.rule), append(keys, id.key), append(members, name)
			began, ended = append(began, orNull(s.began)), append(ended, orNull(s.ended))
		}
	}
	if len(rules) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, `INSERT INTO alerts.members AS m (rule, group_key, member, began_at, ended_at)
		SELECT rule, group_key, member, coalesce(began, '-infinity'), coalesce(ended, '-infinity')
		FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[]) AS u (rule, group_key, member, began, ended)
		ON CONFLICT (rule, group_key, member) DO UPDATE SET began_at = greatest(m.began_at, excluded.began_at),
			ended_at = greatest(m.ended_at, excluded.ended_at), updated_at = now()`, rules, keys, members, began, ended); err != nil {
		return fmt.Errorf("keeping the members of groups: %w", err)
	}
	return nil
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// raise opens an alert and writes down who is to be told.
func (a *alerter) raise(ctx context.Context, tx pgx.Tx, c *change) (*Alert, error) {
	r := &Alert{Rule: c.id.rule, Group: c.id.key, Labels: c.labels, Severity: c.severity, Summary: c.rule.summary.of(c.labels), Details: c.details,
		Events: c.events, FirstEvent: c.first, LastEvent: c.last, State: "open", at: c.at}
	var limit *int
	var per time.Duration
	if c.rule.Rate != nil {
		limit, per = &c.rule.Rate.Alerts, c.rule.Rate.Per
	}
	err := tx.QueryRow(ctx, `INSERT INTO alerts.alerts (rule, group_key, labels, severity, summary, details, opened_source, opened_id, events,
			first_event_at, last_event_at, suppressed)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, coalesce((SELECT count(*) FROM alerts.alerts
			WHERE rule = $1 AND NOT suppressed AND raised_at > now() - $13::interval) >= $12::int, false)
		RETURNING alert_id, suppressed, raised_at`, r.Rule, r.Group, r.Labels, r.Severity, r.Summary, r.Details, c.opener.Source(), c.opener.ID(),
		r.Events, r.FirstEvent, r.LastEvent, limit, per).Scan(&r.ID, &r.Suppressed, &r.RaisedAt)
	if err != nil {
		return nil, fmt.Errorf("raising an alert for %s: %w", c.id.key, err)
	}
	if r.Suppressed {
		slog.WarnContext(ctx, "alert kept to itself: its rule has raised too many", "rule", r.Rule, "group", r.Group)
		return r, nil
	}
	return r, tell(ctx, tx, r.ID, c.rule.sinks, r.Severity)
}

// tell writes down that sinks are to be told of an alert, those that are not yet.
func tell(ctx context.Context, tx pgx.Tx, id int64, sinks []*sink, level severity) error {
	for _, s := range sinks {
		if !s.wants(level) {
			continue
		}
		if _, err := tx.Exec(ctx, `INSERT INTO alerts.deliveries (alert_id, sink, occasion) VALUES ($1, $2, 'raised') ON CONFLICT DO NOTHING`, id, s.Name); err != nil {
			return fmt.Errorf("telling %s: %w", s.Name, err)
		}
	}
	return nil
}

// update counts events in an open alert. Who was told of a lower severity is told again.
func (a *alerter) update(ctx context.Context, tx pgx.Tx, c *change, now *open, escalate bool) error {
	level := now.severity
	if escalate {
		level = c.severity
	}
	var suppressed bool
	err := tx.QueryRow(ctx, `UPDATE alerts.alerts SET events = events + $2, severity = $3, first_event_at = least(first_event_at, $4),
			last_event_at = greatest(last_event_at, $5), details = CASE WHEN $5 >= last_event_at THEN $6 ELSE details END, updated_at = now()
		WHERE alert_id = $1 RETURNING suppressed`, now.id, c.events, level, c.first, c.last, c.details).Scan(&suppressed)
	if err != nil {
		return fmt.Errorf("updating the alert of %s: %w", c.id.key, err)
	}
	if !escalate || suppressed {
		return nil
	}
	if _, err := tx.Exec(ctx, `INSERT INTO alerts.deliveries (alert_id, sink, occasion, number)
		SELECT alert_id, sink, 'reminder', 1 + (SELECT coalesce(max(number), 0) FROM alerts.deliveries o WHERE o.alert_id = d.alert_id AND o.sink = d.sink AND o.occasion = 'reminder')
		FROM alerts.deliveries d WHERE alert_id = $1 AND occasion = 'raised'`, now.id); err != nil {
		return fmt.Errorf("telling of a higher severity of %s: %w", c.id.key, err)
	}
	return tell(ctx, tx, now.id, c.rule.sinks, level)
}

// resolve closes an alert, and tells those who were told of it.
func resolve(ctx context.Context, tx pgx.Tx, id int64, by string) error {
	if _, err := tx.Exec(ctx, `UPDATE alerts.alerts SET state = 'resolved', resolved_at = now(), updated_at = now(), resolution = $2
		WHERE alert_id = $1 AND state = 'open'`, id, by); err != nil {
		return fmt.Errorf("resolving alert %d: %w", id, err)
	}
	if _, err := tx.Exec(ctx, tellResolved+` = $1 ON CONFLICT DO NOTHING`, id); err != nil {
		return fmt.Errorf("telling that alert %d is resolved: %w", id, err)
	}
	return nil
}

const tellResolved = `INSERT INTO alerts.deliveries (alert_id, sink, occasion)
	SELECT alert_id, sink, 'resolved' FROM alerts.deliveries WHERE occasion = 'raised' AND alert_id`

// columns are those of an Alert.
const columns = `alert_id, rule, group_key, labels, severity, summary, details, events, first_event_at, last_event_at, state, suppressed,
	raised_at, resolved_at, resolution`

func scan(row pgx.CollectableRow) (Alert, error) {
	r := Alert{at: -1}
	err := row.Scan(&r.ID, &r.Rule, &r.Group, &r.Labels, &r.Severity, &r.Summary, &r.Details, &r.Events, &r.FirstEvent, &r.LastEvent, &r.State,
		&r.Suppressed, &r.RaisedAt, &r.ResolvedAt, &r.Resolution)
	return r, err
}

// openedBy finds the alerts that events opened when they came first.
func openedBy(ctx context.Context, tx pgx.Tx, list []seen) ([]Alert, error) {
	if len(list) == 0 {
		return nil, nil
	}
	rules, sources, ids, places := make([]string, len(list)), make([]string, len(list)), make([]string, len(list)), make([]int, len(list))
	for i, s := range list {
		rules[i], sources[i], ids[i], places[i] = s.change.id.rule, s.source, s.id, s.change.at
	}
	rows, err := tx.Query(ctx, `SELECT e.place, `+columns+` FROM alerts.alerts a
		JOIN unnest($1::text[], $2::text[], $3::text[], $4::int[]) AS e (event_rule, source, id, place)
			ON a.opened_id = e.id AND a.opened_source = e.source AND a.rule = e.event_rule`, rules, sources, ids, places)
	if err != nil {
		return nil, fmt.Errorf("looking for alerts of events that came again: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Alert, error) {
		var r Alert
		err := row.Scan(&r.at, &r.ID, &r.Rule, &r.Group, &r.Labels, &r.Severity, &r.Summary, &r.Details, &r.Events, &r.FirstEvent, &r.LastEvent,
			&r.State, &r.Suppressed, &r.RaisedAt, &r.ResolvedAt, &r.Resolution)
		return r, err
	})
}

// reply tells of an alert that an event opened: what was known when it was opened, so
// that it is the same whenever the event comes.
func (a *alerter) reply(e *event.Event, r Alert) (*event.Event, error) {
	reply := events.NewReply(e, a.name, events.AlertRaised)
	reply.SetSubject(r.Rule)
	err := reply.SetData(event.ApplicationJSON, struct {
		ID       int64             `json:"alert_id"`
		Rule     string            `json:"rule"`
		Group    string            `json:"group"`
		Labels   map[string]string `json:"labels"`
		Summary  string            `json:"summary"`
		RaisedAt time.Time         `json:"raised_at"`
	}{r.ID, r.Rule, r.Group, r.Labels, r.Summary, r.RaisedAt.UTC()})
	if err != nil {
		return nil, fmt.Errorf("writing the reply: %w", err)
	}
	return &reply, nil
}

// upkeep is what a tick asks for: resolve what has been quiet, remind of what is open,
// and delete what is old.
func (a *alerter) upkeep(ctx context.Context) error {
	if err := a.db.Ready(ctx); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(a.rules)) {
		r := a.rules[name]
		if r.ResolveAfter == 0 {
			continue
		}
		// Skipped are those that a batch is writing to: they are not quiet.
		if _, err := a.db.Exec(ctx, `WITH quiet AS (
				SELECT alert_id FROM alerts.alerts WHERE rule = $1 AND state = 'open' AND updated_at < now() - $2::interval FOR UPDATE SKIP LOCKED
			), closed AS (
				UPDATE alerts.alerts a SET state = 'resolved', resolved_at = now(), updated_at = now(), resolution = 'quiet' FROM quiet q
				WHERE a.alert_id = q.alert_id RETURNING a.alert_id, a.rule, a.group_key
			), ended AS (
				UPDATE alerts.members m SET ended_at = greatest(m.began_at, m.ended_at), updated_at = now() FROM closed c
				WHERE m.rule = c.rule AND m.group_key = c.group_key
			) `+tellResolved+` IN (SELECT alert_id FROM closed) ON CONFLICT DO NOTHING`, name, r.ResolveAfter); err != nil {
			return fmt.Errorf("resolving quiet alerts of rule %s: %w", name, err)
		}
	}
	for _, s := range a.sinks {
		if s.Remind == 0 {
			continue
		}
		if _, err := a.db.Exec(ctx, `INSERT INTO alerts.deliveries (alert_id, sink, occasion, number)
			SELECT d.alert_id, d.sink, 'reminder', 1 + coalesce(max(d.number) FILTER (WHERE d.occasion = 'reminder'), 0)
			FROM alerts.deliveries d JOIN alerts.alerts a USING (alert_id) WHERE a.state = 'open' AND d.sink = $1
			GROUP BY d.alert_id, d.sink HAVING bool_and(d.sent_at IS NOT NULL OR d.failed_at IS NOT NULL) AND max(d.sent_at) < now() - $2::interval
			ON CONFLICT DO NOTHING`, s.Name, s.Remind); err != nil {
			return fmt.Errorf("reminding %s: %w", s.Name, err)
		}
	}
	for what, sql := range map[string]string{
		"events": `DELETE FROM alerts.seen WHERE (rule, event_source, event_id) IN (SELECT rule, event_source, event_id FROM alerts.seen
			WHERE seen_at < now() - least($1::interval, interval '30 days') LIMIT 10000)`,
		"members": `DELETE FROM alerts.members m WHERE updated_at < now() - $1::interval AND ended_at >= began_at`,
		"alerts":  `DELETE FROM alerts.alerts WHERE alert_id IN (SELECT alert_id FROM alerts.alerts WHERE state = 'resolved' AND raised_at < now() - $1::interval AND resolved_at < now() - $1::interval LIMIT 1000)`,
		"reminders": `DELETE FROM alerts.deliveries d USING alerts.alerts a WHERE a.alert_id = d.alert_id AND d.occasion = 'reminder'
			AND d.sent_at < now() - interval '1 day' AND a.resolved_at < now() - least($1::interval, interval '1 day')`,
	} {
		if _, err := a.db.Exec(ctx, sql, a.retention); err != nil {
			return fmt.Errorf("deleting old %s: %w", what, err)
		}
	}
	return nil
}

// flush writes the counts that are held back, at the end.
func (a *alerter) flush(ctx context.Context) {
	changes := map[groupID]*change{}
	a.holdBack(changes, time.Now(), true)
	if len(changes) == 0 {
		return
	}
	if _, err := a.write(ctx, changes, nil); err != nil && !errors.Is(err, context.Canceled) {
		slog.ErrorContext(ctx, "counts of alerts are lost", "groups", len(changes), "error", err.Error())
	}
}

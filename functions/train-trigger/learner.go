package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/sink"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// learner decides about all models. It keeps nothing that matters: what it knows is in
// schema learning, and which version serves is the registry's alias. It is safe for
// concurrent use, and any number of processes may work on one database.
type learner struct {
	db       *warehouse.DB
	registry *registry.Client
	sink     *sink.Sink
	policies map[string]*policy
	function string
	alias    string
	now      func() time.Time
	// reached is called between any two steps that last. A test makes it fail there, as
	// if the process had died.
	reached func(step string) error
	metrics *metrics // nil counts nothing

	mu     sync.Mutex
	looked map[string]time.Time // when the rows of a model were counted for gold
}

// goldEvery is how often at most gold's arrival makes the rows be counted.
const goldEvery = 5 * time.Second

// cause is what a decision follows from.
type cause struct{ source, id string }

// source is that of the events sent.
func (l *learner) source() string { return events.FunctionSource + l.function }

// Handle does what an event asks for. Nothing is replied: an event is sent once its
// decision lasts, which may be long after what caused it.
func (l *learner) Handle(ctx context.Context, e event.Event) (*event.Event, error) {
	if err := l.db.Ready(ctx); err != nil {
		return nil, function.Unavailable(err, 2*time.Second)
	}
	err := l.handle(ctx, &e)
	if invalid := (*invalidError)(nil); errors.As(err, &invalid) {
		return nil, function.Invalid("%w", err)
	}
	if err != nil {
		return nil, function.Unavailable(err, 2*time.Second)
	}
	return nil, nil
}

// invalidError is an event or a request that is wrong and stays so.
type invalidError struct{ text string }

func (e *invalidError) Error() string { return e.text }

func invalid(format string, args ...any) error { return &invalidError{fmt.Sprintf(format, args...)} }

func (l *learner) handle(ctx context.Context, e *event.Event) error {
	by := cause{e.Source(), e.ID()}
	switch e.Type() {
	case events.Tick:
		return l.tick(ctx, by)
	case events.GoldChecked:
		return errors.Join(l.gold(ctx, by), l.send(ctx))
	case events.DriftDetected:
		return errors.Join(l.drift(ctx, e, by), l.send(ctx))
	case events.TrainingCompleted:
		return errors.Join(l.completed(ctx, e), l.send(ctx))
	case events.TrainingFailed:
		return errors.Join(l.failed(ctx, e), l.send(ctx))
	}
	return invalid("events of type %s ask for nothing here", e.Type())
}

// tick goes on with whatever was left undone, and looks at every model. A model in
// trouble does not keep the others from theirs, and the next tick does the same: a
// registry that is away for long must not fill the dead letters with ticks.
func (l *learner) tick(ctx context.Context, by cause) error {
	for _, name := range l.models() {
		err := l.giveUp(ctx, name)
		if err == nil {
			err = l.goOn(ctx, name)
		}
		if err == nil {
			err = l.look(ctx, name, by)
		}
		if err != nil {
			slog.WarnContext(ctx, "what is to be done for a model is left to the next tick", "model", name, "error", err)
		}
	}
	return l.send(ctx)
}

// gold looks at the models that have policies about gold.
func (l *learner) gold(ctx context.Context, by cause) error {
	var errs []error
	for _, name := range l.models() {
		if p := l.policies[name]; p.Rows == nil || !p.Rows.OnGold {
			continue
		}
		now := l.now()
		l.mu.Lock()
		if l.looked == nil {
			l.looked = map[string]time.Time{}
		}
		wait := now.Sub(l.looked[name]) < goldEvery
		if !wait {
			l.looked[name] = now
		}
		l.mu.Unlock()
		if !wait {
			errs = append(errs, l.look(ctx, name, by))
		}
	}
	return errors.Join(errs...)
}

func (l *learner) models() []string { return slices.Sorted(maps.Keys(l.policies)) }

// locked runs f in a transaction that no other decision about the model runs beside.
func (l *learner) locked(ctx context.Context, name string, f func(tx pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO learning.models (model) VALUES ($1) ON CONFLICT DO NOTHING`, name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT FROM learning.models WHERE model = $1 FOR UPDATE`, name); err != nil {
			return err
		}
		return f(tx)
	})
	if err != nil {
		return fmt.Errorf("deciding about %s: %w", name, err)
	}
	return nil
}

// remember reads what the policy of a model decides by.
func remember(ctx context.Context, tx pgx.Tx, name string) (memory, error) {
	var m memory
	var trained, requested, ended *time.Time
	var since *time.Time
	var wanted, source, id *string
	err := tx.QueryRow(ctx, `SELECT m.trained_until, m.wanted_for, m.wanted_source, m.wanted_id, m.wanted_since, m.failures, r.requested_at, r.ended_at,
			coalesce(r.state IN ('requested', 'completed'), false)
		FROM learning.models m LEFT JOIN LATERAL (SELECT * FROM learning.runs r WHERE r.model = m.model ORDER BY run_id DESC LIMIT 1) r ON true
		WHERE m.model = $1`, name).Scan(&trained, &wanted, &source, &id, &since, &m.Failures, &requested, &ended, &m.Open)
	if err != nil {
		return m, fmt.Errorf("reading what is known of it: %w", err)
	}
	for _, t := range []struct {
		to   *time.Time
		from *time.Time
	}{{&m.TrainedUntil, trained}, {&m.Requested, requested}, {&m.Ended, ended}} {
		if t.from != nil {
			*t.to = *t.from
		}
	}
	if wanted != nil && source != nil && id != nil {
		m.Wanted = &want{For: *wanted, Source: *source, ID: *id}
		if since != nil {
			m.Wanted.Since = *since
		}
	}
	return m, nil
}

// look asks for a run if the policy says so.
func (l *learner) look(ctx context.Context, name string, by cause) error {
	// A job that could not register its model would be for nothing.
	asked := false
	return l.locked(ctx, name, func(tx pgx.Tx) error {
		p := l.policies[name]
		m, err := remember(ctx, tx, name)
		if err != nil {
			return err
		}
		what, why, err := p.due(m, l.now(), func() (int64, error) { return countRows(ctx, tx, p.Rows.Query, m.TrainedUntil) })
		if err != nil || what == "" {
			return err
		}
		if asked, err = l.answers(ctx, name); !asked {
			slog.InfoContext(ctx, "a run is due, and waits for the registry", "model", name, "for", what, "error", err)
			return nil
		}
		var more map[string]any
		if m.Wanted != nil && m.Wanted.For == what || what == forRetry {
			by = cause{m.Wanted.Source, m.Wanted.ID}
			if more, err = l.wishes(ctx, tx, p, m.Wanted); err != nil {
				return err
			}
		}
		err = l.request(ctx, tx, name, what, why, by, more)
		return err
	})
}

// wishes are what a wanted run has to be asked for besides the policy's: after drift, the
// rows since its window began; after a run that could not do its work, what that one was
// asked for.
func (l *learner) wishes(ctx context.Context, tx pgx.Tx, p *policy, w *want) (map[string]any, error) {
	more := map[string]any{}
	switch {
	case w.For == forDrift && p.SinceDrift && !w.Since.IsZero():
		more["since"] = w.Since.UTC().Format(time.RFC3339Nano)
	case w.For == forRetry:
		err := tx.QueryRow(ctx, `SELECT coalesce((SELECT event->'data' FROM learning.decisions WHERE decision = 'train' AND event->>'id' = $1), '{}')`, w.ID).Scan(&more)
		if err != nil {
			return nil, fmt.Errorf("reading what the run before was asked for: %w", err)
		}
		delete(more, "reason")
	}
	return more, nil
}

// answers tells whether the registry does, whatever it knows of the model.
func (l *learner) answers(ctx context.Context, name string) (bool, error) {
	if _, err := l.registry.ByAlias(ctx, name, l.alias); err != nil && !errors.Is(err, registry.ErrNotFound) {
		return false, err
	}
	return true, nil
}

// countRows counts new rows by a policy's query. Before there are tables there are no
// rows.
func countRows(ctx context.Context, tx pgx.Tx, query string, since time.Time) (int64, error) {
	var n int64
	var after any = since
	if since.IsZero() {
		after = "-infinity"
	}
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, query, after).Scan(&n) })
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000") { // no such table, schema
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("counting its new rows: %w", err)
	}
	return n, nil
}

// request asks for a run: a row of the run and the decision, whose event is sent later.
// A cause that has been followed gives no second run. The model has no run that is open.
func (l *learner) request(ctx context.Context, tx pgx.Tx, name, what, why string, by cause, more map[string]any) error {
	if was, err := l.followed(ctx, tx, name, "train", by); err != nil || was {
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE learning.models SET wanted_for = NULL WHERE model = $1 AND wanted_source = $2 AND wanted_id = $3`, name, by.source, by.id)
		}
		return err
	}
	p, now := l.policies[name], l.now().UTC()
	data := map[string]any{"model": name, "reason": what + ": " + why}
	maps.Copy(data, p.Request)
	if what == forDrift {
		maps.Copy(data, p.DriftRequest)
	}
	maps.Copy(data, more)
	id := events.ReplyID(by.source, by.id, l.function+" train "+name)
	var run int64
	err := tx.QueryRow(ctx, `INSERT INTO learning.runs (model, asked_for, asked_by_source, asked_by_id, request_id, requested_at, deadline) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING run_id`,
		name, what, by.source, by.id, id, now, now.Add(p.Deadline)).Scan(&run)
	if err != nil {
		return fmt.Errorf("noting a run: %w", err)
	}
	if _, err := tx.Exec(ctx, `UPDATE learning.models SET wanted_for = NULL, wanted_source = NULL, wanted_id = NULL, wanted_at = NULL, wanted_since = NULL WHERE model = $1`, name); err != nil {
		return fmt.Errorf("noting a run: %w", err)
	}
	return l.decide(ctx, tx, decision{
		Model: name, Decision: "train", Run: &run, Reason: what + ": " + why, cause: by,
		typ: events.TrainingRequested, id: id, at: now, data: data,
	})
}

// want notes that a run is wanted, if since is not nil of rows from then on; look asks for
// it when it may.
func (l *learner) want(ctx context.Context, tx pgx.Tx, name, what string, by cause, since *time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE learning.models SET wanted_for = $2, wanted_source = $3, wanted_id = $4, wanted_at = $5, wanted_since = $6
		WHERE model = $1 AND wanted_for IS NULL`, name, what, by.source, by.id, l.now(), since)
	if err != nil {
		return fmt.Errorf("noting that a run is wanted: %w", err)
	}
	return nil
}

// drift asks for a run, now or when the cool-down allows.
func (l *learner) drift(ctx context.Context, e *event.Event, by cause) error {
	name := e.Subject()
	p := l.policies[name]
	if p == nil {
		return invalid("there is no policy for model %q", name)
	}
	var r struct {
		From    *time.Time `json:"window_start"`
		Version string     `json:"model_version"`
	}
	if err := answer(e, &r); err != nil {
		return err
	}
	if !p.Drift {
		return nil
	}
	err := l.locked(ctx, name, func(tx pgx.Tx) error {
		// Where the registry is away, the run will wait for it anyway.
		if serving, err := l.serving(ctx, name); err == nil && serving != "" && r.Version != "" && r.Version != serving {
			slog.InfoContext(ctx, "drift of a version that does not serve any more asks for nothing", "model", name, "version", r.Version, "serving", serving)
			return nil
		}
		if was, err := l.followed(ctx, tx, name, "train", by); err != nil || was {
			return err
		}
		return l.want(ctx, tx, name, forDrift, by, r.From)
	})
	if err != nil {
		return err
	}
	return l.look(ctx, name, by)
}

// answer reads the data of an event.
func answer(e *event.Event, to any) error {
	if err := json.Unmarshal(e.Data(), to); err != nil {
		return invalid("the data of %s cannot be read: %v", e.Type(), err)
	}
	return nil
}

// completed takes the report of a run, and judges the model.
func (l *learner) completed(ctx context.Context, e *event.Event) error {
	var r report
	if err := answer(e, &r); err != nil {
		return err
	}
	if l.policies[r.Model] == nil {
		return invalid("there is no policy for model %q", r.Model)
	}
	if r.Request.Source != l.source() {
		return nil // asked for by hand, to be judged by hand
	}
	err := l.locked(ctx, r.Model, func(tx pgx.Tx) error {
		run, err := findRun(ctx, tx, r.Model, r.Request.ID)
		if err != nil {
			return err
		}
		switch run.state {
		case "failed":
			return l.decide(ctx, tx, l.judged(&r, run, cause{e.Source(), e.ID()}, verdict{reason: "its run had been given up"}, ""))
		case "requested":
			_, err := tx.Exec(ctx, `UPDATE learning.runs SET state = 'completed', ended_at = $2, version = nullif($3, ''), report = $4 WHERE run_id = $1`,
				run.id, l.now(), r.Version, json.RawMessage(e.Data()))
			if err != nil {
				return fmt.Errorf("noting the end of run %d: %w", run.id, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.goOn(ctx, r.Model)
}

// failed takes the failure of a run. One that may succeed later is asked for again.
func (l *learner) failed(ctx context.Context, e *event.Event) error {
	var r struct {
		Model     string  `json:"model"`
		Reason    string  `json:"reason"`
		Message   string  `json:"message"`
		Transient bool    `json:"transient"`
		Request   request `json:"request"`
	}
	if err := answer(e, &r); err != nil {
		return err
	}
	if l.policies[r.Model] == nil {
		return invalid("there is no policy for model %q", r.Model)
	}
	if r.Request.Source != l.source() {
		return nil
	}
	return l.locked(ctx, r.Model, func(tx pgx.Tx) error {
		run, err := findRun(ctx, tx, r.Model, r.Request.ID)
		if err != nil || run.state != "requested" {
			return err
		}
		return l.fail(ctx, tx, r.Model, run, r.Reason, r.Message, r.Transient)
	})
}

func (l *learner) fail(ctx context.Context, tx pgx.Tx, name string, run trainRun, reason, message string, again bool) error {
	_, err := tx.Exec(ctx, `UPDATE learning.runs SET state = 'failed', ended_at = $2, reason = $3, message = $4 WHERE run_id = $1`, run.id, l.now(), reason, message)
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE learning.models SET failures = failures + 1 WHERE model = $1`, name)
	}
	if err != nil {
		return fmt.Errorf("noting the failure of run %d: %w", run.id, err)
	}
	slog.WarnContext(ctx, "a run failed", "model", name, "run", run.id, "reason", reason, "message", message, "again", again)
	if !again {
		return nil
	}
	return l.want(ctx, tx, name, forRetry, cause{l.source(), run.request}, nil)
}

// trainRun is a row of learning.runs.
type trainRun struct {
	id      int64
	request string
	state   string
}

func findRun(ctx context.Context, tx pgx.Tx, name, request string) (trainRun, error) {
	r := trainRun{request: request}
	err := tx.QueryRow(ctx, `SELECT run_id, state FROM learning.runs WHERE model = $1 AND request_id = $2`, name, request).Scan(&r.id, &r.state)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, invalid("no run of %s was asked for by request %q", name, request)
	}
	if err != nil {
		return r, fmt.Errorf("looking for run %q: %w", request, err)
	}
	return r, nil
}

// giveUp ends a run that has not answered in time.
func (l *learner) giveUp(ctx context.Context, name string) error {
	return l.locked(ctx, name, func(tx pgx.Tx) error {
		var r trainRun
		var asked, deadline time.Time
		err := tx.QueryRow(ctx, `SELECT run_id, request_id, requested_at, deadline FROM learning.runs WHERE model = $1 AND state = 'requested' AND deadline < $2`,
			name, l.now()).Scan(&r.id, &r.request, &asked, &deadline)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for runs that are late: %w", err)
		}
		message := fmt.Sprintf("no answer within %s", deadline.Sub(asked))
		if err := l.fail(ctx, tx, name, r, "timeout", message, true); err != nil {
			return err
		}
		by := cause{l.source(), r.request}
		return l.decide(ctx, tx, decision{
			Model: name, Decision: "give up", Run: &r.id, Reason: message, cause: by,
			typ: events.TrainingFailed, id: events.ReplyID(by.source, by.id, l.function+" give up"), at: l.now().UTC(),
			data: map[string]any{"model": name, "reason": "timeout", "message": message, "transient": true,
				"request": request{by.source, by.id}},
		})
	})
}

// goOn brings to its end what was begun about a model: a move of the alias that was
// decided, and the judging of a run that has completed.
func (l *learner) goOn(ctx context.Context, name string) error {
	if err := l.settle(ctx, name); err != nil {
		return err
	}
	judged := false
	err := l.locked(ctx, name, func(tx pgx.Tx) error {
		var r trainRun
		var data json.RawMessage
		err := tx.QueryRow(ctx, `SELECT run_id, request_id, report FROM learning.runs WHERE model = $1 AND state = 'completed'`, name).Scan(&r.id, &r.request, &data)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for runs to judge: %w", err)
		}
		judged = true
		return l.judge(ctx, tx, name, r, data)
	})
	if err != nil || !judged {
		return err
	}
	if err := l.reached("judged"); err != nil {
		return err
	}
	return l.settle(ctx, name)
}

// judge decides whether the model of a run is to be served.
func (l *learner) judge(ctx context.Context, tx pgx.Tx, name string, r trainRun, data []byte) error {
	var rep report
	if err := json.Unmarshal(data, &rep); err != nil {
		return fmt.Errorf("reading the report of run %d: %w", r.id, err)
	}
	serving, err := l.serving(ctx, name)
	if err != nil {
		return err
	}
	var broken error
	if rep.Version != "" && rep.Version != serving {
		if err := l.check(ctx, name, rep.Version, rep.Digest); err != nil {
			bundle, version := (*model.InvalidError)(nil), errors.Is(err, registry.ErrNotFound)
			if !errors.As(err, &bundle) && !version {
				return err
			}
			broken = err
		}
	}
	v := l.policies[name].Gate.judge(&rep, serving, broken)
	_, err = tx.Exec(ctx, `UPDATE learning.runs SET state = 'judged' WHERE run_id = $1`, r.id)
	if err == nil && (v.promote || serving != "") {
		_, err = tx.Exec(ctx, `UPDATE learning.models SET failures = 0, trained_until = (SELECT requested_at FROM learning.runs WHERE run_id = $2) WHERE model = $1`, name, r.id)
	} else if err == nil {
		// Nothing serves yet, so the next try must not wait as long as one for a successor.
		_, err = tx.Exec(ctx, `UPDATE learning.models SET failures = failures + 1 WHERE model = $1`, name)
	}
	if err == nil && v.promote {
		// A drift that was seen meanwhile was of the version before.
		_, err = tx.Exec(ctx, `UPDATE learning.models SET wanted_for = NULL, wanted_source = NULL, wanted_id = NULL, wanted_at = NULL, wanted_since = NULL
			WHERE model = $1 AND wanted_for = $2`, name, forDrift)
	}
	if err != nil {
		return fmt.Errorf("noting the judgement of run %d: %w", r.id, err)
	}
	slog.InfoContext(ctx, "a model was judged", "model", name, "version", rep.Version, "serving", serving, "promote", v.promote, "reason", v.reason)
	return l.decide(ctx, tx, l.judged(&rep, r, cause{l.source(), r.request}, v, serving))
}

// judged is the decision that follows from a verdict.
func (l *learner) judged(rep *report, r trainRun, by cause, v verdict, serving string) decision {
	d := decision{
		Model: rep.Model, Decision: "keep", Run: &r.id, Version: rep.Version, Former: serving, Reason: v.reason, cause: by,
		typ: events.ModelKept, id: events.ReplyID(by.source, by.id, l.function+" judge"), at: l.now().UTC(),
		data: map[string]any{"run_id": rep.RunID, "metrics": rep.Metrics},
	}
	if v.promote {
		d.Decision, d.typ = "promote", events.ModelPromoted
	}
	return d
}

// serving is the version that the alias names, "" if there is none.
func (l *learner) serving(ctx context.Context, name string) (string, error) {
	v, err := l.registry.ByAlias(ctx, name, l.alias)
	if errors.Is(err, registry.ErrNotFound) {
		return "", nil
	}
	return v.Version, err
}

// check loads the bundle of a version as predict will.
func (l *learner) check(ctx context.Context, name, version, digest string) error {
	v, err := l.registry.ByVersion(ctx, name, version)
	if err != nil {
		return err
	}
	source, err := l.registry.Bundle(ctx, v)
	if err != nil {
		return err
	}
	b, err := model.Load(ctx, source)
	if err != nil {
		return err
	}
	switch {
	case b.Manifest.Name != name:
		return &model.InvalidError{Err: fmt.Errorf("it is of model %q", b.Manifest.Name)}
	case digest != "" && b.Digest != digest:
		return &model.InvalidError{Err: fmt.Errorf("it has digest %s, the trainer wrote %s", b.Digest, digest)}
	}
	return nil
}

// settle moves the alias where the last decision says, if it has not moved yet.
func (l *learner) settle(ctx context.Context, name string) error {
	return l.locked(ctx, name, func(tx pgx.Tx) error {
		var id int64
		var version, what string
		err := tx.QueryRow(ctx, `SELECT decision_id, version, decision FROM learning.decisions WHERE model = $1 AND decision IN ('promote', 'rollback') AND moved_at IS NULL`,
			name).Scan(&id, &version, &what)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for moves of its alias: %w", err)
		}
		err = l.registry.SetAlias(ctx, name, l.alias, version)
		if errors.Is(err, registry.ErrNotFound) {
			return l.abandon(ctx, tx, id, version, err)
		}
		if err != nil {
			return err
		}
		if err := l.reached("moved"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE learning.decisions SET moved_at = $2 WHERE decision_id = $1`, id, l.now()); err != nil {
			return fmt.Errorf("noting that the alias has moved: %w", err)
		}
		slog.InfoContext(ctx, "another version serves", "model", name, "version", version, "decision", what)
		return nil
	})
}

// abandon ends a move to a version that is not in the registry any more.
func (l *learner) abandon(ctx context.Context, tx pgx.Tx, id int64, version string, cause error) error {
	reason := fmt.Sprintf("version %s is not in the registry any more: %v", version, cause)
	_, err := tx.Exec(ctx, `UPDATE learning.decisions SET decision = 'keep', reason = $2,
			event = jsonb_set(jsonb_set(event, '{type}', to_jsonb($3::text)), '{data,reason}', to_jsonb($2::text)) WHERE decision_id = $1`,
		id, reason, events.ModelKept)
	if err != nil {
		return fmt.Errorf("noting that the alias stays: %w", err)
	}
	return nil
}

// decision is a row of learning.decisions and its event.
type decision struct {
	cause

	Model, Decision string
	Run             *int64
	Version, Former string
	Reason          string

	typ, id string
	at      time.Time
	data    map[string]any
}

// followed tells whether a decision was taken for a cause before.
func (l *learner) followed(ctx context.Context, tx pgx.Tx, name, what string, by cause) (bool, error) {
	var was bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM learning.decisions WHERE model = $1 AND decision = $2 AND cause_source = $3 AND cause_id = $4)`,
		name, what, by.source, by.id).Scan(&was)
	if err != nil {
		return false, fmt.Errorf("looking for what was decided: %w", err)
	}
	return was, nil
}

// decide writes a decision. One for the same cause is there already, or is written.
func (l *learner) decide(ctx context.Context, tx pgx.Tx, d decision) error {
	data := map[string]any{}
	if d.typ != events.TrainingRequested && d.typ != events.TrainingFailed {
		data = map[string]any{"model": d.Model, "version": d.Version, "former_version": d.Former, "reason": d.Reason, "decided_at": d.at.Format(time.RFC3339Nano)}
	}
	maps.Copy(data, d.data)
	e := map[string]any{
		"specversion": "1.0", "id": d.id, "source": l.source(), "type": d.typ, "subject": d.Model, "time": d.at.Format(time.RFC3339Nano),
		"partitionkey": d.Model, "datacontenttype": event.ApplicationJSON, "data": data,
	}
	_, err := tx.Exec(ctx, `INSERT INTO learning.decisions (model, decision, cause_source, cause_id, run_id, version, former, reason, decided_at, event)
		VALUES ($1, $2, $3, $4, $5, nullif($6, ''), nullif($7, ''), $8, $9, $10) ON CONFLICT (model, decision, cause_source, cause_id) DO NOTHING`,
		d.Model, d.Decision, d.source, d.cause.id, d.Run, d.Version, d.Former, d.Reason, d.at, e)
	if err != nil {
		return fmt.Errorf("writing the decision: %w", err)
	}
	return nil
}

// sendAtOnce bounds the events of one transaction.
const sendAtOnce = 20

// unsent is a decision whose event is to be sent.
type unsent struct {
	ID              int64
	Model, Decision string
	Event           json.RawMessage
}

// send sends the events of decisions whose effect is there, in their order.
func (l *learner) send(ctx context.Context) error {
	for {
		var list []unsent
		err := pgx.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `SELECT decision_id, model, decision, event FROM learning.decisions
				WHERE event IS NOT NULL AND sent_at IS NULL AND (decision NOT IN ('promote', 'rollback') OR moved_at IS NOT NULL)
				ORDER BY decision_id LIMIT $1 FOR UPDATE SKIP LOCKED`, sendAtOnce)
			if err != nil {
				return err
			}
			if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[unsent]); err != nil || len(list) == 0 {
				return err
			}
			ids, messages := make([]int64, len(list)), make([]events.Message, len(list))
			for i, u := range list {
				ids[i] = u.ID
				if messages[i], err = events.ParseJSON(u.Event); err != nil {
					return fmt.Errorf("decision %d: %w", u.ID, err)
				}
			}
			if err := l.reached("sending"); err != nil {
				return err
			}
			if err := l.sink.Send(ctx, messages); err != nil {
				return err
			}
			if err := l.reached("sent"); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE learning.decisions SET sent_at = $2 WHERE decision_id = ANY ($1)`, ids, l.now())
			return err
		})
		if err != nil {
			return fmt.Errorf("sending what was decided: %w", err)
		}
		for _, u := range list {
			l.metrics.decided(ctx, u.Model, u.Decision, 1)
		}
		if len(list) < sendAtOnce {
			return nil
		}
	}
}

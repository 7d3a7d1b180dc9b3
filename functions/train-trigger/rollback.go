package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/registry"
)

// conflictError is a request that the state of things does not allow.
type conflictError struct{ text string }

func (e *conflictError) Error() string { return e.text }

func conflict(format string, args ...any) error { return &conflictError{fmt.Sprintf(format, args...)} }

// move is what a rollback came to.
type move struct {
	Model  string `json:"model"`
	From   string `json:"from"`
	To     string `json:"to"`
	Reason string `json:"reason"`
}

// rollback lets a former version serve again: to, or the one that the version which
// serves now had taken the place of. If from is not empty it has to be the one that
// serves, so that a request that is sent twice goes back once.
//
// It returns when the alias has moved. The event may be sent later.
func (l *learner) rollback(ctx context.Context, name, from, to, why string, by cause) (move, error) {
	// What was decided before is done before: else it would undo this.
	if err := l.settle(ctx, name); err != nil {
		return move{}, err
	}
	m := move{Model: name}
	err := l.locked(ctx, name, func(tx pgx.Tx) error {
		var before *string
		err := tx.QueryRow(ctx, `SELECT version, coalesce(former, ''), reason FROM learning.decisions
			WHERE model = $1 AND decision = 'rollback' AND cause_source = $2 AND cause_id = $3`, name, by.source, by.id).Scan(&before, &m.From, &m.Reason)
		if err == nil && before != nil {
			m.To = *before
			return nil
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("looking for what was decided: %w", err)
		}
		if m.From, err = l.serving(ctx, name); err != nil {
			return err
		}
		if m.From == "" {
			return conflict("no version of %s serves: it has no alias %s", name, l.alias)
		}
		if from != "" && from != m.From {
			return conflict("version %s of %s serves, not %s", m.From, name, from)
		}
		if m.To = to; to == "" {
			if m.To, err = former(ctx, tx, name, m.From); err != nil {
				return err
			}
		}
		if m.To == m.From {
			return conflict("version %s of %s serves already", m.To, name)
		}
		if _, err := l.registry.ByVersion(ctx, name, m.To); errors.Is(err, registry.ErrNotFound) {
			return conflict("there is no version %s of %s", m.To, name)
		} else if err != nil {
			return err
		}
		m.Reason = why
		return l.decide(ctx, tx, decision{
			Model: name, Decision: "rollback", Version: m.To, Former: m.From, Reason: why, cause: by,
			typ: events.ModelRolledBack, id: events.ReplyID(by.source, by.id, l.function+" rollback "+name), at: l.now().UTC(),
		})
	})
	if err != nil {
		return move{}, err
	}
	if err := l.reached("rolling back"); err != nil {
		return move{}, err
	}
	if err := l.settle(ctx, name); err != nil {
		return move{}, err
	}
	if err := l.send(ctx); err != nil {
		slog.WarnContext(ctx, "the event of a rollback is left to the next tick", "model", name, "error", err)
	}
	return m, nil
}

// former is the version whose place a version took when it was promoted last.
func former(ctx context.Context, tx pgx.Tx, name, version string) (string, error) {
	var was *string
	err := tx.QueryRow(ctx, `SELECT former FROM learning.decisions WHERE model = $1 AND version = $2 AND decision = 'promote' AND moved_at IS NOT NULL
		ORDER BY decision_id DESC LIMIT 1`, name, version).Scan(&was)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("looking for the former version: %w", err)
	}
	if was == nil {
		return "", conflict("no version is known to have served %s before version %s: name one", name, version)
	}
	return *was, nil
}

// demand asks for a run now, whatever the policy says of rows and rest.
func (l *learner) demand(ctx context.Context, name, why string, more map[string]any, by cause) (asked, error) {
	p := l.policies[name]
	if p == nil {
		return asked{}, invalid("there is no policy for model %q", name)
	}
	var a asked
	err := l.locked(ctx, name, func(tx pgx.Tx) error {
		const find = `SELECT run_id, model, asked_for, state, requested_at, deadline FROM learning.runs WHERE model = $1 AND `
		scan := func(where string, args ...any) error {
			return tx.QueryRow(ctx, find+where, append([]any{name}, args...)...).Scan(&a.Run, &a.Model, &a.For, &a.State, &a.RequestedAt, &a.Deadline)
		}
		err := scan(`asked_by_source = $2 AND asked_by_id = $3`, by.source, by.id)
		if err == nil || !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		err = scan(`state IN ('requested', 'completed')`)
		if err == nil {
			return conflict("run %d of %s is not done yet: it was asked for %s", a.Run, name, a.RequestedAt.UTC().Format(time.RFC3339))
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("looking for runs: %w", err)
		}
		if _, err := l.answers(ctx, name); err != nil {
			return err
		}
		if err := l.request(ctx, tx, name, forDemand, why, by, more); err != nil {
			return err
		}
		return scan(`asked_by_source = $2 AND asked_by_id = $3`, by.source, by.id)
	})
	if err != nil {
		return asked{}, err
	}
	if err := l.send(ctx); err != nil {
		slog.WarnContext(ctx, "the event of a request is left to the next tick", "model", name, "error", err)
	}
	return a, nil
}

// asked is a run that was asked for.
type asked struct {
	Run         int64     `json:"run"`
	Model       string    `json:"model"`
	For         string    `json:"for"`
	State       string    `json:"state"`
	RequestedAt time.Time `json:"requested_at"`
	Deadline    time.Time `json:"deadline"`
}

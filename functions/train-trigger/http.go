package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// api is what people and programs ask over HTTP:
//
//	POST /train     {"model", "reason"?, "request"?}      202 the run
//	POST /rollback  {"model", "from"?, "to"?, "reason"?}  200 from and to
//	GET  /models    what is known of each model that there is a policy for
//	GET  /decisions ?model=&limit=                         the newest first
//
// A request with an Idempotency-Key that has come before is answered again and has no
// second effect. Errors are {"error"}.
type api struct {
	*learner
	token *[sha256.Size]byte // nil: anybody
}

func newAPI(l *learner, token string) *api {
	a := &api{learner: l}
	if token != "" {
		sum := sha256.Sum256([]byte(strings.TrimPrefix(token, "Bearer ")))
		a.token = &sum
	}
	return a
}

func (a *api) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /train", a.change(func(ctx context.Context, by cause, body []byte) (int, any, error) {
		var in struct {
			Model   string         `json:"model"`
			Reason  string         `json:"reason"`
			Request map[string]any `json:"request"`
		}
		if err := read(body, &in); err != nil {
			return 0, nil, err
		}
		for _, field := range []string{"model", "reason", "as_of"} {
			if _, set := in.Request[field]; set {
				return 0, nil, invalid("field request.%s: must not be set", field)
			}
		}
		why := in.Reason
		if why == "" {
			why = "asked for over HTTP"
		}
		run, err := a.demand(ctx, in.Model, why, in.Request, by)
		return http.StatusAccepted, run, err
	}))
	mux.HandleFunc("POST /rollback", a.change(func(ctx context.Context, by cause, body []byte) (int, any, error) {
		var in struct {
			Model, From, To, Reason string
		}
		if err := read(body, &in); err != nil {
			return 0, nil, err
		}
		if in.Model == "" {
			return 0, nil, invalid("field model: is required")
		}
		if in.Reason == "" {
			in.Reason = "asked for over HTTP"
		}
		m, err := a.rollback(ctx, in.Model, in.From, in.To, in.Reason, by)
		return http.StatusOK, m, err
	}))
	mux.HandleFunc("GET /models", a.show(a.listModels))
	mux.HandleFunc("GET /decisions", a.show(a.listDecisions))
}

func read(body []byte, to any) error {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return invalid("the body: %v", err)
	}
	return nil
}

// maxBody bounds a request.
const maxBody = 64 << 10

// change answers a request that changes something.
func (a *api) change(do func(context.Context, cause, []byte) (int, any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !a.allowed(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			respond(w, http.StatusUnauthorized, map[string]string{"error": "the Authorization header does not hold the token"})
			return
		}
		// A page of another site cannot send this type without being allowed to.
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			respond(w, http.StatusUnsupportedMediaType, map[string]string{"error": "Content-Type must be application/json"})
			return
		}
		var body json.RawMessage
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&body); err != nil {
			respond(w, http.StatusBadRequest, map[string]string{"error": "the body: " + err.Error()})
			return
		}
		by := cause{a.source() + r.URL.Path, r.Header.Get("Idempotency-Key")}
		if by.id == "" {
			by.id = rand.Text()
		}
		// What has begun is done, also when the client goes away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
		defer cancel()
		if err := a.db.Ready(ctx); err != nil {
			fail(w, r, err)
			return
		}
		status, out, err := do(ctx, by, body)
		if err != nil {
			fail(w, r, err)
			return
		}
		respond(w, status, out)
	}
}

// allowed compares hashes, so that neither the time nor the length tells anything of
// the token.
func (a *api) allowed(r *http.Request) bool {
	if a.token == nil {
		return true
	}
	got := sha256.Sum256([]byte(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")))
	return subtle.ConstantTimeCompare(got[:], a.token[:]) == 1
}

func (a *api) show(list func(context.Context, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := a.db.Ready(r.Context())
		if err == nil {
			var out any
			if out, err = list(r.Context(), r); err == nil {
				respond(w, http.StatusOK, out)
				return
			}
		}
		fail(w, r, err)
	}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusServiceUnavailable
	if _, ok := errors.AsType[*invalidError](err); ok {
		status = http.StatusBadRequest
	} else if _, ok := errors.AsType[*conflictError](err); ok {
		status = http.StatusConflict
	} else {
		slog.WarnContext(r.Context(), "a request failed", "path", r.URL.Path, "error", err)
		w.Header().Set("Retry-After", "2")
	}
	respond(w, status, map[string]string{"error": err.Error()})
}

func respond(w http.ResponseWriter, status int, out any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out)
}

// shownModel is a model as GET /models shows it.
type shownModel struct {
	Model string `json:"model"`
	// Alias is the registry's name for the version that serves.
	Alias string `json:"alias"`
	// Serving is the version of the last move; somebody may have moved the alias by hand
	// since. Former is the one that a rollback would go back to, if it is known.
	Serving      string     `json:"serving,omitempty"`
	Former       string     `json:"former,omitempty"`
	Since        *time.Time `json:"since,omitempty"`
	Run          *asked     `json:"last_run,omitempty"`
	RunReason    string     `json:"last_run_failure,omitempty"`
	Failures     int        `json:"failures_in_a_row"`
	TrainedUntil *time.Time `json:"trained_until,omitempty"`
	Wanted       string     `json:"wanted_for,omitempty"`
	Last         string     `json:"last_decision,omitempty"`
	LastReason   string     `json:"last_reason,omitempty"`
}

func (a *api) listModels(ctx context.Context, _ *http.Request) (any, error) {
	out := []shownModel{}
	for _, name := range a.models() {
		m := shownModel{Model: name, Alias: a.alias}
		var run asked
		var id *int64
		var requested, deadline *time.Time
		err := a.db.QueryRow(ctx, `SELECT coalesce(s.version, ''), coalesce(f.former, ''), s.moved_at, r.run_id, coalesce(r.asked_for, ''), coalesce(r.state, ''), r.requested_at, r.deadline,
				coalesce(r.reason || ': ' || r.message, ''), m.failures, m.trained_until, coalesce(m.wanted_for, ''), coalesce(d.decision, ''), coalesce(d.reason, '')
			FROM learning.models m
			LEFT JOIN LATERAL (SELECT * FROM learning.runs r WHERE r.model = m.model ORDER BY run_id DESC LIMIT 1) r ON true
			LEFT JOIN LATERAL (SELECT * FROM learning.decisions d WHERE d.model = m.model AND moved_at IS NOT NULL ORDER BY decision_id DESC LIMIT 1) s ON true
			LEFT JOIN LATERAL (SELECT * FROM learning.decisions d WHERE d.model = m.model AND d.version = s.version AND decision = 'promote' AND moved_at IS NOT NULL ORDER BY decision_id DESC LIMIT 1) f ON true
			LEFT JOIN LATERAL (SELECT * FROM learning.decisions d WHERE d.model = m.model ORDER BY decision_id DESC LIMIT 1) d ON true
			WHERE m.model = $1`, name).Scan(&m.Serving, &m.Former, &m.Since, &id, &run.For, &run.State, &requested, &deadline, &m.RunReason, &m.Failures, &m.TrainedUntil, &m.Wanted, &m.Last, &m.LastReason)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, fmt.Errorf("reading what is known of %s: %w", name, err)
		}
		if id != nil && requested != nil && deadline != nil {
			run.Run, run.Model, run.RequestedAt, run.Deadline = *id, name, *requested, *deadline
			m.Run = &run
		}
		out = append(out, m)
	}
	return map[string]any{"models": out}, nil
}

// shownDecision is a decision as GET /decisions shows it.
type shownDecision struct {
	ID        int64      `json:"decision"`
	Model     string     `json:"model"`
	What      string     `json:"what"`
	Version   string     `json:"version,omitempty"`
	Former    string     `json:"former_version,omitempty"`
	Reason    string     `json:"reason"`
	DecidedAt time.Time  `json:"decided_at"`
	MovedAt   *time.Time `json:"moved_at,omitempty"`
	SentAt    *time.Time `json:"sent_at,omitempty"`
	Run       *int64     `json:"run,omitempty"`
}

func (a *api) listDecisions(ctx context.Context, r *http.Request) (any, error) {
	limit := 50
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			return nil, invalid("limit=%q: must be a number between 1 and 1000", text)
		}
		limit = n
	}
	rows, err := a.db.Query(ctx, `SELECT decision_id, model, decision, coalesce(version, ''), coalesce(former, ''), reason, decided_at, moved_at, sent_at, run_id
		FROM learning.decisions WHERE $1 = '' OR model = $1 ORDER BY decision_id DESC LIMIT $2`, r.URL.Query().Get("model"), limit)
	if err != nil {
		return nil, fmt.Errorf("reading decisions: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[shownDecision])
	if err != nil {
		return nil, fmt.Errorf("reading decisions: %w", err)
	}
	return map[string]any{"decisions": append([]shownDecision{}, list...)}, nil
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// serveAlerts lists alerts, the latest first: ?state=open|resolved, ?rule=, ?severity=
// (the lowest), ?limit= (100), ?before= (an alert_id).
func (a *alerter) serveAlerts(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for name := range q {
		if !slices.Contains([]string{"state", "rule", "severity", "limit", "before"}, name) {
			http.Error(w, fmt.Sprintf("%s: there is no such parameter, only state, rule, severity, limit, before", name), http.StatusBadRequest)
			return
		}
	}
	number := func(name string, fallback, most int64) (int64, error) {
		if !q.Has(name) {
			return fallback, nil
		}
		n, err := strconv.ParseInt(q.Get(name), 10, 64)
		if err != nil || n < 1 || n > most {
			return 0, fmt.Errorf("%s: want a number from 1 to %d", name, most)
		}
		return n, nil
	}
	limit, err := number("limit", 100, 1000)
	before, err2 := number("before", 1<<62, 1<<62)
	if err = errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if s := q.Get("state"); s != "" && s != "open" && s != "resolved" {
		http.Error(w, "state: want open or resolved", http.StatusBadRequest)
		return
	}
	levels := []string{}
	least := severity(q.Get("severity"))
	if least != "" && ranks[least] == 0 {
		http.Error(w, "severity: want LOW, MEDIUM, HIGH or CRITICAL", http.StatusBadRequest)
		return
	}
	for level, rank := range ranks {
		if rank >= ranks[least] {
			levels = append(levels, string(level))
		}
	}
	rows, err := a.db.Query(r.Context(), `SELECT `+columns+` FROM alerts.alerts WHERE alert_id < $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR rule = $3)
		AND severity = ANY ($4) ORDER BY alert_id DESC LIMIT $5`, before, q.Get("state"), q.Get("rule"), levels, limit)
	if err == nil {
		var list []Alert
		if list, err = pgx.CollectRows(rows, scan); err == nil {
			if list == nil {
				list = []Alert{}
			}
			writeJSON(w, map[string]any{"alerts": list})
			return
		}
	}
	unavailable(w, r, err)
}

// serveAlert shows an alert with what was sent of it to whom.
func (a *alerter) serveAlert(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		http.Error(w, "want /alerts/<number>", http.StatusBadRequest)
		return
	}
	rows, err := a.db.Query(r.Context(), `SELECT `+columns+` FROM alerts.alerts WHERE alert_id = $1`, id)
	if err != nil {
		unavailable(w, r, err)
		return
	}
	alert, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		http.Error(w, "there is no such alert", http.StatusNotFound)
		return
	}
	if err != nil {
		unavailable(w, r, err)
		return
	}
	type shown struct {
		Sink     string     `json:"sink"`
		Occasion string     `json:"occasion"`
		Number   int        `json:"number,omitempty"`
		Attempts int        `json:"attempts"`
		Due      *time.Time `json:"due_at,omitempty"`
		Sent     *time.Time `json:"sent_at,omitempty"`
		Failed   *time.Time `json:"failed_at,omitempty"`
		Error    *string    `json:"error,omitempty"`
	}
	rows, err = a.db.Query(r.Context(), `SELECT sink, occasion, number, attempts, CASE WHEN sent_at IS NULL AND failed_at IS NULL THEN due_at END, sent_at, failed_at, error
		FROM alerts.deliveries WHERE alert_id = $1 ORDER BY delivery_id`, id)
	if err != nil {
		unavailable(w, r, err)
		return
	}
	deliveries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[shown])
	if err != nil {
		unavailable(w, r, err)
		return
	}
	writeJSON(w, map[string]any{"alert": alert, "deliveries": deliveries})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that is gone needs no answer
}

func unavailable(w http.ResponseWriter, r *http.Request, err error) {
	slog.ErrorContext(r.Context(), "reading alerts", "error", err.Error())
	w.Header().Set("Retry-After", "2")
	http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// listed is a window in a list.
type listed struct {
	Model   string    `json:"model"`
	Version string    `json:"model_version"`
	To      time.Time `json:"window_end"`
	Rows    int64     `json:"rows"`
	Columns int       `json:"columns"`
	Drifted int       `json:"drifted_columns"`
	Over    bool      `json:"over"`
	State   string    `json:"state"`
	Reasons []string  `json:"reasons"`
	Report  string    `json:"report"`
}

// serveReports lists the latest windows, ?model= those of one: as JSON, or as a page for
// browsers.
func (m *monitor) serveReports(w http.ResponseWriter, r *http.Request) {
	rows, err := m.db.Query(r.Context(), `SELECT model, model_version, window_end, rows, columns, drifted_columns, over, state, reasons
		FROM drift.windows WHERE $1 = '' OR model = $1 ORDER BY window_end DESC, model LIMIT 200`, r.URL.Query().Get("model"))
	var list []listed
	if err == nil {
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (listed, error) {
			var l listed
			err := row.Scan(&l.Model, &l.Version, &l.To, &l.Rows, &l.Columns, &l.Drifted, &l.Over, &l.State, &l.Reasons)
			l.To = l.To.UTC()
			l.Report = "/reports/" + path(&Report{Model: l.Model, To: l.To})
			return l, err
		})
	}
	if err != nil {
		unavailable(w, r, err)
		return
	}
	if list == nil {
		list = []listed{}
	}
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"windows": list}) // a client that is gone needs no answer
		return
	}
	var b bytes.Buffer
	if err := index().Execute(&b, list); err != nil {
		unavailable(w, r, err)
		return
	}
	writePage(w, b.Bytes())
}

// serveReport shows the report of a window: <model>/<end>, or <model>/latest.
func (m *monitor) serveReport(w http.ResponseWriter, r *http.Request) {
	model, end := r.PathValue("report"), ""
	if i := strings.LastIndexByte(model, '/'); i >= 0 {
		model, end = model[:i], strings.TrimSuffix(model[i+1:], ".html")
	}
	at := time.Unix(1<<40, 0)
	if end != "latest" {
		var err error
		if at, err = time.Parse("20060102T150405Z", end); err != nil {
			http.Error(w, "want /reports/<model>/latest or /reports/<model>/<end of the window as 20060102T150405Z>", http.StatusNotFound)
			return
		}
	}
	var report Report
	err := m.db.QueryRow(r.Context(), `SELECT report FROM drift.windows WHERE model = $1 AND (window_end = $2 OR $3) ORDER BY window_end DESC LIMIT 1`,
		model, at, end == "latest").Scan(&report)
	if errors.Is(err, pgx.ErrNoRows) {
		http.Error(w, "there is no such report", http.StatusNotFound)
		return
	}
	var b bytes.Buffer
	if err == nil {
		err = report.render(&b)
	}
	if err != nil {
		unavailable(w, r, err)
		return
	}
	writePage(w, b.Bytes())
}

func writePage(w http.ResponseWriter, b []byte) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(b) // a client that is gone needs no answer
}

func unavailable(w http.ResponseWriter, r *http.Request, err error) {
	slog.ErrorContext(r.Context(), "reading reports", "error", err.Error())
	w.Header().Set("Retry-After", "2")
	http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
}

var index = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("index").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Drift</title>
<style>:root { color-scheme: light dark } body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8888 } td.n { text-align: right }</style></head>
<body><main><h1>Drift</h1><table><caption>The latest windows</caption>
<thead><tr><th scope="col">Window's end</th><th scope="col">Model</th><th scope="col">Version</th><th scope="col">Drifted columns</th><th scope="col">State</th></tr></thead>
<tbody>{{range .}}<tr><td><a href="{{.Report}}">{{.To.Format "2006-01-02 15:04:05"}}</a></td><td>{{.Model}}</td><td>{{.Version}}</td><td class="n">{{.Drifted}} of {{.Columns}}</td><td>{{.State}}</td></tr>
{{end}}</tbody></table></main></body></html>
`))
})

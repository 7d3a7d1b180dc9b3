package main

import (
	"cmp"
	"context"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// patience bounds the reading of one source for one view.
const patience = 5 * time.Second

// maxAnswer bounds what another server may answer.
const maxAnswer = 8 << 20

// console answers the page. What is nil or empty it was not given. It is safe for
// concurrent use.
type console struct {
	status, prometheus         string
	deadletter, trainer, drift string
	trainerToken               string
	kafka                      kafka.Config
	brokerTopic                string
	db                         *warehouse.DB
	registry                   *registry.Client
	http                       *http.Client
	token                      string
	loopback                   bool
	watch                      *watch
	kept                       kept
}

func newClient() *http.Client {
	return &http.Client{
		Timeout: patience,
		// What another server sends one to is not what was configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (c *console) close() {
	if c.db != nil {
		c.db.Close()
	}
}

//go:embed web
var web embed.FS

//go:embed graph.json
var graph []byte

// root is the path of the page; what it loads and asks lies below.
const root = "/console/"

// routes adds the page and what it asks for:
//
//	GET  /console/                  the page
//	GET  /console/api/graph         who sends what to whom, as the manifests have it
//	GET  /console/api/live          what flows now, and the state of processes
//	GET  /console/api/health        the sources, and since when they do not answer
//	GET  /console/api/...           a view's rows, see views
//	POST /console/api/...           what a button asks for, see actions.go
//
// An error is {"error":{"source":...,"message":...}} with a status that says whose
// fault it is, 503 where a source does not answer. What is not there by intent, a source
// that was not configured or tables that nothing has made yet, is no error but an answer
// of 200, {"absent":{"source":...,"message":...}}.
func (c *console) routes(mux *http.ServeMux) {
	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	page := http.StripPrefix(root, http.FileServerFS(files))
	mux.Handle("GET "+root, secure(page))
	mux.HandleFunc("GET /console", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, root, http.StatusMovedPermanently)
	})
	mux.HandleFunc("GET "+root+"api/graph", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(graph)
	})
	for path, answer := range c.views() {
		mux.HandleFunc("GET "+root+"api/"+path, c.answering(answer))
	}
	guard := http.NewCrossOriginProtection()
	for path, act := range c.actions() {
		mux.Handle("POST "+root+"api/"+path, guard.Handler(c.guarded(c.answering(act))))
	}
	mux.HandleFunc("GET "+root+"api/drift/reports/{name...}", c.serveReport)
}

// view gives what a request asks for, as JSON.
type view func(ctx context.Context, r *http.Request) (any, error)

// slow are the views that may take longer than others.
var slow = map[string]time.Duration{"story": storyFor}

func (c *console) answering(v view) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), cmp.Or(slow[path.Base(r.URL.Path)], 2*patience))
		defer cancel()
		answer, err := v(ctx, r)
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		if err := e.Encode(answer); err != nil {
			slog.WarnContext(ctx, "answering", "path", r.URL.Path, "error", err)
		}
	}
}

// failure is an error that a request is answered with.
type failure struct {
	status int
	source string // whose fault it is
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// absent says that something is not there, and that this is as it should be.
func absent(source, format string, args ...any) error {
	return &failure{http.StatusOK, source, fmt.Errorf(format, args...)}
}

// isAbsent tells such an error from others.
func isAbsent(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.status == http.StatusOK
}

// unset says that a source was not configured, by which variable it would be.
func unset(source, variable string) error { return absent(source, "%s is not set", variable) }

func away(source string, err error) error {
	return &failure{http.StatusServiceUnavailable, source, err}
}

func fail(w http.ResponseWriter, err error) {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{http.StatusInternalServerError, "console", err}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	kind := "error"
	if f.status == http.StatusOK {
		kind = "absent"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{kind: map[string]string{"source": f.source, "message": f.Error()}})
}

// secure lets the page load nothing from anywhere else.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		// The program may be another the next time; a few kilobytes are not worth it.
		head.Set("Cache-Control", "no-cache")
		h.ServeHTTP(w, r)
	})
}

// guarded lets only those change something who know the token, or, without one, who
// are on this machine.
func (c *console) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.token == "" {
			if !c.loopback {
				fail(w, &failure{http.StatusForbidden, "console", errors.New("nothing can be changed here: CONSOLE_TOKEN is not set")})
				return
			}
		} else {
			given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if subtle.ConstantTimeCompare([]byte(given), []byte(c.token)) != 1 {
				fail(w, &failure{http.StatusUnauthorized, "console", errors.New("the console's token is needed to change something")})
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		h.ServeHTTP(w, r)
	})
}

// get asks another server for JSON.
func (c *console) get(ctx context.Context, source, address string, answer any) error {
	body, _, err := c.call(ctx, source, http.MethodGet, address, nil, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return away(source, fmt.Errorf("its answer is not what was expected: %w", err))
	}
	return nil
}

// call sends a request and gives a good answer's body and type. A bad answer's status
// is passed on when the request was at fault.
func (c *console) call(ctx context.Context, source, method, address string, body io.Reader, header http.Header) ([]byte, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, "", fmt.Errorf("asking %s: %w", source, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, "", c.watch.failed(source, away(source, plain(err)))
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
	}
	if err != nil {
		return nil, "", c.watch.failed(source, away(source, err))
	}
	if resp.StatusCode >= 300 {
		err := fmt.Errorf("it answered %s: %s", resp.Status, message(text))
		if resp.StatusCode < 500 {
			c.watch.well(source)
			return nil, "", &failure{resp.StatusCode, source, err}
		}
		return nil, "", c.watch.failed(source, away(source, err))
	}
	c.watch.well(source)
	return text, resp.Header.Get("Content-Type"), nil
}

// plain leaves out the address, which people of the page cannot do anything with.
func plain(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// message is what an error answer says.
func message(body []byte) string {
	var said struct{ Error, Detail any }
	if json.Unmarshal(body, &said) == nil {
		for _, m := range []any{said.Error, said.Detail} {
			if text, ok := m.(string); ok && text != "" {
				return text
			}
		}
	}
	return strings.TrimSpace(string(body[:min(len(body), 300)]))
}

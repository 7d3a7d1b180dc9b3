package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/millrace-dev/millrace/shared/events"
)

func TestHTTP(t *testing.T) {
	w := newWorld(t)
	mux := http.NewServeMux()
	newAPI(w.learner, "secret").routes(mux)
	server := httptest.NewServer(mux)
	defer server.Close()
	do := func(method, path, body string, header ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer secret")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(text) {
			t.Errorf("%s %s: no JSON: %s", method, path, text)
		}
		return response.StatusCode, string(text)
	}
	train := `{"model":"` + shop + `","reason":"I want it","request":{"trials":1}}`
	for _, c := range []struct {
		name, path, body string
		header           []string
		status           int
		has              string
	}{
		{"no token", "/train", train, []string{"Authorization", ""}, 401, "token"},
		{"another token", "/rollback", train, []string{"Authorization", "Bearer secre"}, 401, "token"},
		{"a form", "/train", train, []string{"Content-Type", "text/plain"}, 415, "application/json"},
		{"no JSON", "/train", "{", nil, 400, "the body"},
		{"unknown field", "/train", `{"modle":"x"}`, nil, 400, "modle"}, //nolint:misspell // what somebody may write
		{"unknown model", "/train", `{"model":"x"}`, nil, 400, "no policy for model"},
		{"another model's run", "/train", `{"model":"` + shop + `","request":{"model":"x"}}`, nil, 400, "request.model"},
		{"too large", "/train", `{"model":"` + strings.Repeat("x", maxBody) + `"}`, nil, 400, "too large"},
		{"rollback of nothing", "/rollback", `{}`, nil, 400, "field model"},
		{"rollback before the first", "/rollback", `{"model":"` + shop + `"}`, nil, 409, "no version"},
		{"a run", "/train", train, []string{"Idempotency-Key", "1"}, 202, `"run":1,`},
		{"the same again", "/train", train, []string{"Idempotency-Key", "1"}, 202, `"run":1,`},
		{"another meanwhile", "/train", train, nil, 409, "run 1 of " + shop + " is not done yet"},
	} {
		if status, body := do("POST", c.path, c.body, c.header...); status != c.status || !strings.Contains(body, c.has) {
			t.Errorf("%s: %d %s, want %d and %s", c.name, status, body, c.status, c.has)
		}
	}
	if _, data := w.broker.last(t, events.TrainingRequested); data["trials"] != 1.0 || data["reason"] != "demand: I want it" {
		t.Errorf("asked for %v", data)
	}
	w.must(w.ended(w.aliases.add(), 0, ""))
	if status, body := do("GET", "/models", ""); status != 200 || !strings.Contains(body, `"serving":"1"`) || !strings.Contains(body, `"state":"judged"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := do("GET", "/models", ""); status != 200 || !strings.Contains(body, `{"models":[{"model":"`+shop+`","alias":"current",`) || strings.Contains(body, `"former"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := do("GET", "/decisions?limit=1&model="+shop, ""); status != 200 || !strings.Contains(body, `"what":"promote","version":"1"`) || strings.Contains(body, `"train"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := do("GET", "/decisions?limit=x", ""); status != 400 {
		t.Errorf("%d %s", status, body)
	}
	if _, err := w.db.Exec(t.Context(), `UPDATE learning.decisions SET former = '0' WHERE decision = 'promote'`); err != nil {
		t.Fatal(err)
	}
	w.aliases.add()
	if status, body := do("GET", "/models", ""); status != 200 || !strings.Contains(body, `"serving":"1","former":"0"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := do("POST", "/rollback", `{"model":"`+shop+`","to":"2","reason":"why not"}`); status != 200 || body != `{"model":"`+shop+`","from":"1","to":"2","reason":"why not"}`+"\n" {
		t.Errorf("%d %s", status, body)
	}
	w.aliases.set(func() { w.aliases.away = true })
	if status, body := do("POST", "/rollback", `{"model":"`+shop+`"}`); status != 503 {
		t.Errorf("%d %s", status, body)
	}
}

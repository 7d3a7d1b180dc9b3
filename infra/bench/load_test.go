package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// However the bytes are cut, each answer is seen once, with its status.
func TestAnswers_anyCut(t *testing.T) {
	stream := "HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: 5\r\n\r\nhello" +
		"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n" +
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n3\r\nabc\r\n0\r\n\r\n" +
		"HTTP/1.1 204 No Content\r\n\r\n" +
		"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\n{}"
	want := []int{200, 202, 200, 204, 429}
	for size := 1; size <= len(stream); size++ {
		var a answers
		var got []int
		for rest := []byte(stream); len(rest) > 0; {
			n := min(size, len(rest))
			if err := a.feed(rest[:n], func(status int) { got = append(got, status) }); err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
			rest = rest[n:]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("pieces of %d (-want +got):\n%s", size, diff)
		}
	}
	if err := new(answers).feed([]byte("SMTP ready, or so\r\n\r\n"), nil); err == nil {
		t.Error("no error for what is not HTTP")
	}
}

func TestLoad_countsWhatTheServerAnswered(t *testing.T) {
	large := strings.Repeat("x", 300_000) // more than a socket takes at once
	bodies := []string{"good", "bad", large}
	for name, c := range map[string]struct {
		cfg    loadConfig
		answer string
	}{
		"one by one":   {loadConfig{conns: 4, depth: 1}, "ok"},
		"pipelined":    {loadConfig{conns: 2, depth: 8}, strings.Repeat("chunked", 2000)},
		"large bodies": {loadConfig{conns: 2, depth: 2, requests: [][]byte{post("x", nil, []byte(large))}}, large},
		"paced":        {loadConfig{conns: 4, depth: 1, rate: 200}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return // the loader hangs up at the end of its window, within a request too
				}
				if r.Method != http.MethodPost || !slices.Contains(bodies, string(body)) {
					t.Errorf("%s with a body of %d bytes", r.Method, len(body))
				}
				if string(body) == "bad" {
					w.WriteHeader(http.StatusBadRequest)
				}
				if _, err := io.WriteString(w, c.answer); err != nil {
					return
				}
			}))
			defer server.Close()
			cfg := c.cfg
			cfg.address = server.Listener.Addr().String()
			if cfg.requests == nil {
				cfg.requests = [][]byte{post("x", nil, []byte("good")), post("x", nil, []byte("bad"))}
			}
			cfg.warm = 10 * time.Millisecond
			r := new(loadResult)
			for cfg.window = 200 * time.Millisecond; r.requests == 0; cfg.window *= 2 { // a busy machine may take longer
				var err error
				if r, err = load(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			}
			if uint64(len(r.latencies)) != r.requests {
				t.Errorf("%d requests, %d latencies", r.requests, len(r.latencies))
			}
			if cfg.rate > 0 && float64(r.requests) > cfg.rate*r.elapsed.Seconds()+20 {
				t.Errorf("%d requests in %s at %g/s", r.requests, r.elapsed, cfg.rate)
			}
			// Half, but for what was under way where the window began and ended.
			half, refused := int64(r.requests/2), int64(r.refused[http.StatusBadRequest])
			if len(cfg.requests) == 2 && (refused < half-20 || refused > half+20 || r.bad() != r.refused[http.StatusBadRequest]) {
				t.Errorf("%d of %d refused, want half: %v", r.bad(), r.requests, r.refused)
			}
		})
	}
}

func TestPost_isReadAsMeant(t *testing.T) {
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		got <- fmt.Sprint(r.Host, r.URL.Path, r.Header["Content-Type"], string(body), err)
	}))
	defer server.Close()
	request := post("host:1", http.Header{"Content-Type": {"text/plain"}}, []byte("body"))
	if _, err := load(t.Context(), loadConfig{address: server.Listener.Addr().String(), requests: [][]byte{request},
		conns: 1, depth: 1, rate: 1, window: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("host:1/[text/plain]body<nil>", <-got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is a listener in front of an http.Server; both answer with what they read.
type world struct {
	*Listener
	t       *testing.T
	address string
	logged  chan string
}

func start(t *testing.T, handler http.HandlerFunc, change func(*Config)) *world {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, address: l.Addr().String(), logged: make(chan string, 10)}
	cfg := Config{
		Handler: handler, ReadHeaderTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10, ErrorLog: log.New(w, "", 0),
	}
	if change != nil {
		change(&cfg)
	}
	w.Listener = NewListener(l, cfg)
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { echo("net/http", rw, r) }), ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(w) }()
	t.Cleanup(func() {
		w.Abort()
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("serving: %v", err)
		}
		if err := w.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) Write(p []byte) (int, error) {
	w.logged <- string(p)
	return len(p), nil
}

func echo(who string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	text := fmt.Sprintf("%s %s %s %s %q %v", who, r.Method, r.URL, r.Header.Get("Ce-Id"), body, err)
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	_, _ = io.WriteString(w, text)
}

func here(w http.ResponseWriter, r *http.Request) { echo("here", w, r) }

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := new(net.Dialer).DialContext(w.t.Context(), "tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// answers reads n answers; the text of each is its status, whether the connection
// stays, and its body.
func answers(t *testing.T, c net.Conn, n int) (all []string) {
	t.Helper()
	r := bufio.NewReader(c)
	for range n {
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("after %q: %v", all, err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := http.ParseTime(answer.Header.Get("Date")); err != nil && strings.HasPrefix(string(body), "here") {
			t.Errorf("the answer's date: %v", err)
		}
		text := fmt.Sprint(answer.StatusCode, " ", string(body))
		if answer.Close {
			text = "last " + text
		}
		all = append(all, text)
	}
	return all
}

func request(id, body string, fields ...string) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nCe-Id: %s\r\nContent-Length: %d\r\n%s\r\n%s", id, len(body), strings.Join(fields, ""), body)
}

func expectEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection is open: %d bytes, %v", n, err)
	}
}

func TestServe(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for name, c := range map[string]struct {
		send string
		want []string
	}{
		"one":       {request("1", "ok"), []string{`200 here POST / 1 "ok" <nil>`}},
		"no body":   {request("1", ""), []string{`200 here POST / 1 "" <nil>`}},
		"two":       {request("1", "a") + request("2", "b"), []string{`200 here POST / 1 "a" <nil>`, `200 here POST / 2 "b" <nil>`}},
		"long body": {request("1", long) + request("2", "b"), []string{`200 here POST / 1 "` + long + `" <nil>`, `200 here POST / 2 "b" <nil>`}},
		"many fields": {request("1", "a", strings.Repeat("X-More: y\r\n", 300)) + request("2", "b"),
			[]string{`200 here POST / 1 "a" <nil>`, `200 here POST / 2 "b" <nil>`}},
		"another method": {"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", []string{`200 net/http GET /healthz  "" <nil>`}},
		"another method after one, and one again": {request("1", "a") + "GET / HTTP/1.1\r\nHost: a\r\n\r\n" + request("2", "b"),
			[]string{`200 here POST / 1 "a" <nil>`, `200 net/http GET /  "" <nil>`, `200 net/http POST / 2 "b" <nil>`}},
		"chunked":   {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", []string{`200 net/http POST /  "ab" <nil>`}},
		"long head": {request("1", "a", "X: "+long[:50_000]+"\r\n"), []string{`200 net/http POST / 1 "a" <nil>`}},
		"malformed": {"POST / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", []string{"last 400 400 Bad Request: invalid header name"}},
	} {
		for _, piece := range []int{1, 7, 1 << 20} {
			if piece == 1 && len(c.send) > 10_000 {
				continue
			}
			t.Run(fmt.Sprintf("%s in pieces of %d", name, piece), func(t *testing.T) {
				t.Parallel()
				w := start(t, here, nil)
				conn := w.dial()
				go func() {
					for rest := c.send; rest != ""; {
						n := min(piece, len(rest))
						if _, err := io.WriteString(conn, rest[:n]); err != nil {
							return // the answers tell
						}
						rest = rest[n:]
					}
				}()
				if diff := cmp.Diff(c.want, answers(t, conn, len(c.want))); diff != "" {
					t.Errorf("answers (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// A body that the handler leaves is taken off the connection if that is cheap; else
// the sender gets its answer and the connection ends.
func TestServe_bodyNotRead(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}
	w := start(t, refuse, nil)
	conn := w.dial()
	if _, err := io.WriteString(conn, request("1", strings.Repeat("x", 10_000))+request("2", "")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"413 ", "413 "}, answers(t, conn, 2)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	go func() { _, _ = io.WriteString(conn, request("3", strings.Repeat("x", 10*maxDiscarded))) }() // cut short
	if diff := cmp.Diff([]string{"last 413 "}, answers(t, conn, 1)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	expectEnd(t, conn)
}

func TestServe_answers(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    string
		ends    bool
	}{
		"nothing": {func(http.ResponseWriter, *http.Request) {}, "HTTP/1.1 200 OK\r\nDate: \r\nContent-Length: 0\r\n\r\n", false},
		"a status": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Length"] = []string{"0"}
			w.WriteHeader(http.StatusAccepted)
			w.WriteHeader(http.StatusTeapot)
		}, "HTTP/1.1 202 Accepted\r\nDate: \r\nContent-Length: 0\r\n\r\n", false},
		"no length": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "text") },
			"HTTP/1.1 200 OK\r\nDate: \r\nConnection: close\r\n\r\ntext", true},
		"too short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			_, _ = io.WriteString(w, "text")
		}, "HTTP/1.1 200 OK\r\nDate: \r\nContent-Length: 9\r\n\r\ntext", true},
		"too long": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, "text")
			if _, err := io.WriteString(w, "more"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("writing too much: %v", err)
			}
		}, "HTTP/1.1 200 OK\r\nDate: \r\nContent-Length: 4\r\n\r\ntext", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, c.handler, nil)
			conn := w.dial()
			if _, err := io.WriteString(conn, request("1", "body")); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for date := len("Thu, 01 Jan 1970 00:00:00 GMT"); len(got) < len(c.want)+date; {
				b := make([]byte, 1000)
				n, err := conn.Read(b)
				if err != nil {
					t.Fatalf("%v after %q", err, got)
				}
				got = append(got, b[:n]...)
			}
			text := string(got)
			if at := strings.Index(text, "Date: "); at > 0 {
				text = text[:at+6] + text[at+6+29:]
			}
			if diff := cmp.Diff(c.want, text); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if c.ends {
				expectEnd(t, conn)
			} else if _, err := io.WriteString(conn, request("2", "")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A sender cannot put a line end into a field that is sent on.
func TestAnswer_lineEnds(t *testing.T) {
	w := start(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Length"] = []string{"0"}
		w.Header()["Ce-Id"] = []string{"a\r\nX: y\nz"}
		w.WriteHeader(http.StatusOK)
	}, nil)
	conn := w.dial()
	if _, err := io.WriteString(conn, request("1", "")); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if got := answer.Header.Get("Ce-Id"); got != "a  X: y z" || answer.Header.Get("X") != "" {
		t.Errorf("header %v", answer.Header)
	}
}

func TestServe_timeouts(t *testing.T) {
	const soon = 20 * time.Millisecond
	for name, c := range map[string]struct {
		change func(*Config)
		send   string
		want   []string
	}{
		"idle from the beginning": {func(c *Config) { c.IdleTimeout = soon }, "", nil},
		"idle after a request":    {func(c *Config) { c.IdleTimeout = soon }, request("1", ""), []string{`200 here POST / 1 "" <nil>`}},
		"half a head":             {func(c *Config) { c.ReadHeaderTimeout = soon }, "POST / HTTP/1.1\r\nHo", nil},
		"half a body": {func(c *Config) { c.ReadTimeout = soon }, strings.TrimSuffix(request("1", "body"), "dy"),
			[]string{`last 200 here POST / 1 "bo" i/o timeout`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handler := func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					err = errors.New("i/o timeout") // without the addresses
				}
				text := fmt.Sprintf("here %s %s %s %q %v", r.Method, r.URL, r.Header.Get("Ce-Id"), body, err)
				w.Header().Set("Content-Length", fmt.Sprint(len(text)))
				_, _ = io.WriteString(w, text)
			}
			conn := start(t, handler, c.change).dial()
			if _, err := io.WriteString(conn, c.send); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, answers(t, conn, len(c.want))); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			expectEnd(t, conn)
		})
	}
}

func TestServe_panic(t *testing.T) {
	w := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Ce-Id") == "bad" {
			panic("oh")
		}
		here(w, r)
	}, nil)
	bad, good := w.dial(), w.dial()
	for conn, text := range map[net.Conn]string{bad: request("bad", ""), good: request("1", "")} {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	expectEnd(t, bad)
	if line := <-w.logged; !strings.Contains(line, "panic: oh") {
		t.Errorf("log: %s", line)
	}
	if got := answers(t, good, 1); got[0] != `200 here POST / 1 "" <nil>` {
		t.Errorf("the other connection got %q", got)
	}
}

func TestShutdown(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	w := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Ce-Id") == "slow" {
			close(began)
			<-release
		}
		here(w, r)
	}, nil)
	fresh, idle, busy := w.dial(), w.dial(), w.dial()
	if _, err := io.WriteString(idle, request("1", "")); err != nil {
		t.Fatal(err)
	}
	answers(t, idle, 1)
	if _, err := io.WriteString(busy, request("slow", "")+request("next", "")); err != nil {
		t.Fatal(err)
	}
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a request in flight: %v", err)
	}
	expectEnd(t, fresh)
	expectEnd(t, idle)
	close(release)
	if diff := cmp.Diff([]string{`last 200 here POST / slow "" <nil>`}, answers(t, busy, 1)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if err := w.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", w.address); err == nil {
		_ = c.Close()
		t.Error("it still listens")
	}
}

func TestAbort(t *testing.T) {
	began := make(chan struct{})
	w := start(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		_, _ = io.ReadAll(r.Body)
	}, nil)
	conn := w.dial()
	if _, err := io.WriteString(conn, strings.TrimSuffix(request("1", "body"), "y")); err != nil {
		t.Fatal(err)
	}
	<-began
	w.Abort()
	expectEnd(t, conn)
}

func TestDate(t *testing.T) {
	at := time.Date(2026, 3, 1, 23, 59, 59, 5e8, time.FixedZone("", 3600))
	for _, after := range []time.Duration{0, 400 * time.Millisecond, 500 * time.Millisecond, -time.Hour} {
		now := at.Add(after)
		if got, want := date(now), now.UTC().Format(http.TimeFormat); got != want {
			t.Errorf("%s is %q, want %q", now, got, want)
		}
	}
}

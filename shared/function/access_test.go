package function

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

const (
	firstToken  = "0123456789abcdef0123456789abcdef"
	secondToken = "QUJDREVGR0hJSktMTU5PUA=="
	twoTokens   = "first:" + firstToken + ", second:" + secondToken
)

// guarded is a function with routes of its own, which counts what reaches them and
// the handler of events.
func guarded(t testing.TB, a Access, opts ...Option) (s *Server, reached, events *atomic.Int64) {
	t.Helper()
	reached, events = new(atomic.Int64), new(atomic.Int64)
	route := func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", "3")
		_, _ = io.WriteString(w, "yes")
	}
	handler := Each(func(context.Context, event.Event) (*event.Event, error) {
		events.Add(1)
		return nil, nil
	})
	s = newServer(t, Config{}, handler, append([]Option{
		WithAccess(a),
		WithQuickPosts("/predict", "/v1/models/"),
		func(o *options) {
			o.metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") })
		},
		WithRoutes(func(mux *http.ServeMux) {
			mux.HandleFunc("POST /predict", route)
			mux.HandleFunc("GET /models", route)
			mux.HandleFunc("GET /tree/", route)
			mux.HandleFunc("POST /v1/models/{call}", route)
		}),
		WithOpenRoutes(func(mux *http.ServeMux) {
			mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "docs") })
		}),
	}, opts...)...)
	return s, reached, events
}

// exchange sends bytes over one connection and returns the statuses of the answers
// until the other side closes it or as many as are wanted have come.
func exchange(t *testing.T, address, bytes string, answers int) []int {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, bytes); err != nil {
		t.Fatal(err)
	}
	var got []int
	in := bufio.NewReader(c)
	for range answers {
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return got
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Fatal(err)
		}
		got = append(got, r.StatusCode)
	}
	return got
}

// Whatever way a request is written, it does not reach a route without a token.
func TestNoWayAroundTheToken(t *testing.T) {
	const host, good = "Host: x\r\n", "Authorization: Bearer " + firstToken + "\r\n"
	body := "Content-Length: 2\r\n\r\n[]"
	chunked := "Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"
	ok := "POST /predict HTTP/1.1\r\n" + host + good + body
	bare := "POST /predict HTTP/1.1\r\n" + host + body
	event := "POST / HTTP/1.1\r\n" + host + "Ce-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: /s\r\nCe-Type: t\r\n" + body
	for _, test := range []struct {
		name, bytes string
		want        []int
		reached     int64
	}{
		{"quick", bare, []int{401}, 0},
		{"quick with a token", ok, []int{200}, 1},
		{"in small letters", strings.NewReplacer("Authorization: Bearer", "authorization: bearer").Replace(ok), []int{200}, 1},
		{"the second token", strings.Replace(ok, firstToken, secondToken, 1), []int{200}, 1},
		{"another path, quick", "POST /v1/models/m:predict HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"pipelined after one with a token", ok + bare, []int{200, 401}, 1},
		{"pipelined before one with a token", bare + ok, []int{401, 200}, 1},
		{"pipelined after events", event + bare + event + ok, []int{202, 401, 202, 200}, 1},
		{"chunked", "POST /predict HTTP/1.1\r\n" + host + chunked, []int{401}, 0},
		{"chunked with a token", "POST /predict HTTP/1.1\r\n" + host + good + chunked, []int{200}, 1},
		{"chunked after a quick one with a token", ok + "POST /predict HTTP/1.1\r\n" + host + chunked, []int{200, 401}, 1},
		{"the former request's token is forgotten", ok + "GET /models HTTP/1.1\r\n" + host + "\r\n", []int{200, 401}, 1},
		{"HTTP/1.0", "POST /predict HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]", []int{401}, 0},
		{"absolute form", "POST http://x/predict HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"absolute form with a token", "POST http://x/predict HTTP/1.1\r\n" + host + good + body, []int{200}, 1},
		{"slash at the end", "POST /predict/ HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"slash at the end with a token", "POST /predict/ HTTP/1.1\r\n" + host + good + body, []int{404}, 0},
		{"a subtree", "GET /tree/a/b HTTP/1.1\r\n" + host + "\r\n", []int{401}, 0},
		{"a subtree that redirects", "GET /tree HTTP/1.1\r\n" + host + "\r\n", []int{401}, 0},
		{"two slashes", "POST //predict HTTP/1.1\r\n" + host + body, []int{307}, 0},
		{"dots", "POST /healthz/../predict HTTP/1.1\r\n" + host + body, []int{307}, 0},
		{"dots, escaped", "POST /healthz%2F..%2Fpredict HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"escaped", "POST /%70redict HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"with a query", "POST /predict?token=" + firstToken + " HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"expecting to go on", "POST /predict HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", []int{401}, 0},
		{"another method", "PUT /predict HTTP/1.1\r\n" + host + body, []int{401}, 0},
		{"other routes", "GET /models HTTP/1.1\r\n" + host + "\r\n", []int{401}, 0},
		{"a path that nobody has", "GET /secret HTTP/1.1\r\n" + host + "\r\n", []int{401}, 0},
		{"the wrong token", strings.Replace(ok, firstToken, firstToken[1:]+"0", 1), []int{401}, 0},
		{"part of the token", strings.Replace(ok, firstToken, firstToken[:31], 1), []int{401}, 0},
		{"no token", strings.Replace(ok, firstToken, "", 1), []int{401}, 0},
		{"the token's name", strings.Replace(ok, firstToken, "first:"+firstToken, 1), []int{401}, 0},
		{"another scheme", strings.Replace(ok, "Bearer ", "Basic ", 1), []int{401}, 0},
		{"no scheme", strings.Replace(ok, "Bearer ", "", 1), []int{401}, 0},
		{"two fields, one of them right", strings.Replace(ok, host, host+"Authorization: Bearer x\r\n", 1), []int{401}, 0},
		{"a token on a folded line", strings.Replace(ok, "Bearer ", "Bearer\r\n ", 1), []int{200}, 1},
		{"half a token on a folded line", strings.Replace(ok, firstToken[:16], firstToken[:16]+"\r\n ", 1), []int{401}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, reached, _ := guarded(t, Access{Tokens: twoTokens})
			url, _, _ := serve(t, s)
			got := exchange(t, strings.TrimPrefix(url, "http://"), test.bytes, len(test.want))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if n := reached.Load(); n != test.reached {
				t.Errorf("%d requests reached a route, want %d", n, test.reached)
			}
		})
	}
}

func TestHTTP2NeedsTheToken(t *testing.T) {
	s, reached, _ := guarded(t, Access{Tokens: twoTokens})
	url, _, _ := serve(t, s)
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &h2c}}
	t.Cleanup(client.CloseIdleConnections)
	for token, want := range map[string]int{"": 401, "Bearer " + firstToken: 200} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/predict", strings.NewReader("[]"))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", token)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _ = answer.Body.Close(); answer.StatusCode != want || answer.ProtoMajor != 2 {
			t.Errorf("%q: %s %d, want %d", token, answer.Proto, answer.StatusCode, want)
		}
	}
	if reached.Load() != 1 {
		t.Errorf("%d requests reached the route", reached.Load())
	}
}

func TestEveryMethodNeedsTheToken(t *testing.T) {
	s, _, _ := guarded(t, Access{Tokens: twoTokens})
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "ANY"} {
		if answer := do(s, httptest.NewRequest(method, "/models", nil)); answer.StatusCode != 401 {
			t.Errorf("%s: %d", method, answer.StatusCode)
		}
	}
}

// What the platform needs stays open; its metrics do for those beside the function.
func TestWhatNeedsNoToken(t *testing.T) {
	s, reached, events := guarded(t, Access{Tokens: twoTokens})
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("X-Forwarded-For", "203.0.113.1")
	if answer := do(s, r); answer.StatusCode != 401 {
		t.Errorf("metrics for who comes through a proxy: %d", answer.StatusCode)
	}
	r.Header.Set("Authorization", "Bearer "+firstToken)
	if answer := do(s, r); answer.StatusCode != 200 {
		t.Errorf("metrics for who comes through a proxy with a token: %d", answer.StatusCode)
	}
	for _, path := range []string{"/", "/healthz", "/readyz", "/metrics", "/docs"} {
		if answer := do(s, httptest.NewRequest(http.MethodGet, path, nil)); answer.StatusCode != 200 {
			t.Errorf("GET %s: %d", path, answer.StatusCode)
		}
	}
	if answer := do(s, binaryRequest(message("1"))); answer.StatusCode != 202 || events.Load() != 1 || reached.Load() != 0 {
		t.Errorf("an event: %d, %d events", answer.StatusCode, events.Load())
	}
}

func TestProblemOfAMissingToken(t *testing.T) {
	s, _, _ := guarded(t, Access{Tokens: twoTokens})
	for authorization, want := range map[string]struct{ challenge, detail string }{
		"":                       {`Bearer realm="test"`, "a token is required: send it as Authorization: Bearer <token>"},
		"Bearer wrong":           {`Bearer realm="test", error="invalid_token"`, "the token is not known here"},
		"Basic " + firstToken:    {`Bearer realm="test", error="invalid_token"`, "the Authorization field has to be: Bearer <token>"},
		"Bearer  " + secondToken: {},
	} {
		r := httptest.NewRequest(http.MethodPost, "/predict", strings.NewReader("[]"))
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		answer := do(s, r)
		if want.detail == "" {
			if answer.StatusCode != 200 {
				t.Errorf("%q: %d", authorization, answer.StatusCode)
			}
			continue
		}
		var got map[string]any
		if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]any{"type": "about:blank", "title": "Unauthorized", "status": 401.0, "detail": want.detail, "error": want.detail}, got); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", authorization, diff)
		}
		if h := answer.Header; h.Get("WWW-Authenticate") != want.challenge || h.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%q: %v", authorization, h)
		}
	}
}

// A function that only serves its own routes takes events from nobody, in no form, by
// neither of its two ways.
func TestOnlyRefusesEvents(t *testing.T) {
	s, reached, events := guarded(t, Access{Tokens: twoTokens, Only: true})
	url, _, _ := serve(t, s)
	head := "POST / HTTP/1.1\r\nHost: predict.millrace.svc.cluster.local\r\nAuthorization: Bearer " + firstToken + "\r\n"
	binary := head + "Ce-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: /s\r\nCe-Type: t\r\n"
	got := exchange(t, strings.TrimPrefix(url, "http://"),
		binary+"Content-Length: 2\r\n\r\n[]"+
			head+"Content-Type: application/cloudevents-batch+json\r\nContent-Length: 2\r\n\r\n[]"+
			strings.Replace(binary, "POST /", "POST /?", 1)+"Content-Length: 2\r\n\r\n[]"+
			binary+"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"+
			"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+firstToken+"\r\nContent-Length: 2\r\n\r\n[]", 5)
	if diff := cmp.Diff([]int{403, 403, 403, 403, 200}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if events.Load() != 0 || reached.Load() != 1 {
		t.Errorf("%d events and %d requests came through", events.Load(), reached.Load())
	}
}

func TestAccessIsChecked(t *testing.T) {
	for name, test := range map[string]struct {
		a    Access
		want string
	}{
		"no name":      {Access{Tokens: firstToken}, "entry 1 is no name:token"},
		"bad name":     {Access{Tokens: "a b:" + firstToken}, "entry 1 is no name:token"},
		"strange name": {Access{Tokens: "ä:" + firstToken}, "the name of entry 1"},
		"short":        {Access{Tokens: "a:" + firstToken[:15]}, "the token of a has 15 characters"},
		"strange":      {Access{Tokens: "a:" + firstToken + "!"}, "the token of a may have"},
		"name twice":   {Access{Tokens: "a:" + firstToken + ",a:" + secondToken}, "a is there twice"},
		"token twice":  {Access{Tokens: "a:" + firstToken + "\nb:" + firstToken}, "a and b have the same token"},
		"rate":         {Access{Rate: -1}, "RATE_LIMIT=-1"},
		"burst alone":  {Access{Burst: 5}, "RATE_BURST=5"},
		"network":      {Access{Rate: 1, TrustedProxies: []string{"10.0.0.1"}}, `"10.0.0.1" is no network`},
	} {
		_, err := New(Config{Name: "test"}, echo, WithAccess(test.a))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), firstToken[:15]) || strings.Contains(err.Error(), secondToken)) {
			t.Errorf("%s: the error tells the token: %v", name, err)
		}
	}
	var many []string
	for i := range maxTokens + 1 {
		many = append(many, fmt.Sprintf("n%d:%s%d", i, firstToken, i))
	}
	if _, err := New(Config{Name: "test"}, echo, WithAccess(Access{Tokens: strings.Join(many, " ")})); err == nil {
		t.Error("there may be any number of tokens")
	}
	// A Secret with an empty value must not open the door.
	t.Setenv("API_TOKENS", " ")
	if _, err := New(Config{Name: "test"}, echo, WithAccess(Access{Tokens: " "})); err == nil {
		t.Error("a variable without a token lets everybody in")
	}
}

// Each token has requests of its own, and the refused ones are told when to come again.
func TestRateOfATokenIsBounded(t *testing.T) {
	s, reached, _ := guarded(t, Access{Tokens: twoTokens, Rate: 0.001, Burst: 2})
	url, _, _ := serve(t, s)
	ask := func(token string) string {
		return "POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 2\r\n\r\n[]"
	}
	one := ask(firstToken)
	chunked := strings.Replace(one, "Content-Length: 2\r\n\r\n[]", "Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n", 1)
	got := exchange(t, strings.TrimPrefix(url, "http://"), one+one+one+ask(secondToken)+chunked+one, 6)
	if diff := cmp.Diff([]int{200, 200, 429, 200, 429, 429}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if reached.Load() != 3 {
		t.Errorf("%d requests reached the route", reached.Load())
	}
	r := httptest.NewRequest(http.MethodPost, "/predict", strings.NewReader("[]"))
	r.Header.Set("Authorization", "Bearer "+firstToken)
	answer := do(s, r)
	wait, err := strconv.Atoi(answer.Header.Get("Retry-After"))
	if body := text(t, answer); err != nil || wait < 900 || wait > 1000 || !strings.Contains(body, "more than 0.001 requests a second for your token (RATE_LIMIT)") {
		t.Errorf("%d %v %s", answer.StatusCode, answer.Header, body)
	}
	for range 9 {
		if answer := do(s, binaryRequest(message("1"))); answer.StatusCode != 202 {
			t.Errorf("an event: %d", answer.StatusCode)
		}
	}
}

func TestRateOfAnAddressIsBounded(t *testing.T) {
	s, _, _ := guarded(t, Access{Rate: 0.001, Burst: 1, TrustedProxies: []string{"127.0.0.0/8", "10.0.0.0/8"}})
	for i, test := range []struct {
		peer      string
		forwarded []string
		want      int
	}{
		{"203.0.113.1:1", nil, 200},
		{"203.0.113.1:2", nil, 429},                                        // another connection
		{"203.0.113.1:2", []string{"203.0.113.9"}, 429},                    // who is not trusted says nothing
		{"127.0.0.1:1", []string{"203.0.113.1, 10.0.0.7"}, 429},            // the same through two proxies
		{"127.0.0.1:1", []string{"9.9.9.9, 203.0.113.1", "10.0.0.7"}, 429}, // and what it makes up
		{"127.0.0.1:1", []string{"203.0.113.2,10.0.0.7"}, 200},
		{"127.0.0.1:1", []string{"203.0.113.3", "203.0.113.2"}, 429},
		{"[::ffff:203.0.113.2]:1", nil, 429},
		{"[2001:db8::1]:1", nil, 200},
		{"[2001:db8::2]:1", nil, 429}, // of the same network
		{"[2001:db8:0:1::1]:1", nil, 200},
		{"127.0.0.1:1", []string{"unknown, 10.0.0.7"}, 200}, // counts for the proxy
		{"127.0.0.1:1", []string{"garbage, 10.0.0.7"}, 429},
		{"127.0.0.1:1", nil, 200},
	} {
		r := httptest.NewRequest(http.MethodGet, "/models", nil)
		r.RemoteAddr = test.peer
		r.Header["X-Forwarded-For"] = test.forwarded
		if answer := do(s, r); answer.StatusCode != test.want {
			t.Errorf("%d: %s %q: %d, want %d", i, test.peer, test.forwarded, answer.StatusCode, test.want)
		}
	}
}

// Many addresses neither take more memory than is meant for them nor make others,
// or themselves, unlimited.
func TestClientsAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimit(1, 2)
	l.most, l.now = 3, func() time.Time { return now }
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
	let := func(i int) bool { return l.takeFor(address(i)) == 0 }
	for i := range 3 {
		if !let(i) || !let(i) || let(i) { //nolint:staticcheck // SA4000: each takes one
			t.Fatalf("address %d has not two requests", i)
		}
	}
	if !let(3) || !let(4) || let(5) || let(3) {
		t.Error("those without room do not share two requests")
	}
	if let(0) {
		t.Error("an address has got out of its bound")
	}
	now = now.Add(time.Second)
	if !let(0) || let(0) {
		t.Error("an address has not one request more after a second")
	}
	now = now.Add(2 * time.Second) // 1 and 2 are as new
	if !let(6) || !let(7) || len(l.clients) > 3 {
		t.Errorf("no room was made: %d", len(l.clients))
	}
	if wait := l.takeFor(address(6)); wait != 0 {
		t.Errorf("the second request of an address waits %s", wait)
	}
	if wait := l.takeFor(address(6)); wait != time.Second {
		t.Errorf("the third request of an address waits %s", wait)
	}
}

func TestRequestsAreCounted(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	s, _, _ := guarded(t, Access{Tokens: twoTokens, Rate: 0.001, Burst: 1}, func(o *options) {
		o.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	})
	for _, token := range []string{firstToken, firstToken, secondToken, "made-up"} {
		r := httptest.NewRequest(http.MethodGet, "/models", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		do(s, r)
	}
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &collected); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range collected.ScopeMetrics[0].Metrics {
		if data, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "function.api.requests" {
			for _, p := range data.DataPoints {
				client, _ := p.Attributes.Value(attribute.Key("client"))
				outcome, _ := p.Attributes.Value(attribute.Key("outcome"))
				got[client.AsString()+" "+outcome.AsString()] = p.Value
			}
		}
	}
	if diff := cmp.Diff(map[string]int64{"first admitted": 1, "first limited": 1, "second admitted": 1, "anyone unauthorized": 1}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// BenchmarkAccess is what a request to a route costs without and with a guard.
func BenchmarkAccess(b *testing.B) {
	for _, bench := range []struct {
		name string
		a    Access
	}{
		{"off", Access{}},
		{"token", Access{Tokens: twoTokens}},
		{"token and rate", Access{Tokens: twoTokens, Rate: 1e9}},
		{"address and rate", Access{Rate: 1e9, TrustedProxies: []string{"10.0.0.0/8"}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s, _, _ := guarded(b, bench.a)
			r := httptest.NewRequest(http.MethodPost, "/predict", http.NoBody)
			r.RemoteAddr = "10.0.0.1:1234"
			r.Header = http.Header{"Authorization": {"Bearer " + firstToken}, "X-Forwarded-For": {"203.0.113.1, 10.0.0.7"}}
			w := &discardWriter{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				s.plain(w, r)
			}
		})
	}
}

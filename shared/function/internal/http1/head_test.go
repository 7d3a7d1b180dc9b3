package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const usual = "POST / HTTP/1.1\r\nHost: validate.millrace.svc:8080\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 2\r\n" +
	"ce-specversion: 1.0\r\nCe-Id: 1\r\nCE-SOURCE:/a \r\nCe-Unusual:\tx\r\nContent-Type: application/json\r\n\r\n"

// prefixes are of paths that are taken.
var prefixes = []string{"/predict", "/v2/"}

func TestHead(t *testing.T) {
	with := func(field string) string { return strings.TrimSuffix(usual, "\r\n") + field + "\r\n\r\n" }
	for name, c := range map[string]struct {
		head string
		want head
	}{
		"usual":                       {usual, plain},
		"kept alive in so many words": {with("connection: Keep-Alive"), plain},
		"a field twice":               {with("Ce-Id: 2"), plain},
		"bytes above ASCII":           {with("X: \xff"), plain},
		"no field":                    {"POST / HTTP/1.1\r\n\r\n", other},
		"no length":                   {"POST / HTTP/1.1\r\nHost: a\r\n\r\n", other},
		"no host":                     {"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", other},
		"empty host":                  {"POST / HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n", other},
		"odd host":                    {"POST / HTTP/1.1\r\nHost: a/b\r\nContent-Length: 0\r\n\r\n", other},
		"two hosts":                   {with("Host: b"), other},
		"two lengths":                 {with("Content-Length: 2"), other},
		"two lengths in one":          {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\n", other},
		"signed length":               {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n", other},
		"endless length":              {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2222222222222222222\r\n\r\n", other},
		"chunked":                     {with("Transfer-Encoding: chunked"), other},
		"chunked, disguised":          {with("Transfer-Encoding : chunked"), other},
		"continuation":                {with("Expect: 100-continue"), other},
		"upgrade":                     {with("Upgrade: h2c"), other},
		"closing":                     {with("Connection: close"), other},
		"folded":                      {with("X: a\r\n b"), other},
		"no colon":                    {with("X"), other},
		"no name":                     {with(": a"), other},
		"name with a space":           {with("X Y: a"), other},
		"control character":           {with("X: a\x00b"), other},
		"carriage return":             {with("X: a\rb"), other},
		"line feed alone":             {strings.Replace(usual, "\r\n", "\n", 2), other},
		"GET":                         {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", other},
		"another path":                {strings.Replace(usual, " / ", " /x ", 1), other},
		"a query":                     {strings.Replace(usual, " / ", " /?x ", 1), other},
		"a path of a prefix":          {strings.Replace(usual, " / ", " /v2/models/a_b-1/infer ", 1), plain},
		"the prefix itself":           {strings.Replace(usual, " / ", " /predict ", 1), plain},
		"the prefix and more":         {strings.Replace(usual, " / ", " /predict/ ", 1), plain},
		"less than the prefix":        {strings.Replace(usual, " / ", " /predic ", 1), other},
		"a path with a query":         {strings.Replace(usual, " / ", " /predict?x ", 1), other},
		"a path with an escape":       {strings.Replace(usual, " / ", " /predict/%41 ", 1), other},
		"a path with dots":            {strings.Replace(usual, " / ", " /v2/../x ", 1), other},
		"a path with two slashes":     {strings.Replace(usual, " / ", " /v2//x ", 1), other},
		"a path that is cut off":      {"POST /predict\r\n", other},
		"GET of a path":               {strings.Replace(usual, "POST / ", "GET /predict ", 1), other},
		"HTTP/1.0":                    {strings.Replace(usual, "1.1", "1.0", 1), other},
		"HTTP/2":                      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", other},
	} {
		t.Run(name, func(t *testing.T) {
			kind, size, line := look([]byte(c.head+"body"), prefixes)
			if kind == plain {
				if size != len(c.head) {
					t.Fatalf("the head has %d bytes, want %d", size, len(c.head))
				}
				if _, _, _, ok := fields(c.head[line:size], http.Header{}, nil); !ok {
					kind = other
				}
			}
			if kind != c.want {
				t.Errorf("got %d, want %d", kind, c.want)
			}
			agreesWithNetHTTP(t, []byte(c.head+"body"))
		})
	}
}

// FuzzHead holds every head that is taken against net/http's reading of it.
func FuzzHead(f *testing.F) {
	f.Add([]byte(usual + "ok"))
	f.Add([]byte(strings.Replace(usual, " / ", " /v2/models/a:b/ ", 1)))
	f.Add([]byte("POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nhost: [::1]:80\r\ncontent-length: 0\r\nX: a\r\nx:  b \t\r\n\r\nPOST"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n X: y\nZ:\r\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) { agreesWithNetHTTP(t, b) })
}

func agreesWithNetHTTP(t *testing.T, b []byte) {
	t.Helper()
	kind, size, line := look(b, prefixes)
	if kind != plain {
		return
	}
	for n := range size {
		if k, _, _ := look(b[:n], prefixes); k != incomplete {
			t.Fatalf("the first %d of %d bytes are of kind %d", n, size, k)
		}
	}
	header := http.Header{}
	length, host, _, ok := fields(string(b[line:size]), header, nil)
	if !ok {
		return
	}
	r := bufio.NewReader(bytes.NewReader(b))
	request, err := http.ReadRequest(r)
	if err != nil {
		t.Fatalf("net/http refuses what is taken: %v\n%q", err, b)
	}
	if request.Method != http.MethodPost || request.RequestURI != string(b[len(method):line-len(version)]) || request.URL.Path != request.RequestURI || !request.ProtoAtLeast(1, 1) || request.Close ||
		request.TransferEncoding != nil || request.Trailer != nil || request.ContentLength != length || request.Host != host {
		t.Errorf("taken with length %d and host %q, net/http: %+v\n%q", length, host, request, b)
	}
	if diff := cmp.Diff(request.Header, header); diff != "" {
		t.Errorf("header (-net/http +here):\n%s", diff)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(rest, b[size:]) {
		t.Errorf("%d bytes follow the head, net/http: %d, %v", len(b)-size, len(rest), err)
	}
}

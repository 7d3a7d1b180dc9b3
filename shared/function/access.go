package function

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/time/rate"
)

// Access says who may call a function's own routes (those of WithRoutes), and how
// often, as it is read from the environment by envconfig. The zero value lets
// everybody in and costs a request nothing.
//
// Events at "/" are not concerned: a Broker sends no token, and waits where it has to
// by itself. A function that can be reached from outside of the cluster sets Only, and
// has its events delivered to another Service of the same image.
type Access struct {
	// Tokens are the tokens of which a request has to carry one, as "Authorization:
	// Bearer <token>": "name:token", separated by commas or white space, at most 100.
	// Names are for the metrics and let a token be replaced: add the new one under a
	// name of its own, hand it out, and take the old one out when it is no longer
	// counted. Empty: no token is needed. Set it from a Secret.
	Tokens string `envconfig:"API_TOKENS"`
	// Only refuses events: the function serves its own routes and nothing else.
	Only bool `envconfig:"API_ONLY"`

	// Rate is how many requests a second are let in for each token or, where none is
	// needed, for each client's address. 0: any number. It is counted by each process
	// for itself: a Service of n pods lets in up to n times as many, and more pods
	// start as the load grows, so what a client can get at most is the rate times the
	// autoscaler's max-scale. A request counts as one, whatever number of items it has.
	Rate float64 `envconfig:"RATE_LIMIT"`
	// Burst is how many requests may come at once after a rest; by default those of
	// one second.
	Burst int `envconfig:"RATE_BURST"`
	// TrustedProxies are the networks ("10.0.0.0/8", comma separated) whose word on
	// where a request came from is taken: a client's address is the last one of
	// X-Forwarded-For, and of the connection itself, that is not of these. By default
	// loopback alone. Clients inside of these networks can pretend to be one another.
	TrustedProxies []string `envconfig:"TRUSTED_PROXIES"`
}

// WithAccess guards the function's own routes.
func WithAccess(a Access) Option {
	return func(o *options) { o.access = a }
}

// WithOpenRoutes adds routes as WithRoutes does, which WithAccess leaves open to
// everybody, like those of the runtime: descriptions, and whether the function is well.
func WithOpenRoutes(add func(*http.ServeMux)) Option {
	return func(o *options) { o.open = append(o.open, add) }
}

const (
	// maxTokens bounds the tokens, each of which is compared with every request's and
	// has time series of its own.
	maxTokens = 100
	// minToken is how long a token is at least: 128 bits in hexadecimal are twice this.
	minToken = 16
	// maxClients bounds the addresses that are counted apart.
	maxClients = 10_000
)

var (
	tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	tokenText = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`) // b64token of RFC 6750
)

// guard admits requests.
type guard struct {
	realm   string
	tokens  []*client // none: no token is needed
	limit   *limit    // nil: no bound
	trusted []netip.Prefix
	anyone  *client // without tokens, and those who are refused

	requests metric.Int64Counter
}

// client is who a request counts for.
type client struct {
	hash   [sha256.Size]byte
	bucket *rate.Limiter // of a token, where there is a limit

	admitted, unauthorized, limited metric.MeasurementOption
}

func newClient(name string) *client {
	outcome := func(text string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String("client", name), attribute.String("outcome", text)))
	}
	return &client{admitted: outcome("admitted"), unauthorized: outcome("unauthorized"), limited: outcome("limited")}
}

// newGuard is nil when everybody may call whenever they want. realm names what is
// guarded.
func newGuard(a Access, realm string, meters metric.MeterProvider) (*guard, error) {
	if _, set := os.LookupEnv("API_TOKENS"); set && strings.Trim(a.Tokens, ", \t\r\n") == "" {
		return nil, errors.New("API_TOKENS: is set and has no token, which would let everybody in; unset it if that is wanted")
	}
	g := &guard{realm: realm, anyone: newClient("anyone")}
	var err error
	if g.tokens, err = parseTokens(a.Tokens); err != nil {
		return nil, err
	}
	if a.Rate < 0 || math.IsNaN(a.Rate) || math.IsInf(a.Rate, 0) {
		return nil, fmt.Errorf("RATE_LIMIT=%v: must be a number of requests a second, or 0 for no limit", a.Rate)
	}
	if a.Burst < 0 || a.Burst > 0 && a.Rate == 0 {
		return nil, fmt.Errorf("RATE_BURST=%d: must be greater than 0, and needs RATE_LIMIT", a.Burst)
	}
	if g.trusted, err = parseNetworks(a.TrustedProxies); err != nil {
		return nil, err
	}
	if a.Rate > 0 {
		g.limit = newLimit(a.Rate, a.Burst)
		for _, t := range g.tokens {
			t.bucket = g.limit.bucket()
		}
	}
	if g.tokens == nil && g.limit == nil {
		return nil, nil
	}
	g.requests, err = meters.Meter("github.com/millrace-dev/millrace/shared/function").Int64Counter("function.api.requests",
		metric.WithUnit("{request}"),
		metric.WithDescription("Requests to guarded routes, by client (the token's name) and outcome (admitted, unauthorized, limited)."))
	if err != nil {
		return nil, fmt.Errorf("making the metrics: %w", err)
	}
	return g, nil
}

// parseTokens never says a token in an error: those are logged.
func parseTokens(text string) ([]*client, error) {
	var all []*client
	names, hashes := map[string]bool{}, map[[sha256.Size]byte]string{}
	for i, entry := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
		name, token, found := strings.Cut(entry, ":")
		hash := sha256.Sum256([]byte(token))
		switch {
		case !found:
			return nil, fmt.Errorf("API_TOKENS: entry %d is no name:token", i+1)
		case !tokenName.MatchString(name):
			return nil, fmt.Errorf("API_TOKENS: the name of entry %d may have letters, digits, '.', '_' and '-', at most 63", i+1)
		case names[name]:
			return nil, fmt.Errorf("API_TOKENS: %s is there twice", name)
		case !tokenText.MatchString(token):
			return nil, fmt.Errorf("API_TOKENS: the token of %s may have letters, digits and '-._~+/', then '='", name)
		case len(token) < minToken:
			return nil, fmt.Errorf("API_TOKENS: the token of %s has %d characters, it should have at least %d", name, len(token), minToken)
		case hashes[hash] != "":
			return nil, fmt.Errorf("API_TOKENS: %s and %s have the same token", hashes[hash], name)
		case len(all) == maxTokens:
			return nil, fmt.Errorf("API_TOKENS: there are more than %d", maxTokens)
		}
		names[name], hashes[hash] = true, name
		c := newClient(name)
		c.hash = hash
		all = append(all, c)
	}
	return all, nil
}

func parseNetworks(texts []string) ([]netip.Prefix, error) {
	if len(texts) == 0 {
		texts = []string{"127.0.0.0/8", "::1/128"}
	}
	var all []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("TRUSTED_PROXIES: %q is no network, like 10.0.0.0/8", text)
		}
		all = append(all, p)
	}
	return all, nil
}

// wrap serves requests that are admitted by next, and refuses the others. It does not
// look at the path: whatever next has routes for is guarded.
func (g *guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.admit(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// fromOutside guards what may be read without a token by who sits beside the function,
// like Prometheus, but not by who comes through a proxy, as everybody from outside of
// a cluster does.
func (g *guard) fromOutside(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxied := len(r.Header["X-Forwarded-For"]) > 0 || len(r.Header["Forwarded"]) > 0
		if !proxied || len(g.tokens) == 0 || g.admit(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// admit tells whether a request may go on, and has answered it if not.
func (g *guard) admit(w http.ResponseWriter, r *http.Request) bool {
	who := g.anyone
	if len(g.tokens) > 0 {
		var problem string
		if who, problem = g.bearer(r.Header); problem != "" {
			challenge := fmt.Sprintf("Bearer realm=%q", g.realm)
			if len(r.Header["Authorization"]) > 0 {
				challenge += `, error="invalid_token"`
			}
			w.Header().Set("WWW-Authenticate", challenge)
			refuse(w, http.StatusUnauthorized, problem)
			g.requests.Add(r.Context(), 1, g.anyone.unauthorized)
			return false
		}
	}
	if g.limit != nil {
		var wait time.Duration
		if who.bucket != nil {
			wait = g.limit.take(who.bucket)
		} else {
			wait = g.limit.takeFor(g.address(r))
		}
		if wait > 0 {
			seconds := int64((wait + time.Second - 1) / time.Second)
			w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
			whose := "your address"
			if who.bucket != nil {
				whose = "your token"
			}
			refuse(w, http.StatusTooManyRequests, fmt.Sprintf("more than %v requests a second for %s (RATE_LIMIT); the next one is taken in %d s",
				float64(g.limit.rate), whose, seconds))
			g.requests.Add(r.Context(), 1, who.limited)
			return false
		}
	}
	g.requests.Add(r.Context(), 1, who.admitted)
	return true
}

// bearer finds whose token a request carries, or says what is wrong with it. All
// hashes are compared whole, so that the time it takes tells nothing.
func (g *guard) bearer(h http.Header) (*client, string) {
	fields := h["Authorization"]
	switch len(fields) {
	case 0:
		return nil, "a token is required: send it as Authorization: Bearer <token>"
	case 1:
	default:
		return nil, "there is more than one Authorization field"
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nil, "the Authorization field has to be: Bearer <token>"
	}
	hash := sha256.Sum256([]byte(strings.TrimLeft(token, " ")))
	var who *client
	for _, c := range g.tokens {
		if subtle.ConstantTimeCompare(hash[:], c.hash[:]) == 1 {
			who = c
		}
	}
	if who == nil {
		return nil, "the token is not known here"
	}
	return who, ""
}

// address is where a request came from, as far as those tell who are trusted. An
// IPv6 network of 64 bits counts as one address: it is what one client has.
func (g *guard) address(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	at := peer.Addr().Unmap()
	said := r.Header["X-Forwarded-For"]
	for i := len(said) - 1; i >= 0; i-- {
		for list, more := said[i], true; more && g.trusts(at); {
			var last string
			if comma := strings.LastIndexByte(list, ','); comma >= 0 {
				list, last = list[:comma], list[comma+1:]
			} else {
				last, more = list, false
			}
			before, err := netip.ParseAddr(strings.TrimSpace(last))
			if err != nil {
				// What is left of this was not written by who is trusted.
				return network(at)
			}
			at = before.Unmap()
		}
	}
	return network(at)
}

func (g *guard) trusts(a netip.Addr) bool {
	for _, p := range g.trusted {
		if p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

func network(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// limit bounds how often each of many clients is let in, in bounded memory.
type limit struct {
	rate  rate.Limit
	burst int
	most  int // clients that are counted apart
	now   func() time.Time

	mu      sync.Mutex
	clients map[netip.Addr]*rate.Limiter
	others  *rate.Limiter // who finds no room shares this one
	swept   time.Time
}

func newLimit(perSecond float64, burst int) *limit {
	if burst == 0 {
		burst = max(1, int(math.Ceil(min(perSecond, 1e9))))
	}
	l := &limit{rate: rate.Limit(perSecond), burst: burst, most: maxClients, now: time.Now, clients: map[netip.Addr]*rate.Limiter{}}
	l.others = l.bucket()
	return l
}

func (l *limit) bucket() *rate.Limiter { return rate.NewLimiter(l.rate, l.burst) }

// takeFor lets one request of a client in, or tells how long it should wait.
func (l *limit) takeFor(client netip.Addr) time.Duration {
	l.mu.Lock()
	b := l.clients[client]
	if b == nil {
		b = l.room(client)
	}
	l.mu.Unlock()
	return l.take(b)
}

// room gives a new client a bucket of its own if there is room for one. Only buckets
// that are full again are taken away, whose clients lose nothing by it: else many
// addresses could make room for themselves.
func (l *limit) room(client netip.Addr) *rate.Limiter {
	if len(l.clients) >= l.most {
		now := l.now()
		if now.Sub(l.swept) < time.Second {
			return l.others
		}
		l.swept = now
		for a, b := range l.clients {
			if b.TokensAt(now) >= float64(l.burst) {
				delete(l.clients, a)
			}
		}
		if len(l.clients) >= l.most {
			return l.others
		}
	}
	b := l.bucket()
	l.clients[client] = b
	return b
}

// take is takeFor for a bucket. It is 0 when the request is let in.
func (l *limit) take(b *rate.Limiter) time.Duration {
	now := l.now()
	if b.AllowN(now, 1) {
		return 0
	}
	missing := 1 - b.TokensAt(now)
	return max(time.Millisecond, time.Duration(missing/float64(l.rate)*float64(time.Second)))
}

// refuse answers with a problem of RFC 9457. Inference clients look for "error".
func refuse(w http.ResponseWriter, status int, detail string) {
	var body bytes.Buffer
	out := json.NewEncoder(&body)
	out.SetEscapeHTML(false)
	_ = out.Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Error  string `json:"error"`
	}{"about:blank", http.StatusText(status), status, detail, detail}) // has no value that cannot be written
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // a client that is gone needs no answer
}

// noEvents answers deliveries to a function that only serves its own routes. 403 is
// not tried again: the event goes to the dead letters, with this text.
func (s *Server) noEvents(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusForbidden, "events are not taken here (API_ONLY), but by the Service that the Triggers name")
	s.metrics.other.outcomes[invalid].Add(1)
}

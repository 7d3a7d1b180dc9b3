package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace-dev/millrace/shared/function/internal/http1"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// Option changes a Server from what its Config says.
type Option func(*options)

type options struct {
	ready   []func(context.Context) error
	routes  []func(*http.ServeMux)
	open    []func(*http.ServeMux)
	access  Access
	quick   []string
	logger  *slog.Logger
	meters  metric.MeterProvider
	traces  trace.TracerProvider
	metrics http.Handler

	sampling telemetry.Sampling // of traces
	hot      *telemetry.Hot
	notes    []func(*telemetry.Hot)
}

// WithReady adds a check to GET /readyz: the function is ready when all of them
// return nil. A check must be cheap, it is called once a probe; its context ends
// after five seconds.
func WithReady(check func(context.Context) error) Option {
	return func(o *options) { o.ready = append(o.ready, check) }
}

// WithRoutes adds routes of the function's own to the server. They are not events:
// body limits, coalescing and metrics of events do not apply to them. The patterns
// of the runtime ("POST /{$}", "GET /{$}", "GET /healthz", "GET /readyz", "GET
// /metrics") are taken.
func WithRoutes(add func(*http.ServeMux)) Option {
	return func(o *options) { o.routes = append(o.routes, add) }
}

// WithQuickPosts has POST requests to the paths that begin with one of the prefixes
// served without net/http where they are plain, for half of what that takes. Their
// handlers get a context that does not end when the client goes away, must not keep the
// request, its header or its body, and should set Content-Length.
func WithQuickPosts(prefixes ...string) Option {
	return func(o *options) { o.quick = append(o.quick, prefixes...) }
}

// WithTelemetry makes the server use a telemetry set-up that the caller has made
// and will shut down. Run makes one when it gets none.
func WithTelemetry(t *telemetry.Telemetry) Option {
	return func(o *options) {
		o.logger, o.meters, o.traces, o.sampling, o.hot, o.metrics = t.Logger, t.Meters, t.Traces, t.Sampling, t.Hot, t.MetricsHandler()
	}
}

// WithMetrics has the function make those of its metrics that are noted with every event.
// note is called once, before anything is served; its argument is nil when telemetry is
// off.
func WithMetrics(note func(*telemetry.Hot)) Option {
	return func(o *options) { o.notes = append(o.notes, note) }
}

// Server is a function's HTTP server. Make it with New.
type Server struct {
	cfg     Config
	handler Handler
	options
	mux       *http.ServeMux
	coalescer *coalescer
	deliver   http.HandlerFunc // what is posted to "/"
	metrics   *instruments
	tracer    *tracer
	failures  failureLog

	draining  atomic.Bool
	bodyBytes atomic.Int64 // of the requests in flight

	// calls is the context of the handler calls. It does not belong to a request:
	// a client that goes away must not cancel the events of others.
	calls context.Context
	abort context.CancelFunc
}

// New makes a server that is not listening yet: use Serve, or, in a test, its
// ServeHTTP under httptest. Run does all of it for a function's main.
func New(cfg Config, h Handler, opts ...Option) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configuring the function: %w", err)
	}
	s := &Server{cfg: cfg, handler: h, mux: http.NewServeMux()}
	s.logger, s.meters = slog.Default(), noop.NewMeterProvider()
	for _, o := range opts {
		o(&s.options)
	}
	var err error
	if s.metrics, err = newInstruments(s.meters, s.hot); err != nil {
		return nil, err
	}
	for _, note := range s.notes {
		note(s.hot)
	}
	s.tracer = newTracer(s.traces, s.sampling, cfg.Name)
	s.failures.logger = s.logger
	s.calls, s.abort = context.WithCancel(context.Background())
	s.coalescer = &coalescer{call: s.call, limit: cfg.Concurrency, maxBatch: cfg.MaxBatch, maxQueue: cfg.MaxQueue}

	s.deliver = s.receive
	if s.access.Only {
		s.deliver = s.noEvents
	}
	guard, err := newGuard(s.access, cfg.Name, s.meters)
	if err != nil {
		return nil, fmt.Errorf("configuring the function: %w", err)
	}
	s.mux.HandleFunc("POST /{$}", s.deliver)
	s.mux.HandleFunc("GET /{$}", s.describe)
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	if s.options.metrics != nil && guard != nil {
		s.mux.Handle("GET /metrics", guard.fromOutside(s.options.metrics))
	} else if s.options.metrics != nil {
		s.mux.Handle("GET /metrics", s.options.metrics)
	}
	for _, add := range s.open {
		add(s.mux)
	}
	routes := s.mux
	if guard != nil {
		// All that has no route above passes the guard, whatever its path looks like.
		routes = http.NewServeMux()
		s.mux.Handle("/", guard.wrap(routes))
	}
	for _, add := range s.routes {
		add(routes)
	}
	return s, nil
}

// ServeHTTP serves events and the function's other routes.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Run serves the function until ctx ends or the process gets SIGTERM or SIGINT,
// then finishes what is in flight (at most Config.DrainTimeout) and flushes the
// telemetry. A second signal ends the process at once. The error is nil after an
// orderly end.
func Run(ctx context.Context, cfg Config, h Handler, opts ...Option) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)

	collectSeldom()
	t, err := telemetry.Setup(ctx, cfg.withDefaults().Name)
	if err != nil {
		return fmt.Errorf("setting up telemetry: %w", err)
	}
	err = listen(ctx, cfg, h, append([]Option{WithTelemetry(t)}, opts...))

	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := t.Shutdown(flush); err != nil {
		t.Logger.Warn("some telemetry is lost", "error", err)
	}
	return err
}

// collectSeldom lets the heap grow to five times what lives before it is collected,
// where GOMEMLIMIT bounds the memory and GOGC says nothing else. A function's heap
// is small and its garbage comes fast: by Go's default it would be collected fifty
// times a second, for a quarter of the CPU.
func collectSeldom() {
	if os.Getenv("GOMEMLIMIT") != "" && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}

func listen(ctx context.Context, cfg Config, h Handler, opts []Option) error {
	s, err := New(cfg, h, opts...)
	if err != nil {
		return err
	}
	addr := net.JoinHostPort(s.cfg.Host, strconv.Itoa(s.cfg.Port))
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listening (PORT=%d): %w", s.cfg.Port, err)
	}
	return s.Serve(ctx, l)
}

// Serve serves on l, which it closes, until ctx ends, then drains: it stops
// listening, is no longer ready, and finishes the requests in flight. When that
// takes longer than Config.DrainTimeout, their handler calls are cancelled, their
// connections closed, and the error says so.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // h2c, which Knative's proxies can speak
	server := &http.Server{
		Handler:           s,
		Protocols:         &protocols,
		ReadHeaderTimeout: min(10*time.Second, s.cfg.ReadTimeout),
		ReadTimeout:       s.cfg.ReadTimeout,
		// From the end of the headers to the end of the answer: reading, waiting
		// for a call and a retry one by one all fit, a reader that hangs does not.
		WriteTimeout:   s.cfg.ReadTimeout + 4*s.cfg.HandlerTimeout,
		IdleTimeout:    s.cfg.IdleTimeout,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
	}
	front := http1.NewListener(l, http1.Config{
		Handler:           s.plain,
		Prefixes:          s.quick,
		ReadHeaderTimeout: server.ReadHeaderTimeout,
		ReadTimeout:       server.ReadTimeout,
		WriteTimeout:      server.WriteTimeout,
		IdleTimeout:       server.IdleTimeout,
		MaxHeaderBytes:    server.MaxHeaderBytes,
		ErrorLog:          server.ErrorLog,
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(front) }()
	s.logger.Info("serving", "address", l.Addr().String(), "version", telemetry.BuildVersion())

	select {
	case err := <-served:
		s.abort()
		front.Abort()
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	s.draining.Store(true)
	start := time.Now()
	s.logger.Info("draining", "in_flight", s.metrics.inFlight.Load())
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	err := errors.Join(server.Shutdown(limit), front.Shutdown(limit)) // the first closes the front too
	unfinished := s.metrics.inFlight.Load()
	s.abort()
	if err != nil {
		_ = server.Close()
		front.Abort()
		return fmt.Errorf("draining for %s (DRAIN_TIMEOUT): %d events were not finished: %w",
			s.cfg.DrainTimeout, unfinished, err)
	}
	s.logger.Info("drained", "seconds", time.Since(start).Seconds())
	return nil
}

// plain serves the requests that do not pass net/http.
func (s *Server) plain(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		s.deliver(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) describe(w http.ResponseWriter, _ *http.Request) {
	if s.access.Only {
		_, _ = fmt.Fprintf(w, "%s %s: takes no events; see /healthz, /readyz\n", s.cfg.Name, telemetry.BuildVersion())
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s: POST CloudEvents here (binary, structured or batch); see /healthz, /readyz, /metrics\n",
		s.cfg.Name, telemetry.BuildVersion())
}

// readyTimeout bounds the checks of one probe.
const readyTimeout = 5 * time.Second

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if s.draining.Load() {
		writeError(w, Unavailable(errors.New("draining"), time.Second))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	for _, check := range s.ready {
		if err := check(ctx); err != nil {
			writeError(w, Unavailable(fmt.Errorf("not ready: %w", err), time.Second))
			return
		}
	}
	s.metrics.ready.CompareAndSwap(0, int64(time.Since(began)))
	_, _ = io.WriteString(w, "ready\n")
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/health"
)

const (
	// startTimeout bounds the wait for each part at the start. A large log that was
	// not closed cleanly takes the embedded Kafka a while to read.
	startTimeout = 2 * time.Minute
	// functionTimeout is how long the start waits for functions to be ready. Those that
	// are not by then have a reason.
	functionTimeout = 10 * time.Second
	// stopTimeout bounds a clean stop as a whole.
	stopTimeout = time.Minute
	// memoryLimit is the runner's own; its children have theirs.
	memoryLimit = 256 << 20
)

// runUp is the command up.
func runUp(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opts, done, err := parseOptions(args, stdout, stderr)
	if done || err != nil {
		return err
	}
	p, err := loadPlatform(opts.root)
	if err != nil {
		return err
	}
	if err := checkContracts(); err != nil {
		return err
	}
	names := make([]string, len(p.services))
	for i, s := range p.services {
		names[i] = s.name
	}
	ports, err := opts.assignPorts(names)
	if err != nil {
		return err
	}
	var notChosen []string
	if len(opts.functions) > 0 {
		if notChosen, err = p.choose(opts.functions); err != nil {
			return err
		}
	}
	state, err := openState(opts.state)
	if err != nil {
		return err
	}
	defer func() { _ = state.Close() }()
	known, err := state.secrets()
	if err != nil {
		return err
	}
	w := newParts(opts, state, p, ports, known)
	ended, unclean, err := supervise.Reap(state.join("run"))
	if err != nil {
		return err
	}
	if opts.database != "" || p.needs("DATABASE_URL") {
		if err := w.openDatabase(ctx); err != nil {
			return err
		}
	}
	if opts.redis != "" || p.needs("REDIS_URL") {
		if err := w.openRedis(); err != nil {
			return err
		}
	}
	if err := w.checkPrograms(); err != nil {
		return err
	}
	patience := time.Duration(0)
	if unclean {
		patience = 5 * time.Second
	}
	for _, part := range w.listening() {
		if err := awaitPort(ctx, part, ports[part], patience); err != nil {
			return err
		}
	}
	r, err := newRunner(w, stdout)
	if err != nil {
		return err
	}
	// Soft: with a backlog, garbage is collected more often before memory grows.
	debug.SetMemoryLimit(memoryLimit)
	defer r.close()
	if len(ended) > 0 {
		r.collector.event("runner", "ended what an earlier run had left: "+strings.Join(ended, ", "), false)
	}
	if len(notChosen) > 0 {
		r.collector.event("runner", "not chosen to run: "+strings.Join(notChosen, ", "), false)
	}
	for _, out := range w.leftOut {
		r.collector.event("runner", out.String(), out.Variable == "DATABASE_URL")
	}
	if w.inMemory() {
		r.collector.event("redis", "there is no redis-server in PATH, so features are kept in memory: they are gone when this ends", false)
	}
	if u := w.ingestURL(); u != "" && opts.s3 != nil {
		r.collector.event("runner", fmt.Sprintf("objects reach the warehouse at once when %s sends its notifications of them to %s, with the ingestToken of %s; else by the sweep, minutes later",
			w.s3.Endpoint, u, state.join("secrets.json")), false)
	}
	return r.run(ctx)
}

// runner is one run of the platform.
type runner struct {
	*parts
	sup       *supervise.Supervisor
	collector *collector
	engine    *engine
	client    *kgo.Client // of Kafka
	out       *display
	log       io.Closer

	producer                 *supervise.Child
	stores                   []*supervise.Child
	functions, companions    []*supervise.Child
	jobs                     *jobs
	learning                 *learning // nil where no models are trained
	stopEngine, stopDisplays func()
	stopJobs, stopLearning   func()
	stopIngress              func(context.Context)
}

func newRunner(w *parts, stdout io.Writer) (*runner, error) {
	opts, err := w.kafka.Options()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(opts,
		// Kafka restarts in moments here; the usual patience would show as a stall.
		kgo.RetryBackoffFn(func(n int) time.Duration { return min(50*time.Millisecond<<min(n, 5), time.Second) }),
		kgo.RetryTimeout(10*time.Second), kgo.DialTimeout(3*time.Second))...)
	if err != nil {
		return nil, fmt.Errorf("making a Kafka client: %w", err)
	}
	store, err := w.s3.Connect()
	if err != nil {
		client.Close()
		return nil, err
	}
	file, err := supervise.OpenLog(w.state.join("log", "millrace.log"))
	if err != nil {
		client.Close()
		return nil, err
	}
	r := &runner{parts: w, client: client, log: file, out: newDisplay(stdout, w.opts.plain)}
	log := slog.New(slog.NewJSONHandler(file, &slog.HandlerOptions{Level: logLevel()}))
	r.collector = &collector{
		parts: w, kafka: client, store: store, self: os.Getpid(), started: time.Now(),
		state: "starting", meters: map[string]*meter{}, failing: map[string]bool{},
		onEvent: func(e LogEvent) {
			if e.Bad {
				log.Warn("trouble", "part", e.Part, "text", e.Text)
			} else {
				log.Info("event", "part", e.Part, "text", e.Text)
			}
			r.out.event(e)
		},
	}
	r.sup = supervise.New(w.state.join("log"), w.state.join("run"), func(e supervise.Event) {
		r.collector.event(e.Child, e.Text, e.Bad)
	})
	r.collector.sup = r.sup
	if w.learns() {
		r.learning = newLearning(w, r.sup, r.collector.event)
		r.collector.learning = r.learning.status
	}
	if r.jobs, err = newJobs(w, r.sup, r.learning, r.collector.event); err != nil {
		r.close()
		return nil, err
	}
	r.engine = newEngine(w, log, r.jobs, r.collector.event)
	r.collector.engine = r.engine.stats
	return r, nil
}

func logLevel() slog.Level {
	var level slog.Level
	if level.UnmarshalText([]byte(os.Getenv("LOG_LEVEL"))) != nil {
		return slog.LevelInfo
	}
	return level
}

// close releases what newRunner took.
func (r *runner) close() {
	r.client.Close()
	if r.database.pool != nil {
		r.database.pool.Close()
	}
	if r.redis.client != nil {
		_ = r.redis.client.Close()
	}
	_ = r.log.Close()
}

// run starts everything, waits for ctx to end and stops everything.
func (r *runner) run(ctx context.Context) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		<-signals
		if _, again := <-signals; again {
			r.out.close()
			r.sup.KillAll()
			os.Exit(130)
		}
	}()

	err := r.start(ctx)
	if err == nil {
		r.collector.collect(ctx)
		r.collector.setState("running")
		r.out.running()
		<-ctx.Done()
	}
	r.collector.setState("stopping")
	r.out.stopping(err)
	r.stop(context.WithoutCancel(ctx))
	if err != nil && ctx.Err() == nil {
		return err
	}
	r.out.summary(r.collector.latest())
	return nil
}

// start brings the parts up in the order in which they need each other.
func (r *runner) start(ctx context.Context) error {
	began := time.Now()
	if err := r.engine.check(); err != nil {
		return err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", local(r.ports["ingress"]))
	if err != nil {
		return checkPort(ctx, "ingress", r.ports["ingress"])
	}
	metrics, stopMetrics, err := instrument(ctx, r.engine.stats)
	if err != nil {
		return err
	}
	stopServing := serveIngress(l, r.engine, r.collector, metrics)
	r.stopIngress = func(ctx context.Context) {
		stopServing(ctx)
		if err := stopMetrics(ctx); err != nil {
			r.collector.event("runner", "its last metrics were not sent: "+err.Error(), false)
		}
	}
	if err := os.WriteFile(r.state.join("endpoint"), []byte("http://"+l.Addr().String()+"\n"), 0o644); err != nil {
		return fmt.Errorf("writing this run's address: %w", err)
	}
	if err := r.writeEnv(); err != nil {
		return err
	}
	collecting, stopCollecting := context.WithCancel(context.WithoutCancel(ctx))
	collected := make(chan struct{})
	go func() { defer close(collected); r.collector.run(collecting, r.out.update) }()
	r.stopDisplays = func() { stopCollecting(); <-collected }

	if err := r.startStores(ctx, collecting); err != nil {
		return err
	}
	if err := r.ensureTopics(ctx, r.client); err != nil {
		return err
	}
	if err := r.startCompanions(); err != nil { //nolint:contextcheck // as for stores
		return err
	}
	if err := r.startFunctions(ctx); err != nil {
		return err
	}
	jobsCtx, stopJobs := context.WithCancel(context.WithoutCancel(ctx))
	jobsDone := make(chan struct{})
	go func() { defer close(jobsDone); r.jobs.run(jobsCtx) }()
	r.stopJobs = func() { stopJobs(); <-jobsDone }
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	r.stopEngine = stopEngine
	go r.engine.run(engineCtx)
	wait, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	at := time.Now()
	if err := r.engine.waitReady(wait); err != nil {
		return err
	}
	r.out.progress("events", at, "http://"+local(r.ports["ingress"]))

	if !r.opts.noLoad {
		spec, err := r.producerSpec()
		if err != nil {
			return err
		}
		if r.producer, err = r.sup.Start(spec); err != nil { //nolint:contextcheck // a child outlives the context of its start
			return err
		}
		go r.watchDisk(ctx)
	}
	r.out.progress("all", began, "")
	if r.learning != nil {
		learning, stopLearning := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() { defer close(done); r.learning.run(learning) }()
		r.stopLearning = func() { stopLearning(); <-done }
	}
	return nil
}

// watchDisk stops the producer before the lake, which keeps everything, has filled
// the disk.
func (r *runner) watchDisk(ctx context.Context) {
	for {
		free, err := diskFree(r.state.path)
		if err == nil && free < r.opts.minFree {
			r.collector.event(producer, fmt.Sprintf("is stopped: the disk of %s has only %s free. Make room and start again, or lower --min-free",
				r.state.path, bytesText(free)), true)
			r.producer.Stop(ctx)
			return
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// store is a part that others keep their data in: one that runs here, or one that the
// user named.
type store struct {
	name, where string
	external    bool
	spec        func() (supervise.Spec, error)
	check       func(context.Context) error // of one that the user named
	ping        func(context.Context) error
}

// startStores starts the stores, or checks those that the user named, and watches them
// until watch ends.
func (r *runner) startStores(ctx, watch context.Context) error {
	at := time.Now()
	stores := []store{
		{health.Kafka, strings.Join(r.kafka.Brokers, ","), r.opts.kafka != nil, r.kafkaSpec, r.checkKafka, r.pingKafka},
		{health.S3, r.s3.Endpoint, r.opts.s3 != nil, r.s3Spec, r.checkS3, r.pingS3},
	}
	if r.redis.url != "" {
		stores = append(stores, store{health.Redis, r.redis.address(), r.opts.redis != "", r.redisSpec, r.checkRedis, r.pingRedis})
	}
	if r.database.url != "" {
		stores = append(stores, store{health.Postgres, r.database.address(), r.database.server == nil, r.postgresSpec, r.checkDatabase, r.database.pool.Ping})
	}
	children := make([]*supervise.Child, len(stores))
	for i, s := range stores {
		if s.external {
			continue
		}
		spec, err := s.spec()
		if err != nil {
			return err
		}
		if children[i], err = r.sup.Start(spec); err != nil { //nolint:contextcheck // a child outlives the context of its start
			return err
		}
		r.stores = append(r.stores, children[i])
	}
	for i, s := range stores {
		var err error
		if s.external {
			err = s.check(ctx)
		} else {
			err = waitReady(ctx, children[i])
		}
		if err != nil {
			return err
		}
		r.out.progress(s.name, at, s.where)
	}
	for _, s := range stores {
		go r.collector.watchStore(watch, s.name, s.ping)
	}
	return nil
}

func (r *runner) startFunctions(ctx context.Context) error {
	at := time.Now()
	for _, s := range r.platform.services {
		spec, err := r.functionSpec(s)
		if err != nil {
			return err
		}
		child, err := r.sup.Start(spec) //nolint:contextcheck // as above
		if err != nil {
			return err
		}
		r.functions = append(r.functions, child)
	}
	patient, cancel := context.WithTimeout(ctx, functionTimeout)
	defer cancel()
	for i, s := range r.platform.services {
		err := r.functions[i].WaitReady(patient)
		if st := r.functions[i].Status(); err != nil && ctx.Err() == nil && st.PID != 0 {
			// It lives and waits for something, as for a model: events for it wait too.
			r.collector.event(s.name, "is not ready yet: "+st.Err, true)
			continue
		}
		if err != nil {
			return err
		}
		r.out.progress(s.name, at, "http://"+local(r.ports[s.name]))
	}
	return nil
}

func waitReady(ctx context.Context, c *supervise.Child) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return c.WaitReady(ctx)
}

// stop ends the parts, those that give work before those that do it: the producer,
// the event graph, which settles what is in flight, the functions, the stores.
func (r *runner) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	stopAll(ctx, r.producer)
	if r.stopEngine != nil {
		r.stopEngine()
		select {
		case <-r.engine.done:
		case <-ctx.Done():
		}
	}
	if r.stopJobs != nil {
		r.stopJobs()
	}
	if r.stopLearning != nil {
		r.stopLearning()
	}
	stopAll(ctx, slices.Concat(r.functions, r.companions)...)
	if r.learning != nil {
		r.learning.stop(ctx)
	}
	if r.stopIngress != nil {
		r.stopIngress(ctx)
	}
	if r.stopDisplays != nil {
		r.stopDisplays()
	}
	stopAll(ctx, r.stores...)
	r.out.close()
}

func stopAll(ctx context.Context, children ...*supervise.Child) {
	var wg sync.WaitGroup
	for _, c := range children {
		if c != nil {
			wg.Go(func() { c.Stop(ctx) })
		}
	}
	wg.Wait()
}

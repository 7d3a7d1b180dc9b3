package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/target"
	"github.com/millrace-dev/millrace/shared/events"
)

const datacenterAbout = `Simulates the servers and services of a datacenter and sends their metrics.

History comes first, as fast as it is taken, in steps of -backfill-interval; then
the present, a reading of each entity every -interval. Both are of the same
servers: what a metric is follows from the seed, the entity and the time alone.
What is anomalous, and when a drift begins, is written to a topic of its own.

Without -rate the present keeps to the clock on the wall. With -rate it does not
wait for the clock: times go on from -start, by default 2026-01-05, a Monday.

  loadgen datacenter -config dev -backfill-days 14       to KAFKA_BROKERS, until Ctrl-C
  loadgen datacenter -config normal -rate 0 -duration 24h -to day.jsonl -truth truth.jsonl
  loadgen datacenter -config dev -rate 0 -duration 1h -to hour.csv
  loadgen datacenter -to - -rate 0 -count 3
  loadgen datacenter -drift power -drift-at 10m -drift-size 0.3
  loadgen datacenter -to http://localhost:8080/millrace/default -http-batch 100`

// datacenterTopic takes the metrics, and with the suffix what is true of them.
const (
	datacenterTopic = "datacenter-metrics"
	truthSuffix     = ".truth"
	// datacenterPartitions are those of the topic if it has to be made.
	datacenterPartitions = 6
)

// unpacedMonday is where the present of unpaced runs starts.
var unpacedMonday = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// datacenterFlags are the command's.
type datacenterFlags struct {
	config, set       string
	seed              uint64
	servers, services int
	interval          seconds
	probability       float64
	anomalies         string
	historyShare      float64

	drift     string
	driftAt   string
	driftSize float64
	driftOver time.Duration

	start            string
	backfillDays     float64
	backfillInterval seconds
	duration         seconds
	rate             float64
	count            uint64
	bad              float64

	to, truth, topic, brokers, compression string
	partitions, replication                int
	wait, drain, progress                  time.Duration
	batch, connections                     int
	report, resume                         string
}

// seconds is a flag that is a time as in 5s, or a number of seconds.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		d, err = time.ParseDuration(text + "s")
	}
	if err != nil {
		return errors.New("want a time as in 5s or 10m, or a number of seconds")
	}
	*s = seconds(d)
	return nil
}

func (f *datacenterFlags) flags(fs *flag.FlagSet) {
	f.interval, f.backfillInterval = -1, seconds(5*time.Minute)
	fs.StringVar(&f.config, "config", "normal", "numbers to begin with: "+strings.Join(datacenter.Names(), ", "))
	fs.StringVar(&f.set, "config-set", "h", "which numbers a configuration stands for: h, or s, which are smaller and noisier")
	fs.Uint64Var(&f.seed, "seed", 1, "seed of the entities, their noise and their anomalies")
	fs.IntVar(&f.servers, "servers", -1, "servers (default the configuration's)")
	fs.IntVar(&f.services, "services", -1, "services (default the configuration's)")
	fs.Var(&f.interval, "interval", "time between the readings of an entity, as 5s or a number of seconds (default the configuration's)")
	fs.Float64Var(&f.probability, "anomaly-probability", -1, "of an anomaly to begin at an entity at one interval, 0 to 1 (default the configuration's)")
	var kinds []string
	for _, t := range datacenter.Types() {
		kinds = append(kinds, t.String())
	}
	fs.StringVar(&f.anomalies, "anomaly-types", "", "comma separated, all, none, or of "+strings.Join(kinds, ", ")+" (default the configuration's)")
	fs.Float64Var(&f.historyShare, "backfill-anomalies", datacenter.DefaultHistoryShare, "largest share of the time that an entity's history is anomalous")

	fs.StringVar(&f.drift, "drift", "none", "a change for good: power (the same work takes more of it), workload (more work), cooling (the same work gets hotter)")
	fs.StringVar(&f.driftAt, "drift-at", "0s", "when the drift begins: a time, or how long after the start of the present")
	fs.Float64Var(&f.driftSize, "drift-size", 0.3, "by how much, as a share")
	fs.DurationVar(&f.driftOver, "drift-over", 0, "how long the drift takes to be whole; 0 is at once")

	fs.StringVar(&f.start, "start", "", "start of the present: now, 2006-01-02, 2006-01-02T15:04:05Z (default see above)")
	fs.Float64Var(&f.backfillDays, "backfill-days", 0, "days of history to send first")
	fs.Var(&f.backfillInterval, "backfill-interval", "time between the readings of an entity's history")
	fs.Var(&f.duration, "duration", "stop after so much of the present; 0 is no limit, and with -backfill-days and -rate 0 ends with the history")
	fs.Float64Var(&f.rate, "rate", -1, "messages a second; 0 is as fast as possible; below 0 is as the clock says")
	fs.Uint64Var(&f.count, "count", 0, "stop at this number of messages, those of an earlier run that is resumed included; 0 is no limit")
	fs.Float64Var(&f.bad, "bad", 0, "share of the readings that come out wrong, in one of these ways: "+strings.Join(wrongs[:], ", "))

	fs.StringVar(&f.to, "to", "kafka", "kafka, an http address that takes CloudEvents, a file of lines (CSV if its name ends in .csv, else JSON), or - for standard output")
	fs.StringVar(&f.truth, "truth", "", "where the ground truth goes: none, or a file of lines (default the topic with "+truthSuffix+" at its end for kafka, else none)")
	fs.StringVar(&f.topic, "topic", datacenterTopic, "Kafka topic")
	fs.StringVar(&f.brokers, "brokers", "", "Kafka brokers as host:port, comma separated (default KAFKA_BROKERS, or localhost:9092)")
	fs.StringVar(&f.compression, "compression", "snappy", "record compression: none, gzip, snappy, lz4, zstd")
	fs.IntVar(&f.partitions, "partitions", datacenterPartitions, "partitions of the topic if it has to be made")
	fs.IntVar(&f.replication, "replication", -1, "replicas of the topics if they have to be made; -1 is the cluster's default")
	fs.DurationVar(&f.wait, "wait", time.Minute, "how long to wait for Kafka at the start")
	fs.DurationVar(&f.drain, "drain", 30*time.Second, "how long to wait for acknowledgements at the end")
	fs.DurationVar(&f.progress, "progress", 10*time.Second, "time between lines about the progress; 0 is none")
	fs.IntVar(&f.batch, "http-batch", 1, "events a request at most; with 1 each is sent in the binary mode, else in the batch mode")
	fs.IntVar(&f.connections, "http-connections", 8, "requests under way at most")
	fs.StringVar(&f.report, "report", "", "write the final report, in JSON, to this file instead of standard output")
	fs.StringVar(&f.resume, "resume", "", "keep the progress in this file and go on from it: the history is not sent again, and the time since is filled, in steps of -backfill-interval where it is long")
}

// simulation completes the flags. kept is of an earlier run, nil if there is none.
func (f *datacenterFlags) simulation(now time.Time, kept *datacenterProgress) (datacenter.Config, error) {
	c, err := datacenter.Named(f.config, f.set)
	if err != nil {
		return c, fmt.Errorf("-config, -config-set: %w", err)
	}
	c.Seed, c.HistoryShare = f.seed, f.historyShare
	if f.servers >= 0 {
		c.Servers = f.servers
	}
	if f.services >= 0 {
		c.Services = f.services
	}
	if f.interval >= 0 {
		c.Interval = time.Duration(f.interval)
	}
	if f.probability >= 0 {
		c.AnomalyProbability = f.probability
	}
	switch f.anomalies {
	case "":
	case "all":
		c.Anomalies = datacenter.Types()
	case "none":
		c.Anomalies = nil
	default:
		c.Anomalies = nil
		for name := range strings.SplitSeq(f.anomalies, ",") {
			t, ok := datacenter.ParseType(strings.TrimSpace(name))
			if !ok {
				return c, fmt.Errorf("-anomaly-types: there is no type %q", name)
			}
			c.Anomalies = append(c.Anomalies, t)
		}
	}
	switch {
	case f.backfillDays < 0 || f.backfillInterval < seconds(time.Millisecond):
		return c, errors.New("-backfill-days must not be negative, -backfill-interval must be at least 1ms")
	case f.duration < 0:
		return c, errors.New("-duration must not be negative")
	case !(f.bad >= 0 && f.bad <= 1):
		return c, fmt.Errorf("-bad must be between 0 and 1, got %v", f.bad)
	case f.csv() && f.bad > 0:
		return c, errors.New("-bad is for messages, of which CSV cannot show all that is wrong")
	case c.Interval < time.Millisecond:
		return c, fmt.Errorf("-interval must be at least 1ms, got %s", c.Interval)
	}
	switch {
	case kept != nil:
		c.LiveFrom = time.Unix(0, kept.LiveFrom)
	case f.start == "now" || f.start == "" && f.rate < 0:
		c.LiveFrom = now
	case f.start == "":
		c.LiveFrom = unpacedMonday
	default:
		if c.LiveFrom, err = parseStart(f.start); err != nil {
			return c, err
		}
	}
	c.LiveFrom = c.LiveFrom.UTC().Truncate(c.Interval)
	kind, ok := datacenter.ParseDriftKind(f.drift)
	if !ok {
		return c, fmt.Errorf("-drift: there is no kind %q", f.drift)
	}
	if c.Drift = (datacenter.Drift{Kind: kind, Size: f.driftSize, Over: f.driftOver}); kind != datacenter.NoDrift {
		if after, err := time.ParseDuration(f.driftAt); err == nil {
			c.Drift.At = c.LiveFrom.Add(after)
		} else if c.Drift.At, err = parseStart(f.driftAt); err != nil {
			return c, fmt.Errorf("-drift-at %q is neither a time nor a duration", f.driftAt)
		}
	}
	return c, nil
}

// csv tells whether a CSV file is asked for.
func (f *datacenterFlags) csv() bool { return strings.HasSuffix(f.to, ".csv") }

// entities says whose readings a run sends: those of one description have one history.
func entities(c *datacenter.Config) string {
	return fmt.Sprintf("datacenter -seed %d -servers %d -services %d -interval %s", c.Seed, c.Servers, c.Services, c.Interval)
}

// datacenterProgress is the content of the -resume file.
type datacenterProgress struct {
	Stream string `json:"stream"`
	// LiveFrom and Next are in nanoseconds since the epoch; all readings before Next
	// were acknowledged.
	LiveFrom int64 `json:"live_from"`
	Next     int64 `json:"next"`
	// Messages is the number of the next message.
	Messages uint64 `json:"messages"`
}

func loadDatacenterProgress(path string) (*datacenterProgress, error) {
	if path == "" {
		return nil, nil
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p datacenterProgress
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, fmt.Errorf("%s is not a file of -resume: %w", path, err)
	}
	return &p, nil
}

// save replaces the file as a whole, so that a kill leaves the old one or the new.
func (p *datacenterProgress) save(path string) error {
	content, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func runDatacenter(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("datacenter", flag.ContinueOnError)
	var f datacenterFlags
	f.flags(fs)
	if done, err := parse(fs, args, datacenterAbout, stdout, stderr); done || err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	kept, err := loadDatacenterProgress(f.resume)
	if err != nil {
		return err
	}
	now := time.Now()
	cfg, err := f.simulation(now, kept)
	if err != nil {
		return err
	}
	if kept != nil && kept.Stream != entities(&cfg) {
		log.Warn("the settings are others than before: beginning anew", "before", kept.Stream, "now", entities(&cfg))
		kept = nil
		if cfg, err = f.simulation(now, nil); err != nil {
			return err
		}
	}
	sim, err := datacenter.New(cfg)
	if err != nil {
		return err
	}
	m := &meter{flags: &f, sim: sim, cfg: cfg, log: log, kept: kept, stream: entities(&cfg)}
	return m.run(ctx, now, stdout, stderr)
}

// phase is a stretch of time that is read in equal steps.
type phase struct {
	from, until time.Time // until is exclusive; the zero time is no end
	step        time.Duration
	paced       bool
}

// phases are what is to be sent: the history, or what was missed, and the present.
func (m *meter) phases(now time.Time) []phase {
	live := m.cfg.LiveFrom
	back := time.Duration(m.flags.backfillInterval)
	present := phase{from: live, step: m.cfg.Interval, paced: m.flags.rate < 0}
	if m.flags.duration > 0 {
		present.until = live.Add(time.Duration(m.flags.duration))
	}
	first := live
	if m.flags.backfillDays > 0 {
		first = live.Add(-time.Duration(m.flags.backfillDays * float64(24*time.Hour))).Truncate(back)
	}
	if m.kept != nil {
		first = time.Unix(0, m.kept.Next).UTC()
	}
	var list []phase
	if first.Before(live) {
		list = append(list, phase{from: first, until: live, step: back})
		first = live
	}
	if m.kept != nil && present.paced {
		// Many steps of the present that were missed become few.
		if missed := now.Sub(first); missed > 2*back && back > present.step {
			from := first.Truncate(back)
			if from.Before(first) {
				from = from.Add(back)
			}
			first = now.UTC().Truncate(present.step)
			list = append(list, phase{from: from, until: first, step: back})
		}
	}
	present.from = first
	if m.flags.rate == 0 && m.flags.duration == 0 && m.flags.count == 0 && len(list) > 0 {
		return list // nobody wants an endless future
	}
	return append(list, present)
}

// meter sends readings.
type meter struct {
	flags  *datacenterFlags
	sim    *datacenter.Sim
	cfg    datacenter.Config
	log    *slog.Logger
	kept   *datacenterProgress
	stream string

	to    target.Target
	truth *truthLog
	// began is when the first message was sent, paced by a rate.
	began  time.Time
	report report
	wrong  [len(wrongs)]uint64
	slab   []byte // messages are cut from it; what is cut off is never written again

	server  datacenter.ServerReading
	service datacenter.ServiceReading
	// firstTime and lastTime are of the readings that were sent.
	firstTime, lastTime time.Time
	marks               marks
}

// errEnough ends a run whose -count is reached or whose context is done.
var errEnough = errors.New("enough")

func (m *meter) run(ctx context.Context, now time.Time, stdout, stderr io.Writer) error {
	phases := m.phases(now)
	first := uint64(0)
	if m.kept != nil {
		first = m.kept.Messages
	}
	where, err := m.open(ctx, first, stdout)
	if err != nil {
		return err
	}
	m.report = report{Stream: m.stream, Target: where, First: first, Next: first, Types: map[string]uint64{}, Kinds: map[string]uint64{}, Ops: map[string]uint64{}}
	m.marks.reset(datacenterProgress{Stream: m.stream, LiveFrom: m.cfg.LiveFrom.UnixNano(), Next: phases[0].from.UnixNano(), Messages: first})
	m.log.Info("sending", "to", where, "from", phases[0].from, "present_from", m.cfg.LiveFrom, "servers", m.cfg.Servers, "services", m.cfg.Services, "interval", m.cfg.Interval)
	m.began = time.Now()
	stopWatching := m.watch()
	var sendErr error
	for _, p := range phases {
		if sendErr = m.send(ctx, p); sendErr != nil {
			break
		}
	}
	if errors.Is(sendErr, errEnough) {
		sendErr = nil
	}
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.flags.drain)
	defer cancel()
	closeErr := errors.Join(m.to.Close(draining), m.truth.close(draining))
	stopWatching()

	r := &m.report
	r.Seconds = time.Since(m.began).Seconds()
	r.Outcome = m.to.Outcome()
	r.Complete = r.Outcome.Complete()
	r.PerSecond = float64(r.Next-r.First) / r.Seconds
	r.Good = r.Next - r.First
	for i, n := range m.wrong {
		if n > 0 {
			r.Kinds[wrongs[i]] = n
			r.Bad += n
			r.Good -= n
		}
	}
	r.Kinds["good"] = r.Good
	if r.Next > r.First {
		r.FirstEventTime, r.LastEventTime = m.firstTime.UTC().Format(time.RFC3339), m.lastTime.UTC().Format(time.RFC3339)
	}
	if !r.Complete && closeErr == nil {
		closeErr = errors.New("not every message was delivered, see the report")
	}
	if m.flags.to == "-" {
		stdout = stderr
	}
	return errors.Join(sendErr, closeErr, m.save(), r.write(m.flags.report, stdout))
}

// open opens where messages and truth go.
func (m *meter) open(ctx context.Context, first uint64, stdout io.Writer) (where string, err error) {
	f := m.flags
	m.truth = &truthLog{}
	if f.truth != "" && f.truth != "none" {
		file, err := os.OpenFile(f.truth, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
		if err != nil {
			return "", fmt.Errorf("-truth: %w", err)
		}
		m.truth.to, m.truth.file = target.NewLines(file, 0), file
	}
	switch {
	case f.to == "-":
		m.to = target.NewLines(stdout, first)
		return "standard output", nil
	case strings.HasPrefix(f.to, "http://") || strings.HasPrefix(f.to, "https://"):
		m.to, err = target.NewHTTP(target.HTTPConfig{
			URL: f.to, Source: fmt.Sprintf("/loadgen/datacenter/%d/%d", f.seed, m.cfg.LiveFrom.Unix()), Type: events.MetricRaw,
			First: first, Batch: f.batch, Connections: f.connections,
		})
		if err != nil {
			return "", fmt.Errorf("-to: %w", err)
		}
		return f.to, nil
	case f.to != "kafka":
		mode := os.O_TRUNC
		if m.kept != nil {
			mode = os.O_APPEND
		}
		file, err := os.OpenFile(f.to, os.O_CREATE|os.O_WRONLY|mode, 0o644)
		if err != nil {
			return "", fmt.Errorf("-to: %w", err)
		}
		if f.csv() {
			if at, err := file.Seek(0, io.SeekEnd); err != nil {
				return "", fmt.Errorf("-to: %w", err)
			} else if at == 0 {
				if _, err := file.WriteString(csvHeader()); err != nil {
					return "", fmt.Errorf("-to: %w", err)
				}
			}
		}
		m.to = lineFile{target.NewLines(file, first), file}
		return f.to, nil
	}

	if err := target.CheckCompression(f.compression); err != nil {
		return "", fmt.Errorf("-compression: %w", err)
	}
	k := output{brokers: f.brokers, partitions: f.partitions, replication: f.replication, wait: f.wait}
	brokers, options, err := k.kafka()
	if err != nil {
		return "", err
	}
	open := func(topic string, partitions int, first uint64) (target.Target, error) {
		k.partitions = partitions
		if err := k.makeTopic(ctx, topic, brokers, options, m.log); err != nil {
			return nil, err
		}
		return target.NewKafka(target.KafkaConfig{Options: slices.Clone(options), Topic: topic, First: first, Compression: f.compression, Logger: m.log})
	}
	if m.to, err = open(f.topic, f.partitions, first); err != nil {
		return "", err
	}
	if f.truth == "" {
		if m.truth.to, err = open(f.topic+truthSuffix, 1, 0); err != nil {
			return "", err
		}
	}
	return "topic " + f.topic + " at " + brokers, nil
}

// lineFile closes its file.
type lineFile struct {
	*target.Lines
	file *os.File
}

func (l lineFile) Close(ctx context.Context) error {
	return errors.Join(l.Lines.Close(ctx), l.file.Close())
}

// truthLog is where the ground truth goes, if anywhere.
type truthLog struct {
	to   target.Target
	file *os.File
	next uint64
}

func (t *truthLog) send(ctx context.Context, key string, value []byte) error {
	if t.to == nil {
		return nil
	}
	err := t.to.Send(ctx, target.Message{Seq: t.next, Key: []byte(key), Value: value})
	if err == nil {
		t.next++
	}
	return err
}

func (t *truthLog) close(ctx context.Context) error {
	if t.to == nil {
		return nil
	}
	err := t.to.Close(ctx)
	if o := t.to.Outcome(); err == nil && !o.Complete() {
		err = fmt.Errorf("not all of the ground truth was delivered: %+v", o)
	}
	if t.file != nil {
		err = errors.Join(err, t.file.Close())
	}
	return err
}

// send sends the readings of a phase.
func (m *meter) send(ctx context.Context, p phase) error {
	for t := p.from; p.until.IsZero() || t.Before(p.until); t = t.Add(p.step) {
		if p.paced && !pause(ctx, time.Now(), time.Until(t)) {
			return errEnough
		}
		if d := &m.cfg.Drift; d.Kind != datacenter.NoDrift && !t.Before(d.At) && t.Add(-p.step).Before(d.At) {
			if err := m.truth.send(ctx, "drift", d.AppendJSON(nil)); err != nil {
				return errEnough
			}
		}
		for i := range m.cfg.Servers {
			m.sim.Server(i, t, &m.server)
			if err := m.reading(ctx, p, t, "server_metric", m.server.Server, m.server.Anomaly, m.server.AppendJSON); err != nil {
				return err
			}
		}
		for i := range m.cfg.Services {
			m.sim.Service(i, t, &m.service)
			if err := m.reading(ctx, p, t, "application_metric", m.service.Server, m.service.Anomaly, m.service.AppendJSON); err != nil {
				return err
			}
		}
		m.marks.add(m.report.Next, t.Add(p.step).UnixNano())
	}
	return nil
}

// reading sends one, and before the first of an anomaly what is true of it.
func (m *meter) reading(ctx context.Context, p phase, t time.Time, typ, server string, anomaly *datacenter.Episode, write func([]byte) []byte) error {
	if m.flags.count > 0 && m.report.Next >= m.flags.count {
		return errEnough
	}
	if m.flags.rate > 0 && !pause(ctx, m.began, time.Duration(float64(m.report.Next-m.report.First)/m.flags.rate*float64(time.Second))) {
		return errEnough
	}
	if anomaly != nil && t.Add(-p.step).Before(anomaly.Start) {
		if err := m.truth.send(ctx, anomaly.Entity, anomaly.AppendJSON(nil, p.step)); err != nil {
			return errEnough
		}
	}
	const slabSize, longest = 1 << 20, 4 << 10
	if cap(m.slab)-len(m.slab) < longest {
		m.slab = make([]byte, 0, slabSize)
	}
	m.slab = append(m.slab, server...)
	key := m.cut()
	m.slab = write(m.slab)
	if i, ok := m.spoils(m.report.Next); ok {
		m.slab = spoil(m.slab, i)
		m.wrong[i]++
	}
	value := m.cut()
	if m.flags.csv() {
		var err error
		if m.slab, err = appendCSV(m.slab, value); err != nil {
			return err
		}
		value = m.cut()
	}
	if m.to.Send(ctx, target.Message{Seq: m.report.Next, Key: key, Value: value}) != nil {
		return errEnough // only because ctx is done
	}
	m.report.Next++
	m.report.Types[typ]++
	m.report.Bytes += uint64(len(value))
	if m.firstTime.IsZero() {
		m.firstTime = t
	}
	m.lastTime = t
	return nil
}

// cut takes what was written off the slab.
func (m *meter) cut() []byte {
	n := len(m.slab)
	piece := m.slab[:n:n]
	m.slab = m.slab[n:]
	return piece
}

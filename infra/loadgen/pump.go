package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shape"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/target"
)

// limits holds the flags that say how fast, how much, and what is told of it.
type limits struct {
	rate            float64
	count           uint64
	duration, drain time.Duration
	progress        time.Duration
	report, truth   string
	resume          string
}

func (l *limits) flags(fs *flag.FlagSet, rate float64) {
	fs.Float64Var(&l.rate, "rate", rate, "messages a second; 0 is as fast as possible")
	fs.Uint64Var(&l.count, "count", 0, "stop at this number of messages, those of an earlier run that is resumed included; 0 is no limit")
	fs.DurationVar(&l.duration, "duration", 0, "stop after this time; 0 is no limit")
	fs.DurationVar(&l.drain, "drain", 30*time.Second, "how long to wait for acknowledgements at the end")
	fs.DurationVar(&l.progress, "progress", 10*time.Second, "time between lines about the progress; 0 is none")
	fs.StringVar(&l.report, "report", "", "write the final report, in JSON, to this file instead of standard output")
	fs.StringVar(&l.truth, "truth", "", "write what each message is to this file, one JSON object a line: seq, kind, op and the event's identity")
	fs.StringVar(&l.resume, "resume", "", "keep the progress in this file and go on from it; a run that was killed sends at most the messages again that were not yet known to be acknowledged")
}

func (l *limits) check() error {
	if !(l.rate >= 0) {
		return fmt.Errorf("-rate must be at least 0, got %v", l.rate)
	}
	return nil
}

// report is what is told at the end.
type report struct {
	// Stream are the settings that decide the messages; the same give the same.
	Stream string `json:"stream"`
	Target string `json:"target"`
	// First and Next bound the numbers of this run's messages: First <= seq < Next.
	First uint64 `json:"first"`
	Next  uint64 `json:"next"`
	// Good, Bad and Kinds count messages by what a validator has to say of them.
	Good  uint64            `json:"good"`
	Bad   uint64            `json:"bad"`
	Kinds map[string]uint64 `json:"kinds"`
	// Types and Ops count events and, in CDC formats, changes.
	Types map[string]uint64 `json:"types"`
	Ops   map[string]uint64 `json:"ops"`
	// Bytes are the messages' values.
	Bytes          uint64 `json:"bytes"`
	FirstEventTime string `json:"first_event_time,omitempty"`
	LastEventTime  string `json:"last_event_time,omitempty"`
	target.Outcome
	Complete  bool    `json:"complete"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"messages_per_second"`
	// Lines is of a replayed file.
	Lines *lineReport `json:"lines,omitempty"`
}

// pump sends a stream.
type pump struct {
	limits
	*maker
	// next yields the stream's events; io.EOF ends it.
	next func(*shop.Event) error
	// speed paces by event time: so many seconds of it a second. 0 is by rate.
	speed  float64
	stream string    // see report
	kept   *progress // of the run to go on from; nil starts afresh
	lines  *lineReport
	log    *slog.Logger
}

// progress is the content of the -resume file.
type progress struct {
	Stream string `json:"stream"`
	Start  int64  `json:"start"` // of a simulation, in seconds since the epoch
	Next   uint64 `json:"next"`
}

// loadProgress reads a -resume file; one that is not there is a fresh start.
func loadProgress(path string) (*progress, error) {
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
	var p progress
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, fmt.Errorf("%s is not a file of -resume: %w", path, err)
	}
	return &p, nil
}

func (p progress) save(path string) error {
	content, err := json.Marshal(p)
	if err != nil {
		return err
	}
	// Renamed into place, so that a kill leaves the old file or the new one.
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// run sends the stream until it or a limit ends, or ctx is done, then waits for
// the acknowledgements and reports.
func (p *pump) run(ctx context.Context, out *output, source string, start int64, stdout, stderr io.Writer) (err error) {
	first := uint64(0)
	if p.kept != nil {
		if p.kept.Stream != p.stream {
			return fmt.Errorf("%s belongs to another stream:\n  there %s\n  here  %s", p.resume, p.kept.Stream, p.stream)
		}
		first = p.kept.Next
	}
	to, where, err := out.target(ctx, source, first, stdout, p.log)
	if err != nil {
		return err
	}
	truth, err := openTruth(p.truth)
	if err != nil {
		return err
	}

	r := report{Stream: p.stream, Target: where, First: first, Next: first,
		Kinds: map[string]uint64{}, Types: map[string]uint64{}, Ops: map[string]uint64{}, Lines: p.lines}
	p.log.Info("sending", "to", where, "from", first)
	stopWatching := p.watch(to, start)
	began := time.Now()
	sendErr := p.send(ctx, to, &r, truth, began)
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.drain)
	defer cancel()
	closeErr := to.Close(draining)
	stopWatching()

	r.Seconds = time.Since(began).Seconds()
	r.Outcome = to.Outcome()
	r.Complete = r.Outcome.Complete()
	r.PerSecond = float64(r.Next-r.First) / r.Seconds
	var saveErr error
	if p.resume != "" {
		saveErr = progress{p.stream, start, r.Settled}.save(p.resume)
	}
	outcomeErr := closeErr
	if !r.Complete && closeErr == nil {
		outcomeErr = errors.New("not every message was delivered, see the report")
	}
	if out.stdout {
		stdout = stderr
	}
	return errors.Join(sendErr, outcomeErr, saveErr, truth.close(), r.write(p.report, stdout))
}

// send makes messages and hands them over.
func (p *pump) send(ctx context.Context, to target.Target, r *report, truth *truthFile, began time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, p.duration)
		defer cancel()
	}
	var kinds [shape.Kinds + 1]uint64
	var types [len(shop.TypeNames)]uint64
	var ops [256]uint64
	var firstTime, lastTime int64
	defer func() {
		if r.Next > r.First {
			r.FirstEventTime, r.LastEventTime = shop.FormatTime(firstTime), shop.FormatTime(lastTime)
		}
		for k, n := range kinds {
			if n > 0 {
				r.Kinds[shape.Kind(k).String()] = n
				r.Bad += n
			}
		}
		r.Good = kinds[shape.Good]
		r.Bad -= r.Good
		for t, n := range types {
			if n > 0 {
				r.Types[shop.TypeNames[t]] = n
			}
		}
		for op, n := range &ops {
			if n > 0 {
				r.Ops[string(rune(op))] = n
			}
		}
	}()

	var ev shop.Event
	for seq := uint64(0); ; {
		if p.count > 0 && seq >= p.count {
			return nil
		}
		if err := p.next(&ev); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		for _, c := range p.changes.Insert(&ev) {
			if p.count > 0 && seq >= p.count {
				return nil
			}
			if seq < r.First {
				seq++
				continue
			}
			row := c.Row()
			if seq == r.First {
				firstTime = ev.Time
			}
			var due time.Duration
			if p.speed > 0 {
				due = time.Duration(float64(ev.Time-firstTime) / p.speed * float64(time.Second))
			} else if p.rate > 0 {
				due = time.Duration(float64(seq-r.First) / p.rate * float64(time.Second))
			}
			if !pause(ctx, began, due) {
				return nil
			}
			kind := p.kind(&c, seq)
			key, value := p.write(&c, kind)
			if to.Send(ctx, target.Message{Seq: seq, Key: key, Value: value}) != nil {
				return nil // only because ctx is done
			}
			kinds[kind]++
			types[row.Type]++
			ops[c.Op]++
			r.Bytes += uint64(len(value))
			r.Next = seq + 1
			lastTime = ev.Time
			if err := truth.write(seq, kind, &c); err != nil {
				return err
			}
			seq++
		}
	}
}

// pause waits until due after began. It tells whether to go on. Times closer than
// a millisecond are taken together: at high rates the timer would cost more than
// the messages.
func pause(ctx context.Context, began time.Time, due time.Duration) bool {
	if due == 0 {
		return ctx.Err() == nil
	}
	left := due - time.Since(began)
	if left < time.Millisecond {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch logs the progress and keeps the -resume file current until stopped.
func (p *pump) watch(to target.Target, start int64) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	const saving = time.Second
	go func() {
		defer close(done)
		save := time.NewTicker(saving)
		defer save.Stop()
		tell := make(<-chan time.Time)
		if p.progress > 0 {
			ticker := time.NewTicker(p.progress)
			defer ticker.Stop()
			tell = ticker.C
		}
		last := to.Outcome()
		for {
			select {
			case <-quit:
				return
			case <-save.C:
				if p.resume != "" {
					if err := (progress{p.stream, start, to.Outcome().Settled}).save(p.resume); err != nil {
						p.log.Warn("keeping the progress failed", "file", p.resume, "error", err)
					}
				}
			case <-tell:
				now := to.Outcome()
				if now.Delivered == last.Delivered && now.Unsettled > 0 {
					ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
					p.log.Warn("no message is acknowledged", "waiting", now.Unsettled, "error", to.Check(ctx))
					cancel()
				} else {
					p.log.Info("progress", "delivered", now.Delivered,
						"a_second", strconv.FormatFloat(float64(now.Delivered-last.Delivered)/p.progress.Seconds(), 'f', 0, 64),
						"waiting", now.Unsettled, "refused", len(now.Refused))
				}
				last = now
			}
		}
	}()
	return func() { close(quit); <-done }
}

func (r *report) write(path string, stdout io.Writer) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	content = append(content, '\n')
	if path != "" {
		return os.WriteFile(path, content, 0o644)
	}
	_, err = stdout.Write(content)
	return err
}

// truthFile tells what each message is; nil tells nothing.
type truthFile struct {
	file *os.File
	out  *bufio.Writer
	buf  []byte
}

func openTruth(path string) (*truthFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &truthFile{file: f, out: bufio.NewWriterSize(f, 1<<20)}, nil
}

func (t *truthFile) write(seq uint64, kind shape.Kind, c *shape.Change) error {
	if t == nil {
		return nil
	}
	row := c.Row()
	session, err := json.Marshal(row.Session)
	if err != nil {
		return err
	}
	b := strconv.AppendUint(append(t.buf[:0], `{"seq":`...), seq, 10)
	b = append(append(b, `,"kind":"`...), kind.String()...)
	b = append(append(b, `","op":"`...), c.Op)
	b = append(append(b, `","user_session":`...), session...)
	b = append(append(b, `,"event_time":"`...), shop.FormatTime(row.Time)...)
	b = strconv.AppendInt(append(b, `","product_id":`...), row.Product.ID, 10)
	b = append(append(b, `,"event_type":"`...), row.Type.String()...)
	t.buf = append(b, '"', '}', '\n')
	_, err = t.out.Write(t.buf)
	return err
}

func (t *truthFile) close() error {
	if t == nil {
		return nil
	}
	return errors.Join(t.out.Flush(), t.file.Close())
}

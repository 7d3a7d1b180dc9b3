package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/csvfile"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

const shopAbout = `Simulates a shop's customers and sends what they do.

The messages are a function of the flags: the same seed, start, density and
sizes give the same ones again, in any format and at any rate. An event is
identified by its session and time; -truth writes down what each message is.

Without -start, a paced run starts now and its event times keep to the clock on
the wall; an unpaced one (-rate 0) starts at 2019-10-01, so that it does not run
into the future. A live run that is resumed with other settings, or more than a
minute after it stopped, starts a new stream.

  loadgen shop -rate 500                           500 a second, to KAFKA_BROKERS
  loadgen shop -rate 0 -count 1000000 -bad 0.1     a million, as fast as possible
  loadgen shop -count 3 -stdout -bad-kinds price_negative
  loadgen shop -url http://localhost:8080 -http-batch 100 -duration 1m
  loadgen shop -format cdc-full -key pk            Debezium's messages
  loadgen shop -to postgres -rate 10               rows, updates and deletes in DATABASE_URL
  loadgen shop -count 100000 -to-csv events.csv.gz`

// firstDay is where unpaced runs start: the first day of the public clickstream.
var firstDay = time.Date(2019, 10, 1, 0, 0, 0, 0, time.UTC)

// densityUnpaced is about that of the public clickstream, in events a second.
const densityUnpaced = 20

// shopFlags decide the simulated stream.
type shopFlags struct {
	seed            uint64
	start           string
	density         float64
	daily           bool
	products, users int
}

func (f *shopFlags) flags(fs *flag.FlagSet) {
	fs.Uint64Var(&f.seed, "seed", 1, "seed of the catalogue and, together with the start, of the customers")
	fs.StringVar(&f.start, "start", "", "time of the first event: now, 2006-01-02, 2006-01-02T15:04:05Z or \"2006-01-02 15:04:05 UTC\" (default see above)")
	fs.Float64Var(&f.density, "density", 0, "events a second of event time (default the rate, or 20 with -rate 0)")
	fs.BoolVar(&f.daily, "daily", false, "let the density follow the hour of the day, -density being the mean")
	fs.IntVar(&f.products, "products", 20_000, "size of the catalogue")
	fs.IntVar(&f.users, "users", 100_000, "size of the clientele")
}

// live tells that the event times follow the clock on the wall.
func (f *shopFlags) live(rate float64) bool {
	return f.start == "now" || f.start == "" && rate > 0
}

// config completes the flags.
func (f *shopFlags) config(rate float64) (shop.Config, error) {
	cfg := shop.Config{Seed: f.seed, Density: f.density, Products: f.products, Users: f.users, Daily: f.daily}
	if cfg.Density == 0 {
		cfg.Density = rate
	}
	if cfg.Density == 0 {
		cfg.Density = densityUnpaced
	}
	var err error
	switch {
	case f.live(rate):
		cfg.Start = time.Now().Truncate(time.Second)
	case f.start == "":
		cfg.Start = firstDay
	default:
		cfg.Start, err = parseStart(f.start)
	}
	return cfg, err
}

// stale is how far the event times of a live stream may be behind when it is gone
// on with.
const stale = time.Minute

// goOn decides whether a live stream goes on where an earlier run stopped. After
// a longer pause, or with other settings, a new one starts instead: live event
// times have to be close to now, and the old stream's messages were all sent.
func goOn(kept *progress, cfg *shop.Config, stream func(shop.Config) string) bool {
	old := *cfg
	old.Start = time.Unix(kept.Start, 0)
	reached := old.Start.Add(time.Duration(float64(kept.Next) / cfg.Density * float64(time.Second)))
	if stream(old) != kept.Stream || time.Since(reached).Abs() > stale {
		return false
	}
	*cfg = old
	return true
}

func parseStart(s string) (time.Time, error) {
	for _, layout := range []string{time.DateOnly, time.RFC3339, shop.TimeLayout, time.DateTime} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Truncate(time.Second), nil
		}
	}
	return time.Time{}, fmt.Errorf("-start %q is not a time, want for example 2019-10-01 or 2019-10-01T12:00:00Z", s)
}

func runShop(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("shop", flag.ContinueOnError)
	var sim shopFlags
	var out output
	var p pump
	var toCSV string
	sim.flags(fs)
	out.flags(fs, 0.1)
	p.limits.flags(fs, 20)
	fs.StringVar(&toCSV, "to-csv", "", "write the events to this CSV file, gzipped if it ends in .gz, instead of messages to Kafka; none is made bad")
	if done, err := parse(fs, args, shopAbout, stdout, stderr); done || err != nil {
		return err
	}
	if err := errors.Join(p.limits.check(), out.complete()); err != nil {
		return err
	}
	kept, err := loadProgress(p.resume)
	if err != nil {
		return err
	}
	cfg, err := sim.config(p.rate)
	if err != nil {
		return err
	}
	stream := func(cfg shop.Config) string {
		return fmt.Sprintf("shop -seed %d -start %s -density %v -daily=%t -products %d -users %d %s",
			cfg.Seed, cfg.Start.UTC().Format(time.RFC3339), cfg.Density, cfg.Daily, cfg.Products, cfg.Users, out.stream())
	}
	if kept != nil && sim.live(p.rate) && !goOn(kept, &cfg, stream) {
		kept = nil
	}
	customers, err := shop.New(cfg)
	if err != nil {
		return err
	}
	if toCSV != "" {
		return writeCSV(ctx, customers, p.count, toCSV)
	}
	if p.maker, err = out.maker(sim.seed); err != nil {
		return err
	}
	p.next = func(ev *shop.Event) error { customers.Next(ev); return nil }
	p.log = slog.New(slog.NewTextHandler(stderr, nil))
	p.stream, p.kept = stream(cfg), kept
	source := fmt.Sprintf("/loadgen/shop/%d/%d", cfg.Seed, cfg.Start.Unix())
	return p.run(ctx, &out, source, cfg.Start.Unix(), stdout, stderr)
}

// stream are the flags that decide the messages.
func (o *output) stream() string {
	s := fmt.Sprintf("-format %s -bad %v -bad-kinds %s", o.format, o.bad, strings.ReplaceAll(o.badKinds, " ", ""))
	if o.format != "connect" {
		s += fmt.Sprintf(" -cdc-time %s -cdc-updates %v -cdc-deletes %v", o.timeText, o.updates, o.deletes)
	}
	return s
}

func writeCSV(ctx context.Context, customers *shop.Sim, count uint64, path string) (err error) {
	if count == 0 {
		return errors.New("-to-csv needs a -count")
	}
	w, err := csvfile.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	var ev shop.Event
	for range count {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted, %s is not complete", path)
		}
		customers.Next(&ev)
		if err := w.Write(&ev); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}

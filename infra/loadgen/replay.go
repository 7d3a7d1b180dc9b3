package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/csvfile"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

const replayAbout = `Sends the events of a CSV file again.

The file, plain or gzipped, has the columns of the public "eCommerce behavior
data from multi category store": event_time, event_type, product_id,
category_id, category_code, brand, price, user_id, user_session. Lines that are
no events are told with their number, counted and skipped. Events whose price is
not above 0 are sent as they are and counted as bad.

  loadgen replay -csv 2019-Oct.csv.gz -rate 5000
  loadgen replay -csv 2019-Oct.csv.gz -speed 60    a minute of event time a second
  loadgen replay -csv sample.csv -bad 0.1 -bad-kinds price_negative`

// lineReport counts the lines of a replayed file.
type lineReport struct {
	Read  uint64 `json:"read"` // the header not included
	Wrong uint64 `json:"wrong"`
	// Examples are the first wrong lines' errors.
	Examples []string `json:"examples,omitempty"`
}

// examples bounds the wrong lines that are told one by one.
const examples = 10

func runReplay(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("replay", flag.ContinueOnError)
	var out output
	var p pump
	var path string
	var seed uint64
	out.flags(fs, 0)
	p.limits.flags(fs, 0)
	fs.StringVar(&path, "csv", "", "the file")
	fs.Float64Var(&p.speed, "speed", 0, "pace by event time: so many seconds of it a second, instead of -rate")
	fs.Uint64Var(&seed, "seed", 1, "seed of what is made bad, updated or deleted")
	if done, err := parse(fs, args, replayAbout, stdout, stderr); done || err != nil {
		return err
	}
	if err := errors.Join(p.limits.check(), out.complete()); err != nil {
		return err
	}
	switch {
	case path == "":
		return errors.New("replay needs -csv FILE")
	case p.speed < 0:
		return fmt.Errorf("-speed must be at least 0, got %v", p.speed)
	case p.speed > 0 && p.rate > 0:
		return errors.New("-speed and -rate exclude each other")
	}
	file, err := csvfile.Open(path)
	if err != nil {
		return fmt.Errorf("reading events: %w", err)
	}
	defer func() { _ = file.Close() }()
	if p.maker, err = out.maker(seed); err != nil {
		return err
	}
	p.log = slog.New(slog.NewTextHandler(stderr, nil))
	p.lines = &lineReport{}
	var product shop.Product
	p.next = func(ev *shop.Event) error {
		for {
			err := file.Read(ev, &product)
			var wrong *csvfile.LineError
			switch {
			case errors.As(err, &wrong):
				p.lines.Read++
				p.lines.Wrong++
				if len(p.lines.Examples) < examples {
					p.lines.Examples = append(p.lines.Examples, wrong.Error())
					p.log.Warn("skipping a line", "file", path, "error", wrong)
				}
			case errors.Is(err, io.EOF):
				return io.EOF
			case err != nil:
				return fmt.Errorf("%s: %w", path, err)
			default:
				p.lines.Read++
				return nil
			}
		}
	}
	if p.kept, err = loadProgress(p.resume); err != nil {
		return err
	}
	p.stream = fmt.Sprintf("replay -csv %s -seed %d %s", path, seed, out.stream())
	return p.run(ctx, &out, "/loadgen/replay/"+filepath.Base(path), 0, stdout, stderr)
}

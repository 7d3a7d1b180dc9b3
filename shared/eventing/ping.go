package eventing

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/millrace-dev/millrace/shared/events"
)

// Clock is the time that PingSources go by.
type Clock interface {
	Now() time.Time
	// At returns a channel that gets a value once the clock has reached t, and a
	// function that frees what waits for it.
	At(t time.Time) (<-chan time.Time, func())
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) At(t time.Time) (<-chan time.Time, func()) {
	timer := time.NewTimer(time.Until(t))
	return timer.C, func() { timer.Stop() }
}

// pinger sends one event at each time of a PingSource's schedule. A tick whose
// predecessor is still being delivered is left out: a sink that is away for an hour
// gets one tick when it is back, not hundreds.
type pinger struct {
	source   *PingSource
	schedule cron.Schedule
	clock    Clock
	flow     *flow
	log      *slog.Logger
	deliver  func(s scope, ms []events.Message) error
}

func (p *pinger) run(s scope) {
	busy := make(chan struct{}, 1)
	defer func() { busy <- struct{}{} }() // wait for the last delivery
	for at := p.schedule.Next(p.clock.Now()); !at.IsZero(); at = p.next(at) {
		reached, free := p.clock.At(at)
		select {
		case <-reached:
		case <-s.stop:
		case <-s.ctx.Done():
		}
		free()
		if s.err() != nil {
			return
		}
		p.flow.received.Add(1)
		select {
		case busy <- struct{}{}:
		default:
			p.log.Warn("a tick was left out, the one before it is still being delivered", "due", at)
			continue
		}
		go func() {
			defer func() { <-busy }()
			p.flow.matched.Add(1)
			_ = p.deliver(s, []events.Message{p.event(at)}) // it ends early at shutdown only
		}()
	}
}

// next is the first time of the schedule that lies in the future. Times that have
// passed meanwhile, because the machine slept, are left out.
func (p *pinger) next(last time.Time) time.Time {
	now := p.clock.Now()
	if now.Before(last) {
		now = last
	}
	return p.schedule.Next(now)
}

// event is the tick. Its id is made of the time that it is due at, so that two
// engines, or one that was started again, make the same tick of one moment.
func (p *pinger) event(at time.Time) events.Message {
	at = at.UTC()
	m := events.Message{Data: p.source.Data}
	m.Attrs = append(m.Attrs,
		events.Attr{Name: "specversion", Value: "1.0"},
		events.Attr{Name: "id", Value: "tick-" + strconv.FormatInt(at.Unix(), 10)},
		events.Attr{Name: "source", Value: p.source.Source()},
		events.Attr{Name: "type", Value: events.Tick},
		events.Attr{Name: "time", Value: at.Format(time.RFC3339Nano)},
	)
	if p.source.ContentType != "" {
		m.Attrs = append(m.Attrs, events.Attr{Name: "datacontenttype", Value: p.source.ContentType})
	}
	for _, a := range overrides(p.source.Extensions) {
		m.Set(a.Name, a.Value)
	}
	return m
}

// jobOutlet starts a JobSink's job for each event.
type jobOutlet struct {
	to      Destination
	sink    *JobSink
	start   func(ctx context.Context, sink *JobSink, name string, event events.Message) error
	started sinkCounter
}

func (j *jobOutlet) address() string { return "jobsink:///" + j.sink.Namespace + "/" + j.sink.Name }

func (j *jobOutlet) send(ctx context.Context, ms []events.Message) outcome {
	for i := range ms {
		m := &ms[i]
		if err := j.start(ctx, j.sink, j.sink.JobName(m.Get("source"), m.Get("id")), *m); err != nil {
			j.started.failure.set(err.Error())
			return outcome{err: err, detail: []byte(err.Error())}
		}
		j.started.n.Add(1)
		j.started.failure.clear()
	}
	return outcome{}
}

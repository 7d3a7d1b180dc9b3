package anomaly

import (
	"math"
	"slices"
	"time"
)

// ring is how many readings of an entity are remembered. Readings may come in any
// order within these.
const ring = 32

// State is what is remembered of an entity between its readings. The zero State is of
// an entity that nothing is known of.
type State struct {
	// Version counts the writes of the store that keeps it.
	Version uint64

	points   []point // in order, at most ring
	channels []track // indexed as the plan's Channels
	log      []said
}

// point is a reading that was seen.
type point struct {
	at  int64 // microseconds since 1970
	key uint32
}

func (p point) before(q point) bool { return p.at < q.at || p.at == q.at && p.key < q.key }

// Phases of a channel.
const (
	quiet = iota
	open
	cooling
	phases
)

// track is the state of one channel.
type track struct {
	level    float64 // NaN at first
	before   float64 // the level when the open anomaly began, NaN if there is none
	distance [ring]int16
	phase    uint8
	// Of the anomaly that is open, or was last:
	began, ended int64
	peak         float64
	points       int
	rest         int // of the cool-down
}

// unknown is the distance of a reading that could not be judged.
const unknown = math.MinInt16

// hundredths is how distances are remembered, which is exact enough to judge by and
// makes a state that was stored the same as one that was not.
func hundredths(distance float64) int16 {
	return int16(math.Round(min(max(distance, -300), 300) * 100))
}

// Kind is what an Event says.
type Kind uint8

// The kinds of events: an anomaly began, became more severe, is over.
const (
	Detected Kind = iota
	Escalated
	Resolved
	kinds
)

// Event is what became of a reading beyond being remembered.
type Event struct {
	Kind    Kind
	Anomaly Anomaly
}

// said is an event with its cause, kept for when the cause comes again.
type said struct {
	cause   point
	version uint64
	event   Event
}

// An event is kept for some writes of the state: by then the answer to the delivery
// that caused it has arrived, or that delivery has come again.
const (
	keptVersions = 16
	keptEvents   = 64
)

// oddPull is by how much slower a level follows what is odd.
const oddPull = 8

// Outcome is how a reading was taken.
type Outcome uint8

// A reading is New, a Duplicate of one that is remembered, or Late: older than all
// that is remembered, so that nobody knows whether it was seen.
const (
	New Outcome = iota
	Duplicate
	Late
)

// Observe judges a reading and appends what there is to say. A reading that comes again
// changes nothing and says the same again, as long as that is remembered. known is how
// many channels could judge.
func (p *Plan) Observe(s *State, e *Entity, r *Reading, to []Event) (events []Event, outcome Outcome, known int) {
	if len(s.channels) != len(p.Channels) {
		p.clear(s)
	}
	at := point{r.Time.UnixMicro(), r.Key}
	i := len(s.points)
	for i > 0 && at.before(s.points[i-1]) {
		i--
	}
	switch {
	case i > 0 && s.points[i-1] == at:
		return s.again(at, to), Duplicate, 0
	case i == 0 && len(s.points) == ring:
		return s.again(at, to), Late, 0
	}
	newest := i == len(s.points)
	var since time.Duration
	if newest && i > 0 {
		since = time.Duration(at.at-s.points[i-1].at) * time.Microsecond
	}
	if len(s.points) == ring {
		copy(s.points, s.points[1:i])
		i--
		s.points[i] = at
		for c := range s.channels {
			d := &s.channels[c].distance
			copy(d[:i], d[1:i+1])
		}
	} else {
		s.points = slices.Insert(s.points, i, at)
		for c := range s.channels {
			d := &s.channels[c].distance
			copy(d[i+1:], d[i:ring-1])
		}
	}
	first := len(to)
	for c := range p.Channels {
		t := &s.channels[c]
		j := p.judge(c, t, e, r, since)
		t.distance[i] = unknown
		if j.Known {
			known++
			t.distance[i] = hundredths(j.Distance)
			if newest {
				t.level = j.Level
			}
		}
		to = p.advance(s, c, i, e, r, &j, to)
	}
	for _, event := range to[first:] {
		s.log = append(s.log, said{cause: at, version: s.Version, event: event})
	}
	if n := len(s.log); n > keptEvents {
		s.log = slices.Delete(s.log, 0, n-keptEvents)
	}
	return to, New, known
}

// judge asks a channel's detector. While something is odd nobody knows yet whether it
// stays: beside the level that follows, the one from before counts, so that what is as
// it was is usual, however long it was not.
func (p *Plan) judge(c int, t *track, e *Entity, r *Reading, since time.Duration) Judgement {
	d := p.Channels[c].Detector
	j := d.Judge(&p.Limits, e, r, t.level, since)
	if t.phase == open && !math.IsNaN(t.before) {
		if back := d.Judge(&p.Limits, e, r, t.before, 0); back.Known && math.Abs(back.Distance) < math.Abs(j.Distance) {
			back.Level = j.Level
			return back
		}
	}
	return j
}

// again appends what was said of a reading before.
func (s *State) again(at point, to []Event) []Event {
	for i := range s.log {
		if s.log[i].cause == at {
			to = append(to, s.log[i].event)
		}
	}
	return to
}

// Forget drops what need not be said again. It is called before each writing.
func (s *State) Forget() {
	s.log = slices.DeleteFunc(s.log, func(e said) bool { return e.version+keptVersions < s.Version })
}

// Open tells how many anomalies the entity has.
func (s *State) Open() int {
	n := 0
	for c := range s.channels {
		if s.channels[c].phase == open {
			n++
		}
	}
	return n
}

// advance takes a channel on, after the reading at place i was put among the others.
func (p *Plan) advance(s *State, c, i int, e *Entity, r *Reading, j *Judgement, to []Event) []Event {
	t, l := &s.channels[c], &p.Limits
	last := len(s.points) - 1
	if !j.Known {
		return to
	}
	if i == last {
		switch t.phase {
		case open:
			t.points++
		case cooling:
			if t.rest--; t.rest <= 0 {
				t.phase = quiet
			}
		}
	}
	// A reading that comes late may complete what later ones are part of.
	for at := i; at <= min(i+max(l.AlarmOf, l.WarnPoints)-1, last); at++ {
		score := p.odd(s, c, at)
		if score == 0 {
			continue
		}
		when := s.points[at].at
		switch {
		case t.phase == open:
			if before := Severity(t.peak); score > t.peak {
				t.peak = score
				if now := Severity(score); now != before {
					to = append(to, Event{Escalated, p.describe(c, t, r, j, before)})
				}
			}
		case t.ended != 0 && when <= t.ended:
			// Part of what is over.
		case t.phase == cooling && severer(score, t.peak) <= 0:
		default:
			t.phase, t.began, t.ended, t.peak, t.points = open, when, 0, score, 1+last-at
			t.before = t.level
			to = append(to, Event{Detected, p.describe(c, t, r, j, "")})
		}
	}
	if t.phase == open && p.over(s, c) {
		t.phase, t.ended, t.rest = cooling, s.points[last].at, l.CoolDown
		// What the anomaly taught is forgotten, unless it is the new usual.
		if back := p.Channels[c].Detector.Judge(l, e, r, t.before, 0); !math.IsNaN(t.before) && back.Known && math.Abs(back.Distance) < l.Usual {
			t.level = t.before
		}
		t.before = math.NaN()
		a := p.describe(c, t, r, j, "")
		when := time.UnixMicro(t.ended).UTC()
		a.Resolved, a.ResolvedAt, a.Details.Points = true, &when, t.points
		to = append(to, Event{Resolved, a})
		if l.CoolDown == 0 {
			t.phase = quiet
		}
	}
	return to
}

// severer compares the severities of scores.
func severer(a, b float64) int {
	rank := func(score float64) int { return int(min(max(score, 0.2), 0.8)*5 + 1e-9) }
	return rank(a) - rank(b)
}

// odd is the score of what is odd up to the reading at a place, 0 if nothing is.
func (p *Plan) odd(s *State, c, at int) float64 {
	t, l := &s.channels[c], &p.Limits
	d := t.distance[at]
	if d == unknown || d == 0 {
		return 0
	}
	sign := 1.0
	if d < 0 {
		sign = -1
	}
	alarm, warn := l.Alarm, l.Warn
	switch ch := &p.Channels[c]; {
	case ch.Rule:
		alarm, warn = 0.01, math.Inf(1)
	case ch.Calm:
		warn = math.Inf(1)
	}
	here := sign * float64(d) / 100
	var alarms, warns, seen int
	var sum float64
	row := true
	for i := at; i >= 0; i-- {
		if i < at && s.points[i+1].at-s.points[i].at > l.Apart.Microseconds() {
			break
		}
		if t.distance[i] == unknown {
			continue
		}
		v := sign * float64(t.distance[i]) / 100
		if seen < l.AlarmOf && v >= alarm {
			alarms++
		}
		if row = row && v >= warn; row {
			warns++
		}
		if seen < meanOf {
			sum += v
		}
		if seen++; seen >= max(l.AlarmOf, l.WarnPoints, meanOf) {
			break
		}
	}
	switch {
	case here >= alarm && alarms >= l.AlarmPoints:
		return min(1, here/scoreRange)
	case warns >= l.WarnPoints:
		// What just began is less severe than what lasts.
		return min(1, max(0.01, sum/float64(min(seen, meanOf))/scoreRange))
	}
	return 0
}

// meanOf is how many readings the score of a warning is the mean of.
const meanOf = 5

// over tells whether the newest readings are usual ones again.
func (p *Plan) over(s *State, c int) bool {
	t, ch := &s.channels[c], &p.Channels[c]
	near := p.Limits.Usual
	if ch.Calm {
		near = p.Limits.Warn
	}
	usual := 0
	for i := len(s.points) - 1; i >= 0 && usual < p.Limits.Clear; i-- {
		switch d := t.distance[i]; {
		case d == unknown:
		case ch.Rule && d != 0, math.Abs(float64(d))/100 >= near:
			return false
		default:
			usual++
		}
	}
	return usual >= p.Limits.Clear
}

// describe makes the anomaly of a channel, with the numbers of a reading.
func (p *Plan) describe(c int, t *track, r *Reading, j *Judgement, before string) Anomaly {
	ch := &p.Channels[c]
	a := Anomaly{
		Timestamp: time.UnixMicro(t.began).UTC(), EntityType: p.EntityType, EntityID: r.Entity, Type: ch.Type,
		Severity: Severity(t.peak), Score: rounded(t.peak),
		Details: Details{
			Contract: p.Contract, Metric: ch.Metric, Actual: rounded(j.Actual), Expected: rounded(j.Expected),
			Z: rounded(j.Distance), Residual: rounded(j.Actual - j.Expected), Trend: rounded(j.Trend), Seasonal: rounded(j.Seasonal),
			Threshold: j.Threshold, Model: j.Model, EscalatedFrom: before,
		},
	}
	if !j.Trained.IsZero() {
		trained := j.Trained
		a.Details.TrainedAt = &trained
	}
	return a
}

// rounded keeps four decimals, as the references do.
func rounded(v float64) float64 { return math.Round(v*1e4) / 1e4 }

// Strength is the distance of the newest reading on a channel, without its sign; 0 if
// nobody could judge it.
func (s *State) Strength(channel int) float64 {
	if len(s.points) == 0 || s.channels[channel].distance[len(s.points)-1] == unknown {
		return 0
	}
	return math.Abs(float64(s.channels[channel].distance[len(s.points)-1])) / 100
}

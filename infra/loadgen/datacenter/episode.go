package datacenter

import (
	"slices"
	"time"
)

// Episode is one anomaly of one entity: the ground truth.
type Episode struct {
	Type Type
	// Server or service, and its name.
	OfService bool
	Entity    string
	// Readings from Start on and before End are anomalous.
	Start, End time.Time

	key uint64
}

// within tells how far through the episode a time is, from 0 to 1.
func (e *Episode) within(t int64) float64 {
	return float64(t-e.Start.UnixNano()) / float64(e.End.Sub(e.Start))
}

// lasting is the length of anomalies in intervals.
func lasting(ofService bool) (least, most float64) {
	if ofService {
		return 20, 90
	}
	return 30, 120
}

// schedule is when an entity has anomalies. Time is cut into slots as long as, on
// average, an anomaly and the wait for it; each slot has one, somewhere in it. So
// whether there is one at a time does not depend on what was before.
type schedule struct {
	key       uint64
	name      string
	ofService bool
	kinds     []Type
	slot      int64 // nanoseconds; 0 is no anomalies
	offset    int64 // of the slots
	interval  float64
	gap       float64 // at least between two
	// keep is the share of the slots that have theirs in history, before live.
	keep float64
	live int64

	number  int64 // of the slot that is known
	known   bool
	current Episode
	present bool
}

func newSchedule(c *Config, key uint64, name string, ofService bool) schedule {
	s := schedule{key: mix(key, 99), name: name, ofService: ofService, interval: float64(c.Interval), keep: 1}
	for _, t := range c.Anomalies {
		if t.ofServices() == ofService && !slices.Contains(s.kinds, t) {
			s.kinds = append(s.kinds, t)
		}
	}
	if len(s.kinds) == 0 || c.AnomalyProbability == 0 {
		return s
	}
	least, most := lasting(ofService)
	mean := (least + most) / 2 * s.interval
	cycle := s.interval/c.AnomalyProbability + mean
	s.slot = int64(cycle)
	s.gap = min(10*s.interval, cycle/10)
	s.offset = int64(unit(mix(s.key, 1)) * cycle)
	if !c.LiveFrom.IsZero() {
		s.live = c.LiveFrom.UnixNano()
		s.keep = min(1, c.HistoryShare*cycle/mean)
	}
	return s
}

// at returns the episode that a time is in, nil if there is none. It is valid until
// the next call.
func (s *schedule) at(t int64) *Episode {
	if s.slot == 0 {
		return nil
	}
	number := (t - s.offset) / s.slot
	if !s.known || number != s.number {
		s.current, s.present = s.draw(number)
		s.number, s.known = number, true
	}
	if s.present && t >= s.current.Start.UnixNano() && t < s.current.End.UnixNano() {
		return &s.current
	}
	return nil
}

// draw makes the episode of a slot. Whether it is of the history is decided by its
// start, so that none is cut off.
func (s *schedule) draw(number int64) (Episode, bool) {
	key := mix(s.key, mix(2, uint64(number)))
	least, most := lasting(s.ofService)
	slot := float64(s.slot)
	length := min(between(mix(key, 1), least, most)*s.interval, slot-s.gap)
	begin := s.offset + number*s.slot + int64(unit(mix(key, 2))*(slot-s.gap-length))
	e := Episode{
		Type: s.kinds[mix(key, 3)%uint64(len(s.kinds))], OfService: s.ofService, Entity: s.name, key: key,
		Start: time.Unix(0, begin).UTC(), End: time.Unix(0, begin+int64(length)).UTC(),
	}
	if s.live != 0 && begin < s.live && unit(mix(key, 4)) >= s.keep {
		return Episode{}, false
	}
	return e, true
}

// between appends the episodes that touch a span of time.
func (s *schedule) between(list []Episode, from, until time.Time) []Episode {
	if s.slot == 0 {
		return list
	}
	for number := (from.UnixNano() - s.offset) / s.slot; s.offset+number*s.slot < until.UnixNano(); number++ {
		if e, ok := s.draw(number); ok && e.End.After(from) && e.Start.Before(until) {
			list = append(list, e)
		}
	}
	return list
}

package main

import (
	"time"
)

// window is a range of time, From <= t < To.
type window struct{ From, To time.Time }

// last gives the window that a tick is about: the last whole one that ended lag before.
func last(tick time.Time, lag, every, length time.Duration) window {
	end := tick.Add(-lag).UTC().Truncate(every)
	return window{end.Add(-length), end}
}

func (w window) length() time.Duration { return w.To.Sub(w.From) }

// maxSlices bounds the days that a window is compared with.
const maxSlices = 14

// slices gives the parts of a range that are at the window's time of the day, the latest
// first: of days alike if there are any, workdays or weekends, else of any day. Of a
// window of most of a day it gives the whole range.
//
// An hour at night is compared with nights, so that a daily cycle is no drift; and so is
// a Sunday with a Saturday, of which there are twice as many as of Sundays.
func (w window) slices(of window) []window {
	if w.length() >= 20*time.Hour {
		return []window{of}
	}
	// A short window has the hour around it to be compared with, or a range of a few
	// days would have too few rows of its time.
	pad := max(0, (time.Hour-w.length())/2)
	from, to := w.From.Add(-pad), w.To.Add(pad)
	var alike, other []window
	for day := 0; ; day++ {
		s := window{from.AddDate(0, 0, -day), to.AddDate(0, 0, -day)}
		if !s.To.After(of.From) {
			break
		}
		if !s.From.Before(of.To) {
			continue
		}
		if s.From.Before(of.From) {
			s.From = of.From
		}
		if s.To.After(of.To) {
			s.To = of.To
		}
		if weekend(s.From) == weekend(w.From) {
			if alike = append(alike, s); len(alike) == maxSlices {
				break
			}
		} else if len(other) < maxSlices {
			other = append(other, s)
		}
	}
	if len(alike) > 0 {
		return alike
	}
	return other
}

func weekend(t time.Time) bool {
	d := t.Weekday()
	return d == time.Saturday || d == time.Sunday
}

// at tells whether a time is at the window's time of the day, give or take.
func (w window) at(t time.Time) bool {
	if w.length() >= 20*time.Hour {
		return true
	}
	pad := max(0, (time.Hour-w.length())/2)
	const day = 24 * time.Hour
	since := (t.Sub(w.From.Add(-pad)) % day)
	if since < 0 {
		since += day
	}
	return since < w.length()+2*pad && weekend(t) == weekend(w.From)
}

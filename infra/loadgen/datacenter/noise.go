package datacenter

import (
	"math"
	"time"
)

// mix makes one number of two (the finaliser of SplitMix64). All that is random here
// is made of it, from the seed, the entity, what it is for, and the time.
func mix(a, b uint64) uint64 {
	z := a ^ b*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// unit is uniform in [0, 1).
func unit(h uint64) float64 { return float64(h>>11) * 0x1p-53 }

// between is uniform in [low, high).
func between(h uint64, low, high float64) float64 { return low + (high-low)*unit(h) }

// normal has mean 0 and standard deviation 1 (Box-Muller, with its tails).
func normal(h uint64) float64 {
	return math.Sqrt(-2*math.Log(1-unit(h))) * math.Cos(2*math.Pi*unit(mix(h, 1)))
}

// wave is noise that changes over a while: normally distributed with mean 0 and
// standard deviation 1 at any time, nearly the same a moment later, unrelated two
// periods later. It is drawn at the ends of periods and blended between; the ends
// of the last period that was asked for are kept.
type wave struct {
	key, period uint64
	cell        int64
	from, to    float64
	known       bool
}

func newWave(key, stream uint64, period time.Duration) wave {
	return wave{key: mix(key, stream), period: uint64(period)}
}

func (w *wave) at(t int64) float64 {
	period := int64(w.period)
	cell := t / period
	if !w.known || cell != w.cell {
		w.from, w.to = normal(mix(w.key, uint64(cell))), normal(mix(w.key, uint64(cell+1)))
		w.cell, w.known = cell, true
	}
	x := float64(t-cell*period) / float64(period)
	x *= x * (3 - 2*x)
	// The variance of a blend is smaller than that of its ends.
	return (w.from*(1-x) + w.to*x) / math.Sqrt((1-x)*(1-x)+x*x)
}

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// activity is how busy people are: from 0 at night to 1 in the afternoon (UTC), and
// less at weekends. shift moves the day.
func activity(t int64, shift float64) float64 {
	hours := float64(t%int64(day))/float64(time.Hour) + shift
	a := math.Exp(1.6 * (math.Cos((hours-14)*2*math.Pi/24) - 1))
	// 1970-01-01 was a Thursday. Days change when there is no activity to change.
	if weekday := (t/int64(day) + 4) % 7; weekday == 0 || weekday == 6 {
		a *= 0.35
	}
	return a
}

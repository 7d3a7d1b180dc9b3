package shop

import (
	"math"
	"math/rand/v2"
)

// dice draws from a seeded PCG. The methods are written out here, rather than
// taken from math/rand/v2, because they are called several times an event and
// because a stream must stay the same when the standard library changes.
type dice struct{ pcg rand.PCG }

func newDice(seed, stream uint64) dice {
	return dice{pcg: *rand.NewPCG(seed, stream)}
}

// float is uniform in [0, 1).
func (d *dice) float() float64 { return float64(d.pcg.Uint64()>>11) * 0x1p-53 }

// below is uniform in [0, n), n > 0; the bias of the multiplication is below
// n/2^32, far under what a simulation can show.
func (d *dice) below(n int) int { return int((d.pcg.Uint64() >> 32) * uint64(n) >> 32) }

// normal has mean 0 and standard deviation 1 (Box-Muller; one of the pair is
// thrown away for the sake of a stateless method).
func (d *dice) normal() float64 {
	return math.Sqrt(-2*math.Log(1-d.float())) * math.Cos(2*math.Pi*d.float())
}

// geometric counts the successes before the first failure, each a success with
// probability mean/(mean+1).
func (d *dice) geometric(mean float64) int {
	return int(math.Log(1-d.float()) / math.Log(mean/(mean+1)))
}

// alias draws an index with given weights in constant time (Walker's method).
type alias struct {
	keep  []float64
	other []int32
}

func newAlias(weights []float64) alias {
	n := len(weights)
	a := alias{keep: make([]float64, n), other: make([]int32, n)}
	var sum float64
	for _, w := range weights {
		sum += w
	}
	var small, large []int32
	for i, w := range weights {
		a.keep[i] = w * float64(n) / sum
		a.other[i] = int32(i)
		if a.keep[i] < 1 {
			small = append(small, int32(i))
		} else {
			large = append(large, int32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a.other[s] = l
		a.keep[l] -= 1 - a.keep[s]
		if a.keep[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	return a
}

func (a *alias) draw(d *dice) int {
	u := d.float() * float64(len(a.keep))
	i := int(u)
	if u-float64(i) < a.keep[i] {
		return i
	}
	return int(a.other[i])
}

// hash mixes two numbers into one (the finaliser of SplitMix64), so that a
// property of a customer follows from the seed and the customer's number without
// being stored.
func hash(a, b uint64) uint64 {
	z := a ^ b*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

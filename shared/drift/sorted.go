package drift

import (
	"math"
	"slices"
)

// Sorted is a list of finite numbers in ascending order. Make one with Sort.
type Sorted []float64

// Sort makes a Sorted of the finite numbers among values, in memory of its own, and
// tells how many were left out: NaN, which stands for missing, and infinities.
func Sort(values []float64) (sorted Sorted, missing int) {
	s := make([]float64, 0, len(values))
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		s = append(s, v+0) // -0 is 0
	}
	if len(s) < radixFrom {
		slices.Sort(s)
	} else {
		radix(s)
	}
	return s, len(values) - len(s)
}

// radixFrom is the length from which sorting by digits is faster.
const radixFrom = 4096

// radix sorts by the bits of the numbers, 11 of them at a time: six passes over the
// data whatever its length, of which those are left out where all digits are equal.
func radix(s []float64) {
	const bits, passes = 11, 6
	keys, spare := make([]uint64, len(s)), make([]uint64, len(s))
	var counts [passes][1 << bits]int
	for i, v := range s {
		k := math.Float64bits(v)
		// Negative numbers descend with their bits, and come before the others.
		k ^= uint64(int64(k)>>63) | 1<<63
		keys[i] = k
		for p := range passes {
			counts[p][k>>(p*bits)&(1<<bits-1)]++
		}
	}
	for p := range passes {
		c := &counts[p]
		if c[keys[0]>>(p*bits)&(1<<bits-1)] == len(s) {
			continue
		}
		at := 0
		for d := range c {
			c[d], at = at, at+c[d]
		}
		for _, k := range keys {
			d := k >> (p * bits) & (1<<bits - 1)
			spare[c[d]] = k
			c[d]++
		}
		keys, spare = spare, keys
	}
	for i, k := range keys {
		k ^= ^uint64(int64(k)>>63) | 1<<63
		s[i] = math.Float64frombits(k)
	}
}

// distinct counts the distinct values of both lists together, but no further than
// limit.
func distinct(a, b Sorted, limit int) int {
	n := 0
	var last float64
	for i, j := 0, 0; (i < len(a) || j < len(b)) && n < limit; {
		var v float64
		if j == len(b) || i < len(a) && a[i] <= b[j] {
			v = a[i]
		} else {
			v = b[j]
		}
		if n == 0 || v != last {
			n, last = n+1, v
		}
		for i < len(a) && a[i] == v {
			i++
		}
		for j < len(b) && b[j] == v {
			j++
		}
	}
	return n
}

// meanAndDeviation are those of all values, the deviation by the number of values
// (numpy's default).
func meanAndDeviation(values []float64) (mean, deviation float64) {
	if len(values) == 0 {
		return 0, 0
	}
	var sum total
	for _, v := range values {
		sum.add(v)
	}
	mean = sum.value() / float64(len(values))
	var squares total
	for _, v := range values {
		squares.add((v - mean) * (v - mean))
	}
	return mean, math.Sqrt(squares.value() / float64(len(values)))
}

// total is a sum that loses nothing to the order of its numbers (Neumaier).
type total struct{ sum, lost float64 }

func (t *total) add(v float64) {
	s := t.sum + v
	if math.Abs(t.sum) >= math.Abs(v) {
		t.lost += (t.sum - s) + v
	} else {
		t.lost += (v - s) + t.sum
	}
	t.sum = s
}

func (t *total) value() float64 { return t.sum + t.lost }

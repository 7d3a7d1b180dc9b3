package main

import (
	"math"
	"slices"
)

// vusWindow is how far, in readings, the borders of labels are softened at most.
const vusWindow = 100

// vusPR is the volume under the surface of precision and recall (Paparrizos et al.,
// VLDB 2022): the area under the range-based curve, as a mean over borders softened by
// 0 to window readings. NaN if nothing is labelled.
func vusPR(scores []float64, windows [][2]int, window int) float64 {
	if len(windows) == 0 {
		return math.NaN()
	}
	n := len(scores)
	label := make([]float64, n)
	for _, w := range windows {
		for i := w[0]; i <= w[1]; i++ {
			label[i] = 1
		}
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case scores[a] > scores[b]:
			return -1
		case scores[a] < scores[b]:
			return 1
		}
		return 0
	})
	segments := ranges(label)
	total := 0.0
	for size := 0; size <= window; size++ {
		total += rangeAP(scores, order, softened(label, segments, size), label)
	}
	return total / float64(window+1)
}

// softened lets labels fade over half of size readings on both sides.
func softened(label []float64, segments [][2]int, size int) []float64 {
	soft := slices.Clone(label)
	for _, s := range segments {
		for i := s[1] + 1; i < min(s[1]+size/2+1, len(soft)); i++ {
			soft[i] += math.Sqrt(1 - float64(i-s[1])/float64(size))
		}
		for i := max(s[0]-size/2, 0); i < s[0]; i++ {
			soft[i] += math.Sqrt(1 - float64(s[0]-i)/float64(size))
		}
	}
	for i := range soft {
		soft[i] = min(soft[i], 1)
	}
	return soft
}

// ranges are the first and last places of what is not 0.
func ranges(label []float64) [][2]int {
	var list [][2]int
	for i := 0; i < len(label); i++ {
		if label[i] == 0 {
			continue
		}
		from := i
		for i+1 < len(label) && label[i+1] != 0 {
			i++
		}
		list = append(list, [2]int{from, i})
	}
	return list
}

// rangeAP is the area under precision and recall at 250 thresholds.
func rangeAP(scores []float64, order []int, soft, label []float64) float64 {
	const thresholds = 250
	n := len(scores)
	var positive float64
	for i := range label {
		positive += label[i]
	}
	segments := ranges(soft)
	of := make([]int, n)
	for k, s := range segments {
		for i := s[0]; i <= s[1]; i++ {
			of[i] = k + 1
		}
	}
	seen := make([]bool, len(segments)+1)
	// What is found of the softened borders counts as labelled too.
	var hits, border float64
	found, taken := 0, 0
	area, lastRecall := 0.0, 0.0
	for k := range thresholds {
		at := min(int(float64(k)*(float64(n-1)/(thresholds-1))), n-1)
		if k == thresholds-1 {
			at = n - 1
		}
		threshold := scores[order[at]]
		for taken < n && scores[order[taken]] >= threshold {
			i := order[taken]
			hits += soft[i]
			border += soft[i] - label[i]
			if g := of[i]; g > 0 && !seen[g] {
				seen[g] = true
				found++
			}
			taken++
		}
		recall := min(hits/(positive+border/2), 1) * float64(found) / float64(len(segments))
		precision := hits / float64(taken)
		area += (recall - lastRecall) * precision
		lastRecall = recall
	}
	return area
}

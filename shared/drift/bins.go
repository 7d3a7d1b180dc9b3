package drift

import (
	"math"
	"slices"
	"sort"
)

// binned counts two samples by Evidently's bins (stattests/utils.py): by value when the
// reference has at most 20 distinct ones, else by as many intervals of equal width over
// both as Sturges' rule asks for (numpy.histogram_bin_edges, "sturges").
func binned(reference, current Sorted) (r, c []float64) {
	if distinct(reference, nil, 21) <= 20 {
		return byValue(reference, current)
	}
	edges := sturges(reference, current)
	return histogram(reference, edges), histogram(current, edges)
}

func byValue(a, b Sorted) (x, y []float64) {
	for i, j := 0, 0; i < len(a) || j < len(b); {
		var v float64
		if j == len(b) || i < len(a) && a[i] <= b[j] {
			v = a[i]
		} else {
			v = b[j]
		}
		n, m := 0.0, 0.0
		for ; i < len(a) && a[i] == v; i++ {
			n++
		}
		for ; j < len(b) && b[j] == v; j++ {
			m++
		}
		x, y = append(x, n), append(y, m)
	}
	return x, y
}

// sturges are the borders of the intervals.
func sturges(a, b Sorted) []float64 {
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range []Sorted{a, b} {
		if len(s) > 0 {
			low, high = min(low, s[0]), max(high, s[len(s)-1])
		}
	}
	width := (high - low) / (math.Log2(float64(len(a)+len(b))) + 1)
	n := 1
	if width > 0 {
		n = max(1, int(math.Ceil((high-low)/width)))
	}
	if low == high {
		low, high = low-0.5, high+0.5
	}
	edges, step := make([]float64, n+1), (high-low)/float64(n)
	for i := range edges {
		edges[i] = float64(i)*step + low
	}
	edges[n] = high
	return edges
}

// histogram counts values by intervals that hold their lower border, the last one both
// of its borders (numpy.histogram).
func histogram(s Sorted, edges []float64) []float64 {
	counts := make([]float64, len(edges)-1)
	from := sort.SearchFloat64s(s, edges[0])
	for i := range counts {
		to := sort.SearchFloat64s(s, edges[i+1])
		if i == len(counts)-1 {
			to = sort.Search(len(s), func(k int) bool { return s[k] > edges[i+1] })
		}
		counts[i] = float64(to - from)
		from = to
	}
	return counts
}

// CountByEdges counts values by the intervals of a baseline: a value v by the first
// edge with v <= edge, one above the last edge by the last count.
func CountByEdges(s Sorted, edges []float64) []float64 {
	counts := make([]float64, len(edges)+1)
	from := 0
	for i, e := range edges {
		to := from + sort.Search(len(s)-from, func(k int) bool { return s[from+k] > e })
		counts[i] = float64(to - from)
		from = to
	}
	counts[len(edges)] = float64(len(s) - from)
	return counts
}

// shares are counts as shares of their sum.
func shares(counts []float64) []float64 {
	var sum total
	for _, n := range counts {
		sum.add(n)
	}
	out := slices.Clone(counts)
	for i := range out {
		out[i] /= sum.value()
	}
	return out
}

package model

import (
	"errors"
	"fmt"
	"slices"
	"sort"
)

// Residuals is what is known of a regression's errors: quantiles of the actual value
// minus the prediction, on rows that the model was not trained on, told apart by the
// size of the prediction.
type Residuals struct {
	// Edges are borders of the prediction, as those of a Distribution: the first
	// interval is up to the first edge, the last is above the last.
	Edges []float64 `json:"edges,omitempty"`
	// Rows is how many rows each interval had.
	Rows []int64 `json:"rows"`
	// Levels are the shares that the quantiles are of, ascending.
	Levels []float64 `json:"levels"`
	// Quantiles has a list for each interval: of Levels[i] of its rows the residual
	// was at most the i-th.
	Quantiles [][]float64 `json:"quantiles"`
}

func (r *Residuals) check() error {
	if len(r.Rows) != len(r.Edges)+1 || len(r.Quantiles) != len(r.Rows) {
		return fmt.Errorf("%d edges, %d rows, %d quantiles; want one edge less than the others", len(r.Edges), len(r.Rows), len(r.Quantiles))
	}
	for i := range r.Edges {
		if i > 0 && r.Edges[i-1] >= r.Edges[i] {
			return fmt.Errorf("edges: must ascend, %v is followed by %v", r.Edges[i-1], r.Edges[i])
		}
	}
	if len(r.Levels) < 2 {
		return fmt.Errorf("levels: %d, want at least 2", len(r.Levels))
	}
	for i, l := range r.Levels {
		if l <= 0 || l >= 1 || i > 0 && r.Levels[i-1] >= l {
			return errors.New("levels: must ascend between 0 and 1")
		}
	}
	for i, q := range r.Quantiles {
		if r.Rows[i] < 1 {
			return fmt.Errorf("rows[%d]: must be at least 1, not %d", i, r.Rows[i])
		}
		if len(q) != len(r.Levels) {
			return fmt.Errorf("quantiles[%d]: %d values for %d levels", i, len(q), len(r.Levels))
		}
		if !slices.IsSorted(q) {
			return fmt.Errorf("quantiles[%d]: must not descend", i)
		}
	}
	return nil
}

// Interval gives the two values between which the actual one lies with a probability
// of coverage, as often above as below. Beyond the outermost levels nothing is known:
// a coverage that is too large gives the widest interval there is.
func (r *Residuals) Interval(prediction, coverage float64) (low, high float64) {
	q := r.of(prediction)
	tail := (1 - coverage) / 2
	return prediction + interpolate(r.Levels, q, tail), prediction + interpolate(r.Levels, q, 1-tail)
}

// Within gives the probability that the actual value differs from the prediction by at
// most distance, which must not be negative.
func (r *Residuals) Within(prediction, distance float64) float64 {
	q := r.of(prediction)
	share := func(residual float64) float64 {
		switch {
		case residual < q[0]:
			return 0
		case residual > q[len(q)-1]:
			return 1
		}
		return interpolate(q, r.Levels, residual)
	}
	return max(0, share(distance)-share(-distance))
}

// of finds the quantiles of a prediction's interval.
func (r *Residuals) of(prediction float64) []float64 {
	return r.Quantiles[sort.SearchFloat64s(r.Edges, prediction)]
}

// interpolate gives y at x between points whose xs do not descend.
func interpolate(xs, ys []float64, x float64) float64 {
	i := sort.Search(len(xs), func(i int) bool { return xs[i] > x })
	switch i {
	case 0:
		return ys[0]
	case len(xs):
		return ys[len(ys)-1]
	}
	return ys[i-1] + (x-xs[i-1])/(xs[i]-xs[i-1])*(ys[i]-ys[i-1])
}

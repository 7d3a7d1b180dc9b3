package model

import (
	"fmt"
	"math"
)

// Transform says how a row's margins, the sums of the trees and the base score,
// become its predictions.
type Transform struct {
	// Kind is one of
	//
	//	identity   the margin
	//	sigmoid    1 / (1 + e^-margin)
	//	exp        e^margin
	//	softmax    e^margin over the sum of the classes'
	//	isolation  -2^(-margin / c), scikit-learn's score_samples: the margin is the
	//	           mean depth, c the mean depth of MaxSamples rows. Lower is odder.
	Kind string `json:"kind"`
	// MaxSamples is how many rows each tree of an isolation forest was made from.
	MaxSamples int `json:"max_samples,omitempty"`
}

// The kinds of Transform.
const (
	Identity  = "identity"
	Sigmoid   = "sigmoid"
	Exp       = "exp"
	Softmax   = "softmax"
	Isolation = "isolation"
)

func (t Transform) check() error {
	switch t.Kind {
	case Identity, Sigmoid, Exp, Softmax:
		if t.MaxSamples != 0 {
			return fmt.Errorf("max_samples: belongs to kind %s only", Isolation)
		}
	case Isolation:
		if t.MaxSamples < 2 {
			return fmt.Errorf("max_samples: must be at least 2, not %d", t.MaxSamples)
		}
	default:
		return fmt.Errorf("kind: %q is none of %s, %s, %s, %s, %s", t.Kind, Identity, Sigmoid, Exp, Softmax, Isolation)
	}
	return nil
}

// apply turns the margins of rows into predictions, in place.
func (t Transform) apply(values []float64, groups int) {
	switch t.Kind {
	case Sigmoid:
		for i, v := range values {
			values[i] = 1 / (1 + math.Exp(-v))
		}
	case Exp:
		for i, v := range values {
			values[i] = math.Exp(v)
		}
	case Softmax:
		for at := 0; at < len(values); at += groups {
			softmax(values[at : at+groups])
		}
	case Isolation:
		c := meanDepth(t.MaxSamples)
		for i, v := range values {
			values[i] = -math.Exp2(-v / c)
		}
	}
}

func softmax(values []float64) {
	top := values[0]
	for _, v := range values[1:] {
		top = max(top, v)
	}
	sum := 0.0
	for i, v := range values {
		values[i] = math.Exp(v - top)
		sum += values[i]
	}
	for i := range values {
		values[i] /= sum
	}
}

// meanDepth is the mean depth of an unsuccessful search in a binary tree of n rows,
// as scikit-learn computes it.
func meanDepth(n int) float64 {
	switch {
	case n <= 1:
		return 0
	case n == 2:
		return 1
	}
	const eulerGamma = 0.57721566490153286060651209008240243104215933593992
	m := float64(n)
	return 2*(math.Log(m-1)+eulerGamma) - 2*(m-1)/m
}

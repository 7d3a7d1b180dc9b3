package drift

import (
	"math"
	"slices"
)

// Performance is how well a binary classifier does, as far as its scores tell.
type Performance struct {
	Rows int `json:"rows"`
	// AUC, LogLoss, Brier and Accuracy (at the threshold 0.5) are expectations over the
	// labels that are still to come. AUC is NaN where all scores are 0 or 1 alike.
	AUC, LogLoss, Brier, Accuracy float64
	// Positives is the expected share of the label 1.
	Positives float64
}

// Estimate estimates the performance of a binary classifier before the labels are
// known: "confidence-based performance estimation" (CBPE), as NannyML has it
// (docs/how_it_works/performance_estimation.rst). A score p that is calibrated is itself
// the probability of the label 1, so each row counts as p of a positive and 1-p of a
// negative. It holds while the scores are calibrated, that is while the relation of
// features and label is the one that was learned: it sees a drift of the features, and
// is blind to one of that relation. calibrate, if not nil, maps a score to a
// probability.
func Estimate(scores []float64, calibrate func(float64) float64) Performance {
	p := make([]float64, 0, len(scores))
	for _, s := range scores {
		if math.IsNaN(s) {
			continue
		}
		if calibrate != nil {
			s = calibrate(s)
		}
		p = append(p, min(1, max(0, s)))
	}
	out := Performance{Rows: len(p), AUC: math.NaN(), LogLoss: math.NaN(), Brier: math.NaN(), Accuracy: math.NaN(), Positives: math.NaN()}
	if len(p) == 0 {
		return out
	}
	slices.Sort(p)
	var positives, loss, brier, right total
	for _, s := range p {
		positives.add(s)
		if s > 0 && s < 1 {
			loss.add(-s*math.Log(s) - (1-s)*math.Log(1-s))
		}
		brier.add(s * (1 - s))
		right.add(max(s, 1-s))
	}
	n := float64(len(p))
	out.Positives, out.LogLoss = positives.value()/n, loss.value()/n
	out.Brier, out.Accuracy = brier.value()/n, right.value()/n
	// Of all pairs of a positive and a negative, weighted by how likely they are such:
	// those in order, ties by half.
	var ordered, below total
	for i := 0; i < len(p); {
		var up, down total
		v := p[i]
		for ; i < len(p) && p[i] == v; i++ {
			up.add(v)
			down.add(1 - v)
		}
		ordered.add(up.value() * (below.value() + down.value()/2))
		below.add(down.value())
	}
	if pairs := positives.value() * (n - positives.value()); pairs > 0 {
		out.AUC = ordered.value() / pairs
	}
	return out
}

package model

import "math"

// Of a regression, an actual value that differs from the prediction by at most this
// share of it counts as right, and so much of the actual values is to lie in the
// interval of a Confidence.
const (
	confidenceTolerance = 0.1
	confidenceCoverage  = 0.9
)

// Confidence says what is to be thought of one prediction.
type Confidence struct {
	// Share, 0 to 1, is the probability that the prediction is right: of a
	// classification that of its most probable class, of a regression the share of the
	// rows with predictions of this size, none of them trained on, whose actual value
	// was within a tenth of the prediction.
	Share float64
	// Low and High are a regression's: nine tenths of the actual values of rows with
	// predictions of this size lie between them. They are NaN else.
	Low, High float64
}

// Confidence tells what is to be thought of a prediction, which has as many values as
// the model has outputs. ok is false where nothing is known of it: of a regression
// whose baseline has no residuals, and of an isolation forest.
func (b *Bundle) Confidence(prediction []float64) (c Confidence, ok bool) {
	c.Low, c.High = math.NaN(), math.NaN()
	switch kind := b.Model.transform.Kind; {
	case kind == Softmax:
		for _, p := range prediction {
			c.Share = max(c.Share, p)
		}
		return c, true
	case len(prediction) != 1:
		return c, false
	case kind == Sigmoid:
		c.Share = max(prediction[0], 1-prediction[0])
		return c, true
	case b.Baseline.Residuals != nil:
		r, p := b.Baseline.Residuals, prediction[0]
		c.Share = r.Within(p, confidenceTolerance*math.Abs(p))
		c.Low, c.High = r.Interval(p, confidenceCoverage)
		return c, true
	}
	return c, false
}

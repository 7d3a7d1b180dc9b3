package model

import (
	"math"
	"strings"
	"testing"
)

var errorsOfTwo = Residuals{Edges: []float64{100}, Rows: []int64{50, 60}, Levels: []float64{0.05, 0.25, 0.5, 0.75, 0.95},
	Quantiles: [][]float64{{-4, -1, 0, 1, 6}, {-40, -10, 0, 10, 60}}}

func TestIntervalIsThatOfPredictionsOfThatSize(t *testing.T) {
	for _, c := range []struct{ prediction, coverage, low, high float64 }{
		{100, 0.5, 99, 101},
		{100, 0.9, 96, 106},
		{100.5, 0.5, 90.5, 110.5},
		{50, 0.7, 47.5, 53.5},
		{50, 0.9999, 46, 56},
		{50, 0, 50, 50},
	} {
		low, high := errorsOfTwo.Interval(c.prediction, c.coverage)
		if math.Abs(low-c.low) > 1e-9 || math.Abs(high-c.high) > 1e-9 {
			t.Errorf("%v at %v: got %v to %v, want %v to %v", c.coverage, c.prediction, low, high, c.low, c.high)
		}
	}
}

func TestWithinIsTheShareOfResiduals(t *testing.T) {
	for _, c := range []struct{ prediction, distance, want float64 }{
		{50, 1, 0.5},
		{50, 0, 0},
		{50, 100, 1},
		{50, 5, 0.75 + 0.2*4/5},
		{200, 1, 0.05},
	} {
		if got := errorsOfTwo.Within(c.prediction, c.distance); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("within %v of %v: got %v, want %v", c.distance, c.prediction, got, c.want)
		}
	}
}

func TestBrokenBaselinesAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ field, want string }{
		"tail shares":        {`"tail":[{"share":0.1,"score":-0.6},{"share":0.1,"score":-0.5}]`, "tail[1]: shares must ascend"},
		"tail scores":        {`"tail":[{"share":0.1,"score":-0.5},{"share":0.2,"score":-0.6}]`, "tail[1]: shares must ascend"},
		"tail of all":        {`"tail":[{"share":1,"score":-0.5}]`, "tail[0].share: 1 is not between"},
		"residuals of other": {`"residuals":{"edges":[1],"rows":[3],"levels":[0.1,0.9],"quantiles":[[1,2]]}`, "residuals: 1 edges, 1 rows"},
		"residual levels":    {`"residuals":{"rows":[3],"levels":[0.9,0.1],"quantiles":[[1,2]]}`, "residuals: levels: must ascend"},
		"residual quantiles": {`"residuals":{"rows":[3],"levels":[0.1,0.9],"quantiles":[[2,1]]}`, "residuals: quantiles[0]: must not descend"},
		"residual rows":      {`"residuals":{"rows":[0],"levels":[0.1,0.9],"quantiles":[[1,2]]}`, "residuals: rows[0]: must be at least 1"},
		"sample order":       {`"score":{"name":"s","edges":[1],"counts":[1,2],"missing":0,"sample":[2,1]}`, "score: sample: must be sorted"},
		"sample of nothing":  {`"score":{"name":"s","edges":[1],"counts":[1,1],"missing":1,"sample":[1,2,3]}`, "score: sample: 3 values of 2 rows"},
		"sample of texts":    {`"features":[{"name":"a","values":["x"],"counts":[3,0],"missing":0,"sample":[1]}]`, "sample: belongs to numbers only"},
	} {
		t.Run(name, func(t *testing.T) {
			text := `{"format":1,"rows":3`
			for _, field := range []string{
				`"features":[{"name":"a","values":["x"],"counts":[3,0],"missing":0}]`,
				`"score":{"name":"s","edges":[1],"counts":[1,2],"missing":0,"sample":[0.5,2]}`,
			} {
				if key, _, _ := strings.Cut(field, ":"); !strings.HasPrefix(c.field, key) {
					text += "," + field
				}
			}
			var b Baseline
			if err := decode([]byte(text+","+c.field+"}"), &b); err != nil {
				t.Fatal(err)
			}
			f := Features{Features: []Feature{{Name: "a", Type: Category, Values: TextValues("x")}}}
			if err := b.check(&f); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

package drift

import (
	"math"
)

// Wasserstein is the first Wasserstein distance of two samples
// (scipy.stats.wasserstein_distance): the area between their distribution functions, in
// the unit of the values. NaN when one is empty.
func Wasserstein(a, b Sorted) float64 {
	if len(a) == 0 || len(b) == 0 {
		return math.NaN()
	}
	var area total
	na, nb := float64(len(a)), float64(len(b))
	last := min(a[0], b[0])
	for i, j := 0, 0; i < len(a) || j < len(b); {
		var v float64
		if j == len(b) || i < len(a) && a[i] <= b[j] {
			v = a[i]
		} else {
			v = b[j]
		}
		area.add(math.Abs(float64(i)/na-float64(j)/nb) * (v - last))
		last = v
		for i < len(a) && a[i] == v {
			i++
		}
		for j < len(b) && b[j] == v {
			j++
		}
	}
	return area.value()
}

// NormedWasserstein is the Wasserstein distance in standard deviations of the
// reference, which count as 0.001 at least (evidently:
// stattests/wasserstein_distance_norm.py).
func NormedWasserstein(reference, current Sorted) float64 {
	_, deviation := meanAndDeviation(reference)
	return Wasserstein(reference, current) / max(deviation, 0.001)
}

// JensenShannon is the Jensen-Shannon distance of two distributions with the base 2
// (scipy.spatial.distance.jensenshannon), between 0 and 1. They are lists of shares or
// counts of the same length, which are made to add up to 1. NaN when one is empty.
func JensenShannon(p, q []float64) float64 {
	var sp, sq total
	for i := range p {
		sp.add(p[i])
		sq.add(q[i])
	}
	np, nq := sp.value(), sq.value()
	if !(np > 0) || !(nq > 0) {
		return math.NaN()
	}
	var sum total
	for i := range p {
		a, b := p[i]/np, q[i]/nq
		m := (a + b) / 2
		if a > 0 {
			sum.add(a * math.Log(a/m))
		}
		if b > 0 {
			sum.add(b * math.Log(b/m))
		}
	}
	return math.Sqrt(max(0, sum.value()) / math.Ln2 / 2)
}

// PSI is the population stability index of two distributions, lists of shares of the
// same length. A share of 0 counts as Evidently has it (stattests/utils.py): as 0.0001,
// or, where the smallest other share is no larger than that, as a millionth of it. NaN
// when one is empty.
func PSI(reference, current []float64) float64 {
	zr, zc := floor(reference), floor(current)
	if math.IsNaN(zr) || math.IsNaN(zc) {
		return math.NaN()
	}
	var sum total
	for i := range reference {
		r, c := reference[i], current[i]
		if r == 0 {
			r = zr
		}
		if c == 0 {
			c = zc
		}
		sum.add((r - c) * math.Log(r/c))
	}
	return sum.value()
}

func floor(shares []float64) float64 {
	least := math.Inf(1)
	for _, s := range shares {
		if s != 0 {
			least = min(least, s)
		}
	}
	switch {
	case math.IsInf(least, 1):
		return math.NaN()
	case least <= 0.0001:
		return least / 1e6
	}
	return 0.0001
}

// ChiSquare is Pearson's test of observed counts against expected ones
// (scipy.stats.chisquare): the statistic and its p-value for one degree of freedom less
// than there are categories. Expected counts are scaled to as many as were observed.
// Categories that neither has are left out. With one category or none p is 1.
func ChiSquare(observed, expected []float64) (statistic, p float64) {
	var so, se total
	for i := range observed {
		so.add(observed[i])
		se.add(expected[i])
	}
	scale := so.value() / se.value()
	var sum total
	categories := 0
	for i, o := range observed {
		e := expected[i] * scale
		if o == 0 && expected[i] == 0 {
			continue
		}
		categories++
		if e == 0 {
			return math.Inf(1), 0
		}
		sum.add((o - e) * (o - e) / e)
	}
	if categories < 2 {
		return 0, 1
	}
	return sum.value(), gammaQ(float64(categories-1)/2, sum.value()/2)
}

// ZTest is the two-sided test whether a proportion is the same in two samples, with
// the pooled variance (evidently: stattests/z_stattest.py): of n1 and n2 values x1 and
// x2 have some property. Where all or none have it in both p is 1.
func ZTest(x1, n1, x2, n2 float64) (z, p float64) {
	p1, p2, pool := x1/n1, x2/n2, (x1+x2)/(n1+n2)
	if pool == 0 || pool == 1 {
		return 0, 1
	}
	z = (p1 - p2) / math.Sqrt(pool*(1-pool)*(1/n1+1/n2))
	return z, math.Erfc(math.Abs(z) / math.Sqrt2)
}

// gammaQ is the regularized upper incomplete gamma function Q(a, x), the share of the
// chi-square distribution with 2a degrees of freedom above 2x.
//
// By the series of P below a+1 and by the continued fraction of Q above (Abramowitz and
// Stegun 6.5.29 and 6.5.31), both to the last digits of a float64.
func gammaQ(a, x float64) float64 {
	if x <= 0 {
		return 1
	}
	if math.IsInf(x, 1) {
		return 0
	}
	front := gammaFront(a, x)
	if x < a+1 {
		term := 1 / a
		sum := term
		for n := 1; n < 100_000; n++ {
			term *= x / (a + float64(n))
			sum += term
			if term < sum*1e-17 {
				break
			}
		}
		return max(0, 1-front*sum)
	}
	const tiny = 1e-300
	b := x + 1 - a
	c, d := 1/tiny, 1/b
	f := d
	for n := 1; n < 100_000; n++ {
		an := -float64(n) * (float64(n) - a)
		b += 2
		if d = an*d + b; math.Abs(d) < tiny {
			d = tiny
		}
		if c = b + an/c; math.Abs(c) < tiny {
			c = tiny
		}
		d = 1 / d
		step := d * c
		f *= step
		if math.Abs(step-1) < 1e-16 {
			break
		}
	}
	return min(1, front*f)
}

// gammaFront is x^a e^-x / Gamma(a). For large a it is written by how far x is from a,
// since the logarithms alone would lose the digits.
func gammaFront(a, x float64) float64 {
	if a < 20 {
		g, _ := math.Lgamma(a)
		return math.Exp(a*math.Log(x) - x - g)
	}
	// Gamma(a) = sqrt(2 pi / a) (a/e)^a e^stirling(a), so the front is
	// sqrt(a / 2 pi) exp(-deviance(a, x) - stirling(a)).
	return math.Sqrt(a/(2*math.Pi)) * math.Exp(-deviance(a, x)-stirling(a))
}

// stirling is the error of Stirling's formula: log n! - log(sqrt(2 pi n) (n/e)^n), for
// n of at least 10.
func stirling(n float64) float64 {
	n2 := n * n
	return (1.0/12 - (1.0/360-(1.0/1260-(1.0/1680-(1.0/1188-691.0/360360/n2)/n2)/n2)/n2)/n2) / n
}

// deviance is x log(x/m) + m - x without loss where x and m are close (C. Loader,
// "Fast and accurate computation of binomial probabilities", 2000).
func deviance(x, m float64) float64 {
	if math.Abs(x-m) < 0.1*(x+m) {
		v := (x - m) / (x + m)
		s := (x - m) * v
		e := 2 * x * v
		v *= v
		for j := 1; j < 1000; j++ {
			e *= v
			next := s + e/float64(2*j+1)
			if next == s {
				return next
			}
			s = next
		}
		return s
	}
	return x*math.Log(x/m) + m - x
}

package drift

import "math"

// KolmogorovSmirnov is the two-sided test of two samples (scipy.stats.ks_2samp with its
// defaults): the largest distance of their distribution functions and its p-value,
// which is exact up to 10,000 values a sample and Kolmogorov's distribution for a
// single sample of n1 n2 / (n1 + n2) values beyond. NaN when one is empty.
func KolmogorovSmirnov(a, b Sorted) (statistic, p float64) {
	if len(a) == 0 || len(b) == 0 {
		return math.NaN(), math.NaN()
	}
	na, nb := float64(len(a)), float64(len(b))
	var above, below float64
	for i, j := 0, 0; i < len(a) && j < len(b); {
		v := min(a[i], b[j])
		for i < len(a) && a[i] == v {
			i++
		}
		for j < len(b) && b[j] == v {
			j++
		}
		d := float64(i)/na - float64(j)/nb
		above, below = max(above, d), max(below, -d)
	}
	d := max(above, below)
	return d, ksP(len(a), len(b), d)
}

// exactUpTo is the length of the longer sample up to which p is exact; scipy's
// MAX_AUTO_N.
const exactUpTo = 10_000

func ksP(n1, n2 int, d float64) float64 {
	m, n := max(n1, n2), min(n1, n2)
	en := float64(m) * float64(n) / float64(m+n)
	if m > exactUpTo {
		return clip(kolmogorov(int(math.RoundToEven(en)), d))
	}
	g := gcd(m, n)
	h := int(math.RoundToEven(d * float64(m/g*n)))
	switch {
	case h == 0:
		return 1
	case 2*en*d*d > 40:
		// Below 1e-16 (the distribution's tail is under e exp(-2 en d^2)), and the
		// counting of paths would take longest here.
		return clip(2 * math.Exp(-2*en*d*d))
	case m == n:
		return clip(square(n, h))
	}
	return clip(outside(m, n, g, h))
}

// square is the probability for two samples of n values that the statistic is h/n or
// more, by reflection (Gnedenko and Korolyuk).
func square(n, h int) float64 {
	p := 0.0
	for k := n / h; k >= 0; k-- {
		q := 1.0
		for j := range h {
			q = float64(n-k*h-j) * q / float64(n+k*h+j+1)
		}
		p = q * (1 - p)
	}
	return 2 * p
}

// outside is the probability for samples of m > n values that the statistic, times
// their least common multiple, is h or more: the share of lattice paths from (0, 0) to
// (m, n) that leave a band around the diagonal, counted column by column, each divided
// by the number of all paths to there so that nothing overflows (Hodges, "The
// significance probability of the Smirnov two-sample test", 1957).
func outside(m, n, g, h int) float64 {
	mg, ng := m/g, n/g
	low, high := 0, min((h+mg-1)/mg, n+1)
	column := make([]float64, min(2*high+2, n+1))
	for i := high; i < len(column); i++ {
		column[i] = 1
	}
	inside := high - low
	for i := 1; i <= m; i++ {
		lastLow, last := low, inside
		low = min(max(floorDiv(ng*i-h, mg)+1, 0), n)
		high = min(-floorDiv(-(ng*i+h), mg), n+1)
		if high <= low {
			return 1
		}
		value := 1.0
		if low == 0 {
			value = 0
		}
		inside = high - low
		shift, fi := low-lastLow, float64(i)
		for k := range inside {
			j := float64(k + low)
			value = (column[k+shift]*fi + value*j) / (fi + j)
			column[k] = value
		}
		for k := inside; k < last; k++ {
			column[k] = 1
		}
	}
	return column[inside-1]
}

func floorDiv(a, b int) int {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func clip(p float64) float64 { return min(1, max(0, p)) }

// kolmogorov is the probability that the two-sided statistic of one sample of n values
// is d or more (scipy.stats.kstwo.sf), by the method of the range (R. Simard and P.
// L'Ecuyer, "Computing the two-sided Kolmogorov-Smirnov distribution", 2011).
func kolmogorov(n int, d float64) float64 {
	fn := float64(n)
	t := fn * d
	switch {
	case d >= 1:
		return 0
	case t <= 0.5:
		return 1
	case t <= 1:
		// n! ((2t - 1)/n)^n, by logarithms.
		return 1 - math.Exp(logFactorialShare(n)+fn*math.Log(2*t-1))
	case t >= fn-1:
		return 2 * math.Pow(1-d, fn)
	case d >= 0.5:
		return 2 * smirnov(n, d)
	}
	x := t * d
	switch {
	case x >= 20:
		// Below 1e-17, where the limit is as good as the sum, which takes a term a value.
		return 2 * math.Exp(-2*x)
	case n <= 140 && x <= 4:
		return 1 - durbin(n, d)
	case n <= 140 || x >= 2.2:
		return 2 * smirnov(n, d)
	case n <= 100_000 && fn*math.Pow(d, 1.5) <= 1.4:
		return 1 - durbin(n, d)
	}
	return 1 - pelzGood(n, d)
}

// logFactorialShare is log(n! / n^n).
func logFactorialShare(n int) float64 {
	if n < 20 {
		sum := 0.0
		for i := 1; i <= n; i++ {
			sum += math.Log(float64(i) / float64(n))
		}
		return sum
	}
	fn := float64(n)
	return math.Log(fn)/2 - fn + math.Log(2*math.Pi)/2 + stirling(fn)
}

// smirnov is the probability that the one-sided statistic of a sample of n values is d
// or more (scipy.special.smirnov), the sum over j up to n(1-d) of
//
//	d C(n, j) (d + j/n)^(j-1) (1 - d - j/n)^(n-j)
//
// each term written by its distance from the largest of its kind, as Loader does, so
// that large n cost no digits.
func smirnov(n int, d float64) float64 {
	fn := float64(n)
	var sum total
	for j := 0; j <= int(math.Floor(fn*(1-d))); j++ {
		fj := float64(j)
		q := d + fj/fn // the place where the binomial is taken
		rest := 1 - q
		var log float64
		switch {
		case rest <= 0:
			if j != n {
				continue
			}
			log = 0
		case j == 0:
			log = fn * math.Log1p(-d)
		default:
			// C(n,j) q^j rest^(n-j), with Stirling's formula for the factorials.
			log = stirlingOf(n) - stirlingOf(j) - stirlingOf(n-j) - deviance(fj, fn*q) - deviance(fn-fj, fn*rest) +
				0.5*math.Log(fn/(2*math.Pi*fj*(fn-fj)))
		}
		term := math.Exp(log) * d / q
		sum.add(term)
	}
	return clip(sum.value())
}

// stirlingOf is stirling for any whole number of at least 1.
func stirlingOf(n int) float64 {
	if n >= len(stirlings) {
		return stirling(float64(n))
	}
	return stirlings[n]
}

var stirlings = func() (s [16]float64) {
	for n := 1; n < len(s); n++ {
		f := float64(n)
		g, _ := math.Lgamma(f + 1)
		s[n] = g - 0.5*math.Log(2*math.Pi*f) - f*math.Log(f) + f
	}
	return s
}()

// durbin is the probability that the two-sided statistic of n values is below d, by
// Durbin's matrix (G. Marsaglia, W. W. Tsang, J. Wang, "Evaluating Kolmogorov's
// distribution", 2003).
func durbin(n int, d float64) float64 {
	fn := float64(n)
	k := int(math.Ceil(fn * d))
	m := 2*k - 1
	h := float64(k) - fn*d
	H := make([]float64, m*m)
	for i := range m {
		for j := range m {
			if i-j+1 >= 0 {
				H[i*m+j] = 1
			}
		}
	}
	for i := range m {
		H[i*m] -= math.Pow(h, float64(i+1))
		H[(m-1)*m+i] -= math.Pow(h, float64(m-i))
	}
	if 2*h-1 > 0 {
		H[(m-1)*m] += math.Pow(2*h-1, float64(m))
	}
	for i := range m {
		for j := range m {
			for g := 2; g <= i-j+1; g++ {
				H[i*m+j] /= float64(g)
			}
		}
	}
	Q, exponent := power(H, m, n, k-1)
	s := Q[(k-1)*m+k-1]
	for i := 1; i <= n; i++ {
		s = s * float64(i) / fn
		if s < 1e-140 {
			s *= 1e140
			exponent -= 140
		}
	}
	return s * math.Pow(10, float64(exponent))
}

// power is H^n of an m by m matrix, with a power of 10 that it is to be multiplied by;
// center is the place by whose size it is scaled.
func power(H []float64, m, n, center int) (Q []float64, exponent int) { //nolint:gocritic // captLocal: a matrix, as in the paper
	if n == 1 {
		return append([]float64(nil), H...), 0
	}
	half, e := power(H, m, n/2, center)
	Q, exponent = multiply(half, half, m), 2*e
	if n%2 == 1 {
		Q = multiply(H, Q, m)
	}
	if Q[center*m+center] > 1e140 {
		for i := range Q {
			Q[i] *= 1e-140
		}
		exponent += 140
	}
	return Q, exponent
}

func multiply(a, b []float64, m int) []float64 {
	c := make([]float64, m*m)
	for i := range m {
		row := c[i*m : (i+1)*m]
		for k := range m {
			v := a[i*m+k]
			if v == 0 {
				continue
			}
			for j, w := range b[k*m : (k+1)*m] {
				row[j] += v * w
			}
		}
	}
	return c
}

// pelzGood approximates the probability that the two-sided statistic of n values is
// below d (W. Pelz and I. J. Good, "Approximating the lower tail-areas of the
// Kolmogorov-Smirnov one-sample statistic", 1976): Kolmogorov's limit and three terms
// in powers of 1/sqrt(n), each as a theta series that converges fast for small d.
func pelzGood(n int, d float64) float64 {
	const pi2, pi4, pi6 = math.Pi * math.Pi, math.Pi * math.Pi * math.Pi * math.Pi, math.Pi * math.Pi * math.Pi * math.Pi * math.Pi * math.Pi
	fn := float64(n)
	z := math.Sqrt(fn) * d
	z2 := z * z
	z4, z6 := z2*z2, z2*z2*z2
	z8, z10 := z4*z4, z4*z6
	logQ := -pi2 / 8 / z2
	if logQ < -708 {
		return 0
	}
	var k0, k1, k2, k3 total
	terms := int(math.Ceil(16 * z / math.Pi))
	for k := 1; k <= terms; k++ {
		odd := float64(2*k - 1)
		o2 := odd * odd
		o4, o6 := o2*o2, o2*o2*o2
		w := math.Exp(logQ * o2)
		k0.add(w)
		k1.add(w * (pi2/4*o2 - z2))
		k2.add(w * (6*z6 + 2*z4 + (2*z4-5*z2)*pi2/4*o2 + pi4*(1-2*z2)/16*o4))
		k3.add(w * (-30*z6 - 90*z8 + pi2*(135*z4-96*z6)/4*o2 + pi4*(-60*z2+212*z4)/16*o4 + pi6*(5-30*z2)/64*o6))
	}
	root := math.Sqrt(2 * math.Pi)
	var e2, e3 total
	for k := 1; k <= terms; k++ {
		f := float64(k)
		w := f * f * math.Exp(-pi2/2/z2*f*f)
		e2.add(w)
		e3.add(w * (math.Sqrt(3)*z + math.Pi*f) * (math.Sqrt(3)*z - math.Pi*f))
	}
	t0 := k0.value() * root / z
	t1 := k1.value() * root / (6 * z4)
	t2 := k2.value()*root/(72*z4*z2*z) + e2.value()*pi2*root/(-36*z2*z)
	t3 := k3.value()*root/(6480*z10) + e3.value()*pi2*root/(216*z6)
	return t0 + t1/math.Sqrt(fn) + t2/fn + t3/(fn*math.Sqrt(fn))
}

package shop

import (
	"fmt"
	"math"
)

// Catalogue is what the shop sells. It is a function of the seed and the size, so
// that two runs with different customers can share one.
type Catalogue struct {
	Products []Product

	categories []category
	interest   alias // over categories
	effect     []float64
}

// category is a contiguous range of Products.
type category struct {
	first, count int
	popularity   alias // over its products
}

// Streams of the generator, so that one use of the seed does not disturb another.
const (
	streamCatalogue = 1 + iota
	streamCustomers
)

// effectDeviation is how much products differ in appeal, in log odds.
const effectDeviation = 0.9

func newCatalogue(seed uint64, size int) (*Catalogue, error) {
	count := len(codedKinds) + len(uncodedKinds)
	if size < productsEachAtLeast*count {
		return nil, fmt.Errorf("a catalogue has at least %d products, got %d", productsEachAtLeast*count, size)
	}
	d := newDice(seed, streamCatalogue)
	c := &Catalogue{Products: make([]Product, 0, size), effect: make([]float64, 0, size)}

	kinds := make([]kind, 0, count)
	weights := make([]float64, 0, count)
	add := func(from []kind, share float64) {
		var sum float64
		for _, k := range from {
			sum += k.weight
		}
		for _, k := range from {
			kinds = append(kinds, k)
			weights = append(weights, k.weight/sum*share)
		}
	}
	add(codedKinds, 1-uncodedShare)
	add(uncodedKinds, uncodedShare)
	c.interest = newAlias(weights)

	// What makes a product sell, apart from its price; see appeal.
	brandEffect := map[string]float64{"": -0.5}
	levelEffect := map[string]float64{}
	drawn := func(m map[string]float64, key string, deviation float64) float64 {
		if _, ok := m[key]; !ok {
			m[key] = d.normal() * deviation
		}
		return m[key]
	}

	shares := make([]float64, 0, size) // of the interest, a product
	used := map[int64]bool{}
	spare := size - productsEachAtLeast*count
	for i, k := range kinds {
		n := productsEachAtLeast + int(float64(spare)*weights[i])
		if i == count-1 {
			n = size - len(c.Products)
		}
		categoryID := int64(categoryIDBase + hash(seed, uint64(i))%10_000_000_000)
		levelOne, levelTwo := levels(k.code)
		kindEffect := drawn(levelEffect, levelOne, 0.4) + drawn(levelEffect, levelOne+"."+levelTwo, 0.5)

		brandless := brandlessCoded
		if k.code == "" {
			brandless = brandlessUncoded
		}
		// Products without a brand are spread over the popularity so that their
		// share of the category's events, not of its products, is as wanted.
		popularity := make([]float64, n)
		var total float64
		for rank := range popularity {
			popularity[rank] = math.Pow(float64(rank+1), -popularityExponent)
			total += popularity[rank]
		}
		owed := (d.float() - 0.5) * popularity[0] / total
		for rank := range popularity {
			p := Product{Index: len(c.Products), CategoryID: categoryID, CategoryCode: k.code}
			for p.ID == 0 || used[p.ID] {
				p.ID = firstProductID + int64(d.below(60_000_000))
			}
			used[p.ID] = true
			// Squared, so that a kind's first brands lead, as in a real shop.
			u := d.float()
			p.Brand = k.brands[int(u*u*float64(len(k.brands)))]
			if owed += brandless * popularity[rank] / total; owed >= popularity[rank]/total {
				owed -= popularity[rank] / total
				p.Brand = ""
			}
			price := k.price * math.Exp(d.normal()*k.spread)
			p.Price = math.Round(min(max(price, cheapestPrice), dearestPrice)*100) / 100
			// Against the kind's median: what is cheap for its kind sells better.
			relative := math.Log(p.Price / k.price)
			absolute := math.Log(p.Price / 150)
			c.effect = append(c.effect,
				kindEffect+drawn(brandEffect, p.Brand, 0.7)-0.35*relative-0.3*absolute)
			c.Products = append(c.Products, p)
			shares = append(shares, weights[i]*popularity[rank]/total)
		}
		c.categories = append(c.categories, category{len(c.Products) - n, n, newAlias(popularity)})
	}
	standardise(c.effect, shares)
	return c, nil
}

// standardise gives the effects the mean 0 and the deviation effectDeviation over
// the shop's interest, so that shares of events do not hang on the seed's luck
// with the most popular kinds.
func standardise(effects, shares []float64) {
	var mean, variance float64
	for i, e := range effects {
		mean += e * shares[i]
	}
	for i, e := range effects {
		variance += (e - mean) * (e - mean) * shares[i]
	}
	for i, e := range effects {
		effects[i] = (e - mean) / math.Sqrt(variance) * effectDeviation
	}
}

// levels are the first two parts of a category code.
func levels(code string) (one, two string) {
	for i := range len(code) {
		if code[i] != '.' {
			continue
		}
		one, two = code[:i], code[i+1:]
		for j := range len(two) {
			if two[j] == '.' {
				return one, two[:j]
			}
		}
		return one, two
	}
	return code, ""
}

package shop

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2019, 10, 1, 0, 0, 0, 0, time.UTC)

func newSim(t testing.TB, change func(*Config)) *Sim {
	t.Helper()
	cfg := Config{Seed: 1, Start: start, Density: 20, Products: 5000, Users: 100_000}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func take(s *Sim, n int) []Event {
	events := make([]Event, n)
	for i := range events {
		s.Next(&events[i])
	}
	return events
}

func TestSim_sameConfigSameEvents(t *testing.T) {
	one, two := take(newSim(t, nil), 20_000), take(newSim(t, nil), 20_000)
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("two runs differ (-first +second):\n%s", diff)
	}
}

func TestSim_startChangesSessionsButNotCatalogue(t *testing.T) {
	one := newSim(t, nil)
	two := newSim(t, func(c *Config) { c.Start = start.Add(time.Hour) })
	if diff := cmp.Diff(one.Catalogue.Products, two.Catalogue.Products); diff != "" {
		t.Errorf("the catalogue changed (-first +second):\n%s", diff)
	}
	sessions := map[string]bool{}
	for _, e := range take(one, 5000) {
		sessions[e.Session] = true
	}
	for _, e := range take(two, 5000) {
		if sessions[e.Session] {
			t.Fatalf("session %s is in both runs", e.Session)
		}
	}
}

// The identity must hold where it is hardest: many events a second of event time.
func TestSim_sessionAndTimeIdentifyAnEvent(t *testing.T) {
	for _, density := range []float64{0.5, 20, 1000, 30_000} {
		s := newSim(t, func(c *Config) { c.Density = density })
		type identity struct {
			session string
			time    int64
		}
		seen := map[identity]bool{}
		last := int64(0)
		for i, e := range take(s, 100_000) {
			id := identity{e.Session, e.Time}
			if seen[id] {
				t.Fatalf("density %v: event %d repeats session %s at %s", density, i, e.Session, FormatTime(e.Time))
			}
			seen[id] = true
			if e.Time < last {
				t.Fatalf("density %v: time of event %d goes back", density, i)
			}
			last = e.Time
		}
	}
}

func TestSim_evenClockFollowsDensity(t *testing.T) {
	events := take(newSim(t, func(c *Config) { c.Density = 250 }), 10_000)
	if got, want := events[9999].Time, start.Unix()+39; got != want {
		t.Errorf("time of the last event: %s, want %s", FormatTime(got), FormatTime(want))
	}
}

func TestSim_dailyClockIsBusierInTheEvening(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Daily, c.Density = true, 2 })
	const days = 3
	var hours [24]int
	var e Event
	for {
		s.Next(&e)
		if e.Time >= start.Unix()+days*86400 {
			break
		}
		hours[e.Time%86400/3600]++
	}
	total := 0
	for _, n := range hours {
		total += n
	}
	if mean := float64(total) / (days * 86400); math.Abs(mean-2) > 0.1 {
		t.Errorf("mean density %.3f events/s, want 2", mean)
	}
	if hours[18] < 5*hours[6] {
		t.Errorf("%d events at 18 h and %d at 6 h, want at least five times as many", hours[18], hours[6])
	}
}

// A cart is filled by what was looked at just before; only what lies in it is
// removed or bought, once.
func TestSim_actionsOfASessionMakeSense(t *testing.T) {
	type state struct {
		viewed map[int64]bool
		cart   map[int64]bool
		user   int64
	}
	sessions := map[string]*state{}
	for i, e := range take(newSim(t, nil), 300_000) {
		s := sessions[e.Session]
		if s == nil {
			s = &state{map[int64]bool{}, map[int64]bool{}, e.User}
			sessions[e.Session] = s
		}
		if s.user != e.User {
			t.Fatalf("event %d: session %s changes its user", i, e.Session)
		}
		id := e.Product.ID
		switch e.Type {
		case View:
			s.viewed[id] = true
		case Cart:
			if !s.viewed[id] || s.cart[id] {
				t.Fatalf("event %d: a product is put into the cart that was not looked at or is there already", i)
			}
			s.cart[id] = true
		case RemoveFromCart, Purchase:
			if !s.cart[id] {
				t.Fatalf("event %d: %s of a product that is not in the cart", i, e.Type)
			}
			delete(s.cart, id)
		}
	}
}

func TestSim_sharesAreThoseOfTheRealData(t *testing.T) {
	const n = 400_000
	var types [4]int
	var noCode, noBrand int
	sessions, users := map[string]int{}, map[int64]bool{}
	products := map[int64]int{}
	for _, e := range take(newSim(t, nil), n) {
		types[e.Type]++
		if e.Product.CategoryCode == "" {
			noCode++
		}
		if e.Product.Brand == "" {
			noBrand++
		}
		sessions[e.Session]++
		users[e.User] = true
		products[e.Product.ID]++
	}
	top := 0
	for _, count := range products {
		top = max(top, count)
	}
	for _, c := range []struct {
		what      string
		got       float64
		low, high float64
	}{
		{"share of views", float64(types[View]) / n, 0.90, 0.96},
		{"share of carts", float64(types[Cart]) / n, 0.02, 0.05},
		{"share of purchases", float64(types[Purchase]) / n, 0.01, 0.03},
		{"share of removals", float64(types[RemoveFromCart]) / n, 0.003, 0.015},
		{"share without category code", float64(noCode) / n, 0.30, 0.34},
		{"share without brand", float64(noBrand) / n, 0.12, 0.16},
		{"events a session", n / float64(len(sessions)), 3, 8},
		{"events a user", n / float64(len(users)), 3, 12},
		{"share of the most looked-at product", float64(top) / n, 0.005, 0.05},
	} {
		if c.got < c.low || c.got > c.high {
			t.Errorf("%s is %.4f, want between %v and %v", c.what, c.got, c.low, c.high)
		}
	}
	t.Logf("%d sessions, %d users, %d products; types %v", len(sessions), len(users), len(products), types)
}

// The label of a cart event must depend on what a model is given, and not be
// decided by it.
func TestSim_purchaseCanBeLearned(t *testing.T) {
	s := newSim(t, func(c *Config) { c.Density = 1 })
	type key struct {
		session string
		product int64
	}
	type row struct {
		known  float64
		bought bool
	}
	rows := map[key]*row{}
	activity := map[string]int{}
	for _, e := range take(s, 600_000) {
		activity[e.Session]++
		k := key{e.Session, e.Product.ID}
		switch e.Type {
		case Cart:
			v := session{product: int32(e.Product.Index), events: int32(activity[e.Session])}
			rows[k] = &row{known: s.appeal(&v, e.Time)}
		case Purchase:
			rows[k].bought = true
		}
	}
	var positive, negative []float64
	for _, r := range rows {
		if r.bought {
			positive = append(positive, r.known)
		} else {
			negative = append(negative, r.known)
		}
	}
	// The area under the curve of a model that knows all but the mood.
	var wins, pairs float64
	for i, p := range positive {
		for j := i % 7; j < len(negative); j += 7 {
			pairs++
			if p > negative[j] {
				wins++
			}
		}
	}
	share := float64(len(positive)) / float64(len(rows))
	t.Logf("%d carts, %.1f %% bought, best AUC %.3f", len(rows), share*100, wins/pairs)
	if share < 0.3 || share > 0.65 {
		t.Errorf("%.1f %% of the carts are bought, want between 30 and 65", share*100)
	}
	if auc := wins / pairs; auc < 0.68 || auc > 0.9 {
		t.Errorf("the features explain an AUC of %.3f, want between 0.68 and 0.9", auc)
	}
}

func TestCatalogue_isPlausible(t *testing.T) {
	ids, codes, brands := map[int64]bool{}, map[int64]string{}, map[string]bool{}
	deepest := 0
	for _, p := range newSim(t, nil).Catalogue.Products {
		if ids[p.ID] {
			t.Fatalf("product %d is there twice", p.ID)
		}
		ids[p.ID] = true
		if code, ok := codes[p.CategoryID]; ok && code != p.CategoryCode {
			t.Fatalf("category %d has the codes %q and %q", p.CategoryID, code, p.CategoryCode)
		}
		codes[p.CategoryID] = p.CategoryCode
		if p.CategoryID < 1e18 {
			t.Errorf("category %d has not 19 digits", p.CategoryID)
		}
		if p.Price < cheapestPrice || p.Price > dearestPrice {
			t.Errorf("product %d costs %v", p.ID, p.Price)
		}
		brands[p.Brand] = true
		n := 1
		for _, c := range p.CategoryCode {
			if c == '.' {
				n++
			}
		}
		deepest = max(deepest, n)
	}
	if len(codes) < 80 || len(brands) < 60 || deepest < 3 {
		t.Errorf("%d categories of up to %d levels, %d brands: too few", len(codes), deepest, len(brands))
	}
}

func TestNew_refuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no density":   func(c *Config) { c.Density = 0 },
		"NaN density":  func(c *Config) { c.Density = math.NaN() },
		"no users":     func(c *Config) { c.Users = 0 },
		"no start":     func(c *Config) { c.Start = time.Time{} },
		"few products": func(c *Config) { c.Products = 10 },
	} {
		cfg := Config{Seed: 1, Start: start, Density: 20, Products: 5000, Users: 100}
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	for name, density := range map[string]float64{"20": 20, "20000": 20_000} {
		b.Run("density="+name, func(b *testing.B) {
			s := newSim(b, func(c *Config) { c.Density = density })
			var e Event
			b.ReportAllocs()
			for b.Loop() {
				s.Next(&e)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

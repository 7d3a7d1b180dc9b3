package shop

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Config decides a stream completely.
type Config struct {
	// Seed decides the catalogue, and together with Start the customers: a later
	// start finds the same products and brings other sessions.
	Seed uint64
	// Start is the first event's time, in whole seconds.
	Start time.Time
	// Density is in events a second of the events' own time.
	Density float64
	// Products and Users are the sizes of the catalogue and of the clientele.
	Products, Users int
	// Daily lets the density follow the hour of the day around its mean (quiet
	// at night, busiest in the evening); without it the clock runs evenly.
	Daily bool
}

// Sim yields the stream. It is not safe for concurrent use.
type Sim struct {
	Catalogue *Catalogue

	cfg     Config
	dice    dice
	start   int64 // seconds
	count   uint64
	elapsed float64 // seconds since start, with Daily
	pool    []session
	max     int
}

// session is one visit. A slot of the pool is reused when the visit is over.
type session struct {
	id       string
	user     int64
	last     int64   // time of its latest event
	category int32   // what the customer is interested in, as an index
	product  int32   // looked at last, as an index
	left     int32   // views still to come
	events   int32   // so far
	mood     float32 // how ready to buy, this visit
	looked   bool    // the latest event was a view: product may go into the cart
	items    uint8
	cart     [maxCart]item
}

// item lies in a cart. Whether it will be bought is decided when it is put there,
// from what is known then; that is what makes the label learnable.
type item struct {
	product int32
	fate    fate
	wait    uint8 // events of the session until it happens
}

type fate uint8

const (
	forgotten fate = iota
	removed
	bought
)

const (
	maxCart = 4

	// A customer's actions are about so far apart, in seconds of event time, as
	// long as the pool is large enough for the density.
	meanGap  = 40
	minPool  = 32
	bigPool  = 20_000
	poolStep = 4 // the pool grows by one visit every so many events

	// At least this many visits for each event of one second, so that no visit
	// needs two events in it.
	visitsPerSecondRate = 4
	// Draws of a visit that is still free in the current second before a busy
	// one is ended instead.
	freeDraws = 8

	meanViews     = 4.2
	browserShare  = 0.12 // of the visits, those who look at much more
	browserViews  = 22
	sameCategory  = 0.72 // of the views
	sameProduct   = 0.12
	cartBase      = -3.45 // log odds to put a looked-at product into the cart
	cartWeight    = 0.5   // of the appeal, in those
	purchaseBase  = -0.75 // log odds to buy what is in the cart
	removeShare   = 0.35  // of what is not bought
	moodDeviation = 0.6
)

// weekdayEffect is indexed by the weekday, 0 is Sunday.
var weekdayEffect = [7]float64{0.45, -0.3, -0.25, -0.15, 0, 0.3, 0.55}

// New checks the configuration and prepares the stream.
func New(cfg Config) (*Sim, error) {
	switch {
	case !(cfg.Density > 0) || math.IsInf(cfg.Density, 0):
		return nil, fmt.Errorf("density must be above 0 events/s, got %v", cfg.Density)
	case cfg.Users < 1:
		return nil, fmt.Errorf("at least 1 user is needed, got %d", cfg.Users)
	case cfg.Start.IsZero():
		return nil, errors.New("a start time is needed")
	}
	catalogue, err := newCatalogue(cfg.Seed, cfg.Products)
	if err != nil {
		return nil, err
	}
	start := cfg.Start.Unix()
	pool := min(cfg.Density*meanGap, max(bigPool, cfg.Density*visitsPerSecondRate))
	return &Sim{
		Catalogue: catalogue,
		cfg:       cfg,
		dice:      newDice(hash(cfg.Seed, uint64(start)), streamCustomers),
		start:     start,
		max:       max(minPool, int(pool)),
	}, nil
}

// Next writes the next event into e. The stream has no end. Event times never
// decrease.
func (s *Sim) Next(e *Event) {
	now := s.tick()
	v := s.visit(now)
	v.last = now
	v.events++
	e.Time = now
	e.User = v.user
	e.Session = v.id
	var product int32
	e.Type, product = s.act(v, now)
	e.Product = &s.Catalogue.Products[product]
}

// tick moves the clock to the next event.
func (s *Sim) tick() int64 {
	n := s.count
	s.count++
	if !s.cfg.Daily {
		return s.start + int64(float64(n)/s.cfg.Density)
	}
	t := s.start + int64(s.elapsed)
	hour := float64(t%86400) / 3600
	// Busiest at 18:00, quietest at 06:00, eight times apart; the mean is 1.
	factor := 1 - 7.0/9*math.Cos((hour-6)/24*2*math.Pi)
	s.elapsed += 1 / (s.cfg.Density * factor)
	return t
}

// visit picks who acts now: one of the visits under way, each as likely as the
// other, which makes the times between one's actions exponential.
func (s *Sim) visit(now int64) *session {
	if len(s.pool) < s.max && uint64(len(s.pool)) < minPool+s.count/poolStep {
		s.pool = append(s.pool, session{})
		v := &s.pool[len(s.pool)-1]
		s.arrive(v)
		return v
	}
	var v *session
	for range freeDraws {
		v = &s.pool[s.dice.below(len(s.pool))]
		if v.last == now {
			continue
		}
		if v.left <= 0 && !v.waiting() {
			s.arrive(v)
		}
		return v
	}
	s.arrive(v)
	return v
}

// waiting tells whether the customer still means to take something out of the
// cart or to buy it.
func (v *session) waiting() bool {
	for _, it := range v.cart[:v.items] {
		if it.fate != forgotten {
			return true
		}
	}
	return false
}

// arrive lets a new customer in.
func (s *Sim) arrive(v *session) {
	// Squared: some come much more often than others.
	u := s.dice.float()
	user := userIDBase + int64(u*u*float64(s.cfg.Users))
	nature := float64(hash(s.cfg.Seed, uint64(user))>>11) * 0x1p-53
	views := meanViews
	if nature < browserShare {
		views = browserViews
	}
	*v = session{
		id:       s.uuid(),
		user:     user,
		category: int32(s.Catalogue.interest.draw(&s.dice)),
		product:  -1,
		left:     int32(1 + s.dice.geometric(views-1)),
		mood:     float32(s.dice.normal() * moodDeviation),
	}
}

// act decides what the customer does.
func (s *Sim) act(v *session, now int64) (Type, int32) {
	if v.looked {
		v.looked = false
		if v.items < maxCart && !v.inCart(v.product) && s.dice.float() < odds(cartBase+cartWeight*s.appeal(v, now)) {
			s.putIntoCart(v, now)
			return Cart, v.product
		}
	}
	for i := range v.cart[:v.items] {
		it := &v.cart[i]
		if it.fate == forgotten {
			continue
		}
		if it.wait > 0 {
			it.wait--
			continue
		}
		product, did := it.product, RemoveFromCart
		if it.fate == bought {
			did = Purchase
		}
		v.items--
		v.cart[i] = v.cart[v.items]
		return did, product
	}
	v.left--
	v.looked = true
	u := s.dice.float()
	if v.product >= 0 && u < sameProduct {
		return View, v.product
	}
	if u > sameProduct+sameCategory {
		v.category = int32(s.Catalogue.interest.draw(&s.dice))
	}
	c := &s.Catalogue.categories[v.category]
	v.product = int32(c.first + c.popularity.draw(&s.dice))
	return View, v.product
}

func (v *session) inCart(product int32) bool {
	for _, it := range v.cart[:v.items] {
		if it.product == product {
			return true
		}
	}
	return false
}

func (s *Sim) putIntoCart(v *session, now int64) {
	it := item{product: v.product, wait: uint8(s.dice.below(4))}
	if s.dice.float() < s.purchaseProbability(v, now) {
		it.fate = bought
	} else if s.dice.float() < removeShare {
		it.fate = removed
	}
	v.cart[v.items] = it
	v.items++
}

// purchaseProbability is the truth that a model of the label has to find: the
// probability that what is put into the cart now is bought later in the visit.
func (s *Sim) purchaseProbability(v *session, now int64) float64 {
	return odds(purchaseBase + s.appeal(v, now))
}

// appeal adds up, in log odds, what a model can know (brand, category levels and
// price in the product's effect; weekday; activity so far) and what it cannot
// (the customer's mood).
func (s *Sim) appeal(v *session, now int64) float64 {
	weekday := (now/86400 + 4) % 7 // 1970-01-01 was a Thursday
	activity := 0.45 * (math.Log2(float64(v.events)) - 2)
	return s.Catalogue.effect[v.product] + weekdayEffect[weekday] + activity + float64(v.mood)
}

// odds turns log odds into a probability.
func odds(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// uuid draws a random (version 4) UUID.
func (s *Sim) uuid() string {
	const digits = "0123456789abcdef"
	hi := s.dice.pcg.Uint64()&^0xf000 | 0x4000
	lo := s.dice.pcg.Uint64()&^(3<<62) | 2<<62
	var b [36]byte
	at := 0
	for _, part := range [2]uint64{hi, lo} {
		for shift := 60; shift >= 0; shift -= 4 {
			if at == 8 || at == 13 || at == 18 || at == 23 {
				b[at] = '-'
				at++
			}
			b[at] = digits[part>>shift&0xf]
			at++
		}
	}
	return string(b[:])
}

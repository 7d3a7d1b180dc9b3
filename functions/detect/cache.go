package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/millrace-dev/millrace/shared/anomaly"
)

// entity is what is in memory of one.
type entity struct {
	plan *anomaly.Plan
	name string
	key  string // of its state

	// state is nil until it was read, and after a failure.
	state *anomaly.State
	// stored is the version that Redis has, its first bytes.
	stored string
	known  anomaly.Entity
	newest time.Time // reading
	blob   []byte    // room

	// Of the models: the counter when they were read, and when that was.
	trained string
	checked time.Time

	touched bool // by the batch at hand
}

// refresh is how often models are looked for while others train.
const refresh = time.Minute

// outdated tells whether there may be newer models in Redis.
func (e *entity) outdated(trained string, now time.Time) bool {
	return e.trained != trained && now.Sub(e.checked) > refresh
}

func (e *entity) use(models anomaly.Models) {
	list := make([]*anomaly.Model, len(e.plan.Metrics))
	for i, name := range e.plan.Metrics {
		list[i] = models[name]
	}
	e.known.Models = list
}

// cache has the entities in memory. The handler owns it; the trainer and the metrics
// take what they need under its lock.
type cache struct {
	mu      sync.Mutex
	max     int
	by      map[cacheKey]*entity
	trained string // the counter of models as last seen
}

type cacheKey struct{ contract, entity string }

func newCache(n int) *cache { return &cache{max: n, by: map[cacheKey]*entity{}} }

// get finds an entity or makes one whose state has to be read.
func (c *cache) get(p *anomaly.Plan, name string) *entity {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := cacheKey{p.Contract, name}
	if e := c.by[k]; e != nil {
		return e
	}
	// Any that is not part of this batch; which one it is does not matter much.
	for other, e := range c.by {
		if len(c.by) < c.max {
			break
		}
		if !e.touched {
			delete(c.by, other)
		}
	}
	e := &entity{plan: p, name: name, key: stateKey(p.Contract, name)}
	c.by[k] = e
	return e
}

// learn takes the models that were read. Those that are there are kept if Redis has
// none: it may have lost its data.
func (c *cache) learn(ctx context.Context, e *entity, blob string) {
	if blob == "" {
		return
	}
	models, err := anomaly.ParseModels([]byte(blob))
	if err != nil {
		slog.ErrorContext(ctx, "models are damaged and not used", "contract", e.plan.Contract, "entity", e.name, "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.use(models)
}

// advance notes the newest readings.
func (c *cache) advance(items []item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range items {
		if it := &items[i]; it.entity.newest.Before(it.reading.Time) {
			it.entity.newest = it.reading.Time
		}
	}
}

// newest is the time of an entity's newest reading, zero if it is not in memory.
func (c *cache) newest(k cacheKey) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.by[k]; e != nil {
		return e.newest
	}
	return time.Time{}
}

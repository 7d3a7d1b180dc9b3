package shape

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

// memory is how many recent rows an update or a delete may be about.
const memory = 1024

// Changes turns events into the changes of a table: each event is inserted, and
// now and then a recent row gets another price or is deleted.
type Changes struct {
	updates, deletes float64
	rand             *rand.PCG
	position         uint64
	rows             []shop.Event
	next             int
	out              []Change
}

// NewChanges makes a table whose rows are updated and deleted with the given
// shares, each relative to the inserts.
func NewChanges(seed uint64, updates, deletes float64) (*Changes, error) {
	if !(updates >= 0 && deletes >= 0 && updates+deletes <= 1) {
		return nil, fmt.Errorf("shares of updates and deletes must be at least 0 and together at most 1, got %v and %v", updates, deletes)
	}
	return &Changes{updates: updates, deletes: deletes, rand: rand.NewPCG(seed, 3)}, nil
}

// Insert returns the changes that follow from an event, its insertion first. The
// result and the rows in it are valid until the next call; ev is kept only as a
// copy.
func (c *Changes) Insert(ev *shop.Event) []Change {
	c.out = append(c.out[:0], Change{Op: 'c', After: ev, Position: c.position})
	c.position++
	if c.updates+c.deletes == 0 {
		return c.out
	}
	if u := float64(c.rand.Uint64()>>11) * 0x1p-53; len(c.rows) > 0 && u < c.updates+c.deletes {
		i := int(c.rand.Uint64() % uint64(len(c.rows)))
		old := c.rows[i]
		change := Change{Op: 'd', Before: &old, Position: c.position}
		if u < c.updates {
			product := *old.Product
			product.Index = shop.NoIndex
			product.Price = math.Round(max(product.Price*0.9, 0.01)*100) / 100
			c.rows[i].Product = &product
			after := c.rows[i]
			change.Op, change.After = 'u', &after
		} else {
			c.rows[i] = c.rows[len(c.rows)-1]
			c.rows = c.rows[:len(c.rows)-1]
		}
		c.out = append(c.out, change)
		c.position++
	}
	c.remember(ev)
	return c.out
}

func (c *Changes) remember(ev *shop.Event) {
	row := *ev
	if row.Product.Index == shop.NoIndex {
		product := *row.Product // the caller's may be overwritten
		row.Product = &product
	}
	if len(c.rows) < memory {
		c.rows = append(c.rows, row)
		return
	}
	c.rows[c.next%memory] = row
	c.next++
}

package main

import (
	"math/rand/v2"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shape"
)

// maker turns events into messages. Which are bad, and how, follows from the seed
// and a message's number alone, so that the good ones are the same whatever the
// share of bad ones, and a run can be taken up in the middle.
type maker struct {
	encoder *shape.Encoder
	changes *shape.Changes
	key     keyMode
	seed    uint64
	bad     float64
	kinds   []shape.Kind

	dice rand.PCG // of the current message
	slab []byte   // messages are cut from it; what is cut off is never written again
}

// badStream keeps the draws for bad messages apart from others of the same seed.
const badStream = 0x6261640000000000

// kind decides what the message with this number is.
func (m *maker) kind(c *shape.Change, seq uint64) shape.Kind {
	if c.Op != 'c' || m.bad == 0 {
		return natural(c)
	}
	m.dice.Seed(m.seed^badStream, seq)
	m.dice.Uint64() // neighbouring seeds are still alike in the first number
	if float64(m.dice.Uint64()>>11)*0x1p-53 >= m.bad {
		return natural(c)
	}
	return m.kinds[m.dice.Uint64()%uint64(len(m.kinds))]
}

// natural is the kind of a message that is sent as the event is. Recorded streams
// hold events with a price that contracts refuse.
func natural(c *shape.Change) shape.Kind {
	if c.After == nil {
		return shape.Good
	}
	switch price := c.After.Product.Price; {
	case price > 0:
		return shape.Good
	case price == 0:
		return shape.ZeroPrice
	default:
		return shape.NegativePrice
	}
}

// write makes the key and the value of a message. kind was called for it just
// before.
func (m *maker) write(c *shape.Change, kind shape.Kind) (key, value []byte) {
	const slabSize, longest = 1 << 20, 16 << 10
	if cap(m.slab)-len(m.slab) < longest {
		m.slab = make([]byte, 0, slabSize)
	}
	switch m.key {
	case sessionKey:
		m.slab = append(m.slab, c.Row().Session...)
	case rowKey:
		m.slab = m.encoder.AppendRowKey(m.slab, c)
	}
	if m.key != noKey {
		key = m.cut()
	}
	if kind == natural(c) {
		m.slab = m.encoder.Append(m.slab, c)
	} else {
		m.slab = m.encoder.AppendBad(m.slab, c, kind, &m.dice)
	}
	return key, m.cut()
}

// cut takes what was written off the slab.
func (m *maker) cut() []byte {
	n := len(m.slab)
	piece := m.slab[:n:n]
	m.slab = m.slab[n:]
	return piece
}

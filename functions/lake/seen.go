package main

import (
	"encoding/binary"
	"hash/maphash"

	"github.com/millrace-dev/millrace/shared/lake"
)

// eventHash stands for an event's source and id. With 128 bits from seeds that are
// drawn anew in each process, two events that share one are not to be expected in
// the life of the system, by chance or by design: a hit means the same event.
type eventHash [2]uint64

type hasher struct {
	seeds [2]maphash.Seed
	buf   []byte
}

func seeds() [2]maphash.Seed { return [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()} }

func newHasher(seeds [2]maphash.Seed) *hasher { return &hasher{seeds: seeds} }

func (h *hasher) hash(a *lake.Attrs) eventHash {
	h.buf = binary.AppendUvarint(h.buf[:0], uint64(len(a.Source)))
	h.buf = append(h.buf, a.Source...)
	h.buf = append(h.buf, a.ID...)
	return eventHash{maphash.Bytes(h.seeds[0], h.buf), maphash.Bytes(h.seeds[1], h.buf)}
}

// seen knows which events a partition held in the offsets [from, pos), where pos is
// the beginning of a chunk (or of what is drained of it) and from at most Window
// before that chunk.
//
// A record is a duplicate when an event of its source and id stands in the log at
// from or later, and before it. Kept or dropped makes no difference: if that one
// was dropped, one before it was kept. Whether the index was kept in memory since
// the last drain or read again from Kafka, it answers the same, because of each
// event it holds the last offset, and offsets before from do not count.
type seen struct {
	pos  int64
	from int64
	at   map[eventHash]int64
	// chunk holds the offsets from pos on while a chunk is drained that will be
	// drained again from pos: what is in it must not be in at.
	chunk map[eventHash]int64
}

func newSeen(from, pos int64) *seen {
	return &seen{from: from, pos: pos, at: make(map[eventHash]int64)}
}

// add notes an event at an offset before pos.
func (s *seen) add(h eventHash, offset int64) { s.at[h] = offset }

// duplicate notes an event at an offset from pos on and tells whether it was seen
// before.
func (s *seen) duplicate(h eventHash, offset int64) bool {
	if s.chunk != nil {
		_, again := s.chunk[h]
		s.chunk[h] = offset
		if again {
			return true
		}
	}
	last, ok := s.at[h]
	if s.chunk == nil {
		s.at[h] = offset
	}
	return ok && last >= s.from
}

// provisional makes what is noted from now on go away at the next forget.
func (s *seen) provisional() { s.chunk = make(map[eventHash]int64) }

// forget drops what was noted since provisional.
func (s *seen) forget() { s.chunk = nil }

// advance moves on to a new chunk. Events before from are dropped from memory now
// and then, since going over all of them is not free; room is how many may stay.
func (s *seen) advance(from, pos int64, room int) {
	s.from, s.pos = from, pos
	if len(s.at) <= room {
		return
	}
	for h, offset := range s.at {
		if offset < from {
			delete(s.at, h)
		}
	}
}

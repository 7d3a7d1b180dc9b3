package anomaly

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
)

// Formats of states. The first has no levels from before open anomalies.
const (
	stateFormat  = 2
	oldestFormat = 1
)

// VersionBytes is how many bytes a stored state starts with that are its version and
// nothing else, so that a store can compare them.
const VersionBytes = 8

// AppendState writes a state, its version first. Channels are told apart by a hash of
// their types, so that a state outlives a contract that gets or loses metrics.
func (p *Plan) AppendState(b []byte, s *State) []byte {
	b = binary.LittleEndian.AppendUint64(b, s.Version)
	b = append(b, stateFormat, byte(len(s.points)))
	before := int64(0)
	for _, at := range s.points {
		b = binary.AppendVarint(b, at.at-before)
		b = binary.LittleEndian.AppendUint32(b, at.key)
		before = at.at
	}
	b = binary.AppendUvarint(b, uint64(len(s.channels)))
	for c := range s.channels {
		t := &s.channels[c]
		b = binary.LittleEndian.AppendUint32(b, p.hash(c))
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(t.level))
		for _, d := range t.distance[:len(s.points)] {
			b = binary.LittleEndian.AppendUint16(b, uint16(d))
		}
		b = append(b, t.phase)
		if t.phase == open {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(t.before))
		}
		b = binary.AppendVarint(b, t.began)
		b = binary.AppendVarint(b, t.ended)
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(t.peak))
		b = binary.AppendUvarint(b, uint64(t.points))
		b = binary.AppendUvarint(b, uint64(t.rest))
	}
	b = binary.AppendUvarint(b, uint64(len(s.log)))
	for i := range s.log {
		e := &s.log[i]
		b = binary.AppendVarint(b, e.cause.at)
		b = binary.LittleEndian.AppendUint32(b, e.cause.key)
		b = binary.AppendUvarint(b, e.version)
		b = append(b, byte(e.event.Kind))
		text, err := json.Marshal(&e.event.Anomaly)
		if err != nil {
			panic(err) // all of its numbers are finite
		}
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	return b
}

// ParseState reads what AppendState wrote. What it holds of channels that the plan does
// not have is left out.
func (p *Plan) ParseState(b []byte) (*State, error) {
	r := reader{b: b}
	s := &State{Version: r.uint64()}
	format := r.byte()
	if (format < oldestFormat || format > stateFormat) && r.err == nil {
		return nil, fmt.Errorf("state: format %d is not known here", format)
	}
	n := int(r.byte())
	if n > ring {
		return nil, fmt.Errorf("state: %d readings, at most %d are remembered", n, ring)
	}
	before := int64(0)
	for i := range n {
		at := point{before + r.varint(), r.uint32()}
		if r.err == nil && (i > 0 && !s.points[i-1].before(at) || at.at > maxMicro || at.at < -maxMicro) {
			return nil, errors.New("state: its readings are not in order")
		}
		s.points = append(s.points, at)
		before = at.at
	}
	p.clear(s)
	for range r.count(1 << 12) {
		t := track{before: math.NaN()}
		for i := range t.distance {
			t.distance[i] = unknown
		}
		of := r.uint32()
		t.level = r.float64()
		for i := range n {
			t.distance[i] = int16(r.uint16())
		}
		t.phase = r.byte()
		if t.phase == open && format > oldestFormat {
			t.before = r.float64()
		}
		t.began, t.ended = r.varint(), r.varint()
		t.peak = r.float64()
		t.points, t.rest = r.count(1<<40), r.count(1<<20)
		if r.err != nil {
			break
		}
		if t.phase >= phases || math.IsInf(t.level, 0) || math.IsInf(t.before, 0) || !(t.peak >= 0 && t.peak <= 1) || t.began > maxMicro || t.began < -maxMicro {
			return nil, errors.New("state: a channel is damaged")
		}
		for c := range p.Channels {
			if p.hash(c) == of {
				s.channels[c] = t
			}
		}
	}
	for range r.count(keptEvents) {
		e := said{cause: point{r.varint(), r.uint32()}}
		e.version = uint64(r.count(1 << 62))
		e.event.Kind = Kind(r.byte())
		text := r.bytes(r.count(1 << 16))
		if r.err != nil {
			break
		}
		if e.event.Kind >= kinds {
			return nil, errors.New("state: an event is damaged")
		}
		if err := json.Unmarshal(text, &e.event.Anomaly); err != nil {
			return nil, fmt.Errorf("state: an event is damaged: %w", err)
		}
		s.log = append(s.log, e)
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = errors.New("it goes on after its end")
	}
	if r.err != nil {
		return nil, fmt.Errorf("state: %w", r.err)
	}
	return s, nil
}

const maxMicro = maxMilli * 1000

// clear gives a state channels that know nothing.
func (p *Plan) clear(s *State) {
	s.channels = make([]track, len(p.Channels))
	for c := range s.channels {
		s.channels[c].level, s.channels[c].before = math.NaN(), math.NaN()
		for i := range s.channels[c].distance {
			s.channels[c].distance[i] = unknown
		}
	}
}

func (p *Plan) hash(channel int) uint32 {
	if p.hashes == nil {
		return hashOf(p.Channels[channel].Type)
	}
	return p.hashes[channel]
}

func hashOf(text string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text)) // it cannot fail
	return h.Sum32()
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) varint() int64 {
	n, size := binary.Varint(r.b)
	if r.err == nil && (size <= 0 || n > maxMicro || n < -maxMicro) {
		r.err = errors.New("a number is out of range")
	}
	if r.err != nil {
		return 0
	}
	r.b = r.b[size:]
	return n
}

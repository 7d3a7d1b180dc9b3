package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Model is what is expected of one metric of one entity, and how far from it a single
// reading may be without being odd. It does not change after it was made.
type Model struct {
	// Trained is when it was made, From and To what of, Points how many buckets of that
	// had readings.
	Trained, From, To time.Time
	Points            int
	// Step is the width of the buckets.
	Step time.Duration
	// Season is the course of a season, a value a step, counted from the start of 1970,
	// so that it is in phase whenever it was learnt. Without it only the level is
	// known: the history is too short for a season, or has none.
	Season []float32
	// Week is what the hours of the week, from Thursday 00:00 UTC, add to that; nil if
	// less than two weeks were seen.
	Week []float32
	// Level is the trend at To.
	Level float64
	// Up and Down are the deviation of single readings above and below what is
	// expected. They are made so that usual readings hardly ever come to twice as
	// much: the noise's robust deviation, or half of what the noise did reach.
	Up, Down float64
}

// Seasonal tells whether the model knows a season.
func (m *Model) Seasonal() bool { return len(m.Season) > 0 }

// SeasonAt is what is expected at a time beyond the level.
func (m *Model) SeasonAt(t time.Time) float64 {
	return cyclic(m.Season, m.Step, t) + cyclic(m.Week, time.Hour, t)
}

// cyclic draws lines between the values of a cycle, each of which stands for the
// middle of its step.
func cyclic(values []float32, step time.Duration, t time.Time) float64 {
	if len(values) == 0 {
		return 0
	}
	cycle := int64(step) * int64(len(values))
	at := (t.UnixNano() - int64(step)/2) % cycle
	if at < 0 {
		at += cycle
	}
	i := at / int64(step)
	part := float64(at-i*int64(step)) / float64(step)
	from, to := float64(values[i]), float64(values[(i+1)%int64(len(values))])
	return from + (to-from)*part
}

// Distance is the deviation of a residual, signed.
func (m *Model) Distance(residual float64) float64 {
	if residual < 0 {
		return residual / m.Down
	}
	return residual / m.Up
}

// Models are those of one entity, by metric.
type Models map[string]*Model

const (
	modelFormat = 1
	// maxCycle bounds a season in steps, and so what a damaged text can ask for.
	maxCycle = 1 << 16
)

// Append writes the models of the named metrics, in that order; a metric without one
// is left out.
func (ms Models) Append(b []byte, metrics []string) []byte {
	b = append(b, modelFormat)
	for _, name := range metrics {
		m := ms[name]
		if m == nil {
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		for _, t := range [...]time.Time{m.Trained, m.From, m.To} {
			b = binary.LittleEndian.AppendUint64(b, uint64(t.UnixMilli()))
		}
		b = binary.AppendUvarint(b, uint64(m.Points))
		b = binary.AppendUvarint(b, uint64(m.Step/time.Millisecond))
		for _, v := range [...]float64{m.Level, m.Up, m.Down} {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		}
		for _, values := range [...][]float32{m.Season, m.Week} {
			b = binary.AppendUvarint(b, uint64(len(values)))
			for _, v := range values {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
			}
		}
	}
	return b
}

// ParseModels reads what Append wrote. It takes nothing that could not be judged by.
func ParseModels(b []byte) (Models, error) {
	r := reader{b: b}
	if format := r.byte(); format != modelFormat && r.err == nil {
		return nil, fmt.Errorf("models: format %d is not known here", format)
	}
	ms := Models{}
	for r.err == nil && len(r.b) > 0 {
		name := string(r.bytes(r.count(1 << 10)))
		m := &Model{Trained: r.time(), From: r.time(), To: r.time()}
		m.Points = r.count(1 << 30)
		m.Step = time.Duration(r.count(1<<40)) * time.Millisecond
		m.Level, m.Up, m.Down = r.float64(), r.float64(), r.float64()
		m.Season, m.Week = r.floats(), r.floats()
		if r.err == nil {
			if err := m.check(); err != nil {
				return nil, fmt.Errorf("models: %.80q: %w", name, err)
			}
		}
		ms[name] = m
	}
	if r.err != nil {
		return nil, fmt.Errorf("models: %w", r.err)
	}
	return ms, nil
}

func (m *Model) check() error {
	switch {
	case m.Step < time.Second:
		return fmt.Errorf("the step is %s", m.Step)
	case !finite(m.Level):
		return errors.New("the level is not a number")
	case !finite(m.Up) || !finite(m.Down) || m.Up <= 0 || m.Down <= 0:
		return errors.New("a deviation is not a positive number")
	}
	for _, values := range [...][]float32{m.Season, m.Week} {
		for _, v := range values {
			if !finite(float64(v)) {
				return errors.New("a value of the season is not a number")
			}
		}
	}
	return nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// reader takes a binary text apart. After the first error it gives zeros.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("it ends too early")

func (r *reader) bytes(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) float32() float32 { return math.Float32frombits(r.uint32()) }
func (r *reader) float64() float64 { return math.Float64frombits(r.uint64()) }

// maxMilli is some time after the year 9999, which times have to be before.
const maxMilli = 1 << 48

func (r *reader) milli() int64 {
	n := int64(r.uint64())
	if r.err == nil && (n > maxMilli || n < -maxMilli) {
		r.err = errors.New("a time is out of range")
	}
	return n
}

func (r *reader) time() time.Time { return time.UnixMilli(r.milli()).UTC() }

func (r *reader) count(limit uint64) int {
	n, size := binary.Uvarint(r.b)
	if r.err == nil && (size <= 0 || n > limit) {
		r.err = errors.New("a length is out of range")
	}
	if r.err != nil {
		return 0
	}
	r.b = r.b[size:]
	return int(n)
}

func (r *reader) floats() []float32 {
	n := r.count(maxCycle)
	if r.err == nil && n*4 > len(r.b) {
		r.err = errShort
	}
	if r.err != nil || n == 0 {
		return nil
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = r.float32()
	}
	return values
}

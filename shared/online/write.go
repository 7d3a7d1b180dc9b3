package online

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-dev/millrace/shared/features"
)

// ErrEmpty says that Redis holds no epoch: it is new, or has lost its data. Nothing
// was written. Restore what can be restored, then call Begin.
var ErrEmpty = errors.New("the online store is empty: it is new, or has lost its data")

// Prefixes of the keys of entities.
const (
	SessionPrefix     = "f2:s:"
	UserProductPrefix = "f2:p:"
)

const epochKey = "f2:epoch"

var (
	//go:embed write.lua
	writeLua string
	//go:embed push.lua
	pushLua string

	writeScript = redis.NewScript(writeLua)
	pushScript  = redis.NewScript(pushLua)
)

// stated are the features of the views that events say themselves: all but the rank.
var stated = map[*features.View][]int{
	&features.Session:     statedOf(&features.Session),
	&features.UserProduct: statedOf(&features.UserProduct),
}

func statedOf(v *features.View) []int {
	return slices.DeleteFunc(slices.Clone(v.Features), func(place int) bool { return place == features.ActivityCount })
}

var statedSession, statedPair = stated[&features.Session], stated[&features.UserProduct]

// appendValues packs the values of features, each with its length before it.
func appendValues(dst []byte, vector *features.Vector, places []int) []byte {
	for _, place := range places {
		// Its length takes a byte unless it is long.
		from := len(dst)
		dst = vector[place].AppendText(append(dst, 0))
		if n := len(dst) - from - 1; n < 0x80 {
			dst[from] = byte(n)
		} else {
			text := string(dst[from+1:])
			dst = append(binary.AppendUvarint(dst[:from], uint64(n)), text...)
		}
	}
	return dst
}

// Entry is an event to write, with its natural key.
type Entry struct {
	Event features.Event
	Hash  [32]byte
}

// Known is an event whose rank is known already, from the warehouse.
type Known struct {
	Entry
	Rank int64
	// Arrival is when the event arrived. What arrived so long ago that it would have
	// expired is left out.
	Arrival time.Time
}

// Put writes the features of events that arrived now, in order, and returns the
// rank of each event and how many entities changed. It is one round trip, and one
// script: all is done or nothing. An event that comes again gets the same rank and
// changes nothing.
//
// The error is ErrEmpty, or says what is wrong with Redis; then all may have been
// done or nothing, and the events have to come again, in the same order.
func (s *Store) Put(ctx context.Context, entries []Entry) (ranks []int64, written int, err error) {
	if len(entries) == 0 {
		return nil, 0, nil
	}
	b := s.newBatch(len(entries), true)
	now := s.now()
	p := packing{sessionTTL: s.sessionExpiry(now).Sub(now), pairTTL: s.featureTTL + grace, arrival: now, keep: true}
	for i := range entries {
		b.add(&entries[i], p)
	}
	return s.write(ctx, b)
}

// Materialize writes what the warehouse knows of events, where nothing newer is
// there. It assigns no ranks: an event that Put has seen keeps its own.
func (s *Store) Materialize(ctx context.Context, known []Known) (written int, err error) {
	return s.known(ctx, known, true)
}

// Restore is Materialize for a Redis that has no epoch yet; it also brings back the
// ranks, so that sessions go on where they were.
func (s *Store) Restore(ctx context.Context, known []Known) (written int, err error) {
	return s.known(ctx, known, false)
}

func (s *Store) known(ctx context.Context, known []Known, begun bool) (int, error) {
	b := s.newBatch(len(known), begun)
	now := s.now()
	for i := range known {
		k := &known[i]
		age := now.Sub(k.Arrival)
		p := packing{
			rank: k.Rank, sessionTTL: s.sessionExpiry(k.Arrival).Sub(now), pairTTL: s.featureTTL + grace - age, arrival: k.Arrival,
			keep: !begun,
		}
		if p.pairTTL > 0 {
			b.add(&k.Entry, p)
		}
	}
	if len(b.keys) == 1 {
		return 0, nil
	}
	_, written, err := s.write(ctx, b)
	return written, err
}

// Begin makes the epoch: from now on, Put takes events. It changes nothing where
// there is one.
func (s *Store) Begin(ctx context.Context) error {
	if err := s.redis.SetNX(ctx, epochKey, s.now().UTC().Format(time.RFC3339), 0).Err(); err != nil {
		return fmt.Errorf("beginning an epoch: %w", err)
	}
	return nil
}

// Begun tells whether there is an epoch.
func (s *Store) Begun(ctx context.Context) (bool, error) {
	n, err := s.redis.Exists(ctx, epochKey).Result()
	if err != nil {
		return false, fmt.Errorf("looking for the epoch: %w", err)
	}
	return n == 1, nil
}

// batch is the arguments of one call of the script.
type batch struct {
	keys []string
	args []any
	text []byte
}

func (s *Store) newBatch(n int, begun bool) *batch {
	b := &batch{keys: make([]string, 1, 1+2*n), args: make([]any, 2, 2+3*n)}
	b.keys[0], b.args[0], b.args[1] = epochKey, "0", s.expirySlack().Milliseconds()
	if begun {
		b.args[0] = "1"
	}
	return b
}

// expirySlack is how much later than it has to a session may expire: those events that
// arrive within one such time leave the expiry as it is.
func (s *Store) expirySlack() time.Duration { return (s.sessionTTL / 24).Truncate(time.Millisecond) }

// sessionExpiry is when a session expires whose last event arrived then.
func (s *Store) sessionExpiry(arrival time.Time) time.Time {
	slack := s.expirySlack().Milliseconds()
	return time.UnixMilli((arrival.UnixMilli()/slack + 1) * slack).Add(s.sessionTTL)
}

// packing is what the script has to know of an event besides the event.
type packing struct {
	rank                int64 // 0 to assign one
	sessionTTL, pairTTL time.Duration
	arrival             time.Time
	keep                bool // the rank
}

// add appends an event. The packed text has these digits, but for the first part:
// 16 bytes of the event's hash, 18 of its time, 10 that decide between events of
// one time and rank, 13 of the arrival in milliseconds, 11 each of the TTLs of the
// session and the pair in milliseconds, the flags keep and correction, 9 of the rank if
// it is known, and 20 of a correction's log position if there is one. Digits, since the
// order of other characters is up to the locale that Redis runs in.
func (b *batch) add(e *Entry, p packing) {
	text := appendSessionKey(b.text[:0], e.Event.Session)
	sessionEnd := len(text)
	text = appendUserProductKey(text, e.Event.UserID, e.Event.ProductID)
	pairEnd := len(text)

	text = append(text, e.Hash[:16]...)
	text = appendTime(text, e.Event.Time)
	text = appendDigits(text, uint64(binary.BigEndian.Uint32(e.Hash[:])), tieDigits)
	text = appendDigits(text, uint64(p.arrival.UnixMilli()), arrivalDigits)
	text = appendDigits(text, uint64(p.sessionTTL.Milliseconds()), 11)
	text = appendDigits(text, uint64(p.pairTTL.Milliseconds()), 11)
	text = appendFlag(text, p.keep)
	// A correction without a position is the last one to come.
	text = appendFlag(text, e.Event.Op == "u" && e.Event.LSN == 0)
	text = appendDigits(text, uint64(p.rank), rankDigits)
	if e.Event.Op == "u" && e.Event.LSN != 0 {
		text = appendDigits(text, e.Event.LSN, 20)
	}
	packedEnd := len(text)
	vector := features.Of(&e.Event, 0)
	text = appendValues(text, &vector, statedSession)
	valuesEnd := len(text)
	text = appendValues(text, &vector, statedPair)
	b.text = text

	all := string(text) // one allocation an event
	b.keys = append(b.keys, all[:sessionEnd], all[sessionEnd:pairEnd])
	b.args = append(b.args, all[pairEnd:packedEnd], all[packedEnd:valuesEnd], all[valuesEnd:])
}

const (
	timeDigits, rankDigits, tieDigits = 18, 9, 10
	arrivalDigits                     = 13
	// versionDigits are those of a version without a change.
	versionDigits = timeDigits + rankDigits + tieDigits
)

func appendFlag(dst []byte, set bool) []byte {
	if set {
		return append(dst, '1')
	}
	return append(dst, '0')
}

func (s *Store) write(ctx context.Context, b *batch) (ranks []int64, written int, err error) {
	// Redis forgets scripts when it starts again; Run then sends the text.
	answer, err := writeScript.Run(ctx, s.redis, b.keys, b.args...).Int64Slice()
	if err != nil {
		if strings.HasPrefix(err.Error(), "EMPTY ") {
			return nil, 0, ErrEmpty
		}
		return nil, 0, fmt.Errorf("writing features: %w", err)
	}
	n := (len(b.keys) - 1) / 2
	if len(answer) != n+1 {
		return nil, 0, fmt.Errorf("writing features: Redis gave %d ranks for %d events", len(answer)-1, n)
	}
	return answer[:n], int(answer[n]), nil
}

func appendSessionKey(dst []byte, session string) []byte {
	return append(append(dst, SessionPrefix...), session...)
}

func appendUserProductKey(dst []byte, user, product int64) []byte {
	dst = strconv.AppendInt(append(dst, UserProductPrefix...), user, 10)
	return strconv.AppendInt(append(dst, ':'), product, 10)
}

// timeOffset makes the times of the years 1 to 9999 not negative, in microseconds.
const timeOffset = 62135596800_000000

func appendTime(dst []byte, t time.Time) []byte {
	return appendDigits(dst, uint64(t.UnixMicro()+timeOffset), timeDigits)
}

func parseTime(text string) (time.Time, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, errors.New("it has no time")
	}
	return time.UnixMicro(n - timeOffset).UTC(), nil
}

// appendDigits appends a number with the given number of digits, which it must not
// exceed.
func appendDigits(dst []byte, n uint64, digits int) []byte {
	var text [20]byte
	for i := digits - 1; i >= 0; i-- {
		text[i] = '0' + byte(n%10)
		n /= 10
	}
	return append(dst, text[:digits]...)
}

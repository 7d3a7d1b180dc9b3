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

const epochKey = "fs:epoch"

var (
	//go:embed write.lua
	writeLua string
	//go:embed push.lua
	pushLua string

	writeScript = redis.NewScript(buildWrite())
	pushScript  = redis.NewScript(pushLua)
)

// stated are the features that events say themselves, whose values the script gets.
var stated = func() (places []int) {
	for i := range features.Count {
		if i != features.ActivityCount {
			places = append(places, i)
		}
	}
	return places
}()

// buildWrite puts the names of the features and where their values stand into the
// script.
func buildWrite() string {
	all := features.All()
	fields := func(v *features.View) string {
		var list []string
		for _, place := range v.Features {
			value := "rank"
			if i := slices.Index(stated, place); i >= 0 {
				value = fmt.Sprintf("ARGV[at + %d]", i+1)
			}
			list = append(list, "'"+all[place].Name+"', "+value)
		}
		return strings.Join(list, ", ")
	}
	return strings.NewReplacer(
		"SESSION_FIELDS", fields(&features.Session),
		"PAIR_FIELDS", fields(&features.UserProduct),
		"WIDTH", strconv.Itoa(len(stated)+1),
	).Replace(writeLua)
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
	b := newBatch(len(entries), true)
	now := s.now()
	for i := range entries {
		b.add(&entries[i], packing{sessionTTL: s.sessionTTL, pairTTL: s.featureTTL + grace, arrival: now, keep: true})
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
	b := newBatch(len(known), begun)
	now := s.now()
	for i := range known {
		k := &known[i]
		age := now.Sub(k.Arrival)
		p := packing{
			rank: k.Rank, sessionTTL: s.sessionTTL - age, pairTTL: s.featureTTL + grace - age, arrival: k.Arrival,
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

func newBatch(n int, begun bool) *batch {
	b := &batch{keys: make([]string, 1, 1+2*n), args: make([]any, 1, 1+(len(stated)+1)*n)}
	b.keys[0], b.args[0] = epochKey, "0"
	if begun {
		b.args[0] = "1"
	}
	return b
}

// packing is what the script has to know of an event besides the event.
type packing struct {
	rank                int64 // 0 to assign one
	sessionTTL, pairTTL time.Duration
	arrival             time.Time
	keep                bool // the rank
}

// add appends an event. The packed text has these digits, but for the first part:
// 16 bytes of the event's hash, 18 of its time, 12 that decide between events of
// one time and rank, 20 of a correction's log position, 9 of the rank if it is
// known, 11 each of the TTLs of the session and the pair in milliseconds, 14 of the
// arrival in milliseconds, and the flags correction and keep. Digits, since the order
// of other characters is up to the locale that Redis runs in.
func (b *batch) add(e *Entry, p packing) {
	text := appendSessionKey(b.text[:0], e.Event.Session)
	sessionEnd := len(text)
	text = appendUserProductKey(text, e.Event.UserID, e.Event.ProductID)
	pairEnd := len(text)

	text = append(text, e.Hash[:16]...)
	text = appendTime(text, e.Event.Time)
	text = appendDigits(text, uint64(binary.BigEndian.Uint32(e.Hash[:])), 12)
	var change uint64
	correction := byte('0')
	if e.Event.Op == "u" {
		if change = e.Event.LSN; change == 0 {
			correction = '1' // the last one to come
		}
	}
	text = appendDigits(text, change, 20)
	text = appendDigits(text, uint64(p.rank), 9)
	text = appendDigits(text, uint64(p.sessionTTL.Milliseconds()), 11)
	text = appendDigits(text, uint64(p.pairTTL.Milliseconds()), 11)
	text = appendDigits(text, uint64(p.arrival.UnixMilli()), 14)
	text = append(text, correction)
	if p.keep {
		text = append(text, '1')
	} else {
		text = append(text, '0')
	}
	packedEnd := len(text)
	var ends [features.Count]int
	vector := features.Of(&e.Event, 0)
	for i, place := range stated {
		text = vector[place].AppendText(text)
		ends[i] = len(text)
	}
	b.text = text

	all := string(text) // one allocation an event
	b.keys = append(b.keys, all[:sessionEnd], all[sessionEnd:pairEnd])
	b.args = append(b.args, all[pairEnd:packedEnd])
	from := packedEnd
	for i := range stated {
		b.args = append(b.args, all[from:ends[i]])
		from = ends[i]
	}
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
	return append(append(dst, "fs:session:"...), session...)
}

func appendUserProductKey(dst []byte, user, product int64) []byte {
	dst = strconv.AppendInt(append(dst, "fs:user_product:"...), user, 10)
	return strconv.AppendInt(append(dst, ':'), product, 10)
}

// timeOffset makes the times of the years 1 to 9999 not negative, in microseconds.
const timeOffset = 62135596800_000000

func appendTime(dst []byte, t time.Time) []byte {
	return appendDigits(dst, uint64(t.UnixMicro()+timeOffset), 18)
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

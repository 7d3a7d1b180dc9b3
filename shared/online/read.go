package online

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-dev/millrace/shared/features"
)

// Key names an entity. Make it with UserProduct or Session.
type Key struct {
	view          *features.View
	session       string
	user, product int64
}

// UserProduct is the key of a user and a product.
func UserProduct(user, product int64) Key {
	return Key{view: &features.UserProduct, user: user, product: product}
}

// Session is the key of a session.
func Session(session string) Key { return Key{view: &features.Session, session: session} }

// Row is what is known of an entity.
type Row struct {
	// Found is false if nothing is known; then the rest means nothing.
	Found bool
	// Stale says that the features are older than FeatureTTL.
	Stale bool
	// Features holds the features of the entity's view; the others are null.
	Features features.Vector
	// EventTime is when the event happened whose features these are, and Arrival
	// when it arrived.
	EventTime, Arrival time.Time
}

// Get reads entities, in one round trip. There is one row a key, in order. The error
// says what is wrong with Redis.
func (s *Store) Get(ctx context.Context, keys []Key) ([]Row, error) {
	rows := make([]Row, len(keys))
	if len(keys) == 0 {
		return rows, nil
	}
	pipe := s.redis.Pipeline()
	// Answers are taken as they come over the wire: the client would make four
	// allocations of each value.
	cmds := make([]*redis.RawCmd, len(keys))
	var text []byte
	for i := range keys {
		k := &keys[i]
		if text = text[:0]; k.view == &features.Session {
			cmds[i] = redis.NewRawCmd(ctx, "hget", string(appendSessionKey(text, k.session)), "f")
		} else {
			cmds[i] = redis.NewRawCmd(ctx, "get", string(appendUserProductKey(text, k.user, k.product)))
		}
		if err := pipe.Process(ctx, cmds[i]); err != nil {
			return nil, fmt.Errorf("reading features: %w", err)
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("reading features: %w", err)
	}
	now := s.now()
	for i := range keys {
		if err := rows[i].read(keys[i].view, string(cmds[i].Val())); err != nil {
			return nil, fmt.Errorf("reading features of %s: %w", cmds[i].Args()[1], err)
		}
		rows[i].Stale = rows[i].Found && now.Sub(rows[i].Arrival) > s.featureTTL
	}
	return rows, nil
}

// read takes an entity from the answer to its command.
func (r *Row) read(v *features.View, answer string) error {
	// An error is the whole of an answer.
	if strings.HasPrefix(answer, "-") {
		return errors.New(strings.TrimSpace(answer[1:]))
	}
	text, ok, _, err := next(answer)
	if err != nil || !ok {
		return err // or there is no such entity
	}
	var at string
	if v == &features.Session {
		for range 3 { // the last rank, the rank and the change
			_, text, _ = strings.Cut(text, " ")
		}
		at, text, _ = strings.Cut(text, " ")
	} else {
		at, text, _ = strings.Cut(text, " ")
		if len(at) < versionDigits {
			return errText
		}
		at = at[:timeDigits]
	}
	if r.EventTime, err = parseTime(at); err != nil {
		return err
	}
	at, text, _ = strings.Cut(text, " ")
	ms, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return fmt.Errorf("it has no arrival: %w", err)
	}
	r.Arrival = time.UnixMilli(ms).UTC()
	for _, place := range stated[v] {
		n, size := uvarint(text)
		if size <= 0 || n > uint64(len(text)-size) {
			return errText
		}
		value := text[size : size+int(n)]
		if r.Features[place], err = types[place].ParseText(value); err != nil {
			return fmt.Errorf("%s: %w", names[place], err)
		}
		text = text[size+int(n):]
	}
	if len(stated[v]) < len(v.Features) {
		if r.Features[features.ActivityCount], err = types[features.ActivityCount].ParseText(text); err != nil {
			return fmt.Errorf("%s: %w", names[features.ActivityCount], err)
		}
	}
	r.Found = true
	return nil
}

// uvarint is binary.Uvarint of a text.
func uvarint(text string) (n uint64, size int) {
	for i := 0; i < len(text) && i < binary.MaxVarintLen32; i++ {
		n |= uint64(text[i]&0x7f) << (7 * i)
		if text[i] < 0x80 {
			return n, i + 1
		}
	}
	return 0, 0
}

var errText = errors.New("it is not packed as it has to be")

var errAnswer = errors.New("the answer is none of a text")

// next takes a bulk string off an answer, in the second version of the protocol; ok
// is false for null.
func next(answer string) (value string, ok bool, rest string, err error) {
	head, rest, _ := strings.Cut(answer, "\r\n")
	if head == "$-1" {
		return "", false, rest, nil
	}
	if !strings.HasPrefix(head, "$") {
		return "", false, "", errAnswer
	}
	n, err := strconv.Atoi(head[1:])
	if err != nil || n < 0 || n+2 > len(rest) {
		return "", false, "", errAnswer
	}
	return rest[:n], true, rest[n+2:], nil
}

var types, names = func() (types [features.Count]features.Type, names [features.Count]string) {
	for i, f := range features.All() {
		types[i], names[i] = f.Type, f.Name
	}
	return types, names
}()

// Pushed is an entity's features as a client has computed them, at a time.
type Pushed struct {
	Key       Key
	EventTime time.Time
	// Features holds the features of the entity's view; others are not written.
	Features features.Vector
}

// Push writes features where nothing newer is there, and tells how many entities
// changed. Rows of a session are ordered by their activity_count, others by the
// time of the event; what Put wrote goes before a row of the same time.
func (s *Store) Push(ctx context.Context, rows []Pushed) (written int, err error) {
	now := s.now()
	arrival := appendDigits(nil, uint64(now.UnixMilli()), arrivalDigits)
	// A call for each view.
	for view, places := range stated {
		var keys []string
		args := []any{"user_product", (s.featureTTL + grace).Milliseconds()}
		if view == &features.Session {
			args[0], args[1] = "session", s.sessionExpiry(now).Sub(now).Milliseconds()
		}
		for i := range rows {
			r := &rows[i]
			if r.Key.view != view {
				continue
			}
			var key, version, rest []byte
			if view == &features.Session {
				key = appendSessionKey(nil, r.Key.session)
				version = strconv.AppendInt(nil, r.Features[features.ActivityCount].Int(), 10)
				rest = append(appendTime([]byte("  "), r.EventTime), ' ') // without a change
			} else {
				key = appendUserProductKey(nil, r.Key.user, r.Key.product)
				version = appendDigits(appendTime(nil, r.EventTime), 0, rankDigits+tieDigits)
				rest = []byte{' '}
			}
			rest = appendValues(append(append(rest, arrival...), ' '), &r.Features, places)
			rest = r.Features[features.ActivityCount].AppendText(rest)
			keys, args = append(keys, string(key)), append(args, version, rest)
		}
		if len(keys) == 0 {
			continue
		}
		n, err := pushScript.Run(ctx, s.redis, keys, args...).Int()
		if err != nil {
			return written, fmt.Errorf("pushing features: %w", err)
		}
		written += n
	}
	return written, nil
}

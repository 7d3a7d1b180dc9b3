package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// fields are what is read of an entity of a view, in one HMGET.
var fields = map[*features.View][]string{
	&features.UserProduct: viewFields(&features.UserProduct),
	&features.Session:     viewFields(&features.Session),
}

func viewFields(v *features.View) []string {
	all := features.All()
	list := []string{"t", "a"}
	for _, place := range v.Features {
		list = append(list, all[place].Name)
	}
	return list
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
			text = appendSessionKey(text, k.session)
		} else {
			text = appendUserProductKey(text, k.user, k.product)
		}
		command := slices.Clone(hmget[k.view])
		command[1] = string(text)
		cmds[i] = redis.NewRawCmd(ctx, command...)
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

// hmget are the commands that read entities of a view, but for the key.
var hmget = func() map[*features.View][]any {
	commands := map[*features.View][]any{}
	for view, list := range fields {
		command := []any{"hmget", ""}
		for _, field := range list {
			command = append(command, field)
		}
		commands[view] = command
	}
	return commands
}()

// read takes an entity from the answer to its HMGET.
func (r *Row) read(v *features.View, answer string) error {
	// An error is the whole of an answer.
	if strings.HasPrefix(answer, "-") {
		return errors.New(strings.TrimSpace(answer[1:]))
	}
	head, rest, _ := strings.Cut(answer, "\r\n")
	if head != "*"+strconv.Itoa(2+len(v.Features)) {
		return errAnswer
	}
	var value string
	var ok bool
	var err error
	if value, ok, rest, err = next(rest); err != nil || !ok {
		return err // or there is no such entity
	}
	if r.EventTime, err = parseTime(value); err != nil {
		return err
	}
	if value, _, rest, err = next(rest); err != nil {
		return err
	}
	ms, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return fmt.Errorf("it has no arrival: %w", err)
	}
	r.Arrival = time.UnixMilli(ms).UTC()
	for _, place := range v.Features {
		if value, _, rest, err = next(rest); err != nil {
			return err
		}
		if r.Features[place], err = types[place].ParseText(value); err != nil {
			return fmt.Errorf("%s: %w", names[place], err)
		}
	}
	r.Found = true
	return nil
}

var errAnswer = errors.New("the answer is not that of HMGET")

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
	ttl := strconv.FormatInt((s.featureTTL + grace).Milliseconds(), 10)
	// A call for each view, since its rows have the same number of features.
	for view, names := range fields {
		var keys []string
		args := []any{4 + 2*len(view.Features)}
		for i := range rows {
			r := &rows[i]
			if r.Key.view != view {
				continue
			}
			var key, version []byte
			if view == &features.Session {
				key = appendSessionKey(nil, r.Key.session)
				version = appendDigits(nil, uint64(r.Features[features.ActivityCount].Int()), 9)
			} else {
				key = appendUserProductKey(nil, r.Key.user, r.Key.product)
				version = appendDigits(appendDigits(appendTime(nil, r.EventTime), 0, 9), 0, 12)
			}
			keys = append(keys, string(key))
			args = append(args, appendDigits(version, 0, 20), appendTime(nil, r.EventTime), now.UnixMilli(), ttl)
			for i, place := range view.Features {
				args = append(args, names[i+2], string(r.Features[place].AppendText(nil)))
			}
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

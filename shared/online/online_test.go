package online

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

func config(url string) Config {
	return Config{URL: url, PoolSize: 4, Timeout: 10 * time.Second, FeatureTTL: 24 * time.Hour, SessionTTL: 24 * time.Hour}
}

// open gives a store with an epoch, in a Redis of its own.
func open(t testing.TB) *Store {
	t.Helper()
	s := connect(t, redistest.Start(t).URL)
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t testing.TB, url string) *Store {
	t.Helper()
	s, err := config(url).Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var start = time.Date(2019, 10, 6, 10, 0, 0, 0, time.UTC)

func entry(e features.Event) Entry { return Entry{e, e.Hash()} }

func event(session string, seconds int, user, product int64, price float64) features.Event {
	return features.Event{
		Time: start.Add(time.Duration(seconds) * time.Second), Type: "view", Session: session, UserID: user, ProductID: product,
		CategoryCode: "appliances.kitchen.hood", Brand: "xiaomi", Price: price,
	}
}

func put(t testing.TB, s *Store, entries ...Entry) []int64 {
	t.Helper()
	ranks, _, err := s.Put(t.Context(), entries)
	if err != nil {
		t.Fatal(err)
	}
	return ranks
}

func get(t testing.TB, s *Store, k Key) Row {
	t.Helper()
	rows, err := s.Get(t.Context(), []Key{k})
	if err != nil {
		t.Fatal(err)
	}
	return rows[0]
}

func values(r Row) map[string]any {
	if !r.Found {
		return nil
	}
	m := map[string]any{}
	for i, v := range r.Features {
		if !v.Null() {
			m[names[i]] = v.Any()
		}
	}
	return m
}

// dump is all that the store holds, but for when things arrived and expire.
func dump(t testing.TB, s *Store) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	iter := s.redis.Scan(t.Context(), 0, "*", 1000).Iterator()
	for iter.Next(t.Context()) {
		key := iter.Val()
		var err error
		switch {
		case key == epochKey:
		case strings.HasPrefix(key, SessionPrefix):
			all[key], err = s.redis.HGetAll(t.Context(), key).Result()
			all[key]["f"] = withoutPart(all[key]["f"], 4)
		default:
			var text string
			text, err = s.redis.Get(t.Context(), key).Result()
			all[key] = map[string]string{"": withoutPart(text, 1)}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := iter.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// withoutPart takes a part out of a packed text, by its number among those that a
// blank ends.
func withoutPart(text string, number int) string {
	parts := strings.SplitN(text, " ", number+2)
	return strings.Join(slices.Delete(parts, number, number+1), " ")
}

func TestWrittenIsRead(t *testing.T) {
	s := open(t)
	e := event("s", 0, 1, 2, 1029.37)
	f := event("s", 1, 1, 3, 5)
	f.Brand, f.CategoryCode = "", "electronics"
	if diff := cmp.Diff([]int64{1, 2}, put(t, s, entry(e), entry(f))); diff != "" {
		t.Errorf("ranks (-want +got):\n%s", diff)
	}
	rows, err := s.Get(t.Context(), []Key{UserProduct(1, 3), Session("s"), UserProduct(1, 2), UserProduct(1, 4), Session("t")})
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	for _, r := range rows {
		got = append(got, values(r))
	}
	sunday := int64(0)
	want := []map[string]any{
		{"price": 5.0, "category_code_level1": "electronics", "event_weekday": sunday, "activity_count": int64(2)},
		{"event_weekday": sunday, "activity_count": int64(2)},
		{"brand": "xiaomi", "price": 1029.37, "category_code_level1": "appliances", "category_code_level2": "kitchen",
			"event_weekday": sunday, "activity_count": int64(1)},
		nil,
		nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !rows[0].EventTime.Equal(f.Time) || time.Since(rows[0].Arrival) > time.Minute {
		t.Errorf("event time %v, arrival %v", rows[0].EventTime, rows[0].Arrival)
	}
}

func TestStaleIsToldFromUnknown(t *testing.T) {
	s := open(t)
	put(t, s, entry(event("s", 0, 1, 2, 3)))
	if r := get(t, s, UserProduct(1, 2)); !r.Found || r.Stale {
		t.Errorf("found %v, stale %v", r.Found, r.Stale)
	}
	s.now = func() time.Time { return time.Now().Add(24*time.Hour + time.Second) }
	if r := get(t, s, UserProduct(1, 2)); !r.Found || !r.Stale {
		t.Errorf("a day later: found %v, stale %v", r.Found, r.Stale)
	}
	for key, most := range map[string]time.Duration{"f2:s:s": 25*time.Hour + s.expirySlack(), "f2:p:1:2": 25 * time.Hour} {
		if ttl := s.redis.PTTL(t.Context(), key).Val(); ttl > most || ttl < most-2*time.Hour {
			t.Errorf("%s expires in %s, not in %s", key, ttl, most)
		}
	}
}

// Whatever is delivered again, in whatever portions, as long as each session keeps
// its order: the ranks and all that is stored are those of the first delivery.
func TestRedeliveryAndReorderingOfSessionsChangeNothing(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		sessions := map[string][]Entry{}
		want := map[[32]byte]int64{}
		for i := range 6 {
			name := fmt.Sprintf("session %d", i)
			for range 1 + rnd.IntN(30) {
				// Few times, users and products, so that everything collides; late and
				// doubled events.
				e := entry(event(name, rnd.IntN(20), rnd.Int64N(2), rnd.Int64N(3), float64(1+rnd.IntN(5))))
				sessions[name] = append(sessions[name], e)
				if want[e.Hash] == 0 {
					n := 0
					for _, o := range sessions[name][:len(sessions[name])-1] {
						if want[o.Hash] > int64(n) {
							n = int(want[o.Hash])
						}
					}
					want[e.Hash] = int64(n + 1)
				}
			}
		}
		replay := func(s *Store) map[[32]byte]int64 {
			got := map[[32]byte]int64{}
			done := map[string]int{}
			left := slices.Sorted(maps.Keys(sessions))
			for len(left) > 0 {
				var call []Entry
				for range 1 + rnd.IntN(4) {
					if len(left) == 0 {
						break
					}
					i := rnd.IntN(len(left))
					name := left[i]
					from := done[name]
					if slices.ContainsFunc(call, func(e Entry) bool { return e.Event.Session == name }) {
						continue
					}
					if from > 0 && rnd.IntN(3) == 0 { // some of it again
						from -= 1 + rnd.IntN(from)
					}
					to := min(from+1+rnd.IntN(8), len(sessions[name]))
					call = append(call, sessions[name][from:to]...)
					if done[name] = max(done[name], to); done[name] == len(sessions[name]) {
						left = slices.Delete(left, i, i+1)
					}
				}
				for i, rank := range put(t, s, call...) {
					if before := got[call[i].Hash]; before != 0 && before != rank {
						t.Fatalf("seed %d: the rank of an event was %d and is %d", seed, before, rank)
					}
					got[call[i].Hash] = rank
				}
			}
			return got
		}
		var first map[string]map[string]string
		for range 3 {
			s := open(t)
			if diff := cmp.Diff(want, replay(s)); diff != "" {
				t.Fatalf("seed %d: ranks (-want +got):\n%s", seed, diff)
			}
			state := dump(t, s)
			if first == nil {
				first = state
			}
			if diff := cmp.Diff(first, state); diff != "" {
				t.Fatalf("seed %d: another order gives another state (-first +this):\n%s", seed, diff)
			}
			for name, list := range sessions { // all of it again
				ttl := s.redis.PTTL(t.Context(), SessionPrefix+name).Val()
				put(t, s, list...)
				if after := s.redis.PTTL(t.Context(), SessionPrefix+name).Val(); after > ttl {
					t.Errorf("a second delivery made a session live from %s to %s", ttl, after)
				}
			}
			if diff := cmp.Diff(first, dump(t, s)); diff != "" {
				t.Fatalf("seed %d: a second delivery changed (-before +after):\n%s", seed, diff)
			}
		}
	}
}

// A correction of a row replaces the features and keeps the rank, also if what it
// corrects comes again.
func TestCorrections(t *testing.T) {
	for _, lsn := range []uint64{0, 100} {
		s := open(t)
		made := event("s", 0, 1, 2, 10)
		made.Op = "c"
		put(t, s, entry(made))
		better, best := made, made
		better.Op, better.Price, better.LSN = "u", 20, lsn
		best.Op, best.Price = "u", 30
		if lsn > 0 {
			best.LSN = lsn + 1
		}
		for i, step := range []struct {
			event features.Event
			price float64
		}{{made, 10}, {better, 20}, {made, 20}, {best, 30}, {made, 30}} {
			if ranks := put(t, s, entry(step.event)); ranks[0] != 1 {
				t.Errorf("rank %d", ranks[0])
			}
			if got := get(t, s, UserProduct(1, 2)).Features[features.Price].Float(); got != step.price {
				t.Errorf("lsn %d, step %d: price %v, want %v", lsn, i, got, step.price)
			}
		}
		if put(t, s, entry(better)); lsn > 0 {
			if got := get(t, s, UserProduct(1, 2)).Features[features.Price].Float(); got != 30 {
				t.Errorf("an older correction came again, and the price is %v", got)
			}
		}
	}
}

func TestEmptyStoreTakesNothing(t *testing.T) {
	s := connect(t, redistest.Start(t).URL)
	e := entry(event("s", 0, 1, 2, 3))
	if _, _, err := s.Put(t.Context(), []Entry{e}); !errors.Is(err, ErrEmpty) {
		t.Fatalf("error %v", err)
	}
	if _, err := s.Materialize(t.Context(), []Known{{e, 1, time.Now()}}); !errors.Is(err, ErrEmpty) {
		t.Fatalf("error %v", err)
	}
	if state := dump(t, s); len(state) > 0 {
		t.Errorf("stored: %v", state)
	}
	if begun, err := s.Begun(t.Context()); begun || err != nil {
		t.Errorf("begun: %v, %v", begun, err)
	}
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ranks := put(t, s, e); ranks[0] != 1 {
		t.Errorf("rank %d", ranks[0])
	}
}

// A session goes on behind the ranks that were restored, in whatever order these came.
func TestRestoredSessionGoesOn(t *testing.T) {
	s := connect(t, redistest.Start(t).URL)
	var list []Known
	for i := range 5 {
		list = append(list, Known{entry(event("s", i, 1, 2, float64(i+1))), int64(i + 1), time.Now().Add(-time.Hour)})
	}
	old := Known{entry(event("old", 0, 9, 9, 9)), 1, time.Now().Add(-26 * time.Hour)}
	if _, err := s.Restore(t.Context(), []Known{list[4], old, list[0], list[2]}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restore(t.Context(), []Known{list[3], list[1]}); err != nil {
		t.Fatal(err)
	}
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{3, 6, 5}, put(t, s, list[2].Entry, entry(event("s", 9, 1, 2, 60)), list[4].Entry)); diff != "" {
		t.Errorf("ranks (-want +got):\n%s", diff)
	}
	if r := get(t, s, UserProduct(1, 2)); r.Features[features.Price].Float() != 60 {
		t.Errorf("price %v", r.Features[features.Price].Any())
	}
	if r := get(t, s, UserProduct(9, 9)); r.Found {
		t.Errorf("what has expired was restored: %+v", r)
	}
	if ttl := s.redis.PTTL(t.Context(), "f2:s:s").Val(); ttl < 23*time.Hour {
		t.Errorf("the ranks expire in %s", ttl)
	}
}

func TestMaterializationNeverOverwritesNewerValues(t *testing.T) {
	s := open(t)
	older, newer := event("s", 0, 1, 2, 10), event("s", 5, 1, 2, 20)
	put(t, s, entry(older), entry(newer))
	before := dump(t, s)
	wrong := older
	wrong.Price = 99
	written, err := s.Materialize(t.Context(), []Known{{entry(wrong), 7, time.Now()}, {entry(newer), 9, time.Now()}})
	if err != nil || written != 0 {
		t.Errorf("%d written, %v", written, err)
	}
	if diff := cmp.Diff(before, dump(t, s)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	// What the stream has not seen is filled in, but gets no rank.
	other := event("t", 3, 1, 3, 30)
	if written, err := s.Materialize(t.Context(), []Known{{entry(other), 4, time.Now().Add(-time.Hour)}}); err != nil || written != 2 {
		t.Errorf("%d written, %v", written, err)
	}
	if got := get(t, s, UserProduct(1, 3)).Features[features.ActivityCount].Int(); got != 4 {
		t.Errorf("activity_count %d", got)
	}
	if ranks := put(t, s, entry(event("t", 4, 1, 3, 31))); ranks[0] != 1 {
		t.Errorf("rank %d", ranks[0])
	}
}

func TestPushNeverOverwritesNewerValues(t *testing.T) {
	s := open(t)
	put(t, s, entry(event("s", 10, 1, 2, 10)))
	row := func(seconds int, price float64) Pushed {
		p := Pushed{Key: UserProduct(1, 2), EventTime: start.Add(time.Duration(seconds) * time.Second)}
		p.Features[features.Price] = features.OfFloat(price)
		return p
	}
	session := Pushed{Key: Session("s"), EventTime: start}
	session.Features[features.ActivityCount] = features.OfInt(7)
	for _, step := range []struct {
		row     Pushed
		written int
		price   float64
	}{{row(9, 1), 0, 10}, {row(10, 2), 0, 10}, {row(11, 3), 1, 3}, {row(11, 4), 0, 3}, {session, 1, 3}, {session, 0, 3}} {
		n, err := s.Push(t.Context(), []Pushed{step.row})
		if err != nil || n != step.written {
			t.Errorf("%d written, %v; want %d", n, err, step.written)
		}
		if got := get(t, s, UserProduct(1, 2)).Features[features.Price].Float(); got != step.price {
			t.Errorf("price %v, want %v", got, step.price)
		}
	}
	if got := values(get(t, s, UserProduct(1, 2))); got["brand"] != nil {
		t.Errorf("a pushed null left %v", got)
	}
	if got := get(t, s, Session("s")).Features[features.ActivityCount].Int(); got != 7 {
		t.Errorf("activity_count %d", got)
	}
}

// A Redis that starts again has forgotten its scripts, but not its data.
func TestRestartOfRedis(t *testing.T) {
	server := redistest.Start(t)
	server.NeedsProcess()
	s := connect(t, server.URL)
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, entry(event("s", 0, 1, 2, 3)))
	server.Kill()
	if _, _, err := s.Put(t.Context(), []Entry{entry(event("s", 1, 1, 2, 3))}); err == nil || errors.Is(err, ErrEmpty) {
		t.Errorf("without Redis: %v", err)
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Error("a killed Redis answers")
	}
	server.Restart()
	// The client does not dial at once when dialling has just failed.
	for deadline := time.Now().Add(time.Minute); s.Ping(t.Context()) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("Redis is not found again")
		}
	}
	if ranks := put(t, s, entry(event("s", 1, 1, 2, 3)), entry(event("s", 0, 1, 2, 3))); !slices.Equal(ranks, []int64{2, 1}) {
		t.Errorf("ranks %v", ranks)
	}
}

func TestOddTextsAreKept(t *testing.T) {
	s := open(t)
	for i, odd := range []string{"", "with space", "日本", "a:b", "n", strings.Repeat("long", 1000), "\x00", "'\"\\"} {
		e := event("session "+odd, i, 1, int64(i), 1)
		e.Brand = odd
		put(t, s, entry(e))
		if got := get(t, s, UserProduct(1, int64(i))).Features[features.Brand].Str(); got != odd {
			t.Errorf("%q became %q", odd, got)
		}
		if !get(t, s, Session("session "+odd)).Found {
			t.Errorf("session %q is not found", odd)
		}
	}
}

// What somebody else has written under our names is an error that names the key, and
// not a value.
func TestForeignDataIsAnError(t *testing.T) {
	s := open(t)
	for i, write := range []func(key string) error{
		func(key string) error { return s.redis.HSet(t.Context(), key, "t", "x").Err() },
		func(key string) error { return s.redis.Set(t.Context(), key, "x", 0).Err() },
		func(key string) error { return s.redis.Set(t.Context(), key, strings.Repeat("1", 37), 0).Err() },
		func(key string) error {
			return s.redis.Set(t.Context(), key, strings.Repeat("1", 37)+" 1 \x00\x01x", 0).Err()
		},
		func(key string) error {
			return s.redis.Set(t.Context(), key, strings.Repeat("1", 37)+" 1 \xff", 0).Err()
		},
	} {
		key := fmt.Sprintf("f2:p:1:%d", i)
		if err := write(key); err != nil {
			t.Fatal(err)
		}
		if rows, err := s.Get(t.Context(), []Key{UserProduct(1, int64(i))}); err == nil || i > 0 && !strings.Contains(err.Error(), key) {
			t.Errorf("%d: %+v, %v", i, rows, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("$63\r\n0637059528120000000000000010000000000 1574000000000 \x00\x015\x011\x00\x01a1\r\n")
	f.Add("$1\r\n1\r\n")
	f.Add("$-1\r\n")
	f.Add("-WRONGTYPE x\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		var r Row
		if err := r.read(&features.UserProduct, answer); err != nil && r.Found {
			t.Errorf("found with an error: %v", err)
		}
	})
}

func TestTimesOfAllYears(t *testing.T) {
	for _, at := range []time.Time{time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC), start} {
		text := appendTime(nil, at)
		back, err := parseTime(string(text))
		if err != nil || !back.Equal(at) || len(text) != 18 {
			t.Errorf("%s became %s and %s, %v", at, text, back, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := config("redis://h:1/0")
	for want, change := range map[string]func(*Config){
		"REDIS_URL":       func(c *Config) { c.URL = "http://user:secret@h" },
		"REDIS_URL: ":     func(c *Config) { c.URL = "redis://user:secret@h:x/0" }, //nolint:gocritic // mapKey: a reason follows
		"REDIS_POOL_SIZE": func(c *Config) { c.PoolSize = 0 },
		"REDIS_TIMEOUT":   func(c *Config) { c.Timeout = 0 },
		"FEATURE_TTL":     func(c *Config) { c.FeatureTTL = 0 },
		"SESSION_TTL":     func(c *Config) { c.SessionTTL = maxTTL + 1 },
	} {
		c := good
		change(&c)
		if _, err := c.Open(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// cpu is the CPU time that this process and its Redis have used.
func cpu(b *testing.B, s *Store) (client, server time.Duration) {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	client = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	info, err := s.redis.Info(context.Background(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			server += time.Duration(seconds * float64(time.Second))
		}
	}
	return client, server
}

// Wall time says little where other programs run, CPU time more.
func reportCPU(b *testing.B, s *Store, run func() (n int)) {
	b.Helper()
	client, server := cpu(b, s)
	n := run()
	after, serverAfter := cpu(b, s)
	b.ReportMetric(float64((after-client).Nanoseconds())/float64(n), "client-cpu-ns/entity")
	b.ReportMetric(float64((serverAfter-server).Nanoseconds())/float64(n), "redis-cpu-ns/entity")
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := open(b)
			b.ReportAllocs()
			reportCPU(b, s, func() (n int) {
				for b.Loop() {
					batch := make([]Entry, size)
					for i := range batch {
						batch[i] = entry(event("session "+strconv.Itoa(n%5000), n, int64(n%5000), int64(n%97), 5))
						n++
					}
					if _, _, err := s.Put(context.Background(), batch); err != nil {
						b.Fatal(err)
					}
				}
				return n
			})
		})
	}
}

func BenchmarkGet(b *testing.B) {
	s := open(b)
	var batch []Entry
	var keys []Key
	for i := range 1000 {
		batch = append(batch, entry(event(fmt.Sprint(i), i, int64(i), int64(i), 5)))
		keys = append(keys, UserProduct(int64(i), int64(i)))
	}
	put(b, s, batch...)
	for _, size := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			reportCPU(b, s, func() (n int) {
				for b.Loop() {
					if _, err := s.Get(context.Background(), keys[:size]); err != nil {
						b.Fatal(err)
					}
					n += size
				}
				return n
			})
		})
	}
}

// A store that an older version has written counts as one that has lost its data.
func TestOlderLayoutIsNotLookedAt(t *testing.T) {
	s := connect(t, redistest.Start(t).URL)
	for _, command := range [][]any{
		{"set", "fs:epoch", "2026-01-01T00:00:00Z"},
		{"hset", "fs:session:s", "v", "00000000700000000000000000000", "t", "063705952812000000", "a", "1574000000000", "n", "7"},
	} {
		if err := s.redis.Do(t.Context(), command...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	e := entry(event("s", 0, 1, 2, 3))
	if _, _, err := s.Put(t.Context(), []Entry{e}); !errors.Is(err, ErrEmpty) {
		t.Fatalf("error %v", err)
	}
	if _, err := s.Restore(t.Context(), []Known{{e, 7, time.Now()}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ranks := put(t, s, entry(event("s", 1, 1, 2, 3)), e); !slices.Equal(ranks, []int64{8, 7}) {
		t.Errorf("ranks %v", ranks)
	}
}

// Ranks outlive the features where that is asked for, whoever writes in between.
func TestRanksLiveAsLongAsTheyHaveTo(t *testing.T) {
	c := config(redistest.Start(t).URL)
	c.SessionTTL = 48 * time.Hour
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	s.now = func() time.Time { return at }
	pushed := Pushed{Key: Session("s"), EventTime: start}
	pushed.Features[features.ActivityCount] = features.OfInt(7)
	for i, step := range []func(){
		func() { put(t, s, entry(event("s", 0, 1, 2, 3))) },
		func() { put(t, s, entry(event("s", 1, 1, 2, 3))) },
		func() {
			if _, err := s.Push(t.Context(), []Pushed{pushed}); err != nil {
				t.Error(err)
			}
		},
		func() { put(t, s, entry(event("s", 2, 1, 2, 3))) }, // its rank is below the pushed one
		func() { at = at.Add(s.expirySlack()); put(t, s, entry(event("s", 3, 1, 2, 3))) },
		func() {
			if _, err := s.Materialize(t.Context(), []Known{{entry(event("s", 4, 1, 2, 3)), 9, at.Add(-time.Hour)}}); err != nil {
				t.Error(err)
			}
		},
	} {
		step()
		least := time.Until(at.Add(48*time.Hour)) - time.Minute
		if ttl := s.redis.PTTL(t.Context(), "f2:s:s").Val(); ttl < least-s.expirySlack() || ttl > 48*time.Hour+s.expirySlack() {
			t.Errorf("step %d: the ranks expire in %s", i, ttl)
		}
	}
	if ranks := put(t, s, entry(event("s", 5, 1, 2, 3))); ranks[0] != 5 {
		t.Errorf("rank %d", ranks[0])
	}
}

// BenchmarkMemory tells what an entity costs in Redis: of sessions of ten events each on
// a product of its own.
func BenchmarkMemory(b *testing.B) {
	const sessions, events = 2000, 10
	s := open(b)
	used := func() float64 {
		text, err := s.redis.Info(b.Context(), "memory").Result()
		if err != nil {
			b.Fatal(err)
		}
		_, text, _ = strings.Cut(text, "used_memory:")
		text, _, _ = strings.Cut(text, "\r\n")
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			b.Skip("this Redis does not tell what memory it uses")
		}
		return n
	}
	write := func(first, products int) float64 {
		before := used()
		for i := range sessions {
			session := fmt.Sprintf("%08d-0000-4000-8000-000000000000", first+i)
			batch := make([]Entry, events)
			for j := range batch {
				batch[j] = entry(event(session, j, int64(500_000_000+first+i), int64(1_000_000+j%products), 1029.37))
			}
			put(b, s, batch...)
		}
		return used() - before
	}
	write(0, 1) // tables of keys grow in steps
	for i := range b.N {
		one := write((2*i+1)*sessions, 1) / sessions
		ten := write((2*i+2)*sessions, events) / sessions
		b.ReportMetric((ten-one)/(events-1), "B/user_product")
		b.ReportMetric(one-(ten-one)/(events-1), "B/session_of_10")
	}
}

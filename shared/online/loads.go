package online

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Load is a part of the warehouse that was materialised, and when it came to gold.
type Load struct {
	ID int64
	At time.Time
}

// loadsKey is a sorted set of loads by when they came to gold. It is here, and not
// in the warehouse, so that it is lost with what it tells of.
const loadsKey = "f2:loads"

// Retention is how long after their arrival events can matter here.
func (s *Store) Retention() time.Duration { return max(s.sessionTTL, s.featureTTL+grace) }

// NoteLoads notes that loads were materialised.
func (s *Store) NoteLoads(ctx context.Context, loads []Load) error {
	if len(loads) == 0 {
		return nil
	}
	members := make([]redis.Z, len(loads))
	for i, l := range loads {
		members[i] = redis.Z{Score: float64(l.At.UnixMilli()), Member: l.ID}
	}
	if err := s.redis.ZAdd(ctx, loadsKey, members...).Err(); err != nil {
		return fmt.Errorf("noting loads: %w", err)
	}
	return nil
}

// NotedLoads tells when the last noted load came to gold, the zero time if there is
// none, and which ones came in the time before that; others are forgotten.
func (s *Store) NotedLoads(ctx context.Context, before time.Duration) (last time.Time, ids map[int64]bool, err error) {
	newest, err := s.redis.ZRangeWithScores(ctx, loadsKey, -1, -1).Result()
	if err != nil {
		return last, nil, fmt.Errorf("looking for noted loads: %w", err)
	}
	if len(newest) == 0 {
		return last, nil, nil
	}
	last = time.UnixMilli(int64(newest[0].Score))
	from := strconv.FormatInt(last.Add(-before).UnixMilli(), 10)
	// Twice as long, so that another process that looks now finds what it needs.
	old := strconv.FormatInt(last.Add(-2*before).UnixMilli(), 10)
	if err := s.redis.ZRemRangeByScore(ctx, loadsKey, "-inf", "("+old).Err(); err != nil {
		return last, nil, fmt.Errorf("forgetting old loads: %w", err)
	}
	members, err := s.redis.ZRangeByScore(ctx, loadsKey, &redis.ZRangeBy{Min: from, Max: "+inf"}).Result() //nolint:staticcheck // what replaces it needs Redis 6.2
	if err != nil {
		return last, nil, fmt.Errorf("looking for noted loads: %w", err)
	}
	ids = make(map[int64]bool, len(members))
	for _, m := range members {
		id, err := strconv.ParseInt(m, 10, 64)
		if err != nil {
			return last, nil, fmt.Errorf("looking for noted loads: %w", err)
		}
		ids[id] = true
	}
	return last, ids, nil
}

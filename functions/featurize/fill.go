package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// filler brings what the warehouse knows into the online store: on a tick what is
// new in gold, and all that is still valid, with the ranks, when Redis is empty.
//
// Redis is empty when it is new or has lost its data, and takes no events until it
// was filled: ranks would begin again at 1. What cannot be brought back are the
// ranks of events that featurize has acknowledged and that had reached neither the
// offline table nor gold when Redis lost them, which is about a second's worth.
type filler struct {
	ctx     context.Context // of the process: a fill outlives the event that causes it
	store   *online.Store
	db      *warehouse.DB // nil: there is no warehouse
	metrics *metrics
	log     *slog.Logger

	mu   sync.Mutex
	work *fill // the one that runs

	begun atomic.Bool // seen by ready

	materializing sync.Mutex
	ticking       atomic.Bool
}

// fill is one filling of the store.
type fill struct {
	done chan struct{}
	err  error // once done is closed
}

func newFiller(ctx context.Context, store *online.Store, db *warehouse.DB, m *metrics, log *slog.Logger) *filler {
	return &filler{ctx: ctx, store: store, db: db, metrics: m, log: log}
}

// errFilling says that a fill goes on.
var errFilling = errors.New("it is being filled from the warehouse")

// fillWait is how long an event waits for a fill before its sender has to.
const fillWait = 3 * time.Second

// fill fills an empty store. It waits a little for that, whoever began it, and
// returns errFilling if it takes longer.
func (f *filler) fill(ctx context.Context) error {
	f.mu.Lock()
	work := f.work
	if work == nil {
		work = &fill{done: make(chan struct{})}
		f.work = work
		go func() {
			work.err = f.refill(f.ctx)
			f.mu.Lock()
			f.work = nil
			f.mu.Unlock()
			close(work.done)
		}()
	}
	f.mu.Unlock()
	wait := time.NewTimer(fillWait)
	defer wait.Stop()
	select {
	case <-work.done:
		return work.err
	case <-wait.C:
		return errFilling
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ready is met once Redis has answered and was filled. That it went away later is
// told to each event.
func (f *filler) ready(ctx context.Context) error {
	if f.begun.Load() {
		return nil
	}
	begun, err := f.store.Begun(ctx)
	if err != nil {
		return err
	}
	if !begun {
		if err := f.fill(ctx); err != nil {
			return fmt.Errorf("filling the online store: %w", err)
		}
	}
	f.begun.Store(true)
	return nil
}

func (f *filler) refill(ctx context.Context) error {
	// Another process may have done it meanwhile.
	if begun, err := f.store.Begun(ctx); begun || err != nil {
		return err
	}
	if f.db == nil {
		f.log.Warn("the online store is empty and there is no warehouse to fill it from: all sessions begin at 1")
		f.metrics.fills.Add(ctx, 1)
		return f.store.Begin(ctx)
	}
	start := time.Now()
	if err := f.db.Ready(ctx); err != nil {
		return err
	}
	since := start.Add(-f.store.Retention())
	// What was served goes first: the first rank that is restored stays.
	served, err := f.restore(ctx, servedSQL, since.UTC())
	if err != nil {
		return fmt.Errorf("restoring served features: %w", err)
	}
	loads, err := f.loads(ctx, since)
	if err != nil {
		return err
	}
	gold, err := f.restore(ctx, goldSQL, ids(loads))
	if err != nil {
		return fmt.Errorf("restoring features from gold: %w", err)
	}
	if err := f.store.NoteLoads(ctx, loads); err != nil {
		return err
	}
	if err := f.store.Begin(ctx); err != nil {
		return err
	}
	f.metrics.fills.Add(ctx, 1)
	f.log.Info("the empty online store was filled", "served", served, "gold", gold, "seconds", time.Since(start).Seconds())
	return nil
}

func (f *filler) restore(ctx context.Context, sql string, arg any) (events int, err error) {
	return f.read(ctx, func(known []online.Known) error {
		written, err := f.store.Restore(ctx, known)
		f.metrics.wrote(ctx, "warehouse", written)
		return err
	}, sql, arg)
}

// tick materialises in the background, unless the last tick's work goes on still:
// events that are in the same batch as the tick must not wait for it. What fails is
// logged, and the next tick does it.
func (f *filler) tick() {
	if f.db == nil || !f.ticking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer f.ticking.Store(false)
		m, err := f.materialize(f.ctx, false)
		switch {
		case err != nil:
			f.log.Error("materialising on a tick", "error", err, "loads", m.Loads, "events", m.Events)
		case m.Loads > 0:
			f.log.Info("materialised", "loads", m.Loads, "events", m.Events, "written", m.Written, "seconds", m.Seconds)
		}
	}()
}

// Materialized is what became of a materialisation.
type Materialized struct {
	// Loads are the loads of lake objects whose events were read.
	Loads int `json:"loads"`
	// Events were read from gold: all of the sessions that the loads touch.
	Events int `json:"events"`
	// Written counts the entities that changed.
	Written int     `json:"written"`
	Seconds float64 `json:"seconds"`
}

// errNoWarehouse says that there is nothing to materialise from.
var errNoWarehouse = errors.New("there is no warehouse: DATABASE_URL is not set")

// overlap is how long before the last load that was materialised others are looked
// for: a transaction that began earlier may have ended later. It is longer than any
// step of the warehouse takes.
const overlap = time.Hour

// materialize writes what gold has got since the last time, or all that is valid
// still, where the online store has nothing newer. One runs at a time.
func (f *filler) materialize(ctx context.Context, all bool) (Materialized, error) {
	var m Materialized
	if f.db == nil {
		return m, errNoWarehouse
	}
	f.materializing.Lock()
	defer f.materializing.Unlock()
	start := time.Now()
	begun, err := f.store.Begun(ctx)
	if err != nil {
		return m, err
	}
	if !begun {
		if err := f.fill(ctx); err != nil {
			return m, fmt.Errorf("filling the online store: %w", err)
		}
	}
	if err := f.db.Ready(ctx); err != nil {
		return m, err
	}
	since := start.Add(-f.store.Retention())
	var done map[int64]bool
	if !all {
		last, noted, err := f.store.NotedLoads(ctx, overlap)
		if err != nil {
			return m, err
		}
		done = noted
		if from := last.Add(-overlap); from.After(since) {
			since = from
		}
	}
	loads, err := f.loads(ctx, since)
	if err != nil {
		return m, err
	}
	// A few loads at a time, each noted when it is done: what is cut short goes on
	// where it was.
	var some []online.Load
	for i, l := range loads {
		if !done[l.ID] {
			some = append(some, l)
		}
		if len(some) == loadsAtATime || i == len(loads)-1 && len(some) > 0 {
			n, err := f.read(ctx, func(known []online.Known) error {
				written, err := f.store.Materialize(ctx, known)
				m.Written += written
				f.metrics.wrote(ctx, "warehouse", written)
				return err
			}, goldSQL, ids(some))
			m.Events += n
			if err != nil {
				return m, fmt.Errorf("materialising: %w", err)
			}
			if err := f.store.NoteLoads(ctx, some); err != nil {
				return m, err
			}
			m.Loads += len(some)
			some = some[:0]
		}
	}
	m.Seconds = time.Since(start).Seconds()
	return m, nil
}

const loadsAtATime = 50

// servedSQL reads the features that were served since $1.
const servedSQL = `SELECT record_hash, event_timestamp, event_type, user_session, user_id, product_id,
	coalesce(category_code, ''), coalesce(brand, ''), coalesce(price, 0), activity_count, processed_at AT TIME ZONE 'UTC'
FROM feature_store.streaming_features WHERE created_timestamp > $1 AND activity_count > 0`

// goldSQL reads what gold has of all sessions that are touched by the loads $1: a
// late object may change the ranks of others' events. Arrival is when the event came
// into the validated topic.
const goldSQL = `SELECT f.record_hash, f.event_timestamp, f.event_type, f.user_session, f.user_id, f.product_id,
	coalesce(f.category_code, ''), coalesce(f.brand, ''), f.price, f.activity_count::bigint,
	coalesce((SELECT min(b.kafka_timestamp) FROM bronze.events b
		WHERE b.kafka_partition = (f.position >> 44)::int AND b.kafka_offset = (f.position & 17592186044415)), to_timestamp(0))
FROM (SELECT DISTINCT user_session FROM bronze.events WHERE load_id = ANY ($1::bigint[]) AND user_session IS NOT NULL) s
JOIN dwh.fact_events f USING (user_session)`

// loads lists the loads that have come to gold since.
func (f *filler) loads(ctx context.Context, since time.Time) ([]online.Load, error) {
	rows, err := f.db.Query(ctx, `SELECT load_id, gold_at FROM etl.loads WHERE stage IN ('gold', 'checked') AND gold_at > $1 ORDER BY load_id`, since)
	if err != nil {
		return nil, fmt.Errorf("looking for loads: %w", err)
	}
	loads, err := pgx.CollectRows(rows, pgx.RowToStructByPos[online.Load])
	if err != nil {
		return nil, fmt.Errorf("looking for loads: %w", err)
	}
	return loads, nil
}

func ids(loads []online.Load) []int64 {
	list := make([]int64, len(loads))
	for i, l := range loads {
		list[i] = l.ID
	}
	return list
}

// portion is how many events go to Redis at a time.
const portion = 500

// read hands the events of a query on, in portions.
func (f *filler) read(ctx context.Context, use func([]online.Known) error, sql string, arg any) (n int, err error) {
	rows, err := f.db.Query(ctx, sql, arg)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	known := make([]online.Known, 0, portion)
	flush := func() error {
		if len(known) == 0 {
			return nil
		}
		n += len(known)
		f.metrics.materialized.Add(ctx, int64(len(known)))
		err := use(known)
		known = known[:0]
		return err
	}
	for rows.Next() {
		var k online.Known
		var hash []byte
		e := &k.Event
		if err := rows.Scan(&hash, &e.Time, &e.Type, &e.Session, &e.UserID, &e.ProductID, &e.CategoryCode, &e.Brand, &e.Price, &k.Rank, &k.Arrival); err != nil {
			return n, err
		}
		if copy(k.Hash[:], hash) != len(k.Hash) {
			return n, fmt.Errorf("a record_hash has %d bytes", len(hash))
		}
		if known = append(known, k); len(known) == portion {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return n, err
	}
	return n, flush()
}

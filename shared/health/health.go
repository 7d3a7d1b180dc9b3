// Package health remembers whether the stores that a process uses answer, since when,
// and how long they were away before, and tells it as two metrics:
//
//	millrace_store_up{store="redis"}                          1 or 0
//	millrace_store_changed_timestamp_seconds{store="redis"}   since when, as Unix time
//
// It asks nobody: whoever uses a store, or pings it, notes what that came to. A store of
// which nothing was noted yet has no metrics. What an answer says does not matter; a
// refused statement was answered.
package health

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// The stores, as the label store of the metrics has them.
const (
	Kafka    = "kafka"
	Redis    = "redis"
	Postgres = "postgres"
	S3       = "s3"
)

// State is how a store was when it was used last.
type State struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
	// Since is when it was first found as it is.
	Since time.Time `json:"since"`
	// AwaySeconds is how long it had been away before Since; 0 when it is away, or never
	// was.
	AwaySeconds float64 `json:"awaySeconds,omitempty"`
	// Error is what using it came to last, while it is away.
	Error string `json:"error,omitempty"`
}

// Store is one store. It is safe for concurrent use.
type Store struct {
	name string
	well atomic.Bool // what the lock would tell, for those who only confirm it

	mu    sync.Mutex
	known bool
	state State
}

var (
	all   sync.Map // of *Store by name
	meter = otel.Meter("github.com/millrace-dev/millrace/shared/health")
)

// Of gives the process's store of this name, whose metrics it makes the first time.
func Of(name string) *Store {
	if s, ok := all.Load(name); ok {
		return s.(*Store)
	}
	s, known := all.LoadOrStore(name, &Store{name: name})
	store := s.(*Store)
	if !known {
		store.instrument(meter)
	}
	return store
}

// instrument makes the metrics. What cannot be made is told to OpenTelemetry's handler of
// errors: a store works without them.
func (s *Store) instrument(m metric.Meter) {
	up, err := m.Int64ObservableGauge("millrace.store.up", metric.WithDescription("Whether a store answered this process last, by store: 1 or 0."))
	if err != nil {
		otel.Handle(err)
		return
	}
	changed, err := m.Float64ObservableGauge("millrace.store.changed.timestamp", metric.WithUnit("s"), metric.WithDescription("Since when a store answers, or does not, by store, as Unix time."))
	if err != nil {
		otel.Handle(err)
		return
	}
	label := metric.WithAttributeSet(attribute.NewSet(attribute.String("store", s.name)))
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		state, known := s.State()
		if !known {
			return nil
		}
		value := int64(0)
		if state.Up {
			value = 1
		}
		o.ObserveInt64(up, value, label)
		o.ObserveFloat64(changed, float64(state.Since.UnixMilli())/1000, label)
		return nil
	}, up, changed)
	if err != nil {
		otel.Handle(err)
	}
}

// State tells how the store was; known is false before anything was noted.
func (s *Store) State() (state State, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.known
}

// Well notes that the store answered, and tells whether that is news. It costs next to
// nothing when it is not.
func (s *Store) Well() (news bool) {
	if s.well.Load() {
		return false
	}
	return s.note(true, time.Now(), "")
}

// Failed notes that the store did not answer, and tells whether that is news.
func (s *Store) Failed(err error) (news bool) { return s.FailedSince(time.Now(), err) }

// FailedSince is Failed for those who know when they asked.
func (s *Store) FailedSince(asked time.Time, err error) (news bool) {
	return s.note(false, asked, err.Error())
}

func (s *Store) note(up bool, at time.Time, text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known && s.state.Up == up {
		s.state.Error = text
		return false
	}
	if !up && s.known && at.Before(s.state.Since) {
		// It was asked before it was found well.
		at = s.state.Since
	}
	next := State{Name: s.name, Up: up, Since: at, Error: text}
	if up && s.known {
		next.AwaySeconds = at.Sub(s.state.Since).Seconds()
	}
	news := s.known || !up
	s.known, s.state = true, next
	s.well.Store(up)
	return news
}

// Package target delivers messages: to a Kafka topic, over HTTP as CloudEvents, or
// as lines of text. A target keeps trying while the other side is away, and knows
// of every message whether it was delivered, refused, or left unsettled.
//
// It does not pace, and does not look into messages.
package target

import (
	"context"
	"sync"
)

// Message is one message. Its bytes belong to the target from Send on.
type Message struct {
	// Seq counts the messages of the run without gaps.
	Seq uint64
	// Key is nil where the message has none.
	Key, Value []byte
}

// Target is where messages go.
type Target interface {
	// Send hands a message over, to be delivered in the background. It blocks
	// while too many messages are under way, and fails only when ctx is done; the
	// message is then not handed over. Messages with one key stay in order. It must
	// not be called concurrently.
	Send(ctx context.Context, m Message) error
	// Close waits until all messages are settled or ctx is done, gives up the rest
	// and frees what the target holds.
	Close(ctx context.Context) error
	// Check says what keeps messages from being delivered, as far as the target
	// knows; it is for when there is no progress.
	Check(ctx context.Context) error
	// Outcome tells what became of the messages so far. It is safe for concurrent
	// use.
	Outcome() Outcome
}

// Outcome counts messages.
type Outcome struct {
	// Delivered were acknowledged by the other side.
	Delivered uint64 `json:"delivered"`
	// Refused were given up for a permanent error, by its text.
	Refused map[string]uint64 `json:"refused"`
	// Unsettled were handed over and are not known to be delivered or not.
	Unsettled uint64 `json:"unsettled"`
	// Settled is the first Seq that is not settled: all before it are delivered or
	// refused.
	Settled uint64 `json:"settled"`
}

// Complete tells that all messages that were handed over were delivered.
func (o Outcome) Complete() bool { return len(o.Refused) == 0 && o.Unsettled == 0 }

// manyReasons bounds the reasons that are told apart.
const manyReasons = 20

// ledger keeps the outcome and bounds the messages under way. Only one goroutine
// opens entries, any may settle them.
type ledger struct {
	mu      sync.Mutex
	settled []bool // ring, indexed by Seq
	low     uint64 // first Seq not settled
	next    uint64 // first Seq not opened
	good    uint64
	refused map[string]uint64
	room    chan struct{} // signalled when low moves
}

func newLedger(first uint64, size int) *ledger {
	return &ledger{settled: make([]bool, size), low: first, next: first,
		refused: map[string]uint64{}, room: make(chan struct{}, 1)}
}

// open waits for room and enters the message.
func (l *ledger) open(ctx context.Context, seq uint64) error {
	for {
		l.mu.Lock()
		if seq != l.next {
			l.mu.Unlock()
			panic("target: messages are not numbered without gaps")
		}
		if seq-l.low < uint64(len(l.settled)) {
			l.next++
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-l.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// delivered and refuse settle a message.
func (l *ledger) delivered(seq uint64) { l.settle(seq, "") }

func (l *ledger) refuse(seq uint64, reason string) { l.settle(seq, reason) }

func (l *ledger) settle(seq uint64, reason string) {
	size := uint64(len(l.settled))
	l.mu.Lock()
	defer l.mu.Unlock()
	if reason == "" {
		l.good++
	} else {
		if _, known := l.refused[reason]; !known && len(l.refused) >= manyReasons {
			reason = "other reasons"
		}
		l.refused[reason]++
	}
	l.settled[seq%size] = true
	if seq != l.low {
		return
	}
	for l.low < l.next && l.settled[l.low%size] {
		l.settled[l.low%size] = false
		l.low++
	}
	select {
	case l.room <- struct{}{}:
	default:
	}
}

func (l *ledger) outcome(first uint64) Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := Outcome{Delivered: l.good, Refused: map[string]uint64{}, Settled: l.low}
	o.Unsettled = l.next - first - l.good
	for reason, n := range l.refused {
		o.Refused[reason] = n
		o.Unsettled -= n
	}
	return o
}

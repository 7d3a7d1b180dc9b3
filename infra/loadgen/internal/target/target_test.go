package target

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever the order of settling, all messages before Settled are settled and the
// one at it is not.
func TestLedger_settledIsTheFirstOpenMessage(t *testing.T) {
	const first, size = 1000, 64
	l := newLedger(first, size)
	open := map[uint64]bool{}
	next := uint64(first)
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		if len(open) > 0 && (r.IntN(2) == 0 || next-l.outcome(first).Settled == size) {
			// Mostly an old one, else the ledger fills.
			oldest := l.outcome(first).Settled
			seq := oldest + uint64(r.IntN(int(next-oldest)))
			if !open[seq] {
				seq = oldest
			}
			delete(open, seq)
			if r.IntN(10) == 0 {
				l.refuse(seq, "no")
			} else {
				l.delivered(seq)
			}
		} else {
			if err := l.open(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			open[next] = true
			next++
		}
		o := l.outcome(first)
		lowest := next
		for seq := range open {
			lowest = min(lowest, seq)
		}
		if o.Settled != lowest || o.Unsettled != uint64(len(open)) {
			t.Fatalf("settled %d, unsettled %d, want %d, %d", o.Settled, o.Unsettled, lowest, len(open))
		}
		if sum := o.Delivered + o.Refused["no"] + o.Unsettled; sum != next-first {
			t.Fatalf("%d messages are accounted for, want %d", sum, next-first)
		}
	}
}

func TestLedger_blocksWhenFullUntilTheOldestIsSettled(t *testing.T) {
	l := newLedger(0, 2)
	for seq := range uint64(2) {
		if err := l.open(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.open(ctx, 2); !errors.Is(err, context.Canceled) {
		t.Fatalf("open of a full ledger: %v, want that the context ended", err)
	}
	l.delivered(1) // not the oldest: no room yet
	if err := l.open(ctx, 2); !errors.Is(err, context.Canceled) {
		t.Fatalf("open with the oldest unsettled: %v, want that the context ended", err)
	}
	opened := make(chan error)
	go func() { opened <- l.open(t.Context(), 2) }()
	l.delivered(0)
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Outcome{Delivered: 2, Refused: map[string]uint64{}, Unsettled: 1, Settled: 2}, l.outcome(0)); diff != "" {
		t.Errorf("outcome (-want +got):\n%s", diff)
	}
}

func TestLedger_boundsTheReasons(t *testing.T) {
	l := newLedger(0, 1)
	for seq := range uint64(100) {
		if err := l.open(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
		l.refuse(seq, fmt.Sprint("reason ", seq))
	}
	o := l.outcome(0)
	if len(o.Refused) != manyReasons+1 || o.Refused["other reasons"] != 100-manyReasons || o.Complete() {
		t.Errorf("outcome %+v", o)
	}
}

package eventing

// tracker knows up to where a partition is done: events are begun in the order of
// their offsets and finished in any order, and the position is the offset of the
// first one that is not finished. The zero tracker has seen nothing.
type tracker struct {
	// pending are the events from the position on; pending[0] is not finished.
	pending []pendingEvent
	// first is the number of pending[0]; events are numbered from 0.
	first uint64
	// end is the offset after the last record seen, valid when any is true.
	end int64
	any bool
	// open is how many events are not finished.
	open int
}

type pendingEvent struct {
	offset   int64
	finished bool
}

// begin adds the event at the offset, which has to be higher than all before, and
// returns its number.
func (t *tracker) begin(offset int64) uint64 {
	t.pending = append(t.pending, pendingEvent{offset: offset})
	t.open++
	return t.first + uint64(len(t.pending)) - 1
}

// skip says that all records before the offset have been seen.
func (t *tracker) skip(end int64) { t.end, t.any = end, true }

// finish marks n events from the numbered one on as finished.
func (t *tracker) finish(number uint64, n int) {
	t.open -= n
	for i := range n {
		t.pending[number-t.first+uint64(i)].finished = true
	}
	done := 0
	for done < len(t.pending) && t.pending[done].finished {
		done++
	}
	t.first += uint64(done)
	if t.pending = t.pending[done:]; len(t.pending) == 0 {
		t.pending = nil // the next begin takes fresh memory and lets the old go
	}
}

// position is the offset that can be committed, and whether there is one.
func (t *tracker) position() (int64, bool) {
	if len(t.pending) > 0 {
		return t.pending[0].offset, true
	}
	return t.end, t.any
}

// lag is how many events are not finished, and how many records before the watermark
// have not been seen, whose events may be none of ours. Records that were seen and are
// none do not count, however far behind the position is.
func (t *tracker) lag(watermark int64) int64 {
	if !t.any {
		return int64(t.open)
	}
	return int64(t.open) + max(0, watermark-t.end)
}

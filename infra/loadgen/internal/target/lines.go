package target

import (
	"bufio"
	"context"
	"io"
)

// Lines writes each message's value as a line. Keys are not written.
type Lines struct {
	*ledger
	first uint64
	out   *bufio.Writer
}

// NewLines makes a target of a writer, which is not closed.
func NewLines(w io.Writer, first uint64) *Lines {
	return &Lines{newLedger(first, 1), first, bufio.NewWriterSize(w, 1<<20)}
}

// Send writes a line; it may stay in a buffer until Close. A write error refuses
// the message.
func (l *Lines) Send(ctx context.Context, m Message) error {
	if err := l.open(ctx, m.Seq); err != nil {
		return err
	}
	_, err := l.out.Write(m.Value)
	if err == nil {
		err = l.out.WriteByte('\n')
	}
	if err != nil {
		l.refuse(m.Seq, err.Error())
		return nil
	}
	l.delivered(m.Seq)
	return nil
}

// Close writes what is buffered.
func (l *Lines) Close(context.Context) error { return l.out.Flush() }

// Check knows of nothing: what goes wrong is refused at once.
func (l *Lines) Check(context.Context) error { return nil }

// Outcome counts lines.
func (l *Lines) Outcome() Outcome { return l.outcome(l.first) }

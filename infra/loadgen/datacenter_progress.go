package main

import (
	"context"
	"strconv"
	"sync"
	"time"
)

// marks know which time is reached when so many messages are settled.
type marks struct {
	mu sync.Mutex
	// last is the progress that is known to be reached; list is what comes after it.
	last datacenterProgress
	list []mark
}

type mark struct {
	messages uint64
	next     int64
}

func (m *marks) reset(p datacenterProgress) { m.last = p }

// add notes that all messages before this number are of times before next.
func (m *marks) add(messages uint64, next int64) {
	m.mu.Lock()
	m.list = append(m.list, mark{messages, next})
	m.mu.Unlock()
}

// reached is the progress when all messages before settled are.
func (m *marks) reached(settled uint64) datacenterProgress {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.list) > 0 && m.list[0].messages <= settled {
		m.last.Messages, m.last.Next = m.list[0].messages, m.list[0].next
		m.list = m.list[1:]
	}
	return m.last
}

func (m *meter) save() error {
	reached := m.marks.reached(m.to.Outcome().Settled)
	if m.flags.resume == "" {
		return nil
	}
	return reached.save(m.flags.resume)
}

// watch logs the progress and keeps the -resume file current until stopped.
func (m *meter) watch() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		save := time.NewTicker(time.Second)
		defer save.Stop()
		tell := make(<-chan time.Time)
		if m.flags.progress > 0 {
			ticker := time.NewTicker(m.flags.progress)
			defer ticker.Stop()
			tell = ticker.C
		}
		last := m.to.Outcome()
		for {
			select {
			case <-quit:
				return
			case <-save.C:
				if err := m.save(); err != nil {
					m.log.Warn("keeping the progress failed", "file", m.flags.resume, "error", err)
				}
			case <-tell:
				now := m.to.Outcome()
				if now.Delivered == last.Delivered && now.Unsettled > 0 {
					ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
					m.log.Warn("no message is acknowledged", "waiting", now.Unsettled, "error", m.to.Check(ctx))
					cancel()
				} else {
					m.log.Info("progress", "delivered", now.Delivered,
						"a_second", strconv.FormatFloat(float64(now.Delivered-last.Delivered)/m.flags.progress.Seconds(), 'f', 0, 64),
						"waiting", now.Unsettled, "refused", len(now.Refused))
				}
				last = now
			}
		}
	}()
	return func() { close(quit); <-done }
}

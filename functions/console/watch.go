package main

import (
	"sync"
	"time"
)

// watch remembers which sources do not answer, and since when. It learns only from
// what views ask, so a source that nobody asks for is neither well nor ill.
type watch struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[string]condition
}

// condition is how a source was when it was asked last.
type condition struct {
	Well bool `json:"well"`
	// Since is when it was first found so, and AwaySeconds how long it had not answered
	// before, if it is well again.
	Since       time.Time `json:"since"`
	AwaySeconds float64   `json:"awaySeconds,omitempty"`
	Asked       time.Time `json:"asked"`
	Error       string    `json:"error,omitempty"`
}

func newWatch(now func() time.Time) *watch {
	return &watch{now: now, sources: map[string]condition{}}
}

// failed notes an error of a source, and gives it back.
func (w *watch) failed(source string, err error) error {
	w.note(source, false, err.Error())
	return err
}

func (w *watch) well(source string) { w.note(source, true, "") }

func (w *watch) note(source string, well bool, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, known := w.sources[source]
	now := w.now()
	if !known || h.Well != well {
		h.AwaySeconds = 0
		if known && well {
			h.AwaySeconds = now.Sub(h.Since).Seconds()
		}
		h.Well, h.Since = well, now
	}
	h.Asked, h.Error = now, text
	w.sources[source] = h
}

// all gives every source that was asked.
func (w *watch) all() map[string]condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[string]condition, len(w.sources))
	for name, h := range w.sources {
		all[name] = h
	}
	return all
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/model"
)

// Roles of versions.
const (
	live   = "live"
	canary = "canary"
	shadow = "shadow"
)

// version is a loaded model version and what serving it takes, made once.
type version struct {
	id            string
	name, version string
	bundle        *model.Bundle
	loaded        time.Time

	// shop has the place of each feature among those of package features. It is nil
	// when the model has a feature that is not there, which foreign then names.
	shop    []int
	foreign string

	encoded sync.Pool // *[]float64, rows as the model takes them
	counts  versionCounts
}

func newVersion(f found, b *model.Bundle) *version {
	v := &version{id: f.id, name: b.Manifest.Name, version: b.Manifest.Version, bundle: b, loaded: time.Now()}
	if f.version != "" {
		v.version = f.version
	}
	v.shop = make([]int, len(b.Features.Features))
	for i := range b.Features.Features {
		at, ok := features.ByName(b.Features.Features[i].Name)
		if !ok {
			v.shop, v.foreign = nil, b.Features.Features[i].Name
			break
		}
		v.shop[i] = at
	}
	return v
}

// outputs is how many numbers a prediction has.
func (v *version) outputs() int { return v.bundle.Model.Outputs() }

// predict computes the predictions of all items.
func (v *version) predict(in inputs) ([]float64, error) {
	n, width := in.count(), v.bundle.Model.Features()
	rows, _ := v.encoded.Get().(*[]float64)
	if rows == nil {
		rows = new([]float64)
	}
	defer v.encoded.Put(rows)
	if cap(*rows) < n*width {
		*rows = make([]float64, n*width)
	}
	matrix := (*rows)[:n*width]
	for i := range n {
		if err := in.encode(v, i, matrix[i*width:(i+1)*width]); err != nil {
			return nil, &itemError{i, err}
		}
	}
	out := make([]float64, n*v.outputs())
	if err := v.bundle.Model.Predict(out, matrix); err != nil {
		return nil, fmt.Errorf("predicting with %s %s: %w", v.name, v.version, err)
	}
	for _, p := range out {
		if math.IsNaN(p) || math.IsInf(p, 0) {
			return nil, fmt.Errorf("predicting with %s %s: the prediction is not a finite number", v.name, v.version)
		}
	}
	return out, nil
}

// slot holds the version of one role and keeps it up to date.
type slot struct {
	role   string
	origin origin
	counts *instruments

	current  atomic.Pointer[version]
	previous atomic.Pointer[version]

	mu    sync.Mutex // held while looking for another version
	badID string     // of a bundle that was refused, with the reason
	bad   error
	said  atomic.Pointer[string] // the last failure, for people; nil after a success
}

// check looks for another version and serves it, when there is one, from the moment
// it returns. It returns an *model.InvalidError for a bundle that is bad, and reads
// such a bundle only once; other errors may pass. In both cases what was served is
// served on.
func (s *slot) check(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.update(ctx)
	if err == nil {
		s.said.Store(nil)
		return nil
	}
	if text := err.Error(); ctx.Err() == nil {
		if last := s.said.Swap(&text); last == nil || *last != text {
			slog.ErrorContext(ctx, "no new model version", "role", s.role, "origin", s.origin.String(), "error", text)
			s.counts.load(ctx, s.role, "failed")
		}
	}
	return err
}

func (s *slot) update(ctx context.Context) error {
	f, err := s.origin.find(ctx)
	if err != nil {
		return err
	}
	old := s.current.Load()
	if old != nil && old.id == f.id {
		return nil
	}
	if f.id == s.badID {
		return s.bad
	}
	next := s.previous.Load()
	if next == nil || next.id != f.id {
		source, err := f.source(ctx)
		if err != nil {
			return err
		}
		b, err := model.Load(ctx, source)
		if invalid, ok := errors.AsType[*model.InvalidError](err); ok {
			s.badID, s.bad = f.id, invalid
		}
		if err != nil {
			return err
		}
		if f.digest != "" && b.Digest != f.digest {
			return fmt.Errorf("bundle %s was replaced while it was read", source)
		}
		next = newVersion(f, b)
		next.counts = s.counts.version(s.role, next)
	}
	s.badID, s.bad = "", nil
	s.current.Store(next)
	if old != nil {
		s.previous.Store(old)
	}
	s.counts.load(ctx, s.role, "loaded")
	slog.InfoContext(ctx, "serving a model version", "role", s.role, "model", next.name, "version", next.version,
		"trees", next.bundle.Model.Trees(), "objective", next.bundle.Model.Objective(), "origin", s.origin.String())
	return nil
}

// watch checks every interval until ctx ends. What a check says is logged by it.
func (s *slot) watch(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		check, cancel := context.WithTimeout(ctx, checkTimeout)
		_ = s.check(check)
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// checkTimeout bounds the reading of one bundle.
const checkTimeout = time.Minute

// shown is a slot's state, for people and tests.
type shown struct {
	Role     string         `json:"role"`
	Origin   string         `json:"origin"`
	Model    string         `json:"model,omitempty"`
	Version  string         `json:"version,omitempty"`
	Previous string         `json:"previous_version,omitempty"`
	LoadedAt *time.Time     `json:"loaded_at,omitempty"`
	Trees    int            `json:"trees,omitempty"`
	Training model.Training `json:"training,omitzero"`
	Metrics  model.Metrics  `json:"metrics,omitempty"`
	Error    string         `json:"error,omitempty"`
}

func (s *slot) show() shown {
	out := shown{Role: s.role, Origin: s.origin.String()}
	if v := s.current.Load(); v != nil {
		out.Model, out.Version, out.LoadedAt = v.name, v.version, &v.loaded
		out.Trees, out.Training, out.Metrics = v.bundle.Model.Trees(), v.bundle.Manifest.Training, v.bundle.Metrics
	}
	if v := s.previous.Load(); v != nil {
		out.Previous = v.version
	}
	if text := s.said.Load(); text != nil {
		out.Error = *text
	}
	return out
}

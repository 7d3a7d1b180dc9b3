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
	from          string // where it was found
	bundle        *model.Bundle
	loaded        time.Time

	// shop has the place of each feature among those of package features. It is nil
	// when the model has a feature that is not there, which foreign then names.
	shop    []int
	foreign string

	encoded sync.Pool // *[]float64, rows as the model takes them
	counts  versionCounts
}

func newVersion(f found, b *model.Bundle, from string) *version {
	v := &version{id: f.id, from: from, name: b.Manifest.Name, version: b.Manifest.Version, bundle: b, loaded: time.Now()}
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
	role string
	// name is what the model must be called, "" if any may be served.
	name   string
	origin origin
	// standIns are asked, in this order, for a version to serve while the origin has
	// never given one.
	standIns []origin
	// kept takes what the origin gave; nil if nothing is kept.
	kept   *kept
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
	if old := s.current.Load(); old != nil && old.id == f.id {
		return nil
	}
	if f.id == s.badID {
		return s.bad
	}
	next, read := s.previous.Load(), &recorder{}
	if next == nil || next.id != f.id {
		if next, err = s.load(ctx, s.origin, f, read); err != nil {
			if invalid, ok := errors.AsType[*model.InvalidError](err); ok {
				s.badID, s.bad = f.id, invalid
			}
			return err
		}
	}
	if err := s.keep(f, next, read.files); err != nil {
		slog.WarnContext(ctx, "the model version is not kept", "model", next.name, "version", next.version, "error", err.Error())
	}
	s.badID, s.bad = "", nil
	if old := s.current.Swap(next); old != nil {
		s.previous.Store(old)
	}
	s.serving(ctx, next)
	return nil
}

// keep keeps a version for the next start. files are empty of one that was in memory.
func (s *slot) keep(f found, v *version, files map[string][]byte) error {
	if s.kept == nil {
		return nil
	}
	if len(files) == 0 {
		return s.kept.back(f, v.bundle.Digest)
	}
	before := ""
	if old := s.current.Load(); old != nil {
		before = old.bundle.Digest
	}
	return s.kept.keep(f, v.bundle.Digest, before, files)
}

// load reads a version from where it was found.
func (s *slot) load(ctx context.Context, o origin, f found, read *recorder) (*version, error) {
	source, err := f.source(ctx)
	if err != nil {
		return nil, err
	}
	read.Source = source
	b, err := model.Load(ctx, read)
	if err != nil {
		return nil, err
	}
	if s.name != "" && b.Manifest.Name != s.name {
		return nil, &model.InvalidError{Source: source.String(), File: model.ManifestFile,
			Err: fmt.Errorf("name: is %q, the model to serve is %q", b.Manifest.Name, s.name)}
	}
	if f.digest != "" && b.Digest != f.digest {
		return nil, fmt.Errorf("bundle %s was replaced while it was read", source)
	}
	v := newVersion(f, b, o.String())
	v.counts = s.counts.version(s.role, v)
	return v, nil
}

// standIn serves the first stand-in that can be, unless something is served.
func (s *slot) standIn(ctx context.Context) {
	for _, o := range s.standIns {
		if s.current.Load() != nil {
			return
		}
		f, err := o.find(ctx)
		var v *version
		if err == nil {
			v, err = s.load(ctx, o, f, &recorder{})
		}
		switch {
		case errors.Is(err, errNotKept):
		case err != nil:
			slog.WarnContext(ctx, "a stand-in for the model cannot be served", "role", s.role, "origin", o.String(), "error", err.Error())
		case s.current.CompareAndSwap(nil, v):
			s.serving(ctx, v)
			return
		}
	}
}

func (s *slot) serving(ctx context.Context, v *version) {
	s.counts.load(ctx, s.role, "loaded")
	slog.InfoContext(ctx, "serving a model version", "role", s.role, "model", v.name, "version", v.version,
		"trees", v.bundle.Model.Trees(), "objective", v.bundle.Model.Objective(), "origin", v.from)
}

// watch checks every interval until ctx ends. What a check says is logged by it. When
// the first one fails, or takes longer than patience, a stand-in is served.
func (s *slot) watch(ctx context.Context, interval, patience time.Duration) {
	impatient := time.AfterFunc(patience, func() { s.standIn(ctx) })
	defer impatient.Stop()
	check := func() error {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		return s.check(ctx)
	}
	if err := check(); err != nil {
		s.standIn(ctx)
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_ = check()
		}
	}
}

// checkTimeout bounds the reading of one bundle.
const checkTimeout = time.Minute

// shown is a slot's state, for people and tests.
type shown struct {
	Role   string `json:"role"`
	Origin string `json:"origin"`
	// From is where the version was found, when that is a stand-in for the origin.
	From     string         `json:"from,omitempty"`
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
		if v.from != out.Origin {
			out.From = v.from
		}
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

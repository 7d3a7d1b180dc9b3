package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/registry"
)

// baseline is what is known of the data that a version was trained on.
type baseline struct {
	version  string
	training model.Training
	rows     int64
	features []model.Feature
	known    []model.Distribution // of the features
	score    model.Distribution
	residual *model.Residuals
}

// baselines gives the baseline of the version of a model that serves.
type baselines interface {
	of(ctx context.Context, w *watched) (*baseline, error)
}

// bundles finds the versions that serve, and remembers the last of each model.
type bundles struct {
	registry *registry.Client // nil without one
	alias    string
	data     string

	mu   sync.Mutex
	last map[string]remembered
	said map[string]string
}

type remembered struct {
	id string
	baseline
}

// errNoVersion says that a model has no version yet.
var errNoVersion = errors.New("no version serves yet")

// errUnknown says that the registry does not tell which version serves.
var errUnknown = errors.New("which version serves is not known")

// of gives the baseline of the version of a model that serves. When the registry does
// not answer, that of the last one that it named.
func (b *bundles) of(ctx context.Context, w *watched) (*baseline, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last, b.said = map[string]remembered{}, map[string]string{}
	}
	id, version, source, err := b.find(ctx, w)
	known, ok := b.last[w.Name]
	if err == nil && ok && known.id == id {
		return &known.baseline, nil
	}
	var loaded *model.Bundle
	if err == nil {
		loaded, err = load(ctx, source)
	}
	if err != nil {
		if ok && !errors.Is(err, errNoVersion) {
			if text := err.Error(); b.said[w.Name] != text {
				b.said[w.Name] = text
				slog.WarnContext(ctx, "measuring against the last version that was known", "model", w.Name, "version", known.version, "error", text)
			}
			return &known.baseline, nil
		}
		return nil, err
	}
	m := &loaded.Manifest
	if version == "" {
		version = m.Version
	}
	r := remembered{id, baseline{version: version, training: m.Training, rows: loaded.Baseline.Rows, features: loaded.Features.Features,
		known: loaded.Baseline.Features, score: loaded.Baseline.Score, residual: loaded.Baseline.Residuals}}
	b.last[w.Name], b.said[w.Name] = r, ""
	return &r.baseline, nil
}

func load(ctx context.Context, source func(context.Context) (model.Source, error)) (*model.Bundle, error) {
	s, err := source(ctx)
	if err != nil {
		return nil, err
	}
	return model.Load(ctx, s)
}

// find tells which version serves: the registry's, or the one that ships.
func (b *bundles) find(ctx context.Context, w *watched) (id, version string, source func(context.Context) (model.Source, error), err error) {
	if b.registry != nil {
		v, err := b.registry.ByAlias(ctx, w.Name, b.alias)
		if err == nil {
			return v.Version + " of run " + v.RunID, v.Version, func(ctx context.Context) (model.Source, error) { return b.registry.Bundle(ctx, v) }, nil
		}
		if !errors.Is(err, registry.ErrNotFound) {
			return "", "", nil, fmt.Errorf("%w: %w", errUnknown, err)
		}
	}
	if w.Fallback == "" || b.data == "" {
		return "", "", nil, errNoVersion
	}
	folder := model.Folder(filepath.Join(b.data, w.Fallback))
	_, digest, err := model.ReadManifest(ctx, folder)
	if err != nil {
		return "", "", nil, fmt.Errorf("%w: %w", errNoVersion, err)
	}
	return digest, "", func(context.Context) (model.Source, error) { return folder, nil }, nil
}

// places maps the values of a category to their places among the counts.
func places(v *model.Values) (map[string]int, error) {
	text, err := v.MarshalJSON()
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	if v.IsText() {
		var list []string
		err = json.Unmarshal(text, &list)
		for i, s := range list {
			out[s] = i
		}
		return out, err
	}
	var list []int64
	err = json.Unmarshal(text, &list)
	for i, n := range list {
		out[strconv.FormatInt(n, 10)] = i
	}
	return out, err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/registry"
)

// ForestConfig says where the forests are that contracts name.
type ForestConfig struct {
	// TrackingURI is the registry, an MLflow server. Without it the bundles that come
	// with the program judge.
	TrackingURI string `envconfig:"MLFLOW_TRACKING_URI"`
	Alias       string `envconfig:"MODEL_ALIAS" default:"current"`
	// Poll is how often is looked for another version.
	Poll time.Duration `envconfig:"MODEL_POLL" default:"1s"`
	// Fallback is a folder that has a bundle in a folder by the name of its model, for
	// as long as the registry has none: file:///folder, or kodata:///folder of the
	// image.
	Fallback string `envconfig:"MODEL_FALLBACK_URI"`
}

// forests are the isolation forests, each shared by the contracts that name it.
type forests struct {
	config   *ForestConfig
	registry *registry.Client // nil without one
	folder   string           // of the fallbacks, "" without
	by       map[string]*served
}

// served is one model and the version that judges.
type served struct {
	name   string
	forest anomaly.Forest

	mu   sync.Mutex // held while looking for another version
	id   string     // of the version that was tried last
	said string     // the last failure
}

func newForests(c *ForestConfig, contracts *contract.Set) (*forests, error) {
	f := &forests{config: c, by: map[string]*served{}}
	if c.Poll < 10*time.Millisecond {
		return nil, fmt.Errorf("MODEL_POLL=%s: must be at least 10ms", c.Poll)
	}
	if c.Fallback != "" {
		u, err := url.Parse(c.Fallback)
		switch {
		case err == nil && u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
			f.folder = filepath.Clean(u.Path)
		case err == nil && u.Scheme == "kodata" && u.Host == "" && os.Getenv("KO_DATA_PATH") != "":
			f.folder = filepath.Join(os.Getenv("KO_DATA_PATH"), filepath.Clean(u.Path))
		default:
			return nil, fmt.Errorf("MODEL_FALLBACK_URI=%q: want file:///folder, or kodata:///folder with KO_DATA_PATH set", c.Fallback)
		}
	}
	if c.TrackingURI != "" {
		var err error
		if f.registry, err = (registry.Config{URL: c.TrackingURI}).Connect(); err != nil {
			return nil, fmt.Errorf("MLFLOW_TRACKING_URI: %w", err)
		}
	}
	for _, c := range contracts.Contracts() {
		if c.Detect != nil && c.Detect.Model != "" && f.by[c.Detect.Model] == nil {
			f.by[c.Detect.Model] = &served{name: c.Detect.Model}
		}
	}
	return f, nil
}

// of is the forest that a contract names, nil if it names none.
func (f *forests) of(c *contract.Contract) *anomaly.Forest {
	if c.Detect == nil || f.by[c.Detect.Model] == nil {
		return nil
	}
	return &f.by[c.Detect.Model].forest
}

// start loads what there is and looks for other versions until ctx ends.
func (f *forests) start(ctx context.Context) {
	for _, s := range f.by {
		if f.folder != "" {
			if err := s.load(ctx, model.Folder(filepath.Join(f.folder, s.name)), "starter", ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
				slog.ErrorContext(ctx, "no forest to begin with", "model", s.name, "error", err)
			}
		}
		if f.registry == nil {
			continue
		}
		go func() {
			t := time.NewTicker(f.config.Poll)
			defer t.Stop()
			for {
				_ = f.check(ctx, s) // it says itself what went wrong
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
			}
		}()
	}
}

// reload looks for another version of a model at once, since an event says that there
// is one. Other models are none of our business.
func (f *forests) reload(ctx context.Context, name string) error {
	s := f.by[name]
	if s == nil || f.registry == nil {
		return nil
	}
	err := f.check(ctx, s)
	if _, bad := errors.AsType[*model.InvalidError](err); bad {
		return function.Invalid("%w", err)
	}
	if err != nil {
		return function.Unavailable(err, retryAfter)
	}
	return nil
}

// check takes the version that the alias points to into service. A bundle that is bad
// is read once, and what judged before judges on.
func (f *forests) check(ctx context.Context, s *served) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := func() error {
		v, err := f.registry.ByAlias(ctx, s.name, f.config.Alias)
		if errors.Is(err, registry.ErrNotFound) {
			return nil // not trained yet
		}
		if err != nil {
			return err
		}
		id := v.Version + " of run " + v.RunID
		if id == s.id {
			return nil
		}
		source, err := f.registry.Bundle(ctx, v)
		if err != nil {
			return err
		}
		return s.load(ctx, source, v.Version, id)
	}()
	if err == nil {
		s.said = ""
	} else if text := err.Error(); text != s.said && ctx.Err() == nil {
		s.said = text
		slog.ErrorContext(ctx, "no new version of a forest", "model", s.name, "error", text)
	}
	return err
}

func (s *served) load(ctx context.Context, source model.Source, version, id string) error {
	b, err := model.Load(ctx, source)
	if _, bad := errors.AsType[*model.InvalidError](err); bad {
		s.id = id
	}
	if err != nil {
		return err
	}
	s.id = id
	if err := s.forest.Use(b, version); err != nil {
		return err
	}
	// Reading a bundle takes many times what is kept of it.
	debug.FreeOSMemory()
	slog.InfoContext(ctx, "judging by a version of a forest", "model", s.name, "version", version, "trees", b.Model.Trees())
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/millrace-dev/millrace/shared/model"
)

// kept is the last version that an origin gave, in a folder, for a start at which the
// origin does not answer. The folder is for one process: it has a folder a bundle,
// named by its digest, and kept.json, which says which of them it is.
type kept struct {
	dir string
	of  origin
}

// errNotKept says that there is nothing.
var errNotKept = errors.New("no version is kept")

// note is kept.json.
type note struct {
	Origin  string `json:"origin"`
	ID      string `json:"id"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

const noteFile = "kept.json"

func (k *kept) String() string { return "file://" + k.dir }

// find tells what was kept of the origin, under its id there: once the origin answers
// and says the same, there is nothing to load.
func (k *kept) find(context.Context) (found, error) {
	data, err := os.ReadFile(filepath.Join(k.dir, noteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return found{}, errNotKept
	}
	if err != nil {
		return found{}, fmt.Errorf("reading which version is kept: %w", err)
	}
	var n note
	if err := json.Unmarshal(data, &n); err != nil {
		return found{}, fmt.Errorf("reading %s: %w", filepath.Join(k.dir, noteFile), err)
	}
	if n.Origin != k.of.String() {
		return found{}, errNotKept
	}
	source := func(context.Context) (model.Source, error) {
		return model.Folder(filepath.Join(k.dir, filepath.Base(n.Digest))), nil
	}
	return found{id: n.ID, version: n.Version, source: source, digest: n.Digest}, nil
}

// keep replaces what was kept by a bundle that was loaded. A crash leaves the one or
// the other. The files of the bundle before, if there is one, stay for back.
func (k *kept) keep(f found, digest, before string, files map[string][]byte) error {
	if err := os.MkdirAll(filepath.Join(k.dir, digest), 0o750); err != nil {
		return fmt.Errorf("making a folder for the version: %w", err)
	}
	for name, data := range files {
		if err := replace(filepath.Join(k.dir, digest, name), data); err != nil {
			return err
		}
	}
	if err := k.point(f, digest); err != nil {
		return err
	}
	old, err := os.ReadDir(k.dir)
	for _, o := range old {
		if o.IsDir() && o.Name() != digest && o.Name() != before {
			err = errors.Join(err, os.RemoveAll(filepath.Join(k.dir, o.Name())))
		}
	}
	return err
}

// back says that a bundle that was served before is served again. If its files are not
// there any more nothing is kept: what is would be the wrong one.
func (k *kept) back(f found, digest string) error {
	if _, err := os.Stat(filepath.Join(k.dir, digest, model.ManifestFile)); err != nil {
		return errors.Join(fmt.Errorf("keeping the version before: %w", err), os.Remove(filepath.Join(k.dir, noteFile)))
	}
	return k.point(f, digest)
}

func (k *kept) point(f found, digest string) error {
	data, err := json.Marshal(note{k.of.String(), f.id, f.version, digest})
	if err != nil {
		return err
	}
	return replace(filepath.Join(k.dir, noteFile), data)
}

// replace writes a file in one step.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("keeping a version: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("keeping a version: %w", err)
	}
	return nil
}

// recorder is a source that remembers what was read of it.
type recorder struct {
	model.Source
	files map[string][]byte
}

// ReadFile reads a file of the source.
func (r *recorder) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := r.Source.ReadFile(ctx, name, limit)
	if err == nil {
		if r.files == nil {
			r.files = map[string][]byte{}
		}
		r.files[name] = data
	}
	return data, err
}

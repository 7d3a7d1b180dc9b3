package model

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

func TestLoadFromFolder(t *testing.T) {
	dir := t.TempDir()
	for name, data := range bundle(t) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(t.Context(), Folder(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), Folder(dir+"-not")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	// A bundle must not read what is outside of it.
	secret := filepath.Join(t.TempDir(), MetricsFile)
	if err := os.WriteFile(secret, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, MetricsFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, MetricsFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Folder(dir).ReadFile(t.Context(), MetricsFile, 100); err == nil {
		t.Error("followed a link out of the folder")
	}
}

func TestLoadFromObjectStore(t *testing.T) {
	store, err := laketest.Start(t).Connect()
	if err != nil {
		t.Fatal(err)
	}
	bucket := laketest.Bucket()
	if _, err := store.EnsureBucket(t.Context(), bucket); err != nil {
		t.Fatal(err)
	}
	for name, data := range bundle(t) {
		if _, err := store.Put(t.Context(), bucket, "demand/3/"+name, data, "application/octet-stream", nil, lake.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(t.Context(), Objects{store, bucket, "demand/3"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), Objects{store, bucket, "demand/4"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a prefix without objects: %v", err)
	}
}

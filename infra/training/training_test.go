// Package training_test holds what the trainer, a Python package, writes to what the
// functions read.
package training_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/registry"
)

// The trainer takes the features that serving gives, in the same order.
func TestFeaturesAreThoseOfTheDefinition(t *testing.T) {
	data, err := os.ReadFile("millrace_training/purchase.json")
	if err != nil {
		t.Fatal(err)
	}
	type feature struct {
		Name, Type string
		Of         string `json:",omitempty"`
	}
	var got struct{ Features []feature }
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	var want []feature
	for _, f := range features.All() {
		x := feature{Name: f.Name}
		switch {
		case f.Categorical && f.Type == features.String:
			x.Type, x.Of = model.Category, "text"
		case f.Categorical && f.Type == features.Int64:
			x.Type, x.Of = model.Category, "int"
		case f.Type == features.Float64:
			x.Type = model.Float
		case f.Type == features.Int64:
			x.Type = model.Int
		default:
			t.Fatalf("feature %s: the trainer knows no %s", f.Name, f.Type)
		}
		want = append(want, x)
	}
	if diff := cmp.Diff(want, got.Features); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The starter model is one that predict serves; loading checks its examples, too. It
// must not grow into the repository's largest file.
func TestStarterLoads(t *testing.T) {
	b := load(t, model.Folder("starter/bundle"))
	if b.Manifest.Version != "starter" {
		t.Errorf("version %q", b.Manifest.Version)
	}
	var size int64
	for _, f := range b.Manifest.Files {
		size += f.Bytes
	}
	if size > 300_000 {
		t.Errorf("the files have %d bytes, want at most 300,000", size)
	}
	if gain := b.Metrics["baseline_log_loss_gain"]; gain.Low == nil || *gain.Low <= 0 {
		t.Errorf("the model is not clearly better than the frequency: %+v", gain)
	}
}

// TestWrittenBundleLoads is run by the trainer's own tests with a bundle that they
// have just written.
func TestWrittenBundleLoads(t *testing.T) {
	folder := os.Getenv("TRAINING_BUNDLE")
	if folder == "" {
		t.Skip("TRAINING_BUNDLE names no bundle; make test-training does")
	}
	load(t, model.Folder(folder))
}

// TestRegisteredBundleLoads is run by the trainer's own tests with a registry in which
// they have just registered version 1.
func TestRegisteredBundleLoads(t *testing.T) {
	address := os.Getenv("TRAINING_REGISTRY")
	if address == "" {
		t.Skip("TRAINING_REGISTRY names no registry; make test-training does")
	}
	c, err := registry.Config{URL: address}.Connect()
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.ByVersion(t.Context(), "purchase_prediction_model", "1")
	if err != nil {
		t.Fatal(err)
	}
	source, err := c.Bundle(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if b := load(t, source); v.Tags["digest"] != b.Digest {
		t.Errorf("the version's tag says digest %q, the bundle has %s", v.Tags["digest"], b.Digest)
	}
}

func load(t *testing.T, source model.Source) *model.Bundle {
	t.Helper()
	b, err := model.Load(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	if b.Manifest.Name != "purchase_prediction_model" || b.Features.Target != "is_purchased" {
		t.Errorf("it is model %s of %s", b.Manifest.Name, b.Features.Target)
	}
	if diff := cmp.Diff(features.Count, len(b.Features.Features)); diff != "" {
		t.Errorf("features (-want +got):\n%s", diff)
	}
	return b
}

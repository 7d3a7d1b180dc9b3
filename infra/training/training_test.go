// Package training_test holds what the trainer, a Python package, writes to what the
// functions read.
package training_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/contract"
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

// The starter models are ones that predict and detect serve; loading checks their
// examples, too. They must not grow into the repository's largest files.
func TestStartersLoad(t *testing.T) {
	for _, c := range []struct {
		folder, name, target string
		bytes                int64
		// Values of a column's sample; with times, where the data follows the hours.
		sample   int
		seasonal bool
	}{
		{"starter/bundle", "purchase_prediction_model", "is_purchased", 400_000, 2000, false},
		{"starter/power", "power_prediction_model", "power_consumption_watts", 1_500_000, 6000, true},
		{"starter/anomaly", "server_anomaly_model", "anomaly_score", 1_500_000, 6000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := load(t, model.Folder(c.folder))
			if b.Manifest.Version != "starter" || b.Manifest.Name != c.name || b.Features.Target != c.target {
				t.Errorf("it is version %q of %s, which gives %s", b.Manifest.Version, b.Manifest.Name, b.Features.Target)
			}
			var size int64
			for _, f := range b.Manifest.Files {
				size += f.Bytes
			}
			if size > c.bytes {
				t.Errorf("the files have %d bytes, want at most %d", size, c.bytes)
			}
			for i, d := range append(slices.Clone(b.Baseline.Features), b.Baseline.Score) {
				if d.Values != nil {
					continue
				}
				if len(d.Sample) != c.sample || (len(d.SampleTimes) > 0) != c.seasonal {
					t.Errorf("column %d (%s) has a sample of %d values with %d times", i, d.Name, len(d.Sample), len(d.SampleTimes))
				}
				for _, at := range d.SampleTimes {
					if w := b.Manifest.Training; at < w.From.Unix() || at >= w.To.Unix() {
						t.Fatalf("column %d (%s): a value is of %d, and the rows are of %s to %s", i, d.Name, at, w.From, w.To)
					}
				}
			}
		})
	}
}

// Images take what lies in a function's kodata, and follow no link out of it: what is
// there are copies of the starters, made by
//
//	cp -r infra/training/starter/power/. functions/predict/kodata/power/
//
// and so on.
func TestImagesHaveTheStarters(t *testing.T) {
	for copied, starter := range map[string]string{
		"predict/kodata/purchase": "bundle", "predict/kodata/power": "power",
		"drift/kodata/purchase": "bundle", "drift/kodata/power": "power", "drift/kodata/anomaly": "anomaly",
		"detect/kodata/forests/server_anomaly_model": "anomaly",
	} {
		want := contents(t, filepath.Join("starter", starter))
		if diff := cmp.Diff(want, contents(t, filepath.Join("../../functions", filepath.FromSlash(copied)))); diff != "" {
			t.Errorf("functions/%s is not starter/%s:\n%.500s", copied, starter, diff)
		}
	}
}

func contents(t *testing.T, folder string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}

// The starters are better than what can be had without a model.
func TestStartersBeatTheirBaselines(t *testing.T) {
	for _, folder := range []string{"starter/bundle", "starter/power", "starter/anomaly"} {
		gain, ok := load(t, model.Folder(folder)).Metrics["baseline_gain"]
		if !ok || gain.Low == nil || *gain.Low <= 0 {
			t.Errorf("%s: not clearly better than its baseline: %+v", folder, gain)
		}
	}
}

// What serving says of the errors of a prediction is what was measured.
func TestPowerPredictionsHaveConfidence(t *testing.T) {
	b := load(t, model.Folder("starter/power"))
	c, ok := b.Confidence([]float64{250})
	if !ok || c.Share < 0.5 || c.Share > 1 || c.Low >= 250 || c.High <= 250 {
		t.Errorf("got %+v, %v", c, ok)
	}
	if m := b.Metrics["interval_90_coverage"]; m.Value < 0.8 || m.Value > 0.98 {
		t.Errorf("nine tenths of the actual values are said to lie in the intervals, %v did", m.Value)
	}
}

// The models of servers take fields that the readings of their stream have.
func TestFieldsAreThoseOfTheStream(t *testing.T) {
	contracts, err := contract.Load(contract.Embedded())
	if err != nil {
		t.Fatal(err)
	}
	c, ok := contracts.Contract("datacenter-server")
	if !ok {
		t.Fatal("there is no contract datacenter-server")
	}
	fields := map[string]bool{}
	for _, f := range c.Fields {
		fields[f.Name] = true
	}
	for _, folder := range []string{"starter/power", "starter/anomaly"} {
		for _, name := range load(t, model.Folder(folder)).Features.Names() {
			if !fields[name] {
				t.Errorf("%s: the stream has no field %s", folder, name)
			}
		}
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
	v, err := c.ByVersion(t.Context(), os.Getenv("TRAINING_MODEL"), "1")
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
	return b
}

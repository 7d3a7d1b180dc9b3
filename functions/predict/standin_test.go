package main

import (
	"encoding/json"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
)

// The starter bundle of the image is served until there is a version, and after a start
// without it the last one that was served.
func TestStandInsServeUntilTheOriginDoes(t *testing.T) {
	t.Setenv("KO_DATA_PATH", "kodata")
	dir := filepath.Join(t.TempDir(), "not-yet")
	c := Config{URI: "file://" + dir, FallbackURI: "kodata:///purchase", Cache: filepath.Join(t.TempDir(), "cache")}
	ask := func(s started) string {
		t.Helper()
		status, body := do(t, "POST", s.url+"/predict", `[{"features":{"price":1}}]`)
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		return body
	}
	s := start(t, c, nil)
	s.waitFor(t, s.live, "starter")
	if shown := s.live.show(); !strings.HasSuffix(shown.From, "kodata/purchase") || !strings.Contains(shown.Error, "not-yet") {
		t.Errorf("%+v", shown)
	}
	if body := ask(s); !strings.Contains(body, `"model_version":"starter"`) {
		t.Error(body)
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"1", "2"} {
		modeltest.Shop(t, version, 0.5).Write(t, dir)
		s.waitFor(t, s.live, version)
		if from := s.live.show().From; from != "" {
			t.Errorf("version %s is from %s", version, from)
		}
	}

	// Back to the one before, which is in memory still, and forth again.
	for _, version := range []string{"1", "2"} {
		modeltest.Shop(t, version, 0.5).Write(t, dir)
		s.waitFor(t, s.live, version)
		if f, err := s.live.kept.find(t.Context()); err != nil || f.digest != s.live.current.Load().bundle.Digest {
			t.Errorf("version %s serves, kept is %+v %v", version, f, err)
		}
	}

	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	again := start(t, c, nil)
	again.waitFor(t, again.live, "2")
	if body := ask(again); !strings.Contains(body, `"predictions":[0.5]`) {
		t.Error(body)
	}
	kept := again.live.current.Load()
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	again.wait(t, "the origin", func() bool { return again.live.show().Error == "" })
	if again.live.current.Load() != kept {
		t.Error("the version that was kept was loaded again")
	}

	// What was kept of another origin is not served, nor what is damaged.
	other := start(t, Config{URI: "file://" + dir + "-other", FallbackURI: c.FallbackURI, Cache: c.Cache}, nil)
	other.waitFor(t, other.live, "starter")
	files, err := filepath.Glob(filepath.Join(c.Cache, "*", model.XGBoostFile))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v %v: want the files of two versions", files, err)
	}
	for _, file := range files {
		if err := os.Truncate(file, 50); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	damaged := start(t, c, nil)
	damaged.waitFor(t, damaged.live, "starter")
}

// A bundle of another name is not what was asked for.
func TestModelOfAnotherNameIsRefused(t *testing.T) {
	_, uri := folder(t, modeltest.Shop(t, "1", 0.5))
	s := start(t, Config{Name: "power_prediction_model", Alias: "current", TrackingURI: "http://127.0.0.1:1", FallbackURI: uri}, nil)
	s.wait(t, "the registry's refusal", func() bool { return strings.Contains(s.live.show().Error, "reaching the registry") })
	s.live.standIn(t.Context())
	if s.ready(t.Context()) == nil {
		t.Errorf("%+v", s.live.show())
	}
}

// The models that come with the image predict what the library that trained them did,
// for events as they come.
func TestStarterPredictsPower(t *testing.T) {
	t.Setenv("KO_DATA_PATH", "kodata")
	s := start(t, Config{URI: "kodata:///power"}, nil)
	s.waitFor(t, s.live, "starter")
	text, err := os.ReadFile("kodata/power/" + model.ExamplesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Examples []struct {
			Features   map[string]any `json:"features"`
			Prediction []float64      `json:"prediction"`
		} `json:"examples"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var batch []event.Event
	for i, x := range file.Examples {
		// As the contract's readings: with more than the model needs, and the target.
		x.Features["type"], x.Features["rack_id"], x.Features["power_consumption_watts"] = "server_metric", "R01", 100
		payload, err := json.Marshal(map[string]any{"payload": x.Features, "valid": true})
		if err != nil {
			t.Fatal(err)
		}
		batch = append(batch, metricEvent(t, strconv.Itoa(i), string(payload)))
	}
	for i, r := range s.Handle(t.Context(), batch) {
		if r.Reply == nil {
			t.Fatalf("example %d: %v", i, r.Err)
		}
		var got prediction
		if err := json.Unmarshal(r.Reply.Data(), &got); err != nil {
			t.Fatal(err)
		}
		want := file.Examples[i].Prediction[0]
		if p, ok := got.Prediction.(float64); !ok || math.Abs(p-want) > 1e-5*want {
			t.Errorf("example %d: %v, want %v", i, got.Prediction, want)
		}
		if got.ModelName != "power_prediction_model" || got.EntityID != "srv-001" || got.Actual == nil || *got.Actual != 100 || got.ErrorPercent == nil ||
			got.Confidence == nil || *got.Confidence < 0 || *got.Confidence > 1 || got.Low == nil || *got.Low > *got.High {
			t.Errorf("example %d: %s", i, r.Reply.Data())
		}
	}
}

package registry_test

import (
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/registry/registrytest"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func connect(t *testing.T, url string, store *lake.Store) *registry.Client {
	t.Helper()
	c, err := registry.Config{URL: url, Store: store, Timeout: time.Minute}.Connect()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMLflow takes a real server through a model's life.
func TestMLflow(t *testing.T) {
	server := registrytest.Start(t)
	c := connect(t, server.URL, server.Store)
	ctx := t.Context()
	const name = "purchase_prediction_model"

	_, err := c.ByAlias(ctx, name, "current")
	if !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("alias of a model that is not there: %v", err)
	}
	if err := c.CreateModel(ctx, name, "XGBoost model for purchase prediction"); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateModel(ctx, name, ""); !errors.Is(err, registry.ErrExists) {
		t.Errorf("registered twice: %v", err)
	}
	if _, err := c.ByAlias(ctx, name, "current"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("alias that is not there: %v", err)
	}
	if _, err := c.ByVersion(ctx, name, "1"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("version that is not there: %v", err)
	}

	// One run's artifacts are passed on by the server, the other's are in the store.
	var made []registry.Version
	for i, location := range []string{"", "s3://" + server.Bucket + "/direct"} {
		number := string(rune('1' + i))
		run, artifacts := server.Run("experiment "+number, location)
		server.Upload(artifacts, modeltest.Shop(t, "", float32(i)))
		v, err := c.CreateVersion(ctx, registry.Version{Name: name, RunID: run, Source: artifacts + "/bundle",
			Description: "XGBoost model for purchase prediction", Tags: map[string]string{"training_date": "2026-11-22"}})
		if err != nil {
			t.Fatal(err)
		}
		want := registry.Version{Name: name, Version: number, RunID: run, Source: artifacts + "/bundle", Status: "READY",
			Description: "XGBoost model for purchase prediction", Tags: map[string]string{"training_date": "2026-11-22"}}
		if diff := cmp.Diff(want, v, cmpopts.IgnoreFields(registry.Version{}, "CreatedAt"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if time.Since(v.CreatedAt) > time.Hour || v.CreatedAt.After(time.Now().Add(time.Minute)) {
			t.Errorf("made at %s", v.CreatedAt)
		}
		source, err := c.Bundle(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		b, err := model.Load(ctx, source)
		if err != nil {
			t.Fatal(err)
		}
		row, out := make([]float64, b.Model.Features()), make([]float64, 1)
		if err := b.Model.Predict(out, row); err != nil || out[0] != float64(i) {
			t.Errorf("version %s from %s predicts %v, %v", number, source, out, err)
		}
		if _, err := source.ReadFile(ctx, "nothing.json", 100); err == nil || location != "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file that is not in %s: %v", source, err)
		}
		if _, err := source.ReadFile(ctx, model.FeaturesFile, 10); err == nil || !strings.Contains(err.Error(), "allowed 10") {
			t.Errorf("a file that is too large: %v", err)
		}
		made = append(made, v)
	}
	// The same artifacts by way of their run.
	v, err := c.CreateVersion(ctx, registry.Version{Name: name, RunID: made[0].RunID, Source: "runs:/" + made[0].RunID + "/bundle"})
	if err != nil {
		t.Fatal(err)
	}
	source, err := c.Bundle(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := model.Load(ctx, source); err != nil {
		t.Error(err)
	}
	if _, err := connect(t, server.URL, nil).Bundle(ctx, made[1]); err == nil || !strings.Contains(err.Error(), "S3_ENDPOINT") {
		t.Errorf("artifacts in a store that is not configured: %v", err)
	}

	for _, number := range []string{"1", "2", "1"} {
		if err := c.SetAlias(ctx, name, "current", number); err != nil {
			t.Fatal(err)
		}
		if v, err := c.ByAlias(ctx, name, "current"); err != nil || v.Version != number {
			t.Errorf("current is %s, %v, want %s", v.Version, err, number)
		}
	}
	if err := c.SetAlias(ctx, name, "current", "9"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("alias to a version that is not there: %v", err)
	}
	if err := c.SetTag(ctx, name, "1", "metrics", `{"auc":0.7}`); err != nil {
		t.Fatal(err)
	}
	all, err := c.Versions(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []string
	for _, v := range all {
		numbers = append(numbers, v.Version)
		if v.Version == "1" && v.Tags["metrics"] != `{"auc":0.7}` {
			t.Errorf("tags %v", v.Tags)
		}
	}
	if diff := cmp.Diff([]string{"3", "2", "1"}, numbers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err := c.Aliases(ctx, name); err != nil || !cmp.Equal(got, map[string]string{"current": "1"}) {
		t.Errorf("aliases %v, %v", got, err)
	}
	if v, err := c.ByVersion(ctx, name, "1"); err != nil || !cmp.Equal(v.Aliases, []string{"current"}) {
		t.Errorf("aliases of version 1: %v, %v", v.Aliases, err)
	}
	if err := c.DeleteAlias(ctx, name, "current"); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteAlias(ctx, name, "current"); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := c.ByAlias(ctx, name, "current"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("after it was deleted: %v", err)
	}

	server.Kill()
	if _, err := c.ByVersion(ctx, name, "1"); err == nil || errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a server that is away: %v", err)
	}
}

func TestAddressIsChecked(t *testing.T) {
	for _, url := range []string{"", "localhost:5000", "file:///mlruns", "http://", "sqlite:///m.db"} {
		if _, err := (registry.Config{URL: url}).Connect(); err == nil {
			t.Errorf("%q: no error", url)
		}
	}
}

func TestErrorsKeepThePassword(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil { // nobody listens there now
		t.Fatal(err)
	}
	_, err = connect(t, "http://user:secret@"+address, nil).ByAlias(t.Context(), "m", "current")
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "model m, alias current: reaching the registry") {
		t.Errorf("%v", err)
	}
}

// TestWhatIsNoMLflow asks servers that are something else.
func TestWhatIsNoMLflow(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		has    string
	}{
		{"another server", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>\nno such page", 404) }, "404 : <html> no such page"},
		{"a proxy without server", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", 502) }, "502"},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "reading the answer"},
		{"an endless answer", func(w http.ResponseWriter, _ *http.Request) {
			for range 20 {
				_, _ = w.Write(make([]byte, 1<<20))
			}
		}, "more than the allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.answer)
			defer server.Close()
			if _, err := connect(t, server.URL, nil).ByAlias(t.Context(), "m", "current"); err == nil || !strings.Contains(err.Error(), c.has) {
				t.Errorf("%v, want an error with %q", err, c.has)
			}
		})
	}
	if _, err := connect(t, "http://127.0.0.1:1", nil).Versions(t.Context(), "m' OR name='x"); err == nil || !strings.Contains(err.Error(), "quote") {
		t.Errorf("a name with a quote: %v", err)
	}
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
	"github.com/millrace-dev/millrace/shared/registry"
	"github.com/millrace-dev/millrace/shared/registry/registrytest"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestAliasDecides follows the alias of a real registry: promotion, a corrupt
// version, rollback, 200 promotions under load (TEST_PROMOTIONS), the registry killed,
// and a start without it.
func TestAliasDecides(t *testing.T) {
	server := registrytest.Start(t)
	client, err := registry.Config{URL: server.URL, Timeout: time.Minute}.Connect()
	if err != nil {
		t.Fatal(err)
	}
	const name = "purchase_prediction_model"
	if err := client.CreateModel(t.Context(), name, ""); err != nil {
		t.Fatal(err)
	}
	add := func(f modeltest.Files) string {
		run, artifacts := server.Run("experiment of "+time.Now().Format(time.RFC3339Nano), "")
		server.Upload(artifacts, f)
		v, err := client.CreateVersion(t.Context(), registry.Version{Name: name, RunID: run, Source: artifacts + "/bundle"})
		if err != nil {
			t.Fatal(err)
		}
		return v.Version
	}
	corrupt := modeltest.Shop(t, "", 9)
	corrupt[model.XGBoostFile] = corrupt[model.XGBoostFile][:50]
	first, second, third := add(modeltest.Shop(t, "", 1)), add(modeltest.Shop(t, "", 2)), add(corrupt)
	promote := func(version string) time.Time {
		if err := client.SetAlias(t.Context(), name, "current", version); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}

	s := start(t, Config{Name: name, Alias: "current", TrackingURI: server.URL, Poll: 200 * time.Millisecond,
		Cache: filepath.Join(t.TempDir(), "cache")}, nil)
	s.wait(t, "the missing alias", func() bool { return strings.Contains(s.live.show().Error, "not found") })
	for _, version := range []string{first, second} {
		at := promote(version)
		s.waitFor(t, s.live, version)
		t.Logf("version %s is served %s after its promotion", version, time.Since(at))
	}
	promote(third)
	s.wait(t, "the refusal", func() bool { return strings.Contains(s.live.show().Error, "50 bytes") })
	ask := func(want string) {
		t.Helper()
		status, body := do(t, "POST", s.url+"/predict", `[{"features":{"price":1}}]`)
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d %s, want %s", status, body, want)
		}
	}
	ask(`"predictions":[2],"success":true,"model_name":"purchase_prediction_model","model_version":"2"`)
	at := promote(first)
	s.waitFor(t, s.live, first)
	t.Logf("rolled back %s after the alias moved", time.Since(at))
	promoteUnderLoad(t, s, []string{first, second}, promote)
	promote(first)
	s.waitFor(t, s.live, first)
	server.Kill()
	s.wait(t, "the failure", func() bool { return strings.Contains(s.live.show().Error, "reaching the registry") })
	ask(`"predictions":[1]`)
	again := start(t, *s.config, nil)
	again.waitFor(t, again.live, first)
	if from := again.live.show().From; !strings.HasPrefix(from, "file://") {
		t.Errorf("a start without the registry serves from %q", from)
	}
	server.Restart()
	promote(second)
	s.waitFor(t, s.live, second)
	ask(`"predictions":[2]`)
}

// promoteUnderLoad lets each version serve in turn while clients ask all the time: every
// answer is of one version, and none fails. Version n predicts n.
func promoteUnderLoad(t *testing.T, s started, versions []string, promote func(string) time.Time) {
	t.Helper()
	promotions, err := strconv.Atoi(cmp.Or(os.Getenv("TEST_PROMOTIONS"), "200"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var answers atomic.Int64
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for ctx.Err() == nil {
				status, body := do(t, "POST", s.url+"/predict", `[{"features":{"price":1}},{"features":{"price":200}}]`)
				right := false
				for _, v := range versions {
					n, _ := strconv.Atoi(v)
					right = right || strings.HasPrefix(body, fmt.Sprintf(`{"predictions":[%d,%d],"success":true`, n, n+1)) &&
						strings.Contains(body, `"model_version":"`+v+`"`)
				}
				if status != http.StatusOK || !right {
					t.Errorf("%d %s", status, body)
					return
				}
				answers.Add(1)
			}
		})
	}
	began := time.Now()
	for i := range promotions {
		v := versions[i%len(versions)]
		promote(v)
		s.waitFor(t, s.live, v)
	}
	stop()
	clients.Wait()
	t.Logf("%d promotions in %s, %d answers, all right", promotions, time.Since(began).Round(time.Millisecond), answers.Load())
}

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"sync"
	"testing"
)

// starter are rows with what the training library predicted for them, as the bundle has
// them that is in the image.
type starter struct {
	Examples []struct {
		Features   map[string]any `json:"features"`
		Prediction []float64      `json:"prediction"`
	} `json:"examples"`
}

// question is a request to predict for all examples. There is no Redis here, so the
// features are given.
func question(t *testing.T) (body []byte, want []float64) {
	t.Helper()
	text, err := os.ReadFile("../../training/starter/bundle/examples.json")
	if err != nil {
		t.Fatal(err)
	}
	var s starter
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	var items []map[string]any
	for _, x := range s.Examples {
		items = append(items, map[string]any{"features": x.Features})
		want = append(want, x.Prediction[0])
	}
	if body, err = json.Marshal(items); err != nil {
		t.Fatal(err)
	}
	return body, want
}

// right tells whether an answer is that of the starter model.
func right(status int, body []byte, want []float64) error {
	var a struct {
		Predictions []float64 `json:"predictions"`
		Success     bool      `json:"success"`
		Version     string    `json:"model_version"`
	}
	if err := json.Unmarshal(body, &a); status != http.StatusOK || err != nil || !a.Success || a.Version != "starter" {
		return fmt.Errorf("the answer is %d %.300s", status, body)
	}
	if len(a.Predictions) != len(want) {
		return fmt.Errorf("%d predictions for %d items", len(a.Predictions), len(want))
	}
	for i := range want {
		if math.Abs(a.Predictions[i]-want[i]) > 1e-5 {
			return fmt.Errorf("item %d is predicted as %v, where it was trained as %v", i, a.Predictions[i], want[i])
		}
	}
	return nil
}

// The first request after a rest starts a pod, waits for its model and is answered
// by it.
func TestPredictAnswersFromZero(t *testing.T) {
	given(t)
	predict := reach(t, get(t, "get", "kservice", "predict", "-o", "jsonpath={.status.address.url}"))
	body, want := question(t)
	expectNoPod(t, "predict")
	for try := 1; ; try++ {
		status, answer, err := predict.request(t.Context(), http.MethodPost, "/predict", http.Header{"Content-Type": {"application/json"}}, body)
		if err != nil && try < 4 {
			t.Logf("no answer came through: %v", err) // of the way to the cluster, not of predict
			continue
		}
		if err == nil {
			err = right(status, answer, want)
		}
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	// The protocol's own way to ask says the same.
	status, answer, err := predict.request(t.Context(), http.MethodGet, "/v2/models/purchase_prediction_model/ready", nil, nil)
	if err != nil || status != http.StatusOK {
		t.Errorf("%d %s %v", status, answer, err)
	}
	// Without a store there is nothing to look up in, and the answer says so.
	status, answer, err = predict.request(t.Context(), http.MethodPost, "/predict", http.Header{"Content-Type": {"application/json"}},
		[]byte(`[{"user_id":1,"product_id":2,"user_session":"e2e"}]`))
	if err != nil || status != http.StatusInternalServerError {
		t.Errorf("%d %s %v", status, answer, err)
	}
	expectNoPod(t, "predict")
}

// Under load there are more pods, then fewer again, and each answer is right.
func TestPredictScalesOutAndBack(t *testing.T) {
	given(t)
	predict := reach(t, get(t, "get", "kservice", "predict", "-o", "jsonpath={.status.address.url}"))
	body, want := question(t)
	var mu sync.Mutex
	answered, wrong := 0, []error(nil)
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 64 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, answer, err := predict.request(t.Context(), http.MethodPost, "/predict", http.Header{"Content-Type": {"application/json"}}, body)
				if err != nil {
					continue // of the way to the cluster
				}
				err = right(status, answer, want)
				mu.Lock()
				if answered++; err != nil {
					wrong = append(wrong, err)
				}
				mu.Unlock()
			}
		})
	}
	t.Run("out", func(t *testing.T) {
		eventually(t, "predict scales out", func() error {
			if p := pods(t, "predict"); len(p) < 2 {
				return fmt.Errorf("there are %v", p)
			}
			return nil
		})
	})
	close(stop)
	load.Wait()
	if len(wrong) > 0 || answered == 0 {
		t.Errorf("%d of %d answers were wrong, the first of them: %v", len(wrong), answered, errors.Join(wrong[:min(3, len(wrong))]...))
	}
	eventually(t, "predict scales back", func() error {
		if p := pods(t, "predict"); len(p) > 1 {
			return fmt.Errorf("there are %v", p)
		}
		return nil
	})
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

// patience is how long a condition may take on a machine that is busy.
const patience = 30 * time.Second

// started is a predict that serves.
type started struct {
	*predictor
	url string
}

// start serves the configuration, with fields that are not set as run would set them.
// It does not wait for a model.
func start(t testing.TB, c Config, store lookup) started {
	t.Helper()
	c.Function.Name = "predict"
	if c.Poll == 0 {
		c.Poll = 20 * time.Millisecond
	}
	if c.Payloads == "" {
		c.Payloads = payloadsOff
	}
	if c.Patience == 0 {
		c.Patience = patience
	}
	if c.EventTypes == nil {
		c.EventTypes = []string{"cart"}
	}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	p, err := newPredictor(&c, store)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	p.start(ctx)
	s, err := function.New(c.Function, p, function.WithReady(p.ready), function.WithAccess(c.Access), function.WithRoutes(p.routes), function.WithOpenRoutes(p.openRoutes))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return started{p, server.URL}
}

// folder is a folder with a bundle, and its URI.
func folder(t testing.TB, f modeltest.Files) (dir, uri string) {
	t.Helper()
	dir = t.TempDir()
	f.Write(t, dir)
	return dir, "file://" + dir
}

func (s started) wait(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain: %+v", what, s.live.show())
		}
	}
}

func (s started) waitFor(t testing.TB, slot *slot, version string) {
	t.Helper()
	s.wait(t, slot.role+" version "+version, func() bool { return slot.show().Version == version })
}

func do(t testing.TB, method, url, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(data))
}

func openStore(t testing.TB) *online.Store {
	t.Helper()
	s, err := online.Config{URL: redistest.Start(t).URL, PoolSize: 4, Timeout: 10 * time.Second, FeatureTTL: time.Hour, SessionTTL: time.Hour}.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func push(t testing.TB, s *online.Store, user, product int64, price float64) {
	t.Helper()
	var v features.Vector
	v[features.Brand], v[features.Price], v[features.ActivityCount] = features.OfString("xiaomi"), features.OfFloat(price), features.OfInt(3)
	if n, err := s.Push(t.Context(), []online.Pushed{{Key: online.UserProduct(user, product), EventTime: time.Now(), Features: v}}); err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

func TestPredictLooksFeaturesUp(t *testing.T) {
	store := openStore(t)
	push(t, store, 1, 10, 50)
	push(t, store, 2, 20, 500)
	_, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri}, store)
	s.waitFor(t, s.live, "7")
	status, body := do(t, "POST", s.url+"/predict", `[{"user_id":1,"product_id":10,"user_session":"a"},{"user_id":2,"product_id":20},
		{"user_id":3,"product_id":30},{"features":{"price":100,"brand":"nobody"}},{"user_id":1,"product_id":10,"color":"red"}]`)
	want := `{"predictions":[0.25,1.25,0.25,1.25,0.25],"success":true,"model_name":"purchase_prediction_model","model_version":"7",` +
		`"items":[{"status":"OK"},{"status":"OK"},{"status":"NOT_FOUND"},{"status":"OK"},{"status":"OK"}]}`
	if status != http.StatusOK || body != want {
		t.Errorf("%d (-want +got):\n%s", status, cmp.Diff(want, body))
	}
	if status, body := do(t, "POST", s.url+"/predict", `[]`); status != http.StatusOK || !strings.Contains(body, `"predictions":[],"success":true`) {
		t.Errorf("no items: %d %s", status, body)
	}
}

// broken is an online store that does not answer.
type broken struct{}

func (broken) Get(context.Context, []online.Key) ([]online.Row, error) {
	return nil, fmt.Errorf("reaching Redis: %w", io.ErrUnexpectedEOF)
}

func TestPredictErrors(t *testing.T) {
	_, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri}, broken{})
	s.waitFor(t, s.live, "7")
	for _, c := range []struct {
		name, body string
		status     int
		has        string
	}{
		{"no JSON", `[`, 422, `"loc":["body"]`},
		{"no array", `{"user_id":1}`, 422, "want an array of items"},
		{"null", `null`, 422, "want an array of items"},
		{"text as id", `[{"user_id":1,"product_id":1},{"user_id":"1","product_id":1}]`, 422, `"loc":["body",1],"msg":"json: cannot unmarshal string`},
		{"fraction as id", `[{"user_id":1.5,"product_id":1}]`, 422, `"loc":["body",0]`},
		{"no product", `[{"user_id":1}]`, 422, `"loc":["body",0],"msg":"product_id: required`},
		{"feature of another type", `[{"features":{"price":"cheap"}}]`, 422, `feature \"price\": must be a number`},
		{"feature beyond", `[{"features":{"price":1e39}}]`, 422, `beyond the numbers`},
		{"unknown feature", `[{"features":{"prise":1}}]`, 422, `the model has no such feature, only brand, price`},
		{"online store away", `[{"features":{}},{"user_id":8,"product_id":9}]`, 500, `{"detail":"Failed to get features for user_id=8, product_id=9: reaching Redis`},
		{"too many items", `[` + strings.Repeat(`{"features":{}},`, maxItems) + `{"features":{}}]`, 422, "10001 items"},
		{"too large", strings.Repeat(" ", maxBody+1), 413, "bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, body := do(t, "POST", s.url+"/predict", c.body); status != c.status || !strings.Contains(body, c.has) {
				t.Errorf("%d %.300s, want %d with %s", status, body, c.status, c.has)
			}
		})
	}
}

func TestNothingIsServedWithoutModel(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Config{URI: "file://" + dir}, nil)
	s.wait(t, "the failure", func() bool { return s.live.show().Error != "" })
	for _, path := range []string{"/readyz", "/v2/health/ready", "/v2/models/purchase_prediction_model", "/v1/models/purchase_prediction_model"} {
		if status, body := do(t, "GET", s.url+path, ""); status != http.StatusServiceUnavailable || !strings.Contains(body, "no model is loaded") || !strings.Contains(body, "bundle.json") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := do(t, "POST", s.url+"/predict", `[{"features":{}}]`); status != http.StatusServiceUnavailable || !strings.Contains(body, `"predictions":[],"success":false,"error":"no model`) {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := do(t, "GET", s.url+"/v2/health/live", ""); status != http.StatusOK {
		t.Errorf("live: %d", status)
	}
	modeltest.Shop(t, "1", 0).Write(t, dir)
	s.waitFor(t, s.live, "1")
	if status, body := do(t, "GET", s.url+"/readyz", ""); status != http.StatusOK {
		t.Errorf("ready: %d %s", status, body)
	}
}

func TestOpenInferenceProtocol(t *testing.T) {
	dir, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri}, nil)
	s.waitFor(t, s.live, "7")
	modeltest.Shop(t, "8", 2).Write(t, dir)
	s.waitFor(t, s.live, "8")
	const model, infer = "/v2/models/purchase_prediction_model", "/v2/models/purchase_prediction_model/infer"
	answer := func(version, shape, data, id string) string {
		return `{"model_name":"purchase_prediction_model","model_version":"` + version + `",` + id + `"outputs":[{"name":"predict","datatype":"FP64","shape":` + shape + `,"data":` + data + `}]}`
	}
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		want                     string // all of the body, or "..." and a part of it
	}{
		{"server", "GET", "/v2", "", 200, `..."name":"predict"`},
		{"ready", "GET", "/v2/health/ready", "", 200, `{"ready":true}`},
		{"model ready", "GET", model + "/ready", "", 200, `{"name":"purchase_prediction_model","ready":true}`},
		{"version ready", "GET", model + "/versions/7/ready", "", 200, `{"name":"purchase_prediction_model","ready":true}`},
		{"metadata", "GET", model, "", 200, `{"name":"purchase_prediction_model","versions":["8","7"],"platform":"millrace_trees","inputs":[` +
			`{"name":"brand","datatype":"BYTES","shape":[-1]},{"name":"price","datatype":"FP64","shape":[-1]},{"name":"event_weekday","datatype":"INT64","shape":[-1]},` +
			`{"name":"category_code_level1","datatype":"BYTES","shape":[-1]},{"name":"category_code_level2","datatype":"BYTES","shape":[-1]},` +
			`{"name":"activity_count","datatype":"INT64","shape":[-1]}],"outputs":[{"name":"predict","datatype":"FP64","shape":[-1]}]}`},
		{"rows", "POST", infer, `{"id":"r1","inputs":[{"name":"input-0","datatype":"FP32","shape":[2,6],"data":[0,99.5,1,0,0,1, 0,100,1,0,0,1]}],"outputs":[{"name":"predict"}]}`,
			200, answer("8", "[2]", "[2,3]", `"id":"r1",`)},
		{"nested rows", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP64","shape":[2,6],"data":[[0,99.5,1,0,0,1],[0,null,1,0,0,1]]}]}`, 200, answer("8", "[2]", "[2,2]", "")},
		{"features", "POST", infer, `{"inputs":[{"name":"price","datatype":"FP64","shape":[3],"data":[1,1e2,null]},{"name":"brand","datatype":"BYTES","shape":[3,1],"data":["apple","b\"\\]",null]}]}`,
			200, answer("8", "[3]", "[2,3,2]", "")},
		{"one feature, as a matrix of one column", "POST", infer, `{"inputs":[{"name":"price","datatype":"FP64","shape":[1,1],"data":[[100]]}]}`, 200, answer("8", "[1]", "[3]", "")},
		{"former version", "POST", model + "/versions/7/infer", `{"inputs":[{"name":"price","datatype":"INT64","shape":[1],"data":[100]}]}`, 200, answer("7", "[1]", "[1.25]", "")},
		{"other version", "POST", model + "/versions/9/infer", `{}`, 404, `{"error":"version \"9\" of model \"purchase_prediction_model\" is not loaded"}`},
		{"other model", "POST", "/v2/models/other/infer", `{}`, 404, `...model \"other\" is not served`},
		{"no JSON", "POST", infer, `{`, 400, `...reading the request`},
		{"no inputs", "POST", infer, `{}`, 400, `{"error":"inputs: none"}`},
		{"width", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,5],"data":[1,2,3,4,5]}]}`, 400, `...rows of 5, the model has 6 features`},
		{"too few elements", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5]}]}`, 400, `...data: 5 elements, shape says 6`},
		{"too many elements", "POST", infer, `{"inputs":[{"name":"price","datatype":"FP32","shape":[1],"data":[1,2]}]}`, 400, `...more than the 1 elements`},
		{"no datatype", "POST", infer, `{"inputs":[{"name":"price","shape":[1],"data":[1]}]}`, 400, `...datatype: \"\" is not one`},
		{"datatype", "POST", infer, `{"inputs":[{"name":"price","datatype":"FP32","shape":[1],"data":["1"]}]}`, 400, `...element 0, \"1\", is not of datatype FP32`},
		{"fraction", "POST", infer, `{"inputs":[{"name":"price","datatype":"INT8","shape":[1],"data":[1.5]}]}`, 400, `...is not of datatype INT8`},
		{"type of the feature", "POST", infer, `{"inputs":[{"name":"price","datatype":"BYTES","shape":[1],"data":["1"]}]}`, 400, `...item 0: feature \"price\": must be a number`},
		{"unknown feature", "POST", infer, `{"inputs":[{"name":"prise","datatype":"FP32","shape":[1],"data":[1]}]}`, 400, `...has no feature \"prise\"`},
		{"twice", "POST", infer, `{"inputs":[{"name":"price","datatype":"FP32","shape":[1],"data":[1]},{"name":"price","datatype":"FP32","shape":[1],"data":[1]}]}`, 400, `...is given twice`},
		{"lengths", "POST", infer, `{"inputs":[{"name":"price","datatype":"FP32","shape":[1],"data":[1]},{"name":"brand","datatype":"BYTES","shape":[2],"data":["a","b"]}]}`, 400, `...2 rows, the tensors before have 1`},
		{"rows beyond", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP32","shape":[99999999999,6],"data":[]}]}`, 400, `...rows, want 1 to 10000`},
		{"negative", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,-6],"data":[]}]}`, 400, `...rows, want 1 to 10000`},
		{"object as data", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,6],"data":[{"a":1}]}]}`, 400, `...is not of datatype`},
		{"number beyond", "POST", infer, `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,6],"data":[1,1e39,1,1,1,1]}]}`, 400, `...beyond the numbers`},
		{"output", "POST", infer, `{"inputs":[],"outputs":[{"name":"y"}]}`, 400, `...there is no output \"y\"`},
		{"V1 list", "GET", "/v1/models", "", 200, `{"models":["purchase_prediction_model"]}`},
		{"V1 ready", "GET", "/v1/models/purchase_prediction_model", "", 200, `{"name":"purchase_prediction_model","ready":true}`},
		{"V1 rows", "POST", "/v1/models/purchase_prediction_model:predict", `{"instances":[[0,1,2,3,4,5],[0,100,null,3,4,5]]}`, 200,
			`{"model_name":"purchase_prediction_model","model_version":"8","predictions":[2,3]}`},
		{"V1 objects", "POST", "/v1/models/purchase_prediction_model:predict", `{"instances":[{"price":100},{}]}`, 200,
			`{"model_name":"purchase_prediction_model","model_version":"8","predictions":[3,2]}`},
		{"V1 width", "POST", "/v1/models/purchase_prediction_model:predict", `{"instances":[[0]]}`, 400, `...instances[0]: 1 values, the model has 6`},
		{"V1 mixed", "POST", "/v1/models/purchase_prediction_model:predict", `{"instances":[{},[1]]}`, 400, `...instances[1]`},
		{"V1 null", "POST", "/v1/models/purchase_prediction_model:predict", `{"instances":[{},null]}`, 400, `...instances[1]: want an object`},
		{"V1 none", "POST", "/v1/models/purchase_prediction_model:predict", `{}`, 400, `...instances: 0`},
		{"V1 value", "POST", "/v1/models/purchase_prediction_model:predict", `{"instances":[{"price":"x"}]}`, 400, `...instances[0]: feature \"price\"`},
		{"V1 verb", "POST", "/v1/models/purchase_prediction_model:explain", `{}`, 404, `...only :predict`},
		{"V1 other", "POST", "/v1/models/other:predict", `{}`, 404, `...is not served`},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := do(t, c.method, s.url+c.path, c.body)
			part, isPart := strings.CutPrefix(c.want, "...")
			if status != c.status || body != c.want && (!isPart || !strings.Contains(body, part)) {
				t.Errorf("%d %s\nwant %d %s", status, body, c.status, c.want)
			}
		})
	}
}

func readyEvent(t testing.TB, id, eventType string, price float64) event.Event {
	t.Helper()
	r := features.Ready{EventTimestamp: time.Date(2026, 11, 22, 2, 41, 0, 0, time.UTC), UserID: 1, ProductID: 10, UserSession: "s", EventType: eventType,
		ProcessedAt: time.Now(), RecordHash: [32]byte{0xab}}
	r.Features[features.Price], r.Features[features.ActivityCount] = features.OfFloat(price), features.OfInt(2)
	e := event.New()
	e.SetID(id)
	e.SetSource("/millrace/featurize")
	e.SetType(events.FeaturesReady)
	e.SetExtension(events.PartitionKey, "s")
	if err := e.SetData(event.ApplicationJSON, r.AppendJSON(nil)); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEventsGetPredictions(t *testing.T) {
	_, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri}, nil)
	s.waitFor(t, s.live, "7")
	bad := readyEvent(t, "3", "cart", 1)
	if err := bad.SetData(event.ApplicationJSON, []byte(`{"user_id":1}`)); err != nil {
		t.Fatal(err)
	}
	other := readyEvent(t, "4", "cart", 1)
	other.SetType("dev.millrace.other.v1")
	results := s.Handle(t.Context(), []event.Event{readyEvent(t, "1", "cart", 500), readyEvent(t, "2", "view", 1), bad, other, readyEvent(t, "5", "cart", 1e39), readyEvent(t, "6", "cart", 1)})
	if results[1].Reply != nil || results[1].Err != nil {
		t.Errorf("a view: %+v", results[1])
	}
	for i, has := range map[int]string{2: "field event_timestamp is required", 3: "not predicted for", 4: "beyond the numbers"} {
		if err := results[i].Err; err == nil || function.Status(err) != http.StatusBadRequest || !strings.Contains(err.Error(), has) {
			t.Errorf("event %d: %v", i, results[i].Err)
		}
	}
	for i, want := range map[int]float64{0: 1.25, 5: 0.25} {
		reply := results[i].Reply
		if reply == nil {
			t.Fatalf("event %d: %v", i, results[i].Err)
		}
		var got prediction
		if err := json.Unmarshal(reply.Data(), &got); err != nil {
			t.Fatal(err)
		}
		if got.PredictedAt.IsZero() {
			t.Error("no time")
		}
		got.PredictedAt = time.Time{}
		if diff := cmp.Diff(prediction{ModelName: "purchase_prediction_model", ModelVersion: "7", EntityID: "1:10", Prediction: want,
			Timestamp: time.Date(2026, 11, 22, 2, 41, 0, 0, time.UTC), Shopped: &Shopped{UserID: 1, ProductID: 10, UserSession: "s", EventType: "cart",
				RecordHash: "ab" + strings.Repeat("0", 62)}}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if reply.Type() != events.PredictionMade || reply.Extensions()[events.PartitionKey] != "s" ||
			reply.ID() != events.ReplyID("/millrace/featurize", map[int]string{0: "1", 5: "6"}[i], "predict") {
			t.Errorf("%v", reply)
		}
	}
}

func metricEvent(t testing.TB, id, data string) event.Event {
	t.Helper()
	e := event.New()
	e.SetID(id)
	e.SetSource("/millrace/validate")
	e.SetType(events.MetricValidated)
	e.SetTime(time.Date(2026, 11, 22, 2, 41, 0, 0, time.UTC))
	e.SetExtension(events.PartitionKey, "srv-001")
	e.SetExtension(events.Contract, "datacenter-server")
	if err := e.SetData(event.ApplicationJSON, []byte(data)); err != nil {
		t.Fatal(err)
	}
	return e
}

// Features are the members of a metric event that are named like them, and the target
// is its actual value.
func TestMetricEventsGetPredictions(t *testing.T) {
	files := modeltest.Shop(t, "7", 0.25)
	files[model.BaselineFile] = bytes.Replace(files[model.BaselineFile], []byte(`{"format":1,`),
		[]byte(`{"format":1,"residuals":{"edges":[1],"rows":[10,10],"levels":[0.05,0.95],"quantiles":[[-1,1],[-0.25,0.25]]},`), 1)
	_, uri := folder(t, files.Seal(t, "purchase_prediction_model", "7"))
	s := start(t, Config{URI: uri}, nil)
	s.waitFor(t, s.live, "7")
	anonymous := metricEvent(t, "2", `{"payload":{"price":500}}`)
	anonymous.SetExtension(events.PartitionKey, nil)
	timeless := metricEvent(t, "3", `{"payload":{"price":500}}`)
	timeless.SetTime(time.Time{})
	results := s.Handle(t.Context(), []event.Event{
		metricEvent(t, "0", `{"payload":{"price":500,"is_purchased":1,"server_id":"srv-001","labels":{"a":[1]}},"valid":true}`),
		metricEvent(t, "1", `{"payload":{"price":null,"activity_count":3}}`),
		anonymous, timeless,
		metricEvent(t, "4", `{"payload":{"temperature":5}}`),
		metricEvent(t, "5", `{"payload":{"price":"high"}}`),
		metricEvent(t, "6", `{"payload":[]}`),
		metricEvent(t, "7", `{}`),
		readyEvent(t, "8", "cart", 500),
	})
	for i, has := range map[int]string{2: "partitionkey is required", 3: "attribute time is required", 4: "none of the features of model",
		5: `"price": must be a number`, 6: "cannot unmarshal array", 7: "field payload should be an object"} {
		if err := results[i].Err; err == nil || function.Status(err) != http.StatusBadRequest || !strings.Contains(err.Error(), has) {
			t.Errorf("event %d: %v, want %q", i, err, has)
		}
	}
	number := func(v float64) *float64 { return &v }
	at := time.Date(2026, 11, 22, 2, 41, 0, 0, time.UTC)
	for i, want := range map[int]prediction{
		0: {EntityID: "srv-001", Timestamp: at, Contract: "datacenter-server", Prediction: 1.25, Actual: number(1), Error: number(0.25), ErrorPercent: number(25),
			Confidence: number(0.45), Low: number(1), High: number(1.5)},
		1: {EntityID: "srv-001", Timestamp: at, Contract: "datacenter-server", Prediction: 0.25, Confidence: number(0.0225), Low: number(-0.75), High: number(1.25)},
		8: {EntityID: "1:10", Timestamp: at, Prediction: 1.25, Confidence: number(0.45), Low: number(1), High: number(1.5),
			Shopped: &Shopped{UserID: 1, ProductID: 10, UserSession: "s", EventType: "cart", RecordHash: "ab" + strings.Repeat("0", 62)}},
	} {
		if results[i].Reply == nil {
			t.Errorf("event %d: %v", i, results[i].Err)
			continue
		}
		var got prediction
		if err := json.Unmarshal(results[i].Reply.Data(), &got); err != nil {
			t.Fatal(err)
		}
		got.PredictedAt = time.Time{}
		want.ModelName, want.ModelVersion = "purchase_prediction_model", "7"
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-12 })); diff != "" {
			t.Errorf("event %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestBadBundleNeverReplacesGoodOne(t *testing.T) {
	dir, uri := folder(t, modeltest.Shop(t, "1", 0.5))
	s := start(t, Config{URI: uri}, nil)
	s.waitFor(t, s.live, "1")
	corrupt := modeltest.Shop(t, "2", 0.75)
	corrupt[model.XGBoostFile] = bytes.Replace(corrupt[model.XGBoostFile], []byte("left_children"), []byte("lost_children"), 1)
	corrupt.Seal(t, "purchase_prediction_model", "2").Write(t, dir)
	s.wait(t, "the refusal", func() bool { return strings.Contains(s.live.show().Error, "left_children") })
	if status, body := do(t, "POST", s.url+"/predict", `[{"features":{}}]`); status != http.StatusOK || !strings.Contains(body, `"predictions":[0.5]`) {
		t.Errorf("%d %s", status, body)
	}
	// The promotion's event says why, and is not retried.
	e := event.New()
	e.SetID("1")
	e.SetSource("/millrace/train-trigger")
	e.SetType(events.ModelPromoted)
	if r := s.Handle(t.Context(), []event.Event{e}); function.Status(r[0].Err) != http.StatusBadRequest || !strings.Contains(r[0].Err.Error(), "is not served") {
		t.Errorf("%v", r[0].Err)
	}
	// So does a bundle whose files are not what its manifest says.
	half := modeltest.Shop(t, "3", 0.75)
	half[model.XGBoostFile] = half[model.XGBoostFile][:100]
	half.Write(t, dir)
	s.wait(t, "the refusal", func() bool { return strings.Contains(s.live.show().Error, "100 bytes") })
	if v := s.live.show().Version; v != "1" {
		t.Errorf("version %s", v)
	}
	modeltest.Shop(t, "4", 1).Write(t, dir)
	s.waitFor(t, s.live, "4")
	s.wait(t, "the end of the error", func() bool { return s.live.show().Error == "" })
}

func TestPromotionEventReloadsAtOnce(t *testing.T) {
	dir, uri := folder(t, modeltest.Shop(t, "1", 0.5))
	s := start(t, Config{URI: uri, Poll: time.Hour}, nil)
	s.waitFor(t, s.live, "1")
	first := s.live.current.Load()
	modeltest.Shop(t, "2", 0.75).Write(t, dir)
	e := event.New()
	e.SetID("1")
	e.SetSource("/millrace/train-trigger")
	e.SetType(events.ModelPromoted)
	e.SetSubject("another_model")
	if r := s.Handle(t.Context(), []event.Event{e}); r[0].Err != nil || s.live.show().Version != "1" {
		t.Errorf("an event about another model: %v, version %s", r[0].Err, s.live.show().Version)
	}
	e.SetSubject("purchase_prediction_model")
	if r := s.Handle(t.Context(), []event.Event{e}); r[0].Err != nil || s.live.show().Version != "2" {
		t.Fatalf("%v, version %s", r[0].Err, s.live.show().Version)
	}
	// Back again: the former version is still in memory.
	modeltest.Shop(t, "1", 0.5).Write(t, dir)
	e.SetType(events.ModelRolledBack)
	if r := s.Handle(t.Context(), []event.Event{e}); r[0].Err != nil || s.live.current.Load() != first {
		t.Errorf("%v, version %s", r[0].Err, s.live.show().Version)
	}
}

// TestPromotionsUnderLoad promotes 200 versions while clients ask all the time: no
// request fails, and every answer is one version's throughout.
func TestPromotionsUnderLoad(t *testing.T) {
	dir, uri := folder(t, modeltest.Shop(t, "0", 0))
	s := start(t, Config{URI: uri, Poll: 10 * time.Millisecond}, nil)
	s.waitFor(t, s.live, "0")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var asked, seen atomic.Int64
	var last sync.Map
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for ctx.Err() == nil {
				status, body := do(t, "POST", s.url+"/predict", `[{"features":{"price":1}},{"features":{"price":1}},{"features":{"price":200}}]`)
				var a struct {
					Predictions []float64 `json:"predictions"`
					Version     string    `json:"model_version"`
					Success     bool      `json:"success"`
				}
				if err := json.Unmarshal([]byte(body), &a); err != nil || status != http.StatusOK || !a.Success {
					t.Errorf("%d %s", status, body)
					return
				}
				var n float64
				if _, err := fmt.Sscan(a.Version, &n); err != nil || !cmp.Equal(a.Predictions, []float64{n, n, n + 1}) {
					t.Errorf("version %s answers %v", a.Version, a.Predictions)
					return
				}
				if _, known := last.LoadOrStore(a.Version, true); !known {
					seen.Add(1)
				}
				asked.Add(1)
			}
		})
	}
	for n := 1; n <= 200; n++ {
		before := asked.Load()
		modeltest.Shop(t, fmt.Sprint(n), float32(n)).Write(t, dir)
		s.waitFor(t, s.live, fmt.Sprint(n))
		s.wait(t, "an answer", func() bool { return asked.Load() > before+2 || t.Failed() })
	}
	stop()
	clients.Wait()
	t.Logf("%d requests, %d versions seen in them", asked.Load(), seen.Load())
	if seen.Load() < 150 {
		t.Errorf("only %d of 201 versions were seen in answers", seen.Load())
	}
}

// TestRedisComesBack kills the online store: requests for entities fail with what the
// contract says, those with features do not, and all is well again afterwards.
func TestRedisComesBack(t *testing.T) {
	redis := redistest.Start(t)
	redis.NeedsProcess()
	store, err := online.Config{URL: redis.URL, PoolSize: 4, Timeout: 10 * time.Second, FeatureTTL: time.Hour, SessionTTL: time.Hour}.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	push(t, store, 1, 10, 500)
	_, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri}, store)
	s.waitFor(t, s.live, "7")
	const entity = `[{"user_id":1,"product_id":10}]`
	redis.Kill()
	if status, body := do(t, "POST", s.url+"/predict", entity); status != http.StatusInternalServerError || !strings.Contains(body, "Failed to get features for user_id=1, product_id=10: ") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := do(t, "POST", s.url+"/predict", `[{"features":{"price":500}}]`); status != http.StatusOK || !strings.Contains(body, "[1.25]") {
		t.Errorf("%d %s", status, body)
	}
	redis.Restart()
	s.wait(t, "features", func() bool {
		status, body := do(t, "POST", s.url+"/predict", entity)
		return status == http.StatusOK && strings.Contains(body, `"predictions":[1.25]`)
	})
}

// FuzzBodies looks for bodies that are answered with anything but an answer or a
// refusal.
func FuzzBodies(f *testing.F) {
	_, uri := folder(f, modeltest.Shop(f, "7", 0.25))
	s := start(f, Config{URI: uri}, nil)
	s.waitFor(f, s.live, "7")
	mux := http.NewServeMux()
	s.routes(mux)
	paths := []string{"/predict", "/v2/models/purchase_prediction_model/infer", "/v1/models/purchase_prediction_model:predict"}
	for _, body := range []string{`[{"user_id":1,"product_id":2}]`, `[{"features":{"price":1,"brand":"apple","event_weekday":null}}]`,
		`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,6],"data":[[1,2,3,null,5,6]]}]}`,
		`{"inputs":[{"name":"brand","datatype":"BYTES","shape":[2],"data":["a\\\"",null]},{"name":"price","datatype":"INT64","shape":[2,1],"data":[1,2]}]}`,
		`{"instances":[[1,2,3,4,5,null]]}`, `{"instances":[{"price":true}]}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range paths {
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
			if ok := w.Code == 200 || w.Code == 400 || w.Code == 422 || w.Code == 500 && path == "/predict"; !ok || !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	})
}

func TestCanaryGetsItsShare(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	before := otel.GetMeterProvider()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	t.Cleanup(func() { otel.SetMeterProvider(before) })
	_, uri := folder(t, modeltest.Shop(t, "1", 1))
	_, canaryURI := folder(t, modeltest.Shop(t, "2", 2))
	_, shadowURI := folder(t, modeltest.Shop(t, "3", 3))
	s := start(t, Config{URI: uri, CanaryURI: canaryURI, CanaryPercent: 7, ShadowURI: shadowURI}, nil)
	s.waitFor(t, s.live, "1")
	s.waitFor(t, s.canary, "2")
	s.waitFor(t, s.shadow, "3")
	got := map[string]int{}
	for range 200 {
		_, body := do(t, "POST", s.url+"/predict", `[{"features":{}}]`)
		for _, version := range []string{"1", "2", "3"} {
			if strings.Contains(body, `"model_version":"`+version+`"`) && strings.Contains(body, `[`+version+`]`) {
				got[version]++
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"1": 186, "2": 14}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Each version's predictions are counted, and the shadow saw what it had time for.
	counted := func() map[string]int64 {
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		by := map[string]int64{}
		for _, scope := range all.ScopeMetrics {
			for _, m := range scope.Metrics {
				if sum, ok := m.Data.(metricdata.Sum[int64]); ok && (m.Name == "predict.predictions" || m.Name == "predict.shadow.dropped") {
					for _, p := range sum.DataPoints {
						role, _ := p.Attributes.Value("role")
						by[m.Name+" "+role.AsString()] += p.Value
					}
				}
			}
		}
		return by
	}
	s.wait(t, "the shadow", func() bool {
		by := counted()
		return by["predict.predictions shadow"]+by["predict.shadow.dropped "] == 200
	})
	if by := counted(); by["predict.predictions live"] != 186 || by["predict.predictions canary"] != 14 {
		t.Errorf("%v", by)
	}
	// Of events the share is by their ids, so that one that comes again gets the
	// same version.
	byEvent := map[string]int{}
	for i := range 1000 {
		v := s.pickFor(fmt.Sprint("event ", i))
		if v != s.pickFor(fmt.Sprint("event ", i)) {
			t.Fatal("an event that comes again gets another version")
		}
		byEvent[v.version]++
	}
	if n := byEvent["2"]; n < 35 || n > 120 {
		t.Errorf("%d of 1000 events went to the canary", n)
	}
	if status, body := do(t, "POST", s.url+"/v2/models/purchase_prediction_model/versions/3/infer",
		`{"inputs":[{"name":"price","datatype":"FP64","shape":[1],"data":[1]}]}`); status != http.StatusOK || !strings.Contains(body, `"data":[3]`) {
		t.Errorf("the shadow by its version: %d %s", status, body)
	}
}

func TestConfigErrors(t *testing.T) {
	good := Config{URI: "file:///x", Poll: time.Second, EventTypes: []string{"cart"}, Payloads: payloadsOff}
	for _, c := range []struct {
		change func(*Config)
		has    string
	}{
		{func(c *Config) { c.URI = "" }, "MODEL_URI or MODEL_NAME"},
		{func(c *Config) { c.Name = "m" }, "only one"},
		{func(c *Config) { c.URI, c.Name = "", "m" }, "MLFLOW_TRACKING_URI: required"},
		{func(c *Config) { c.Poll = 0 }, "MODEL_POLL"},
		{func(c *Config) { c.CanaryPercent = 101 }, "CANARY_PERCENT=101"},
		{func(c *Config) { c.CanaryPercent = 5 }, "needs CANARY_URI"},
		{func(c *Config) { c.ShadowAlias = "next" }, "SHADOW_ALIAS: needs MODEL_NAME"},
		{func(c *Config) { c.EventTypes = []string{""} }, "EVENT_TYPES"},
		{func(c *Config) { c.Payloads = "some" }, "PAYLOAD_EVENTS"},
		{func(c *Config) { c.Payloads = payloadsAll }, "needs K_SINK"},
		{func(c *Config) { c.FallbackURI = "kodata:///x" }, "KO_DATA_PATH"},
		{func(c *Config) { c.URI = "https://host/x" }, "want file:///folder"},
		{func(c *Config) { c.URI = "file://x/y" }, "absolute path"},
		{func(c *Config) { c.URI = "s3:///x" }, "want s3://bucket"},
		{func(c *Config) { c.URI, c.Name, c.TrackingURI, c.Alias = "", "m", "host:5000", "current" }, "MLFLOW_TRACKING_URI"},
	} {
		config := good
		c.change(&config)
		err := config.check()
		if err == nil {
			_, err = newPredictor(&config, nil)
		}
		if err == nil || !strings.Contains(err.Error(), c.has) {
			t.Errorf("%v, want an error with %q", err, c.has)
		}
	}
}

func TestOpenAPIDescribesEveryRoute(t *testing.T) {
	_, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri}, nil)
	s.waitFor(t, s.live, "7")
	_, body := do(t, "GET", s.url+"/openapi.json", "")
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatal(doc.OpenAPI, err)
	}
	if status, page := do(t, "GET", s.url+"/docs", ""); status != http.StatusOK || !strings.Contains(page, "/predict") {
		t.Errorf("/docs: %d %.100s", status, page)
	}
	replace := strings.NewReplacer("{model}", "purchase_prediction_model", "{version}", "7")
	for path, methods := range doc.Paths {
		for method := range maps.Keys(methods) {
			status, answer := do(t, strings.ToUpper(method), s.url+replace.Replace(path), "{")
			if status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d %s", method, path, status, answer)
			}
		}
	}
	for _, path := range []string{"/predict", "/models", "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer", "/v1/models/{model}:predict"} {
		if doc.Paths[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
}

// What is described as open is, and everything else asks for a token where there are any.
func TestAccessIsAsDescribed(t *testing.T) {
	_, uri := folder(t, modeltest.Shop(t, "7", 0.25))
	s := start(t, Config{URI: uri, Access: function.Access{Tokens: "test:0123456789abcdef"}}, nil)
	s.waitFor(t, s.live, "7")
	_, body := do(t, "GET", s.url+"/openapi.json", "")
	type operation struct {
		Security  *[]map[string][]string
		Responses map[string]json.RawMessage
	}
	var doc struct {
		Paths map[string]map[string]operation
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	replace := strings.NewReplacer("{model}", "purchase_prediction_model", "{version}", "7")
	for path, methods := range doc.Paths {
		for method, o := range methods {
			status, answer := do(t, strings.ToUpper(method), s.url+replace.Replace(path), "[]")
			open := o.Security != nil && len(*o.Security) == 0
			if open != (status != http.StatusUnauthorized) {
				t.Errorf("%s %s: %d %s", method, path, status, answer)
			}
			if _, said := o.Responses["401"]; said == open {
				t.Errorf("%s %s: the description of 401 is wrong", method, path)
			}
			if _, said := o.Responses["429"]; said == open {
				t.Errorf("%s %s: the description of 429 is wrong", method, path)
			}
		}
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/online"
	"github.com/millrace-dev/millrace/shared/testkit/redistest"
)

// same compares two JSON texts by their values.
func same(t *testing.T, want, got string) {
	t.Helper()
	var w, g any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%v: %s", err, want)
	}
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if diff := cmp.Diff(w, g); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// store puts the features of events in.
func (h *harness) put(list ...features.Event) {
	h.t.Helper()
	for i := range list {
		if status, _ := h.send(validated(&list[i])); status != http.StatusOK {
			h.t.Fatalf("an event was answered with %d", status)
		}
	}
}

func TestFeaturesHasTheOldShape(t *testing.T) {
	h := start(t, nil)
	known, bare := shopEvent("s", 0, defaultUser, defaultProduct), shopEvent("s", 1, 7, 8)
	bare.Brand, bare.CategoryCode = "", ""
	h.put(known, bare)
	for body, want := range map[string]string{
		`{}`: `{"user_id":[530834332],"product_id":[1005073],"activity_count":[1],"event_weekday":[0],"is_purchased":[null],"brand":["xiaomi"],
			"price":[10],"category_code_level1":["appliances"],"category_code_level2":["kitchen"],"status":["PRESENT"],"event_timestamp":["2019-10-06T10:00:00Z"]}`,
		`{"user_id":7,"product_id":"8","other":[]}`: `{"user_id":[7],"product_id":[8],"activity_count":[2],"event_weekday":[0],"is_purchased":[null],"brand":[null],
			"price":[11],"category_code_level1":[null],"category_code_level2":[null],"status":["PRESENT"],"event_timestamp":["2019-10-06T10:00:01Z"]}`,
		`{"user_id":9223372036854775807}`: `{"user_id":[9223372036854775807],"product_id":[1005073],"activity_count":[null],"event_weekday":[null],"is_purchased":[null],
			"brand":[null],"price":[null],"category_code_level1":[null],"category_code_level2":[null],"status":["NOT_FOUND"],"event_timestamp":[null]}`,
	} {
		status, got := h.post("/features", body)
		if status != http.StatusOK {
			t.Errorf("%s: %d %s", body, status, got)
		}
		same(t, want, got)
	}
}

func TestOnlineFeaturesHasFeastsShape(t *testing.T) {
	h := start(t, nil)
	bare := shopEvent("s", 1, 7, 8)
	bare.Brand = ""
	h.put(shopEvent("s", 0, 1, 2), bare)
	for _, c := range []struct{ name, body, want string }{
		{"references of two views", `{"features":["user_product_features:brand","session_features:activity_count"],
			"entities":{"product_id":[2,8,3],"user_id":[1,7,1],"user_session":["s","t","s"]},"full_feature_names":true}`, `{
			"metadata":{"feature_names":["user_id","product_id","user_session","user_product_features__brand","session_features__activity_count"]},
			"results":[
				{"values":[1,7,1],"statuses":["PRESENT","PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},
				{"values":[2,8,3],"statuses":["PRESENT","PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},
				{"values":["s","t","s"],"statuses":["PRESENT","PRESENT","PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},
				{"values":["xiaomi",null,null],"statuses":["PRESENT","NULL_VALUE","NOT_FOUND"],"event_timestamps":["2019-10-06T10:00:00Z","2019-10-06T10:00:01Z","1970-01-01T00:00:00Z"]},
				{"values":[2,null,2],"statuses":["PRESENT","NOT_FOUND","PRESENT"],"event_timestamps":["2019-10-06T10:00:01Z","1970-01-01T00:00:00Z","2019-10-06T10:00:01Z"]}]}`},
		{"a service", `{"feature_service":"purchase_prediction","entities":{"user_id":["1"],"product_id":[2]}}`, `{
			"metadata":{"feature_names":["user_id","product_id","brand","price","event_weekday","category_code_level1","category_code_level2","activity_count"]},
			"results":[
				{"values":[1],"statuses":["PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z"]},
				{"values":[2],"statuses":["PRESENT"],"event_timestamps":["1970-01-01T00:00:00Z"]},
				{"values":["xiaomi"],"statuses":["PRESENT"],"event_timestamps":["2019-10-06T10:00:00Z"]},
				{"values":[10],"statuses":["PRESENT"],"event_timestamps":["2019-10-06T10:00:00Z"]},
				{"values":[0],"statuses":["PRESENT"],"event_timestamps":["2019-10-06T10:00:00Z"]},
				{"values":["appliances"],"statuses":["PRESENT"],"event_timestamps":["2019-10-06T10:00:00Z"]},
				{"values":["kitchen"],"statuses":["PRESENT"],"event_timestamps":["2019-10-06T10:00:00Z"]},
				{"values":[1],"statuses":["PRESENT"],"event_timestamps":["2019-10-06T10:00:00Z"]}]}`},
		{"no entities", `{"features":["session_features:event_weekday"],"entities":{"user_session":[]}}`, `{
			"metadata":{"feature_names":["user_session","event_weekday"]},
			"results":[{"values":[],"statuses":[],"event_timestamps":[]},{"values":[],"statuses":[],"event_timestamps":[]}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, got := h.post("/get-online-features", c.body)
			if status != http.StatusOK {
				t.Fatalf("%d %s", status, got)
			}
			same(t, c.want, got)
		})
	}
}

// Values that are older than the time to live are given, and said to be old.
func TestOldValuesAreOutsideMaxAge(t *testing.T) {
	h := start(t, nil)
	e := shopEvent("s", 0, 1, 2)
	e.Brand = ""
	h.put(e) // begins the epoch
	e = shopEvent("u", 0, 3, 2)
	e.Brand = ""
	_, err := h.store.Materialize(t.Context(), []online.Known{{Entry: online.Entry{Event: e, Hash: e.Hash()}, Rank: 1, Arrival: time.Now().Add(-24*time.Hour - time.Minute)}})
	if err != nil {
		t.Fatal(err)
	}
	_, got := h.post("/get-online-features", `{"features":["user_product_features:price","user_product_features:brand"],"entities":{"user_id":[3],"product_id":[2]}}`)
	if !strings.Contains(got, `{"values":[10],"statuses":["OUTSIDE_MAX_AGE"]`) || !strings.Contains(got, `{"values":[null],"statuses":["NULL_VALUE"]`) {
		t.Error(got)
	}
	if _, got := h.post("/features", `{"user_id":3,"product_id":2}`); !strings.Contains(got, `"status":["OUTSIDE_MAX_AGE"]`) {
		t.Error(got)
	}
}

func TestRequestsThatBreakARule(t *testing.T) {
	h := start(t, nil)
	many := "[" + strings.Repeat("1,", 1000) + "1]"
	frame := func(from, to string) string {
		return strings.Replace(`{"push_source_name":"user_product_features_push_source","df":{"user_id":[1],"product_id":[2],"event_timestamp":["2022-05-13 10:59:42"],
			"brand":["a"],"price":[1.5],"event_weekday":[5],"category_code_level1":[null],"category_code_level2":["b"],"activity_count":[3]}}`, from, to, 1)
	}
	session := func(n string) string {
		return `{"push_source_name":"session_features_push_source","df":{"user_session":["s"],"event_timestamp":["2022-05-13T10:59:42Z"],"event_weekday":[1],"activity_count":[` + n + `]}}`
	}
	for _, c := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/features", ``, 422, "the body is empty"},
		{"/features", `[]`, 422, "the body should be a JSON object"},
		{"/features", `{"user_id":1.5}`, 422, "user_id should be a 64-bit integer, is 1.5"},
		{"/features", `{"product_id":"x"}`, 422, `product_id should be a 64-bit integer, is "x"`},
		{"/features", `{"user_id":null}`, 422, "user_id should be a 64-bit integer, is null"},
		{"/features", `{"user_id":` + strings.Repeat("1", 2<<20) + `}`, 413, "the body is larger than 1048576 bytes (API_MAX_BODY_BYTES)"},
		{"/get-online-features", `{"entities":{}}`, 422, "there should be features"},
		{"/get-online-features", `{"features":5}`, 422, "features should not be a JSON number"},
		{"/get-online-features", `{"features":["session_features:activity_count"],"feature_service":"purchase_prediction"}`, 422, "not both"},
		{"/get-online-features", `{"feature_service":"x"}`, 404, `there is no feature service "x", only "purchase_prediction"`},
		{"/get-online-features", `{"features":["price"]}`, 422, `"price" should be like view:feature`},
		{"/get-online-features", `{"features":["x:price"]}`, 404, `there is no feature view "x", only: user_product_features, session_features`},
		{"/get-online-features", `{"features":["session_features:price"]}`, 404, `feature view session_features has no feature "price", only: event_weekday, activity_count`},
		{"/get-online-features", `{"features":["session_features:activity_count","session_features:activity_count"]}`, 422, "session_features:activity_count is there twice"},
		{"/get-online-features", `{"features":["session_features:activity_count","user_product_features:activity_count"]}`, 422, "set full_feature_names"},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{}}`, 422, "entities should have a list for each join key"},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{"user_id":[1]}}`, 422, `entities should have a list "product_id"`},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{"user_id":[1],"product_id":[1,2]}}`, 422, "product_id has 2 values and user_id has 1"},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{"user_id":1,"product_id":[1]}}`, 422, "user_id should be a list"},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{"user_id":[1],"product_id":[true]}}`, 422, "product_id[0] should be a 64-bit integer, is true"},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{"user_id":[1],"product_id":[1],"driver_id":[1]}}`, 422, `there is no join key "driver_id"`},
		{"/get-online-features", `{"features":["session_features:activity_count"],"entities":{"user_session":[""]}}`, 422, "user_session[0] should be a string of 1 to 255 characters"},
		{"/get-online-features", `{"features":["user_product_features:price"],"entities":{"user_id":` + many + `,"product_id":` + many + `}}`, 413, "user_id has 1001 values, 1000 are allowed"},
		{"/push", `{"push_source_name":"x"}`, 404, `there is no push source "x", only: user_product_features_push_source, session_features_push_source`},
		{"/push", frame(`"df"`, `"to":"offline","df"`), 422, "to should be online: offline features"},
		{"/push", frame(`"df"`, `"to":"nowhere","df"`), 422, `to should be online, is "nowhere"`},
		{"/push", frame(`"brand"`, `"brnd"`), 422, `df should have a column "brand"`},
		{"/push", frame(`[1.5]`, `[1.5,2]`), 422, "column price has 2 values and user_id has 1"},
		{"/push", frame(`[1.5]`, `["1.5"]`), 422, "df.price[0]: field price should be a number"},
		{"/push", frame(`2022-05-13`, `2022-15-13`), 422, "df.event_timestamp[0] should be a time"},
		{"/push", session("0"), 422, "df.activity_count[0] should be between 1 and 999999999"},
		{"/push", session("null"), 422, "df.activity_count[0] should be between 1 and 999999999"},
		{"/materialize", `{"full":1}`, 422, "full should not be a JSON number"},
		{"/materialize", ``, 503, "there is no warehouse: DATABASE_URL is not set"},
	} {
		status, body := h.post(c.path, c.body)
		var answer struct{ Detail string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Errorf("%s %.80s: %v: %s", c.path, c.body, err, body)
		}
		if status != c.status || !strings.Contains(answer.Detail, c.want) {
			t.Errorf("%s %.80s: %d %q, want %d %q", c.path, c.body, status, answer.Detail, c.status, c.want)
		}
	}
}

func TestPushedFeaturesAreServed(t *testing.T) {
	h := start(t, nil)
	body := `{"push_source_name":"user_product_features_push_source","df":{"user_id":[1,2],"product_id":["2",3],"event_timestamp":["2022-05-13 10:59:42","2022-05-13T12:59:42+02:00"],
		"created":["2022-05-13 10:59:42","2022-05-13 10:59:42"],"brand":["a",null],"price":[1.5,2],"event_weekday":[5,5],"category_code_level1":[null,"c"],
		"category_code_level2":["b",null],"activity_count":[3,4]},"to":"online","allow_registry_cache":true}`
	for _, want := range []string{`{"rows":2,"written":2}`, `{"rows":2,"written":0}`} {
		status, got := h.post("/push", body)
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, got)
		}
		same(t, want, got)
	}
	_, got := h.post("/features", `{"user_id":2,"product_id":3}`)
	same(t, `{"user_id":[2],"product_id":[3],"activity_count":[4],"event_weekday":[5],"is_purchased":[null],"brand":[null],
		"price":[2],"category_code_level1":["c"],"category_code_level2":[null],"status":["PRESENT"],"event_timestamp":["2022-05-13T10:59:42Z"]}`, got)
}

// Each example of the description is answered, and each answer is described.
func TestOpenAPIDescribesWhatIsThere(t *testing.T) {
	h := start(t, nil)
	h.put(shopEvent("s", 0, 1, 2))
	var api struct {
		Paths map[string]struct {
			Post struct {
				RequestBody struct {
					Content map[string]struct {
						Example  json.RawMessage
						Examples map[string]struct{ Value json.RawMessage }
					}
				}
			}
		}
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal(openAPI, &api); err != nil {
		t.Fatal(err)
	}
	for path, p := range api.Paths {
		content := p.Post.RequestBody.Content["application/json"]
		examples := []json.RawMessage{content.Example}
		for _, e := range content.Examples {
			examples = append(examples, e.Value)
		}
		for _, e := range examples {
			if e == nil {
				continue
			}
			status, body := h.post(path, string(e))
			if want := map[bool]int{false: 200, true: 503}[path == "/materialize"]; status != want {
				t.Errorf("%s %s: %d %s", path, e, status, body)
			}
			if schema, ok := map[string]string{"/features": "FeaturesResponse", "/get-online-features": "OnlineResponse", "/push": "PushResponse"}[path]; ok {
				var answer map[string]any
				if err := json.Unmarshal([]byte(body), &answer); err != nil {
					t.Fatal(err)
				}
				for name := range answer {
					if _, ok := api.Components.Schemas[schema].Properties[name]; !ok {
						t.Errorf("%s: %s is not described", path, name)
					}
				}
				if len(answer) != len(api.Components.Schemas[schema].Properties) {
					t.Errorf("%s: %s describes more than there is", path, schema)
				}
			}
		}
	}
	for _, ref := range regexp.MustCompile(`#/components/\w+/(\w+)`).FindAllStringSubmatch(string(openAPI), -1) {
		if !strings.Contains(string(openAPI), `"`+ref[1]+`": {`) {
			t.Errorf("there is no %s", ref[0])
		}
	}
	for path, want := range map[string]string{"/openapi.json": "application/json", "/docs": "text/html; charset=utf-8"} {
		resp, err := http.Get(h.url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != want || len(body) < 1000 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		// It works where there is no other network.
		if outside := regexp.MustCompile(`(src|href)="(https?:)?//`).FindString(string(body)); outside != "" {
			t.Errorf("%s refers to %s", path, outside)
		}
	}
}

// Everything but the description asks for a token where there are any, and browsers
// may still ask whether a page may call.
func TestTokensAreAskedFor(t *testing.T) {
	h := &harness{t: t, redis: redistest.Start(t), access: function.Access{Tokens: "test:0123456789abcdef"}, origin: "https://shop.example"}
	h.serve(nil)
	ask := func(method, path, token string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), method, h.url+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return answer
	}
	for _, path := range []string{"/features", "/get-online-features", "/push", "/materialize"} {
		if got := ask(http.MethodPost, path, "").StatusCode; got != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, got)
		}
		if got := ask(http.MethodPost, path, "0123456789abcdef").StatusCode; got == http.StatusUnauthorized {
			t.Errorf("%s with a token: %d", path, got)
		}
		answer := ask(http.MethodOptions, path, "")
		if h := answer.Header; answer.StatusCode != http.StatusNoContent || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") {
			t.Errorf("%s before a call of another page: %d %v", path, answer.StatusCode, h)
		}
		operation := regexp.MustCompile(`(?s)"` + path + `": \{.*?"401": .*?"429": `)
		if !operation.Match(openAPI) {
			t.Errorf("%s: 401 and 429 are not described", path)
		}
	}
	for _, path := range []string{"/openapi.json", "/docs", "/healthz"} {
		if got := ask(http.MethodGet, path, "").StatusCode; got != http.StatusOK {
			t.Errorf("%s: %d", path, got)
		}
	}
}

func BenchmarkGetOnlineFeatures(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := start(b, nil)
			var users, products []string
			for i := range n {
				h.put(shopEvent(fmt.Sprint(i), i, int64(i), int64(i)))
				users, products = append(users, fmt.Sprint(i)), append(products, fmt.Sprint(i))
			}
			body := []byte(`{"feature_service":"purchase_prediction","entities":{"user_id":[` + strings.Join(users, ",") + `],"product_id":[` + strings.Join(products, ",") + `]}}`)
			a := &api{APIConfig: APIConfig{MaxEntities: 1000}, store: h.store, filler: h.filler, metrics: h.filler.metrics}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.getOnlineFeatures(context.Background(), body, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

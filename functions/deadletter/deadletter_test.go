package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

// broker stands where the Broker's ingress does and keeps what it is sent.
type broker struct {
	*httptest.Server
	mu       sync.Mutex
	received []events.Message
	refuse   string // an id
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	b := &broker{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m, err := events.FromHTTP(r.Header, body)
		b.mu.Lock()
		defer b.mu.Unlock()
		if err != nil || b.refuse != "" && m.Get("id") == b.refuse {
			http.Error(w, fmt.Sprint("refused ", err), http.StatusBadRequest)
			return
		}
		b.received = append(b.received, m)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(b.Close)
	return b
}

type fixture struct {
	t      *testing.T
	server *function.Server
	broker *broker
	store  *lake.Store
	bucket string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	store, err := laketest.Start(t).Connect()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, broker: newBroker(t), store: store, bucket: laketest.Bucket()}
	f.server = serve(t, store, f.bucket, f.broker.URL)
	return f
}

func serve(t *testing.T, store *lake.Store, bucket, sink string) *function.Server {
	t.Helper()
	k, err := newKeeper(store, bucket, sink)
	if err != nil {
		t.Fatal(err)
	}
	s, err := function.New(function.Config{Name: "deadletter"}, k, function.WithRoutes(k.routes))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// refused is a raw record that validate refused, as a Trigger's dead-letter sink
// gets it.
func refused(id string, at time.Time, code string) events.Message {
	m := events.Message{Data: []byte(`{"n":1}`)}
	for _, a := range [][2]string{
		{"specversion", "1.0"}, {"id", id}, {"source", "/shop#raw"}, {"type", "dev.knative.kafka.event"},
		{"time", at.Format(time.RFC3339Nano)}, {"datacontenttype", "application/json"}, {"partitionkey", "s1"},
		{events.ErrorCode, code}, {events.ErrorData, "no contract is about this"}, {events.ErrorDest, "http://validate.millrace.svc"},
	} {
		m.Set(a[0], a[1])
	}
	return m
}

func (f *fixture) post(ms ...events.Message) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(events.AppendBatch(nil, ms)))
	r.Header.Set("Content-Type", events.ContentTypeBatch)
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, r)
	return w
}

func (f *fixture) keep(ms ...events.Message) {
	f.t.Helper()
	if w := f.post(ms...); w.Code/100 != 2 {
		f.t.Fatalf("keeping: %d %s", w.Code, w.Body)
	}
}

// do makes a request and returns the status and the JSON answer.
func (f *fixture) do(method, target, body string) (int, map[string]any) {
	f.t.Helper()
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	var v map[string]any
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			f.t.Fatalf("%s %s: %d %q is no JSON: %v", method, target, w.Code, w.Body, err)
		}
	}
	return w.Code, v
}

// list gives the ids of a page, and the next key.
func (f *fixture) list(query string) (ids []string, next string) {
	f.t.Helper()
	status, v := f.do("GET", "/deadletters?"+query, "")
	if status != 200 {
		f.t.Fatalf("GET /deadletters?%s: %d %v", query, status, v)
	}
	for _, l := range v["deadletters"].([]any) {
		ids = append(ids, l.(map[string]any)["id"].(string))
	}
	next, _ = v["next"].(string)
	return ids, next
}

func (f *fixture) key(id string) string {
	f.t.Helper()
	_, v := f.do("GET", "/deadletters", "")
	for _, l := range v["deadletters"].([]any) {
		if l.(map[string]any)["id"] == id {
			return l.(map[string]any)["key"].(string)
		}
	}
	f.t.Fatalf("no dead letter %s in %v", id, v)
	return ""
}

var noon = time.Date(2025, 1, 7, 12, 0, 0, 0, time.UTC)

func TestKeep_oneObjectHoweverOftenItComes(t *testing.T) {
	f := newFixture(t)
	m := refused("a", noon, "400")
	later := refused("a", noon, "503") // came again, failed otherwise
	elsewhere := refused("a", noon, "400")
	elsewhere.Set(events.ErrorDest, "http://lake.millrace.svc")
	f.keep(m)
	f.keep(m, later, elsewhere)
	var keys []string
	for o, err := range f.store.List(t.Context(), f.bucket, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	if len(keys) != 2 || !strings.HasPrefix(keys[0], "events/year=2025/month=01/day=07/20250107T120000.000Z_dev.knative.kafka.event_") {
		t.Errorf("objects %q, want one a destination", keys)
	}
}

func TestGet_theEventIsWhatCame(t *testing.T) {
	f := newFixture(t)
	m := refused("a", noon, "400")
	m.Data = []byte("{\"broken\": \xff") // what cannot be in JSON survives too
	f.keep(m)
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/deadletters/"+f.key("a"), nil))
	if w.Code != 200 || w.Header().Get("Content-Type") != events.ContentTypeEvent {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	got, err := events.ParseJSON(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range m.Attrs {
		if got.Get(a.Name) != a.Value {
			t.Errorf("attribute %s is %q, was %q", a.Name, got.Get(a.Name), a.Value)
		}
	}
	if !bytes.Equal(got.Data, m.Data) {
		t.Errorf("data is %q, was %q", got.Data, m.Data)
	}
}

func TestList_saysWhatAndWhy(t *testing.T) {
	f := newFixture(t)
	if ids, _ := f.list(""); len(ids) != 0 {
		t.Errorf("without a bucket: %v", ids)
	}
	f.keep(refused("a", noon, "400"))
	_, v := f.do("GET", "/deadletters", "")
	l := v["deadletters"].([]any)[0].(map[string]any)
	stored, err := time.Parse(time.RFC3339, l["stored"].(string))
	if err != nil || time.Since(stored) > time.Hour {
		t.Errorf("stored %v", l["stored"])
	}
	delete(l, "stored")
	delete(l, "key")
	want := map[string]any{
		"id": "a", "source": "/shop#raw", "type": "dev.knative.kafka.event", "time": "2025-01-07T12:00:00Z",
		"code": "400", "reason": "no contract is about this", "destination": "http://validate.millrace.svc",
	}
	if diff := cmp.Diff(want, l); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
}

func TestList_pagesAndFilters(t *testing.T) {
	f := newFixture(t)
	var all []events.Message
	var want []string
	for i := range 37 {
		id := fmt.Sprintf("%02d", i)
		m := refused(id, noon.Add(time.Duration(i)*time.Hour), []string{"400", "503"}[i%2])
		if i%3 == 0 {
			m.Set("type", "other/type")
		}
		all, want = append(all, m), append(want, id)
	}
	undated := refused("undated", noon, "400")
	undated.Set("time", "")
	f.keep(append(all, undated)...)

	var got []string
	pages := 0
	for after := ""; ; pages++ {
		ids, next := f.list("limit=10&after=" + after)
		got = append(got, ids...)
		if after = next; next == "" {
			break
		}
	}
	if diff := cmp.Diff(append([]string{"undated"}, want...), got); diff != "" || pages != 3 {
		t.Errorf("%d pages (-want +got):\n%s", pages, diff)
	}
	for query, wantIDs := range map[string][]string{
		"type=other/type&limit=3":                              {"00", "03", "06"},
		"type=other-type":                                      nil,
		"code=503&limit=2":                                     {"01", "03"},
		"code=503&type=other/type&limit=2":                     {"03", "09"},
		"since=" + noon.Add(35*time.Hour).Format(time.RFC3339): {"35", "36"},
		"since=1h": nil,
		"limit=1":  {"undated"},
	} {
		if ids, _ := f.list(query); !slices.Equal(ids, wantIDs) {
			t.Errorf("%s: %v, want %v", query, ids, wantIDs)
		}
	}
	if ids, next := f.list("limit=38"); len(ids) != 38 || next != "" {
		t.Errorf("%d letters, next %q; want all 38 and no next page", len(ids), next)
	}
}

func TestReplay_sendsTheOriginalEvent(t *testing.T) {
	f := newFixture(t)
	m := refused("a", noon, "400")
	f.keep(m)
	target := "/deadletters/" + f.key("a") + "/replay"
	status, v := f.do("POST", target, "")
	if status != 200 || v["replayed"].(map[string]any)["count"] != 1.0 {
		t.Fatalf("replay: %d %v", status, v)
	}
	if len(f.broker.received) != 1 {
		t.Fatalf("the broker got %d events", len(f.broker.received))
	}
	got := map[string]string{"data": string(f.broker.received[0].Data)}
	for _, a := range f.broker.received[0].Attrs {
		got[a.Name] = a.Value
	}
	want := map[string]string{
		"specversion": "1.0", "id": "a", "source": "/shop#raw", "type": "dev.knative.kafka.event",
		"time": "2025-01-07T12:00:00Z", "datacontenttype": "application/json", "partitionkey": "s1", "data": `{"n":1}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}

	// It stays, marked; once more only when that is said.
	if status, v := f.do("POST", target, ""); status != 409 || !strings.Contains(v["error"].(string), "again=true") {
		t.Errorf("a second replay: %d %v", status, v)
	}
	if status, v := f.do("POST", target+"?again=true", ""); status != 200 || v["replayed"].(map[string]any)["count"] != 2.0 {
		t.Errorf("an explicit second replay: %d %v", status, v)
	}
	if _, v := f.do("GET", "/deadletters", ""); v["deadletters"].([]any)[0].(map[string]any)["replayed"].(map[string]any)["count"] != 2.0 {
		t.Errorf("listed as %v", v)
	}
	// A late redelivery of the dead letter does not undo the mark.
	f.keep(m)
	if status, _ := f.do("POST", target, ""); status != 409 {
		t.Errorf("a replay after a redelivery: %d", status)
	}
}

func TestReplay_all(t *testing.T) {
	f := newFixture(t)
	var all []events.Message
	for i := range 25 {
		all = append(all, refused(fmt.Sprintf("%02d", i), noon.Add(time.Duration(i)*time.Second), []string{"400", "503"}[i%2]))
	}
	f.keep(all...)
	f.broker.refuse = "03"
	if status, v := f.do("POST", "/deadletters/"+f.key("01")+"/replay", ""); status != 200 {
		t.Fatal(status, v)
	}
	status, v := f.do("POST", "/deadletters/replay", `{"code":"503","limit":5}`)
	if status != 200 || len(v["replayed"].([]any)) != 3 || len(v["skipped"].([]any)) != 1 || len(v["failed"].([]any)) != 1 || v["next"] == nil {
		t.Fatalf("first page: %d %v", status, v)
	}
	failure := v["failed"].([]any)[0].(map[string]any)
	if failure["key"] != f.key("03") || !strings.Contains(failure["error"].(string), "answered 400: refused") {
		t.Errorf("failure %v", failure)
	}
	status, v = f.do("POST", "/deadletters/replay", fmt.Sprintf(`{"code":"503","after":%q}`, v["next"]))
	if status != 200 || len(v["replayed"].([]any)) != 7 || v["next"] != nil {
		t.Errorf("second page: %d %v", status, v)
	}
	f.broker.refuse = ""
	status, v = f.do("POST", "/deadletters/replay", `{"code":"503","again":true}`)
	if status != 200 || len(v["replayed"].([]any)) != 12 {
		t.Errorf("all again: %d %v", status, v)
	}
	if len(f.broker.received) != 1+3+7+12 {
		t.Errorf("the broker got %d events", len(f.broker.received))
	}
}

func TestDelete(t *testing.T) {
	f := newFixture(t)
	f.keep(refused("a", noon, "400"))
	target := "/deadletters/" + f.key("a")
	if status, v := f.do("POST", target+"/replay", ""); status != 200 {
		t.Fatal(status, v)
	}
	if status, v := f.do("DELETE", target, ""); status != 204 {
		t.Errorf("delete: %d %v", status, v)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if status, _ := f.do(method, target, ""); status != 404 {
			t.Errorf("%s of what is gone: %d", method, status)
		}
	}
	for o := range f.store.List(t.Context(), f.bucket, "", "") {
		t.Errorf("left behind: %s", o.Key)
	}
}

func TestErrors(t *testing.T) {
	f := newFixture(t)
	f.keep(refused("a", noon, "400"))
	key := f.key("a")
	other := key[:len(key)-1] + "x"
	missing := strings.Replace(key, "2025", "2024", 1)
	for _, tt := range []struct {
		method, target, body string
		status               int
		text                 string
	}{
		{"GET", "/deadletters?limit=0", "", 400, "between 1 and 500"},
		{"GET", "/deadletters?limit=501", "", 400, "between 1 and 500"},
		{"GET", "/deadletters?limit=x", "", 400, "between 1 and 500"},
		{"GET", "/deadletters?limit=1&limit=2", "", 400, "given 2 times"},
		{"GET", "/deadletters?code=bad", "", 400, "must be an HTTP status"},
		{"GET", "/deadletters?since=yesterday", "", 400, "a duration like 24h"},
		{"GET", "/deadletters?since=-1h", "", 400, "a duration like 24h"},
		{"GET", "/deadletters?after=x", "", 400, "is no dead letter's key"},
		{"GET", "/deadletters?kind=x", "", 400, `unknown parameter "kind"`},
		{"GET", "/deadletters/" + other, "", 404, "is no dead letter's key"},
		{"GET", "/deadletters/" + url.PathEscape("../../x"), "", 404, "is no dead letter's key"},
		{"GET", "/deadletters/" + missing, "", 404, "not found"},
		{"DELETE", "/deadletters/" + missing, "", 404, "not found"},
		{"POST", "/deadletters/" + missing + "/replay", "", 404, "not found"},
		{"POST", "/deadletters/" + key + "/replay?force=1", "", 400, "again=true"},
		{"POST", "/deadletters/replay", "", 400, "must be a JSON object"},
		{"POST", "/deadletters/replay", `{"kind":"x"}`, 400, `unknown field "kind"`},
		{"POST", "/deadletters/replay", `{"limit":-1}`, 400, "between 1 and 500"},
	} {
		status, v := f.do(tt.method, tt.target, tt.body)
		if text, _ := v["error"].(string); status != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s %s: %d %q, want %d with %q", tt.method, tt.target, status, text, tt.status, tt.text)
		}
	}

	f.broker.refuse = "a"
	if status, v := f.do("POST", "/deadletters/"+key+"/replay", ""); status != 502 || !strings.Contains(v["error"].(string), "answered 400") {
		t.Errorf("a replay that the broker refuses: %d %v", status, v)
	}
	if _, v := f.do("GET", "/deadletters", ""); v["deadletters"].([]any)[0].(map[string]any)["replayed"] != nil {
		t.Errorf("marked as replayed: %v", v)
	}
	f.broker.Close()
	if status, _ := f.do("POST", "/deadletters/"+key+"/replay", ""); status != 502 {
		t.Errorf("a replay while the broker is away: %d", status)
	}
	f.server = serve(t, f.store, f.bucket, "")
	if status, v := f.do("POST", "/deadletters/"+key+"/replay", ""); status != 501 || !strings.Contains(v["error"].(string), "K_SINK") {
		t.Errorf("a replay without a sink: %d %v", status, v)
	}
}

// A dead letter that cannot be kept must come again.
func TestKeep_theStoreIsAway(t *testing.T) {
	away := laketest.NewServer(t)
	store, err := away.Config.Connect()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, store: store, bucket: laketest.Bucket()}
	f.server = serve(t, store, f.bucket, "")
	w := f.post(refused("a", noon, "400"))
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), away.Config.Endpoint) {
		t.Errorf("keeping: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if status, v := f.do("GET", "/deadletters", ""); status != 503 || !strings.Contains(v["error"].(string), away.Config.Endpoint) {
		t.Errorf("listing: %d %v", status, v)
	}
	away.Start()
	f.keep(refused("a", noon, "400"))
	if ids, _ := f.list(""); !slices.Equal(ids, []string{"a"}) {
		t.Errorf("kept %v", ids)
	}
}

func TestConfig_saysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Bucket: "b", Sink: "broker"}, `K_SINK "broker": want an http or https URL`},
		{Config{Sink: "http://b"}, "DEADLETTER_BUCKET"},
	} {
		if err := tt.c.check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.c, err, tt.want)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake"
)

const (
	defaultLimit = 50
	maxLimit     = 500
	// maxScan bounds the dead letters that one request reads to find those that it
	// is about; the answer then says where to go on.
	maxScan = 2000
	// replayers bounds the replays that are on their way at one time.
	replayers = 8
)

// problem is an error with its HTTP status.
type problem struct {
	status int
	text   string
}

func (p problem) Error() string { return p.text }

func bad(format string, args ...any) error {
	return problem{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// routes adds:
//
//	GET    /deadletters?limit=&after=&type=&code=&since=  a page, in order of event time
//	GET    /deadletters/{key}                             the event as it is kept
//	POST   /deadletters/{key}/replay[?again=true]         sends it to the Broker
//	POST   /deadletters/replay                            the same for a filter, in JSON
//	DELETE /deadletters/{key}                             forgets it
//
// Answers are JSON; one that is an error is {"error":"..."}.
func (k *keeper) routes(mux *http.ServeMux) {
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := f(r)
			if err != nil {
				status := http.StatusServiceUnavailable // the store is away
				var p problem
				switch {
				case errors.As(err, &p):
					status = p.status
				case errors.Is(err, lake.ErrNotFound):
					status = http.StatusNotFound
				}
				reply(w, status, map[string]string{"error": err.Error()})
				return
			}
			if raw, ok := answer.(json.RawMessage); ok {
				w.Header().Set("Content-Type", events.ContentTypeEvent)
				_, _ = w.Write(raw)
				return
			}
			if answer == nil {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			reply(w, http.StatusOK, answer)
		})
	}
	handle("GET /deadletters", k.serveList)
	handle("GET /deadletters/{key}", k.serveEvent)
	handle("POST /deadletters/{key}/replay", k.serveReplay)
	handle("POST /deadletters/replay", k.serveReplayAll)
	handle("DELETE /deadletters/{key}", k.serveDelete)
}

func reply(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(answer)
}

// filter says which dead letters a request is about.
type filter struct {
	// Limit bounds how many; 50 by default, 500 at most.
	Limit int `json:"limit"`
	// After is the key behind which to go on: the next of the page before.
	After string `json:"after"`
	// Type and Code, if they are set, are those of the events.
	Type string `json:"type"`
	Code string `json:"code"`
	// Since is the earliest event time, as RFC 3339 or as a duration until now,
	// such as 24h. Events without a time come only without it.
	Since string `json:"since"`

	start string // listing begins behind this object
}

func (f *filter) check(now time.Time) error {
	if f.Limit == 0 {
		f.Limit = defaultLimit
	}
	if f.Limit < 1 || f.Limit > maxLimit {
		return bad("limit %d: must be between 1 and %d", f.Limit, maxLimit)
	}
	if f.Code != "" {
		if _, err := strconv.Atoi(f.Code); err != nil {
			return bad("code %q: must be an HTTP status, or -1 for no answer", f.Code)
		}
	}
	if f.Since != "" {
		t, err := time.Parse(time.RFC3339Nano, f.Since)
		if err != nil {
			d, err := time.ParseDuration(f.Since)
			if err != nil || d < 0 {
				return bad("since %q: must be a time like 2025-01-07T12:00:00Z or a duration like 24h", f.Since)
			}
			t = now.Add(-d)
		}
		f.start = eventsRoot + keyAt(t)
	}
	if f.After != "" {
		p, err := path(f.After)
		if err != nil {
			return bad("after: %v", err)
		}
		f.start = max(f.start, eventsRoot+p)
	}
	return nil
}

// page gives the dead letters that the filter is about, and the key behind which
// there may be more, "" for none.
func (k *keeper) page(ctx context.Context, f filter) (letters []letter, next string, err error) {
	scanned, last := 0, ""
	var keys []string
	flush := func() error {
		found := make([]letter, len(keys))
		errs := make([]error, len(keys))
		forEach(len(keys), func(i int) { found[i], errs[i] = k.letter(ctx, keys[i]) })
		keys = keys[:0]
		for i, l := range found {
			if errors.Is(errs[i], lake.ErrNotFound) {
				continue // deleted meanwhile
			}
			if errs[i] != nil {
				return errs[i]
			}
			if f.Type != "" && l.Type != f.Type || f.Code != "" && l.Code != f.Code {
				continue
			}
			if len(letters) == f.Limit {
				next = letters[f.Limit-1].Key
				return nil
			}
			letters = append(letters, l)
		}
		return nil
	}
	for o, err := range k.store.List(ctx, k.bucket, eventsRoot, f.start) {
		if errors.Is(err, lake.ErrNotFound) {
			return nil, "", nil // no bucket yet: nothing was ever kept
		}
		if err != nil {
			return nil, "", err
		}
		key := keyIn(o.Key)
		if key == "" {
			continue
		}
		if scanned == maxScan {
			if err := flush(); err != nil || next != "" {
				return letters, next, err
			}
			return letters, last, nil
		}
		scanned++
		last = key
		if f.Type != "" && keyForm.FindStringSubmatch(key)[4] != typePart(f.Type) {
			continue
		}
		// One more than the limit tells whether there is a next page.
		if keys = append(keys, key); len(keys) >= min(writers, f.Limit+1-len(letters)) {
			if err := flush(); err != nil || next != "" {
				return letters, next, err
			}
		}
	}
	err = flush()
	return letters, next, err
}

func (k *keeper) serveList(r *http.Request) (any, error) {
	q := r.URL.Query()
	f, err := filterOf(q)
	if err != nil {
		return nil, err
	}
	letters, next, err := k.page(r.Context(), f)
	if err != nil {
		return nil, err
	}
	if letters == nil {
		letters = []letter{}
	}
	answer := map[string]any{"deadletters": letters}
	if next != "" {
		answer["next"] = next
	}
	return answer, nil
}

func filterOf(q url.Values) (filter, error) {
	var f filter
	for name, values := range q {
		if len(values) != 1 {
			return f, bad("%s: given %d times", name, len(values))
		}
		switch v := values[0]; name {
		case "limit":
			n, err := strconv.Atoi(v)
			if err != nil || n == 0 {
				return f, bad("limit %q: must be between 1 and %d", v, maxLimit)
			}
			f.Limit = n
		case "after":
			f.After = v
		case "type":
			f.Type = v
		case "code":
			f.Code = v
		case "since":
			f.Since = v
		default:
			return f, bad("unknown parameter %q: there are limit, after, type, code and since", name)
		}
	}
	err := f.check(time.Now())
	return f, err
}

func (k *keeper) serveEvent(r *http.Request) (any, error) {
	p, err := path(r.PathValue("key"))
	if err != nil {
		return nil, problem{http.StatusNotFound, err.Error()}
	}
	data, _, err := k.store.Read(r.Context(), k.bucket, eventsRoot+p, maxObject)
	if err != nil {
		return nil, err
	}
	return json.RawMessage(data), nil
}

func (k *keeper) serveDelete(r *http.Request) (any, error) {
	p, err := path(r.PathValue("key"))
	if err != nil {
		return nil, problem{http.StatusNotFound, err.Error()}
	}
	if _, err := k.store.Stat(r.Context(), k.bucket, eventsRoot+p); err != nil {
		return nil, err
	}
	// The mark first: an event without one can be deleted again, a mark without an
	// event is never seen.
	if err := k.store.Delete(r.Context(), k.bucket, replaysRoot+p); err != nil {
		return nil, err
	}
	return nil, k.store.Delete(r.Context(), k.bucket, eventsRoot+p)
}

func (k *keeper) serveReplay(r *http.Request) (any, error) {
	if k.sink == "" {
		return nil, errNoSink
	}
	again := false
	for name, values := range r.URL.Query() {
		v, err := strconv.ParseBool(values[0])
		if name != "again" || err != nil {
			return nil, bad("parameter %s=%s: there is again=true, to replay once more", name, values[0])
		}
		again = v
	}
	key := r.PathValue("key")
	if _, err := path(key); err != nil {
		return nil, problem{http.StatusNotFound, err.Error()}
	}
	l, err := k.letter(r.Context(), key)
	if err != nil {
		return nil, err
	}
	if l.Replayed != nil && !again {
		return nil, problem{http.StatusConflict, fmt.Sprintf("replayed %d time(s) already, last at %s: ask with again=true to do it once more",
			l.Replayed.Count, l.Replayed.Last.Format(time.RFC3339))}
	}
	marked, err := k.replay(r.Context(), &l)
	if err != nil {
		return nil, err
	}
	return map[string]any{"key": key, "replayed": marked}, nil
}

var errNoSink = problem{http.StatusNotImplemented, "K_SINK is not set, so there is nowhere to replay to: bind this Service to the Broker (triggers/deadletters.yaml)"}

// replayRequest is the body of POST /deadletters/replay.
type replayRequest struct {
	filter
	// Again includes the dead letters that were replayed before.
	Again bool `json:"again"`
}

// replayAnswer says what became of each dead letter that the filter was about.
type replayAnswer struct {
	Replayed []string        `json:"replayed"`
	Failed   []replayFailure `json:"failed"`
	// Skipped were replayed before.
	Skipped []string `json:"skipped"`
	Next    string   `json:"next,omitempty"`
}

type replayFailure struct {
	Key   string `json:"key"`
	Error string `json:"error"`
}

// serveReplayAll replays a page. The order in which the events arrive at the Broker
// is not that of the page.
func (k *keeper) serveReplayAll(r *http.Request) (any, error) {
	if k.sink == "" {
		return nil, errNoSink
	}
	var q replayRequest
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return nil, bad("reading the body: %v", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return nil, bad("the body must be a JSON object with any of limit, after, type, code, since and again: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if err := q.check(time.Now()); err != nil {
		return nil, err
	}
	letters, next, err := k.page(r.Context(), q.filter)
	if err != nil {
		return nil, err
	}
	answer := replayAnswer{Replayed: []string{}, Failed: []replayFailure{}, Skipped: []string{}, Next: next}
	if !q.Again {
		letters = slices.DeleteFunc(letters, func(l letter) bool {
			if l.Replayed != nil {
				answer.Skipped = append(answer.Skipped, l.Key)
			}
			return l.Replayed != nil
		})
	}
	errs := make([]error, len(letters))
	ctx := r.Context()
	forEachOf(replayers, len(letters), func(i int) {
		_, errs[i] = k.replay(ctx, &letters[i])
	})
	for i := range letters {
		if errs[i] != nil {
			answer.Failed = append(answer.Failed, replayFailure{letters[i].Key, errs[i].Error()})
			continue
		}
		answer.Replayed = append(answer.Replayed, letters[i].Key)
	}
	return answer, nil
}

// replay sends the event as it was before its delivery failed, and notes that. If
// it dies between, the event may be sent again: with the same source and id.
func (k *keeper) replay(ctx context.Context, l *letter) (replays, error) {
	err := k.send(ctx, l.event)
	outcome := "sent"
	if err != nil {
		outcome = "failed"
	}
	k.replayed.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
	if err != nil {
		return replays{}, problem{http.StatusBadGateway, err.Error()}
	}
	p, err := path(l.Key)
	if err != nil {
		return replays{}, err
	}
	// Noted even when the client has gone away meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	marked, err := k.mark(ctx, p, time.Now().UTC().Truncate(time.Millisecond))
	if err != nil {
		return replays{}, fmt.Errorf("sent, but not noted as replayed: %w", err)
	}
	return marked, nil
}

func (k *keeper) send(ctx context.Context, m events.Message) error {
	m.Attrs = slices.DeleteFunc(slices.Clone(m.Attrs), func(a events.Attr) bool { return strings.HasPrefix(a.Name, "knativeerror") })
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.sink, bytes.NewReader(m.Data))
	if err != nil {
		return fmt.Errorf("sending to %s: %w", k.sink, err)
	}
	events.SetHTTP(req.Header, &m)
	res, err := k.client.Do(req)
	if err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("sending to %s: answered %d: %s", k.sink, res.StatusCode, strings.TrimSpace(string(text)))
	}
	return nil
}

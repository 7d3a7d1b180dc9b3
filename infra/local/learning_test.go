package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// learningPolicies are those of the test: it asks for its runs itself, once the first
// was due to the rows, and waits for nothing.
const learningPolicies = `models:
  purchase_prediction_model:
    rows: {query: "SELECT coalesce(sum(rows), 0) FROM etl.loads WHERE checked_at > $1", first: 130000, more: 1000000000, on_gold: true}
    deadline: 10m
    retry: 1s
    request: {trials: 6, bootstrap: 100}
    gate: {gain: champion_gain, tolerance: 0.03, baseline: baseline_gain}
`

// TestLearning takes the shop's model through its life with the real parts: rows that
// went all the way to gold, the trainer, MLflow with PostgreSQL and the object store
// behind it, the gate, and predict, which is asked all the while and never fails.
func TestLearning(t *testing.T) {
	if os.Getenv("TEST_LEARNING") == "" {
		t.Skip("TEST_LEARNING is not set: no Python environment of the trainer (make test-learning makes one)")
	}
	policies := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, policies, learningPolicies)
	p := newPlatform(t, "NO_LEARNING=", "LEARNING_POLICIES="+policies,
		"MILLRACE_FUNCTIONS=validate,featurize,store,lake,ingest,etl-step,predict,train-trigger")
	began := time.Now()
	p.start()
	p.needDatabase()
	api := func(function string) string {
		t.Helper()
		s, ok := p.process(function)
		if !ok {
			t.Fatalf("there is no %s", function)
		}
		return "http://" + s.Address
	}
	db := p.database("millrace")
	asked := ask(t, api("predict"))
	asked.await("starter")

	// A shop of days, whose sessions have ended but for the last.
	p.startLoad("-rate", "0", "-count", "150000", "-density", "0.08", "-seed", "3").wait()
	p.awaitDecisions(db, "train", "promote 1")
	t.Logf("version 1 is decided on after %s: %s", time.Since(began).Round(time.Second), reason(t, db))
	asked.await("1")

	train := func(request string) {
		t.Helper()
		status, body := post(t, api("train-trigger")+"/train", `{"model":"purchase_prediction_model","request":`+request+`}`)
		if status != http.StatusAccepted {
			t.Fatalf("%d %s", status, body)
		}
	}
	// One tree that has hardly learnt anything.
	train(`{"rounds":1,"trials":1,"early_stopping_rounds":1,"seed":5}`)
	p.awaitDecisions(db, "train", "promote 1", "train", "keep 2")
	t.Logf("kept: %s", reason(t, db))
	asked.await("1")

	// The trainer is killed in the middle of its work. The one before has told, and ends.
	eventually(t, "the trainer ends", func() bool { s, ok := p.process("training"); return !ok || s.PID == 0 }, p.out.String)
	train(`{"seed":2,"trials":12}`)
	pid := p.awaitTrainer(0)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job is begun again", func() bool {
		return strings.Contains(p.out.String(), "failed (signal 9, killed)") && strings.Contains(p.out.String(), "attempt 1 of 4")
	}, p.out.String)
	p.awaitDecisions(db, "train", "promote 1", "train", "keep 2", "train", "promote 3")
	asked.await("3")

	at := time.Now()
	status, body := post(t, api("train-trigger")+"/rollback", `{"model":"purchase_prediction_model","from":"3"}`)
	if status != http.StatusOK || !strings.Contains(body, `"to":"1"`) {
		t.Fatalf("%d %s", status, body)
	}
	asked.await("1")
	t.Logf("the former version serves %s after the rollback was asked for", time.Since(at).Round(time.Millisecond))

	// MLflow is killed while a run needs it. What serves goes on serving, and the run or
	// one after it gives its version.
	judged := func() {
		t.Helper()
		eventually(t, "the run is judged", func() bool {
			all := decided(t, db)
			return strings.HasPrefix(all[len(all)-1], "promote") || strings.HasPrefix(all[len(all)-1], "keep")
		}, func() string { return fmt.Sprint(decided(t, db)) })
	}
	train(`{"seed":3,"trials":12}`)
	p.awaitTrainer(0)
	p.killParts("mlflow")
	eventually(t, "MLflow answers again", func() bool { s, ok := p.process("mlflow"); return ok && s.State == "ready" }, p.out.String)
	judged()

	// So are, each in a run of its own and then all at once, who asks for runs and judges
	// them, the store of features, and who serves.
	for i, victims := range [][]string{{"train-trigger"}, {"redis"}, {"predict"}, {"train-trigger", "redis", "predict"}} {
		eventually(t, "the trainer ends", func() bool { s, ok := p.process("training"); return !ok || s.PID == 0 }, p.out.String)
		runs := len(decided(t, db))
		train(fmt.Sprintf(`{"seed":%d,"trials":4}`, 10+i))
		p.awaitTrainer(0)
		began, excused := asked.now(), slices.Contains(victims, "predict")
		asked.excuse(excused)
		p.killParts(victims...)
		asked.excuse(false)
		judged()
		all := decided(t, db)
		t.Logf("killed %s while version %s served and a run was under way: %s", strings.Join(victims, ", "), began, strings.Join(all[runs:], ", "))
		if len(all) != runs+2 {
			t.Errorf("decisions %v, want that of the run and that of its model", all[runs:])
		}
		if version, ok := strings.CutPrefix(all[len(all)-1], "promote "); ok {
			asked.await(version)
		} else {
			asked.await(began)
		}
	}
	rows, err := db.Query(running(t), `SELECT r.run_id || ' is ' || r.state || ', decided on ' || count(d) FROM learning.runs r
		LEFT JOIN learning.decisions d ON d.run_id = r.run_id AND d.decision IN ('promote', 'keep', 'give up') GROUP BY r.run_id HAVING r.state <> 'failed' AND (r.state <> 'judged' OR count(d) <> 1)`)
	if err != nil {
		t.Fatal(err)
	}
	if odd, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(odd) > 0 {
		t.Errorf("runs %v, %v", odd, err)
	}
	var unsent int
	eventually(t, "all is told", func() bool {
		err := db.QueryRow(running(t), `SELECT count(*) FROM learning.decisions WHERE sent_at IS NULL`).Scan(&unsent)
		return err == nil && unsent == 0
	}, func() string { return fmt.Sprint(unsent) })
	asked.end()
	if s, err := p.askStatus(); err != nil || s.DeadLetters != 0 {
		t.Errorf("%d dead letters, %v", s.DeadLetters, err)
	}
	if s, ok := p.process("mlflow"); ok {
		t.Logf("MLflow takes %s", bytesText(s.RSSBytes))
	}
	p.stop()
}

// awaitDecisions waits until these were taken, and no others.
func (p *platformProcess) awaitDecisions(db *pgx.Conn, want ...string) {
	p.t.Helper()
	eventually(p.t, "decisions "+strings.Join(want, ", "), func() bool { return slices.Equal(decided(p.t, db), want) },
		func() string { return strings.Join(decided(p.t, db), ", ") + ": " + reason(p.t, db) })
}

// awaitTrainer waits until the trainer runs, in another process than before, and gives
// its process id.
func (p *platformProcess) awaitTrainer(before int) int {
	p.t.Helper()
	pid := 0
	eventually(p.t, "the trainer runs", func() bool {
		s, ok := p.process("training")
		pid = s.PID
		return ok && pid != 0 && pid != before
	}, p.out.String)
	return pid
}

func decided(t *testing.T, db *pgx.Conn) []string {
	t.Helper()
	rows, err := db.Query(running(t), `SELECT decision || coalesce(' ' || version, '') FROM learning.decisions ORDER BY decision_id`)
	if err != nil {
		return []string{err.Error()}
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return []string{err.Error()}
	}
	return append(all, []string{"none"}[:max(0, 1-len(all))]...)
}

func reason(t *testing.T, db *pgx.Conn) string {
	t.Helper()
	var text string
	if err := db.QueryRow(running(t), `SELECT coalesce((SELECT reason || ' ' || coalesce(message, '') FROM learning.runs WHERE state = 'failed' ORDER BY run_id DESC LIMIT 1) || '; ', '') ||
		(SELECT reason FROM learning.decisions ORDER BY decision_id DESC LIMIT 1)`).Scan(&text); err != nil {
		return err.Error()
	}
	return text
}

func post(t *testing.T, url, body string) (int, string) {
	t.Helper()
	status, text, err := postTo(running(t), url, body)
	if err != nil {
		t.Fatal(err)
	}
	return status, text
}

func postTo(ctx context.Context, url, body string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(bytes.TrimSpace(text)), err
}

// asking asks predict without a pause. Every answer has to be one of a single version,
// and versions may change, but none comes that nobody has promoted.
type asking struct {
	t    *testing.T
	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	version  string
	answered int
	wrong    []string
	// excused is set while predict may be dead; missed are the requests of then.
	excused bool
	missed  int
}

func ask(t *testing.T, predict string) *asking {
	// As long as the test, which is longer than any one wait.
	ctx, stop := context.WithCancel(t.Context())
	a := &asking{t: t, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		for ctx.Err() == nil {
			status, body, err := postTo(ctx, predict+"/predict", `[{"features":{"brand":"apple","price":100,"event_weekday":1,"activity_count":2}},{"features":{"price":5}}]`)
			if ctx.Err() != nil {
				return
			}
			var answer struct {
				Predictions []float64 `json:"predictions"`
				Version     string    `json:"model_version"`
			}
			bad := err != nil || status != http.StatusOK || json.Unmarshal([]byte(body), &answer) != nil || len(answer.Predictions) != 2 || answer.Version == ""
			a.mu.Lock()
			a.answered++
			switch {
			case bad && a.excused:
				a.missed++
			case bad:
				a.wrong = append(a.wrong, fmt.Sprint(status, " ", body, " ", err))
			default:
				a.version = answer.Version
			}
			a.mu.Unlock()
			time.Sleep(2 * time.Millisecond) // the others need the machine
		}
	}()
	t.Cleanup(stop)
	return a
}

func (a *asking) now() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.version
}

func (a *asking) await(version string) {
	a.t.Helper()
	eventually(a.t, "version "+version+" serves", func() bool { return a.now() == version }, a.now)
}

// excuse lets requests fail, or no longer.
func (a *asking) excuse(yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.excused = yes
}

func (a *asking) end() {
	a.t.Helper()
	a.stop()
	<-a.done
	if len(a.wrong) > 0 {
		a.t.Errorf("%d of %d requests failed, the first: %s", len(a.wrong), a.answered, a.wrong[0])
	}
	a.t.Logf("%d requests were answered, and %d not while predict was dead", a.answered-a.missed, a.missed)
}

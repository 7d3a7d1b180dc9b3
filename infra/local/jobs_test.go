package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/events"
)

// A job runs once for an event however often the event comes, is begun again when the
// platform was killed in the middle of it, and is reported when it fails.
func TestJobSinkRunsOneJobAnEvent(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(t.TempDir(), "gate")
	p := newPlatform(t, "KEEPER_GATE="+gate)
	root := checkoutWith(t, "", "", "")
	manifest, err := os.ReadFile(filepath.Join("testdata", "jobsink.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "triggers", "jobsink.yaml"), string(manifest))
	p.replaceArg("--root", root)
	p.start()

	send := func(id, data string) {
		t.Helper()
		m := events.Message{Data: []byte(data), Attrs: []events.Attr{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: id}, {Name: "source", Value: "/test"},
			{Name: "type", Value: "dev.millrace.test.keep.v1"}, {Name: "datacontenttype", Value: "application/json"},
		}}
		eventually(t, "the event is accepted", func() bool {
			req, err := http.NewRequestWithContext(running(t), http.MethodPost, p.url("/millrace/default"), strings.NewReader(string(m.Data)))
			if err != nil {
				t.Fatal(err)
			}
			events.SetHTTP(req.Header, &m)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusAccepted
		}, p.out.String)
	}
	for range 3 {
		send("1", `{"n":1}`)
	}
	send("2", `{"n":2,"fail":true}`)
	states := func() map[string]string {
		found := map[string]string{}
		dirs, _ := filepath.Glob(filepath.Join(p.state, "jobs", "keeper", "*"))
		for _, dir := range dirs {
			if strings.HasSuffix(dir, ".new") {
				continue // being made
			}
			event, err := os.ReadFile(filepath.Join(dir, "event"))
			if err != nil {
				continue
			}
			m, err := readJob(dir)
			if err != nil {
				t.Fatal(err)
			}
			number := "1"
			if strings.Contains(string(event), `"id":"2"`) {
				number = "2"
			}
			found[number] = m.State
			found[number+" runs"] = runs(dir)
			found[number+" sink"] = contents(filepath.Join(dir, "sink"))
		}
		return found
	}
	// One at a time: the second waits for the first.
	eventually(t, "the first job runs", func() bool { s := states(); return s["1 runs"] == "1" && s["2"] == "queued" }, p.out.String)
	p.kill()
	p.start()
	eventually(t, "the job is begun again", func() bool { return states()["1 runs"] == "2" }, p.out.String)
	write(t, gate, "")
	want := map[string]string{
		"1": "succeeded", "1 runs": "2", "1 sink": p.url("/millrace/default"),
		"2": "failed", "2 runs": "2", "2 sink": "",
	}
	eventually(t, "both jobs end", func() bool { return cmp.Equal(want, states()) }, func() string { return cmp.Diff(want, states()) })
	send("1", `{"n":1}`) // once more, after its end
	send("3", `{"n":3}`)
	eventually(t, "a job after that", func() bool {
		found, _ := filepath.Glob(filepath.Join(p.state, "jobs", "keeper", "*", "sink"))
		return len(found) == 2
	}, p.out.String)
	for _, part := range []string{"was interrupted and is begun again", "failed (exit code 3)", "attempt 2 of 2", "it is to fail", "succeeded after"} {
		if !strings.Contains(p.out.String(), part) {
			t.Errorf("the user is not told %q:\n%s", part, p.out)
		}
	}
	p.stop()
}

func runs(dir string) string {
	n := strings.Count(contents(filepath.Join(dir, "runs")), "run")
	return string(rune('0' + n))
}

func contents(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func TestJobSinkThatCannotRunHereIsNamed(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	root := checkoutWith(t, "", "", "")
	manifest, err := os.ReadFile(filepath.Join("testdata", "jobsink.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "triggers", "jobsink.yaml"), strings.Replace(string(manifest), localCommand, "example.com/other", 1))
	p.replaceArg("--root", root)
	requireAll(t, refused(t, p), "jobsink.yaml", "keeper", "registry.example.com/keeper:1", localCommand)
}

// Of the jobs that have ended the newest are kept, and all that have not.
func TestOldJobsAreRemoved(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var want []string
	for i := range keptJobs + 20 {
		state := jobState{State: "succeeded", Accepted: at, Finished: at.Add(time.Duration(i) * time.Second)}
		switch {
		case i == 3:
			state.State, state.Finished = "running", time.Time{}
		case i%2 == 0:
			state.State = "failed"
		}
		dir := filepath.Join(folder, fmt.Sprintf("job-%03d", i))
		if err := os.Mkdir(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := writeJob(dir, state); err != nil {
			t.Fatal(err)
		}
		if i == 3 || i >= 20 {
			want = append(want, dir)
		}
	}
	(&jobs{event: func(part, text string, _ bool) { t.Error(part, text) }}).prune(folder)
	left, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The trainer ends with 1 when it has told that there is no model: the job has failed
// and is not tried again, as its podFailurePolicy says.
func TestTrainingJobIsPlanned(t *testing.T) {
	t.Parallel()
	p, err := loadPlatform(checkout())
	if err != nil {
		t.Fatal(err)
	}
	for _, sink := range p.graph.JobSinks {
		if sink.Name != "training" {
			continue
		}
		w := newParts(options{}, &stateDir{path: t.TempDir()}, p, map[string]int{"mlflow": 15000, "ingress": 8080}, secrets{})
		plan, err := w.planJob(sink)
		if err != nil {
			t.Fatal(err)
		}
		if !plan.trains() || plan.limit != 4 || plan.deadline != 30*time.Minute || !slices.Equal(plan.final, []int{1}) || !slices.Contains(plan.final, supervise.ExitCode("exit code 1")) ||
			slices.Contains(plan.final, supervise.ExitCode("signal 9, killed")) {
			t.Errorf("%+v", plan)
		}
		if !slices.Contains(plan.env, "MLFLOW_TRACKING_URI=http://127.0.0.1:15000") || !slices.Contains(plan.env, "K_SINK=http://127.0.0.1:8080/millrace/default") {
			t.Errorf("environment %q", plan.env)
		}
		return
	}
	t.Error("there is no JobSink training")
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/events"
)

// localCommand is the annotation of a JobSink's job (spec.job.metadata) that says what
// runs here in place of its image: a command for the shell, in the checkout's folder.
// Without it, an image ko://.../<name> is the program <name> of the built ones, and a
// container with a command is that command.
const localCommand = "millrace.dev/local-command"

// jobs runs the Jobs of the graph's JobSinks as processes. Each job is a folder,
//
//	jobs/<sink>/<job>/event      the event, as JSON
//	jobs/<sink>/<job>/job.json   how far it is
//
// that is there before the event counts as delivered, so a job that was accepted is
// run, and after a restart run again if it had not ended. Of a JobSink one runs at a
// time, in the order in which they came.
type jobs struct {
	parts *parts
	sup   *supervise.Supervisor
	// learning is what the trainer needs; nil where no models are trained.
	learning *learning
	event    func(part, text string, bad bool)
	plans    map[string]jobPlan // by namespace/name of the JobSink

	mu      sync.Mutex
	waiting map[string][]string // folders, by sink
	wake    map[string]chan struct{}
}

// jobPlan is how the jobs of a JobSink are run.
type jobPlan struct {
	sink    string
	command []string
	env     []string
	limit   int // failed attempts after which a job has failed: backoffLimit + 1
	// deadline is how long an attempt may take, 0 for ever: activeDeadlineSeconds, which a
	// cluster counts for all attempts together.
	deadline time.Duration
	final    []int // exit codes that no other attempt follows: FailJob of podFailurePolicy
}

// bounded is the context of an attempt.
func (p *jobPlan) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.deadline == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, p.deadline)
}

// trains tells whether the job needs the trainer's environment.
func (p *jobPlan) trains() bool {
	return strings.Contains(strings.Join(p.command, " "), "TRAINING_PYTHON")
}

// keptJobs is how many ended jobs of a JobSink are kept.
const keptJobs = 50

// jobState is job.json.
type jobState struct {
	State    string    `json:"state"` // queued, running, succeeded, failed
	Accepted time.Time `json:"accepted"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Failures int       `json:"failures"`
	End      string    `json:"end,omitempty"` // of the last attempt
	Tail     []string  `json:"tail,omitempty"`
}

func (s jobState) ended() bool { return s.State == "succeeded" || s.State == "failed" }

// newJobs plans the jobs of all JobSinks, and finds those that had not ended. Its
// errors name the JobSink.
func newJobs(w *parts, sup *supervise.Supervisor, l *learning, event func(part, text string, bad bool)) (*jobs, error) {
	j := &jobs{parts: w, sup: sup, learning: l, event: event, plans: map[string]jobPlan{}, waiting: map[string][]string{}, wake: map[string]chan struct{}{}}
	for _, sink := range w.platform.graph.JobSinks {
		plan, err := w.planJob(sink)
		if err != nil {
			return nil, fmt.Errorf("%s: JobSink %s: %w", sink.Position, sink.Name, err)
		}
		key := jobKey(sink)
		j.plans[key], j.wake[key] = plan, make(chan struct{}, 1)
		if j.waiting[key], err = j.unfinished(sink); err != nil {
			return nil, err
		}
	}
	return j, nil
}

func jobKey(sink *eventing.JobSink) string { return sink.Namespace + "/" + sink.Name }

func (j *jobs) folder(sink *eventing.JobSink) string { return j.parts.state.join("jobs", sink.Name) }

// unfinished are the folders of jobs that have not ended, oldest first.
func (j *jobs) unfinished(sink *eventing.JobSink) ([]string, error) {
	entries, err := os.ReadDir(j.folder(sink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for jobs: %w", err)
	}
	type found struct {
		dir      string
		accepted time.Time
	}
	var all []found
	for _, e := range entries {
		dir := filepath.Join(j.folder(sink), e.Name())
		if strings.HasSuffix(dir, ".new") {
			_ = os.RemoveAll(dir) // of an event that was not accepted
			continue
		}
		state, err := readJob(dir)
		if err != nil {
			return nil, err
		}
		if !state.ended() {
			all = append(all, found{dir, state.Accepted})
		}
	}
	slices.SortFunc(all, func(a, b found) int { return a.accepted.Compare(b.accepted) })
	dirs := make([]string, len(all))
	for i, f := range all {
		dirs[i] = f.dir
	}
	return dirs, nil
}

// planJob reads what is run of a JobSink's job: the first container.
func (w *parts) planJob(sink *eventing.JobSink) (jobPlan, error) {
	var job struct {
		Metadata struct {
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"metadata"`
		Spec struct {
			BackoffLimit  *int  `yaml:"backoffLimit"`
			Deadline      int64 `yaml:"activeDeadlineSeconds"`
			FailurePolicy struct {
				Rules []struct {
					Action      string `yaml:"action"`
					OnExitCodes struct {
						Operator string `yaml:"operator"`
						Values   []int  `yaml:"values"`
					} `yaml:"onExitCodes"`
				} `yaml:"rules"`
			} `yaml:"podFailurePolicy"`
			Template struct {
				Spec struct {
					Containers []struct {
						Image   string         `yaml:"image"`
						Command []string       `yaml:"command"`
						Args    []string       `yaml:"args"`
						Env     []containerEnv `yaml:"env"`
					} `yaml:"containers"`
				} `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	if err := sink.Decode(&job); err != nil {
		return jobPlan{}, fmt.Errorf("reading spec.job: %w", err)
	}
	if len(job.Spec.Template.Spec.Containers) == 0 {
		return jobPlan{}, errors.New("spec.job.spec.template.spec.containers is empty")
	}
	c := job.Spec.Template.Spec.Containers[0]
	plan := jobPlan{sink: sink.Name, limit: 7} // Kubernetes' backoffLimit is 6
	if job.Spec.BackoffLimit != nil {
		plan.limit = *job.Spec.BackoffLimit + 1
	}
	plan.deadline = time.Duration(job.Spec.Deadline) * time.Second
	for _, rule := range job.Spec.FailurePolicy.Rules {
		if rule.Action == "FailJob" && rule.OnExitCodes.Operator == "In" {
			plan.final = append(plan.final, rule.OnExitCodes.Values...)
		}
	}
	command := job.Metadata.Annotations[localCommand]
	switch {
	case command != "":
		plan.command = []string{"/bin/sh", "-c", command}
	case len(c.Command) > 0:
		plan.command = slices.Concat(c.Command, c.Args)
	case strings.HasPrefix(c.Image, "ko://"):
		program := filepath.Join(w.opts.bin, filepath.Base(c.Image))
		if err := supervise.Executable(program); err != nil {
			return jobPlan{}, fmt.Errorf("there is no program for its image %s: %w", c.Image, err)
		}
		plan.command = append([]string{program}, c.Args...)
	default:
		return jobPlan{}, fmt.Errorf("image %s cannot be run here: say what can with the annotation %s under spec.job.metadata", c.Image, localCommand)
	}
	variables, err := variables(c.Env)
	if err != nil {
		return jobPlan{}, err
	}
	plan.env = baseEnv()
	for _, v := range variables {
		value, err := w.jobValue(sink, v)
		if err != nil {
			return jobPlan{}, err
		}
		plan.env = append(plan.env, v.name+"="+value)
	}
	return plan, nil
}

// jobValue is what a variable of a job is on this machine. Its sink is the Broker.
func (w *parts) jobValue(sink *eventing.JobSink, v variable) (string, error) {
	if v.name == "K_SINK" {
		for _, b := range w.platform.graph.Brokers {
			if b.Namespace == sink.Namespace {
				return "http://" + local(w.ports["ingress"]) + "/" + b.Namespace + "/" + b.Name, nil
			}
		}
	}
	return w.value(service{namespace: sink.Namespace, name: sink.Name}, v)
}

// accept takes an event for a job, once: one that has come before changes nothing. The
// job is on the disk when it returns nil.
func (j *jobs) accept(_ context.Context, sink *eventing.JobSink, name string, event events.Message) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	dir := filepath.Join(j.folder(sink), name)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	// Complete or absent, whenever this process dies.
	making := dir + ".new"
	err := os.RemoveAll(making)
	if err == nil {
		err = os.MkdirAll(making, 0o750)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(making, "event"), events.AppendJSON(nil, &event), 0o644)
	}
	if err == nil {
		err = writeJob(making, jobState{State: "queued", Accepted: time.Now()})
	}
	if err == nil {
		err = os.Rename(making, dir)
	}
	if err != nil {
		return fmt.Errorf("accepting job %s: %w", name, err)
	}
	key := jobKey(sink)
	j.waiting[key] = append(j.waiting[key], dir)
	select {
	case j.wake[key] <- struct{}{}:
	default:
	}
	return nil
}

func writeJob(dir string, s jobState) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "job.json")
	if err := os.WriteFile(file+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

func readJob(dir string) (jobState, error) {
	var s jobState
	b, err := os.ReadFile(filepath.Join(dir, "job.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading job %s: %w", filepath.Base(dir), err)
	}
	return s, nil
}

// run runs jobs until ctx ends and those that run have stopped. They are begun again
// next time.
func (j *jobs) run(ctx context.Context) {
	var wg sync.WaitGroup
	for key, plan := range j.plans {
		wg.Go(func() {
			for ctx.Err() == nil {
				dir := j.next(key)
				if dir == "" {
					select {
					case <-j.wake[key]:
					case <-ctx.Done():
					}
					continue
				}
				if err := j.runJob(ctx, plan, dir); err != nil {
					j.event(plan.sink, "job "+filepath.Base(dir)+" cannot be run: "+err.Error(), true)
				}
			}
		})
	}
	wg.Wait()
}

func (j *jobs) next(key string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting[key]) == 0 {
		return ""
	}
	dir := j.waiting[key][0]
	j.waiting[key] = j.waiting[key][1:]
	return dir
}

// runJob runs one job to its end, or until ctx ends.
func (j *jobs) runJob(ctx context.Context, plan jobPlan, dir string) error {
	const shortest, longest = time.Second, time.Minute
	name := filepath.Base(dir)
	state, err := readJob(dir)
	if err != nil {
		return err
	}
	env := append(slices.Clone(plan.env), "K_EVENT_PATH="+dir, "K_EXECUTION_MODE=batch")
	if plan.trains() && j.learning != nil {
		more, err := j.learning.jobEnv(ctx)
		if err != nil {
			return nil // it was stopped with the platform, and waits on
		}
		env = append(env, more...)
	}
	defer j.prune(filepath.Dir(dir))
	if state.State == "running" {
		j.event(plan.sink, "job "+name+" was interrupted and is begun again", false)
	}
	for pause := shortest; ; pause = min(2*pause, longest) {
		state.State, state.Started = "running", time.Now()
		if err := writeJob(dir, state); err != nil {
			return err
		}
		attempt, cancel := plan.bounded(ctx)
		how, tail, err := j.sup.RunOnce(attempt, supervise.Spec{
			Name: plan.sink, Path: plan.command[0], Args: plan.command[1:], Dir: j.parts.opts.root,
			Env: env,
		})
		late := errors.Is(attempt.Err(), context.DeadlineExceeded)
		cancel()
		if err != nil {
			return err
		}
		if ctx.Err() != nil && how != supervise.Succeeded {
			return nil // it was stopped with the platform
		}
		took := time.Since(state.Started).Round(100 * time.Millisecond)
		state.Finished, state.End, state.Tail = time.Now(), how, tail
		if how == supervise.Succeeded {
			state.State = "succeeded"
			j.event(plan.sink, fmt.Sprintf("job %s succeeded after %v", name, took), false)
			return writeJob(dir, state)
		}
		state.Failures++
		if late {
			how += fmt.Sprintf(", stopped after %v, its activeDeadlineSeconds", plan.deadline)
		}
		text := fmt.Sprintf("job %s failed (%s) after %v, attempt %d of %d", name, how, took, state.Failures, plan.limit)
		if len(tail) > 0 {
			text += "; last lines of its output:\n  " + strings.Join(tail, "\n  ")
		}
		j.event(plan.sink, text, true)
		if late || state.Failures >= plan.limit || slices.Contains(plan.final, supervise.ExitCode(how)) {
			state.State = "failed"
			return writeJob(dir, state)
		}
		state.State = "queued"
		if err := writeJob(dir, state); err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// prune removes the ended jobs of a JobSink but for the newest. An event of theirs that
// comes again after that starts a job again.
func (j *jobs) prune(folder string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return
	}
	type ended struct {
		dir string
		at  time.Time
	}
	var all []ended
	for _, e := range entries {
		dir := filepath.Join(folder, e.Name())
		if s, err := readJob(dir); err == nil && s.ended() && !strings.HasSuffix(dir, ".new") {
			all = append(all, ended{dir, s.Finished})
		}
	}
	slices.SortFunc(all, func(a, b ended) int { return b.at.Compare(a.at) })
	for _, old := range all[min(len(all), keptJobs):] {
		if err := os.RemoveAll(old.dir); err != nil {
			j.event("runner", "an old job cannot be removed: "+err.Error(), true)
		}
	}
}

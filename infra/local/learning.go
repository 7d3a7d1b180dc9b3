package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
)

// Names of what the learning is made of.
const (
	learner   = "train-trigger" // the function without which nothing is trained
	mlflow    = "mlflow"        // part, database and bucket
	setupName = "learning-setup"
)

// retrySetup is how long a failed installation rests, lookSetup how often it is looked
// meanwhile whether somebody else has made the environment.
const (
	retrySetup = 5 * time.Minute
	lookSetup  = 2 * time.Second
)

// learning is what trains models: the trainer and, unless the user names another, an
// MLflow server, both from one Python environment that is made in the background. Where
// it cannot be made, everything else runs all the same.
type learning struct {
	*parts
	sup   *supervise.Supervisor
	event func(part, text string, bad bool)
	venv  string
	ready chan struct{} // closed when the environment is there
	rest  time.Duration // after an installation that failed

	mu     sync.Mutex
	state  string // see LearningStatus
	detail string
	child  *supervise.Child // MLflow
}

// learns tells whether this platform trains models.
func (w *parts) learns() bool {
	return !w.opts.noLearning && w.database.url != "" && slices.ContainsFunc(w.platform.services, func(s service) bool { return s.name == learner })
}

// ownRegistry tells whether the runner is to run MLflow itself.
func (w *parts) ownRegistry() bool { return w.learns() && os.Getenv("MLFLOW_TRACKING_URI") == "" }

func newLearning(w *parts, sup *supervise.Supervisor, event func(part, text string, bad bool)) *learning {
	return &learning{
		parts: w, sup: sup, event: event, ready: make(chan struct{}), rest: retrySetup, state: "waiting",
		// Beside the checkout's own, not below the state: it is the same for all.
		venv: or(os.Getenv("MILLRACE_TRAINING_VENV"), filepath.Join(w.opts.root, ".local", "training-venv")),
	}
}

func (l *learning) set(state, detail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.detail = state, detail
}

func (l *learning) python() string { return filepath.Join(l.venv, "bin", "python") }

// run makes the environment and starts MLflow, and returns when both are there or ctx
// has ended.
func (l *learning) run(ctx context.Context) {
	began := time.Now()
	for {
		err := l.install(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		again := time.Now().Add(l.rest)
		l.set("failed", fmt.Sprintf("no training before %s: %v", again.Format("15:04"), err))
		l.event("learning", fmt.Sprintf("no models can be trained: %v. The rest runs on, with the models that are there. It is tried again at %s, or when `make training-venv` has done it",
			err, again.Format(time.TimeOnly)), true)
		if !l.awaitRetry(ctx, again) {
			return
		}
	}
	if took := time.Since(began); took > time.Second {
		l.event("learning", fmt.Sprintf("the trainer's environment was made in %v", took.Round(time.Second)), false)
	}
	close(l.ready)
	if !l.ownRegistry() {
		l.set("up", "MLflow at "+redactedURL(l.registryURL()))
		return
	}
	l.set("starting", "MLflow starts")
	for {
		err := l.startRegistry(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		l.set("failed", err.Error())
		l.event(mlflow, fmt.Sprintf("cannot be started: %v; it is tried again", err), true)
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// stop ends MLflow. run has returned.
func (l *learning) stop(ctx context.Context) {
	l.mu.Lock()
	child := l.child
	l.mu.Unlock()
	stopAll(ctx, child)
}

// awaitRetry waits for a time, or until somebody else has made the environment; false
// says that ctx has ended.
func (l *learning) awaitRetry(ctx context.Context, until time.Time) bool {
	look := time.NewTicker(min(lookSetup, l.rest))
	defer look.Stop()
	for time.Now().Before(until) {
		select {
		case <-look.C:
			if r, err := l.requirements(); err == nil && l.made(r) {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// requirements are what the environment is made of: the file, its sum, and that of the
// requirements of the trainer's tests besides.
type requirements struct{ file, sum, sumAll string }

func (l *learning) requirements() (r requirements, err error) {
	folder := filepath.Join(l.opts.root, "infra", "training")
	all, err := filepath.Glob(filepath.Join(folder, "requirements*.txt"))
	if err != nil || len(all) == 0 {
		return r, fmt.Errorf("there is no requirements.txt in %s", folder)
	}
	r.file = filepath.Join(folder, "requirements.txt")
	if r.sumAll, err = sumOf(all...); err != nil {
		return r, err
	}
	r.sum, err = sumOf(r.file)
	return r, err
}

// made tells whether the environment is there: the runner's own or that of
// `make training-venv`, which has more.
func (l *learning) made(r requirements) bool {
	return supervise.Executable(l.python()) == nil &&
		(firstWord(filepath.Join(l.venv, "made")) == r.sumAll || firstWord(filepath.Join(l.venv, "made-to-run")) == r.sum)
}

// install makes the Python environment of the trainer's requirements, unless it is
// there.
func (l *learning) install(ctx context.Context) error {
	r, err := l.requirements()
	if err != nil {
		return err
	}
	if l.made(r) {
		return nil
	}
	l.set("installing", "installing the trainer and MLflow: some minutes, once")
	// Runners with states of their own share it.
	lock, err := os.OpenFile(l.venv+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the trainer's environment: %w", err)
	}
	defer func() { _ = lock.Close() }()
	for syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l.made(r) {
		return nil
	}
	python, err := findPython(ctx)
	if err != nil {
		return err
	}
	// Behind everything else, but not so far that a busy machine never comes to it. Of what
	// is installed little is ever imported, and compiled then: compiling all of it would be
	// two fifths of the work.
	const script = `set -e
[ -x "$VENV/bin/pip" ] || nice -n 5 "$PYTHON" -m venv "$VENV"
exec nice -n 5 "$VENV/bin/pip" install -q --no-compile --disable-pip-version-check -r "$REQUIREMENTS"`
	how, tail, err := l.sup.RunOnce(ctx, supervise.Spec{
		Name: setupName, Path: "/bin/sh", Args: []string{"-c", script},
		Env: append(baseEnv(), append(pipEnv(), "VENV="+l.venv, "PYTHON="+python, "REQUIREMENTS="+r.file)...),
	})
	if err != nil {
		return err
	}
	if how != supervise.Succeeded {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		//nolint:staticcheck // ST1005: a name
		return fmt.Errorf("Python packages missing: %s; more in %s", whyNot(tail, how), filepath.Join(l.opts.state, "log", setupName+".log"))
	}
	return os.WriteFile(filepath.Join(l.venv, "made-to-run"), []byte(r.sum+"\n"), 0o644)
}

// whyNot finds in what pip has printed why it failed. Of a network that is away it says
// at last only that no version of the first package was found.
func whyNot(printed []string, how string) string {
	network, last := "", how
	for _, text := range printed {
		if _, found, ok := strings.Cut(text, "connection broken by"); ok {
			reason := "no answer"
			if i := strings.LastIndex(found, "[Errno "); i >= 0 {
				reason, _, _ = strings.Cut(found[i:], "'")
				_, reason, _ = strings.Cut(reason, "] ")
			}
			network = "package index: " + reason
		}
		if text = strings.TrimSpace(text); text != "" {
			last = strings.TrimPrefix(text, "ERROR: ")
		}
	}
	if network != "" {
		return network
	}
	return last
}

// pipEnv are the user's settings of where packages come from.
func pipEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return !strings.HasPrefix(name, "PIP_") && !strings.HasSuffix(strings.ToLower(name), "_proxy")
	})
}

// findPython finds a Python that is new enough and can make environments.
func findPython(ctx context.Context) (string, error) {
	const check = `import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))`
	found := ""
	for _, name := range []string{"python3", "python3.13", "python3.12", "python3.11"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if exec.CommandContext(ctx, path, "-c", check).Run() == nil {
			return path, nil
		}
		found = path
	}
	if found != "" {
		return "", fmt.Errorf("%s is older than 3.11, or lacks the modules venv and ensurepip", found)
	}
	return "", errors.New("there is no python3")
}

func sumOf(files ...string) (string, error) {
	slices.Sort(files)
	sum := sha256.New()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("reading the trainer's requirements: %w", err)
		}
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func firstWord(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	word, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	return word
}

// startRegistry starts MLflow, and waits until it answers.
func (l *learning) startRegistry(ctx context.Context) error {
	store, err := l.s3.Connect()
	if err != nil {
		return err
	}
	if _, err := store.EnsureBucket(ctx, mlflow); err != nil {
		return err
	}
	backend, err := l.registryDatabase(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	child := l.child
	l.mu.Unlock()
	if child == nil {
		if child, err = l.sup.Start(l.registrySpec(backend)); err != nil { //nolint:contextcheck // a child outlives the context of its start
			return err
		}
		l.mu.Lock()
		l.child = child
		l.mu.Unlock()
	}
	// It takes a busy machine minutes to start the first time.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for child.Status().State != supervise.Ready {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return child.WaitReady(ctx)
		}
	}
	l.set("up", "MLflow at "+l.registryURL())
	l.event(mlflow, "is up at "+l.registryURL(), false)
	return nil
}

// registryDatabase is where MLflow keeps what it knows: a database of its own in the
// server that runs here. In one that the user named nothing is made: a file it is then.
func (l *learning) registryDatabase(ctx context.Context) (string, error) {
	if l.database.server == nil {
		dir := l.parts.state.join("data", mlflow)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return "", fmt.Errorf("making the folder of MLflow: %w", err)
		}
		return "sqlite:///" + filepath.Join(dir, "mlflow.db"), nil
	}
	var there bool
	if err := l.database.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, mlflow).Scan(&there); err != nil {
		return "", fmt.Errorf("looking for MLflow's database: %w", err)
	}
	if !there {
		if _, err := l.database.pool.Exec(ctx, `CREATE DATABASE `+mlflow); err != nil {
			return "", fmt.Errorf("making MLflow's database: %w", err)
		}
	}
	u, err := url.Parse(l.database.url)
	if err != nil {
		return "", fmt.Errorf("naming MLflow's database: %w", err)
	}
	u.Scheme, u.Path = "postgresql+psycopg", "/"+mlflow
	return u.String(), nil
}

// registrySpec is the MLflow server: what `mlflow server` starts, without the process
// that would wait beside it with the same 200 MB. Its variables are those that the
// command passes on; requirements.txt pins the version that has them.
func (l *learning) registrySpec(backend string) supervise.Spec {
	dir := l.parts.state.join("data", mlflow)
	return supervise.Spec{
		Name: mlflow, Path: "/bin/sh",
		Args: []string{"-c", `mkdir -p "$1" && cd "$1" && exec "$2" -m uvicorn --host 127.0.0.1 --port "$3" --workers 1 --no-access-log mlflow.server.fastapi_app:app`,
			"sh", dir, l.python(), strconv.Itoa(l.ports[mlflow])},
		Env: append(baseEnv(),
			"_MLFLOW_SERVER_FILE_STORE="+backend, "_MLFLOW_SERVER_SERVE_ARTIFACTS=true",
			"_MLFLOW_SERVER_ARTIFACT_ROOT=mlflow-artifacts:/", "_MLFLOW_SERVER_ARTIFACT_DESTINATION=s3://"+mlflow+"/artifacts",
			"MLFLOW_S3_ENDPOINT_URL="+l.s3.Endpoint, "AWS_DEFAULT_REGION="+l.s3.Region, "AWS_ACCESS_KEY_ID="+l.s3.AccessKey, "AWS_SECRET_ACCESS_KEY="+l.s3.SecretKey,
			"AWS_REQUEST_CHECKSUM_CALCULATION=when_required", "AWS_EC2_METADATA_DISABLED=true",
			"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=2", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=4",
			"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true",
			"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "MALLOC_ARENA_MAX=2",
		),
		Ready: l.answers("http://" + local(l.ports[mlflow]) + "/health"), StopTimeout: 15 * time.Second,
	}
}

// jobEnv waits until the trainer can run, and gives what its command needs to find it.
func (l *learning) jobEnv(ctx context.Context) ([]string, error) {
	select {
	case <-l.ready:
		return []string{"TRAINING_PYTHON=" + l.python(), "MALLOC_ARENA_MAX=2"}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func redactedURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "MLFLOW_TRACKING_URI"
	}
	return u.Redacted()
}

// LearningStatus is about the training of models.
type LearningStatus struct {
	// State is off, waiting, installing, starting, up or failed; Detail says more.
	State  string          `json:"state"`
	Detail string          `json:"detail,omitempty"`
	Models []ModelLearning `json:"models,omitempty"`
}

// ModelLearning is what was decided about a model last.
type ModelLearning struct {
	Model string `json:"model"`
	// Version serves since that time; "" before the first was promoted.
	Version string    `json:"version,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	// Run is the state of the last run: requested, completed, judged or failed.
	Run     string `json:"lastRun,omitempty"`
	Failure string `json:"failure,omitempty"`
	// Decision and Reason are the newest.
	Decision string `json:"decision,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// measureLearning reads what train-trigger has decided.
func (c *collector) measureLearning(ctx context.Context) ([]ModelLearning, error) {
	if c.parts.database.pool == nil || !c.parts.learns() {
		return nil, nil
	}
	rows, err := c.parts.database.pool.Query(ctx, `SELECT m.model, coalesce(s.version, ''), coalesce(s.moved_at, 'epoch'), coalesce(r.state, ''),
			coalesce(r.reason || ': ' || r.message, ''), coalesce(d.decision, ''), coalesce(d.reason, '')
		FROM learning.models m
		LEFT JOIN LATERAL (SELECT * FROM learning.runs r WHERE r.model = m.model ORDER BY run_id DESC LIMIT 1) r ON true
		LEFT JOIN LATERAL (SELECT * FROM learning.decisions d WHERE d.model = m.model AND moved_at IS NOT NULL ORDER BY decision_id DESC LIMIT 1) s ON true
		LEFT JOIN LATERAL (SELECT * FROM learning.decisions d WHERE d.model = m.model ORDER BY decision_id DESC LIMIT 1) d ON true
		ORDER BY 1`)
	var found []ModelLearning
	if err == nil {
		defer rows.Close()
		for rows.Next() {
			var m ModelLearning
			if err := rows.Scan(&m.Model, &m.Version, &m.Since, &m.Run, &m.Failure, &m.Decision, &m.Reason); err != nil {
				return nil, fmt.Errorf("reading what was learnt: %w", err)
			}
			found = append(found, m)
		}
		err = rows.Err()
	}
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was learnt: %w", err)
	}
	return found, nil
}

// status is what the screen shows.
func (l *learning) status() LearningStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LearningStatus{State: l.state, Detail: l.detail}
}

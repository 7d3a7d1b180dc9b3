package main

import (
	"archive/zip"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
)

// TestWithoutPackages starts the platform where no Python package can be had: everything
// but the training runs, starter models are served, and the status says what is missing,
// why, and when it is tried again.
func TestWithoutPackages(t *testing.T) {
	needPython(t)
	p := newPlatform(t, "NO_LEARNING=", "MILLRACE_TRAINING_VENV="+filepath.Join(t.TempDir(), "venv"),
		"PIP_INDEX_URL=http://"+local(freePorts(t, 1))+"/simple", "PIP_RETRIES=1", "PIP_CONFIG_FILE="+os.DevNull, "PIP_FIND_LINKS=", "PIP_EXTRA_INDEX_URL=",
		"MILLRACE_FUNCTIONS=predict,train-trigger,store,featurize")
	p.start()
	p.needDatabase()
	var s Status
	eventually(t, "the failure is told", func() bool {
		var err error
		s, err = p.askStatus()
		return err == nil && s.Learning.State == "failed"
	}, func() string { return s.Learning.State + " " + s.Learning.Detail })
	if d := s.Learning.Detail; !strings.HasPrefix(d, "no training before ") || !strings.Contains(d, "Python packages missing: package index: Connection refused; more in ") || strings.Contains(d, "\n") {
		t.Errorf("the status says %q", d)
	}
	eventually(t, "it is told once as an event", func() bool { return strings.Contains(p.out.String(), "It is tried again at ") }, p.out.String)

	predict, ok := p.process("predict")
	if !ok {
		t.Fatal("there is no predict")
	}
	if status, body := post(t, "http://"+predict.Address+"/predict", `[{"features":{"price":5}}]`); status != http.StatusOK || !strings.Contains(body, `"model_version":"starter"`) {
		t.Errorf("%d %s", status, body)
	}
	for _, f := range s.Processes {
		if f.State != "ready" || f.Restarts > 0 {
			t.Errorf("%s is %s, and was started again %d times", f.Name, f.State, f.Restarts)
		}
	}
	if _, there := p.process(mlflow); there || s.DeadLetters != 0 {
		t.Errorf("MLflow runs: %v; %d dead letters", there, s.DeadLetters)
	}
	p.stop()
}

func needPython(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("makes a Python environment")
	}
	if _, err := findPython(t.Context()); err != nil {
		t.Skip(err)
	}
}

// TestInstallationIsTriedAgain lets a package be had that could not be had at first.
func TestInstallationIsTriedAgain(t *testing.T) {
	needPython(t)
	t.Setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000") // none is to be started
	venv := filepath.Join(t.TempDir(), "venv")                    // making one takes longest
	for _, c := range []struct {
		name, module string
		rest         time.Duration
	}{{"after a while", "millrace_nothing", time.Second}, {"when somebody else has made it", "millrace_less", time.Hour}} {
		t.Run(c.name, func(t *testing.T) {
			root, links, name := t.TempDir(), t.TempDir(), strings.ReplaceAll(c.module, "_", "-")
			for _, v := range []string{"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} {
				t.Setenv(v, "")
			}
			t.Setenv("PIP_NO_INDEX", "1")
			t.Setenv("PIP_FIND_LINKS", links)
			t.Setenv("PIP_CONFIG_FILE", os.DevNull)
			t.Setenv("MILLRACE_TRAINING_VENV", venv)
			if err := os.MkdirAll(filepath.Join(root, "infra", "training"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(root, "infra", "training", "requirements.txt"), name+"==1.0\n")
			sup := supervise.New(t.TempDir(), t.TempDir(), func(supervise.Event) {})
			var mu sync.Mutex
			var told []string
			l := newLearning(&parts{
				opts: options{root: root, state: root}, database: database{url: "postgres://x"},
				platform: &platform{services: []service{{name: learner}}},
			}, sup, func(_, text string, _ bool) { mu.Lock(); defer mu.Unlock(); told = append(told, text) })
			l.rest = c.rest
			done := make(chan struct{})
			go func() { defer close(done); l.run(t.Context()) }()
			now := func() string { s := l.status(); return s.State + " " + s.Detail }
			eventually(t, "it fails", func() bool { return l.status().State == "failed" }, now)
			if d := l.status().Detail; !strings.Contains(d, "Python packages missing: No matching distribution found for "+name+"==1.0; more in "+filepath.Join(root, "log", "learning-setup.log")) {
				t.Errorf("the status says %q", d)
			}
			wheel(t, links, c.module)
			if c.rest == time.Hour {
				// What `make training-venv` does.
				if out, err := exec.CommandContext(t.Context(), filepath.Join(l.venv, "bin", "pip"), "install", "-q", "--disable-pip-version-check", name).CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				r, err := l.requirements()
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(l.venv, "made"), r.sumAll+"  -\n")
			}
			eventually(t, "it is there", func() bool { return l.status().State == "up" }, now)
			<-done
			env, err := l.jobEnv(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			python := strings.TrimPrefix(env[0], "TRAINING_PYTHON=")
			if out, err := exec.CommandContext(t.Context(), python, "-c", "import "+c.module).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(told) == 0 || !strings.Contains(told[0], "It is tried again at ") {
				t.Errorf("told %q", told)
			}
		})
	}
}

// wheel writes a package that has nothing in it.
func wheel(t *testing.T, folder, module string) {
	t.Helper()
	f, err := os.Create(filepath.Join(folder, module+"-1.0-py3-none-any.whl.part"))
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	info := module + "-1.0.dist-info/"
	for name, text := range map[string]string{
		module + ".py": "", info + "METADATA": "Metadata-Version: 2.1\nName: " + module + "\nVersion: 1.0\n",
		info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n", info + "RECORD": "",
	} {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// Found whole or not at all.
	if err := os.Rename(f.Name(), strings.TrimSuffix(f.Name(), ".part")); err != nil {
		t.Fatal(err)
	}
}

// What pip says of a network that is away is put in a few words.
func TestWhyPipFailed(t *testing.T) {
	const retrying = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by '"
	const none = "ERROR: No matching distribution found for x==1"
	for _, c := range []struct {
		printed []string
		want    string
	}{
		{[]string{retrying + "NewConnectionError('<HTTPConnection object at 0x7f>: Failed to establish a new connection: [Errno 111] Connection refused')': /simple/x/", none}, "package index: Connection refused"},
		{[]string{retrying + `ReadTimeoutError("HTTPConnectionPool(host='h', port=80): Read timed out. (read timeout=15)")': /simple/x/`, none}, "package index: no answer"},
		{[]string{"ERROR: Could not find a version", none}, "No matching distribution found for x==1"},
		{[]string{"ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ""}, "Could not install packages due to an OSError: [Errno 28] No space left on device"},
		{nil, "exit code 1"},
	} {
		if diff := cmp.Diff(c.want, whyNot(c.printed, "exit code 1")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.printed, diff)
		}
	}
}

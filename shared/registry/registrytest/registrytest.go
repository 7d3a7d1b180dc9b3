// Package registrytest gives tests a real MLflow server, with PostgreSQL for what it
// knows and an object store for artifacts, and does what a trainer would do with it.
//
// MLflow is a Python program with many dependencies. Tests are skipped unless the
// variable Program names one that is installed; make test-mlflow installs it.
package registrytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
	"github.com/millrace-dev/millrace/shared/model/modeltest"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

// Program is the environment variable that names the mlflow program.
const Program = "TEST_MLFLOW"

// Server is an MLflow server that lives until the test ends.
type Server struct {
	// URL is its address, for MLFLOW_TRACKING_URI. It stays the same when it starts
	// again.
	URL string
	// Store and Bucket are where its artifacts are.
	Store  *lake.Store
	Bucket string

	t       testing.TB
	program string
	args    []string
	env     []string
	log     string
	cmd     *exec.Cmd
}

// Start starts a server, or skips the test. The package's TestMain has to be
// pgtest.Main.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, program: os.Getenv(Program), log: filepath.Join(t.TempDir(), "mlflow.log")}
	if s.program == "" {
		t.Skipf("%s is not set: no MLflow server (make test-mlflow installs one)", Program)
	}
	database, err := url.Parse(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	database.Scheme = "postgresql+psycopg2"
	c := laketest.Start(t)
	if s.Store, err = c.Connect(); err != nil {
		t.Fatal(err)
	}
	s.Bucket = laketest.Bucket()
	if _, err := s.Store.EnsureBucket(t.Context(), s.Bucket); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	s.URL = fmt.Sprintf("http://127.0.0.1:%d", port)
	s.args = []string{"server", "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--workers", "1",
		"--backend-store-uri", database.String(), "--artifacts-destination", "s3://" + s.Bucket + "/proxied"}
	s.env = append(os.Environ(), "MLFLOW_S3_ENDPOINT_URL="+c.Endpoint, "AWS_ACCESS_KEY_ID="+c.AccessKey, "AWS_SECRET_ACCESS_KEY="+c.SecretKey,
		"AWS_DEFAULT_REGION="+c.Region, "AWS_REQUEST_CHECKSUM_CALCULATION=when_required", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
		"MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true", "PATH="+filepath.Dir(s.program)+":"+os.Getenv("PATH"))
	t.Cleanup(s.Kill)
	s.Restart()
	return s
}

// Restart starts the server that was killed and returns when it answers.
func (s *Server) Restart() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.cmd = exec.Command(s.program, s.args...) //nolint:gosec,noctx // the program that the environment names; killed by Kill
	s.cmd.Dir, s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = filepath.Dir(s.log), s.env, log, log
	// It starts processes of its own, which are to end with it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("starting MLflow: %v", err)
	}
	for deadline := time.Now().Add(4 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if s.answers() {
			return
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(s.log)
			s.t.Fatalf("MLflow does not answer:\n%s", text[max(0, len(text)-4000):])
		}
	}
}

func (s *Server) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/health", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// Kill kills the server and all of its processes.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Run makes a run whose artifacts are at location, or behind the server if that is
// empty. It returns the run's id and where its artifacts are.
func (s *Server) Run(experiment, location string) (id, artifacts string) {
	s.t.Helper()
	var e struct {
		ID string `json:"experiment_id"`
	}
	body := map[string]any{"name": experiment}
	if location != "" {
		body["artifact_location"] = location
	}
	s.post("experiments/create", body, &e)
	var r struct {
		Run struct {
			Info struct {
				ID  string `json:"run_id"`
				URI string `json:"artifact_uri"`
			} `json:"info"`
		} `json:"run"`
	}
	s.post("runs/create", map[string]any{"experiment_id": e.ID, "start_time": time.Now().UnixMilli()}, &r)
	return r.Run.Info.ID, r.Run.Info.URI
}

// Upload puts a bundle below the artifacts of a run, as folder bundle.
func (s *Server) Upload(artifacts string, f modeltest.Files) {
	s.t.Helper()
	u, err := url.Parse(artifacts)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, data := range f {
		path := strings.Trim(u.Path, "/") + "/bundle/" + name
		if u.Scheme == "s3" {
			if _, err := s.Store.Put(s.t.Context(), u.Host, path, data, "application/octet-stream", nil, lake.Condition{}); err != nil {
				s.t.Fatal(err)
			}
			continue
		}
		s.send(http.MethodPut, s.URL+"/api/2.0/mlflow-artifacts/artifacts/"+path, data, nil)
	}
}

func (s *Server) post(at string, body, answer any) {
	s.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.send(http.MethodPost, s.URL+"/api/2.0/mlflow/"+at, data, answer)
}

func (s *Server) send(method, to string, data []byte, answer any) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, to, bytes.NewReader(data))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	got, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: %d %s %v", method, to, response.StatusCode, got, err)
	}
	if answer != nil {
		if err := json.Unmarshal(got, answer); err != nil {
			s.t.Fatal(err)
		}
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it listens at once
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
}

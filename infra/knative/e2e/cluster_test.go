package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	namespace = "millrace"
	overlay   = "infra/knative/overlays/test"
	// patience bounds every wait: much longer than anything takes that works, also on
	// a machine that has other things to do.
	patience = 4 * time.Minute
)

// deployed is the result of the one deployment that all tests share.
var deployed = sync.OnceValue(deploy)

// missing is why there is no cluster to test on.
type missing string

func (m missing) Error() string { return string(m) }

// given returns when the platform is on the cluster and ready, or skips the test.
func given(t *testing.T) {
	t.Helper()
	if os.Getenv("E2E") == "" {
		t.Skip("E2E is not set: make e2e sets it")
	}
	var m missing
	if err := deployed(); errors.As(err, &m) {
		t.Skip(string(m))
	} else if err != nil {
		dump(t)
		t.Fatalf("deploying: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dump(t)
		}
	})
}

// prerequisites tells what is missing to test on a cluster at all.
func prerequisites() error {
	for _, tool := range []string{"kubectl", "ko"} {
		if _, err := exec.LookPath(tool); err != nil {
			return missing(tool + " is not on the PATH")
		}
	}
	if os.Getenv("KO_DOCKER_REPO") == "" {
		return missing("KO_DOCKER_REPO is not set: name a registry that the cluster can pull from")
	}
	if out, err := kubectl("version", "--request-timeout=10s"); err != nil {
		return missing("no cluster answers: " + lastLine(out))
	}
	for _, crd := range []string{"services.serving.knative.dev", "brokers.eventing.knative.dev"} {
		if _, err := kubectl("get", "crd", crd); err != nil {
			return missing("the cluster has no " + crd + ": is Knative installed?")
		}
	}
	return nil
}

// deploy builds the images, applies the overlay and waits until all of it is ready.
// E2E=deployed takes what is there.
func deploy() error {
	if err := prerequisites(); err != nil {
		return err
	}
	if os.Getenv("E2E") != "deployed" {
		script := `{ kubectl kustomize ` + overlay + `; echo ---; cat infra/knative/e2e/subscriber/deployment.yaml; } |
			ko resolve --sbom=none -f - | kubectl apply --server-side --force-conflicts -f -`
		cmd := exec.Command("bash", "-o", "pipefail", "-c", script)
		cmd.Dir = "../../.."
		cmd.Env = append(os.Environ(), "KO_CONFIG_PATH=ko.yaml")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w:\n%s", err, out)
		}
	}
	for _, wait := range [][]string{
		{"deployment", "--for=condition=Available"},
		{"kservice", "--for=condition=Ready"},
		{"broker", "--for=condition=Ready"},
		{"trigger", "--for=condition=Ready"},
		{"sinkbinding,pingsource", "--for=condition=Ready"},
	} {
		if out, err := kubectl("-n", namespace, "wait", wait[0], "--all", wait[1], "--timeout="+patience.String()); err != nil {
			return fmt.Errorf("waiting for every %s: %w:\n%s", wait[0], err, out)
		}
	}
	return nil
}

// kubectl runs kubectl and returns what it printed.
func kubectl(args ...string) (string, error) {
	out, err := exec.Command("kubectl", args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// get is kubectl in the namespace, for a test that can not go on without.
func get(t *testing.T, args ...string) string {
	t.Helper()
	out, err := kubectl(append([]string{"-n", namespace}, args...)...)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// dump logs what one wants to see after a failure.
func dump(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "kservice,broker,trigger,pingsource,sinkbinding,deployment,pod", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "-l", "app.kubernetes.io/name=validate", "-c", "validate", "--tail=40", "--prefix"},
		{"logs", "-l", "app.kubernetes.io/name=deadletter", "-c", "deadletter", "--tail=40", "--prefix"},
		{"logs", "-l", "app.kubernetes.io/name=lake", "-c", "lake", "--tail=40", "--prefix"},
		{"logs", "-l", "app.kubernetes.io/name=predict", "-c", "predict", "--tail=40", "--prefix"},
		{"logs", "-l", "app.kubernetes.io/name=relay", "--tail=40", "--prefix"},
		{"logs", "-l", "app.kubernetes.io/name=kafka", "--tail=20", "--prefix"},
	} {
		out, err := kubectl(append([]string{"-n", namespace}, args...)...)
		if err != nil {
			out = err.Error() + "\n" + out
		}
		if lines := strings.Split(out, "\n"); len(lines) > 80 {
			out = "...\n" + strings.Join(lines[len(lines)-80:], "\n")
		}
		t.Logf("--- kubectl %s\n%s", strings.Join(args, " "), out)
	}
}

// eventually waits for a condition, which says why it does not hold yet.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		case <-tick.C:
		}
	}
}

// forward makes a port of a Service reachable from here, for as long as the test
// runs, and returns its address.
func forward(t *testing.T, ns, service, port string) string {
	t.Helper()
	cmd := exec.Command("kubectl", "-n", ns, "port-forward", "service/"+service, ":"+port)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "Forwarding from 127.0.0.1:"); ok {
			local, _, _ := strings.Cut(rest, " ")
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return net.JoinHostPort("127.0.0.1", local)
		}
	}
	t.Fatalf("forwarding to %s/%s: %s", ns, service, stderr.String())
	return ""
}

// endpoint is an address inside the cluster, reached from here.
type endpoint struct {
	url, host string
}

// reach makes an in-cluster URL reachable: by a port-forward to the Service that its
// host names or, for a Knative Service, to the ingress behind it.
func reach(t *testing.T, address string) endpoint {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(u.Hostname(), ".")
	if len(parts) < 3 {
		t.Fatalf("%s is no address of a Service", address)
	}
	service, ns := parts[0], parts[1]
	out, err := kubectl("-n", ns, "get", "service", service, "-o", "jsonpath={.spec.externalName}")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if parts := strings.Split(out, "."); len(parts) > 2 {
		service, ns = parts[0], parts[1]
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return endpoint{url: "http://" + forward(t, ns, service, port) + u.Path, host: u.Host}
}

// request sends a request and returns status and body.
func (e endpoint) request(ctx context.Context, method, path string, header http.Header, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, e.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Host = e.host
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: 2 * time.Minute}

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	edgeHost     = "predict.127.0.0.1.sslip.io"
	shopToken    = "test-token-of-the-shop"
	partnerToken = "test-token-of-a-partner"
	// What e2e/edge bounds a token to, at once.
	edgeBurst = 20
)

// What people call is reached by its public name alone, over TLS with a certificate that
// cert-manager has issued for it, with a token, at a bounded rate; and events are not
// taken there.
func TestEdge(t *testing.T) {
	givenEdge(t)
	ca, err := base64.StdEncoding.DecodeString(mustKubectl(t, "-n", "cert-manager", "get", "secret", "millrace-edge-ca", "-o", `jsonpath={.data.ca\.crt}`))
	if err != nil {
		t.Fatal(err)
	}
	gateway := map[string]string{
		"http":  forward(t, "kourier-system", "kourier", "80"),
		"https": forward(t, "kourier-system", "kourier", "443"),
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(ca) {
		t.Fatalf("no certificate: %s", ca)
	}
	client := &http.Client{
		Timeout: 2 * time.Minute,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
			// The name leads to the gateway's port on this machine.
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				scheme := "http"
				if strings.HasSuffix(address, ":443") {
					scheme = "https"
				}
				return (&net.Dialer{}).DialContext(ctx, network, gateway[scheme])
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(client.CloseIdleConnections)
	// ask repeats what did not reach the gateway, or what is behind it, and returns
	// what was answered.
	ask := func(method, url, host, token string, header http.Header, body []byte) (answer *http.Response, text []byte) {
		t.Helper()
		eventually(t, method+" "+url, func() error {
			r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(string(body)))
			if err != nil {
				return err
			}
			r.Host = host
			r.Header.Set("Content-Type", "application/json")
			for k, v := range header {
				r.Header[k] = v
			}
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			if answer, err = client.Do(r); err != nil {
				return err
			}
			defer func() { _ = answer.Body.Close() }()
			text, err = io.ReadAll(answer.Body)
			if err == nil && answer.StatusCode >= http.StatusBadGateway {
				err = fmt.Errorf("%d %s", answer.StatusCode, text)
			}
			return err
		})
		return answer, text
	}
	public := "https://" + edgeHost
	body, want := question(t)

	t.Run("the certificate is cert-manager's", func(t *testing.T) {
		answer, _ := ask(http.MethodGet, public+"/v2/health/ready", "", "", nil, nil)
		leaf := answer.TLS.PeerCertificates[0]
		if answer.StatusCode != http.StatusOK || leaf.Issuer.CommonName != "millrace-edge-ca" || leaf.VerifyHostname(edgeHost) != nil {
			t.Errorf("%d, issued by %s for %v", answer.StatusCode, leaf.Issuer, leaf.DNSNames)
		}
		t.Logf("%s, issued by %s for %v until %s", tls.VersionName(answer.TLS.Version), leaf.Issuer, leaf.DNSNames, leaf.NotAfter)
		// Nobody else would trust it.
		_, err := (&tls.Dialer{Config: &tls.Config{ServerName: edgeHost, MinVersion: tls.VersionTLS12}}).DialContext(t.Context(), "tcp", gateway["https"])
		if _, unknown := errors.AsType[*tls.CertificateVerificationError](err); !unknown {
			t.Errorf("without the authority: %v", err)
		}
	})
	t.Run("without TLS one is sent to where there is", func(t *testing.T) {
		answer, _ := ask(http.MethodPost, "http://"+edgeHost+"/predict", "", shopToken, nil, body)
		if at := answer.Header.Get("Location"); answer.StatusCode != http.StatusMovedPermanently || at != public+"/predict" {
			t.Errorf("%d to %q", answer.StatusCode, at)
		}
	})
	t.Run("a token is asked for", func(t *testing.T) {
		for _, path := range []string{"/predict", "/v1/models/purchase_prediction_model:predict", "/v2/models/purchase_prediction_model/infer"} {
			for _, token := range []string{"", "not-the-token-of-anybody"} {
				answer, text := ask(http.MethodPost, public+path, "", token, nil, body)
				if answer.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(answer.Header.Get("WWW-Authenticate"), `Bearer realm="predict-api"`) ||
					answer.Header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("%s with %q: %d %v %s", path, token, answer.StatusCode, answer.Header, text)
				}
			}
		}
		// The gateway is a way to the metrics that Prometheus does not take.
		if answer, text := ask(http.MethodGet, public+"/metrics", "", "", nil, nil); answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("/metrics: %d %.100s", answer.StatusCode, text)
		}
		for _, token := range []string{shopToken, partnerToken} {
			answer, text := ask(http.MethodPost, public+"/predict", "", token, nil, body)
			if err := right(answer.StatusCode, text, want); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("events come in by no way", func(t *testing.T) {
		event := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"/outside"}, "Ce-Type": {"dev.millrace.features.ready.v1"}}
		if answer, text := ask(http.MethodPost, public+"/", "", shopToken, event, []byte("{}")); answer.StatusCode != http.StatusForbidden {
			t.Errorf("an event from outside: %d %s", answer.StatusCode, text)
		}
		// Names of the cluster lead nowhere from outside.
		for _, service := range []string{"predict", "predict-api"} {
			host := service + "." + namespace + ".svc.cluster.local"
			if answer, text := ask(http.MethodPost, "http://"+edgeHost+"/", host, shopToken, event, []byte("{}")); answer.StatusCode != http.StatusNotFound {
				t.Errorf("an event for %s from outside: %d %s", host, answer.StatusCode, text)
			}
		}
	})
	t.Run("the rate is bounded for each token", func(t *testing.T) {
		limited := 0
		for range edgeBurst + 10 {
			answer, text := ask(http.MethodPost, public+"/predict", "", shopToken, nil, body)
			if answer.StatusCode == http.StatusTooManyRequests {
				limited++
				if wait, err := strconv.Atoi(answer.Header.Get("Retry-After")); err != nil || wait < 1 || wait > 2 {
					t.Errorf("Retry-After: %v: %s", answer.Header, text)
				}
				continue
			}
			if err := right(answer.StatusCode, text, want); err != nil {
				t.Fatal(err)
			}
		}
		answer, text := ask(http.MethodPost, public+"/predict", "", partnerToken, nil, body)
		if err := right(answer.StatusCode, text, want); err != nil || limited == 0 {
			t.Errorf("%d of %d requests were refused; of another token: %v", limited, edgeBurst+10, err)
		}
		t.Logf("%d of %d requests at once were refused", limited, edgeBurst+10)
	})
}

// givenEdge returns when predict-api is on the cluster and reached by its public name, or
// skips the test where there is nothing to reach it by.
func givenEdge(t *testing.T) {
	t.Helper()
	if os.Getenv("E2E") == "" {
		t.Skip("E2E is not set: make e2e sets it")
	}
	var m missing
	if err := prerequisites(); errors.As(err, &m) {
		t.Skip(string(m))
	}
	for _, there := range [][]string{{"clusterissuer", "millrace-edge"}, {"-n", "kourier-system", "service", "kourier"}} {
		if _, err := kubectl(append([]string{"get"}, there...)...); err != nil {
			t.Skipf("the cluster has no %s: infra/knative/edge/up brings it", strings.Join(there, " "))
		}
	}
	script := `kubectl apply -f infra/knative/base/namespace.yaml && kubectl kustomize infra/knative/e2e/edge |
		ko resolve --sbom=none -f - | kubectl apply --server-side --force-conflicts -f -`
	cmd := exec.Command("bash", "-o", "pipefail", "-c", script)
	cmd.Dir = "../../.."
	cmd.Env = append(os.Environ(), "KO_CONFIG_PATH=ko.yaml")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, args := range [][]string{
				{"-n", namespace, "get", "kservice,route,domainmapping,king,kcert,certificate,certificaterequest,pod", "-o", "wide"},
				{"-n", namespace, "describe", "domainmapping,kcert,certificate"},
				{"-n", namespace, "logs", "-l", "serving.knative.dev/service=predict-api", "-c", "predict", "--tail=40"},
				{"-n", "cert-manager", "logs", "-l", "app=cert-manager", "--tail=40"},
				{"-n", "knative-serving", "logs", "-l", "app=net-kourier-controller", "--tail=40"},
			} {
				out, err := kubectl(args...)
				t.Logf("--- kubectl %s (%v)\n%s", strings.Join(args, " "), err, out)
			}
		}
		_, _ = kubectl("-n", namespace, "delete", "domainmapping", edgeHost, "--ignore-not-found")
		_, _ = kubectl("-n", namespace, "delete", "kservice", "predict-api", "--ignore-not-found")
	})
	for _, what := range []string{"kservice/predict-api", "domainmapping/" + edgeHost} {
		eventually(t, what+" is ready", func() error {
			out, err := kubectl("-n", namespace, "get", what, "-o", "json")
			if err != nil {
				return errors.New(out)
			}
			var o struct {
				Metadata struct{ Generation int64 }
				Status   struct {
					ObservedGeneration int64
					Conditions         []struct{ Type, Status, Message string }
				}
			}
			if err := json.Unmarshal([]byte(out), &o); err != nil {
				return err
			}
			if o.Status.ObservedGeneration != o.Metadata.Generation {
				return errors.New("the change was not seen yet")
			}
			for _, c := range o.Status.Conditions {
				if c.Type == "Ready" && c.Status == "True" {
					return nil
				}
			}
			return fmt.Errorf("%+v", o.Status.Conditions)
		})
	}
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := kubectl(args...)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return out
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// alertmanager starts the real one where it is at hand: the program that
// ALERTMANAGER_PROGRAM names, or one of its usual names on the path.
func alertmanager(t *testing.T) string {
	t.Helper()
	program := os.Getenv("ALERTMANAGER_PROGRAM")
	for _, name := range []string{"alertmanager", "prometheus-alertmanager"} {
		if path, err := exec.LookPath(name); program == "" && err == nil {
			program = path
		}
	}
	if program == "" {
		t.Skip("no Alertmanager here: install prometheus-alertmanager, or name it by ALERTMANAGER_PROGRAM")
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "alertmanager.yml")
	if err := os.WriteFile(config, []byte("route: {receiver: none}\nreceivers: [{name: none}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "--config.file="+config, "--storage.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--cluster.listen-address=")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay, cmd.Stderr = 10*time.Second, t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); _ = cmd.Wait() })
	url := "http://" + address
	eventually(t, "Alertmanager", func() bool {
		status, _ := fetch(t, url+"/-/ready")
		return status == http.StatusOK
	})
	return url
}

func fetch(t *testing.T, url string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, body
}

// A real Alertmanager has an alert while it is open, with its labels, and not after.
func TestAlertmanager_hasWhatIsOpen(t *testing.T) {
	url := alertmanager(t)
	db := database(t)
	a := start(t, db, map[string]string{"ALERTMANAGER_URL": url})
	ctx, stop := context.WithCancel(t.Context())
	done := a.start(ctx)
	defer func() { stop(); <-done }()
	active := func() string {
		status, body := fetch(t, url+"/api/v2/alerts?active=true")
		var list []struct {
			Labels      map[string]string
			Annotations map[string]string
		}
		if err := json.Unmarshal(body, &list); status != http.StatusOK || err != nil {
			t.Fatalf("%d: %v", status, err)
		}
		out := ""
		for _, l := range list {
			out += fmt.Sprintln(l.Labels["alertname"], l.Labels["severity"], l.Labels["group"], l.Annotations["anomaly"])
		}
		return out
	}
	handle(t, a, anomalyEvent("1", "srv-1", "cpu", "high", 1))
	eventually(t, "the alert", func() bool { return active() == "anomaly high entity_type=server, entity=srv-1 cpu\n" })
	handle(t, a, overEvent("2", "srv-1", "cpu", 9))
	eventually(t, "its end", func() bool { return active() == "" })
	if got := rowsOf(t, db, `SELECT count(*) FILTER (WHERE failed_at IS NOT NULL) FROM alerts.deliveries`); got[0] != "0" {
		t.Error("deliveries failed")
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/eventing/conformance"
)

// The same table that the local runner's engine is tested with holds on Knative.
func TestConformance(t *testing.T) {
	given(t)
	broker := reach(t, get(t, "get", "broker", "default", "-o", "jsonpath={.status.address.url}"))
	k := &knative{
		ingress:    broker,
		subscriber: reach(t, "http://subscriber."+namespace+".svc.cluster.local"),
		filter:     reach(t, filterAddress),
		namespaces: map[string]string{},
	}
	k.prepare(t)
	conformance.Test(t, k)
}

// knative executes cases on the cluster: a namespace and a Broker a case, and one
// server that is every subscriber.
type knative struct {
	ingress, subscriber, filter endpoint

	namespaces map[string]string // by the case's name
}

// filterAddress is the plain Broker's part that filters, for all Brokers.
const filterAddress = "http://broker-filter.knative-eventing.svc.cluster.local"

// Has: the plain Broker keeps no order, and nothing speaks Kafka.
func (k *knative) Has(conformance.Feature) bool { return false }

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// prepare makes what all cases need at once, so that one becomes ready while others
// run: it takes seconds each.
func (k *knative) prepare(t *testing.T) {
	t.Helper()
	var all strings.Builder
	remove := []string{"delete", "namespace", "--wait=false", "--ignore-not-found"}
	for i, c := range conformance.Table() {
		if len(c.Needs) > 0 {
			continue
		}
		ns := strings.Trim(fmt.Sprintf("case-%d-%.30s", i+1, notName.ReplaceAllString(strings.ToLower(c.Name), "-")), "-")
		values := map[string]string{"namespace": ns, "topic": ns}
		for name, script := range c.Subscribers {
			path := "/" + ns + "/" + name
			body, err := json.Marshal(script)
			if err != nil {
				t.Fatal(err)
			}
			if status, answer, err := k.subscriber.request(t.Context(), http.MethodPut, path, nil, body); err != nil || status != http.StatusOK {
				t.Fatalf("making subscriber %s: %d %s %v", name, status, answer, err)
			}
			values[name] = "http://subscriber." + namespace + ".svc.cluster.local" + path
		}
		all.WriteString(conformance.Expand("apiVersion: v1\nkind: Namespace\nmetadata: {name: ${namespace}}\n---\n"+
			"apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata:\n  name: default\n  namespace: ${namespace}\n"+
			"  annotations: {eventing.knative.dev/broker.class: MTChannelBasedBroker}\n"+c.Manifests, values) + "\n---\n")
		k.namespaces[c.Name] = ns
		remove = append(remove, ns)
	}
	t.Cleanup(func() { _, _ = kubectl(remove...) })
	apply := exec.Command("kubectl", "apply", "-f", "-")
	apply.Stdin = strings.NewReader(all.String())
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("applying the manifests: %v:\n%s", err, out)
	}
}

func (k *knative) Start(t *testing.T, c conformance.Case) conformance.Run {
	t.Helper()
	ns := k.namespaces[c.Name]
	if out, err := kubectl("-n", ns, "wait", "broker,trigger", "--all", "--for=condition=Ready", "--timeout="+patience.String()); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	r := &caseRun{k: k, ns: ns, subscribers: c.Subscribers}
	r.begin(t)
	return r
}

type caseRun struct {
	k           *knative
	ns          string
	subscribers map[string]conformance.Script
}

// begin waits until the Broker accepts events and every Trigger is known to the
// part that filters: a Trigger is Ready before that has heard of it, and until then
// its events are lost. The event that this takes passes no case's filter but those
// that take all, and is not counted.
func (r *caseRun) begin(t *testing.T) {
	t.Helper()
	out, err := kubectl("-n", r.ns, "get", "subscription", "-o", "jsonpath={.items[*].spec.subscriber.uri}")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, address := range strings.Fields(out) {
		path, ok := strings.CutPrefix(address, filterAddress)
		if !ok {
			t.Fatalf("a Trigger filters at %s, not at %s", address, filterAddress)
		}
		eventually(t, address+" is there", func() error {
			status, body, err := r.k.filter.request(t.Context(), http.MethodPost, path, header(probe), []byte("{}"))
			if err == nil && status == http.StatusNotFound {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	}
	eventually(t, "the Broker of "+r.ns+" accepts events", func() error {
		status, body, err := r.post(t.Context(), probe)
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
}

var probe = conformance.Event{ID: "begin", Type: "begin", Source: "/begin", Data: "{}"}

func header(e conformance.Event) http.Header {
	h := http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {e.ID}, "Ce-Type": {e.Type}, "Ce-Source": {e.Source}, "Content-Type": {"application/json"},
	}
	if e.Subject != "" {
		h.Set("Ce-Subject", e.Subject)
	}
	for name, value := range e.Extensions {
		h.Set("Ce-"+name, value)
	}
	return h
}

func (r *caseRun) post(ctx context.Context, e conformance.Event) (int, []byte, error) {
	to := r.k.ingress
	to.url = strings.TrimSuffix(to.url, "/"+namespace+"/default") + "/" + r.ns + "/default"
	return to.request(ctx, http.MethodPost, "", header(e), []byte(e.Data))
}

func (r *caseRun) Send(ctx context.Context, e conformance.Event) error {
	status, body, err := r.post(ctx, e)
	if err != nil {
		return err
	}
	if status/100 != 2 {
		return fmt.Errorf("%d %s", status, body)
	}
	return nil
}

func (r *caseRun) Produce(context.Context, conformance.Record) error {
	return fmt.Errorf("nothing here reads Kafka")
}

// Deliveries are without those of begin's event.
func (r *caseRun) Deliveries(ctx context.Context, subscriber string) ([]conformance.Delivery, error) {
	status, body, err := r.k.subscriber.request(ctx, http.MethodGet, "/"+r.ns+"/"+subscriber, nil, nil)
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("%d %s %w", status, body, err)
	}
	var all []conformance.Delivery
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(d conformance.Delivery) bool { return strings.HasPrefix(d.Attributes["id"], "begin") }), nil
}

// Settle returns when no delivery has come for a while. The plain Broker tells
// nobody what it has under way; its retries here follow each other within
// milliseconds.
func (r *caseRun) Settle(ctx context.Context) error {
	const quiet = 6 // looks without anything new
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for last, same := -1, 0; same < quiet; {
		n := 0
		for name := range r.subscribers {
			d, err := r.Deliveries(ctx, name)
			if err != nil {
				return err
			}
			n += len(d)
		}
		if n == last {
			same++
		} else {
			last, same = n, 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/infra/local/internal/embedkafka"
	"github.com/millrace-dev/millrace/infra/local/internal/embeds3"
	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/lake"
)

// producer is the name of the load generator among the parts.
const producer = "loadgen"

// parts knows where everything is and how to start it.
type parts struct {
	opts     options
	state    *stateDir
	platform *platform
	ports    map[string]int
	kafka    kafka.Config // the one in use
	s3       lake.Config  // likewise
	asker    *http.Client // for asking parts whether they are ready
	secrets  secrets
	database database
	redis    onlineStore
	// leftOut is what this machine cannot run.
	leftOut []leftOut
}

func newParts(opts options, state *stateDir, p *platform, ports map[string]int, known secrets) *parts {
	w := &parts{
		secrets: known,
		opts:    opts, state: state, platform: p, ports: ports,
		kafka: kafka.Config{Brokers: []string{local(ports["kafka"])}, ClientID: "millrace"},
		s3: lake.Config{
			Endpoint:  "http://" + local(ports["s3"]),
			Region:    or(os.Getenv("S3_REGION"), defaultRegion),
			AccessKey: or(os.Getenv("S3_ACCESS_KEY"), defaultAccessKey),
			SecretKey: or(os.Getenv("S3_SECRET_KEY"), defaultSecretKey),
		},
		asker: &http.Client{},
	}
	if opts.kafka != nil {
		w.kafka = *opts.kafka
	}
	if opts.s3 != nil {
		w.s3 = *opts.s3
	}
	return w
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// listening are the parts that this runner will make listen.
func (w *parts) listening() []string {
	names := []string{"ingress"}
	if w.opts.kafka == nil {
		names = append(names, "kafka")
	}
	if w.opts.s3 == nil {
		names = append(names, "s3")
	}
	if w.database.server != nil {
		names = append(names, "postgres")
	}
	if w.opts.redis == "" && w.redis.url != "" {
		names = append(names, "redis")
	}
	if w.ownRegistry() {
		names = append(names, mlflow)
	}
	for _, s := range w.platform.services {
		names = append(names, s.name)
	}
	return names
}

// checkPrograms says which programs are missing.
func (w *parts) checkPrograms() error {
	names := make([]string, 0, len(w.platform.services)+1)
	for _, s := range w.platform.services {
		names = append(names, s.program)
	}
	if !w.opts.noLoad {
		names = append(names, producer)
	}
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		return supervise.Executable(filepath.Join(w.opts.bin, name)) == nil
	})
	if len(names) > 0 {
		return fmt.Errorf("there is no program for %s in %s. Run `make build`, or name the folder of the programs with --bin or MILLRACE_BIN",
			strings.Join(names, ", "), w.opts.bin)
	}
	return nil
}

// embedded is the specification of a part that is this program itself.
func (w *parts) embedded(name string, env, args []string, ready func(context.Context) error) (supervise.Spec, error) {
	self, err := os.Executable()
	if err != nil {
		return supervise.Spec{}, fmt.Errorf("finding this program: %w", err)
	}
	env = append(baseEnv(), env...)
	return supervise.Spec{
		Name: name, Path: self, Args: append([]string{name}, args...),
		Env:   append(env, parentVariable+"="+strconv.Itoa(os.Getpid())),
		Ready: ready, StopTimeout: 15 * time.Second,
	}, nil
}

// kafkaSpec is the embedded Kafka. Its log is bounded for all partitions together,
// so that a producer that is never stopped cannot fill the disk. After a crash the
// broker reads all of it at once, so it is bounded with memory in mind too.
func (w *parts) kafkaSpec() (supervise.Spec, error) {
	dir := w.state.join("data", "kafka")
	total := w.opts.kafkaBytes
	if total == 0 {
		total = 2 << 30
		if free, err := diskFree(w.state.path); err == nil {
			total = min(total, free/4)
		}
	}
	partitions := int64(0)
	for _, n := range w.platform.topics {
		partitions += int64(n)
	}
	each := max(total/max(partitions, 1), embedkafka.MinPartitionBytes)
	return w.embedded("kafka",
		// Collecting sooner keeps the broker small; it has little to collect.
		[]string{"GOGC=50"},
		[]string{"--port", strconv.Itoa(w.ports["kafka"]), "--data", dir, "--partition-bytes", strconv.FormatInt(each, 10)},
		w.pingKafka)
}

// pingKafka asks the broker for its metadata, once.
func (w *parts) pingKafka(ctx context.Context) error {
	opts, err := w.kafka.Options()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(opts, kgo.RequestRetries(0), kgo.DialTimeout(3*time.Second))...)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Ping(ctx)
}

func (w *parts) s3Spec() (supervise.Spec, error) {
	return w.embedded("s3",
		[]string{
			"GOGC=50",
			"S3_REGION=" + w.s3.Region, "S3_ACCESS_KEY=" + w.s3.AccessKey, "S3_SECRET_KEY=" + w.s3.SecretKey,
			"S3_NOTIFY_URLS=" + strings.Join(w.notifyURLs(), ","), "S3_NOTIFY_TOKEN=" + w.ingestToken(),
		},
		[]string{"--port", strconv.Itoa(w.ports["s3"]), "--data", w.state.join("data", "s3")},
		w.answers(w.s3.Endpoint+embeds3.HealthPath))
}

// notifyURLs are told of every object: the function ingest, and whom the user named.
func (w *parts) notifyURLs() []string {
	var urls []string
	if u := w.ingestURL(); u != "" {
		urls = append(urls, u)
	}
	if more := os.Getenv("S3_NOTIFY_URLS"); more != "" {
		urls = append(urls, more)
	}
	return urls
}

// ingestURL is where notifications of an object store go, "" where nobody takes them.
func (w *parts) ingestURL() string {
	if !slices.ContainsFunc(w.platform.services, func(s service) bool { return s.name == "ingest" }) {
		return ""
	}
	return "http://" + local(w.ports["ingest"]) + "/s3"
}

// ingestToken is what the object store shows whom it tells. There is one for all.
func (w *parts) ingestToken() string {
	return or(os.Getenv("INGEST_TOKEN"), os.Getenv("S3_NOTIFY_TOKEN"), w.secrets.IngestToken)
}

// functionSpec is a function with the environment of its service.yaml, in which
// the addresses and keys of the cluster give way to the local ones.
func (w *parts) functionSpec(s service) (supervise.Spec, error) {
	port := w.ports[s.name]
	env := append(baseEnv(), "K_SERVICE="+s.name)
	// What is in its image beside the program.
	data := filepath.Join(filepath.Dir(filepath.Dir(s.file)), s.program, "kodata")
	if _, err := os.Stat(data); err == nil {
		env = append(env, "KO_DATA_PATH="+data)
	}
	for _, v := range s.env {
		value, err := w.value(s, v)
		if err != nil {
			return supervise.Spec{}, err
		}
		env = append(env, v.name+"="+value)
	}
	binding, bound, err := w.platform.graph.Binding(s.namespace, s.name, w.addresses())
	if err != nil {
		return supervise.Spec{}, fmt.Errorf("finding the sink of %s: %w", s.name, err)
	}
	if bound {
		env = append(env, "K_SINK="+binding.Sink)
		if binding.Overrides != "" {
			env = append(env, "K_CE_OVERRIDES="+binding.Overrides)
		}
	}
	// Reachable from this machine only. The last of several equal names counts.
	env = append(env, "PORT="+strconv.Itoa(port), "LISTEN_HOST=127.0.0.1")
	return supervise.Spec{
		Name: s.name, Path: filepath.Join(w.opts.bin, s.program), Env: env,
		Ready: w.answers("http://" + local(port) + "/readyz"), StopTimeout: 30 * time.Second,
	}, nil
}

// value is what a variable of a service.yaml is on this machine.
func (w *parts) value(s service, v variable) (string, error) {
	switch v.name {
	case "KAFKA_BROKERS":
		return strings.Join(w.kafka.Brokers, ","), nil
	case "S3_ENDPOINT":
		return w.s3.Endpoint, nil
	case "S3_REGION":
		return w.s3.Region, nil
	case "S3_ACCESS_KEY":
		return w.s3.AccessKey, nil
	case "S3_SECRET_KEY":
		return w.s3.SecretKey, nil
	case "DATABASE_URL":
		return w.database.url, nil
	case "REDIS_URL":
		return w.redis.url, nil
	case "INGEST_TOKEN":
		return w.ingestToken(), nil
	case "MODEL_CACHE":
		return w.state.join("data", "models", s.name), nil
	case "MLFLOW_TRACKING_URI":
		return w.registryURL(), nil
	case "STATUS_URL":
		return "http://" + local(w.ports["ingress"]) + "/status", nil
	case "PROMETHEUS_URL":
		return os.Getenv("PROMETHEUS_URL"), nil
	case "FUNCTION_NAME":
		// Part of every reply's id, so not for the environment to change.
		return v.value, nil
	}
	if v.name == "GOMEMLIMIT" {
		return localMemory(v.value), nil
	}
	// Set by the user, as in LOG_LEVEL=debug make run. The runner's own limits are
	// not its functions'.
	if value, set := os.LookupEnv(v.name); set && !strings.HasPrefix(v.name, "GO") {
		return value, nil
	}
	if v.optional {
		return "", nil
	}
	if v.secret != "" {
		return "", fmt.Errorf("%s takes %s from the Secret %s, which has no local value: set %s in the environment",
			s.name, v.name, v.secret, v.name)
	}
	// Another function, by its address in the cluster.
	if name, ok := strings.CutSuffix(strings.TrimPrefix(v.value, "http://"), "."+s.namespace+".svc.cluster.local"); ok {
		if address, err := w.serviceURL(s.namespace, name); err == nil {
			return address, nil
		}
		return "", nil // it does not run here
	}
	return v.value, nil
}

// localMemory is the memory limit for a process on this machine: a quarter of the
// one in the cluster, where a pod has its memory for itself. It is soft; a process
// that needs more takes it and collects its garbage more often.
func localMemory(limit string) string {
	mib, err := strconv.Atoi(strings.TrimSuffix(limit, "MiB"))
	if err != nil || !strings.HasSuffix(limit, "MiB") {
		return limit
	}
	return strconv.Itoa(max(mib/4, 32)) + "MiB"
}

// producerSpec is the shop producer. It notes its progress, so that the shop goes
// on after a restart where it was.
func (w *parts) producerSpec() (supervise.Spec, error) {
	folder := w.state.join("data", producer)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return supervise.Spec{}, fmt.Errorf("making the producer's folder: %w", err)
	}
	// As fast as possible is another stream: its event times do not follow the clock.
	progress := filepath.Join(folder, "shop.json")
	if rate, err := strconv.ParseFloat(w.opts.rate, 64); err == nil && rate == 0 {
		progress = filepath.Join(folder, "shop-unpaced.json")
	}
	return supervise.Spec{
		Name: producer, Path: filepath.Join(w.opts.bin, producer),
		Args: []string{
			"shop", "-rate", w.opts.rate, "-brokers", strings.Join(w.kafka.Brokers, ","),
			"-resume", progress,
		},
		Env: baseEnv(), StopTimeout: 15 * time.Second,
	}, nil
}

// inherited are the variables of the runner's environment that every child gets.
// Nothing else is: a function must not come to depend on what its service.yaml
// does not give it.
var inherited = []string{
	"PATH", "HOME", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"LOG_LEVEL", "CONTRACTS_DIR",
	"KAFKA_TLS", "KAFKA_CA_FILE", "KAFKA_SASL_MECHANISM", "KAFKA_USERNAME", "KAFKA_PASSWORD",
}

func baseEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if slices.Contains(inherited, name) || strings.HasPrefix(name, "OTEL_") {
			env = append(env, v)
		}
	}
	return env
}

// answers asks a URL for a 200.
func (w *parts) answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := w.asker.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answered %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
		}
		return nil
	}
}

func (w *parts) addresses() eventing.Addresses {
	return eventing.Addresses{Ingress: "http://" + local(w.ports["ingress"]), Service: w.serviceURL}
}

// serviceURL is the address of a function.
func (w *parts) serviceURL(namespace, name string) (string, error) {
	for _, s := range w.platform.services {
		if s.namespace == namespace && s.name == name {
			return "http://" + local(w.ports[name]), nil
		}
	}
	return "", fmt.Errorf("there is no function %s/%s", namespace, name)
}

// checkKafka waits a little for a Kafka that the user named.
func (w *parts) checkKafka(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := w.pingKafka(ctx); err != nil {
		return fmt.Errorf("no Kafka answers at %s (KAFKA_BROKERS): %w. Start it, correct the variable, or unset it to use the embedded one",
			strings.Join(w.kafka.Brokers, ", "), err)
	}
	return nil
}

// checkS3 asks the S3 that the user named, with the user's keys.
func (w *parts) checkS3(ctx context.Context) error {
	store, err := w.s3.Connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := store.Reach(ctx, "validated-events-bucket"); err != nil {
		return fmt.Errorf("no S3 answers at %s (S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY): %w. Start it, correct the variables, or unset S3_ENDPOINT to use the embedded one",
			w.s3.Endpoint, err)
	}
	return nil
}

// pingS3 asks the S3 for something small. One that the user named is asked as a client
// asks it, since nothing else is known to be there.
func (w *parts) pingS3(ctx context.Context) error {
	if w.opts.s3 == nil {
		return w.answers(w.s3.Endpoint + embeds3.HealthPath)(ctx)
	}
	store, err := w.s3.Connect()
	if err != nil {
		return err
	}
	return store.Reach(ctx, "validated-events-bucket")
}

// ensureTopics creates the topics of the graph, or says which are missing.
func (w *parts) ensureTopics(ctx context.Context, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	where := strings.Join(w.kafka.Brokers, ", ")
	if w.opts.createTopics {
		if err := kafka.EnsureTopics(ctx, client, w.platform.topics, -1); err != nil {
			return fmt.Errorf("the topics cannot be created at %s: %w. Create them yourself and run with CREATE_TOPICS=0", where, err)
		}
		return nil
	}
	listed, err := kadm.NewClient(client).ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("the topics at %s cannot be listed: %w", where, err)
	}
	var missing []string
	for t, n := range w.platform.topics {
		if !listed.Has(t) {
			missing = append(missing, fmt.Sprintf("%s (%d partitions)", t, n))
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return errors.New("topics are missing at " + where + ": " + strings.Join(missing, ", ") + ". Create them, or run without CREATE_TOPICS=0")
	}
	return nil
}

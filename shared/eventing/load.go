package eventing

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"github.com/robfig/cron/v3"
)

// defaultNamespace is where objects without a namespace are, as for kubectl.
const defaultNamespace = "default"

// executed are the kinds that the engine runs and the version it reads of each.
var executed = map[string]string{
	"Broker":      "eventing.knative.dev/v1",
	"Trigger":     "eventing.knative.dev/v1",
	"KafkaSource": "sources.knative.dev/v1",
	"KafkaSink":   "eventing.knative.dev/v1alpha1",
	"PingSource":  "sources.knative.dev/v1",
	"SinkBinding": "sources.knative.dev/v1",
	"JobSink":     "sinks.knative.dev/v1alpha1",
}

const servingVersion = "serving.knative.dev/v1"

// skipped are kinds that stand beside event graphs and change nothing about how
// events flow. Every other kind is refused: something in it may matter.
var skipped = []string{
	"Kustomization", "Component", "Namespace", "ConfigMap", "Secret", "ServiceAccount", "Role", "RoleBinding",
	"ClusterRole", "ClusterRoleBinding", "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod",
	"PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject",
	"EventType",
}

// Load reads the manifests in files and folders (their *.yaml and *.yml, not their
// subfolders) and returns the graph they describe.
//
// Decoding is strict. An unknown or misplaced field, an unknown kind, a value that
// Knative's webhooks would refuse, a name given twice and a reference to an object
// that is not among the manifests are errors, all of them reported together, each
// with its file, line and field. References to Services are checked when there are
// Services among the manifests. An object without a namespace is in that of the
// folder's kustomization, or else in "default".
func Load(paths ...string) (*Graph, error) {
	l := &loader{graph: &Graph{}, seen: map[string]string{}, configs: map[string]map[string]string{}}
	for _, path := range paths {
		l.path(path)
	}
	if len(l.errs) == 0 {
		for _, check := range l.later {
			check()
		}
	}
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	g := l.graph
	if len(g.Brokers)+len(g.Triggers)+len(g.KafkaSources)+len(g.KafkaSinks)+len(g.PingSources)+len(g.JobSinks)+len(g.SinkBindings) == 0 {
		return nil, fmt.Errorf("loading %s: %w", strings.Join(paths, ", "), errNoManifests)
	}
	return g, nil
}

type loader struct {
	graph *Graph
	errs  []error
	// seen is where each object was defined first.
	seen map[string]string
	// configs is the data of the ConfigMaps, for Brokers.
	configs map[string]map[string]string
	// later are the checks that need all manifests.
	later []func()
	// namespace is that of the folder's kustomization.
	namespace string
}

func (l *loader) path(path string) {
	info, err := os.Stat(path)
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("loading manifests: %w", err))
		return
	}
	l.namespace = defaultNamespace
	if !info.IsDir() {
		l.namespace = kustomizationNamespace(filepath.Dir(path))
		l.file(path)
		return
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("loading manifests: %w", err))
		return
	}
	l.namespace = kustomizationNamespace(path)
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			l.file(filepath.Join(path, e.Name()))
		}
	}
}

var kustomizationNames = []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

// kustomizationNamespace is the namespace that kustomize would give the folder's
// objects.
func kustomizationNamespace(dir string) string {
	for _, name := range kustomizationNames {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		var k struct {
			Namespace string `yaml:"namespace"`
		}
		if yaml.Unmarshal(b, &k) == nil && k.Namespace != "" {
			return k.Namespace
		}
	}
	return defaultNamespace
}

func (l *loader) file(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("loading manifests: %w", err))
		return
	}
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		l.errs = append(l.errs, yamlError(path, 1, "", err))
		return
	}
	for _, doc := range f.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType || doc.Body.Type() == ast.CommentType {
			continue
		}
		l.document(path, doc.Body)
	}
}

// document is one object of a file while it is being read.
type document struct {
	*loader
	Object
	file string
	body ast.Node
	kind string
}

func (l *loader) document(path string, body ast.Node) {
	var head struct {
		APIVersion string   `yaml:"apiVersion"`
		Kind       string   `yaml:"kind"`
		Metadata   metadata `yaml:"metadata"`
	}
	line := firstLine(body)
	if body.Type() != ast.MappingType {
		l.errs = append(l.errs, fmt.Errorf("%s:%d: the document is not a manifest", path, line))
		return
	}
	if err := decodeLoosely(body, &head); err != nil {
		l.errs = append(l.errs, yamlError(path, line, "", err))
		return
	}
	d := &document{loader: l, file: path, body: body, kind: head.Kind, Object: Object{
		Namespace: head.Metadata.Namespace, Name: head.Metadata.Name, Position: path + ":" + strconv.Itoa(line),
	}}
	if d.Namespace == "" {
		d.Namespace = l.namespace
	}
	if slices.Contains(kustomizationNames, filepath.Base(path)) {
		return
	}
	switch {
	case head.Kind == "":
		d.fail("kind", "is missing")
		return
	case head.Kind == "ConfigMap":
		l.configs[d.Namespace+"/"+d.Name] = configData(body)
		return
	case head.Kind == "Service" && head.APIVersion == "v1", slices.Contains(skipped, head.Kind):
		return
	case head.Kind == "Service" && head.APIVersion == servingVersion:
		if d.define() {
			l.graph.Services = append(l.graph.Services, &Service{Object: d.Object, Labels: head.Metadata.Labels})
		}
		return
	}
	want, ok := executed[head.Kind]
	if !ok {
		d.fail("kind", "%s (%s) is not a kind that this engine executes", head.Kind, head.APIVersion)
		return
	}
	if head.APIVersion != want {
		d.fail("apiVersion", "%q is not supported for a %s, it has to be %s", head.APIVersion, head.Kind, want)
		return
	}
	if !d.define() {
		return
	}
	switch head.Kind {
	case "Broker":
		d.broker()
	case "Trigger":
		d.trigger()
	case "KafkaSource":
		d.kafkaSource()
	case "KafkaSink":
		d.kafkaSink()
	case "PingSource":
		d.pingSource()
	case "JobSink":
		d.jobSink()
	case "SinkBinding":
		d.sinkBinding()
	}
}

var objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

func (d *document) define() bool {
	switch {
	case d.Name == "":
		d.fail("metadata.name", "is missing")
		return false
	case !objectName.MatchString(d.Name):
		d.fail("metadata.name", "%q is not a name of lower case letters, digits, '-' and '.'", d.Name)
		return false
	}
	key := d.kind + " " + d.Namespace + "/" + d.Name
	if first, ok := d.seen[key]; ok {
		d.fail("metadata.name", "%s is defined already at %s", key, first)
		return false
	}
	d.seen[key] = d.Position
	return true
}

// fail records that the field is wrong; the message follows the field's name.
func (d *document) fail(field, format string, args ...any) {
	d.errs = append(d.errs, fmt.Errorf("%s:%d: %s %s: %s %s", d.file, d.line(field), d.kind, d.Name, field, fmt.Sprintf(format, args...)))
}

// line is where the field is, or where the nearest part of its path is.
func (d *document) line(field string) int {
	for path := field; path != ""; {
		if p, err := yaml.PathString("$." + path); err == nil {
			if node, err := p.FilterNode(d.body); err == nil && node != nil {
				return keyLine(d.body, node)
			}
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			break
		}
		path = path[:cut]
	}
	return firstLine(d.body)
}

// keyLine is the line of the key under which the node stands: for a nested mapping
// the node itself begins a line later.
func keyLine(root, node ast.Node) int {
	if parent := ast.Parent(root, node); parent != nil {
		if v, ok := parent.(*ast.MappingValueNode); ok {
			return v.Key.GetToken().Position.Line
		}
	}
	return firstLine(node)
}

// firstLine is the line at which the node's text begins; a mapping's own token is
// the colon of its first entry.
func firstLine(node ast.Node) int {
	switch n := node.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 && !n.IsFlowStyle {
			return n.Values[0].Key.GetToken().Position.Line
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken().Position.Line
	}
	return node.GetToken().Position.Line
}

func decodeLoosely(node ast.Node, v any) error {
	if err := yaml.NodeToValue(node, v); err != nil {
		return fmt.Errorf("decoding: %w", err)
	}
	return nil
}

// decode fills v strictly and reports whether it could.
func (d *document) decode(v any) bool {
	if err := yaml.NodeToValue(d.body, v, yaml.Strict()); err != nil {
		var wrong *yaml.TypeError
		if errors.As(err, &wrong) && wrong.Token != nil {
			field := strings.TrimPrefix(pathOf(d.body, wrong.Token), "$.")
			d.fail(field, "is of type %s, it has to be of type %s", wrong.SrcType, wrong.DstType)
			return false
		}
		d.errs = append(d.errs, yamlError(d.file, d.line(""), d.kind+" "+d.Name+": ", err))
		return false
	}
	return true
}

// pathOf is the YAML path of the node that the token begins, "" if there is none.
func pathOf(root ast.Node, t *token.Token) string {
	find := &finder{token: t}
	ast.Walk(find, root)
	return find.path
}

type finder struct {
	token *token.Token
	path  string
}

// Visit implements ast.Visitor.
func (f *finder) Visit(n ast.Node) ast.Visitor {
	if n.GetToken() == f.token {
		f.path = n.GetPath()
	}
	return f
}

// yamlError puts the position that the decoder knows in front of its message.
func yamlError(file string, line int, what string, err error) error {
	var e yaml.Error
	if errors.As(err, &e) {
		if t := e.GetToken(); t != nil && t.Position != nil {
			return fmt.Errorf("%s:%d:%d: %s%s", file, t.Position.Line, t.Position.Column, what, e.GetMessage())
		}
	}
	return fmt.Errorf("%s:%d: %s%w", file, line, what, err)
}

func configData(body ast.Node) map[string]string {
	var c struct {
		Data map[string]string `yaml:"data"`
	}
	if decodeLoosely(body, &c) != nil {
		return nil
	}
	return c.Data
}

func (d *document) broker() {
	var m manifest[brokerSpec]
	if !d.decode(&m) {
		return
	}
	b := &Broker{Object: d.Object, Topic: "knative-broker-" + d.Namespace + "-" + d.Name}
	if topic := m.Metadata.Annotations["kafka.eventing.knative.dev/external.topic"]; topic != "" {
		b.Topic = topic
	}
	b.Delivery = d.delivery("spec.delivery", m.Spec.Delivery)
	if ref := m.Spec.Config; ref != nil {
		namespace := ref.Namespace
		if namespace == "" {
			namespace = d.Namespace
		}
		d.later = append(d.later, func() { d.brokerConfig(b, d.configs[namespace+"/"+ref.Name]) })
	}
	d.graph.Brokers = append(d.graph.Brokers, b)
}

func (d *document) brokerConfig(b *Broker, data map[string]string) {
	number := func(key string, bits int) int64 {
		text, ok := data[key]
		if !ok {
			return 0
		}
		n, err := strconv.ParseInt(text, 10, bits)
		if err != nil || n < 1 {
			d.fail("spec.config", "names a ConfigMap whose %s is not a positive number: %q", key, text)
			return 0
		}
		return n
	}
	b.Partitions = int32(number("default.topic.partitions", 32))
	b.Replication = int16(number("default.topic.replication.factor", 16))
}

func (d *document) trigger() {
	var m manifest[triggerSpec]
	if !d.decode(&m) {
		return
	}
	t := &Trigger{Object: d.Object, Broker: m.Spec.Broker}
	switch order := m.Metadata.Annotations["kafka.eventing.knative.dev/delivery.order"]; order {
	case "", "unordered":
	case "ordered":
		t.Ordered = true
	default:
		d.fail("metadata.annotations", "kafka.eventing.knative.dev/delivery.order is %q, it has to be ordered or unordered", order)
	}
	t.Filter = d.filters(&m.Spec)
	t.Subscriber = d.destination("spec.subscriber", m.Spec.Subscriber)
	t.Delivery = d.delivery("spec.delivery", m.Spec.Delivery)
	if t.Broker == "" {
		d.fail("spec.broker", "is missing")
		return
	}
	d.later = append(d.later, func() {
		b := d.graph.broker(t.Namespace, t.Broker)
		if b == nil {
			d.fail("spec.broker", "there is no Broker %s/%s", t.Namespace, t.Broker)
			return
		}
		if m.Spec.Delivery == nil {
			t.Delivery = b.Delivery
		}
	})
	d.graph.Triggers = append(d.graph.Triggers, t)
}

func (d *document) kafkaSource() {
	var m manifest[kafkaSourceSpec]
	if !d.decode(&m) {
		return
	}
	s := &KafkaSource{Object: d.Object, Topics: m.Spec.Topics, Group: m.Spec.ConsumerGroup, Ordered: true}
	if len(s.Topics) == 0 {
		d.fail("spec.topics", "is missing")
	}
	for i, topic := range s.Topics {
		if topic == "" || slices.Contains(s.Topics[:i], topic) {
			d.fail(fmt.Sprintf("spec.topics[%d]", i), "is empty or there already: %q", topic)
		}
	}
	if s.Group == "" {
		// Knative makes up a random name; a name that stays is what a restart needs.
		s.Group = "knative-kafka-source-" + d.Namespace + "-" + d.Name
	}
	if m.Spec.Consumers != nil && *m.Spec.Consumers < 0 {
		d.fail("spec.consumers", "is negative")
	}
	switch m.Spec.InitialOffset {
	case "", "latest":
	case "earliest":
		s.FromEarliest = true
	default:
		d.fail("spec.initialOffset", "is %q, it has to be earliest or latest", m.Spec.InitialOffset)
	}
	switch m.Spec.Ordering {
	case "", "ordered":
	case "unordered":
		s.Ordered = false
	default:
		d.fail("spec.ordering", "is %q, it has to be ordered or unordered", m.Spec.Ordering)
	}
	s.Sink = d.destination("spec.sink", m.Spec.Sink)
	s.Delivery = d.delivery("spec.delivery", m.Spec.Delivery)
	s.Extensions = d.overrides(m.Spec.CEOverrides)
	d.graph.KafkaSources = append(d.graph.KafkaSources, s)
}

func (d *document) kafkaSink() {
	var m manifest[kafkaSinkSpec]
	if !d.decode(&m) {
		return
	}
	s := &KafkaSink{Object: d.Object, Topic: m.Spec.Topic}
	if s.Topic == "" {
		d.fail("spec.topic", "is missing")
	}
	if n := m.Spec.NumPartitions; n != nil {
		if s.Partitions = *n; *n < 1 {
			d.fail("spec.numPartitions", "has to be positive")
		}
	}
	if n := m.Spec.ReplicationFactor; n != nil {
		if s.Replication = *n; *n < 1 {
			d.fail("spec.replicationFactor", "has to be positive")
		}
	}
	switch m.Spec.ContentMode {
	case "", "structured":
		s.Structured = true
	case "binary":
	default:
		d.fail("spec.contentMode", "is %q, it has to be binary or structured", m.Spec.ContentMode)
	}
	d.graph.KafkaSinks = append(d.graph.KafkaSinks, s)
}

// cronParser is Knative's: seconds may be left out, descriptors are understood.
var cronParser = cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

func (d *document) pingSource() {
	var m manifest[pingSourceSpec]
	if !d.decode(&m) {
		return
	}
	p := &PingSource{Object: d.Object, Schedule: m.Spec.Schedule, ContentType: m.Spec.ContentType}
	if p.Schedule == "" {
		p.Schedule = "* * * * *"
	}
	if strings.Contains(p.Schedule, "@every") {
		d.fail("spec.schedule", "@every is not supported, by Knative neither")
	}
	if zone := m.Spec.Timezone; zone != "" {
		p.Schedule = "CRON_TZ=" + zone + " " + p.Schedule
	}
	if _, err := cronParser.Parse(p.Schedule); err != nil {
		d.fail("spec.schedule", "is not a schedule: %v", err)
	}
	switch {
	case m.Spec.Data != "" && m.Spec.DataBase64 != "":
		d.fail("spec.dataBase64", "cannot stand beside data")
	case m.Spec.DataBase64 != "":
		data, err := base64.StdEncoding.DecodeString(m.Spec.DataBase64)
		if err != nil {
			d.fail("spec.dataBase64", "is not base64: %v", err)
		}
		p.Data = data
	default:
		p.Data = []byte(m.Spec.Data)
	}
	if p.ContentType == "application/json" && len(p.Data) > 0 && !json.Valid(p.Data) {
		d.fail("spec.data", "is not JSON, which contentType says it is")
	}
	p.Sink = d.destination("spec.sink", m.Spec.Sink)
	p.Extensions = d.overrides(m.Spec.CEOverrides)
	d.graph.PingSources = append(d.graph.PingSources, p)
}

func (d *document) jobSink() {
	var m manifest[jobSinkSpec]
	if !d.decode(&m) {
		return
	}
	path, err := yaml.PathString("$.spec.job")
	if err != nil {
		d.fail("spec.job", "cannot be read: %v", err)
		return
	}
	job, err := path.FilterNode(d.body)
	if err != nil || job == nil {
		d.fail("spec.job", "is missing")
		return
	}
	d.graph.JobSinks = append(d.graph.JobSinks, &JobSink{Object: d.Object, job: job})
}

func (d *document) sinkBinding() {
	var m manifest[sinkBindingSpec]
	if !d.decode(&m) {
		return
	}
	b := &SinkBinding{Object: d.Object, Sink: d.destination("spec.sink", m.Spec.Sink), Extensions: d.overrides(m.Spec.CEOverrides)}
	subject := m.Spec.Subject
	if subject == nil {
		d.fail("spec.subject", "is missing")
		return
	}
	b.SubjectKind, b.SubjectNamespace, b.SubjectName = subject.Kind, subject.Namespace, subject.Name
	if b.SubjectNamespace == "" {
		b.SubjectNamespace = d.Namespace
	}
	if subject.Selector != nil {
		b.SubjectLabels = subject.Selector.MatchLabels
	}
	switch {
	case b.SubjectNamespace != d.Namespace:
		d.fail("spec.subject.namespace", "is %q, a SinkBinding binds in its own namespace", b.SubjectNamespace)
	case subject.Kind == "":
		d.fail("spec.subject.kind", "is missing")
	case (b.SubjectName == "") == (subject.Selector == nil):
		d.fail("spec.subject", "needs either a name or a selector")
	case subject.Kind == "Service" && subject.APIVersion != servingVersion:
		d.fail("spec.subject.apiVersion", "is %q, it has to be %s", subject.APIVersion, servingVersion)
	case subject.Kind == "Service" && b.SubjectName != "":
		d.later = append(d.later, func() { d.serviceExists("spec.subject", b.SubjectNamespace, b.SubjectName) })
	}
	d.graph.SinkBindings = append(d.graph.SinkBindings, b)
}

// destination checks a destination and resolves its reference; that the object
// exists is checked when all manifests are read.
func (d *document) destination(field string, s *destinationSpec) Destination {
	if s == nil || s.Ref == nil && s.URI == "" {
		d.fail(field, "needs a ref or a uri")
		return Destination{}
	}
	u, err := url.Parse(s.URI)
	if err != nil {
		d.fail(field+".uri", "is not a URI: %v", err)
		return Destination{}
	}
	if s.Ref == nil {
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			d.fail(field+".uri", "is %q, without a ref it has to be an absolute http or https address", s.URI)
		}
		return Destination{Kind: ToURI, URI: s.URI}
	}
	if u.IsAbs() {
		d.fail(field+".uri", "is absolute, beside a ref it has to be relative")
	}
	dest := Destination{Kind: DestinationKind(s.Ref.Kind), Namespace: s.Ref.Namespace, Name: s.Ref.Name, URI: s.URI}
	if dest.Namespace == "" {
		dest.Namespace = d.Namespace
	}
	if dest.Name == "" {
		d.fail(field+".ref.name", "is missing")
		return dest
	}
	version := executed[s.Ref.Kind]
	exists := func() bool { return true }
	switch dest.Kind {
	case ToBroker:
		exists = func() bool { return d.graph.broker(dest.Namespace, dest.Name) != nil }
	case ToKafkaSink:
		exists = func() bool { return d.graph.kafkaSink(dest.Namespace, dest.Name) != nil }
	case ToJobSink:
		exists = func() bool { return d.graph.jobSink(dest.Namespace, dest.Name) != nil }
	case ToService:
		version = servingVersion
		d.later = append(d.later, func() { d.serviceExists(field+".ref", dest.Namespace, dest.Name) })
	default:
		d.fail(field+".ref.kind", "is %q, it has to be Service, Broker, KafkaSink or JobSink", s.Ref.Kind)
		return dest
	}
	if s.Ref.APIVersion != version {
		d.fail(field+".ref.apiVersion", "is %q, for a %s it has to be %s", s.Ref.APIVersion, dest.Kind, version)
	}
	if dest.URI != "" && dest.Kind != ToService {
		d.fail(field+".uri", "has no meaning for a %s", dest.Kind)
	}
	d.later = append(d.later, func() {
		if !exists() {
			d.fail(field+".ref", "there is no %s", dest)
		}
	})
	return dest
}

func (d *document) serviceExists(field, namespace, name string) {
	if len(d.graph.Services) == 0 {
		return
	}
	if !slices.ContainsFunc(d.graph.Services, func(s *Service) bool { return s.Namespace == namespace && s.Name == name }) {
		d.fail(field, "there is no Service %s/%s", namespace, name)
	}
}

func (d *document) delivery(field string, s *deliverySpec) *Delivery {
	if s == nil {
		return nil
	}
	out := &Delivery{}
	if s.Retry != nil {
		if out.Retry = *s.Retry; out.Retry < 0 {
			d.fail(field+".retry", "is negative")
		}
	}
	var err error
	if s.Timeout != "" {
		if out.Timeout, err = parseDuration(s.Timeout); err != nil {
			d.fail(field+".timeout", "%v", err)
		} else if out.Timeout == 0 {
			d.fail(field+".timeout", "has to be more than nothing")
		}
	}
	if s.BackoffDelay != "" {
		if out.Backoff, err = parseDuration(s.BackoffDelay); err != nil {
			d.fail(field+".backoffDelay", "%v", err)
		}
	}
	switch s.BackoffPolicy {
	case "", "exponential":
		out.Exponential = true
	case "linear":
	default:
		d.fail(field+".backoffPolicy", "is %q, it has to be linear or exponential", s.BackoffPolicy)
	}
	if s.RetryAfterMax != "" {
		limit, err := parseDuration(s.RetryAfterMax)
		if err != nil {
			d.fail(field+".retryAfterMax", "%v", err)
		}
		out.RetryAfterMax = &limit
	}
	switch s.Format {
	case "", "binary":
	case "json":
		out.Structured = true
	default:
		d.fail(field+".format", "is %q, it has to be binary or json", s.Format)
	}
	if s.DeadLetterSink != nil {
		dest := d.destination(field+".deadLetterSink", s.DeadLetterSink)
		out.DeadLetterSink = &dest
	}
	return out
}

var attributeName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

func (d *document) overrides(s *overridesSpec) map[string]string {
	if s == nil {
		return nil
	}
	for name := range s.Extensions {
		if !attributeName.MatchString(name) || isContextAttribute(name) {
			d.fail("spec.ceOverrides.extensions", "%q is not the name of an extension", name)
		}
	}
	return s.Extensions
}

func isContextAttribute(name string) bool {
	switch name {
	case "specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time", "data":
		return true
	}
	return false
}

package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	eventingv1alpha1 "knative.dev/eventing/pkg/apis/eventing/v1alpha1"
	"knative.dev/eventing/pkg/apis/feature"
	sinksv1alpha1 "knative.dev/eventing/pkg/apis/sinks/v1alpha1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	networkingv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	kjson "sigs.k8s.io/json"
	syaml "sigs.k8s.io/yaml"
)

// types knows every kind that may be in a manifest: Knative's, cert-manager's, ours for
// Kafka, and Kubernetes' own.
var types = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		kubernetes.AddToScheme, servingv1.AddToScheme, servingv1beta1.AddToScheme, eventingv1.AddToScheme,
		eventingv1alpha1.AddToScheme, sourcesv1.AddToScheme, sinksv1alpha1.AddToScheme,
		certmanagerv1.AddToScheme, networkingv1alpha1.AddToScheme, addKafkaToScheme,
	} {
		if err := add(s); err != nil {
			panic(err) // two kinds of one name: a mistake in the list above
		}
	}
	return s
}()

// notChecked are kinds whose Go types are not among our dependencies.
var notChecked = map[string]string{
	"keda.sh/v1alpha1, Kind=ScaledObject":          "an example for clusters with KEDA",
	"keda.sh/v1alpha1, Kind=TriggerAuthentication": "an example for clusters with KEDA",
}

// decode makes the Go object of a document and refuses unknown and duplicate
// fields. A kind that is not checked gives a Manifest without Object.
func decode(node *yaml.Node, file string) (*Manifest, []Problem) {
	m := &Manifest{File: file, node: node}
	fail := func(text string) (*Manifest, []Problem) {
		return nil, []Problem{{File: file, Line: node.Line, Object: m.String(), Text: text}}
	}
	var head struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
	}
	if err := node.Decode(&head); err != nil {
		return fail(err.Error())
	}
	m.APIVersion, m.Kind, m.Name = head.APIVersion, head.Kind, head.Metadata.Name
	gvk := schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)
	if head.Kind == "" || head.APIVersion == "" {
		return fail("is no Kubernetes manifest: apiVersion or kind is missing")
	}
	if _, ok := notChecked[gvk.String()]; ok {
		return m, nil
	}
	obj, err := types.New(gvk)
	if err != nil {
		return fail(fmt.Sprintf("unknown apiVersion and kind: %s %s", head.APIVersion, head.Kind))
	}
	if problems := duplicates(m, node, ""); len(problems) > 0 {
		return nil, problems
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		return fail(err.Error())
	}
	js, err := syaml.YAMLToJSON(text)
	if err != nil {
		return fail(err.Error())
	}
	strict, err := kjson.UnmarshalStrict(js, obj)
	if err != nil {
		return nil, []Problem{fieldProblem(m, err)}
	}
	var problems []Problem
	for _, err := range strict {
		problems = append(problems, fieldProblem(m, err))
	}
	meta, ok := obj.(metav1.Object)
	if !ok {
		return fail("has no metadata")
	}
	m.Object, m.Meta = obj, meta
	return m, problems
}

// duplicates finds keys that are given twice in one mapping, of which YAML would
// keep the last.
func duplicates(m *Manifest, n *yaml.Node, path string) []Problem {
	var problems []Problem
	switch n.Kind {
	case yaml.MappingNode:
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			if seen[key.Value] {
				p := m.problem(at, "given twice")
				p.Line = key.Line
				problems = append(problems, p)
			}
			seen[key.Value] = true
			problems = append(problems, duplicates(m, n.Content[i+1], at)...)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			problems = append(problems, duplicates(m, item, fmt.Sprintf("%s[%d]", path, i))...)
		}
	}
	return problems
}

var (
	unknownField = regexp.MustCompile(`^unknown field "(.*)"$`)
	wrongType    = regexp.MustCompile(`cannot unmarshal (.*) into Go struct field \w+\.(\S+) of type (\S+)$`)
)

// fieldProblem turns what the JSON decoder says into a problem at the field.
func fieldProblem(m *Manifest, err error) Problem {
	if parts := unknownField.FindStringSubmatch(err.Error()); parts != nil {
		return m.problem(parts[1], "unknown field")
	}
	if parts := wrongType.FindStringSubmatch(err.Error()); parts != nil {
		return m.problem(parts[2], "is a %s, must be %s", parts[1], parts[3])
	}
	return m.problem("", "%v", err)
}

// admit does to a copy of the object what the webhooks of a cluster do: set the
// defaults, then validate.
func admit(ctx context.Context, m *Manifest) []Problem {
	if m.Object == nil {
		return nil
	}
	var problems []Problem
	for _, msg := range validation.IsDNS1123Subdomain(m.Name) {
		problems = append(problems, m.problem("metadata.name", "%s", msg))
	}
	ctx = feature.ToContext(ctx, feature.FromContextOrDefaults(ctx))
	ctx = apis.WithinCreate(ctx)
	obj := m.Object.DeepCopyObject()
	if sink, ok := obj.(*sinksv1alpha1.JobSink); ok {
		return append(problems, admitJobSink(m, sink)...)
	}
	if d, ok := obj.(apis.Defaultable); ok {
		d.SetDefaults(ctx)
	}
	if v, ok := obj.(apis.Validatable); ok {
		// Warnings say what may change one day.
		problems = append(problems, fieldErrors(m, v.Validate(ctx).Filter(apis.ErrorLevel))...)
	}
	return problems
}

// fieldErrors spreads Knative's collected error into one problem a field.
func fieldErrors(m *Manifest, fe *apis.FieldError) []Problem {
	if fe == nil {
		return nil
	}
	var problems []Problem
	for _, e := range fe.WrappedErrors() {
		text := e.Message
		if e.Details != "" {
			text += " (" + strings.Join(strings.Fields(e.Details), " ") + ")"
		}
		paths := e.Paths
		if len(paths) == 0 {
			paths = []string{""}
		}
		for _, path := range paths {
			problems = append(problems, m.problem(path, "%s", strings.TrimSuffix(text, ": "+path)))
		}
	}
	return problems
}

// admitJobSink checks the job as a batch/v1 Job. Knative's own Validate asks an
// API server for a dry run, which there is none of here.
func admitJobSink(m *Manifest, sink *sinksv1alpha1.JobSink) []Problem {
	job := sink.Spec.Job
	if job == nil {
		return []Problem{m.problem("spec.job", "missing")}
	}
	var problems []Problem
	add := func(path, text string) {
		problems = append(problems, m.problem("spec.job."+path, "%s", text))
	}
	if job.APIVersion != "" && job.APIVersion != "batch/v1" || job.Kind != "" && job.Kind != "Job" {
		add("kind", "must be batch/v1 Job")
	}
	pod := job.Spec.Template.Spec
	if len(pod.Containers) == 0 {
		add("spec.template.spec.containers", "missing")
	}
	if pod.RestartPolicy != "Never" && pod.RestartPolicy != "OnFailure" {
		add("spec.template.spec.restartPolicy", "must be Never or OnFailure, as for any Job")
	}
	if job.Spec.TTLSecondsAfterFinished == nil {
		add("spec.ttlSecondsAfterFinished", "missing: one Job an event would stay for ever")
	}
	if job.Spec.BackoffLimit == nil {
		add("spec.backoffLimit", "missing: say how often a failed run is tried again")
	}
	if job.Spec.ActiveDeadlineSeconds == nil {
		add("spec.activeDeadlineSeconds", "missing: a run that hangs would never end")
	}
	return problems
}

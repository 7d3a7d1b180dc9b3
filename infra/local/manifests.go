package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/eventing"
)

// service is what the runner needs of a function's Knative Service.
type service struct {
	namespace, name string
	file            string
	// program is the function whose image it runs, most often of its own name.
	program string
	env     []variable
	// emits are the types that it may reply with or send.
	emits []string
}

// variable is one of a container's environment: a value, or a key of a Secret.
type variable struct {
	name, value       string
	secret, secretKey string
	optional          bool // the function does without the Secret
}

// platform is what the checkout describes.
type platform struct {
	services []service
	graph    *eventing.Graph
	// topics are all topics of the graph and their partitions.
	topics map[string]int32
}

// loadPlatform reads the checkout. Its errors are for the user to read; they name
// file, line and field.
func loadPlatform(root string) (*platform, error) {
	files, err := filepath.Glob(filepath.Join(root, "functions", "*", "service.yaml"))
	if err != nil {
		return nil, fmt.Errorf("looking for functions: %w", err)
	}
	triggers := filepath.Join(root, "triggers")
	if _, err := os.Stat(triggers); len(files) == 0 || err != nil {
		return nil, fmt.Errorf("%s has no functions/*/service.yaml or no triggers/. Run this in a checkout of the project, or name one with --root", root)
	}
	slices.Sort(files)
	p := &platform{}
	var errs []error
	for _, file := range files {
		s, err := loadService(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.services = append(p.services, s)
	}
	// The Services go with the graph so that references to them are checked.
	files = append(files, triggers)
	if own := os.Getenv("TRIGGERS_DIR"); own != "" {
		if _, err := os.Stat(own); err != nil {
			return nil, fmt.Errorf("TRIGGERS_DIR: %w", err)
		}
		files = append(files, own)
	}
	if p.graph, err = eventing.Load(files...); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("the manifests are wrong:\n%w", relativeTo(root, errors.Join(errs...)))
	}
	if p.topics, err = p.allTopics(filepath.Join(root, "infra", "kafka", "topics.yaml")); err != nil {
		return nil, relativeTo(root, err)
	}
	return p, nil
}

// predicts tells whether a Trigger delivers to the function predict, under any name.
func (p *platform) predicts(namespace, trigger string) bool {
	for _, t := range p.graph.Triggers {
		if t.Namespace != namespace || t.Name != trigger || t.Subscriber.Kind != eventing.ToService {
			continue
		}
		return slices.ContainsFunc(p.services, func(s service) bool {
			return s.program == "predict" && s.namespace == t.Subscriber.Namespace && s.name == t.Subscriber.Name
		})
	}
	return false
}

// loadService reads what is run of a Knative Service: the first container's
// environment. The rest has no meaning for a process; infra/lint checks it.
func loadService(file string) (service, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return service{}, fmt.Errorf("reading manifest: %w", err)
	}
	var m struct {
		Kind     string `yaml:"kind"`
		Metadata struct {
			Name        string            `yaml:"name"`
			Namespace   string            `yaml:"namespace"`
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"metadata"`
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Image string         `yaml:"image"`
						Env   []containerEnv `yaml:"env"`
					} `yaml:"containers"`
				} `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(b, &m); err != nil {
		return service{}, fmt.Errorf("%s: %s", file, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	s := service{
		namespace: or(m.Metadata.Namespace, "default"), name: m.Metadata.Name, file: file,
		emits: strings.Fields(m.Metadata.Annotations["millrace.dev/emits"]),
	}
	folder := filepath.Base(filepath.Dir(file))
	switch {
	case m.Kind != "Service":
		return service{}, fmt.Errorf("%s: kind is %q, it has to be Service", file, m.Kind)
	case s.name != folder:
		return service{}, fmt.Errorf("%s: metadata.name is %q, it has to be that of the folder, %q", file, s.name, folder)
	case len(m.Spec.Template.Spec.Containers) == 0:
		return service{}, fmt.Errorf("%s: spec.template.spec.containers is empty", file)
	}
	if s.program = strings.TrimPrefix(m.Spec.Template.Spec.Containers[0].Image, functionImages); s.program == "" || strings.ContainsAny(s.program, "/:") {
		return service{}, fmt.Errorf("%s: image is %q, it has to be %s and a function", file, m.Spec.Template.Spec.Containers[0].Image, functionImages)
	}
	if s.env, err = variables(m.Spec.Template.Spec.Containers[0].Env); err != nil {
		return service{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

// functionImages begins the images of functions, which the runner runs as programs.
const functionImages = "ko://github.com/millrace-dev/millrace/functions/"

// containerEnv is a variable in a manifest.
type containerEnv struct {
	Name      string `yaml:"name"`
	Value     string `yaml:"value"`
	ValueFrom *struct {
		SecretKeyRef *struct {
			Name     string `yaml:"name"`
			Key      string `yaml:"key"`
			Optional bool   `yaml:"optional"`
		} `yaml:"secretKeyRef"`
	} `yaml:"valueFrom"`
}

// variables reads a container's environment.
func variables(env []containerEnv) ([]variable, error) {
	var all []variable
	for i, e := range env {
		v := variable{name: e.Name, value: e.Value}
		switch {
		case e.Name == "":
			return nil, fmt.Errorf("env[%d] has no name", i)
		case e.ValueFrom == nil:
		case e.ValueFrom.SecretKeyRef == nil:
			return nil, fmt.Errorf("env %s: only a value or a secretKeyRef can be given to a local process", e.Name)
		default:
			ref := e.ValueFrom.SecretKeyRef
			v.secret, v.secretKey, v.optional = ref.Name, ref.Key, ref.Optional
		}
		all = append(all, v)
	}
	return all, nil
}

// allTopics are the topics that the graph reads and writes. The partitions of
// those that producers own are in file.
func (p *platform) allTopics(file string) (map[string]int32, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = []byte("{}"), nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the list of topics: %w", err)
	}
	var list struct {
		Topics []struct {
			Name       string `yaml:"name"`
			Partitions int32  `yaml:"partitions"`
		} `yaml:"topics"`
		DefaultPartitions int32 `yaml:"defaultPartitions"`
	}
	if err := yaml.UnmarshalWithOptions(b, &list, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %s", file, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	known := map[string]int32{}
	for _, t := range list.Topics {
		if t.Name == "" || t.Partitions < 1 {
			return nil, fmt.Errorf("%s: topic %q needs a name and at least one partition", file, t.Name)
		}
		known[t.Name] = t.Partitions
	}
	topics := map[string]int32{}
	for _, s := range p.graph.KafkaSources {
		for _, t := range s.Topics {
			n := known[t]
			if n == 0 {
				n = max(1, list.DefaultPartitions)
			}
			topics[t] = n
		}
	}
	const usual = 12 // the engine's default
	for t, n := range p.graph.Topics() {
		if n == 0 {
			n = usual
		}
		topics[t] = n
	}
	return topics, nil
}

// checkContracts reads the stream contracts as the functions will.
func checkContracts() error {
	dir := os.Getenv("CONTRACTS_DIR")
	if _, err := contract.Open(dir); err != nil {
		if dir == "" {
			return fmt.Errorf("the built-in stream contracts are wrong: %w", err)
		}
		return fmt.Errorf("the stream contracts in %s (CONTRACTS_DIR) are wrong: %w", dir, err)
	}
	return nil
}

// relativeTo shortens the paths in an error to what the user would type.
func relativeTo(root string, err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), root+string(filepath.Separator), ""))
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Repo is every manifest of the repository.
type Repo struct {
	// Manifests are those of triggers/ and functions/.
	Manifests []*Manifest
	// Overlays are what the kustomize overlays render to, by folder.
	Overlays map[string][]*Manifest

	root     string
	problems []Problem
}

// overlayDir holds one folder an overlay.
const overlayDir = "infra/knative/overlays"

// Load reads triggers/*.yaml and functions/*/service.yaml below root, and renders
// every overlay. Manifests that can not be decoded become problems for Check.
func Load(_ context.Context, root string) (*Repo, error) {
	r := &Repo{root: root, Overlays: map[string][]*Manifest{}}
	for _, pattern := range []string{"triggers/*.yaml", "functions/*/service.yaml"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			display, err := filepath.Rel(root, file)
			if err != nil {
				return nil, err
			}
			ms, problems, err := readFile(file, display)
			if err != nil {
				return nil, err
			}
			r.Manifests = append(r.Manifests, ms...)
			r.problems = append(r.problems, problems...)
		}
	}
	if len(r.Manifests) == 0 && len(r.problems) == 0 {
		return nil, fmt.Errorf("no manifests below %s: is it the repository?", root)
	}
	overlays, err := os.ReadDir(filepath.Join(root, overlayDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, o := range overlays {
		if o.IsDir() {
			r.render(overlayDir + "/" + o.Name())
		}
	}
	return r, nil
}

// render runs kustomize on one folder.
func (r *Repo) render(dir string) {
	out, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(r.root, dir))
	if err != nil {
		r.problems = append(r.problems, Problem{File: dir, Text: err.Error()})
		return
	}
	text, err := out.AsYaml()
	if err != nil {
		r.problems = append(r.problems, Problem{File: dir, Text: err.Error()})
		return
	}
	ms, problems := parse(text, dir)
	// The lines of a rendered text lead nowhere.
	for _, m := range ms {
		m.node = nil
	}
	for i := range problems {
		problems[i].Line = 0
	}
	r.Overlays[dir] = ms
	r.problems = append(r.problems, problems...)
}

func (r *Repo) rendered() int {
	n := 0
	for _, ms := range r.Overlays {
		n += len(ms)
	}
	return n
}

// Graph is the event graph of triggers/ and functions/.
func (r *Repo) Graph() *Graph { return NewGraph(r.Manifests) }

// Check runs every check on the manifests and on what each overlay renders to.
func (r *Repo) Check(ctx context.Context) []Problem {
	problems := slices.Clone(r.problems)
	sets := [][]*Manifest{r.Manifests}
	for _, ms := range r.Overlays {
		sets = append(sets, ms)
	}
	for i, ms := range sets {
		var invalid []Problem
		for _, m := range ms {
			if m.Object != nil {
				invalid = append(invalid, admit(ctx, m)...)
				problems = append(problems, checkContainers(m)...)
			}
		}
		problems = append(problems, invalid...)
		// In the graph, what is missing or wrong in one manifest shows as several
		// problems elsewhere.
		if len(invalid) == 0 && len(r.problems) == 0 {
			problems = append(problems, NewGraph(ms).Check(i > 0)...)
		}
	}
	for _, m := range r.Manifests {
		problems = append(problems, r.checkFunction(m)...)
	}
	problems = append(problems, r.checkTypes()...)
	problems = append(problems, r.checkKustomizations()...)
	problems = append(problems, r.checkBuilds()...)
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.String(), b.String()))
	})
	return slices.CompactFunc(problems, func(a, b Problem) bool { return a.String() == b.String() })
}

// checkFunction requires that a function's one name is used everywhere: folder,
// Service, image and FUNCTION_NAME. A folder without a program runs another function's
// image under its own name.
func (r *Repo) checkFunction(m *Manifest) []Problem {
	svc, ok := m.Object.(*servingv1.Service)
	if !ok {
		return nil
	}
	name := filepath.Base(filepath.Dir(m.File))
	isProgram := func(name string) bool {
		_, err := os.Stat(filepath.Join(r.root, "functions", name, "main.go"))
		return err == nil
	}
	var problems []Problem
	if m.Name != name {
		problems = append(problems, m.problem("metadata.name", "must be %s like its folder", name))
	}
	for i, c := range svc.Spec.Template.Spec.Containers {
		path := fmt.Sprintf("spec.template.spec.containers[%d]", i)
		other, own := strings.CutPrefix(c.Image, ownImages)
		switch want := ownImages + name; {
		case c.Image == want && isProgram(name), c.Image != want && own && !isProgram(name) && isProgram(other):
		case !own || isProgram(name):
			problems = append(problems, m.problem(path+".image", "must be %s", want))
		default:
			problems = append(problems, m.problem(path+".image", "there is no program in functions/%s", other))
		}
		j := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "FUNCTION_NAME" })
		if j < 0 || c.Env[j].Value != name {
			problems = append(problems, m.problem(path+".env", "FUNCTION_NAME must be %s: replies are named after it", name))
		}
	}
	return problems
}

// checkTypes requires that every event type in the annotations is one that package
// events names, so that a misspelt type can not agree with a misspelt filter.
func (r *Repo) checkTypes() []Problem {
	const file = "shared/events/events.go"
	known, err := stringConstants(filepath.Join(r.root, file))
	if err != nil {
		return []Problem{{File: file, Text: err.Error()}}
	}
	var problems []Problem
	for _, m := range r.Manifests {
		if m.Object == nil {
			continue
		}
		for _, a := range []string{emitsAnnotation, terminalAnnotation, acceptsAnnotation} {
			for _, typ := range strings.Fields(m.Meta.GetAnnotations()[a]) {
				if !slices.Contains(known, typ) {
					problems = append(problems, m.problem("metadata.annotations["+a+"]", "%s is no event type of %s", typ, file))
				}
			}
		}
	}
	return problems
}

func stringConstants(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("reading event types: %w", err)
	}
	var all []string
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				all = append(all, s)
			}
		}
		return true
	})
	return all, nil
}

// checkKustomizations requires that kustomize deploys every file there is.
func (r *Repo) checkKustomizations() []Problem {
	var problems []Problem
	for dir, pattern := range map[string]string{"triggers": "*.yaml", "functions": "*/service.yaml"} {
		file := filepath.Join(dir, "Kustomization")
		text, err := os.ReadFile(filepath.Join(r.root, file))
		if err != nil {
			problems = append(problems, Problem{File: file, Text: err.Error()})
			continue
		}
		found, err := filepath.Glob(filepath.Join(r.root, dir, pattern))
		if err != nil {
			problems = append(problems, Problem{File: file, Text: err.Error()})
			continue
		}
		for _, f := range found {
			rel, err := filepath.Rel(filepath.Join(r.root, dir), f)
			if err == nil && !strings.Contains(string(text), "- "+rel+"\n") {
				problems = append(problems, Problem{File: file, Text: rel + " is not among the resources"})
			}
		}
	}
	return problems
}

// checkBuilds requires an entry in ko.yaml for every function. Without one ko tries
// the folders of the other entries, and may find one whose dependencies are others.
func (r *Repo) checkBuilds() []Problem {
	text, err := os.ReadFile(filepath.Join(r.root, "ko.yaml"))
	if err != nil {
		return []Problem{{File: "ko.yaml", Text: err.Error()}}
	}
	mains, err := filepath.Glob(filepath.Join(r.root, "functions", "*", "main.go"))
	if err != nil {
		return []Problem{{File: "ko.yaml", Text: err.Error()}}
	}
	var problems []Problem
	for _, main := range mains {
		name := filepath.Base(filepath.Dir(main))
		if !strings.Contains(string(text), "    main: ./functions/"+name+"\n") {
			problems = append(problems, Problem{File: "ko.yaml", Text: "builds has no entry for ./functions/" + name})
		}
	}
	return problems
}

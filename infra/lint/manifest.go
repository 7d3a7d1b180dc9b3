package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Manifest is one YAML document: of a file, or of what an overlay renders to.
type Manifest struct {
	// File is the path from the repository's root, for messages.
	File       string
	APIVersion string
	Kind, Name string
	// Object is the document as its Go type, before any defaulting; nil when it
	// could not be decoded.
	Object runtime.Object
	// Meta is Object's metadata.
	Meta metav1.Object

	node *yaml.Node
}

// Problem is one thing that is wrong, at a place a person can go to.
type Problem struct {
	File string
	// Line is 0 for a rendered manifest, which has no file of its own.
	Line int
	// Object is the kind and name, Path the field; either may be empty.
	Object, Path string
	Text         string

	// check names the container check that found it, for exemptions.
	check string
}

func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
	}
	for _, part := range []string{p.Object, p.Path, p.Text} {
		if part != "" {
			s += ": " + part
		}
	}
	return s
}

// problem makes a Problem of this manifest, at the line of the field, or of the
// closest field above it that is there.
func (m *Manifest) problem(path, format string, args ...any) Problem {
	return Problem{
		File: m.File, Line: m.line(path), Object: m.String(), Path: path,
		Text: fmt.Sprintf(format, args...),
	}
}

func (m *Manifest) String() string { return strings.TrimSpace(m.Kind + " " + m.Name) }

// key identifies the object among all manifests of one set.
func (m *Manifest) key() string { return m.Kind + "/" + m.Name }

// pathPart is a field name, an index or a quoted key, in "a.b[2].c[some/key]".
var pathPart = regexp.MustCompile(`[^.\[\]]+|\[[^\]]*\]`)

func (m *Manifest) line(path string) int {
	if m.node == nil {
		return 0
	}
	n := m.node
	for _, part := range pathPart.FindAllString(path, -1) {
		next := child(n, strings.Trim(part, "[]"))
		if next == nil {
			break
		}
		n = next
	}
	return n.Line
}

func child(n *yaml.Node, part string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == part {
				v := *n.Content[i+1]
				v.Line = n.Content[i].Line // a value may start on the next line
				return &v
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

// readFile decodes every document of a YAML file. What can not be decoded is a
// problem; the error is for a file that can not be read.
func readFile(path, display string) ([]*Manifest, []Problem, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading manifest: %w", err)
	}
	ms, problems := parse(b, display)
	return ms, problems, nil
}

// parse decodes every document of a YAML text.
func parse(text []byte, display string) ([]*Manifest, []Problem) {
	var ms []*Manifest
	var problems []Problem
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return ms, problems
		} else if err != nil {
			return ms, append(problems, Problem{File: display, Text: err.Error()})
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue
		}
		m, ps := decode(doc.Content[0], display)
		problems = append(problems, ps...)
		if m != nil {
			ms = append(ms, m)
		}
	}
}

package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// instrument is a metric as the code makes it.
type instrument struct {
	name, kind, unit, about string
	folder                  string
}

// kinds are how instruments are made: by OpenTelemetry's meters, and by the helpers that
// packages have around them, which are named for what they make.
var kinds = []struct{ part, kind string }{
	{"UpDownCounter", "gauge"}, {"Counter", "counter"}, {"Histogram", "histogram"}, {"Gauge", "gauge"},
	{"counter", "counter"}, {"histogram", "histogram"}, {"gauge", "gauge"}, {"seconds", "histogram"},
}

var (
	instrumentName = regexp.MustCompile(`^[a-z]+(\.[a-z_]+)+$`)
	unitText       = regexp.MustCompile(`^(s|By|1|%|\{[a-z ]+\})$`)
)

// readInstruments finds every metric that the functions and what they share make: each
// call whose name says so and whose first argument is a metric's name. The unit and the
// description are told by their form, since helpers take them in any order.
func readInstruments(root string) ([]instrument, error) {
	var all []instrument
	for _, top := range []string{"functions", "shared"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return fmt.Errorf("reading metrics: %w", err)
			}
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				var i instrument
				ok := false
				switch n := n.(type) {
				case *ast.CallExpr:
					i, ok = instrumentOf(n)
				case *ast.CompositeLit:
					i, ok = counterIn(n)
				}
				if ok {
					i.folder = filepath.ToSlash(folder)
					all = append(all, i)
				}
				return true
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b instrument) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(all, func(a, b instrument) bool { return a.name == b.name && a.folder == b.folder }), nil
}

func instrumentOf(call *ast.CallExpr) (i instrument, ok bool) {
	name := ""
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		name = f.Sel.Name
	case *ast.Ident:
		name = f.Name
	}
	at := slices.IndexFunc(kinds, func(k struct{ part, kind string }) bool { return strings.HasSuffix(name, k.part) })
	if at < 0 || len(call.Args) < 2 {
		return i, false
	}
	i.kind, i.name = kinds[at].kind, text(call.Args[0])
	if !instrumentName.MatchString(i.name) {
		return i, false
	}
	if name == "seconds" { // which is its unit
		i.unit = "s"
	}
	i.describe(call.Args[1:])
	return i, true
}

// counterIn finds a counter in a list of those that a loop makes: a literal with its
// name and its unit among its elements.
func counterIn(literal *ast.CompositeLit) (i instrument, ok bool) {
	for _, e := range literal.Elts {
		if t := text(e); instrumentName.MatchString(t) {
			i.name = t
		}
	}
	if i.name == "" {
		return i, false
	}
	i.kind = "counter"
	i.describe(literal.Elts)
	return i, i.unit != ""
}

// describe finds unit and description among expressions.
func (i *instrument) describe(among []ast.Expr) {
	for _, arg := range among {
		ast.Inspect(arg, func(n ast.Node) bool {
			e, isExpr := n.(ast.Expr)
			if !isExpr {
				return true
			}
			t := text(e)
			switch {
			case unitText.MatchString(t):
				i.unit = t
			case strings.HasSuffix(t, ".") && len(t) > len(i.about):
				i.about = t
			}
			return t == ""
		})
	}
}

// text is the value of a literal or of several added; "" for anything else.
func text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			s, _ := strconv.Unquote(e.Value)
			return s
		}
	case *ast.BinaryExpr:
		if a, b := text(e.X), text(e.Y); a != "" && b != "" {
			return a + b
		}
	}
	return ""
}

// prometheus is the name that a scrape gives it.
func (i instrument) prometheus() string {
	n := strings.ReplaceAll(i.name, ".", "_")
	switch i.unit {
	case "s":
		n += "_seconds"
	case "By":
		n += "_bytes"
	}
	if i.kind == "counter" {
		n += "_total"
	}
	return n
}

// MetricsTable is the metrics in markdown.
func MetricsTable(root string) (string, error) {
	all, err := readInstruments(root)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("| metric | for Prometheus | kind | unit | made by | |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, i := range all {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s | %s |\n", i.name, i.prometheus(), i.kind, i.unit, i.folder, i.about)
	}
	return b.String(), nil
}

// The table stands in the README between these two lines.
const (
	metricsBegin = "<!-- metrics: written by `go run . -write` in infra/lint -->"
	metricsEnd   = "<!-- end of metrics -->"
	metricsFile  = "shared/telemetry/README.md"
)

// WriteMetrics replaces the table in the README.
func WriteMetrics(root string) error {
	file := filepath.Join(root, filepath.FromSlash(metricsFile))
	is, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading README: %w", err)
	}
	before, _, after, err := cut(string(is), metricsBegin, metricsEnd)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	table, err := MetricsTable(root)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(before+table+after), 0o644)
}

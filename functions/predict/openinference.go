package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// The Open Inference Protocol (v2) over REST. A request has either one tensor of
// encoded rows, shape [n, features], in any numeric type, or a tensor a feature,
// named as it, shape [n] or [n, 1], with values as they are: texts as BYTES. null is
// a missing value. Features without a tensor are missing.

type v2Request struct {
	ID      string     `json:"id"`
	Inputs  []v2Tensor `json:"inputs"`
	Outputs []struct {
		Name string `json:"name"`
	} `json:"outputs"`
}

type v2Tensor struct {
	Name     string          `json:"name"`
	Datatype string          `json:"datatype"`
	Shape    []int64         `json:"shape"`
	Data     json.RawMessage `json:"data"`

	// numbers are Data's elements if it was read already; null is NaN.
	numbers []float64
}

type v2Response struct {
	ModelName    string     `json:"model_name"`
	ModelVersion string     `json:"model_version"`
	ID           string     `json:"id,omitempty"`
	Outputs      []v2Output `json:"outputs"`
}

type v2Output struct {
	Name     string    `json:"name"`
	Datatype string    `json:"datatype"`
	Shape    []int     `json:"shape"`
	Data     []float64 `json:"data"`
}

type v2Meta struct {
	Name     string   `json:"name"`
	Versions []string `json:"versions"`
	Platform string   `json:"platform"`
	Inputs   []v2Spec `json:"inputs"`
	Outputs  []v2Spec `json:"outputs"`
}

type v2Spec struct {
	Name     string `json:"name"`
	Datatype string `json:"datatype"`
	Shape    []int  `json:"shape"`
}

// output is the name of the only output tensor.
const output = "predict"

func failed(status int, format string, args ...any) (int, any) {
	return status, map[string]string{"error": fmt.Sprintf(format, args...)}
}

// loaded finds a version that is in memory, by its name and, unless that is empty,
// its version. Without one it is the version whose turn it is.
func (p *predictor) loaded(name, number string) (*version, error) {
	served := p.live.current.Load()
	if served == nil {
		return nil, errNoModel
	}
	if number == "" {
		if name != served.name {
			return nil, fmt.Errorf("model %.80q is not served, %q is", name, served.name)
		}
		return p.next(), nil
	}
	for _, v := range p.versions() {
		if v.name == name && v.version == number {
			return v, nil
		}
	}
	return nil, fmt.Errorf("version %.80q of model %.80q is not loaded", number, name)
}

// versions are all that are in memory, each once, the live one first.
func (p *predictor) versions() []*version {
	var all []*version
	seen := map[string]bool{}
	for _, s := range p.slots() {
		for _, v := range []*version{s.current.Load(), s.previous.Load()} {
			if v != nil && !seen[v.name+"/"+v.version] {
				seen[v.name+"/"+v.version] = true
				all = append(all, v)
			}
		}
	}
	return all
}

// v2Find is loaded for a request, with the status to refuse it with.
func (p *predictor) v2Find(r *http.Request) (*version, int, error) {
	v, err := p.loaded(r.PathValue("model"), r.PathValue("version"))
	if errors.Is(err, errNoModel) {
		return nil, http.StatusServiceUnavailable, p.noModel()
	}
	return v, http.StatusNotFound, err
}

func (p *predictor) v2Server(*http.Request) (int, any) {
	return http.StatusOK, map[string]any{"name": p.function, "version": telemetry.BuildVersion(), "extensions": []string{}}
}

func (p *predictor) v2Ready(r *http.Request) (int, any) {
	if err := p.ready(r.Context()); err != nil {
		return http.StatusServiceUnavailable, map[string]any{"ready": false, "error": err.Error()}
	}
	return http.StatusOK, map[string]bool{"ready": true}
}

func (p *predictor) v2ModelReady(r *http.Request) (int, any) {
	v, status, err := p.v2Find(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	return http.StatusOK, map[string]any{"name": v.name, "ready": true}
}

func (p *predictor) v2Model(r *http.Request) (int, any) {
	v, status, err := p.v2Find(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	m := v2Meta{Name: v.name, Platform: "millrace_trees", Outputs: []v2Spec{{output, "FP64", []int{-1}}}}
	if n := v.outputs(); n > 1 {
		m.Outputs[0].Shape = []int{-1, n}
	}
	for _, other := range p.versions() {
		if other.name == v.name {
			m.Versions = append(m.Versions, other.version)
		}
	}
	for i := range v.bundle.Features.Features {
		f := &v.bundle.Features.Features[i]
		m.Inputs = append(m.Inputs, v2Spec{f.Name, datatype(f), []int{-1}})
	}
	return http.StatusOK, m
}

func datatype(f *model.Feature) string {
	switch {
	case f.Type == model.Bool:
		return "BOOL"
	case f.Type == model.Int, f.Type == model.Category && !f.Values.IsText():
		return "INT64"
	case f.Type == model.Category:
		return "BYTES"
	}
	return "FP64"
}

func (p *predictor) v2Infer(r *http.Request) (int, any) {
	v, status, err := p.v2Find(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	if r.Header.Get("Inference-Header-Content-Length") != "" {
		return failed(http.StatusBadRequest, "binary tensors are not supported, JSON is")
	}
	body, status, err := readBody(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	q, quick := quickRequest(body)
	if !quick {
		q = v2Request{}
		if err := json.Unmarshal(body, &q); err != nil {
			return failed(http.StatusBadRequest, "reading the request: %v", err)
		}
	}
	for _, o := range q.Outputs {
		if o.Name != output {
			return failed(http.StatusBadRequest, "outputs: there is no output %.80q, only %q", o.Name, output)
		}
	}
	in, err := q.read(v)
	if err != nil {
		return failed(http.StatusBadRequest, "%v", err)
	}
	out, err := p.serve(r.Context(), v, in)
	if wrong, ok := errors.AsType[*itemError](err); ok {
		return failed(http.StatusBadRequest, "%v", wrong)
	}
	if err != nil {
		return failed(http.StatusInternalServerError, "%v", err)
	}
	shape := []int{in.count()}
	if n := v.outputs(); n > 1 {
		shape = append(shape, n)
	}
	answer, err := appendResponse(make([]byte, 0, 160+len(q.ID)+20*len(out)), &v2Response{ModelName: v.name, ModelVersion: v.version, ID: q.ID,
		Outputs: []v2Output{{output, "FP64", shape, out}}})
	if err != nil {
		return failed(http.StatusInternalServerError, "%v", err)
	}
	return http.StatusOK, encoded(answer)
}

// read checks the tensors and makes inputs of them.
func (q *v2Request) read(v *version) (inputs, error) {
	if len(q.Inputs) == 0 {
		return nil, errors.New("inputs: none")
	}
	first := &q.Inputs[0]
	width := v.bundle.Model.Features()
	_, isFeature := v.bundle.Index(first.Name)
	if len(q.Inputs) == 1 && len(first.Shape) == 2 && (!isFeature || first.Shape[1] != 1) {
		return first.matrix(width)
	}
	c := &columns{names: make([]string, len(q.Inputs)), values: make([][]model.Value, len(q.Inputs)), rows: -1}
	seen := make(map[string]bool, len(q.Inputs))
	for i := range q.Inputs {
		t := &q.Inputs[i]
		if _, ok := v.bundle.Index(t.Name); !ok {
			return nil, fmt.Errorf("inputs[%d].name: model %s has no feature %.80q, only %s", i, v.name, t.Name,
				strings.Join(v.bundle.Features.Names(), ", "))
		}
		if seen[t.Name] {
			return nil, fmt.Errorf("inputs[%d].name: %q is given twice", i, t.Name)
		}
		seen[t.Name] = true
		rows, err := t.rows()
		if err != nil {
			return nil, fmt.Errorf("inputs[%d] (%s): %w", i, t.Name, err)
		}
		if c.rows >= 0 && rows != c.rows {
			return nil, fmt.Errorf("inputs[%d].shape: %d rows, the tensors before have %d", i, rows, c.rows)
		}
		c.rows = rows
		if c.values[i], err = t.values(rows); err != nil {
			return nil, fmt.Errorf("inputs[%d] (%s): %w", i, t.Name, err)
		}
		c.names[i] = t.Name
	}
	return c, nil
}

// rows is the length of a tensor of one feature.
func (t *v2Tensor) rows() (int, error) {
	if len(t.Shape) != 1 && (len(t.Shape) != 2 || t.Shape[1] != 1) {
		return 0, fmt.Errorf("shape: want [n] or [n, 1], not %v", t.Shape)
	}
	return checkRows(t.Shape[0])
}

func checkRows(n int64) (int, error) {
	if n < 1 || n > maxItems {
		return 0, fmt.Errorf("shape: %d rows, want 1 to %d", n, maxItems)
	}
	return int(n), nil
}

// matrix reads rows that are encoded already.
func (t *v2Tensor) matrix(width int) (inputs, error) {
	rows, err := checkRows(t.Shape[0])
	if err == nil && t.Shape[1] != int64(width) {
		err = fmt.Errorf("shape: rows of %d, the model has %d features", t.Shape[1], width)
	}
	if err == nil && t.Datatype == "BYTES" {
		err = errors.New("datatype: rows are numbers, not BYTES")
	}
	if err != nil {
		return nil, fmt.Errorf("inputs[0] (%s): %w", t.Name, err)
	}
	if t.plain(rows * width) {
		return &matrix{values: t.numbers, width: width}, nil
	}
	m := &matrix{values: make([]float64, 0, rows*width), width: width}
	err = t.scan(rows*width, func(v model.Value) {
		m.values = append(m.values, v.Float())
	})
	if err != nil {
		return nil, fmt.Errorf("inputs[0] (%s): %w", t.Name, err)
	}
	return m, nil
}

// values reads one feature.
func (t *v2Tensor) values(rows int) ([]model.Value, error) {
	values := make([]model.Value, 0, rows)
	if t.plain(rows) {
		for _, v := range t.numbers {
			values = append(values, model.Number(v))
		}
		return values, nil
	}
	err := t.scan(rows, func(v model.Value) { values = append(values, v) })
	return values, err
}

// plain tells whether the data was read already and is what shape and datatype say.
// If it is not, scan says what is wrong.
func (t *v2Tensor) plain(n int) bool {
	if len(t.numbers) != n {
		return false
	}
	switch t.Datatype {
	case "FP16", "FP32", "FP64":
		return true
	case "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64":
		return !slices.ContainsFunc(t.numbers, func(v float64) bool { return v != math.Trunc(v) && !math.IsNaN(v) })
	}
	return false
}

// scan reads the data, nested or flat, which is valid JSON. There must be n elements
// of the datatype.
func (t *v2Tensor) scan(n int, yield func(model.Value)) error {
	integer := strings.HasPrefix(t.Datatype, "INT") || strings.HasPrefix(t.Datatype, "UINT")
	switch t.Datatype {
	case "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BYTES":
	default:
		return fmt.Errorf("datatype: %.20q is not one of the protocol", t.Datatype)
	}
	if len(t.Data) == 0 || t.Data[0] != '[' {
		return errors.New("data: want an array")
	}
	count := 0
	for at := 0; at < len(t.Data); {
		end, kind := element(t.Data, at)
		if kind == 0 {
			at = end
			continue
		}
		if count++; count > n {
			return fmt.Errorf("data: more than the %d elements that shape says", n)
		}
		word := t.Data[at:end]
		at = end
		fits := false
		switch kind {
		case '"':
			fits = t.Datatype == "BYTES"
		case 't', 'f':
			fits = t.Datatype == "BOOL"
		case 'n':
			fits = true
		case '0':
			fits = t.Datatype != "BYTES"
		}
		if !fits {
			return fmt.Errorf("data: element %d, %.40s, is not of datatype %s", count-1, word, t.Datatype)
		}
		var v model.Value
		switch kind {
		case '0':
			x, err := strconv.ParseFloat(string(word), 64)
			if err != nil {
				return fmt.Errorf("data: element %d, %.40s, is out of range", count-1, word)
			}
			if integer && x != math.Trunc(x) {
				return fmt.Errorf("data: element %d, %.40s, is not of datatype %s", count-1, word, t.Datatype)
			}
			v = model.Number(x)
		default:
			if err := v.UnmarshalJSON(word); err != nil {
				return fmt.Errorf("data: element %d: %w", count-1, err)
			}
		}
		yield(v)
	}
	if count != n {
		return fmt.Errorf("data: %d elements, shape says %d", count, n)
	}
	return nil
}

// element finds the end of what begins at a place in valid JSON without objects, and
// what it is: '"', 't', 'f', 'n', '0' for a number, 0 for what is no element.
func element(b []byte, at int) (end int, kind byte) {
	switch c := b[at]; c {
	case '[', ']', ',', ' ', '\t', '\r', '\n', '{', '}', ':':
		return at + 1, 0
	case '"':
		for end = at + 1; b[end] != '"'; end++ {
			if b[end] == '\\' {
				end++
			}
		}
		return end + 1, c
	case 't', 'n':
		return at + 4, c
	case 'f':
		return at + 5, c
	}
	for end = at; end < len(b); end++ {
		if c := b[end]; c == ',' || c == ']' || c == '}' || c <= ' ' {
			break
		}
	}
	return end, '0'
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
)

// KServe's first protocol. An instance is a row of encoded numbers, or an object of
// features by name; null is a missing value.

func (p *predictor) v1Models(*http.Request) (int, any) {
	names := []string{}
	if v := p.live.current.Load(); v != nil {
		names = append(names, v.name)
	}
	return http.StatusOK, map[string]any{"models": names}
}

func (p *predictor) v1Model(r *http.Request) (int, any) {
	v, status, err := p.v2Find(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	return http.StatusOK, map[string]any{"name": v.name, "ready": true}
}

func (p *predictor) v1Predict(r *http.Request) (int, any) {
	name, isPredict := strings.CutSuffix(r.PathValue("call"), ":predict")
	if !isPredict {
		return failed(http.StatusNotFound, "there is no %s, only :predict", r.URL.Path)
	}
	r.SetPathValue("model", name)
	v, status, err := p.v2Find(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	body, status, err := readBody(r)
	if err != nil {
		return failed(status, "%v", err)
	}
	var q struct {
		Instances []json.RawMessage `json:"instances"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return failed(http.StatusBadRequest, "reading the request: %v", err)
	}
	if len(q.Instances) == 0 || len(q.Instances) > maxItems {
		return failed(http.StatusBadRequest, "instances: %d, want 1 to %d", len(q.Instances), maxItems)
	}
	in, err := v1Inputs(q.Instances, v.bundle.Model.Features())
	if err != nil {
		return failed(http.StatusBadRequest, "instances%v", err)
	}
	out, err := p.serve(r.Context(), v, in)
	if wrong, ok := errors.AsType[*itemError](err); ok {
		return failed(http.StatusBadRequest, "instances[%d]: %v", wrong.item, wrong.err)
	}
	if err != nil {
		return failed(http.StatusInternalServerError, "%v", err)
	}
	predictions := make([]any, in.count())
	for i := range predictions {
		predictions[i] = one(out, v.outputs(), i)
	}
	return http.StatusOK, map[string]any{"predictions": predictions, "model_name": v.name, "model_version": v.version}
}

// v1Inputs reads instances, which are all rows or all objects.
func v1Inputs(instances []json.RawMessage, width int) (inputs, error) {
	if instances[0][0] == '{' {
		in := make(named, len(instances))
		for i, raw := range instances {
			if err := json.Unmarshal(raw, &in[i]); err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			if in[i] == nil {
				return nil, fmt.Errorf("[%d]: want an object, as the first one is", i)
			}
		}
		return in, nil
	}
	in := &matrix{values: make([]float64, 0, len(instances)*width), width: width}
	for i, raw := range instances {
		var row []*float64
		if err := json.Unmarshal(raw, &row); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		if len(row) != width {
			return nil, fmt.Errorf("[%d]: %d values, the model has %d features", i, len(row), width)
		}
		for _, v := range row {
			if v == nil {
				in.values = append(in.values, math.NaN())
			} else {
				in.values = append(in.values, *v)
			}
		}
	}
	return in, nil
}

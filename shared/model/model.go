package model

import (
	"fmt"
	"math"
	"sync"

	"github.com/dmitryikh/leaves"
)

// Bounds of a model.
const (
	// MaxFeatures is the most features of a model.
	MaxFeatures = 10_000
	// MaxClasses is the most outputs of a model.
	MaxClasses = 1000
)

// Model computes predictions. It does not change and is safe for concurrent use.
type Model struct {
	flat      *flat            // walks the trees, unless there are categorical nodes:
	trees     *leaves.Ensemble // then it is nil, and this does
	features  int
	outputs   int
	count     int
	bias      []float64
	transform Transform
	wide      bool // features stay float64
	objective string
	spread    sync.Pool // *[]float64, room for rows of many columns
}

// newModel makes a model of a parsed file. transform may be nil where the file says
// enough.
func newModel(f *forest, transform *Transform, wide bool) (*Model, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	switch {
	case f.transform == nil && transform == nil:
		return nil, fmt.Errorf("objective: %q does not say the transform; features.json has to", f.objective)
	case transform == nil:
		transform = f.transform
	case f.transform != nil && *transform != *f.transform:
		return nil, fmt.Errorf("objective: %q asks for transform %s, features.json for %s", f.objective, f.transform.Kind, transform.Kind)
	}
	switch {
	case transform.Kind == Softmax && f.groups < 2:
		return nil, fmt.Errorf("transform %s needs two outputs, the model has %d", Softmax, f.groups)
	case transform.Kind == Isolation && (f.groups != 1 || !f.average):
		return nil, fmt.Errorf("transform %s needs one output that is the average of the trees", Isolation)
	}
	m := &Model{features: f.features, outputs: f.groups, count: len(f.trees), bias: f.bias,
		transform: *transform, wide: wide, objective: f.objective}
	var ok bool
	if m.flat, ok = flatten(f); ok {
		return m, nil
	}
	m.flat = nil
	trees, err := f.build()
	if err != nil {
		return nil, err
	}
	if trees.NEstimators()*f.groups != len(f.trees) || trees.NRawOutputGroups() != f.groups {
		return nil, fmt.Errorf("building the trees: %d of %d were taken", trees.NEstimators()*trees.NRawOutputGroups(), len(f.trees))
	}
	m.trees = trees
	return m, nil
}

// Features is the width of a row.
func (m *Model) Features() int { return m.features }

// Outputs is how many values a prediction has: one, or one a class.
func (m *Model) Outputs() int { return m.outputs }

// Trees is how many trees the model has.
func (m *Model) Trees() int { return m.count }

// Objective is what the model was trained for, as the training library calls it.
func (m *Model) Objective() string { return m.objective }

// Predict computes the predictions of rows, one after the other in rows, into out,
// in the same order. A feature that is missing is NaN. rows is scratch afterwards:
// its values were rounded. Nothing is allocated.
//
// The error is about the lengths: rows must hold whole rows, and out Outputs values
// for each.
func (m *Model) Predict(out, rows []float64) error {
	if err := m.Margins(out, rows); err != nil {
		return err
	}
	m.transform.apply(out, m.outputs)
	return nil
}

// Margins is Predict without the transform: the sums of trees and base score.
func (m *Model) Margins(out, rows []float64) error {
	n := len(rows) / m.features
	if n*m.features != len(rows) {
		return fmt.Errorf("%d values are no rows of %d features", len(rows), m.features)
	}
	if len(out) != n*m.outputs {
		return fmt.Errorf("room for %d values, %d rows have %d", len(out), n, n*m.outputs)
	}
	if !m.wide {
		for i, v := range rows {
			rows[i] = float64(float32(v))
		}
	}
	if m.flat != nil {
		m.walk(out, rows)
	}
	for i := range n {
		one := out[i*m.outputs : (i+1)*m.outputs]
		if m.flat == nil {
			// Its own function for many rows allocates.
			if err := m.trees.Predict(rows[i*m.features:(i+1)*m.features], 0, one); err != nil {
				return fmt.Errorf("walking the trees: %w", err)
			}
		}
		for j, b := range m.bias {
			one[j] += b
		}
	}
	return nil
}

// walk sums the trees of flat.
func (m *Model) walk(out, rows []float64) {
	var few [256]float64
	if need := lanes * len(m.flat.columns); need > len(few) {
		x, _ := m.spread.Get().(*[]float64)
		if x == nil {
			many := make([]float64, need)
			x = &many
		}
		m.flat.sums(out, rows, m.features, *x)
		m.spread.Put(x)
		return
	}
	m.flat.sums(out, rows, m.features, few[:])
}

// fits tells whether a value can be a feature of the model: it is finite, also once
// it is rounded.
func (m *Model) fits(v float64) bool {
	if !m.wide {
		v = float64(float32(v))
	}
	return !math.IsInf(v, 0)
}

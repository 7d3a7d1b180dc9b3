package main

import (
	"fmt"
	"math"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/model"
)

// inputs are the items of a request, in a form that any version can encode for its
// own model. They do not change once they are made.
type inputs interface {
	count() int
	// encode fills in the row of item i.
	encode(v *version, i int, row []float64) error
}

// itemError is an error that one item of a request is at fault for.
type itemError struct {
	item int
	err  error
}

func (e *itemError) Error() string { return fmt.Sprintf("item %d: %v", e.item, e.err) }
func (e *itemError) Unwrap() error { return e.err }

// entities are the features of the shop's events or entities.
type entities []features.Vector

func (e entities) count() int { return len(e) }

func (e entities) encode(v *version, i int, row []float64) error {
	if v.shop == nil {
		return fmt.Errorf("feature %q of model %s is not in the online store; give the features", v.foreign, v.name)
	}
	for at, place := range v.shop {
		n, err := v.bundle.Encode(at, value(e[i][place]))
		if err != nil {
			return err
		}
		row[at] = n
	}
	return nil
}

// value is a shop feature's value as models take it.
func value(v features.Value) model.Value {
	switch v := v.Any().(type) {
	case int64:
		return model.Number(float64(v))
	case float64:
		return model.Number(v)
	case string:
		return model.Text(v)
	}
	return model.Value{}
}

// named are features by their names, item by item.
type named []map[string]model.Value

func (n named) count() int { return len(n) }

func (n named) encode(v *version, i int, row []float64) error { return v.bundle.Row(row, n[i]) }

// fields are the members of records by their names, item by item. Those that are no
// features do not matter.
type fields []map[string]model.Value

func (f fields) count() int { return len(f) }

func (f fields) encode(v *version, i int, row []float64) error {
	for at := range row {
		n, err := v.bundle.Encode(at, f[i][v.bundle.Features.Features[at].Name])
		if err != nil {
			return err
		}
		row[at] = n
	}
	return nil
}

// mixed are items of either kind: those without names are entities.
type mixed struct {
	named    named
	entities entities
}

func (m *mixed) count() int { return len(m.named) }

func (m *mixed) encode(v *version, i int, row []float64) error {
	if m.named[i] != nil {
		return m.named.encode(v, i, row)
	}
	return m.entities.encode(v, i, row)
}

// matrix is rows that the client has encoded already.
type matrix struct {
	values []float64
	width  int
}

func (m *matrix) count() int { return len(m.values) / m.width }

func (m *matrix) encode(v *version, i int, row []float64) error {
	if m.width != len(row) {
		return fmt.Errorf("%d values, model %s has %d features", m.width, v.name, len(row))
	}
	for at, n := range m.values[i*m.width : (i+1)*m.width] {
		if math.Abs(n) > math.MaxFloat32 {
			return fmt.Errorf("feature %q: %v is beyond the numbers of the model", v.bundle.Features.Features[at].Name, n)
		}
		row[at] = n
	}
	return nil
}

// columns are features by their names, feature by feature.
type columns struct {
	rows   int
	names  []string
	values [][]model.Value
}

func (c *columns) count() int { return c.rows }

func (c *columns) encode(v *version, i int, row []float64) error {
	for at := range row {
		n, err := v.bundle.Encode(at, model.Value{})
		if err != nil {
			return err
		}
		row[at] = n
	}
	for column, name := range c.names {
		at, ok := v.bundle.Index(name)
		if !ok {
			return fmt.Errorf("feature %.80q: model %s has no such feature", name, v.name)
		}
		n, err := v.bundle.Encode(at, c.values[column][i])
		if err != nil {
			return err
		}
		row[at] = n
	}
	return nil
}

package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Features is features.json: what a row of the model is made of, in order.
type Features struct {
	// Format is 1.
	Format int `json:"format"`
	// Target names what is predicted.
	Target string `json:"target"`
	// Features are the columns of a row.
	Features []Feature `json:"features"`
	// Transform is how margins become predictions; it may be left out where the
	// model file says it.
	Transform *Transform `json:"transform,omitempty"`
	// Precision is what features are rounded to: "float32", the default, as XGBoost
	// and scikit-learn do, or "float64", as LightGBM does.
	Precision string `json:"precision,omitempty"`
	// Classes names the outputs of a softmax, in order. Optional.
	Classes []string `json:"classes,omitempty"`
}

// Feature is one column.
type Feature struct {
	Name string `json:"name"`
	// Type is one of
	//
	//	float     a finite number
	//	int       a whole number
	//	bool      true or false, 1 or 0
	//	category  one of Values, encoded as its place in them; unseen or missing -1
	//
	// A missing float, int or bool is NaN, which the trees know.
	Type string `json:"type"`
	// Values are the distinct values of a category in the training data, sorted:
	// all texts, in the order of their bytes, or all whole numbers.
	Values *Values `json:"values,omitempty"`
}

// Types of a Feature.
const (
	Float    = "float"
	Int      = "int"
	Bool     = "bool"
	Category = "category"
)

// Values is a category's encoder.
type Values struct {
	texts   []string
	numbers []int64
	textAt  map[string]int
}

// UnmarshalJSON reads a sorted list of texts or of whole numbers.
func (v *Values) UnmarshalJSON(b []byte) error {
	*v = Values{}
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return fmt.Errorf("values: want a list: %w", err)
	}
	if len(raw) > 0 && raw[0][0] == '"' {
		if err := json.Unmarshal(b, &v.texts); err != nil {
			return fmt.Errorf("values: want texts only, as the first is one: %w", err)
		}
		v.textAt = make(map[string]int, len(v.texts))
		for i, text := range v.texts {
			if i > 0 && v.texts[i-1] >= text {
				return fmt.Errorf("values: must be sorted and distinct, %q is followed by %q", v.texts[i-1], text)
			}
			v.textAt[text] = i
		}
		return nil
	}
	v.numbers = make([]int64, 0, len(raw))
	for _, r := range raw {
		n, err := strconv.ParseInt(string(r), 10, 64)
		if err != nil {
			return fmt.Errorf("values: want texts or whole numbers only, not %.40s", r)
		}
		if last := len(v.numbers) - 1; last >= 0 && v.numbers[last] >= n {
			return fmt.Errorf("values: must be sorted and distinct, %d is followed by %d", v.numbers[last], n)
		}
		v.numbers = append(v.numbers, n)
	}
	return nil
}

// MarshalJSON writes the list.
func (v *Values) MarshalJSON() ([]byte, error) {
	if v.texts != nil {
		return json.Marshal(v.texts)
	}
	return json.Marshal(v.numbers)
}

// TextValues makes the encoder of a category of texts, from the distinct values.
func TextValues(values ...string) *Values {
	v := &Values{texts: slices.Sorted(slices.Values(values)), textAt: map[string]int{}}
	for i, text := range v.texts {
		v.textAt[text] = i
	}
	return v
}

// NumberValues makes the encoder of a category of whole numbers, from the distinct
// values.
func NumberValues(values ...int64) *Values {
	return &Values{numbers: slices.Sorted(slices.Values(values))}
}

// Len is how many values the category has.
func (v *Values) Len() int { return len(v.texts) + len(v.numbers) }

// IsText tells categories of texts from those of numbers.
func (v *Values) IsText() bool { return v.texts != nil }

// Value is a feature's value as it comes from outside.
type Value struct {
	kind   kind
	number float64
	text   string
}

type kind uint8

const (
	kindMissing kind = iota
	kindNumber
	kindText
)

// Number is a number. NaN is a missing value.
func Number(v float64) Value {
	if math.IsNaN(v) {
		return Value{}
	}
	return Value{kind: kindNumber, number: v}
}

// Text is a text. The zero Value is a missing value.
func Text(s string) Value { return Value{kind: kindText, text: s} }

// Missing tells whether there is no value.
func (v Value) Missing() bool { return v.kind == kindMissing }

// Float is the number, NaN of anything else.
func (v Value) Float() float64 {
	if v.kind != kindNumber {
		return math.NaN()
	}
	return v.number
}

// UnmarshalJSON reads a number, a text, a truth value (1 or 0) or null.
func (v *Value) UnmarshalJSON(b []byte) error {
	switch b[0] {
	case 'n':
		*v = Value{}
	case 't':
		*v = Number(1)
	case 'f':
		*v = Number(0)
	case '"':
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		*v = Text(s)
	case '{', '[':
		return errors.New("want a number, a text, true, false or null")
	default:
		n, err := strconv.ParseFloat(string(b), 64)
		if err != nil {
			return fmt.Errorf("%.40s is out of range", b)
		}
		*v = Number(n)
	}
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (v Value) MarshalJSON() ([]byte, error) {
	switch v.kind {
	case kindNumber:
		return json.Marshal(v.number)
	case kindText:
		return json.Marshal(v.text)
	case kindMissing:
	}
	return []byte("null"), nil
}

// encode gives the number that stands for a value in a row. The error says what is
// wrong with the value, without naming the feature.
func (f *Feature) encode(v Value) (float64, error) {
	if f.Type == Category {
		return f.Values.encode(v)
	}
	switch {
	case v.kind == kindMissing:
		return math.NaN(), nil
	case v.kind == kindText:
		return 0, fmt.Errorf("must be a number (%s), not the text %.40q", f.Type, v.text)
	case math.IsInf(v.number, 0):
		return 0, fmt.Errorf("%v is not finite", v.number)
	case f.Type == Int && v.number != math.Trunc(v.number):
		return 0, fmt.Errorf("must be a whole number, not %v", v.number)
	case f.Type == Bool && v.number != 0 && v.number != 1:
		return 0, fmt.Errorf("must be true or false, 1 or 0, not %v", v.number)
	}
	return v.number, nil
}

func (v *Values) encode(value Value) (float64, error) {
	switch value.kind {
	case kindText:
		if v.numbers != nil {
			return 0, fmt.Errorf("must be a whole number, as its categories are, not the text %.40q", value.text)
		}
		if at, ok := v.textAt[value.text]; ok {
			return float64(at), nil
		}
	case kindNumber:
		if v.texts != nil {
			return 0, fmt.Errorf("must be a text, as its categories are, not %v", value.number)
		}
		if value.number != math.Trunc(value.number) {
			return 0, fmt.Errorf("must be a whole number, as its categories are, not %v", value.number)
		}
		if math.Abs(value.number) < 1<<63 {
			if at, ok := slices.BinarySearch(v.numbers, int64(value.number)); ok {
				return float64(at), nil
			}
		}
	case kindMissing:
	}
	return -1, nil
}

// check tells whether features.json is one.
func (f *Features) check() error {
	if f.Format != 1 {
		return fmt.Errorf("format: must be 1, not %d", f.Format)
	}
	if f.Target == "" {
		return errors.New("target: required")
	}
	if n := len(f.Features); n < 1 || n > MaxFeatures {
		return fmt.Errorf("features: %d, want 1 to %d", n, MaxFeatures)
	}
	seen := make(map[string]bool, len(f.Features))
	for i := range f.Features {
		x := &f.Features[i]
		if x.Name == "" {
			return fmt.Errorf("features[%d].name: required", i)
		}
		if seen[x.Name] {
			return fmt.Errorf("features[%d].name: %q is given twice", i, x.Name)
		}
		if x.Name == f.Target {
			return fmt.Errorf("features[%d].name: %q is the target", i, x.Name)
		}
		seen[x.Name] = true
		switch x.Type {
		case Float, Int, Bool:
			if x.Values != nil {
				return fmt.Errorf("feature %q: values: belong to type category only", x.Name)
			}
		case Category:
			if x.Values == nil || x.Values.Len() == 0 {
				return fmt.Errorf("feature %q: values: required for type category", x.Name)
			}
			if x.Values.Len() > maxCategory {
				return fmt.Errorf("feature %q: values: %d, want at most %d", x.Name, x.Values.Len(), maxCategory)
			}
		default:
			return fmt.Errorf("feature %q: type: %q is none of %s, %s, %s, %s", x.Name, x.Type, Float, Int, Bool, Category)
		}
	}
	if f.Transform != nil {
		if err := f.Transform.check(); err != nil {
			return fmt.Errorf("transform: %w", err)
		}
	}
	switch f.Precision {
	case "", "float32", "float64":
	default:
		return fmt.Errorf("precision: %q is neither float32 nor float64", f.Precision)
	}
	return nil
}

// fit tells whether the model was made for these features.
func (f *Features) fit(file *forest) error {
	if len(f.Features) != file.features {
		return fmt.Errorf("features: %d, the model has %d", len(f.Features), file.features)
	}
	for i, name := range file.names {
		// LightGBM writes a space in a name as an underscore.
		if own := f.Features[i].Name; own != name && strings.ReplaceAll(own, " ", "_") != name {
			return fmt.Errorf("features[%d]: is %q, in the model %q", i, own, name)
		}
	}
	if n := len(f.Classes); n != 0 && n != file.groups {
		return fmt.Errorf("classes: %d, the model has %d outputs", n, file.groups)
	}
	return nil
}

package model

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// parseLightGBM reads LightGBM text, which is also the form that forests of
// scikit-learn are exported in. It takes what leaves would compute rightly.
func parseLightGBM(data []byte) (*forest, error) {
	r := blocks{rest: string(data)}
	header, err := r.next()
	if err != nil {
		return nil, err
	}
	if _, ok := header["tree"]; !ok || r.first != "tree" {
		return nil, fmt.Errorf("not LightGBM text: the first line is %.40q, want \"tree\"", r.first)
	}
	switch v := header["version"]; v {
	case "v2", "v3", "v4":
	default:
		return nil, fmt.Errorf("version: %.20q is not supported, v2, v3 and v4 are", v)
	}
	f := &forest{}
	if f.groups, err = header.integer("num_class"); err != nil {
		return nil, err
	}
	if n, err := header.integer("num_tree_per_iteration"); err != nil {
		return nil, err
	} else if n != f.groups {
		return nil, fmt.Errorf("num_tree_per_iteration: %d for %d classes", n, f.groups)
	}
	last, err := header.integer("max_feature_idx")
	if err != nil {
		return nil, err
	}
	if last < 0 || last >= MaxFeatures {
		return nil, fmt.Errorf("max_feature_idx: %d, want 0 to %d", last, MaxFeatures-1)
	}
	f.features = last + 1
	if f.groups < 1 || f.groups > MaxClasses {
		return nil, fmt.Errorf("num_class: %d, want 1 to %d", f.groups, MaxClasses)
	}
	f.bias = make([]float64, f.groups) // LightGBM has it in the leaves of the first trees
	_, f.average = header["average_output"]
	if err := f.lightGBMObjective(header["objective"]); err != nil {
		return nil, fmt.Errorf("objective: %w", err)
	}
	if names := strings.Fields(header["feature_names"]); len(names) == f.features {
		f.names = names
	} else if len(names) > 0 {
		return nil, fmt.Errorf("feature_names: %d names for %d features", len(names), f.features)
	}
	if err := f.lightGBMTrees(&r); err != nil {
		return nil, err
	}
	if n := len(strings.Fields(header["tree_sizes"])); n != len(f.trees) {
		return nil, fmt.Errorf("tree_sizes: %d sizes for %d trees", n, len(f.trees))
	}
	return f, nil
}

// lightGBMObjective finds the transform that an objective asks for. Of a file
// without one, or of a forest whose trees were averaged over something else than
// margins, features.json has to say it.
func (f *forest) lightGBMObjective(text string) error {
	name, params, _ := strings.Cut(text, " ")
	var kind string
	switch name {
	case "", "custom":
		return nil
	case "regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg":
		if params != "" {
			return fmt.Errorf("%q is not supported with %q", name, params)
		}
		kind = Identity
	case "poisson", "gamma", "tweedie":
		kind = Exp
	case "binary":
		if params != "sigmoid:1" {
			return fmt.Errorf("%q is supported with sigmoid:1 only, not %q", name, params)
		}
		kind = Sigmoid
	case "multiclass":
		if params != "num_class:"+strconv.Itoa(f.groups) {
			return fmt.Errorf("%q is supported with num_class:%d only, not %q", name, f.groups, params)
		}
		kind = Softmax
	default:
		return fmt.Errorf("%.40q is not supported", name)
	}
	f.objective = name
	if !f.average || kind == Identity {
		f.transform = &Transform{Kind: kind}
	}
	return nil
}

func (f *forest) lightGBMTrees(r *blocks) error {
	for {
		b, err := r.next()
		if err != nil {
			return err
		}
		if r.first == "end of trees" || r.first == "" {
			return nil // what follows is for people
		}
		if want := "Tree=" + strconv.Itoa(len(f.trees)); r.first != want {
			return fmt.Errorf("found %.40q where %q or \"end of trees\" should be", r.first, want)
		}
		t, err := b.tree()
		if err != nil {
			return fmt.Errorf("tree %d: %w", len(f.trees), err)
		}
		f.trees = append(f.trees, t)
	}
}

func (b block) tree() (t tree, err error) {
	if b["is_linear"] != "" && b["is_linear"] != "0" {
		return t, errors.New("is_linear: trees with linear leaves are not supported")
	}
	leaves, err := b.integer("num_leaves")
	if err != nil {
		return t, err
	}
	if t.leaf, err = list(b, "leaf_value", 64, strconv.ParseFloat); err != nil {
		return t, err
	}
	if len(t.leaf) != leaves {
		return t, fmt.Errorf("leaf_value: %d values for %d leaves", len(t.leaf), leaves)
	}
	if leaves <= 1 {
		return t, nil
	}
	if t.threshold, err = list(b, "threshold", 64, strconv.ParseFloat); err != nil {
		return t, err
	}
	if t.feature, err = integers[int32](b, "split_feature"); err != nil {
		return t, err
	}
	if t.left, err = integers[int32](b, "left_child"); err != nil {
		return t, err
	}
	if t.right, err = integers[int32](b, "right_child"); err != nil {
		return t, err
	}
	if t.decision, err = integers[uint8](b, "decision_type"); err != nil {
		return t, err
	}
	categorical, err := b.integer("num_cat")
	if err != nil || categorical == 0 {
		return t, err
	}
	if t.bounds, err = integers[uint32](b, "cat_boundaries"); err != nil {
		return t, err
	}
	if len(t.bounds) != categorical+1 {
		return t, fmt.Errorf("cat_boundaries: %d for %d categorical splits, want one more", len(t.bounds), categorical)
	}
	if t.sets, err = integers[uint32](b, "cat_threshold"); err != nil {
		return t, err
	}
	for i := range t.decision {
		// LightGBM sends what is missing to the right at such a split whatever it
		// calls missing; leaves does for NaN only.
		if t.decision[i]&decideCategory != 0 {
			t.decision[i] = t.decision[i]&^decideMissing | missingNaN
		}
	}
	return t, nil
}

// block is the lines of a part of the file up to an empty one, key=value each.
type block map[string]string

// blocks splits LightGBM text.
type blocks struct {
	rest  string
	first string // the first line of the last block
}

func (r *blocks) next() (block, error) {
	b := block{}
	r.first = ""
	for r.rest != "" {
		var text string
		text, r.rest, _ = strings.Cut(r.rest, "\n")
		text = strings.TrimSpace(text)
		if text == "" {
			if r.first == "" {
				continue
			}
			break
		}
		if r.first == "" {
			r.first = text
		}
		key, value, _ := strings.Cut(text, "=")
		if _, twice := b[key]; twice {
			return nil, fmt.Errorf("%.40q is given twice in the block of %.40q", key, r.first)
		}
		b[key] = value
	}
	return b, nil
}

func (b block) integer(key string) (int, error) {
	text, ok := b[key]
	if !ok {
		return 0, fmt.Errorf("%s: required", key)
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %.40q is not a whole number of 32 bits", key, text)
	}
	return int(n), nil
}

func list[T any](b block, key string, bits int, parse func(string, int) (T, error)) ([]T, error) {
	text, ok := b[key]
	if !ok {
		return nil, fmt.Errorf("%s: required", key)
	}
	values := make([]T, 0, strings.Count(text, " ")+1)
	for word := range strings.FieldsSeq(text) {
		v, err := parse(word, bits)
		if err != nil {
			return nil, fmt.Errorf("%s: %.40q is not a number of its kind", key, word)
		}
		values = append(values, v)
	}
	return values, nil
}

func integers[T int32 | uint8 | uint32](b block, key string) ([]T, error) {
	return list(b, key, 0, func(word string, _ int) (T, error) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil || int64(T(n)) != n {
			return 0, errors.New("out of range")
		}
		return T(n), nil
	})
}

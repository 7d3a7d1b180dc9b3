package model

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/dmitryikh/leaves"
)

// forest is a parsed model: trees, and what is added to their sums.
type forest struct {
	features int // the width of a row
	groups   int // sums a row: one, or one a class
	average  bool
	bias     []float64 // one a group
	trees    []tree    // iteration by iteration, one a group in each

	objective string     // as the training library calls it; empty if unknown
	transform *Transform // what the objective asks for; nil if unknown
	names     []string   // of the features, if the model says them
}

// tree is one tree. Nodes and leaves are numbered on their own; a child below 0 is
// the leaf ^child. A tree without nodes is its only leaf.
type tree struct {
	feature   []int32
	threshold []float64 // value <= threshold goes left; of a categorical node, the number of its set
	decision  []uint8   // LightGBM's decision_type
	left      []int32
	right     []int32
	leaf      []float64

	// The sets of categorical nodes: set i is the bits of
	// sets[bounds[i]:bounds[i+1]].
	bounds []uint32
	sets   []uint32
}

// Bits of LightGBM's decision_type.
const (
	decideCategory = 1
	decideLeft     = 2      // what is missing goes left
	decideMissing  = 3 << 2 // what counts as missing:
	missingZero    = 1 << 2
	missingNaN     = 2 << 2
)

// maxLeaf bounds the values of leaves, so that no sum of them overflows.
const maxLeaf = 1e100

// maxCategory bounds the categories of a node, as a number to look up.
const maxCategory = 1 << 20

// check tells whether the tree is one: every node and leaf is reached from the root
// exactly once, so that walking it ends, and every number can be used.
func (t *tree) check(features int) error {
	nodes := len(t.feature)
	if len(t.threshold) != nodes || len(t.decision) != nodes || len(t.left) != nodes || len(t.right) != nodes {
		return fmt.Errorf("features, thresholds, decisions, left and right children of nodes differ in number: %d, %d, %d, %d, %d",
			nodes, len(t.threshold), len(t.decision), len(t.left), len(t.right))
	}
	if len(t.leaf) != nodes+1 {
		return fmt.Errorf("%d leaves for %d splits, want one more than splits", len(t.leaf), nodes)
	}
	for i, v := range t.leaf {
		if math.IsNaN(v) || math.Abs(v) > maxLeaf {
			return fmt.Errorf("leaf %d: value %v is not a number up to %g", i, v, maxLeaf)
		}
	}
	if nodes == 0 {
		return nil
	}
	seenNode, seenLeaf := make([]bool, nodes), make([]bool, len(t.leaf))
	seenNode[0] = true
	reached := 1
	for i := range nodes {
		for _, child := range [...]int32{t.left[i], t.right[i]} {
			seen, at, what := seenNode, int(child), "node"
			if child < 0 {
				seen, at, what = seenLeaf, int(^child), "leaf"
			}
			if at >= len(seen) {
				return fmt.Errorf("node %d: its child is %s %d, there are %d", i, what, at, len(seen))
			}
			if seen[at] {
				return fmt.Errorf("node %d: its child, %s %d, has another parent or is the root", i, what, at)
			}
			seen[at] = true
			reached++
		}
		if err := t.checkNode(i, features); err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
	}
	// Every node but the root has one parent here; a circle apart from the root
	// would still pass. Walking from the root finds it.
	if walked := t.walk(); walked != nodes {
		return fmt.Errorf("%d of %d nodes cannot be reached from the root", nodes-walked, nodes)
	}
	return nil
}

func (t *tree) checkNode(i, features int) error {
	if f := t.feature[i]; f < 0 || int(f) >= features {
		return fmt.Errorf("splits by feature %d, there are %d", f, features)
	}
	if t.decision[i]&decideMissing == decideMissing || t.decision[i] > 15 {
		return fmt.Errorf("decision type %d is unknown", t.decision[i])
	}
	v := t.threshold[i]
	if t.decision[i]&decideCategory == 0 {
		if math.IsNaN(v) {
			return errors.New("threshold is NaN")
		}
		return nil // infinite: parts what is missing from everything else
	}
	if v < 0 || v != math.Trunc(v) || int(v)+1 >= len(t.bounds) {
		return fmt.Errorf("splits by set %v of categories, there are %d", v, max(0, len(t.bounds)-1))
	}
	from, to := t.bounds[int(v)], t.bounds[int(v)+1]
	if from >= to || int(to) > len(t.sets) || (to-from)*32 > maxCategory {
		return fmt.Errorf("set %v of categories is words %d to %d of %d", v, from, to, len(t.sets))
	}
	for _, word := range t.sets[from:to] {
		if word != 0 {
			return nil
		}
	}
	return fmt.Errorf("set %v of categories is empty", v)
}

// walk counts the nodes that are reached from the root.
func (t *tree) walk() int {
	n, stack := 0, []int32{0}
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		n++
		for _, child := range [...]int32{t.left[i], t.right[i]} {
			if child >= 0 {
				stack = append(stack, child)
			}
		}
	}
	return n
}

// check tells whether the forest can be computed.
func (f *forest) check() error {
	switch {
	case f.features < 1 || f.features > MaxFeatures:
		return fmt.Errorf("%d features, want 1 to %d", f.features, MaxFeatures)
	case f.groups < 1 || f.groups > MaxClasses:
		return fmt.Errorf("%d outputs, want 1 to %d", f.groups, MaxClasses)
	case len(f.trees) == 0:
		return errors.New("no trees")
	case len(f.trees)%f.groups != 0:
		return fmt.Errorf("%d trees for %d outputs, want as many for each", len(f.trees), f.groups)
	case len(f.bias) != f.groups:
		return fmt.Errorf("%d base scores for %d outputs", len(f.bias), f.groups)
	}
	for i, b := range f.bias {
		if math.IsNaN(b) || math.IsInf(b, 0) {
			return fmt.Errorf("base score %d is not finite as a margin", i)
		}
	}
	for i := range f.trees {
		if err := f.trees[i].check(f.features); err != nil {
			return fmt.Errorf("tree %d: %w", i, err)
		}
	}
	return nil
}

// build hands a checked forest to leaves.
func (f *forest) build() (*leaves.Ensemble, error) {
	e, err := leaves.LGEnsembleFromReader(bufio.NewReader(bytes.NewReader(f.text())), false)
	if err != nil {
		return nil, fmt.Errorf("building the trees: %w", err)
	}
	return e, nil
}

// text is the forest in the part of LightGBM's format that leaves reads.
func (f *forest) text() []byte {
	b := make([]byte, 0, 1<<16)
	b = append(b, "tree\nversion=v3\n"...)
	b = line(b, "num_class", []int{f.groups})
	b = line(b, "num_tree_per_iteration", []int{f.groups})
	b = line(b, "max_feature_idx", []int{f.features - 1})
	if f.average {
		b = append(b, "average_output\n"...)
	}
	b = line(b, "tree_sizes", make([]int, len(f.trees))) // only their number is read
	b = append(b, '\n')
	for i := range f.trees {
		t := &f.trees[i]
		b = line(b, "Tree", []int{i})
		b = line(b, "num_leaves", []int{len(t.leaf)})
		b = line(b, "num_cat", []int{max(0, len(t.bounds)-1)})
		if len(t.feature) > 0 {
			b = line(b, "split_feature", t.feature)
			b = line(b, "threshold", t.threshold)
			b = line(b, "decision_type", t.decision)
			b = line(b, "left_child", t.left)
			b = line(b, "right_child", t.right)
		}
		b = line(b, "leaf_value", t.leaf)
		if len(t.bounds) > 1 {
			b = line(b, "cat_boundaries", t.bounds)
			b = line(b, "cat_threshold", t.sets)
		}
		b = append(b, '\n')
	}
	return b
}

func line[T int | int32 | uint8 | uint32 | float64](b []byte, key string, values []T) []byte {
	b = append(b, key...)
	for i, v := range values {
		if i == 0 {
			b = append(b, '=')
		} else {
			b = append(b, ' ')
		}
		switch v := any(v).(type) {
		case float64:
			b = strconv.AppendFloat(b, v, 'g', -1, 64)
		case uint32:
			b = strconv.AppendUint(b, uint64(v), 10)
		default:
			b = fmt.Append(b, v)
		}
	}
	return append(b, '\n')
}

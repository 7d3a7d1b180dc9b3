package model

import "math"

// flat is a forest laid out for walking it fast, to the same sums, bit by bit, as
// package leaves computes. It has no categorical nodes.
//
// Rows are spread into columns first, of which a feature has one for each way in which
// nodes treat what is missing: there it is plus or minus infinity, or 0. Then one
// comparison decides at any node, without a branch that could be guessed wrong; and
// since the way down a tree is a chain of loads that wait for each other, four of them
// are walked at a time: four rows down one tree, or one row down four.
type flat struct {
	columns []column
	nodes   []node
	// leaf is the value of each node that is a leaf, times the share that the tree has
	// in the sum.
	leaf   []float64
	trees  []root
	groups int
}

// lanes is how many walks there are at a time.
const lanes = 4

// column is what a row's feature is spread into.
type column struct {
	feature int32
	missing missing
}

// missing is how a column shows a missing value.
type missing uint8

const (
	asZero  missing = iota // and is not told from 0
	asLow                  // as -Inf: it goes left
	asHigh                 // as +Inf: it goes right
	zeroToo                // is added to the latter two: so does 0
)

// zero is LightGBM's: what is at most this far from 0.
const zero = 1e-35

// checkEvery is how many steps are made before looking whether all walks are at their
// ends; trees that were not grown by depth have few long ways.
const checkEvery = 4

// node is a node or a leaf. A row goes to child if its column is at most the
// threshold, else to the one behind it. A leaf leads to itself: so trees need no other
// end than the number of steps.
type node struct {
	threshold float64
	child     uint32
	column    uint32
}

// root is where a tree begins, and how many steps lead to its deepest leaf.
type root struct {
	at    uint32
	depth uint32
}

// flatten lays a checked forest out. ok is false if it cannot be.
func flatten(f *forest) (*flat, bool) {
	share := 1.0
	if f.average {
		share = 1 / float64(len(f.trees)/f.groups)
	}
	flat := &flat{groups: f.groups}
	places := map[column]uint32{}
	for i := range f.trees {
		t := &f.trees[i]
		first := root{at: uint32(len(flat.nodes))}
		// Breadth first, so that the two children of a node are neighbours.
		type open struct {
			place, child int32
			depth        uint32
		}
		flat.nodes = append(flat.nodes, node{})
		flat.leaf = append(flat.leaf, 0)
		queue := []open{{int32(first.at), 0, 0}}
		if len(t.feature) == 0 {
			queue[0].child = ^0
		}
		for ; len(queue) > 0; queue = queue[1:] {
			o := queue[0]
			first.depth = max(first.depth, o.depth)
			if o.child < 0 {
				flat.nodes[o.place] = node{threshold: math.Inf(1), child: uint32(o.place)}
				flat.leaf[o.place] = t.leaf[^o.child] * share
				continue
			}
			if t.decision[o.child]&decideCategory != 0 || len(flat.nodes) > math.MaxInt32-2 {
				return nil, false
			}
			c := column{t.feature[o.child], missingOf(t.decision[o.child])}
			at, known := places[c]
			if !known {
				at = uint32(len(flat.columns))
				places[c] = at
				flat.columns = append(flat.columns, c)
			}
			left := int32(len(flat.nodes))
			// What is missing, as infinity, is above the largest threshold too.
			flat.nodes[o.place] = node{threshold: min(t.threshold[o.child], math.MaxFloat64), child: uint32(left), column: at}
			flat.nodes = append(flat.nodes, node{}, node{})
			flat.leaf = append(flat.leaf, 0, 0)
			queue = append(queue, open{left, t.left[o.child], o.depth + 1}, open{left + 1, t.right[o.child], o.depth + 1})
		}
		flat.trees = append(flat.trees, first)
	}
	if len(flat.columns) == 0 {
		flat.columns = []column{{}}
	}
	return flat, true
}

func missingOf(decision uint8) missing {
	m := asHigh
	if decision&decideLeft != 0 {
		m = asLow
	}
	switch decision & decideMissing {
	case missingNaN:
		return m
	case missingZero:
		return m + zeroToo
	}
	return asZero
}

// spread writes a row's columns, each lane-th place of x from the one at lane on.
func (f *flat) spread(x, row []float64, lane, stride int) {
	for i := range f.columns {
		c := &f.columns[i]
		v := row[c.feature]
		gone := math.IsNaN(v)
		if c.missing > zeroToo && v > -zero && v <= zero {
			gone = true
		}
		if gone {
			switch c.missing {
			case asZero:
				v = 0
			case asLow, asLow + zeroToo:
				v = math.Inf(-1)
			default:
				v = math.Inf(1)
			}
		}
		x[i*stride+lane] = v
	}
}

// sums writes the sums of each row, of a width, to out. x is room for lanes rows.
func (f *flat) sums(out, rows []float64, width int, x []float64) {
	n := len(rows) / width
	clear(out)
	at := 0
	for ; at+lanes <= n; at += lanes {
		for l := range lanes {
			f.spread(x, rows[(at+l)*width:(at+l+1)*width], l, lanes)
		}
		f.fourRows(out[at*f.groups:(at+lanes)*f.groups], x)
	}
	for ; at < n; at++ {
		f.spread(x, rows[at*width:(at+1)*width], 0, 1)
		f.oneRow(out[at*f.groups:(at+1)*f.groups], x)
	}
}

// fourRows walks four rows at a time down one tree after the other.
func (f *flat) fourRows(out, x []float64) {
	nodes, leaf, groups := f.nodes, f.leaf, f.groups
	group := 0
	for _, t := range f.trees {
		a, b, c, d := t.at, t.at, t.at, t.at
		for left := t.depth; left > 0; {
			for step := min(left, checkEvery); step > 0; step-- {
				na, nb, nc, nd := &nodes[a], &nodes[b], &nodes[c], &nodes[d]
				a = next(na, x[na.column*lanes])
				b = next(nb, x[nb.column*lanes+1])
				c = next(nc, x[nc.column*lanes+2])
				d = next(nd, x[nd.column*lanes+3])
				left--
			}
			if nodes[a].child == a && nodes[b].child == b && nodes[c].child == c && nodes[d].child == d {
				break
			}
		}
		out[group] += leaf[a]
		out[groups+group] += leaf[b]
		out[2*groups+group] += leaf[c]
		out[3*groups+group] += leaf[d]
		if group++; group == groups {
			group = 0
		}
	}
}

// oneRow walks one row down four trees at a time.
func (f *flat) oneRow(out, x []float64) {
	nodes, leaf, groups := f.nodes, f.leaf, f.groups
	group := 0
	trees := f.trees
	for ; len(trees) >= lanes; trees = trees[lanes:] {
		a, b, c, d := trees[0].at, trees[1].at, trees[2].at, trees[3].at
		for left := max(trees[0].depth, trees[1].depth, trees[2].depth, trees[3].depth); left > 0; {
			for step := min(left, checkEvery); step > 0; step-- {
				na, nb, nc, nd := &nodes[a], &nodes[b], &nodes[c], &nodes[d]
				a, b, c, d = next(na, x[na.column]), next(nb, x[nb.column]), next(nc, x[nc.column]), next(nd, x[nd.column])
				left--
			}
			if nodes[a].child == a && nodes[b].child == b && nodes[c].child == c && nodes[d].child == d {
				break
			}
		}
		// In the order of the trees, which the sum depends on.
		for _, at := range [lanes]uint32{a, b, c, d} {
			out[group] += leaf[at]
			if group++; group == groups {
				group = 0
			}
		}
	}
	for _, t := range trees {
		at := t.at
		for range t.depth {
			at = next(&nodes[at], x[nodes[at].column])
		}
		out[group] += leaf[at]
		if group++; group == groups {
			group = 0
		}
	}
}

// next is where a row goes whose column at a node is v.
func next(n *node, v float64) uint32 {
	right := uint32(0)
	if v > n.threshold {
		right = 1
	}
	return n.child + right
}

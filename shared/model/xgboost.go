package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// xgbFile is what is used of a model that XGBoost saved as JSON. All versions since
// 1.0 write it, with differences that flags and numbers hide.
type xgbFile struct {
	Learner *xgbLearner `json:"learner"`
}

type xgbLearner struct {
	Attributes   map[string]string `json:"attributes"`
	FeatureNames []string          `json:"feature_names"`
	Booster      struct {
		Name   string    `json:"name"`
		Model  *xgbTrees `json:"model"`
		GBTree *struct {
			Model *xgbTrees `json:"model"`
		} `json:"gbtree"` // of dart
		WeightDrop []float64 `json:"weight_drop"` // of dart
	} `json:"gradient_booster"`
	Params struct {
		BaseScore  numbers `json:"base_score"`
		NumClass   numbers `json:"num_class"`
		NumFeature numbers `json:"num_feature"`
		NumTarget  numbers `json:"num_target"`
	} `json:"learner_model_param"`
	Objective struct {
		Name string `json:"name"`
	} `json:"objective"`
}

type xgbTrees struct {
	Params struct {
		NumTrees         numbers `json:"num_trees"`
		NumParallelTrees numbers `json:"num_parallel_tree"`
	} `json:"gbtree_model_param"`
	Info  []int     `json:"tree_info"`
	Trees []xgbTree `json:"trees"`
}

type xgbTree struct {
	Left        []int32   `json:"left_children"`
	Right       []int32   `json:"right_children"`
	Feature     []int32   `json:"split_indices"`
	Condition   []float32 `json:"split_conditions"` // of a leaf, its value
	DefaultLeft flags     `json:"default_left"`
	SplitType   []int     `json:"split_type"` // 1 is categorical
	Params      struct {
		LeafSize numbers `json:"size_leaf_vector"`
	} `json:"tree_param"`
}

// numbers is a parameter: a number in a string, in later versions also a list of
// numbers in a string ("[5E-1]").
type numbers []float64

func (n *numbers) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		text = string(b)
	}
	text = strings.TrimSpace(text)
	if list, ok := strings.CutPrefix(text, "["); ok {
		if text, ok = strings.CutSuffix(list, "]"); !ok {
			return fmt.Errorf("%.40q is not a number nor a list of numbers", list)
		}
	}
	*n = nil
	for part := range strings.SplitSeq(text, ",") {
		v, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
		if err != nil {
			return fmt.Errorf("%.40q is not a number", part)
		}
		*n = append(*n, v)
	}
	return nil
}

// count is the parameter as a whole number, or def when it is not given.
func (n numbers) count(def int) (int, error) {
	if n == nil {
		return def, nil
	}
	if len(n) != 1 || n[0] != math.Trunc(n[0]) || n[0] < 0 || n[0] > math.MaxInt32 {
		return 0, fmt.Errorf("want one whole number, not %v", []float64(n))
	}
	return int(n[0]), nil
}

// flags are truth values, written as 0 and 1 or as false and true.
type flags []bool

func (f *flags) UnmarshalJSON(b []byte) error {
	*f = make(flags, 0, bytes.Count(b, []byte{','})+1)
	b = bytes.Trim(b, "[] \t\r\n")
	for len(b) > 0 {
		var word []byte
		word, b, _ = bytes.Cut(b, []byte{','})
		switch string(bytes.TrimSpace(word)) {
		case "0", "false":
			*f = append(*f, false)
		case "1", "true":
			*f = append(*f, true)
		default:
			return fmt.Errorf("%.20q is neither 0, 1, false nor true", word)
		}
	}
	return nil
}

// xgbObjective says how a base score becomes a margin, and a margin a prediction.
type xgbObjective struct {
	margin    func(float64) float64
	transform string
}

func logit(p float64) float64 { return -math.Log(1/p - 1) }
func same(v float64) float64  { return v }

var xgbObjectives = map[string]xgbObjective{
	"reg:squarederror":     {same, Identity},
	"reg:absoluteerror":    {same, Identity},
	"reg:pseudohubererror": {same, Identity},
	"reg:logistic":         {logit, Sigmoid},
	"reg:gamma":            {math.Log, Exp},
	"reg:tweedie":          {math.Log, Exp},
	"count:poisson":        {math.Log, Exp},
	"binary:logistic":      {logit, Sigmoid},
	"multi:softprob":       {same, Softmax},
}

// parseXGBoost reads a model that XGBoost saved as JSON.
func parseXGBoost(data []byte) (*forest, error) {
	var file xgbFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("not an XGBoost model: %w", err)
	}
	l := file.Learner
	if l == nil {
		return nil, errors.New("not an XGBoost model: learner: required")
	}
	trees, weights, err := l.trees()
	if err != nil {
		return nil, fmt.Errorf("gradient_booster: %w", err)
	}
	objective, ok := xgbObjectives[l.Objective.Name]
	if !ok {
		return nil, fmt.Errorf("objective: %q is not supported, only %s", l.Objective.Name,
			strings.Join(slices.Sorted(maps.Keys(xgbObjectives)), ", "))
	}
	f := &forest{objective: l.Objective.Name, transform: &Transform{Kind: objective.transform}, names: l.FeatureNames}
	if f.features, err = l.Params.NumFeature.count(0); err != nil {
		return nil, fmt.Errorf("num_feature: %w", err)
	}
	if len(f.names) != 0 && len(f.names) != f.features {
		return nil, fmt.Errorf("feature_names: %d names for %d features", len(f.names), f.features)
	}
	if f.groups, err = l.groups(objective.transform); err != nil {
		return nil, err
	}
	if err := l.checkRounds(trees, f.groups); err != nil {
		return nil, err
	}
	if f.bias, err = l.bias(objective, f.groups); err != nil {
		return nil, fmt.Errorf("base_score: %w", err)
	}
	if err := f.convert(trees, weights); err != nil {
		return nil, err
	}
	return f, nil
}

// trees finds the trees, and for dart the weight of each.
func (l *xgbLearner) trees() (*xgbTrees, []float64, error) {
	b := &l.Booster
	var trees *xgbTrees
	var weights []float64
	switch b.Name {
	case "gbtree":
		trees = b.Model
	case "dart":
		if b.GBTree != nil {
			trees = b.GBTree.Model
		}
		weights = b.WeightDrop
	default:
		return nil, nil, fmt.Errorf("name: %q is not supported, gbtree and dart are", b.Name)
	}
	if trees == nil || len(trees.Trees) == 0 {
		return nil, nil, errors.New("no trees")
	}
	n, err := trees.Params.NumTrees.count(len(trees.Trees))
	if err != nil {
		return nil, nil, fmt.Errorf("num_trees: %w", err)
	}
	if n != len(trees.Trees) || n != len(trees.Info) {
		return nil, nil, fmt.Errorf("num_trees is %d, but there are %d trees and %d of tree_info", n, len(trees.Trees), len(trees.Info))
	}
	if b.Name == "dart" && len(weights) != n {
		return nil, nil, fmt.Errorf("weight_drop: %d weights for %d trees", len(weights), n)
	}
	return trees, weights, nil
}

// groups is how many sums a row has: one a class.
func (l *xgbLearner) groups(transform string) (int, error) {
	if targets, err := l.Params.NumTarget.count(1); err != nil {
		return 0, fmt.Errorf("num_target: %w", err)
	} else if targets > 1 {
		return 0, fmt.Errorf("num_target: %d targets are not supported, one is", targets)
	}
	classes, err := l.Params.NumClass.count(0)
	if err != nil {
		return 0, fmt.Errorf("num_class: %w", err)
	}
	if transform == Softmax {
		if classes < 2 || classes > MaxClasses {
			return 0, fmt.Errorf("num_class: %d, want 2 to %d", classes, MaxClasses)
		}
		return classes, nil
	}
	if classes > 1 {
		return 0, fmt.Errorf("num_class: %d classes for objective %s", classes, l.Objective.Name)
	}
	return 1, nil
}

// checkRounds refuses a model that was stopped early and still holds the rounds
// after its best: XGBoost's own interfaces do not agree on whether to use them.
func (l *xgbLearner) checkRounds(trees *xgbTrees, groups int) error {
	text, ok := l.Attributes["best_iteration"]
	if !ok {
		return nil
	}
	best, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("attributes.best_iteration: %q is not a number", text)
	}
	parallel, err := trees.Params.NumParallelTrees.count(1)
	if err != nil {
		return fmt.Errorf("num_parallel_tree: %w", err)
	}
	if rounds := len(trees.Trees) / groups / max(1, parallel); best+1 != rounds {
		return fmt.Errorf("attributes.best_iteration is %d, but the model has %d rounds: save booster[:best_iteration+1]", best, rounds)
	}
	return nil
}

func (l *xgbLearner) bias(objective xgbObjective, groups int) ([]float64, error) {
	scores := l.Params.BaseScore
	if len(scores) != 1 && len(scores) != groups {
		return nil, fmt.Errorf("%d scores for %d outputs", len(scores), groups)
	}
	bias := make([]float64, groups)
	for i := range bias {
		score := scores[min(i, len(scores)-1)]
		bias[i] = objective.margin(score)
		if math.IsNaN(bias[i]) || math.IsInf(bias[i], 0) {
			return nil, fmt.Errorf("%v is out of the range of objective %s", score, l.Objective.Name)
		}
	}
	return bias, nil
}

// convert fills in the trees, class by class in turn. XGBoost may hold several trees
// of a class in a row.
func (f *forest) convert(trees *xgbTrees, weights []float64) error {
	classes := make([][]tree, f.groups)
	for i := range trees.Trees {
		t, err := trees.Trees[i].convert()
		if err != nil {
			return fmt.Errorf("tree %d: %w", i, err)
		}
		if weights != nil {
			for j := range t.leaf {
				t.leaf[j] *= weights[i]
			}
		}
		class := trees.Info[i]
		if class < 0 || class >= f.groups {
			return fmt.Errorf("tree %d: tree_info is %d, there are %d outputs", i, class, f.groups)
		}
		classes[class] = append(classes[class], t)
	}
	for class := range classes {
		if len(classes[class]) != len(classes[0]) {
			return fmt.Errorf("output 0 has %d trees, output %d has %d", len(classes[0]), class, len(classes[class]))
		}
	}
	f.trees = make([]tree, 0, len(trees.Trees))
	for i := range classes[0] {
		for class := range classes {
			f.trees = append(f.trees, classes[class][i])
		}
	}
	return nil
}

// convert gives splits and leaves numbers of their own. XGBoost sends a value to the
// left when it is less than the condition, LightGBM when it is not greater than the
// threshold: of float32 values these are the same when the threshold is the float32
// before the condition.
func (t *xgbTree) convert() (tree, error) {
	n := len(t.Left)
	if n == 0 || len(t.Right) != n || len(t.Feature) != n || len(t.Condition) != n || len(t.DefaultLeft) != n {
		return tree{}, fmt.Errorf("left_children, right_children, split_indices, split_conditions and default_left have %d, %d, %d, %d and %d elements, want as many of each",
			n, len(t.Right), len(t.Feature), len(t.Condition), len(t.DefaultLeft))
	}
	if size, err := t.Params.LeafSize.count(1); err != nil {
		return tree{}, fmt.Errorf("size_leaf_vector: %w", err)
	} else if size > 1 {
		return tree{}, errors.New("leaves that are vectors (multi_output_tree) are not supported")
	}
	var out tree
	number := make([]int32, n) // of the split, or of the leaf as ^number
	for i := range n {
		if t.Left[i] == -1 {
			number[i] = ^int32(len(out.leaf))
			out.leaf = append(out.leaf, float64(t.Condition[i]))
			continue
		}
		number[i] = int32(len(out.feature))
		if i < len(t.SplitType) && t.SplitType[i] != 0 {
			return tree{}, fmt.Errorf("node %d: categorical splits are not supported; encode categories and train without enable_categorical", i)
		}
		decision := uint8(missingNaN)
		if t.DefaultLeft[i] {
			decision |= decideLeft
		}
		out.feature = append(out.feature, t.Feature[i])
		out.threshold = append(out.threshold, float64(math.Nextafter32(t.Condition[i], float32(math.Inf(-1)))))
		out.decision = append(out.decision, decision)
	}
	for i := range n {
		if t.Left[i] == -1 {
			continue
		}
		for _, child := range [...]int32{t.Left[i], t.Right[i]} {
			// Node 0 is the root, nobody's child.
			if child < 1 || int(child) >= n {
				return tree{}, fmt.Errorf("node %d: its child is node %d, there are %d", i, child, n)
			}
		}
		out.left = append(out.left, number[t.Left[i]])
		out.right = append(out.right, number[t.Right[i]])
	}
	return out, nil
}

package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// memory is a bundle in memory.
type memory map[string][]byte

func (memory) String() string { return "memory" }

func (m memory) ReadFile(_ context.Context, name string, limit int64) ([]byte, error) {
	data, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return ReadAll(bytes.NewReader(data), name, limit)
}

// seal writes the manifest for the files.
func (m memory) seal(t testing.TB) memory {
	t.Helper()
	manifest := Manifest{Format: 1, Name: "demand", Version: "3", CreatedAt: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC),
		Training: Training{From: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), Rows: 4000},
		Files:    map[string]File{}}
	for name, data := range m {
		if name != ManifestFile {
			sum := sha256.Sum256(data)
			manifest.Files[name] = File{Bytes: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
		}
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	m[ManifestFile] = data
	return m
}

const exampleFeatures = `{"format":1,"target":"sold","features":[` +
	`{"name":"shelf","type":"category","values":[0,1,2,3,4,5,6,7,8,9]},{"name":"price","type":"float"},` +
	`{"name":"kind","type":"category","values":["a","b","c","d","e","f","g"]},{"name":"trend","type":"float"},` +
	`{"name":"stock","type":"int"},{"name":"weight","type":"float"},{"name":"age","type":"float"},{"name":"new","type":"bool"}]}`

// bundle is a good bundle around the binary model of the fixtures.
func bundle(t testing.TB) memory {
	t.Helper()
	distribution := func(name string) string {
		return `{"name":"` + name + `","edges":[0,5.5],"counts":[10,20,30],"missing":40}`
	}
	category := func(name, values string, n int) string {
		return `{"name":"` + name + `","values":` + values + `,"counts":[100` + strings.Repeat(",0", n) + `],"missing":0}`
	}
	m := memory{
		XGBoostFile:  unzip(t, "exact.json"),
		FeaturesFile: []byte(exampleFeatures),
		BaselineFile: []byte(`{"format":1,"rows":100,"features":[` + strings.Join([]string{
			category("shelf", "[0,1,2,3,4,5,6,7,8,9]", 10), distribution("price"), category("kind", `["a","b","c","d","e","f","g"]`, 7),
			distribution("trend"), distribution("stock"), distribution("weight"), distribution("age"), distribution("new")}, ",") +
			`],"score":` + distribution("score") + `}`),
		MetricsFile: []byte(`{"auc":{"value":0.81,"low":0.79,"high":0.83},"logloss":{"value":0.4}}`),
	}
	// The third row of the fixtures, as XGBoost predicts it.
	rows := drawRows(2, 3)[2*fixtureFeatures:]
	_, _, predictions := expected(t, "exact")
	names := []string{"shelf", "price", "kind", "trend", "stock", "weight", "age", "new"}
	features := map[string]any{}
	for i, v := range rows {
		switch {
		case math.IsNaN(v):
			features[names[i]] = nil
		case names[i] == "kind" && v >= 0:
			features[names[i]] = string(rune('a' + int(v)))
		case names[i] == "new":
			features[names[i]] = v == 1
		default:
			features[names[i]] = v
		}
	}
	if math.IsNaN(rows[0]) || math.IsNaN(rows[2]) || rows[2] < 0 {
		t.Fatalf("the row %v has a category missing: take another", rows)
	}
	data, err := json.Marshal(map[string]any{"examples": []any{map[string]any{"features": features, "prediction": predictions[2:3]}}})
	if err != nil {
		t.Fatal(err)
	}
	m[ExamplesFile] = data
	return m.seal(t)
}

func TestLoad(t *testing.T) {
	b, err := Load(t.Context(), bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	if b.Manifest.Name != "demand" || b.Manifest.Version != "3" || b.Manifest.Training.Rows != 4000 {
		t.Errorf("%+v", b.Manifest)
	}
	if b.Metrics["auc"].Value != 0.81 || *b.Metrics["auc"].High != 0.83 || b.Baseline.Rows != 100 {
		t.Errorf("%+v %+v", b.Metrics, b.Baseline)
	}
	if b.Model.Trees() != 20 || b.Model.Objective() != "binary:logistic" || b.Model.Outputs() != 1 {
		t.Errorf("%d trees for %s, %d outputs", b.Model.Trees(), b.Model.Objective(), b.Model.Outputs())
	}
}

// TestLoadRefuses changes a good bundle in one place each.
func TestLoadRefuses(t *testing.T) {
	replace := func(file, from, to string) func(testing.TB, memory) {
		return func(t testing.TB, m memory) {
			t.Helper()
			changed := strings.Replace(string(m[file]), from, to, 1)
			if changed == string(m[file]) {
				t.Fatalf("%s has no %s", file, from)
			}
			m[file] = []byte(changed)
		}
	}
	good := bundle(t)
	for _, c := range []struct {
		name   string
		change func(testing.TB, memory)
		sealed bool // the manifest belongs to what was changed
		file   string
		errHas string
	}{
		{"no manifest", func(_ testing.TB, m memory) { delete(m, ManifestFile) }, false, "", "not exist"},
		{"half a manifest", func(_ testing.TB, m memory) { m[ManifestFile] = m[ManifestFile][:40] }, false, ManifestFile, "ends too early"},
		{"unknown field", replace(ManifestFile, `"format"`, `"colour":1,"format"`), false, ManifestFile, `unknown field "colour"`},
		{"other format", replace(ManifestFile, `"format":1`, `"format":2`), false, ManifestFile, "format: must be 1, not 2"},
		{"path as name", replace(ManifestFile, `"demand"`, `"../demand"`), false, ManifestFile, `has a '/'`},
		{"no rows", replace(ManifestFile, `"rows":4000`, `"rows":0`), false, ManifestFile, "training.rows"},
		{"window backwards", replace(ManifestFile, `"to":"2026-11`, `"to":"2026-09`), false, ManifestFile, "must be before"},
		{"foreign file", replace(ManifestFile, `"features.json"`, `"/etc/passwd"`), false, ManifestFile, "not a file of a bundle"},
		{"file without end", replace(ManifestFile, `"files":{"baseline.json":{"bytes":`, `"files":{"baseline.json":{"bytes":99999999`), false, ManifestFile, "bytes:"},
		{"file missing", func(_ testing.TB, m memory) { delete(m, MetricsFile) }, false, "", "not exist"},
		{"file required", func(_ testing.TB, m memory) { delete(m, MetricsFile) }, true, ManifestFile, "metrics.json: required"},
		{"two models", func(_ testing.TB, m memory) { m[LightGBMFile] = []byte("tree") }, true, ManifestFile, "want one of"},
		{"file cut off", func(_ testing.TB, m memory) { m[XGBoostFile] = m[XGBoostFile][:1000] }, false, XGBoostFile, "1000 bytes, bundle.json says"},
		{"bit flipped", func(_ testing.TB, m memory) { m[XGBoostFile][5000] ^= 1 }, false, XGBoostFile, "SHA-256"},
		{"model cut off", func(_ testing.TB, m memory) { m[XGBoostFile] = m[XGBoostFile][:1000] }, true, XGBoostFile, "unexpected end"},
		{"no trees", func(_ testing.TB, m memory) {
			m[XGBoostFile] = []byte(`{"learner":{"gradient_booster":{"name":"gbtree"}}}`)
		}, true, XGBoostFile, "no trees"},
		{"linear booster", replace(XGBoostFile, `"gbtree"`, `"gblinear"`), true, XGBoostFile, `"gblinear" is not supported`},
		{"objective", replace(XGBoostFile, `"name":"binary:logistic"`, `"name":"binary:hinge"`), true, XGBoostFile, `"binary:hinge" is not supported`},
		{"base score", replace(XGBoostFile, `"base_score":"[3E-1]"`, `"base_score":"[1E0]"`), true, XGBoostFile, "base_score: 1 is out of"},
		{"rounds after the best", replace(XGBoostFile, `"attributes":{}`, `"attributes":{"best_iteration":"4"}`), true, XGBoostFile, "booster[:best_iteration+1]"},
		{"circle", replace(XGBoostFile, `"left_children":[1,3`, `"left_children":[1,1`), true, XGBoostFile, "has another parent"},
		{"child beyond", replace(XGBoostFile, `"left_children":[1,3`, `"left_children":[1,3000`), true, XGBoostFile, "its child is node 3000"},
		{"feature beyond", replace(XGBoostFile, `"split_indices":[`, `"split_indices":[9`), true, XGBoostFile, "splits by feature 9"},
		{"too few flags", replace(XGBoostFile, `"default_left":[`, `"default_left":[1,`), true, XGBoostFile, "want as many of each"},
		{"categories", replace(XGBoostFile, `"split_type":[0`, `"split_type":[1`), true, XGBoostFile, "categorical splits are not supported"},
		{"order of features", func(_ testing.TB, m memory) {
			m[XGBoostFile] = bytes.Replace(m[XGBoostFile], []byte(`"feature_names":[]`),
				[]byte(`"feature_names":["shelf","kind","price","trend","stock","weight","age","new"]`), 1)
		}, true, FeaturesFile, `features[1]: is "price", in the model "kind"`},
		{"feature too many", replace(FeaturesFile, `,{"name":"new"`, `,{"name":"old","type":"bool"},{"name":"new"`), true, FeaturesFile, "features: 9, the model has 8"},
		{"feature twice", replace(FeaturesFile, `"name":"age"`, `"name":"stock"`), true, FeaturesFile, `"stock" is given twice`},
		{"type", replace(FeaturesFile, `"type":"int"`, `"type":"long"`), true, FeaturesFile, `feature "stock": type: "long"`},
		{"unsorted", replace(FeaturesFile, `"a","b"`, `"b","a"`), true, FeaturesFile, "sorted and distinct"},
		{"mixed", replace(FeaturesFile, `"a","b"`, `"a",2`), true, FeaturesFile, "texts only"},
		{"not whole", replace(FeaturesFile, `[0,1,`, `[0,1.5,`), true, FeaturesFile, "not 1.5"},
		{"transform", replace(FeaturesFile, `"format":1`, `"format":1,"transform":{"kind":"exp"}`), true, XGBoostFile, "asks for transform sigmoid, features.json for exp"},
		{"target among the features", replace(FeaturesFile, `"target":"sold"`, `"target":"age"`), true, FeaturesFile, "is the target"},
		{"something follows", func(_ testing.TB, m memory) { m[FeaturesFile] = append(m[FeaturesFile], " {}"...) }, true, FeaturesFile, "something follows"},
		{"baseline", replace(BaselineFile, `"missing":40`, `"missing":41`), true, BaselineFile, "101 together, of 100 rows"},
		{"baseline of others", replace(BaselineFile, `"name":"price"`, `"name":"cost"`), true, BaselineFile, `is "cost", the feature is "price"`},
		{"interval", replace(MetricsFile, `"low":0.79`, `"low":0.84`), true, MetricsFile, "above high"},
		{"no metrics", func(_ testing.TB, m memory) { m[MetricsFile] = []byte("{}") }, true, MetricsFile, "no metrics"},
		{"other predictions", replace(ExamplesFile, `"prediction":[0.`, `"prediction":[1.`), true, ExamplesFile, "where it was trained"},
		{"other columns", replace(ExamplesFile, `"price"`, `"cost"`), true, ExamplesFile, `"cost": the model has no such feature`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			for name, data := range good {
				m[name] = bytes.Clone(data)
			}
			c.change(t, m)
			if c.sealed {
				m = m.seal(t)
			}
			_, err := Load(t.Context(), m)
			if err == nil || !strings.Contains(err.Error(), c.errHas) {
				t.Fatalf("got error %v, want one with %q", err, c.errHas)
			}
			bad, isBad := errors.AsType[*InvalidError](err)
			if isBad != (c.file != "") || isBad && bad.File != c.file {
				t.Errorf("error %v is about %+v, want file %q", err, bad, c.file)
			}
		})
	}
}

func TestEncode(t *testing.T) {
	b, err := Load(t.Context(), bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	nan := math.NaN()
	for _, c := range []struct {
		feature, json string
		want          float64
		errHas        string
	}{
		{"shelf", `3`, 3, ""}, {"shelf", `3.0`, 3, ""}, {"shelf", `10`, -1, ""}, {"shelf", `null`, -1, ""},
		{"shelf", `"3"`, 0, "must be a whole number"}, {"shelf", `3.5`, 0, "must be a whole number"}, {"shelf", `1e300`, -1, ""},
		{"kind", `"b"`, 1, ""}, {"kind", `"z"`, -1, ""}, {"kind", `""`, -1, ""}, {"kind", `null`, -1, ""}, {"kind", `1`, 0, "must be a text"},
		{"price", `12.5`, 12.5, ""}, {"price", `null`, nan, ""}, {"price", `"12.5"`, 0, "not the text"},
		{"price", `1e39`, 0, "beyond the numbers"}, {"price", `1e400`, 0, "out of range"}, {"price", `{}`, 0, "want a number"},
		{"stock", `7`, 7, ""}, {"stock", `7.5`, 0, "must be a whole number"}, {"stock", `null`, nan, ""},
		{"new", `true`, 1, ""}, {"new", `false`, 0, ""}, {"new", `1`, 1, ""}, {"new", `2`, 0, "true or false"}, {"new", `null`, nan, ""},
	} {
		i, ok := b.Index(c.feature)
		if !ok {
			t.Fatal(c.feature)
		}
		var v Value
		err := json.Unmarshal([]byte(c.json), &v)
		got := 0.0
		if err == nil {
			if got, err = b.Encode(i, v); err != nil && !strings.Contains(err.Error(), c.feature) {
				t.Errorf("%v does not name the feature", err)
			}
		}
		if c.errHas != "" {
			if err == nil || !strings.Contains(err.Error(), c.errHas) {
				t.Errorf("%s=%s: error %v, want one with %q", c.feature, c.json, err, c.errHas)
			}
			continue
		}
		if err != nil || got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("%s=%s: %v, %v, want %v", c.feature, c.json, got, err, c.want)
		}
	}
}

func TestFeaturesSurviveJSON(t *testing.T) {
	f := Features{Format: 1, Target: "t", Features: []Feature{
		{Name: "a", Type: Category, Values: TextValues("y", "x")}, {Name: "b", Type: Category, Values: NumberValues(3, -1)}, {Name: "c", Type: Float}}}
	data, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var back Features
	if err := decode(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f, back, cmp.AllowUnexported(Values{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzParse looks for model files that are taken but cannot be computed: whatever is
// accepted must give numbers, in bounded time, without a panic.
func FuzzParse(f *testing.F) {
	small := []byte(`{"learner":{"attributes":{},"feature_names":[],"gradient_booster":{"model":{"gbtree_model_param":{"num_trees":"1"},"tree_info":[0],` +
		`"trees":[{"default_left":[1,0,0],"left_children":[1,-1,-1],"right_children":[2,-1,-1],"split_conditions":[0.5,-1,1],"split_indices":[1,0,0],"tree_param":{}}]},` +
		`"name":"gbtree"},"learner_model_param":{"base_score":"5E-1","num_class":"0","num_feature":"2"},"objective":{"name":"binary:logistic"}}}`)
	f.Add(true, small)
	f.Add(true, bytes.Replace(small, []byte(`"name":"gbtree"`), []byte(`"name":"dart","gbtree":{},"weight_drop":[1]`), 1))
	f.Add(true, unzip(f, "constant.json"))
	text := unzip(f, "lightgbm-rf.txt")
	f.Add(false, text[:min(len(text), 3000)])
	f.Add(false, []byte("tree\nversion=v3\nnum_class=1\nnum_tree_per_iteration=1\nmax_feature_idx=1\naverage_output\ntree_sizes=0\n\n"+
		"Tree=0\nnum_leaves=3\nnum_cat=1\nsplit_feature=0 1\nthreshold=0 0.5\ndecision_type=1 10\nleft_child=1 -1\nright_child=-2 -3\n"+
		"leaf_value=1 2 3\ncat_boundaries=0 1\ncat_threshold=5\n\nend of trees\n"))
	f.Fuzz(func(t *testing.T, isJSON bool, data []byte) {
		parse := parseLightGBM
		if isJSON {
			parse = parseXGBoost
		}
		trees, err := parse(data)
		if err != nil {
			return
		}
		transform := trees.transform
		if transform == nil {
			transform = &Transform{Kind: Identity}
		}
		m, err := newModel(trees, transform, false)
		if err != nil {
			return
		}
		row, out := make([]float64, m.Features()), make([]float64, m.Outputs())
		for _, v := range []float64{math.NaN(), 0, -1, 1e30, math.Inf(-1)} {
			for i := range row {
				row[i] = v
			}
			if err := m.Margins(out, row); err != nil {
				t.Fatalf("computing an accepted model: %v", err)
			}
			if slices.ContainsFunc(out, math.IsNaN) {
				t.Fatalf("margins %v", out)
			}
		}
	})
}

// FuzzLoad changes the describing files of a good bundle.
func FuzzLoad(f *testing.F) {
	good := bundle(f)
	for _, name := range slices.Sorted(maps.Keys(good)) {
		if name != XGBoostFile {
			f.Add(name, good[name])
		}
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if _, ok := good[name]; !ok || name == XGBoostFile {
			return
		}
		m := maps.Clone(good)
		m[name] = data
		if name != ManifestFile {
			m = m.seal(t)
		}
		b, err := Load(t.Context(), m)
		if err != nil {
			return
		}
		row, out := make([]float64, b.Model.Features()), make([]float64, b.Model.Outputs())
		if err := b.Row(row, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.Model.Predict(out, row); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	m := bundle(b)
	m[XGBoostFile] = unzip(b, "binary.json")
	delete(m, ExamplesFile)
	m = m.seal(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(context.Background(), m); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleFeature() {
	f := Feature{Name: "brand", Type: Category, Values: TextValues("xiaomi", "apple")}
	for _, v := range []Value{Text("apple"), Text("xiaomi"), Text("nobody"), {}} {
		n, err := f.encode(v)
		fmt.Println(n, err)
	}
	// Output:
	// 0 <nil>
	// 1 <nil>
	// -1 <nil>
	// -1 <nil>
}

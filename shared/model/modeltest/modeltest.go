// Package modeltest makes small bundles for tests, of models whose predictions are
// known.
package modeltest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/shared/model"
)

// Files are the files of a bundle, and a model.Source.
type Files map[string][]byte

func (Files) String() string { return "memory" }

// ReadFile gives a file.
func (f Files) ReadFile(_ context.Context, name string, limit int64) ([]byte, error) {
	data, ok := f[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return model.ReadAll(bytes.NewReader(data), name, limit)
}

// shopFeatures are the features of Shop, in order.
var shopFeatures = []string{"brand", "price", "event_weekday", "category_code_level1", "category_code_level2", "activity_count"}

// Shop makes a version of a model of the shop's features that predicts score where
// the price is below 100 or missing, and score+1 elsewhere. Scores that are float32
// numbers come out exactly.
func Shop(t testing.TB, version string, score float32) Files {
	t.Helper()
	return build(t, "purchase_prediction_model", version, score, shopFeatures, `[`+
		`{"name":"brand","type":"category","values":["apple","samsung","xiaomi"]},{"name":"price","type":"float"},`+
		`{"name":"event_weekday","type":"category","values":[0,1,2,3,4,5,6]},`+
		`{"name":"category_code_level1","type":"category","values":["appliances","electronics"]},`+
		`{"name":"category_code_level2","type":"category","values":["kitchen","smartphone"]},{"name":"activity_count","type":"int"}]`,
		map[int]int{0: 3, 2: 7, 3: 2, 4: 2})
}

// Trained makes a bundle of a model that XGBoost trained, as it was saved, with
// features f0, f1 and so on, all numbers.
func Trained(t testing.TB, name, version string, saved []byte, features int) Files {
	t.Helper()
	var columns, distributions []string
	for i := range features {
		columns = append(columns, fmt.Sprintf(`{"name":"f%d","type":"float"}`, i))
		distributions = append(distributions, fmt.Sprintf(`{"name":"f%d","edges":[10],"counts":[1,0],"missing":0}`, i))
	}
	f := Files{
		model.XGBoostFile:  saved,
		model.FeaturesFile: []byte(`{"format":1,"target":"y","features":[` + strings.Join(columns, ",") + `]}`),
		model.MetricsFile:  []byte(`{"auc":{"value":0.8}}`),
		model.BaselineFile: []byte(`{"format":1,"rows":1,"features":[` + strings.Join(distributions, ",") +
			`],"score":{"name":"score","edges":[0.5],"counts":[1,0],"missing":0}}`),
	}
	return f.Seal(t, name, version)
}

func build(t testing.TB, name, version string, score float32, names []string, features string, categories map[int]int) Files {
	t.Helper()
	quoted, err := json.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{
		model.XGBoostFile: fmt.Appendf(nil, `{"learner":{"attributes":{},"feature_names":%s,"gradient_booster":{"model":{"gbtree_model_param":{"num_trees":"1"},`+
			`"tree_info":[0],"trees":[{"default_left":[1,0,0],"left_children":[1,-1,-1],"right_children":[2,-1,-1],"split_conditions":[100,%v,%v],`+
			`"split_indices":[1,0,0],"tree_param":{}}]},"name":"gbtree"},"learner_model_param":{"base_score":"0","num_class":"0","num_feature":"%d"},`+
			`"objective":{"name":"reg:squarederror"}}}`, quoted, score, score+1, len(names)),
		model.FeaturesFile: []byte(`{"format":1,"target":"is_purchased","features":` + features + `}`),
		model.MetricsFile:  []byte(`{"rmse":{"value":0.4}}`),
	}
	var parsed []model.Feature
	if err := json.Unmarshal([]byte(features), &parsed); err != nil {
		t.Fatal(err)
	}
	var all []string
	for i, x := range parsed {
		bins := `"edges":[10],"counts":[1,0],"missing":0}`
		if n := categories[i]; n > 0 {
			values, err := json.Marshal(x.Values)
			if err != nil {
				t.Fatal(err)
			}
			bins = `"values":` + string(values) + `,"counts":[1` + strings.Repeat(",0", n) + `],"missing":0}`
		}
		all = append(all, `{"name":"`+x.Name+`",`+bins)
	}
	f[model.BaselineFile] = []byte(`{"format":1,"rows":1,"features":[` + strings.Join(all, ",") + `],"score":{"name":"score","edges":[0.5],"counts":[1,0],"missing":0}}`)
	return f.Seal(t, name, version)
}

// Seal writes the manifest that belongs to the files.
func (f Files) Seal(t testing.TB, name, version string) Files {
	t.Helper()
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	m := model.Manifest{Format: 1, Name: name, Version: version, CreatedAt: at, Files: map[string]model.File{},
		Training: model.Training{From: at.AddDate(0, -1, 0), To: at, Rows: 1}}
	for name, data := range f {
		if name != model.ManifestFile {
			sum := sha256.Sum256(data)
			m.Files[name] = model.File{Bytes: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	f[model.ManifestFile] = data
	return f
}

// Write writes the files to a folder, each in one step and bundle.json last, as a
// bundle is to be replaced.
func (f Files) Write(t testing.TB, dir string) {
	t.Helper()
	write := func(name string) {
		temporary := filepath.Join(dir, "."+name)
		if err := os.WriteFile(temporary, f[name], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name := range f {
		if name != model.ManifestFile {
			write(name)
		}
	}
	write(model.ManifestFile)
}

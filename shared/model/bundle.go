package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// The files of a bundle.
const (
	ManifestFile = "bundle.json"
	XGBoostFile  = "model.json"
	LightGBMFile = "model.txt"
	FeaturesFile = "features.json"
	BaselineFile = "baseline.json"
	MetricsFile  = "metrics.json"
	ExamplesFile = "examples.json"
)

// limits bounds the files of a bundle, in bytes. Loading a model takes several times
// its size, which has to fit beside the one that is served: 32 MiB are some 5000 trees
// of depth 6.
var limits = map[string]int64{
	ManifestFile: 64 << 10,
	XGBoostFile:  32 << 20,
	LightGBMFile: 32 << 20,
	FeaturesFile: 16 << 20,
	BaselineFile: 16 << 20,
	MetricsFile:  1 << 20,
	ExamplesFile: 4 << 20,
}

// Manifest is bundle.json.
type Manifest struct {
	// Format is 1.
	Format int `json:"format"`
	// Name is the name of the model, as the registry has it.
	Name string `json:"name"`
	// Version tells the bundle from others of the name. A registry's own number
	// replaces it; without either the first digits of the manifest's SHA-256 do.
	Version string `json:"version,omitempty"`
	// CreatedAt is when the bundle was made.
	CreatedAt time.Time `json:"created_at"`
	// Training is what the model was trained on.
	Training Training `json:"training"`
	// Files are all other files of the bundle.
	Files map[string]File `json:"files"`
}

// Training is a window of the training data: rows with From <= time < To.
type Training struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Rows int64     `json:"rows"`
}

// File is what a file of a bundle must be.
type File struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Bundle is a model version, ready to predict.
type Bundle struct {
	Manifest Manifest
	Features Features
	Baseline Baseline
	Metrics  Metrics
	Model    *Model
	// Digest is the SHA-256 of bundle.json in hex. Since that holds the sums of all
	// other files, it tells the bundle from every other.
	Digest string

	index map[string]int
}

// Source is where a bundle's files are.
type Source interface {
	// ReadFile reads a file of at most limit bytes, whole. Of one that is not there
	// the error is fs.ErrNotExist.
	ReadFile(ctx context.Context, name string, limit int64) ([]byte, error)
	// String names the place, for people.
	String() string
}

// InvalidError says that a bundle was read and is bad: reading it again will not
// help. Every other error of Load may be of the moment.
type InvalidError struct {
	Source string // of the bundle
	File   string // of it
	Err    error
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("bundle %s: %s: %v", e.Source, e.File, e.Err)
}
func (e *InvalidError) Unwrap() error { return e.Err }

// ReadManifest reads and checks bundle.json alone. Its bytes tell one version of a
// bundle from another: digest is their SHA-256 in hex.
func ReadManifest(ctx context.Context, s Source) (m Manifest, digest string, err error) {
	data, err := s.ReadFile(ctx, ManifestFile, limits[ManifestFile])
	if err != nil {
		return m, "", fmt.Errorf("reading bundle %s: %w", s, err)
	}
	if err = decode(data, &m); err == nil {
		err = m.check()
	}
	if err != nil {
		return m, "", &InvalidError{s.String(), ManifestFile, err}
	}
	sum := sha256.Sum256(data)
	digest = hex.EncodeToString(sum[:])
	if m.Version == "" {
		m.Version = digest[:12]
	}
	return m, digest, nil
}

func (m *Manifest) check() error {
	if m.Format != 1 {
		return fmt.Errorf("format: must be 1, not %d", m.Format)
	}
	if err := checkName(m.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if m.Version != "" {
		if err := checkName(m.Version); err != nil {
			return fmt.Errorf("version: %w", err)
		}
	}
	if m.CreatedAt.IsZero() {
		return errors.New("created_at: required")
	}
	switch t := m.Training; {
	case t.From.IsZero() || t.To.IsZero():
		return errors.New("training: from and to are required")
	case !t.From.Before(t.To):
		return fmt.Errorf("training: from (%s) must be before to (%s)", t.From.Format(time.RFC3339), t.To.Format(time.RFC3339))
	case t.Rows < 1:
		return fmt.Errorf("training.rows: must be at least 1, not %d", t.Rows)
	}
	for name, f := range m.Files {
		limit, known := limits[name]
		if !known || name == ManifestFile {
			return fmt.Errorf("files: %.80q is not a file of a bundle", name)
		}
		if f.Bytes < 1 || f.Bytes > limit {
			return fmt.Errorf("files: %s: bytes: %d, want 1 to %d", name, f.Bytes, limit)
		}
		if sum, err := hex.DecodeString(f.SHA256); err != nil || len(sum) != sha256.Size || f.SHA256 != strings.ToLower(f.SHA256) {
			return fmt.Errorf("files: %s: sha256: %.80q is not 64 hex digits in lower case", name, f.SHA256)
		}
	}
	for _, name := range [...]string{FeaturesFile, BaselineFile, MetricsFile} {
		if _, ok := m.Files[name]; !ok {
			return fmt.Errorf("files: %s: required", name)
		}
	}
	_, xgboost := m.Files[XGBoostFile]
	_, lightgbm := m.Files[LightGBMFile]
	if xgboost == lightgbm {
		return fmt.Errorf("files: want one of %s and %s", XGBoostFile, LightGBMFile)
	}
	return nil
}

// checkName keeps names and versions fit for paths, URLs and labels.
func checkName(name string) error {
	if name == "" {
		return errors.New("required")
	}
	if len(name) > 128 {
		return fmt.Errorf("%d characters, want at most 128", len(name))
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return fmt.Errorf("%q has a %q; want letters, digits, '-', '_' and '.'", name, c)
		}
	}
	if name == "." || name == ".." {
		return fmt.Errorf("%q is no name", name)
	}
	return nil
}

// Load reads a bundle and checks all of it: sizes and sums of the files, every field,
// that trees are trees, that features, model and baseline belong together, and that
// the examples come out as they should. An *InvalidError says what is wrong with the
// bundle; other errors are of its source.
func Load(ctx context.Context, s Source) (*Bundle, error) {
	m, digest, err := ReadManifest(ctx, s)
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte, len(m.Files))
	for name, want := range m.Files {
		data, err := s.ReadFile(ctx, name, limits[name])
		if err != nil {
			return nil, fmt.Errorf("reading bundle %s: %w", s, err)
		}
		if int64(len(data)) != want.Bytes {
			return nil, &InvalidError{s.String(), name, fmt.Errorf("%d bytes, %s says %d", len(data), ManifestFile, want.Bytes)}
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want.SHA256 {
			return nil, &InvalidError{s.String(), name, fmt.Errorf("its SHA-256 is not the one that %s says", ManifestFile)}
		}
		files[name] = data
	}
	b := &Bundle{Manifest: m, Digest: digest}
	if file, err := b.fill(files); err != nil {
		return nil, &InvalidError{s.String(), file, err}
	}
	return b, nil
}

// fill reads the files; of an error it tells the file.
func (b *Bundle) fill(files map[string][]byte) (file string, err error) {
	if err := decode(files[FeaturesFile], &b.Features); err != nil {
		return FeaturesFile, err
	}
	if err := b.Features.check(); err != nil {
		return FeaturesFile, err
	}
	b.index = make(map[string]int, len(b.Features.Features))
	for i := range b.Features.Features {
		b.index[b.Features.Features[i].Name] = i
	}
	var trees *forest
	file = XGBoostFile
	if data, ok := files[XGBoostFile]; ok {
		trees, err = parseXGBoost(data)
	} else {
		file = LightGBMFile
		trees, err = parseLightGBM(files[LightGBMFile])
	}
	if err != nil {
		return file, err
	}
	if b.Model, err = newModel(trees, b.Features.Transform, b.Features.Precision == "float64"); err != nil {
		return file, err
	}
	if err := b.Features.fit(trees); err != nil {
		return FeaturesFile, err
	}
	if err := decode(files[BaselineFile], &b.Baseline); err != nil {
		return BaselineFile, err
	}
	if err := b.Baseline.check(&b.Features); err != nil {
		return BaselineFile, err
	}
	if err := decode(files[MetricsFile], &b.Metrics); err != nil {
		return MetricsFile, err
	}
	if err := b.Metrics.check(); err != nil {
		return MetricsFile, err
	}
	if data, ok := files[ExamplesFile]; ok {
		if err := b.checkExamples(data); err != nil {
			return ExamplesFile, err
		}
	}
	return "", nil
}

// Index finds a feature's place in a row by its name.
func (b *Bundle) Index(name string) (int, bool) {
	i, ok := b.index[name]
	return i, ok
}

// Encode gives the number that stands for feature i's value in a row. The error
// names the feature and what is wrong with the value.
func (b *Bundle) Encode(i int, v Value) (float64, error) {
	n, err := b.Features.Features[i].encode(v)
	if err == nil && !b.Model.fits(n) {
		err = fmt.Errorf("%v is beyond the numbers of the model", n)
	}
	if err != nil {
		return 0, fmt.Errorf("feature %q: %w", b.Features.Features[i].Name, err)
	}
	return n, nil
}

// Row encodes named values into a row; what is not named is missing. The error is
// about a name that is no feature, or a value.
func (b *Bundle) Row(row []float64, values map[string]Value) error {
	known := 0
	for i := range b.Features.Features {
		v, ok := values[b.Features.Features[i].Name]
		if ok {
			known++
		}
		n, err := b.Encode(i, v)
		if err != nil {
			return err
		}
		row[i] = n
	}
	if known != len(values) {
		for name := range values {
			if _, ok := b.index[name]; !ok {
				return fmt.Errorf("feature %.80q: the model has no such feature, only %s", name, strings.Join(b.Features.Names(), ", "))
			}
		}
	}
	return nil
}

// Names are the names of the features, in order.
func (f *Features) Names() []string {
	names := make([]string, len(f.Features))
	for i := range f.Features {
		names[i] = f.Features[i].Name
	}
	return names
}

// Baseline is baseline.json: how features and score were distributed in the training
// data. What is measured later is compared with it.
type Baseline struct {
	// Format is 1.
	Format int `json:"format"`
	// Rows is how many rows were counted.
	Rows int64 `json:"rows"`
	// Features has a distribution for every feature, in their order.
	Features []Distribution `json:"features"`
	// Score is the distribution of the prediction, of the last class if there are
	// several.
	Score Distribution `json:"score"`
	// Tail tells how rare low scores are, of a model whose low scores are odd; from
	// the rarest to the most common. Optional.
	Tail []Tail `json:"tail,omitempty"`
	// Residuals are what is known of the model's errors. Optional.
	Residuals *Residuals `json:"residuals,omitempty"`
}

// Tail is one point of the lower end of the scores.
type Tail struct {
	// Share of the rows has this score or a lower one.
	Share float64 `json:"share"`
	Score float64 `json:"score"`
}

// Distribution counts the values of one column: numbers by interval, categories by
// value. All counts are of rows.
type Distribution struct {
	Name string `json:"name"`
	// Edges are the borders of the intervals, ascending: a value v is counted by
	// the first edge with v <= edge, one above the last edge by the last count.
	Edges []float64 `json:"edges,omitempty"`
	// Values are the categories; the count after theirs is of all others.
	Values *Values `json:"values,omitempty"`
	// Counts has one more than Edges or Values.
	Counts []int64 `json:"counts"`
	// Missing counts the rows without a value.
	Missing int64 `json:"missing"`
	// Sample are values of numbers, drawn from the rows that have one and sorted; all
	// of them where there are few. Optional.
	Sample []float64 `json:"sample,omitempty"`
	// SampleTimes says when the row of each value of Sample was, in seconds since 1970,
	// so that an hour of today can be compared with the same hours. Optional.
	SampleTimes []int64 `json:"sample_times,omitempty"`
}

func (b *Baseline) check(f *Features) error {
	if b.Format != 1 {
		return fmt.Errorf("format: must be 1, not %d", b.Format)
	}
	if len(b.Features) != len(f.Features) {
		return fmt.Errorf("features: %d distributions for %d features", len(b.Features), len(f.Features))
	}
	for i := range b.Features {
		d := &b.Features[i]
		if d.Name != f.Features[i].Name {
			return fmt.Errorf("features[%d].name: is %q, the feature is %q", i, d.Name, f.Features[i].Name)
		}
		if (d.Values != nil) != (f.Features[i].Type == Category) {
			return fmt.Errorf("features[%d] (%s): wants values for a category, edges for anything else", i, d.Name)
		}
		if err := d.check(b.Rows); err != nil {
			return fmt.Errorf("features[%d] (%s): %w", i, d.Name, err)
		}
	}
	if b.Score.Values != nil {
		return errors.New("score: wants edges, not values")
	}
	if err := b.Score.check(b.Rows); err != nil {
		return fmt.Errorf("score: %w", err)
	}
	for i, t := range b.Tail {
		if t.Share <= 0 || t.Share >= 1 {
			return fmt.Errorf("tail[%d].share: %v is not between 0 and 1", i, t.Share)
		}
		if i > 0 && (b.Tail[i-1].Share >= t.Share || b.Tail[i-1].Score > t.Score) {
			return fmt.Errorf("tail[%d]: shares must ascend, and scores not descend", i)
		}
	}
	if b.Residuals != nil {
		if err := b.Residuals.check(); err != nil {
			return fmt.Errorf("residuals: %w", err)
		}
	}
	return nil
}

func (d *Distribution) check(rows int64) error {
	bins := len(d.Edges)
	if d.Values != nil {
		if bins > 0 {
			return errors.New("has both edges and values")
		}
		bins = d.Values.Len()
	}
	if len(d.Counts) != bins+1 {
		return fmt.Errorf("counts: %d, want %d", len(d.Counts), bins+1)
	}
	for i := range d.Edges {
		if i > 0 && d.Edges[i-1] >= d.Edges[i] {
			return fmt.Errorf("edges: must ascend, %v is followed by %v", d.Edges[i-1], d.Edges[i])
		}
	}
	sum := d.Missing
	for _, n := range append(slices.Clone(d.Counts), d.Missing) {
		if n < 0 || n > rows {
			return fmt.Errorf("counts: %d of %d rows", n, rows)
		}
	}
	for _, n := range d.Counts {
		sum += n
	}
	if sum != rows {
		return fmt.Errorf("counts and missing: %d together, of %d rows", sum, rows)
	}
	switch {
	case d.Values != nil && len(d.Sample) > 0:
		return errors.New("sample: belongs to numbers only")
	case int64(len(d.Sample)) > rows-d.Missing:
		return fmt.Errorf("sample: %d values of %d rows that have one", len(d.Sample), rows-d.Missing)
	case !slices.IsSorted(d.Sample):
		return errors.New("sample: must be sorted")
	case len(d.SampleTimes) > 0 && len(d.SampleTimes) != len(d.Sample):
		return fmt.Errorf("sample_times: %d for a sample of %d", len(d.SampleTimes), len(d.Sample))
	}
	return nil
}

// Metrics is metrics.json: what was measured on rows that were not trained on, by the
// name of the measure.
type Metrics map[string]Metric

// Metric is one measured number, with a confidence interval if one was made.
type Metric struct {
	Value float64  `json:"value"`
	Low   *float64 `json:"low,omitempty"`
	High  *float64 `json:"high,omitempty"`
}

func (m Metrics) check() error {
	if len(m) == 0 {
		return errors.New("no metrics")
	}
	for name, v := range m {
		if (v.Low == nil) != (v.High == nil) {
			return fmt.Errorf("%s: want both low and high, or neither", name)
		}
		if v.Low != nil && *v.Low > *v.High {
			return fmt.Errorf("%s: low (%v) is above high (%v)", name, *v.Low, *v.High)
		}
	}
	return nil
}

// tolerance is how far a prediction may be from the training library's, relative to
// the larger of it and 1: XGBoost sums in float32.
const tolerance = 1e-5

// examples is examples.json.
type examples struct {
	Examples []struct {
		Features   map[string]Value `json:"features"`
		Prediction []float64        `json:"prediction"`
	} `json:"examples"`
}

func (b *Bundle) checkExamples(data []byte) error {
	var e examples
	if err := decode(data, &e); err != nil {
		return err
	}
	if len(e.Examples) == 0 {
		return errors.New("examples: none")
	}
	row, out := make([]float64, b.Model.Features()), make([]float64, b.Model.Outputs())
	for i, x := range e.Examples {
		if err := b.Row(row, x.Features); err != nil {
			return fmt.Errorf("examples[%d]: %w", i, err)
		}
		if err := b.Model.Predict(out, row); err != nil {
			return fmt.Errorf("examples[%d]: %w", i, err)
		}
		if len(x.Prediction) != len(out) {
			return fmt.Errorf("examples[%d].prediction: %d values, the model has %d outputs", i, len(x.Prediction), len(out))
		}
		for j, want := range x.Prediction {
			if math.Abs(out[j]-want) > tolerance*max(1, math.Abs(want)) {
				return fmt.Errorf("examples[%d]: the model predicts %v here, %v where it was trained", i, out[j], want)
			}
		}
	}
	return nil
}

// decode reads one JSON value strictly: no unknown field, nothing after it.
func decode(data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("not JSON: it ends too early")
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("not JSON: something follows the value")
	}
	return nil
}

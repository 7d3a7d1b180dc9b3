// Package model loads trained models and computes their predictions.
//
// A model version is a bundle: a folder, an object prefix or a registry's artifacts
// with these files.
//
//	bundle.json    names the model, the training data's window and rows, and the
//	               size and SHA-256 of every other file; it is written last
//	model.json     the trees as XGBoost saves them (save_model to .json), or
//	model.txt      the trees as LightGBM text, version v2 to v4; the form in which
//	               scikit-learn's forests are exported
//	features.json  the ordered features with their types and encoders, the target,
//	               and how margins become predictions
//	baseline.json  the distributions of features and score in the training data
//	metrics.json   what the evaluation measured
//	examples.json  optional: rows and the predictions that the training library
//	               gave for them; a bundle that predicts otherwise is refused
//
// # Arithmetic
//
// Trees without categorical splits are walked here, several walks at a time, which is
// several times as fast as one after the other. Those with them are walked by
// github.com/dmitryikh/leaves, which the tests also hold the others to, bit by bit. Its
// reader for XGBoost's own format is not used: it knows only files from before 1.1, and
// compares with <= where XGBoost compares with <. What it gets is LightGBM text that
// this package writes from a parsed and checked model, so that no foreign text reaches
// its reader, which panics on some broken files and loops on others. Base scores and transforms are
// added here, in float64. Features are rounded to float32 first, as XGBoost and
// scikit-learn do. The result differs from XGBoost's, which sums in float32, by no
// more than that summing: see the tests for the limits.
//
// What leaves would get silently wrong is refused with a reason: linear trees, square
// root regression, categorical splits of XGBoost, vector leaves, other boosters.
//
// # Use
//
// Load reads and checks a whole bundle; no part of it is used when any part is bad.
// A Bundle does not change and is safe for concurrent use.
package model

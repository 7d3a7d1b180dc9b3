"""Makes the models that the Go tests are held against, and what they predict.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python fixtures.py

The rows to predict are not stored: rows() here and in model_test.go draw the same
ones. Stored are, for each model, the file that a bundle would hold, and the margins
and predictions of the rows: the bytes of a number (float32 or float64, as the library
computes) and the number of rows as uint32, all margins, all predictions, little-endian.
Both are compressed.
"""

import gzip
import json
import pathlib

import lightgbm
import numpy as np
import sklearn.ensemble
import xgboost

HERE = pathlib.Path(__file__).parent / "models"
ROWS = 10_000
FEW = 2_000  # where other models show the same
FEATURES = 8


def rows(seed: int, count: int) -> np.ndarray:
    """Draws rows with ties, small numbers and a tenth of missing values (SplitMix64)."""
    n = count * FEATURES * 2
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    missing = ((z[0::2] >> np.uint64(32)) % np.uint64(10) == 0).reshape(count, FEATURES)
    v = z[1::2].reshape(count, FEATURES)
    unit = (v >> np.uint64(40)).astype(np.float64) / 2.0**24
    x = np.empty((count, FEATURES))
    x[:, 0] = (v[:, 0] % np.uint64(10)).astype(np.float64)
    x[:, 1] = (v[:, 1] % np.uint64(200_000)).astype(np.float64) / 100
    x[:, 2] = (v[:, 2] % np.uint64(8)).astype(np.float64) - 1
    x[:, 3] = unit[:, 3] * 2 - 1
    x[:, 4] = (v[:, 4] % np.uint64(50)).astype(np.float64)
    x[:, 5] = (v[:, 5] % np.uint64(1000)).astype(np.float64) / 8
    x[:, 6] = unit[:, 6] * unit[:, 6] * unit[:, 6] * 1000
    x[:, 7] = (v[:, 7] % np.uint64(2)).astype(np.float64)
    x = x.astype(np.float32)
    x[missing] = np.nan
    return x


def store(name: str, suffix: str, model: bytes, margins: np.ndarray, predictions: np.ndarray) -> None:
    HERE.mkdir(exist_ok=True)
    (HERE / f"{name}.{suffix}.gz").write_bytes(gzip.compress(model, 9, mtime=0))
    both = np.stack([margins.ravel(), predictions.ravel()])
    both = both.astype("<f4" if both.dtype == np.float32 else "<f8")
    head = np.array([both.itemsize, len(margins)], "<u4")
    (HERE / f"{name}.expected.gz").write_bytes(gzip.compress(head.tobytes() + both.tobytes(), 9, mtime=0))


X = rows(1, 4000)
TEST = rows(2, ROWS)
noise = np.random.default_rng(7)
filled = np.nan_to_num(X, nan=3.0)
signal = (
    np.sin(filled[:, 0])
    + (filled[:, 1] > 700) * (filled[:, 2] % 2)
    + filled[:, 3] * filled[:, 7]
    - 0.01 * filled[:, 5]
    + np.log1p(filled[:, 6]) / 4
    + noise.normal(0, 0.4, len(X))
)
binary = (signal > np.median(signal)).astype(int)
count = np.floor(np.exp(np.clip(signal, -2, 3))).astype(int)
classes = np.digitize(signal, np.quantile(signal, [0.2, 0.7]))


def xgb(name: str, label: np.ndarray, rounds: int, count: int = ROWS, **params: object) -> None:
    """Saves what XGBoost predicts; nthread=1, since threads fight for few cores."""
    params = {"nthread": 1, "seed": 1, "max_depth": 5, "eta": 0.2, "tree_method": "hist", **params}
    data = xgboost.DMatrix(X, label, nthread=1)
    booster = xgboost.train(params, data, rounds)
    test = xgboost.DMatrix(TEST[:count], nthread=1)
    margins = booster.predict(test, output_margin=True)
    store(name, "json", bytes(booster.save_raw("json")), margins, booster.predict(test))


xgb("squarederror", signal, 30, objective="reg:squarederror")
xgb("binary", binary, 100, objective="binary:logistic", max_depth=6)
xgb("poisson", count, 20, objective="count:poisson")
xgb("tweedie", np.exp(signal), 10, objective="reg:tweedie")
xgb("softprob", classes, 20, objective="multi:softprob", num_class=3)
xgb("dart", binary, 20, objective="binary:logistic", booster="dart", rate_drop=0.3, skip_drop=0.2)
xgb("parallel", classes, 2, FEW, objective="multi:softprob", num_class=3, num_parallel_tree=5, subsample=0.7, eta=1)
xgb("exact", binary, 20, objective="binary:logistic", tree_method="exact", base_score=0.3)
xgb("constant", np.full(len(X), 2.5), 2, objective="reg:squarederror")


def line(key: str, values: object) -> str:
    return f"{key}=" + " ".join(repr(float(v)) if isinstance(v, float) else str(v) for v in values) + "\n"


def forest_text(trees: list, leaf_values: list, features: int) -> bytes:
    """Writes scikit-learn's trees as LightGBM text whose output is the mean of the trees."""
    text = f"tree\nversion=v3\nnum_class=1\nnum_tree_per_iteration=1\nmax_feature_idx={features - 1}\naverage_output\n"
    text += line("tree_sizes", [0] * len(trees)) + "\n"
    for i, (t, values) in enumerate(zip(trees, leaf_values, strict=True)):
        leaf = t.children_left == -1
        number = np.where(leaf, -np.cumsum(leaf), np.cumsum(~leaf) - 1)  # ^n of leaf n is -n-1
        goes_left = t.missing_go_to_left[~leaf]
        text += f"Tree={i}\nnum_leaves={leaf.sum()}\nnum_cat=0\n"
        text += line("split_feature", t.feature[~leaf].tolist())
        text += line("threshold", t.threshold[~leaf].tolist())
        text += line("decision_type", [8 | 2 * int(left) for left in goes_left])
        text += line("left_child", number[t.children_left[~leaf]].tolist())
        text += line("right_child", number[t.children_right[~leaf]].tolist())
        text += line("leaf_value", values[leaf].tolist()) + "\n"
    return (text + "end of trees\n").encode()


def mean_depth(n: np.ndarray) -> np.ndarray:
    """scikit-learn's _average_path_length."""
    n = np.asarray(n, float)
    large = 2 * (np.log(np.maximum(n - 1, 1)) + np.euler_gamma) - 2 * (n - 1) / np.maximum(n, 1)
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, large))


def depths(t: object) -> np.ndarray:
    d = np.zeros(t.node_count)
    for i in range(t.node_count):
        if t.children_left[i] != -1:
            d[t.children_left[i]] = d[t.children_right[i]] = d[i] + 1
    return d


regressor = sklearn.ensemble.RandomForestRegressor(20, max_depth=7, random_state=1).fit(X, signal)
trees = [e.tree_ for e in regressor.estimators_]
predicted = regressor.predict(TEST)
store("forest", "txt", forest_text(trees, [t.value[:, 0, 0] for t in trees], FEATURES), predicted, predicted)

# Trained on whole rows: what is missing later goes where most training rows went.
isolation = sklearn.ensemble.IsolationForest(n_estimators=50, max_samples=256, random_state=1).fit(filled)
trees = [e.tree_ for e in isolation.estimators_]
values = [depths(t) + mean_depth(t.n_node_samples) for t in trees]
whole = np.nan_to_num(TEST, nan=3.0)
scores = isolation.score_samples(whole)
margins = -np.log2(-scores) * mean_depth(256)
store("isolation", "txt", forest_text(trees, values, FEATURES), margins, scores)


def lgb(name: str, label: np.ndarray, rounds: int, **params: object) -> None:
    params = {"num_threads": 1, "seed": 1, "verbose": -1, "num_leaves": 31, **params}
    data = lightgbm.Dataset(X, label, categorical_feature=[0, 4])
    booster = lightgbm.train(params, data, rounds)
    test = TEST[:FEW]
    predicted = booster.predict(test)
    # Of a forest LightGBM gives the sum of the trees as the raw score, not the mean.
    margins = predicted if params.get("boosting") == "rf" else booster.predict(test, raw_score=True)
    store(name, "txt", booster.model_to_string().encode(), margins, predicted)


lgb("lightgbm-binary", binary, 30, objective="binary")
lgb("lightgbm-multiclass", classes, 10, objective="multiclass", num_class=3)
lgb("lightgbm-rf", signal, 10, objective="regression", boosting="rf", bagging_freq=1, bagging_fraction=0.7)

print(json.dumps({p.name: p.stat().st_size for p in sorted(HERE.iterdir())}, indent=1))

"""Writes and reads bundles: the folders that hold a model version.

The Go package shared/model says what is in them, and loads them strictly; what is
written here is held against it by a test.
"""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from millrace_training import models
from millrace_training.data import Floats, Ints, Numbers, Table
from millrace_training.encoding import Column, Encoder, Matrix
from millrace_training.evaluation import Metric
from millrace_training.models import Model
from millrace_training.windows import Window

MANIFEST = "bundle.json"
FEATURES = "features.json"
BASELINE = "baseline.json"
METRICS = "metrics.json"
EXAMPLES = "examples.json"

_EXAMPLES = 50
_BINS = 20
_SAMPLE = 2000  # values of a column
_TIMED_SAMPLE = 6000  # rows, so that each hour of a day has some hundreds
_DIGITS = 6  # of the values of those rows: they are compared, not computed with


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle."""

    name: str
    version: str  # "" where a registry gives one
    created_at: datetime
    start: datetime  # of the rows that model and parameters were chosen from
    end: datetime
    model: Model
    encoder: Encoder
    seen: Table  # those rows
    metrics: dict[str, Metric]
    test: Window
    seed: int = 1  # of the samples of the columns
    seasonal: bool = False  # rows follow the hours: the samples say when they were
    baseline: dict[str, Any] = field(default_factory=dict)  # what baseline.json has besides


def write(folder: Path, c: Contents) -> str:
    """Write a bundle into a folder, the manifest last, and give its digest.

    A bundle that is there already is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matrix = c.encoder.matrix(c.seen)
    files = {
        c.model.file: c.model.data(),
        FEATURES: _json(_features(c.encoder, c.model.transform)),
        BASELINE: _json(_baseline(c, matrix) | c.baseline),
        METRICS: _json({name: m.json() for name, m in sorted(c.metrics.items())}),
        EXAMPLES: _json(_examples(c)),
    }
    for name in (MANIFEST, models.XGBOOST_FILE, models.LIGHTGBM_FILE):
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest: dict[str, Any] = {"format": 1, "name": c.name}
    if c.version:
        manifest["version"] = c.version
    manifest |= {
        "created_at": _rfc3339(c.created_at),
        "training": {"from": _rfc3339(c.start), "to": _rfc3339(c.end), "rows": len(c.seen)},
        "files": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in sorted(files.items())},
    }
    data = _json(manifest)
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _rfc3339(t: datetime) -> str:
    return t.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> bytes:  # noqa: ANN401
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _features(encoder: Encoder, transform: dict[str, Any] | None) -> dict[str, Any]:
    columns = []
    for c in encoder.columns:
        column: dict[str, Any] = {"name": c.name, "type": c.type}
        if c.values is not None:
            column["values"] = list(c.values)
        columns.append(column)
    out: dict[str, Any] = {"format": 1, "target": encoder.target, "features": columns}
    return out | ({"transform": transform} if transform else {})


def _baseline(contents: Contents, matrix: Matrix) -> dict[str, Any]:
    encoder, seen = contents.encoder, contents.seen
    rng = np.random.default_rng(contents.seed)
    drawn: _Drawn | None = None
    if contents.seasonal:
        rows = np.sort(rng.choice(len(seen), min(len(seen), _TIMED_SAMPLE), replace=False))
        drawn = _Drawn(rows, seen.arrived[rows] // 1_000_000)
    distributions = []
    for i, c in enumerate(encoder.columns):
        column = seen.columns[c.name]
        if isinstance(column, Numbers):
            distributions.append({"name": c.name, **_histogram(column.values, rng, drawn)})
            continue
        assert c.values is not None  # noqa: S101 a category has them
        missing = column.ids < 0
        # A value that is in the validation rows alone is one of "all others".
        codes = matrix[~missing, i].astype(np.int64)
        codes[codes < 0] = len(c.values)
        counts = np.bincount(codes, minlength=len(c.values) + 1)
        distributions.append(
            {"name": c.name, "values": list(c.values), "counts": counts.tolist(), "missing": int(missing.sum())}
        )
    return {
        "format": 1,
        "rows": len(seen),
        "features": distributions,
        "score": {"name": encoder.target, **_histogram(contents.model.predict(matrix), rng, drawn)},
    }


@dataclass(frozen=True)
class _Drawn:
    """Rows that were drawn for all columns, and their times in seconds since 1970."""

    rows: Ints
    times: Ints


def _histogram(values: Floats, rng: np.random.Generator, drawn: _Drawn | None) -> dict[str, Any]:
    """Count values by intervals of about as many rows, an edge belongs to the lower one; and draw a sample."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1], method="lower"))
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    out = {"edges": edges.tolist(), "counts": counts.tolist(), "missing": int(len(values) - len(known))}
    if drawn is None:
        sample = known if len(known) <= _SAMPLE else rng.choice(known, _SAMPLE, replace=False)
        return out | {"sample": np.sort(sample).tolist()}
    of, times = values[drawn.rows], drawn.times
    of, times = of[~np.isnan(of)], times[~np.isnan(of)]
    order = np.argsort(of, kind="stable")
    return out | {
        "sample": [float(f"{v:.{_DIGITS}g}") for v in of[order]],
        "sample_times": times[order].tolist(),
    }


def _examples(c: Contents) -> dict[str, Any]:
    rows = c.test.rows
    scores = c.model.predict(c.encoder.matrix(rows))
    # Some of each score, from the lowest to the highest.
    order = np.argsort(scores, kind="stable")
    chosen = np.unique(order[np.linspace(0, len(order) - 1, _EXAMPLES).round().astype(np.int64)])
    return {
        "examples": [
            {
                "features": {f.name: f.raw(rows.columns[f.name], int(i)) for f in c.encoder.columns},
                "prediction": [float(scores[i])],
            }
            for i in chosen
        ]
    }


class BundleError(ValueError):
    """A bundle cannot be read."""


@dataclass(frozen=True)
class Champion:
    """A bundle that was read, to be compared with."""

    version: str
    digest: str
    end: datetime  # of the rows that it was trained on
    model: Model
    encoder: Encoder

    def predict(self, table: Table) -> NDArray[np.float64]:
        """Give its predictions of rows.

        Raises:
            BundleError: it wants other features than the rows have.
        """
        try:
            return self.model.predict(self.encoder.matrix(table))
        except ValueError as e:
            raise BundleError(str(e)) from e


def read(folder: Path) -> Champion:
    """Read a bundle of this package, checking sizes and sums.

    Raises:
        BundleError: a file is missing, damaged or of another kind.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = json.loads(data)
        files = {}
        for name, want in manifest["files"].items():
            if Path(name).name != name:
                raise BundleError(f"{name!r} is no name of a file")
            files[name] = (folder / name).read_bytes()
            if hashlib.sha256(files[name]).hexdigest() != want["sha256"]:
                raise BundleError(f"{name} is not what {MANIFEST} says")
        file = next((f for f in (models.XGBOOST_FILE, models.LIGHTGBM_FILE) if f in files), None)
        if file is None:
            raise BundleError(f"it has no model, only {', '.join(files)}")
        raw = json.loads(files[FEATURES])
        columns = tuple(
            Column(f["name"], f["type"], tuple(f["values"]) if "values" in f else None) for f in raw["features"]
        )
        model = models.read(file, files[file], raw.get("transform"))
        digest = hashlib.sha256(data).hexdigest()
        end = datetime.fromisoformat(manifest["training"]["to"])
        return Champion(manifest.get("version", digest[:12]), digest, end, model, Encoder(raw["target"], columns))
    except BundleError:
        raise
    except (OSError, KeyError, TypeError, ValueError, xgb.core.XGBoostError) as e:
        text = str(e).partition("\n")[0]
        raise BundleError(f"reading the bundle in {folder}: {type(e).__name__}: {text}") from e

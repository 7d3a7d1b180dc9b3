"""Measures what a regression is worth on rows that came after all it learnt from.

Confidence intervals are bootstrapped as those of ``evaluation``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace_training.evaluation import Metric, intervals, mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVELS = tuple(round(0.005 + 0.01 * i, 3) for i in range(100))
"""Shares that the quantiles of residuals are of."""

_INTERVALS = 5  # by the size of the prediction
_FEWEST = 200  # rows of an interval
_COVERAGE = 0.9


def _rmse(label: Floats, score: Floats) -> Callable[[Floats], float]:
    squares = mean((label - score) ** 2)
    return lambda weight: float(np.sqrt(squares(weight)))


def evaluate(
    label: Floats,
    group: Ints,
    score: Floats,
    average: float,
    champion: Floats | None,
    residuals: dict[str, Any],
    resamples: int,
    seed: int,
) -> dict[str, Metric]:
    """Measure a model beside the mean of the label and the champion.

    Args:
        label: what came of the rows.
        group: which rows belong together.
        score: what the model predicts.
        average: of the label in the rows that were trained on: the baseline, which gives
            it as its answer to everything.
        champion: what the model that is served now predicts.
        residuals: what the bundle says of the model's errors.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        The measures by name. Those that end in ``_gain`` are differences of which more
        than 0 says that the model is better.
    """
    constant = np.full(len(score), average)
    rmse, baseline = _rmse(label, score), _rmse(label, constant)
    # A shift keeps the sums of squares from cancelling each other.
    shifted = label - label.mean()

    def r2(weight: Floats) -> float:
        total = weight.sum()
        spread = shifted**2 @ weight / total - (shifted @ weight / total) ** 2
        return float(1 - rmse(weight) ** 2 / spread) if spread > 0 else float("nan")

    low, high = bounds(residuals, score, _COVERAGE)
    measures: dict[str, Callable[[Floats], float]] = {
        "rmse": rmse,
        "mae": mean(np.abs(label - score)),
        "r2": r2,
        "bias": mean(score - label),
        "baseline_rmse": baseline,
        "baseline_mae": mean(np.abs(label - constant)),
        "baseline_gain": lambda w: baseline(w) - rmse(w),
        "interval_90_coverage": mean(((low <= label) & (label <= high)).astype(np.float64)),
        "interval_90_width": mean(high - low),
    }
    if champion is not None:
        other = _rmse(label, champion)
        measures["champion_rmse"] = other
        measures["champion_mae"] = mean(np.abs(label - champion))
        measures["champion_mae_gain"] = mean(np.abs(label - champion) - np.abs(label - score))
        measures["champion_gain"] = lambda w: other(w) - rmse(w)
    metrics = intervals(measures, group, resamples, seed)
    metrics["rows"] = Metric(float(len(label)))
    return metrics


def residuals(label: Floats, score: Floats) -> dict[str, Any]:
    """Give the quantiles of the errors, by the size of the prediction, as baseline.json has them."""
    parts = max(1, min(_INTERVALS, len(score) // _FEWEST))
    edges = np.unique(np.quantile(score, np.linspace(0, 1, parts + 1)[1:-1], method="lower"))
    of = np.searchsorted(edges, score, side="left")
    if not (np.bincount(of, minlength=len(edges) + 1) > 0).all():
        edges, of = edges[:0], np.zeros(len(score), np.int64)
    lists = [np.quantile(label[of == i] - score[of == i], LEVELS).tolist() for i in range(len(edges) + 1)]
    rows = np.bincount(of, minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "rows": rows.tolist(), "levels": list(LEVELS), "quantiles": lists}


def bounds(residuals: dict[str, Any], score: Floats, coverage: float) -> tuple[Floats, Floats]:
    """Give the interval of each prediction, as shared/model does."""
    of = np.searchsorted(np.array(residuals["edges"]), score, side="left")
    ends = [
        np.array([np.interp(level, residuals["levels"], q) for q in residuals["quantiles"]])
        for level in ((1 - coverage) / 2, (1 + coverage) / 2)
    ]
    return score + ends[0][of], score + ends[1][of]

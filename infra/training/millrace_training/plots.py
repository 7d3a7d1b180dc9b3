"""Draws what a run has found."""

from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from millrace_training.evaluation import calibration_bins

Floats = NDArray[np.float64]


def _png(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def _curve(label: Floats, score: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(-score, kind="stable")
    ones = np.cumsum(label[order] == 1)
    zeros = np.cumsum(label[order] == 0)
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    return np.r_[0, zeros[last] / zeros[-1]], np.r_[0, ones[last] / ones[-1]]


def roc(label: Floats, scores: dict[str, Floats]) -> bytes:
    """Draw the ROC curves of models, as PNG."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, score in scores.items():
        axes.plot(*_curve(label, score), label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", label="chance")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC, test window")
    axes.legend()
    return _png(figure)


def calibration(label: Floats, scores: dict[str, Floats]) -> bytes:
    """Draw frequencies over predictions in bins of equal size, as PNG."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, score in scores.items():
        bins = calibration_bins(score)
        count = np.bincount(bins)
        full = count > 0
        predicted, happened = (np.bincount(bins, v)[full] / count[full] for v in (score, label))
        axes.plot(predicted, happened, marker="o", label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", label="perfect")
    axes.set(xlabel="Mean prediction", ylabel="Share of ones", title="Calibration, test window")
    axes.legend()
    return _png(figure)


def importance(shares: dict[str, float], of: str) -> bytes:
    """Draw each feature's share of something, as PNG."""
    figure = Figure(figsize=(6, 0.4 * len(shares) + 1), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(shares, key=lambda n: shares[n])
    axes.barh(names, [shares[n] for n in names])
    axes.set(xlabel=of, title="Importance")
    return _png(figure)


_DOTS = 3000  # of a scatter plot, of which more would be a blot


def predicted(label: Floats, score: Floats, bounds: tuple[Floats, Floats]) -> bytes:
    """Draw actual over predicted values, with the interval of nine tenths, as PNG."""
    rows = np.random.default_rng(0).permutation(len(label))[:_DOTS]
    rows = rows[np.argsort(score[rows])]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(score[rows], bounds[0][rows], bounds[1][rows], alpha=0.25, linewidth=0, label="90 % interval")
    axes.scatter(score[rows], label[rows], s=3, alpha=0.5, color="black", linewidths=0)
    ends = [float(score.min()), float(score.max())]
    axes.plot(ends, ends, color="grey", linewidth=0.8, linestyle="--", label="perfect")
    # Faults are far away, and would make the rest a line.
    low, high = (float(v) for v in np.quantile(label, [0.002, 0.998]))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set(xlabel="Predicted", ylabel="Actual", title="Predictions, test window")
    axes.legend()
    return _png(figure)


def residuals(label: Floats, scores: dict[str, Floats]) -> bytes:
    """Draw how the errors of models are distributed, as PNG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    errors = {name: label - score for name, score in scores.items()}
    end = float(np.quantile(np.abs(np.concatenate(list(errors.values()))), 0.995)) or 1.0
    for name, e in errors.items():
        axes.hist(np.clip(e, -end, end), bins=60, histtype="step", label=name)
    axes.axvline(0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="Actual - predicted", ylabel="Rows", title="Errors, test window")
    axes.legend()
    return _png(figure)


def scores(label: Floats, oddness: Floats, tail: list[dict[str, float]]) -> bytes:
    """Draw the scores of usual and of disturbed rows, and how rare they are, as PNG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(float(-oddness.max()), float(-oddness.min()), 60).tolist()
    for value, name in ((0, "usual"), (1, "disturbed")):
        axes.hist(-oddness[label == value], bins=bins, histtype="step", label=name)
    for p in tail:
        axes.axvline(p["score"], color="grey", linewidth=0.6, linestyle=":")
    axes.plot([], [], color="grey", linewidth=0.6, linestyle=":", label="rarity")
    axes.set(xlabel="Score", ylabel="Rows", title="Scores, test window")
    axes.legend()
    return _png(figure)

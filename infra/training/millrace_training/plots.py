"""Draws what a run has found."""

from io import BytesIO

import matplotlib as mpl
import numpy as np
import xgboost as xgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from millrace_training.evaluation import calibration_bins

mpl.use("Agg")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _png(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def _curve(label: Ints, score: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(-score, kind="stable")
    ones = np.cumsum(label[order] == 1)
    zeros = np.cumsum(label[order] == 0)
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    return np.r_[0, zeros[last] / zeros[-1]], np.r_[0, ones[last] / ones[-1]]


def roc(label: Ints, scores: dict[str, Floats]) -> bytes:
    """Draw the ROC curves of models, as PNG."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, score in scores.items():
        axes.plot(*_curve(label, score), label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", label="chance")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC, test window")
    axes.legend()
    return _png(figure)


def calibration(label: Ints, scores: dict[str, Floats]) -> bytes:
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


def importance(booster: xgb.Booster, names: list[str]) -> bytes:
    """Draw each feature's share of the gain of all splits, as PNG."""
    gain = booster.get_score(importance_type="total_gain")
    values = np.array([float(gain.get(n, 0.0)) for n in names])
    figure = Figure(figsize=(6, 0.5 * len(names) + 1), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(values)
    axes.barh([names[i] for i in order], values[order] / max(values.sum(), 1e-12))
    axes.set(xlabel="Share of the total gain", title="Importance")
    return _png(figure)

"""Measures what a model is worth on rows that came after all it learnt from.

Confidence intervals are bootstrapped by session, since the rows of one session have
more in common than the features tell: 95 %, percentiles, the same resamples for all
measures and for both models of a comparison. The calibration error has none: resampled
rows are always further from their bins' mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOW, HIGH = 2.5, 97.5
_BINS = 10
_CLIP = 1e-7  # what keeps a logarithm finite; float32 has no probability closer to 1


@dataclass(frozen=True)
class Metric:
    """A measured number and its confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def json(self) -> dict[str, float]:
        """Give it as a bundle has it."""
        if self.low is None or self.high is None:
            return {"value": self.value}
        return {"value": self.value, "low": self.low, "high": self.high}


class Ranked:
    """Labels and scores in the order of the scores, ready for any weights."""

    def __init__(self, label: Floats, score: Floats) -> None:
        """Sort once."""
        self.order = np.argsort(score, kind="stable")
        ordered = score[self.order]
        self.positive = label[self.order] == 1
        # The first row of each run of equal scores.
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def auc(self, weight: Floats) -> float:
        """Give the area under the ROC curve; ties count half. NaN when a class has no weight."""
        w = weight[self.order]
        ones = np.add.reduceat(np.where(self.positive, w, 0.0), self.starts)
        zeros = np.add.reduceat(np.where(self.positive, 0.0, w), self.starts)
        below = np.cumsum(zeros) - zeros
        pairs = ones.sum() * zeros.sum()
        return float((ones * (below + zeros / 2)).sum() / pairs) if pairs > 0 else float("nan")


def losses(label: Floats, score: Floats) -> Floats:
    """Give each row's logarithmic loss."""
    p = np.clip(score, _CLIP, 1 - _CLIP)
    return np.where(label == 1, -np.log(p), -np.log1p(-p))


def calibration_bins(score: Floats) -> Ints:
    """Sort rows into up to ten bins of about as many rows, by their score."""
    edges = np.unique(np.quantile(score, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return np.searchsorted(edges, score, side="left").astype(np.int64)


def calibration_error(label: Floats, score: Floats, bins: Ints, weight: Floats) -> float:
    """Give how far scores and frequencies lie apart, the mean over the bins by their weight."""
    gap = np.bincount(bins, weight * (label - score))
    return float(np.abs(gap).sum() / weight.sum())


def mean(values: Floats) -> Callable[[Floats], float]:
    """Make a measure that is the mean over the rows."""
    return lambda weight: float(values @ weight / weight.sum())


def measures(prefix: str, label: Floats, score: Floats) -> dict[str, Callable[[Floats], float]]:
    """Make the measures of one model: functions of the rows' weights."""
    bins = calibration_bins(score)
    return {
        f"{prefix}auc": Ranked(label, score).auc,
        f"{prefix}log_loss": mean(losses(label, score)),
        f"{prefix}brier": mean((label - score) ** 2),
        f"{prefix}calibration_error": lambda weight: calibration_error(label, score, bins, weight),
        f"{prefix}mean_prediction": mean(score),
    }


def evaluate(
    label: Floats, session: Ints, score: Floats, frequency: float, champion: Floats | None, resamples: int, seed: int
) -> dict[str, Metric]:
    """Measure a model beside the frequency of the label and the champion.

    Args:
        label: what came of the rows, 0 or 1, some of both.
        session: which rows belong together.
        score: the model's probabilities.
        frequency: share of ones in the rows that were trained on: the baseline, which
            gives it as its answer to everything.
        champion: probabilities of the model that is served now.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        The measures by name. Those that end in ``_gain`` are differences of which more
        than 0 says that the model is better.
    """
    constant = np.full(len(score), frequency)
    all_measures = measures("", label, score)
    all_measures["positive_rate"] = mean(label.astype(np.float64))
    all_measures["baseline_log_loss"] = mean(losses(label, constant))
    all_measures["baseline_brier"] = mean((label - constant) ** 2)
    all_measures["baseline_log_loss_gain"] = mean(losses(label, constant) - losses(label, score))
    all_measures["calibration_gap"] = mean(label - score)
    if champion is not None:
        own, other = all_measures["auc"], Ranked(label, champion).auc
        all_measures |= measures("champion_", label, champion)
        all_measures["champion_log_loss_gain"] = mean(losses(label, champion) - losses(label, score))
        all_measures["champion_auc_gain"] = lambda weight: own(weight) - other(weight)

    metrics = intervals(
        all_measures, session, resamples, seed,
        # One class only, of which there is no AUC; and bins of resampled rows are always further off.
        lambda weight: 0 < weight @ label < weight.sum(), lambda name: not name.endswith("calibration_error"),
    )  # fmt: skip
    metrics["rows"] = Metric(float(len(label)))
    metrics["sessions"] = Metric(float(len(np.unique(session))))
    # The names that the gate reads of every model.
    metrics["baseline_gain"] = metrics["baseline_log_loss_gain"]
    if champion is not None:
        metrics["champion_gain"] = metrics["champion_log_loss_gain"]
    return metrics


def intervals(
    measures: dict[str, Callable[[Floats], float]],
    group: Ints,
    resamples: int,
    seed: int,
    usable: Callable[[Floats], bool] = lambda _: True,
    wanted: Callable[[str], bool] = lambda _: True,
) -> dict[str, Metric]:
    """Take measures, and bootstrap their intervals by group, with the same resamples for all."""
    values = {name: f(np.ones(len(group))) for name, f in measures.items()}
    samples: dict[str, list[float]] = {name: [] for name in measures}
    groups, of = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)))
        weight = drawn[of].astype(np.float64)
        if not usable(weight):
            continue
        for name, f in measures.items():
            if wanted(name):
                samples[name].append(f(weight))
    metrics = {}
    for name, value in values.items():
        known = [s for s in samples[name] if s == s]  # noqa: PLR0124 NaN is what differs from itself
        if known:
            low, high = np.percentile(known, [LOW, HIGH])
            metrics[name] = Metric(value, float(low), float(high))
        else:
            metrics[name] = Metric(value)
    return metrics

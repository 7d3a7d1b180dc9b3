"""Measures what an isolation forest is worth, although nobody has marked what is odd.

Rows of the test window are compared with copies of them that were disturbed, as the
known faults of servers do: a CPU that spins, a leak, heat, a surge, a saturated network,
a disk that does not keep up. Real faults among the rows count as usual; they make all
models look alike a little worse than they are. Confidence intervals are bootstrapped as
those of ``evaluation``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace_training.data import Numbers, Table
from millrace_training.encoding import Matrix
from millrace_training.evaluation import Metric, Ranked, intervals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Table], Floats]

_CPU, _MEMORY, _HEAT, _POWER = (
    "cpu_usage_percent", "memory_usage_percent", "cpu_temperature_celsius", "power_consumption_watts",
)  # fmt: skip
FAULTS: dict[str, dict[str, tuple[float, float]]] = {
    "cpu_spike": {_CPU: (2.5, 4.0), _HEAT: (1.3, 1.6), _POWER: (1.4, 1.8)},
    "memory_leak": {_MEMORY: (1.5, 2.2)},
    "temperature_high": {_HEAT: (1.5, 1.9), _POWER: (1.2, 1.4)},
    "power_surge": {_POWER: (2.0, 3.0), _CPU: (1.3, 1.6)},
    "network_saturation": {"network_rx_mbps": (3.0, 5.0), "network_tx_mbps": (3.0, 5.0)},
    "disk_io_bottleneck": {"disk_read_mbps": (3.0, 6.0), "disk_write_mbps": (3.0, 6.0)},
}
"""What each fault multiplies, and by how much: from, to."""

_LIMITS = {_CPU: 99.9, _MEMORY: 99.9, _HEAT: 95.0}
_MOST = 10_000  # rows that are disturbed
SHARE = 0.02
"""Of the rows, that are taken for odd: what recalls are measured at."""


@dataclass(frozen=True)
class Disturbed:
    """Copies of rows, each with a fault."""

    matrix: Matrix
    fault: Ints  # of FAULTS, in their order


def _factors(count: int, seed: int) -> tuple[Ints, dict[str, Floats]]:
    rng = np.random.default_rng(seed)
    fault = rng.integers(0, len(FAULTS), count)
    factors: dict[str, Floats] = {}
    for i, ranges in enumerate(FAULTS.values()):
        for name, (low, high) in ranges.items():
            drawn = rng.uniform(low, high, count)
            factors[name] = np.where(fault == i, drawn, factors.get(name, np.ones(count)))
    return fault, factors


def _apply(name: str, values: Floats, factor: Floats) -> Floats:
    changed = values * factor
    # A value that is beyond the limit already stays.
    return np.where(factor > 1, np.maximum(values, np.minimum(changed, _LIMITS.get(name, np.inf))), values)


def disturb(matrix: Matrix, names: list[str], seed: int) -> Disturbed:
    """Copy encoded rows, each with a fault."""
    fault, factors = _factors(len(matrix), seed)
    out = matrix.copy()
    for i, name in enumerate(names):
        if name in factors:
            out[:, i] = _apply(name, matrix[:, i].astype(np.float64), factors[name])
    return Disturbed(out, fault)


def disturb_table(table: Table, seed: int) -> tuple[Table, Ints]:
    """Copy rows, each with a fault; tell which of FAULTS it is."""
    fault, factors = _factors(len(table), seed)
    columns = dict(table.columns)
    for name, factor in factors.items():
        column = columns.get(name)
        if isinstance(column, Numbers):
            columns[name] = Numbers(_apply(name, column.values, factor))
    return Table(columns, table.label, table.arrived, table.session, table.served), fault


def auc(usual: Floats, odd: Floats) -> float:
    """Give the probability that an odd row has a higher oddness than a usual one."""
    label = np.r_[np.zeros(len(usual)), np.ones(len(odd))]
    return Ranked(label, np.r_[usual, odd]).auc(np.ones(len(label)))


def tail(score: Floats, shares: tuple[float, ...]) -> list[dict[str, float]]:
    """Tell how rare low scores are among the rows, from the rarest to the most common.

    Faults among the rows are not taken out: they make alarms rarer than the share says,
    and guessing how many there are was further off when tried.
    """
    return [{"share": share, "score": float(np.quantile(score, share))} for share in shares]


def at(points: list[dict[str, float]], share: float) -> float:
    """Give the score of a share."""
    return next(p["score"] for p in points if p["share"] == share)


class Furthest:
    """What needs no model: how many robust standard deviations the furthest of a row's metrics is from the median."""

    def __init__(self, train: Table) -> None:
        """Learn medians and spreads."""
        self.spread: dict[str, tuple[float, float]] = {}
        for name, c in train.columns.items():
            if isinstance(c, Numbers):
                middle = float(np.nanmedian(c.values))
                deviation = 1.4826 * float(np.nanmedian(np.abs(c.values - middle)))
                self.spread[name] = (middle, deviation or 1.0)

    def __call__(self, table: Table) -> Floats:
        """Give scores; like a forest's, those of odd rows are low."""
        z = [-np.abs((c.values - m) / s) for name, (m, s) in self.spread.items()
             if isinstance(c := table.columns[name], Numbers)]  # fmt: skip
        return np.asarray(np.nan_to_num(np.min(z, axis=0), nan=0.0))


@dataclass(frozen=True)
class Measured:
    """What plots are drawn of."""

    metrics: dict[str, Metric]
    label: Floats
    scores: dict[str, Floats]  # oddness of usual and disturbed rows, by model


def evaluate(
    test: Table, train: Table, model: Predict, champion: Predict | None, threshold: float, resamples: int, seed: int
) -> Measured:
    """Measure a forest beside chance, the furthest metric and the champion.

    Args:
        test: rows that came after all that was learnt from.
        train: those that were learnt from.
        model: gives scores.
        champion: those of the model that is served now.
        threshold: scores up to it are alarms.
        resamples: of the bootstrap.
        seed: of resamples and faults.

    Returns:
        The measures by name. Those that end in ``_gain`` are differences of which more
        than 0 says that the model is better.
    """
    chosen = np.zeros(len(test), np.bool_)
    chosen[np.random.default_rng(seed).permutation(len(test))[:_MOST]] = True
    usual = test.take(chosen)
    odd, fault = disturb_table(usual, seed)
    label = np.r_[np.zeros(len(usual)), np.ones(len(odd))]
    group = np.r_[usual.session, odd.session]

    def oddness(predict: Predict) -> Floats:
        return -np.concatenate([predict(usual), predict(odd)])

    own, furthest = oddness(model), oddness(Furthest(train))
    scores = {"challenger": own, "furthest metric": furthest}
    ranked, simple = Ranked(label, own), Ranked(label, furthest)
    alarm = (own >= -threshold).astype(np.float64)

    def share(of: NDArray[np.bool_]) -> Callable[[Floats], float]:
        def measure(weight: Floats) -> float:
            total = weight[of].sum()
            return float(alarm[of] @ weight[of] / total) if total else float("nan")

        return measure

    measures: dict[str, Callable[[Floats], float]] = {
        "auc": ranked.auc,
        "baseline_gain": lambda w: ranked.auc(w) - 0.5,  # of chance, which is to have no model
        "furthest_auc": simple.auc,
        "furthest_gain": lambda w: ranked.auc(w) - simple.auc(w),
        "alarm_rate": share(label == 0),
        "recall": share(label == 1),
    }
    for i, name in enumerate(FAULTS):
        of = np.r_[np.zeros(len(usual), np.bool_), fault == i]
        if of.any():
            measures[f"recall_{name}"] = share(of)
    if champion is not None:
        scores["champion"] = oddness(champion)
        other = Ranked(label, scores["champion"])
        measures["champion_auc"] = other.auc
        measures["champion_gain"] = lambda w: ranked.auc(w) - other.auc(w)
    metrics = intervals(measures, group, resamples, seed)
    metrics["rows"] = Metric(float(len(test)))
    return Measured(metrics, label, scores)

"""A random forest of scikit-learn: searches parameters, and fits the model with the best.

Both stop early on the validation window, which no tree is grown from. The forest is
kept small, for it is loaded by functions that start in a moment: at most 50 trees of at
most 256 leaves, each grown from at most 20,000 of the rows, in numbers of six digits.
"""

import logging
import math
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from millrace_training import interruption, trees, tuning
from millrace_training.failure import TrainingError
from millrace_training.fitting import Backend, Examples, Fitted, Floats
from millrace_training.models import Averaged
from millrace_training.request import Request
from millrace_training.tuning import Range

log = logging.getLogger(__name__)

SPACE: tuning.Space = {
    "max_features": Range(0.3, 1.0),
    "min_samples_leaf": Range(1, 50, whole=True, log=True),
    "max_leaf_nodes": Range(64, 256, whole=True, log=True),
}

METRIC = "rmse"

_TREES = 50
_ROWS = 20_000  # a tree is grown from
# A trial is to tell good parameters from bad ones, not to give the model.
_TRIAL_TREES, _TRIAL_ROWS = 20, 5_000
_STEP = 5  # trees between two looks at the loss
_DIGITS = 6


def _rmse(label: Floats, predicted: Floats) -> float:
    return float(np.sqrt(np.mean((label - predicted) ** 2)))


class _Growing:
    """A forest that grows by some trees at a time, and what it says of the validation rows."""

    def __init__(self, parameters: dict[str, Any], train: Examples, rows: int, validation: Examples, seed: int) -> None:
        self.forest = RandomForestRegressor(
            n_estimators=0, warm_start=True, max_samples=min(rows, len(train.label)), random_state=seed, n_jobs=1,
            **parameters,
        )  # fmt: skip
        self.train, self.validation = train, validation
        self.sum = np.zeros(len(validation.label))

    def grow(self, count: int) -> float:
        """Add trees and give the loss of all."""
        before = self.forest.n_estimators
        self.forest.set_params(n_estimators=before + count)
        self.forest.fit(self.train.matrix, self.train.label)
        for tree in self.forest.estimators_[before:]:
            self.sum += tree.predict(self.validation.matrix)
        interruption.check()
        return _rmse(self.validation.label, self.sum / self.forest.n_estimators)


class Trial:
    """Grows a smaller forest with parameters, and tells its validation loss."""

    def __init__(self, train: Examples, validation: Examples, request: Request) -> None:
        """Keep what all trials have in common."""
        self._train = train.sample(4 * _TRIAL_ROWS, request.seed)
        self._validation = validation.sample(2 * _TRIAL_ROWS, request.seed)
        self._seed, self._trees = request.seed, min(request.rounds, _TRIAL_TREES)

    def __call__(self, parameters: tuning.Parameters, report: tuning.Report) -> float:
        """Give the loss of the parameters."""
        growing = _Growing(parameters, self._train, _TRIAL_ROWS, self._validation, self._seed)
        loss = math.inf
        for step, count in enumerate(_steps(self._trees)):
            loss = growing.grow(count)
            report(step, loss)
        return loss


def _steps(total: int) -> list[int]:
    return [min(_STEP, total - i) for i in range(0, total, _STEP)]


def fit(train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend) -> Fitted:
    """Search and fit. In one process the same rows and seed give the same bytes.

    Raises:
        TrainingError: broken_column, when all labels are the same.
    """
    if np.ptp(train.label) == 0:
        raise TrainingError("broken_column", f"the column to predict is {train.label[0]} in all rows to train on")
    found = backend.search(Trial(train, validation, request), SPACE, request.trials, 1, request.seed)
    log.info("%d trials, %d ended early, best %s %.5f", found.trials, found.pruned, METRIC, found.loss)
    growing = _Growing(found.parameters, train, _ROWS, validation, request.seed)
    losses: list[float] = []
    best = grown = 0
    for count in _steps(min(request.rounds, _TREES)):
        losses.append(growing.grow(count))
        grown += count
        if losses[-1] == min(losses):
            best = grown
        elif grown - best >= request.early_stopping_rounds:
            break
    kept = growing.forest.estimators_[:best]
    for tree in kept:
        value = tree.tree_.value  # written in place, so that the file is the model
        value[:] = _rounded(value)
    leaves = [t.tree_.value[:, 0, 0].copy() for t in kept]
    model = Averaged(trees.of_sklearn([t.tree_ for t in kept], leaves, names))
    importance = np.mean([t.feature_importances_ for t in kept], axis=0)
    parameters = {**found.parameters, "max_samples": growing.forest.max_samples, "seed": request.seed}
    return Fitted(
        model, parameters, best, found.trials, found.pruned, {f"validation-{METRIC}": losses},
        dict(zip(names, importance.tolist(), strict=True)),
    )  # fmt: skip


def _rounded(values: Floats) -> Floats:
    size = np.where(values == 0, 1.0, np.abs(values))
    scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(size)))
    return np.round(values * scale) / scale

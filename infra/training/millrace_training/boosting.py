"""XGBoost: searches parameters, and fits the model with the best.

Both stop early on the validation window, which no tree is grown from.
"""

import logging
from typing import Any

import xgboost as xgb

from millrace_training import interruption, tuning
from millrace_training.fitting import Backend, Examples, Fitted, History
from millrace_training.models import Boosted
from millrace_training.request import Request
from millrace_training.tuning import Range

log = logging.getLogger(__name__)

BASE: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": ["logloss", "error", "rmse", "mae", "auc"],
    "tree_method": "hist",
    "max_depth": 1,
    "learning_rate": 0.3,
    "subsample": 0.8,
    "colsample_bytree": 0.8,
}
"""What holds where the search does not say otherwise."""

SPACE: tuning.Space = {
    "max_depth": Range(3, 4, whole=True),
    "learning_rate": Range(1e-4, 1e-1, log=True),
    "min_child_weight": Range(1, 5, whole=True),
    "subsample": Range(0.5, 1.0),
    "colsample_bytree": Range(0.5, 1.0),
    "gamma": Range(0.0, 1.0),
}

METRIC = "logloss"
"""Decides between parameters and on the number of trees: a probability is wanted."""

_GRACE = 20  # trees that every trial may grow before it is compared with others


class _Interruption(xgb.callback.TrainingCallback):  # type: ignore[misc]
    """Looks, after each tree, whether the run is told to end."""

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:  # noqa: ANN401, ARG002
        interruption.check()
        return False


class _Reporting(xgb.callback.TrainingCallback):  # type: ignore[misc]
    """Tells how a trial goes."""

    def __init__(self, report: tuning.Report) -> None:
        self.report = report

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:  # noqa: ANN401, ARG002
        self.report(epoch, evals_log["validation"][METRIC][-1])
        return False


def grow(
    parameters: dict[str, Any],
    train: xgb.DMatrix,
    evals: dict[str, xgb.DMatrix],
    rounds: int,
    stop: int,
    report: tuning.Report | None = None,
) -> tuple[xgb.Booster, History]:
    """Grow trees, and give them up to the round with the best validation loss, with all losses."""
    history: History = {}
    best = xgb.callback.EarlyStopping(rounds=stop, metric_name=METRIC, data_name="validation", save_best=True)
    callbacks = [_Reporting(report)] if report else []
    booster = xgb.train(
        parameters, train, num_boost_round=rounds, evals=[(d, name) for name, d in evals.items()],
        evals_result=history, verbose_eval=False, callbacks=[*callbacks, _Interruption(), best],
    )  # fmt: skip
    # They would be a second opinion on what the file holds.
    booster.set_attr(best_iteration=None, best_score=None)
    return booster, history


def boost(
    parameters: dict[str, Any], train: Examples, validation: Examples, names: list[str], rounds: int, stop: int
) -> tuple[xgb.Booster, History]:
    """Grow the final model in this process."""
    dtrain, dvalid = (matrix(x, names, parameters["nthread"]) for x in (train, validation))
    return grow(parameters, dtrain, {"train": dtrain, "validation": dvalid}, rounds, stop)


def matrix(rows: Examples, names: list[str], threads: int) -> xgb.DMatrix:
    """Make what XGBoost trains on."""
    return xgb.DMatrix(rows.matrix, rows.label, feature_names=names, nthread=threads)


class Trial:
    """Grows trees with parameters, and tells the best validation loss."""

    def __init__(self, train: Examples, validation: Examples, names: list[str], request: Request, threads: int) -> None:
        """Keep what all trials have in common."""
        self._rows = (train, validation, names)
        self._fixed = {"seed": request.seed, "nthread": threads}
        self._rounds, self._stop = request.rounds, request.early_stopping_rounds
        self._matrices: tuple[xgb.DMatrix, xgb.DMatrix] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process has to make itself."""
        return {**self.__dict__, "_matrices": None}

    def __call__(self, parameters: tuning.Parameters, report: tuning.Report) -> float:
        """Give the loss of the parameters."""
        if self._matrices is None:
            train, validation, names = self._rows
            self._matrices = tuple(matrix(x, names, self._fixed["nthread"]) for x in (train, validation))
        assert self._matrices is not None  # noqa: S101 as just made
        dtrain, dvalid = self._matrices
        of = {**BASE, "eval_metric": METRIC, **parameters, **self._fixed}
        _, history = grow(of, dtrain, {"validation": dvalid}, self._rounds, self._stop, report)
        return float(min(history["validation"][METRIC]))


def fit(train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend) -> Fitted:
    """Search and fit. In one process the same rows, seed and number of threads give the same bytes."""
    trial = Trial(train, validation, names, request, backend.threads)
    found = backend.search(trial, SPACE, request.trials, _GRACE, request.seed)
    log.info("%d trials, %d ended early, best %s %.5f", found.trials, found.pruned, METRIC, found.loss)
    parameters = {**BASE, **found.parameters, "seed": request.seed}
    booster, history = backend.boost(
        {**parameters, "nthread": backend.threads},
        train,
        validation,
        names,
        request.rounds,
        request.early_stopping_rounds,
    )
    flat = {f"{window}-{metric}": values for window, of in history.items() for metric, values in of.items()}
    gain = booster.get_score(importance_type="total_gain")
    total = sum(gain.values()) or 1.0
    importance = {n: gain.get(n, 0.0) / total for n in names}
    return Fitted(
        Boosted(booster), parameters, booster.num_boosted_rounds(), found.trials, found.pruned, flat, importance
    )


LOCAL = Backend(tuning.search, boost)
"""One process."""

"""Searches parameters, and fits the model with the best.

Both stop early on the validation window, which no tree is grown from.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import xgboost as xgb
from numpy.typing import NDArray

from millrace_training import interruption
from millrace_training.encoding import Matrix
from millrace_training.request import Request

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

METRIC = "logloss"
"""Decides between parameters and on the number of trees: a probability is wanted."""

_GRACE = 20  # trees that every trial may grow before it is compared with others


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Draw parameters from the search space."""
    return {
        "max_depth": trial.suggest_int("max_depth", 3, 4),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        "min_child_weight": trial.suggest_int("min_child_weight", 1, 5),
        "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.5, 1.0),
        "gamma": trial.suggest_float("gamma", 0.0, 1.0),
    }


@dataclass(frozen=True)
class Examples:
    """Encoded rows and their labels."""

    matrix: Matrix
    label: NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """The final model and how it came about."""

    booster: xgb.Booster  # the trees up to the best round, and no more
    parameters: dict[str, Any]
    rounds: int
    trials: int
    pruned: int
    history: dict[str, list[float]]  # of the final fit: "train-auc", "validation-auc", ... by round

    def predict(self, matrix: Matrix) -> NDArray[np.float64]:
        """Give the probabilities of rows."""
        return predict(self.booster, matrix)


def predict(booster: xgb.Booster, matrix: Matrix) -> NDArray[np.float64]:
    """Give the probabilities of encoded rows."""
    return np.asarray(booster.inplace_predict(matrix), np.float64)


class _Interruption(xgb.callback.TrainingCallback):  # type: ignore[misc]
    """Looks, after each tree, whether the run is told to end."""

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:  # noqa: ANN401, ARG002
        interruption.check()
        return False


class _Pruning(xgb.callback.TrainingCallback):  # type: ignore[misc]
    """Tells the study how a trial goes, and ends it when it is told to."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:  # noqa: ANN401, ARG002
        self.trial.report(evals_log["validation"][METRIC][-1], epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned
        return False


def run(train: Examples, validation: Examples, names: list[str], request: Request, threads: int) -> Fitted:
    """Search and fit. The same rows, seed and number of threads give the same bytes."""
    fixed = {"seed": request.seed, "nthread": threads}
    dtrain = xgb.DMatrix(train.matrix, train.label, feature_names=names, nthread=threads)
    dvalid = xgb.DMatrix(validation.matrix, validation.label, feature_names=names, nthread=threads)

    def fit(parameters: dict[str, Any], callbacks: list[Any], history: dict[str, Any]) -> xgb.Booster:
        stop = xgb.callback.EarlyStopping(
            request.early_stopping_rounds, metric_name=METRIC, data_name="validation", save_best=True
        )
        evals = [(dtrain, "train"), (dvalid, "validation")] if not callbacks else [(dvalid, "validation")]
        return xgb.train(
            parameters, dtrain, num_boost_round=request.rounds, evals=evals, evals_result=history, verbose_eval=False,
            callbacks=[*callbacks, _Interruption(), stop],
        )  # fmt: skip

    def objective(trial: optuna.Trial) -> float:
        history: dict[str, Any] = {}
        fit({**BASE, "eval_metric": METRIC, **space(trial), **fixed}, [_Pruning(trial)], history)
        return float(min(history["validation"][METRIC]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=request.seed),
        # What asynchronous successive halving is elsewhere.
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=_GRACE, reduction_factor=3),
    )
    study.optimize(objective, n_trials=request.trials, n_jobs=1)
    pruned = sum(t.state == optuna.trial.TrialState.PRUNED for t in study.trials)
    log.info(
        "%d trials, %d ended early, best %s %.5f",
        len(study.trials),
        pruned,
        METRIC,
        study.best_value,
    )

    history: dict[str, Any] = {}
    booster = fit({**BASE, **study.best_params, **fixed}, [], history)
    flat = {f"{window}-{metric}": values for window, of in history.items() for metric, values in of.items()}
    # best_iteration and best_score would be a second opinion on what the file holds.
    booster.set_attr(best_iteration=None, best_score=None)
    parameters = {**BASE, **study.best_params, "seed": request.seed}
    return Fitted(booster, parameters, booster.num_boosted_rounds(), len(study.trials), pruned, flat)

"""Searches parameters, one trial after the other in this process.

``distributed`` does the same on Ray.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import optuna

from millrace_training import interruption

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Range:
    """Where a parameter is drawn from; both ends belong to it."""

    low: float
    high: float
    whole: bool = False
    log: bool = False  # each order of magnitude is as likely as the next


Space = dict[str, Range]
Parameters = dict[str, Any]
Report = Callable[[int, float], None]
"""Tells how a trial goes: after so many steps, this loss. It raises what ends the trial, if it is to end."""


class Objective(Protocol):
    """What a trial does. It is sent to other processes where trials run there."""

    def __call__(self, parameters: Parameters, report: Report) -> float:
        """Give the loss of the parameters."""


@dataclass(frozen=True)
class Found:
    """What came of a search."""

    parameters: Parameters
    loss: float
    trials: int
    pruned: int


REDUCTION = 3
"""Of the trials that come so far, every third goes on at each rung of successive halving."""


def draw(trial: optuna.Trial, space: Space) -> Parameters:
    """Draw parameters."""
    return {
        name: trial.suggest_int(name, int(r.low), int(r.high), log=r.log)
        if r.whole
        else trial.suggest_float(name, r.low, r.high, log=r.log)
        for name, r in space.items()
    }


def search(objective: Objective, space: Space, trials: int, grace: int, seed: int) -> Found:
    """Try parameters; the same seed and losses give the same ones.

    Args:
        objective: gives the loss of parameters.
        space: where these are drawn from.
        trials: how many are tried.
        grace: steps that every trial may do before it is compared with others.
        seed: of what is drawn.
    """

    def one(trial: optuna.Trial) -> float:
        def report(step: int, loss: float) -> None:
            interruption.check()
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        return objective(draw(trial, space), report)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        # What asynchronous successive halving is elsewhere.
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=REDUCTION),
    )
    study.optimize(one, n_trials=trials, n_jobs=1)
    pruned = sum(t.state == optuna.trial.TrialState.PRUNED for t in study.trials)
    return Found(study.best_params, study.best_value, len(study.trials), pruned)

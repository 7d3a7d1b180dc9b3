"""What the ways of fitting a model have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from millrace_training import tuning
from millrace_training.encoding import Matrix
from millrace_training.models import Model

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Encoded rows and their labels."""

    matrix: Matrix
    label: Floats

    def sample(self, most: int, seed: int) -> "Examples":
        """Choose at most so many rows at random, in their order."""
        if len(self.label) <= most:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.label), most, replace=False))
        return Examples(self.matrix[rows], self.label[rows])


@dataclass(frozen=True)
class Fitted:
    """The final model and how it came about."""

    model: Model
    parameters: dict[str, Any]
    rounds: int  # trees
    trials: int
    pruned: int
    history: dict[str, list[float]]  # of the final fit, by round: "validation-auc", ...
    importance: dict[str, float] = field(default_factory=dict)  # of each feature, as shares
    tail: list[dict[str, float]] | None = None  # of the scores, see baseline.json


History = dict[str, dict[str, list[float]]]
"""Of each window each metric, by round."""


class Boost(Protocol):
    """Grows boosted trees, and stops when the validation loss does."""

    def __call__(
        self,
        parameters: dict[str, Any],
        train: Examples,
        validation: Examples,
        names: list[str],
        rounds: int,
        stop: int,
    ) -> tuple[xgb.Booster, History]:
        """Give the trees up to the best round."""


@dataclass(frozen=True)
class Backend:
    """Where the work is done: in this process, or on Ray."""

    search: Callable[[tuning.Objective, tuning.Space, int, int, int], tuning.Found]
    boost: Boost
    threads: int = 1

"""An isolation forest of scikit-learn, grown from a history that has anomalies in it.

Nobody has marked them, and they are left in: a tree that has met a few of them splits
where rows are rare. Without the oddest tenth of the rows the forest found a sixth of what
it finds with them (recall at 1 % of the rows, on the simulated datacenter). Parameters are
searched by how well the forest tells rows of the validation window from copies of them
that were disturbed. It is kept small: at most 50 trees of at most 1,024 rows.
"""

import logging
import math
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest

from millrace_training import interruption, oddness, trees, tuning
from millrace_training.encoding import Matrix
from millrace_training.fitting import Backend, Examples, Fitted, Floats
from millrace_training.models import Isolating, mean_depth
from millrace_training.request import Request
from millrace_training.tuning import Range

log = logging.getLogger(__name__)

SPACE: tuning.Space = {
    "max_samples": Range(256, 1024, whole=True, log=True),
    "max_features": Range(0.5, 1.0),
}

_TREES = 50
_TRIAL_TREES = 25
_ROWS = 50_000  # at most are drawn from, and scored
SHARES = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.05)


def _depths(tree: Any) -> Floats:  # noqa: ANN401
    depth = np.zeros(tree.node_count)
    for i in range(tree.node_count):  # a node comes before its children
        if tree.children_left[i] != -1:
            depth[tree.children_left[i]] = depth[tree.children_right[i]] = depth[i] + 1
    return depth


def grow(matrix: Matrix, count: int, parameters: dict[str, Any], seed: int, names: list[str]) -> Isolating:
    """Grow a forest."""
    samples = min(int(parameters["max_samples"]), len(matrix))
    forest = IsolationForest(
        n_estimators=count, max_samples=samples, max_features=parameters["max_features"], random_state=seed, n_jobs=1
    ).fit(matrix)
    interruption.check()
    grown = []
    for e, of in zip(forest.estimators_, forest.estimators_features_, strict=True):
        one = trees.of_sklearn([e.tree_], [_depths(e.tree_) + mean_depth(e.tree_.n_node_samples)], names).trees[0]
        # A tree that sees some features counts them from 0.
        grown.append(trees.Tree(of[one.feature], one.threshold, one.missing_left, one.left, one.right, one.leaf))
    return Isolating(trees.Trees(tuple(grown), tuple(names)), samples)


class Trial:
    """Grows a forest, and tells how badly it knows disturbed rows."""

    def __init__(self, train: Examples, validation: Examples, names: list[str], request: Request) -> None:
        """Keep what all trials have in common."""
        self._train = train.sample(10_000, request.seed).matrix
        usual = validation.sample(2_000, request.seed).matrix
        self._disturbed = oddness.disturb(usual, names, request.seed)
        self._usual, self._names, self._seed = usual, names, request.seed

    def __call__(self, parameters: tuning.Parameters, report: tuning.Report) -> float:
        """Give 1 - AUC of the parameters."""
        loss = math.inf
        for step, count in enumerate((_TRIAL_TREES // 5, _TRIAL_TREES)):
            forest = grow(self._train, count, parameters, self._seed, self._names)
            loss = 1 - oddness.auc(-forest.predict(self._usual), -forest.predict(self._disturbed.matrix))
            report(step, loss)
        return loss


def fit(train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend) -> Fitted:
    """Search and fit. In one process the same rows and seed give the same bytes."""
    found = backend.search(Trial(train, validation, names, request), SPACE, request.trials, 1, request.seed)
    log.info("%d trials, %d ended early, best 1-AUC %.5f", found.trials, found.pruned, found.loss)
    rows = train.sample(_ROWS, request.seed).matrix
    model = grow(rows, min(request.rounds, _TREES), found.parameters, request.seed, names)
    score = model.predict(validation.sample(_ROWS, request.seed).matrix)
    parameters = {**found.parameters, "seed": request.seed}
    return Fitted(
        model, parameters, len(model.trees.trees), found.trials, found.pruned, {"loss": [found.loss]},
        _importance(model, names), oddness.tail(score, SHARES),
    )  # fmt: skip


def _importance(model: Isolating, names: list[str]) -> dict[str, float]:
    """Give each feature's share of the splits near the roots, which isolate the most."""
    count = np.zeros(len(names))
    for t in model.trees.trees:
        np.add.at(count, t.feature[:15], 1.0)
    return dict(zip(names, (count / max(count.sum(), 1)).tolist(), strict=True))

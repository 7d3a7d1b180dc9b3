"""The kinds of model: how each is fitted, measured, drawn and told of.

A run is the same for all; what differs between them is here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from millrace_training import boosting, evaluation, forest, isolation, oddness, plots, regression
from millrace_training.data import Table
from millrace_training.evaluation import Metric
from millrace_training.fitting import Backend, Examples, Fitted
from millrace_training.request import Request
from millrace_training.spec import Spec
from millrace_training.windows import Windows

Floats = NDArray[np.float64]
Predict = Callable[[Table], Floats]


@dataclass(frozen=True)
class Judged:
    """What a model is worth."""

    metrics: dict[str, Metric]
    draw: Callable[[], dict[str, bytes]]  # the plots, as PNG by their names
    baseline: dict[str, Any] = field(default_factory=dict)  # what baseline.json says besides


class Method(Protocol):
    """A kind of model."""

    classes: bool
    """Whether what is predicted is 0 or 1."""

    def fit(
        self, train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend
    ) -> Fitted:
        """Make a model.

        Raises:
            TrainingError: broken_column.
        """

    def judge(self, w: Windows, fitted: Fitted, model: Predict, champion: Predict | None, request: Request) -> Judged:
        """Measure it on the test window."""

    def summary(self, metrics: dict[str, Metric]) -> dict[str, float]:
        """Give the few numbers that the version's tag has."""


class Classification:
    """XGBoost: the probability that something happens."""

    classes = True

    def fit(
        self, train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend
    ) -> Fitted:
        """Search parameters and fit."""
        return boosting.fit(train, validation, names, request, backend)

    def judge(self, w: Windows, fitted: Fitted, model: Predict, champion: Predict | None, request: Request) -> Judged:
        """Measure beside the frequency of the label and the champion."""
        test = w.test.rows
        scores = {"challenger": model(test)}
        if champion is not None:
            scores["champion"] = champion(test)
        metrics = evaluation.evaluate(
            test.label, test.session, scores["challenger"], float(np.mean(w.train.rows.label)), scores.get("champion"),
            request.bootstrap, request.seed,
        )  # fmt: skip
        return Judged(
            metrics,
            lambda: {
                "roc.png": plots.roc(test.label, scores),
                "calibration.png": plots.calibration(test.label, scores),
                "importance.png": plots.importance(fitted.importance, "Share of the total gain"),
            },
        )

    def summary(self, metrics: dict[str, Metric]) -> dict[str, float]:
        """Give the root mean squared error of the probabilities, and the AUC."""
        return {"rmse": metrics["brier"].value ** 0.5, "auc": metrics["auc"].value}


class Regression:
    """A random forest: a number."""

    classes = False

    def fit(
        self, train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend
    ) -> Fitted:
        """Search parameters and fit."""
        return forest.fit(train, validation, names, request, backend)

    def judge(self, w: Windows, fitted: Fitted, model: Predict, champion: Predict | None, request: Request) -> Judged:
        """Measure beside the mean of the label and the champion; learn the errors on the validation window."""
        test, validation = w.test.rows, w.validation.rows
        scores = {"challenger": model(test)}
        if champion is not None:
            scores["champion"] = champion(test)
        errors = regression.residuals(validation.label, model(validation))
        metrics = regression.evaluate(
            test.label, test.session, scores["challenger"], float(np.mean(w.train.rows.label)), scores.get("champion"),
            errors, request.bootstrap, request.seed,
        )  # fmt: skip
        bounds = regression.bounds(errors, scores["challenger"], 0.9)
        return Judged(
            metrics,
            lambda: {
                "predicted.png": plots.predicted(test.label, scores["challenger"], bounds),
                "residuals.png": plots.residuals(test.label, scores),
                "importance.png": plots.importance(fitted.importance, "Share of the reduction of variance"),
            },
            {"residuals": errors},
        )

    def summary(self, metrics: dict[str, Metric]) -> dict[str, float]:
        """Give the errors, and the share of the variance that is explained."""
        return {name: metrics[name].value for name in ("rmse", "mae", "r2")}


class Isolation:
    """An isolation forest: how odd a row is."""

    classes = False

    def fit(
        self, train: Examples, validation: Examples, names: list[str], request: Request, backend: Backend
    ) -> Fitted:
        """Search parameters and fit."""
        return isolation.fit(train, validation, names, request, backend)

    def judge(self, w: Windows, fitted: Fitted, model: Predict, champion: Predict | None, request: Request) -> Judged:
        """Measure beside chance, the furthest metric and the champion, on rows that are disturbed."""
        tail = fitted.tail or []
        measured = oddness.evaluate(
            w.test.rows, w.train.rows, model, champion, oddness.at(tail, oddness.SHARE), request.bootstrap, request.seed
        )
        return Judged(
            measured.metrics,
            lambda: {
                "roc.png": plots.roc(measured.label, measured.scores),
                "scores.png": plots.scores(measured.label, measured.scores["challenger"], tail),
                "importance.png": plots.importance(fitted.importance, "Share of the splits near the roots"),
            },
            {"tail": tail},
        )

    def summary(self, metrics: dict[str, Metric]) -> dict[str, float]:
        """Give how well disturbed rows are told, and how many of each kind are taken for odd."""
        return {name: metrics[name].value for name in ("auc", "recall", "alarm_rate")}


def of(spec: Spec) -> Method:
    """Find the way in which a model is made."""
    ways: dict[str, Method] = {"xgboost": Classification(), "forest": Regression(), "isolation": Isolation()}
    return ways[spec.method]


def tag(summary: dict[str, float]) -> str:
    """Write the version's tag."""
    return json.dumps({name: round(value, 6) for name, value in summary.items()})

"""What a model predicts, from which features, and how it is made.

The features are defined elsewhere (shared/features, and the contract of the stream that
server_metrics stores); the files here name those that a model takes, in order, and a test
holds the two together.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from millrace_training.failure import TrainingError

Type = Literal["float", "int", "category"]


@dataclass(frozen=True)
class Feature:
    """One column of the rows.

    A category's values are texts or whole numbers (``of``); they are encoded as their
    rank among the sorted distinct values of the rows that are trained on.
    """

    name: str
    type: Type
    of: Literal["text", "int"] | None = None


@dataclass(frozen=True)
class Spec:
    """A model: its name in the registry, what it predicts, and from what."""

    name: str
    description: str
    target: str
    features: tuple[Feature, ...]
    method: Literal["xgboost", "forest", "isolation"] = "xgboost"
    rows: Literal["training_set", "server_metrics"] = "training_set"

    @property
    def names(self) -> list[str]:
        """The names of the features, in order."""
        return [f.name for f in self.features]


def _load(file: str) -> Spec:
    text = resources.files("millrace_training").joinpath(file).read_text(encoding="utf-8")
    raw = json.loads(text)
    return Spec(**{**raw, "features": tuple(Feature(**f) for f in raw["features"])})


def purchase() -> Spec:
    """The model of whether what is put into the cart will be bought."""
    return _load("purchase.json")


def power() -> Spec:
    """The model of the power that a server takes."""
    return _load("power.json")


def anomaly() -> Spec:
    """The model of how odd a server's reading is."""
    return _load("anomaly.json")


def named(name: str) -> Spec:
    """Find a model by its name in the registry.

    Raises:
        TrainingError: bad_request.
    """
    known = {s.name: s for s in (purchase(), power(), anomaly())}
    if name not in known:
        raise TrainingError("bad_request", f"field model: {name!r} is not one of {', '.join(known)}")
    return known[name]

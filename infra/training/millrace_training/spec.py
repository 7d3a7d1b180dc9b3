"""What a model predicts, and from which features.

The features are defined elsewhere (shared/features); the file here names those that the
model takes, in order, and a test holds the two together.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Type = Literal["float", "int", "category"]


@dataclass(frozen=True)
class Feature:
    """One column of the training set.

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

    @property
    def names(self) -> list[str]:
        """The names of the features, in order."""
        return [f.name for f in self.features]


def purchase() -> Spec:
    """The model of whether what is put into the cart will be bought."""
    text = resources.files("millrace_training").joinpath("purchase.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    return Spec(raw["name"], raw["description"], raw["target"], tuple(Feature(**f) for f in raw["features"]))

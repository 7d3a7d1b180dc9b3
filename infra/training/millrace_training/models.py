"""Models that have been fitted, as a bundle holds them."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from millrace_training import trees
from millrace_training.encoding import Matrix

Floats = NDArray[np.float64]

XGBOOST_FILE = "model.json"
LIGHTGBM_FILE = "model.txt"


class Model(Protocol):
    """Gives predictions of encoded rows, and the file that holds it."""

    @property
    def file(self) -> str:
        """The file's name in a bundle."""

    @property
    def transform(self) -> dict[str, Any] | None:
        """What features.json says of how margins become predictions, if the file does not."""

    def data(self) -> bytes:
        """Write the file."""

    def predict(self, matrix: Matrix) -> Floats:
        """Give the predictions of encoded rows."""


@dataclass(frozen=True)
class Boosted:
    """Trees of XGBoost."""

    booster: xgb.Booster
    file: str = XGBOOST_FILE
    transform: dict[str, Any] | None = None

    def data(self) -> bytes:
        """Write it as save_model does."""
        return bytes(self.booster.save_raw("json"))

    def predict(self, matrix: Matrix) -> Floats:
        """Give probabilities."""
        return np.asarray(self.booster.inplace_predict(matrix), np.float64)


@dataclass(frozen=True)
class Averaged:
    """The mean of trees."""

    trees: trees.Trees
    file: str = LIGHTGBM_FILE
    transform: dict[str, Any] | None = field(default_factory=lambda: {"kind": "identity"})

    def data(self) -> bytes:
        """Write LightGBM text."""
        return self.trees.text()

    def predict(self, matrix: Matrix) -> Floats:
        """Give the mean of the trees."""
        return self.trees.predict(matrix)


def mean_depth(rows: NDArray[np.float64]) -> Floats:
    """Give the mean depth of an unsuccessful search in a binary tree of so many rows, as scikit-learn does."""
    n = np.asarray(rows, np.float64)
    large = 2 * (np.log(np.maximum(n - 1, 1)) + np.euler_gamma) - 2 * (n - 1) / np.maximum(n, 1)
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, large))


@dataclass(frozen=True)
class Isolating:
    """Trees whose answers are depths: of odd rows they are small, and so is the score."""

    trees: trees.Trees
    max_samples: int
    file: str = LIGHTGBM_FILE

    @property
    def transform(self) -> dict[str, Any] | None:
        """Depths become scikit-learn's score_samples."""
        return {"kind": "isolation", "max_samples": self.max_samples}

    def data(self) -> bytes:
        """Write LightGBM text."""
        return self.trees.text()

    def predict(self, matrix: Matrix) -> Floats:
        """Give scores, from -1, very odd, to 0."""
        c = float(mean_depth(np.array([self.max_samples]))[0])
        return -np.exp2(-self.trees.predict(matrix) / c)


def read(file: str, data: bytes, transform: dict[str, Any] | None) -> Model:
    """Read a model from a bundle's file.

    Raises:
        ValueError: it is none, or of a kind that this package does not make.
    """
    if file == XGBOOST_FILE:
        booster = xgb.Booster()
        booster.load_model(bytearray(data))
        return Boosted(booster)
    forest = trees.read(data)
    match (transform or {}).get("kind"):
        case "identity":
            return Averaged(forest)
        case "isolation":
            return Isolating(forest, int((transform or {})["max_samples"]))
        case other:
            raise ValueError(f"transform {other}: not one of this package's")

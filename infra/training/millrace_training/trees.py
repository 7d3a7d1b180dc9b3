"""Forests of scikit-learn as LightGBM text, the form in which shared/model loads them.

Thresholds are written in as few digits as tell the same float32 numbers apart: the
features are float32, and a comparison comes out alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FINITE_LEFT = 8  # of decision_type: a missing value is NaN, and goes right
_MISSING_LEFT = 2


@dataclass(frozen=True)
class Tree:
    """A tree whose inner nodes are 0, 1, ... and whose leaf n is the node -n-1.

    A row goes left if its feature is at most the threshold.
    """

    feature: Ints
    threshold: Floats
    missing_left: NDArray[np.bool_]
    left: Ints
    right: Ints
    leaf: Floats

    def predict(self, matrix: NDArray[np.float32]) -> Floats:
        """Give the leaf of each row."""
        node = np.full(len(matrix), 0 if len(self.feature) else -1)
        at = np.flatnonzero(node >= 0)
        while len(at):
            n = node[at]
            value = matrix[at, self.feature[n]]
            left = np.where(np.isnan(value), self.missing_left[n], value <= self.threshold[n])
            node[at] = np.where(left, self.left[n], self.right[n])
            at = at[node[at] >= 0]
        return np.asarray(self.leaf[-node - 1])


@dataclass(frozen=True)
class Trees:
    """Trees whose answers are averaged."""

    trees: tuple[Tree, ...]
    features: tuple[str, ...]

    def predict(self, matrix: NDArray[np.float32]) -> Floats:
        """Give the mean of the trees for each row."""
        total = np.zeros(len(matrix))
        for t in self.trees:
            total += t.predict(matrix)
        return total / len(self.trees)

    def text(self) -> bytes:
        """Write LightGBM text."""
        names = " ".join(self.features)
        lines = [
            "tree", "version=v3", "num_class=1", "num_tree_per_iteration=1",
            f"max_feature_idx={len(self.features) - 1}", f"feature_names={names}", "average_output",
            _line("tree_sizes", [0] * len(self.trees)), "",
        ]  # fmt: skip
        for i, t in enumerate(self.trees):
            lines += [f"Tree={i}", f"num_leaves={len(t.leaf)}", "num_cat=0"]
            if len(t.feature):
                lines += [
                    _line("split_feature", t.feature.tolist()),
                    "threshold=" + " ".join(_shortest(v) for v in t.threshold),
                    _line("decision_type", [_FINITE_LEFT | _MISSING_LEFT * int(m) for m in t.missing_left]),
                    _line("left_child", t.left.tolist()),
                    _line("right_child", t.right.tolist()),
                ]
            lines += [_line("leaf_value", t.leaf.tolist()), ""]
        return "\n".join([*lines, "end of trees", ""]).encode()


def _line(key: str, values: list[Any]) -> str:
    return f"{key}=" + " ".join(map(repr, values))


def _shortest(threshold: float) -> str:
    # The largest float32 that goes left, and the smallest that goes right.
    low = np.float32(threshold)
    if float(low) > threshold:
        low = np.nextafter(low, np.float32(-np.inf))
    high = float(np.nextafter(low, np.float32(np.inf)))
    for digits in range(1, 17):
        for text in (f"{threshold:.{digits}g}", f"{(float(low) + high) / 2:.{digits}g}"):
            if float(low) <= float(text) < high:
                return text
    return repr(float(low))


def of_sklearn(trees: list[Any], leaves: list[Floats], features: list[str]) -> Trees:
    """Take trees of scikit-learn, with what the nodes answer if they are leaves."""
    made = []
    for t, values in zip(trees, leaves, strict=True):
        leaf = t.children_left == -1
        number = np.where(leaf, -np.cumsum(leaf), np.cumsum(~leaf) - 1)
        inner = ~leaf
        made.append(
            Tree(
                t.feature[inner].astype(np.int64), t.threshold[inner], t.missing_go_to_left[inner].astype(np.bool_),
                number[t.children_left[inner]], number[t.children_right[inner]], np.asarray(values[leaf], np.float64),
            )
        )  # fmt: skip
    return Trees(tuple(made), tuple(features))


def read(data: bytes) -> Trees:
    """Read what Trees.text wrote.

    Raises:
        ValueError: it is something else.
    """
    head, *blocks = data.decode("ascii").split("\n\n")
    header = _block(head)
    if "tree" not in header or "average_output" not in header or "feature_names" not in header:
        raise ValueError("not a forest as LightGBM text")
    trees = []
    for text in blocks:
        b = _block(text)
        if "end of trees" in b:
            break
        inner = "split_feature" in b

        def numbers(key: str, of: type, b: dict[str, str] = b, inner: bool = inner) -> Any:  # noqa: ANN401
            return np.array(b[key].split() if inner or key == "leaf_value" else [], of)

        trees.append(
            Tree(
                numbers("split_feature", np.int64), numbers("threshold", np.float64),
                (numbers("decision_type", np.int64) & _MISSING_LEFT) != 0,
                numbers("left_child", np.int64), numbers("right_child", np.int64), numbers("leaf_value", np.float64),
            )
        )  # fmt: skip
    if not trees:
        raise ValueError("a forest without trees")
    return Trees(tuple(trees), tuple(header["feature_names"].split()))


def _block(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.splitlines())

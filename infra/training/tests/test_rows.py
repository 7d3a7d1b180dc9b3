"""Windows and encoders, on rows made by hand."""

import numpy as np
import pytest

from millrace_training import encoding, windows
from millrace_training.data import Categories, Numbers, Table
from millrace_training.failure import TrainingError
from millrace_training.request import Request
from millrace_training.spec import Feature, Spec


def table(arrived: list[int], label: list[int]) -> Table:
    n = len(arrived)
    columns: dict[str, Numbers | Categories] = {"x": Numbers(np.arange(n, dtype=np.float64))}
    return Table(columns, np.array(label), np.array(arrived), np.arange(n), np.zeros(n, np.bool_))


REQUEST = Request(min_rows=10, min_class_rows=1, validation_share=0.2, test_share=0.2)


def test_rows_of_one_moment_stay_together_and_windows_follow_each_other() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        at = np.sort(rng.integers(0, 30, 200)).tolist()
        w = windows.split(table(at, rng.integers(0, 2, 200).tolist()), REQUEST)
        parts = [x.rows for x in (w.train, w.validation, w.test)]
        assert sum(map(len, parts)) == 200
        for a, b in zip(parts, parts[1:], strict=False):
            assert a.arrived.max() < b.arrived.min()
        assert w.train.end == w.validation.start
        assert w.validation.end == w.test.start


@pytest.mark.parametrize(
    ("arrived", "label", "reason", "message"),
    [
        (list(range(9)), [0, 1] * 4 + [0], "too_little_data", "9 rows, at least 10 are wanted"),
        ([5] * 20, [0, 1] * 10, "too_little_data", "the train window"),
        (list(range(20)), [1] * 20, "one_class", "all 12 rows have the label 1"),
        (list(range(20)), [0, 1] * 8 + [0] * 4, "one_class", "the test window"),
    ],
)
def test_says_why_rows_are_not_enough(arrived: list[int], label: list[int], reason: str, message: str) -> None:
    with pytest.raises(TrainingError) as e:
        windows.split(table(arrived, label), REQUEST)
    assert e.value.reason == reason
    assert message in str(e.value)


def test_wants_enough_rows_of_each_class() -> None:
    with pytest.raises(TrainingError, match="1 of 12 rows have the label 1, at least 2 of each are wanted"):
        windows.split(
            table(list(range(20)), [0] * 11 + [1] * 9), Request(min_rows=10, min_class_rows=2, validation_share=0.2)
        )


SPEC = Spec(
    "m", "", "y", (Feature("text", "category", "text"), Feature("day", "category", "int"), Feature("price", "float"))
)  # fmt: skip


def shop(text: Categories, day: Categories, price: list[float]) -> Table:
    n = len(price)
    zeros = np.zeros(n, np.int64)
    columns: dict[str, Numbers | Categories] = {"text": text, "day": day, "price": Numbers(np.array(price))}
    return Table(columns, zeros, zeros, zeros, zeros.astype(np.bool_))


def test_categories_become_ranks_among_the_rows_learnt_from() -> None:
    text = Categories(("z", "ä", "a", "unseen"), np.array([0, 1, 2, -1, 0]))
    day = Categories((10, 9), np.array([0, 1, 1, -1, 0]))
    encoder = encoding.fit(SPEC, shop(text, day, [1.5, float("nan"), 2, 3, 4]))
    assert encoder.columns[0].values == ("a", "z", "ä")
    assert encoder.columns[1].values == (9, 10)
    later = shop(
        Categories(("unseen", "z"), np.array([0, 1, -1])), Categories((10, 3), np.array([0, 1, -1])), [1, 2, 3]
    )
    np.testing.assert_array_equal(encoder.matrix(later), np.array([[-1, 1, 1], [1, -1, 2], [-1, -1, 3]], np.float32))


def test_a_feature_without_any_value_is_broken() -> None:
    none, some = Categories((), np.array([-1])), Categories((1,), np.array([0]))
    with pytest.raises(TrainingError, match="column text: all 1 rows to train on are null"):
        encoding.fit(SPEC, shop(none, some, [1]))
    with pytest.raises(TrainingError, match="column price: all 1 rows to train on are null"):
        encoding.fit(SPEC, shop(Categories(("a",), np.array([0])), some, [float("nan")]))

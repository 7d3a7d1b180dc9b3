"""Splits the training set by time: learn from the past, be judged by what came after."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from millrace_training.data import Table
from millrace_training.failure import TrainingError
from millrace_training.request import Request


@dataclass(frozen=True)
class Window:
    """Rows with start <= time of arrival < end."""

    name: str
    rows: Table
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Windows:
    """The three windows, one after the other."""

    train: Window
    validation: Window
    test: Window


def _time(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def split(table: Table, request: Request, classes: bool = True) -> Windows:
    """Cut the rows into windows; rows of one moment are never torn apart.

    Args:
        table: the rows.
        request: the shares of the windows, and how few rows are too few.
        classes: whether the label is 0 or 1, of which every window needs both.

    Raises:
        TrainingError: too_little_data or one_class, with the numbers.
    """
    n = len(table)
    if n < request.min_rows:
        raise TrainingError("too_little_data", f"{n} rows, at least {request.min_rows} are wanted")
    at = table.arrived
    second = at[int(n * (1 - request.test_share - request.validation_share))]
    third = at[int(n * (1 - request.test_share))]
    edges = [int(at[0]), int(second), int(third), int(at[-1]) + 1]
    windows = []
    for name, low, high in zip(("train", "validation", "test"), edges, edges[1:], strict=False):
        rows = table.take((at >= low) & (at < high))
        windows.append(_checked(Window(name, rows, _time(low), _time(high)), request, classes))
    return Windows(*windows)


def _checked(w: Window, request: Request, classes: bool) -> Window:
    rows, ones = len(w.rows), int(w.rows.label.sum())
    where = f"the {w.name} window, {w.start.isoformat()} to {w.end.isoformat()}"
    if rows == 0:
        raise TrainingError("too_little_data", f"{where}, has no rows: too many arrived at one moment")
    if not classes:
        return w
    if ones in (0, rows):
        raise TrainingError("one_class", f"{where}: all {rows} rows have the label {int(np.sign(ones))}")
    if min(ones, rows - ones) < request.min_class_rows:
        raise TrainingError(
            "too_little_data",
            f"{where}: {ones} of {rows} rows have the label 1, at least {request.min_class_rows} of each are wanted",
        )
    return w

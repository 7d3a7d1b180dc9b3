"""Turns values into the numbers that the trees see, at training as at serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace_training.data import Categories, Numbers, Table
from millrace_training.failure import TrainingError
from millrace_training.spec import Spec, Type

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """A feature of a model; ``values`` are the sorted distinct ones of a category."""

    name: str
    type: Type
    values: tuple[str, ...] | tuple[int, ...] | None = None

    def encode(self, column: Numbers | Categories) -> Matrix:
        """Give the numbers of a column: those of a category are ranks, -1 if unseen or missing.

        Raises:
            ValueError: the column has values of another type.
        """
        if self.values is None:
            if not isinstance(column, Numbers):
                raise ValueError(f"feature {self.name}: wants numbers, the rows have a category")
            return column.values.astype(np.float32)
        if not isinstance(column, Categories):
            raise ValueError(f"feature {self.name}: wants a category, the rows have numbers")
        rank = {v: i for i, v in enumerate(self.values)}
        # The last one is for the id -1.
        codes = np.array([rank.get(v, -1) for v in column.vocabulary] + [-1], np.float32)
        return codes[column.ids]

    def raw(self, column: Numbers | Categories, row: int) -> str | int | float | None:
        """Give a value as it came, for examples."""
        if isinstance(column, Categories):
            at = int(column.ids[row])
            return None if at < 0 else column.vocabulary[at]
        v = float(column.values[row])
        if np.isnan(v):
            return None
        return int(v) if self.type == "int" else v


@dataclass(frozen=True)
class Encoder:
    """The columns of a model's rows, in order."""

    target: str
    columns: tuple[Column, ...]

    def matrix(self, table: Table) -> Matrix:
        """Encode rows.

        Raises:
            ValueError: the table lacks a column, or has values of another type.
        """
        missing = [c.name for c in self.columns if c.name not in table.columns]
        if missing:
            raise ValueError(f"features {', '.join(missing)}: not in the rows")
        return np.column_stack([c.encode(table.columns[c.name]) for c in self.columns])

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """Make a table of rows as JSON has them, without labels; what is not named is missing."""
        columns: dict[str, Numbers | Categories] = {}
        for c in self.columns:
            values = [r.get(c.name) for r in rows]
            if c.values is None:
                columns[c.name] = Numbers(np.array([np.nan if v is None else v for v in values], np.float64))
                continue
            known = {v: i for i, v in enumerate(dict.fromkeys(v for v in values if v is not None))}
            ids = [-1 if v is None else known[v] for v in values]
            columns[c.name] = Categories(tuple(known), np.array(ids, np.int64))
        zeros = np.zeros(len(rows), np.int64)
        return Table(columns, zeros.astype(np.float64), zeros, zeros, zeros.astype(np.bool_))


def fit(spec: Spec, table: Table) -> Encoder:
    """Learn the encoders from the rows that are trained on, and no others.

    Raises:
        TrainingError: broken_column, when a feature has no value at all.
    """
    columns = []
    for f in spec.features:
        column = table.columns[f.name]
        if isinstance(column, Numbers):
            if np.isnan(column.values).all():
                raise TrainingError("broken_column", f"column {f.name}: all {len(table)} rows to train on are null")
            columns.append(Column(f.name, f.type))
            continue
        seen = np.unique(column.ids[column.ids >= 0])
        if len(seen) == 0:
            raise TrainingError("broken_column", f"column {f.name}: all {len(table)} rows to train on are null")
        # Texts are sorted by code points, which is the order of their UTF-8 bytes.
        values = sorted(column.vocabulary[i] for i in seen)
        columns.append(Column(f.name, f.type, tuple(values)))
    return Encoder(spec.target, tuple(columns))

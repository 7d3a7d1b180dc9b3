"""Reads the training set from the warehouse into columns."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from millrace_training.failure import TrainingError
from millrace_training.spec import Feature, Spec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers; a missing one is NaN."""

    values: Floats

    def take(self, rows: Bools) -> "Numbers":
        """Choose rows."""
        return Numbers(self.values[rows])


@dataclass(frozen=True)
class Categories:
    """A column of texts or whole numbers: row i has vocabulary[ids[i]], or none at -1."""

    vocabulary: tuple[str, ...] | tuple[int, ...]
    ids: Ints

    def take(self, rows: Bools) -> "Categories":
        """Choose rows."""
        return Categories(self.vocabulary, self.ids[rows])


@dataclass(frozen=True)
class Table:
    """Rows of the training set, by the time of their arrival."""

    columns: dict[str, Numbers | Categories]
    label: Ints  # 0 or 1
    arrived: Ints  # microseconds since 1970, ascending
    session: Ints  # equal for rows of one session
    served: Bools  # whether the features are those that were served

    def __len__(self) -> int:
        """Tell the number of rows."""
        return len(self.label)

    def take(self, rows: Bools) -> "Table":
        """Choose rows."""
        columns = {name: c.take(rows) for name, c in self.columns.items()}
        return Table(columns, self.label[rows], self.arrived[rows], self.session[rows], self.served[rows])


_TEXT = {18, 19, 25, 1042, 1043}  # "char", name, text, bpchar, varchar
_WHOLE = {20, 21, 23}  # int8, int2, int4
_NUMBER = _WHOLE | {700, 701, 1700}  # float4, float8, numeric

# The newest rows, since more of the old ones would not help. The hash makes the order
# the same at every reading.
_QUERY = """
SELECT arrived_at, user_session, source, {target}, {features}
FROM feature_store.training_set(as_of => %s, since => %s, settled => %s)
ORDER BY arrived_at DESC, record_hash DESC
LIMIT %s
"""

_FETCH = 20_000
_OPTIONS = "-c timezone=UTC -c default_transaction_read_only=on"


def read(url: str, spec: Spec, as_of: datetime, since: datetime | None, settled: timedelta, max_rows: int) -> Table:
    """Read the training set as it was known at a time.

    Raises:
        TrainingError: database_unavailable, no_training_set, broken_column or
            database_error.
    """
    query = sql.SQL(_QUERY).format(
        target=sql.Identifier(spec.target), features=sql.SQL(", ").join(map(sql.Identifier, spec.names))
    )
    # psycopg knows no infinite time; a text is cast by the server.
    arguments = (as_of, since if since is not None else "-infinity", settled, max_rows)
    try:
        with (
            psycopg.connect(url, connect_timeout=10, options=_OPTIONS) as db,
            db.cursor(name="training_set") as cursor,
        ):
            cursor.itersize = _FETCH
            cursor.execute(query, arguments)
            _check_types(cursor.description or [], spec)
            return _collect(cursor, spec)
    except psycopg.errors.UndefinedColumn as e:
        raise TrainingError("broken_column", f"the training set lacks one: {_first(e)}") from e
    except (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as e:
        raise TrainingError("no_training_set", f"the warehouse has no training set yet: {_first(e)}") from e
    except (psycopg.OperationalError, psycopg.errors.AdminShutdown) as e:
        raise TrainingError("database_unavailable", f"reading the training set: {_first(e)}") from e
    except psycopg.Error as e:
        raise TrainingError("database_error", f"reading the training set: {_first(e)}") from e


def _first(e: psycopg.Error) -> str:
    return str(e).strip().partition("\n")[0]


def _check_types(description: Sequence[psycopg.Column], spec: Spec) -> None:
    types = {c.name: (c.type_code, c.type_display) for c in description}
    for f in (Feature(spec.target, "int"), *spec.features):
        code, name = types[f.name]
        want = _TEXT if f.of == "text" else _WHOLE if f.of == "int" or f.type == "int" else _NUMBER
        if code not in want:
            kind = "texts" if want is _TEXT else "whole numbers" if want is _WHOLE else "numbers"
            raise TrainingError("broken_column", f"column {f.name}: want {kind}, the training set has type {name}")


def _collect(rows: Iterable[tuple[object, ...]], spec: Spec) -> Table:
    n = len(spec.features)
    ids: list[dict[object, int]] = [{} for _ in spec.features]
    sessions: dict[object, int] = {}
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    microsecond = timedelta(microseconds=1)
    arrived: list[int] = []
    session: list[int] = []
    served: list[bool] = []
    label: list[int] = []
    values: list[list[float]] = [[] for _ in spec.features]
    for row in rows:
        at, visit, source, target = row[:4]
        if target not in (0, 1):
            raise TrainingError("broken_column", f"column {spec.target}: want 0 or 1, not {target!r}")
        arrived.append((at - epoch) // microsecond)  # type: ignore[operator]
        session.append(sessions.setdefault(visit, len(sessions)))
        served.append(source == "served")
        label.append(target)
        for i in range(n):
            v = row[4 + i]
            if spec.features[i].type == "category":
                values[i].append(-1 if v is None else ids[i].setdefault(v, len(ids[i])))
            else:
                values[i].append(math.nan if v is None else float(v))  # type: ignore[arg-type]
    columns: dict[str, Numbers | Categories] = {}
    for f, known, column in zip(spec.features, ids, values, strict=True):
        # The query gives the newest first.
        if f.type == "category":
            columns[f.name] = Categories(tuple(known), np.array(column[::-1], np.int64))  # type: ignore[arg-type]
        else:
            columns[f.name] = _finite(f.name, np.array(column[::-1], np.float64))
    return Table(
        columns,
        np.array(label[::-1], np.int64),
        np.array(arrived[::-1], np.int64),
        np.array(session[::-1], np.int64),
        np.array(served[::-1], np.bool_),
    )


def _finite(name: str, column: Floats) -> Numbers:
    # The model's numbers are float32, of which the largest is about 3.4e38.
    bad = np.abs(column) > np.finfo(np.float32).max
    if bad.any():
        raise TrainingError("broken_column", f"column {name}: {int(bad.sum())} values are infinite")
    return Numbers(column)

"""Reads rows from the database into columns."""

import math
from array import array
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
    """Rows to learn from, by the time of their arrival."""

    columns: dict[str, Numbers | Categories]
    label: Floats  # what is to be predicted: 0 or 1, or a number; 0 where nothing is
    arrived: Ints  # microseconds since 1970, ascending
    session: Ints  # equal for rows that belong together: of a session, or a server's of an hour
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

# The newest rows, since more of the old ones would not help. The second key makes the
# order the same at every reading.
_TRAINING_SET = """
SELECT arrived_at, user_session, source, {target}, {features}
FROM feature_store.training_set(as_of => %s, since => %s, settled => %s)
ORDER BY arrived_at DESC, record_hash DESC
LIMIT %s
"""

# What a server reports within an hour is much alike. Rows that were stored after the
# time were not known then.
_SERVER_METRICS = """
SELECT "timestamp", server_id || date_trunc('hour', "timestamp"), 'stored', {target}, {features}
FROM server_metrics
WHERE created_at <= %s AND "timestamp" > %s AND "timestamp" <= %s
ORDER BY "timestamp" DESC, server_id DESC
LIMIT %s
"""

_COMPUTED = {"anomaly_score": "0::float8 AS anomaly_score"}
"""Columns that server_metrics does not have: nobody knows how odd a reading really is."""

_FETCH = 20_000
_OPTIONS = "-c timezone=UTC -c default_transaction_read_only=on"


def read(url: str, spec: Spec, as_of: datetime, since: datetime | None, settled: timedelta, max_rows: int) -> Table:
    """Read a model's rows as they were known at a time.

    Raises:
        TrainingError: database_unavailable, no_training_set, broken_column or
            database_error.
    """
    stored = spec.rows == "server_metrics"
    template = sql.SQL(_SERVER_METRICS if stored else _TRAINING_SET)

    def column(name: str) -> sql.Composable:
        return sql.SQL(_COMPUTED[name]) if stored and name in _COMPUTED else sql.Identifier(name)

    query = template.format(target=column(spec.target), features=sql.SQL(", ").join(map(column, spec.names)))
    # psycopg knows no infinite time; a text is cast by the server.
    start = since if since is not None else "-infinity"
    arguments = (as_of, start, as_of - settled, max_rows) if stored else (as_of, start, settled, max_rows)
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
        raise TrainingError("broken_column", f"the rows lack one: {_first(e)}") from e
    except (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as e:
        raise TrainingError("no_training_set", f"the database has no rows to train on yet: {_first(e)}") from e
    except (psycopg.OperationalError, psycopg.errors.AdminShutdown) as e:
        raise TrainingError("database_unavailable", f"reading the rows: {_first(e)}") from e
    except psycopg.Error as e:
        raise TrainingError("database_error", f"reading the rows: {_first(e)}") from e


def _first(e: psycopg.Error) -> str:
    return str(e).strip().partition("\n")[0]


def _check_types(description: Sequence[psycopg.Column], spec: Spec) -> None:
    types = {c.name: (c.type_code, c.type_display) for c in description}
    target = Feature(spec.target, "int" if spec.method == "xgboost" else "float")
    for f in (target, *spec.features):
        code, name = types[f.name]
        want = _TEXT if f.of == "text" else _WHOLE if f.of == "int" or f.type == "int" else _NUMBER
        if code not in want:
            kind = "texts" if want is _TEXT else "whole numbers" if want is _WHOLE else "numbers"
            raise TrainingError("broken_column", f"column {f.name}: want {kind}, the rows have type {name}")


def _collect(rows: Iterable[tuple[object, ...]], spec: Spec) -> Table:
    n = len(spec.features)
    ids: list[dict[object, int]] = [{} for _ in spec.features]
    sessions: dict[object, int] = {}
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    microsecond = timedelta(microseconds=1)
    arrived, session, served, label = array("q"), array("q"), array("b"), array("d")
    values = [array("d") for _ in spec.features]
    unknown = 0
    for row in rows:
        at, visit, source, target = row[:4]
        if spec.method == "xgboost":
            if target not in (0, 1):
                raise TrainingError("broken_column", f"column {spec.target}: want 0 or 1, not {target!r}")
        elif target is None:
            unknown += 1
            continue
        arrived.append((at - epoch) // microsecond)  # type: ignore[operator]
        session.append(sessions.setdefault(visit, len(sessions)))
        served.append(source == "served")
        label.append(float(target))  # type: ignore[arg-type]
        for i in range(n):
            v = row[4 + i]
            if spec.features[i].type == "category":
                values[i].append(-1 if v is None else ids[i].setdefault(v, len(ids[i])))
            else:
                values[i].append(math.nan if v is None else float(v))  # type: ignore[arg-type]
    if unknown > len(label):
        raise TrainingError("broken_column", f"column {spec.target}: {unknown} of {unknown + len(label)} rows are null")
    columns: dict[str, Numbers | Categories] = {}
    for f, known, column in zip(spec.features, ids, values, strict=True):
        numbers = np.array(column, np.float64)[::-1]  # the query gives the newest first
        if f.type == "category":
            columns[f.name] = Categories(tuple(known), numbers.astype(np.int64))  # type: ignore[arg-type]
        else:
            columns[f.name] = _finite(f.name, numbers)
    return Table(
        columns,
        _finite(spec.target, np.array(label, np.float64)[::-1]).values,
        np.array(arrived, np.int64)[::-1],
        np.array(session, np.int64)[::-1],
        np.array(served, np.bool_)[::-1],
    )


def _finite(name: str, column: Floats) -> Numbers:
    # The model's numbers are float32, of which the largest is about 3.4e38.
    bad = np.abs(column) > np.finfo(np.float32).max
    if bad.any():
        raise TrainingError("broken_column", f"column {name}: {int(bad.sum())} values are infinite")
    return Numbers(column)

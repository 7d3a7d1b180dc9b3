"""What a run is asked for: the data of ``dev.millrace.training.requested.v1``, or flags."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from millrace_training.failure import TrainingError


def _option(default: typing.Any, about: str, low: float = -math.inf, high: float = math.inf) -> typing.Any:  # noqa: ANN401
    return field(default=default, metadata={"about": about, "low": low, "high": high})


@dataclass(frozen=True)
class Request:
    """The parameters of a run. All have defaults; a time without a zone is refused."""

    model: str = _option("purchase_prediction_model", "the model, by the name under which it is registered")
    reason: str = _option("", "why it is asked for; it is passed on")
    as_of: datetime | None = _option(  # noqa: RUF009 it makes a field
        None, "train on what was known at this time (default: the event's time, else now)"
    )
    since: datetime | None = _option(None, "leave out rows that arrived at this time or before")  # noqa: RUF009
    settled_seconds: float = _option(0.0, "leave out the rows of the last so many seconds, whose purchases may come", 0)
    max_rows: int = _option(1_000_000, "take the newest rows only, at most so many", 1, 50_000_000)
    validation_share: float = _option(0.15, "share of the rows that choose parameters and rounds", 0.01, 0.5)
    test_share: float = _option(0.2, "share of the rows, the newest, that judge the model", 0.01, 0.5)
    min_rows: int = _option(300, "do not train on fewer rows than these, all windows together", 10)
    min_class_rows: int = _option(10, "nor when one of the windows has fewer rows of either class", 1)
    seed: int = _option(1, "of everything that is drawn: the same seed and rows give the same model", 0, 2**31 - 1)
    trials: int = _option(20, "sets of parameters to try", 1, 10_000)
    rounds: int = _option(300, "trees at most", 1, 100_000)
    early_stopping_rounds: int = _option(20, "stop when so many trees have not helped on the validation window", 1)
    bootstrap: int = _option(500, "resamples for the confidence intervals", 10, 100_000)
    champion: str = _option(
        "registry",
        "the model to compare with: a bundle's folder, 'none', or 'registry', the version that alias 'current' names",
    )


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time.

    Raises:
        ValueError: it is none, or has no zone.
    """
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return value.astimezone(UTC)


def kind(f: dataclasses.Field[typing.Any]) -> type:
    """The type of a parameter, without its None."""
    hint = typing.get_type_hints(Request)[f.name]
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not types.NoneType)
    return typing.cast(type, hint)


def parse(values: Mapping[str, object]) -> Request:
    """Make a request of named values, as JSON has them.

    Raises:
        TrainingError: bad_request, naming the field and the rule.
    """
    known = {f.name: f for f in dataclasses.fields(Request)}
    given: dict[str, typing.Any] = {}
    for name, value in values.items():
        if name not in known:
            raise TrainingError("bad_request", f"field {name} is not one of {', '.join(known)}")
        if value is not None:
            given[name] = _value(known[name], value)
    request = Request(**given)
    if request.validation_share + request.test_share > 0.8:
        raise TrainingError("bad_request", "fields validation_share and test_share: together at most 0.8")
    if request.as_of and request.since and request.since >= request.as_of:
        raise TrainingError("bad_request", "field since: must be before as_of")
    return request


def _value(f: dataclasses.Field[typing.Any], value: object) -> object:
    want = kind(f)
    if want is datetime:
        if not isinstance(value, str):
            raise TrainingError("bad_request", f"field {f.name}: must be a time as text, not {value!r}")
        try:
            return parse_time(value)
        except ValueError as e:
            raise TrainingError("bad_request", f"field {f.name}: {e}") from e
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, want) or isinstance(value, bool):
        raise TrainingError("bad_request", f"field {f.name}: must be {want.__name__}, not {value!r}")
    if isinstance(value, int | float) and not f.metadata["low"] <= value <= f.metadata["high"]:
        raise TrainingError("bad_request", f"field {f.name}: {value} is not {_bounds(f)}")
    return value


def _bounds(f: dataclasses.Field[typing.Any]) -> str:
    low, high = f.metadata["low"], f.metadata["high"]
    return f"at least {low}" if math.isinf(high) else f"between {low} and {high}"

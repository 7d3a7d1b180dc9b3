from datetime import UTC, datetime

import pytest

from millrace_training import request
from millrace_training.failure import TrainingError


def test_takes_what_json_has() -> None:
    got = request.parse({"as_of": "2026-01-02T03:04:05+01:00", "trials": 7, "settled_seconds": 60, "champion": None})
    assert got == request.Request(as_of=datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC), trials=7, settled_seconds=60.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trails": 5}, "field trails is not one of model, "),
        ({"trials": 0}, "field trials: 0 is not between 1 and 10000"),
        ({"trials": "5"}, "field trials: must be int, not '5'"),
        ({"trials": True}, "field trials: must be int, not True"),
        ({"trials": 1.5}, "field trials: must be int, not 1.5"),
        ({"test_share": float("nan")}, "field test_share: nan is not between 0.01 and 0.5"),
        ({"test_share": 0.5, "validation_share": 0.4}, "together at most 0.8"),
        ({"as_of": "yesterday"}, "field as_of: Invalid isoformat string: 'yesterday'"),
        ({"as_of": "2026-01-02T03:04:05"}, "field as_of: '2026-01-02T03:04:05' has no time zone"),
        ({"as_of": 5}, "field as_of: must be a time as text, not 5"),
        ({"as_of": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z"}, "field since: must be before as_of"),
    ],
)
def test_names_field_and_rule(values: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError) as e:
        request.parse(values)
    assert e.value.reason == "bad_request"
    assert message in str(e.value)

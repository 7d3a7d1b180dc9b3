"""The program as it is run, on a real database."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from millrace_training import bundle, cli, data, events, models
from millrace_training.request import parse_time
from millrace_training.spec import purchase
from testbed import shop
from tests.conftest import AS_OF, FAST, Sink


def run(url: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, str, dict[str, Any]]:
    monkeypatch.setenv("DATABASE_URL", url)
    before = len(sink.got)
    status = cli.main([*FAST, *flags])
    assert len(sink.got) == before + 1, "one event tells of the end"
    headers, body = sink.got[-1]
    return status, headers["ce-type"], json.loads(body)


def test_a_model_is_trained_and_better_than_the_frequency(
    warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, type_, told = run(warehouse, sink, monkeypatch, "--output", str(tmp_path / "b"))
    assert (status, type_) == (0, events.COMPLETED)
    assert told["metrics"]["auc"]["low"] > 0.55
    assert told["metrics"]["baseline_log_loss_gain"]["value"] > 0
    w = told["windows"]
    assert w["train"]["to"] == w["validation"]["from"]
    assert w["validation"]["to"] == w["test"]["from"]
    assert sum(w[name]["rows"] for name in w) == told["rows"]

    # Predictions of the bundle, as it is read back, are those of its examples.
    read = bundle.read(tmp_path / "b")
    assert read.digest == told["digest"]
    table = data.read(warehouse, purchase(), parse_time(AS_OF), None, timedelta(0), 10**6)
    scores = read.predict(table)
    assert np.ptp(scores) > 0.2
    examples = json.loads((tmp_path / "b" / bundle.EXAMPLES).read_text())["examples"]
    assert len(examples) == 50
    for e in examples:
        assert np.abs(scores - e["prediction"][0]).min() == 0


def test_go_loads_what_is_written(
    changed: Callable[..., str], sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not (go := shutil.which("go")):
        pytest.skip("there is no go on the PATH")
    # With what a shop may have in its texts, and missing values.
    url = changed(
        """UPDATE bronze.events SET brand = 'naïve "brand" 😀 \\ ' || chr(8232) WHERE brand LIKE 's%'""",
        "UPDATE bronze.events SET price = NULL WHERE product_id % 7 = 0",
        "UPDATE bronze.events SET category_code = 'ä.' WHERE product_id % 11 = 0",
    )
    assert run(url, sink, monkeypatch, "--output", str(tmp_path / "b"))[0] == 0
    environment = {**os.environ, "TRAINING_BUNDLE": str(tmp_path / "b")}
    command = [go, "test", "-count=1", "-v", "-run", "^TestWrittenBundleLoads$", "./infra/training"]
    got = subprocess.run(command, cwd=shop.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stdout + got.stderr
    assert "--- PASS: TestWrittenBundleLoads" in got.stdout


def test_two_runs_give_the_same_bytes_but_for_the_time(
    warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        assert run(warehouse, sink, monkeypatch, "--output", str(tmp_path / name))[0] == 0
    files = {p.name for p in (tmp_path / "a").iterdir()}
    assert len(files) == 6
    for name in files - {bundle.MANIFEST}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    manifests = [json.loads((tmp_path / n / bundle.MANIFEST).read_text()) for n in ("a", "b")]
    assert manifests[0].pop("created_at") < manifests[1].pop("created_at")
    assert manifests[0] == manifests[1]
    assert run(warehouse, sink, monkeypatch, "--output", str(tmp_path / "c"), "--seed", "2")[0] == 0
    assert (tmp_path / "a" / models.XGBOOST_FILE).read_bytes() != (tmp_path / "c" / models.XGBOOST_FILE).read_bytes()


def test_the_champion_is_measured_on_the_same_rows(
    warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    _, _, one = run(warehouse, sink, monkeypatch, "--output", first)
    _, _, two = run(warehouse, sink, monkeypatch, "--output", second, "--champion", "file://" + first, "--seed", "9")
    assert two["champion"] == {"version": one["digest"][:12], "digest": one["digest"], "saw_test_rows": False}
    assert two["metrics"]["champion_log_loss"] != two["metrics"]["log_loss"]
    assert two["metrics"]["champion_log_loss"]["value"] == one["metrics"]["log_loss"]["value"]
    assert {"champion_auc_gain", "champion_log_loss_gain"} <= set(two["metrics"])

    # Of an earlier set, its test rows are the champion's own.
    earlier = ["--as-of", "2019-10-05T00:00:00Z"]
    _, _, three = run(warehouse, sink, monkeypatch, "--champion", first, *earlier)
    assert three["champion"]["saw_test_rows"] is True

    # A damaged one is told of; there is a model all the same.
    model = Path(first) / models.XGBOOST_FILE
    model.write_bytes(model.read_bytes()[:-3])
    status, _, four = run(warehouse, sink, monkeypatch, "--champion", first)
    assert status == 0
    assert four["champion"]["error"] == "model.json is not what bundle.json says"
    assert "champion_auc" not in four["metrics"]


def replace(*changes: tuple[str, str]) -> list[str]:
    """Statements that put another training_set in the place of the warehouse's."""
    columns = (
        "record_hash, arrived_at, user_session, source, is_purchased, brand, price, event_weekday,"
        " category_code_level1, category_code_level2, activity_count"
    )
    for old, new in changes:
        assert old in columns
        columns = columns.replace(old, new)
    return [
        "ALTER FUNCTION feature_store.training_set RENAME TO original",
        f"CREATE VIEW feature_store.changed AS SELECT {columns} FROM feature_store.original()",
        "CREATE FUNCTION feature_store.training_set(as_of timestamptz, since timestamptz, settled interval)"
        " RETURNS SETOF feature_store.changed LANGUAGE sql AS 'SELECT * FROM feature_store.changed'",
    ]


FAILURES = {
    "too little data": (["DELETE FROM dwh.fact_events WHERE position > 4000"], "too_little_data", "at least 300 are wanted"),
    "nothing bought": (["DELETE FROM dwh.fact_events WHERE event_type = 'purchase'"], "one_class", "have the label 0"),
    "nothing at all": (["TRUNCATE dwh.fact_events"], "too_little_data", "0 rows"),
    "a null column": (["UPDATE bronze.events SET brand = NULL"], "broken_column", "column brand: all "),
    "an infinite price": (
        ["UPDATE bronze.events SET price = 'Infinity' WHERE kafka_offset % 3 = 0"], "broken_column", "values are infinite",
    ),
    "a price too large": (["UPDATE bronze.events SET price = 1e39"], "broken_column", "column price: "),
    "a column of another type": (
        replace((" price,", " price::text AS price,")), "broken_column", "column price: want numbers, the rows have type text",
    ),
    "numbers for texts": (
        replace((" brand,", " 5 AS brand,")), "broken_column", "column brand: want texts, the rows have type int4",
    ),
    "a missing column": (replace((" event_weekday,", "")), "broken_column", '"event_weekday" does not exist'),
    "a strange label": (
        replace((" is_purchased,", " is_purchased + 1 AS is_purchased,")), "broken_column", "column is_purchased: want 0 or 1, not 2",
    ),
    "no label": (
        replace((" is_purchased,", " NULL::int AS is_purchased,")), "broken_column", "column is_purchased: want 0 or 1, not None",
    ),
    "no training set": (["DROP FUNCTION feature_store.training_set"], "no_training_set", "feature_store.training_set"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_says_why_there_is_no_model(
    name: str, changed: Callable[..., str], sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    statements, reason, message = FAILURES[name]
    status, type_, told = run(changed(*statements), sink, monkeypatch, "--output", str(tmp_path / "b"))
    assert (status, type_) == (1, events.FAILED)
    assert (told["reason"], told["transient"]) == (reason, False)
    assert message in told["message"]
    assert told["model"] == "purchase_prediction_model"
    assert not (tmp_path / "b").exists()


def test_a_database_that_is_away_is_told_of_as_transient(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, type_, told = run(f"postgresql://u:secret@/db?host={tmp_path}", sink, monkeypatch)
    assert (status, type_) == (1, events.FAILED)
    assert (told["reason"], told["transient"]) == ("database_unavailable", True)
    assert "secret" not in json.dumps(told)


def test_a_database_that_dies_while_it_is_read_is_told_of_as_transient(
    warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = data._check_types

    def die(*args: Any) -> None:
        check(*args)
        with psycopg.connect(warehouse) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = 'shop' AND pid <> pg_backend_pid() AND query LIKE '%%training_set%%'"
            )

    monkeypatch.setattr(data, "_check_types", die)
    monkeypatch.setattr(data, "_FETCH", 100)
    status, _, told = run(warehouse, sink, monkeypatch)
    assert (status, told["reason"], told["transient"]) == (1, "database_unavailable", True)


def test_an_event_asks_for_it(warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = {"trials": 2, "rounds": 30, "bootstrap": 20, "reason": "drift", "min_rows": 200}
    asked = events.Event(
        "7", "/millrace/train-trigger", events.REQUESTED, time="2019-10-04T00:00:00Z",
        extensions={"traceparent": "00-11111111111111111111111111111111-2222222222222222-01"}, data=wanted,
    )  # fmt: skip
    (tmp_path / "event").write_text(asked.structured())
    monkeypatch.setenv("K_EVENT_PATH", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", warehouse)
    assert cli.main([]) == 0
    headers, body = sink.got[-1]
    told = json.loads(body)
    assert headers["ce-id"] == events.reply_id(asked.source, "7", "training")
    assert headers["ce-traceparent"] == asked.extensions["traceparent"]
    assert told["request"] == {"source": asked.source, "id": "7"}
    assert told["reason"] == "drift"
    # The event's time is the one that the rows are of.
    assert told["as_of"] == "2019-10-04T00:00:00+00:00"
    assert told["windows"]["test"]["to"] < "2019-10-04T00:00:01"

    (tmp_path / "event").write_text(asked.structured().replace('"trials"', '"trails"'))
    assert cli.main([]) == 1
    headers, body = sink.got[-1]
    assert headers["ce-type"] == events.FAILED
    assert json.loads(body)["message"].startswith("field trails is not one of")


def test_one_that_is_told_to_end_tells_of_it(warehouse: str) -> None:
    command = [sys.executable, "-m", "millrace_training", "--as-of", AS_OF, "--trials", "10000"]
    environment = {**os.environ, "DATABASE_URL": warehouse}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=shop.ROOT / "infra/training",
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert any("rows: " in line for line in process.stderr), "it reads the rows, and goes on for minutes"
        process.send_signal(signal.SIGTERM)
        told = json.loads(process.stdout.read())
        assert process.wait(60) == 1
    assert told["type"] == events.FAILED
    assert (told["data"]["reason"], told["data"]["transient"]) == ("interrupted", True)


def test_a_time_shows_what_was_known_then(warehouse: str) -> None:
    settled = timedelta(0)
    late = data.read(warehouse, purchase(), parse_time(AS_OF), None, settled, 10**6)
    early = data.read(warehouse, purchase(), parse_time("2019-10-03T00:00:00Z"), None, settled, 10**6)
    assert 0 < len(early) < len(late)
    np.testing.assert_array_equal(early.arrived, late.arrived[: len(early)])
    assert (early.label <= late.label[: len(early)]).all()
    newest = data.read(warehouse, purchase(), parse_time(AS_OF), None, settled, 100)
    np.testing.assert_array_equal(newest.arrived, late.arrived[-100:])
    since = parse_time("2019-10-03T00:00:00Z")
    assert len(data.read(warehouse, purchase(), parse_time(AS_OF), since, settled, 10**6)) == len(late) - len(early)

"""The models of servers, on a real database."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest, RandomForestRegressor

from millrace_training import bundle, cli, data, events, isolation, models, oddness, regression, trees
from millrace_training.request import parse_time
from millrace_training.spec import power
from testbed import servers, shop
from tests.conftest import Sink

FAST = ["--as-of", servers.START, "--trials", "2", "--rounds", "25", "--bootstrap", "20"]
POWER, ANOMALY = "power_prediction_model", "server_anomaly_model"


def run(url: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setenv("DATABASE_URL", url)
    before = len(sink.got)
    status = cli.main([*FAST, *flags])
    assert len(sink.got) == before + 1, "one event tells of the end"
    headers, body = sink.got[-1]
    assert headers["ce-type"] == (events.FAILED if status else events.COMPLETED)
    return status, json.loads(body)


def loads_in_go(folder: Path) -> None:
    if not (go := shutil.which("go")):
        pytest.skip("there is no go on the PATH")
    command = [go, "test", "-count=1", "-v", "-run", "^TestWrittenBundleLoads$", "./infra/training"]
    environment = {**os.environ, "TRAINING_BUNDLE": str(folder)}
    got = subprocess.run(command, cwd=shop.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "--- PASS: TestWrittenBundleLoads" in got.stdout, got.stdout + got.stderr


def predicts_its_examples(folder: Path) -> None:
    read = bundle.read(folder)
    examples = json.loads((folder / bundle.EXAMPLES).read_text())["examples"]
    got = read.predict(read.encoder.table([e["features"] for e in examples]))
    np.testing.assert_array_equal(got, [e["prediction"][0] for e in examples])


def knows_its_hours(folder: Path) -> None:
    known = json.loads((folder / bundle.BASELINE).read_text())
    drawn = [d for d in [*known["features"], known["score"]] if "edges" in d]
    window = json.loads((folder / bundle.MANIFEST).read_text())["training"]
    low, high = (parse_time(window[end]).timestamp() for end in ("from", "to"))
    for d in drawn:
        assert len(d["sample_times"]) == len(d["sample"]) == min(known["rows"], 6000)
        assert all(low <= at < high for at in d["sample_times"])
        assert sorted(d["sample_times"]) == sorted(drawn[0]["sample_times"]), "all columns are of the same rows"


def same_bytes(one: Path, other: Path) -> None:
    for file in one.iterdir():
        if file.name != bundle.MANIFEST:
            assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_power_is_predicted_better_than_by_its_mean(
    datacenter: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, told = run(datacenter, sink, monkeypatch, "--model", POWER, "--output", str(tmp_path / "a"))
    assert status == 0
    metrics = told["metrics"]
    assert metrics["baseline_gain"]["low"] > 0
    assert metrics["r2"]["value"] > 0.3
    assert 0.8 < metrics["interval_90_coverage"]["value"] < 0.98
    assert told["model"] == POWER
    assert sum(f.stat().st_size for f in (tmp_path / "a").iterdir()) < 2_000_000
    loads_in_go(tmp_path / "a")
    predicts_its_examples(tmp_path / "a")
    knows_its_hours(tmp_path / "a")

    # The next is measured beside it on the same rows, and with the same seed is the same.
    _, again = run(
        datacenter, sink, monkeypatch, "--model", POWER, "--output", str(tmp_path / "b"), "--champion", str(tmp_path / "a")
    )  # fmt: skip
    assert again["metrics"]["champion_gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert again["metrics"]["champion_rmse"]["value"] == metrics["rmse"]["value"]
    (tmp_path / "a" / bundle.METRICS).unlink()
    same_bytes(tmp_path / "a", tmp_path / "b")


def test_disturbed_readings_are_told_from_others(
    datacenter: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, told = run(datacenter, sink, monkeypatch, "--model", ANOMALY, "--output", str(tmp_path / "a"))
    assert status == 0
    assert told["metrics"]["auc"]["low"] > 0.9
    assert told["metrics"]["baseline_gain"]["low"] > 0.4
    assert {"furthest_auc", "furthest_gain"} <= set(told["metrics"])
    assert told["metrics"]["recall"]["value"] > 5 * told["metrics"]["alarm_rate"]["value"]
    assert {f"recall_{fault}" for fault in oddness.FAULTS} <= set(told["metrics"])
    tail = json.loads((tmp_path / "a" / bundle.BASELINE).read_text())["tail"]
    assert [p["share"] for p in tail] == list(isolation.SHARES)
    loads_in_go(tmp_path / "a")
    predicts_its_examples(tmp_path / "a")

    _, again = run(
        datacenter, sink, monkeypatch, "--model", ANOMALY, "--output", str(tmp_path / "b"), "--champion", str(tmp_path / "a")
    )  # fmt: skip
    assert again["metrics"]["champion_gain"]["value"] == 0
    (tmp_path / "a" / bundle.METRICS).unlink()
    same_bytes(tmp_path / "a", tmp_path / "b")


FAILURES = {
    "no readings": (["TRUNCATE server_metrics"], POWER, "too_little_data", "0 rows, at least 300 are wanted"),
    "no power": (
        ["UPDATE server_metrics SET power_consumption_watts = NULL"], POWER, "broken_column",
        "column power_consumption_watts: 5760 of 5760 rows are null",
    ),
    "constant power": (
        ["UPDATE server_metrics SET power_consumption_watts = 200"], POWER, "broken_column", "is 200.0 in all rows",
    ),
    "no temperature": (
        ["UPDATE server_metrics SET cpu_temperature_celsius = NULL"], ANOMALY, "broken_column",
        "column cpu_temperature_celsius: all ",
    ),
    "a missing column": (
        ["ALTER TABLE server_metrics DROP COLUMN disk_read_mbps CASCADE"], ANOMALY, "broken_column", '"disk_read_mbps" does not exist',
    ),
    "no table": (["DROP TABLE server_metrics CASCADE"], POWER, "no_training_set", '"server_metrics" does not exist'),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_says_why_there_is_no_model(
    name: str, changed_datacenter: Callable[..., str], sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    statements, model, reason, message = FAILURES[name]
    status, told = run(
        changed_datacenter(*statements), sink, monkeypatch, "--model", model, "--output", str(tmp_path / "b")
    )
    assert (status, told["reason"], told["transient"]) == (1, reason, False)
    assert message in told["message"]
    assert told["model"] == model
    assert not (tmp_path / "b").exists()


def test_a_model_that_nobody_knows_is_refused(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    status, told = run("postgresql://nowhere", sink, monkeypatch, "--model", "tea_leaves")
    assert (status, told["reason"]) == (1, "bad_request")
    assert "field model: 'tea_leaves' is not one of purchase_prediction_model, " in told["message"]


def test_readings_that_were_not_stored_yet_are_not_known(changed_datacenter: Callable[..., str]) -> None:
    as_of = parse_time(servers.START)
    url = changed_datacenter(
        "UPDATE server_metrics SET created_at = '2026-02-01' WHERE server_id = 'srv-001'",
        "UPDATE server_metrics SET power_consumption_watts = NULL WHERE server_id = 'srv-002'",
    )
    got = data.read(url, power(), as_of, None, timedelta(0), 10**6)
    assert len(got) == 3 * 4 * 288
    assert (np.diff(got.arrived) >= 0).all()
    settled = data.read(url, power(), as_of, None, timedelta(days=1), 10**6)
    np.testing.assert_array_equal(settled.arrived, got.arrived[: len(settled)])
    assert len(got) - len(settled) == 3 * 287  # the reading of the last moment of history is just before its end


RNG = np.random.default_rng(4)
ROWS = RNG.normal(0, 50, (1500, 6)).round(1).astype(np.float32)
ROWS[RNG.uniform(size=ROWS.shape) < 0.1] = np.nan
NAMES = [f"f{i}" for i in range(6)]


def test_forests_come_back_as_scikit_learn_has_them() -> None:
    label = np.nan_to_num(ROWS[:, 0]) * 3 + np.nan_to_num(ROWS[:, 1]) ** 2
    forest = RandomForestRegressor(10, max_leaf_nodes=200, random_state=1).fit(ROWS, label)
    grown = [e.tree_ for e in forest.estimators_]
    text = trees.of_sklearn(grown, [t.value[:, 0, 0] for t in grown], NAMES).text()
    got = trees.read(text).predict(ROWS)
    np.testing.assert_allclose(got, forest.predict(ROWS), rtol=6e-15)


def test_isolation_forests_score_as_scikit_learn_does() -> None:
    rows = np.nan_to_num(ROWS)
    model = isolation.grow(rows, 20, {"max_samples": 300, "max_features": 0.5}, 7, NAMES)
    want = IsolationForest(n_estimators=20, max_samples=300, max_features=0.5, random_state=7).fit(rows)
    read = models.read(model.file, model.data(), model.transform)
    np.testing.assert_allclose(read.predict(rows), want.score_samples(rows), atol=1e-15)


def test_something_else_is_no_forest() -> None:
    for text in (b"", b"tree\nversion=v3\n", b"tree\naverage_output\nfeature_names=a\n\nend of trees\n"):
        with pytest.raises(ValueError, match="forest"):
            trees.read(text)


def test_intervals_hold_as_many_as_they_say_whatever_the_size() -> None:
    score = RNG.uniform(100, 400, 20_000)
    label = score + RNG.normal(0, score / 40)
    errors = regression.residuals(label[:10_000], score[:10_000])
    low, high = regression.bounds(errors, score[10_000:], 0.9)
    inside = (low <= label[10_000:]) & (label[10_000:] <= high)
    small = score[10_000:] < 200
    assert inside[small].mean() == pytest.approx(0.9, abs=0.03)
    assert inside[~small].mean() == pytest.approx(0.9, abs=0.03)
    assert (high - low)[small].mean() < 0.7 * (high - low)[~small].mean()


def test_regression_measures_are_those_of_scikit_learn() -> None:
    from sklearn import metrics  # noqa: PLC0415

    score = RNG.uniform(100, 400, 500)
    label = score + RNG.normal(0, 20, 500)
    errors = regression.residuals(label, score)
    got = regression.evaluate(label, np.arange(500), score, 200.0, score, errors, 20, 1)
    assert got["rmse"].value == pytest.approx(metrics.root_mean_squared_error(label, score), rel=1e-12)
    assert got["mae"].value == pytest.approx(metrics.mean_absolute_error(label, score), rel=1e-12)
    assert got["r2"].value == pytest.approx(metrics.r2_score(label, score), rel=1e-9)


def test_a_fault_changes_what_it_is_said_to_and_nothing_else() -> None:
    names = list(servers.COLUMNS[4:])
    rows = RNG.uniform(20, 60, (600, len(names))).astype(np.float32)
    got = oddness.disturb(rows, names, 1)
    for i, (fault, ranges) in enumerate(oddness.FAULTS.items()):
        of = got.fault == i
        assert of.sum() > 50
        for j, name in enumerate(names):
            factor = got.matrix[of, j] / rows[of, j]
            if name in ranges:
                assert (factor > 1).all(), (fault, name)
                assert (factor <= ranges[name][1] + 1e-5).all(), (fault, name)
            else:
                assert (factor == 1).all(), (fault, name)
    assert got.matrix[:, 0].max() <= 99.9 + 1e-4

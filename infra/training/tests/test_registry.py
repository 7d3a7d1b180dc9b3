"""The program with a real MLflow server, which has PostgreSQL behind it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from millrace_training import bundle, cli, events, models
from testbed import postgres, servers, shop
from tests.conftest import FAST, Sink

MODEL = "purchase_prediction_model"


@pytest.fixture(scope="module")
def mlflow(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that passes artifacts on."""
    folder = tmp_path_factory.mktemp("mlflow")
    database = postgres.database(server, "mlflow").replace("postgresql://", "postgresql+psycopg://")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--artifacts-destination",
               str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        # A group of its own, since the server has children.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 900
        while True:
            try:
                urllib.request.urlopen(url + "/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"MLflow did not start: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(folder: Path, id_: str, **data: object) -> None:
    folder.mkdir(exist_ok=True)
    asked = events.Event(id_, "/millrace/train-trigger", events.REQUESTED, time="2019-11-01T00:00:00Z", data=data)
    (folder / "event").write_text(asked.structured())


def test_versions_are_registered_compared_and_never_doubled(
    mlflow: str,
    warehouse: str,
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setenv("DATABASE_URL", warehouse)
    monkeypatch.setenv("K_EVENT_PATH", str(tmp_path / "asked"))
    client = MlflowClient(mlflow, mlflow)

    # A failure leaves nothing.
    ask(tmp_path / "asked", "0", min_rows=10**6)
    assert cli.main(FAST) == 1
    assert client.search_model_versions(f"name='{MODEL}'") == []

    ask(tmp_path / "asked", "1")
    assert cli.main(FAST) == 0
    first = json.loads(sink.got[-1][1])
    assert first["version"] == "1"
    assert first["champion"] is None
    version = client.get_model_version(MODEL, "1")
    assert version.description == "XGBoost model for purchase prediction"
    assert version.tags["digest"] == first["digest"]
    assert set(json.loads(version.tags["metrics"])) == {"rmse", "auc"}
    assert dict(version.aliases or {}) == {}
    run = client.get_run(first["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["auc"] == first["metrics"]["auc"]["value"]
    assert len(client.get_metric_history(first["run_id"], "validation-logloss")) >= first["rounds"]
    artifacts = {f.path for folder in ("", "plots", "bundle") for f in client.list_artifacts(first["run_id"], folder)}
    assert {"report.json", "plots/roc.png", "plots/calibration.png", "plots/importance.png"} <= artifacts
    assert {f"bundle/{name}" for name in (bundle.MANIFEST, models.XGBOOST_FILE, bundle.EXAMPLES)} <= artifacts

    # The same event again, as after a crash before the answer was told.
    assert cli.main(FAST) == 0
    again = json.loads(sink.got[-1][1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert sink.got[-1][0]["ce-id"] == sink.got[-2][0]["ce-id"]
    assert len(client.search_model_versions(f"name='{MODEL}'")) == 1

    # The alias names the champion.
    client.set_registered_model_alias(MODEL, "current", "1")
    ask(tmp_path / "asked", "2", seed=5)
    # A run of the same request that was killed.
    experiment = client.get_run(first["run_id"]).info.experiment_id
    request = events.reply_id("/millrace/train-trigger", "2", "training")
    killed = client.create_run(experiment, tags={"training_request": request}).info.run_id
    assert cli.main(FAST) == 0
    second = json.loads(sink.got[-1][1])
    assert second["version"] == "2"
    assert client.get_run(killed).info.status == "KILLED"
    assert second["champion"] == {"version": "1", "digest": first["digest"], "saw_test_rows": False}
    assert second["metrics"]["champion_auc"]["value"] == first["metrics"]["auc"]["value"]
    assert client.get_model_version_by_alias(MODEL, "current").version in (1, "1"), "the alias is the gate's to move"

    if go := shutil.which("go"):
        command = [go, "test", "-count=1", "-v", "-run", "^TestRegisteredBundleLoads$", "./infra/training"]
        environment = {**os.environ, "TRAINING_REGISTRY": mlflow, "TRAINING_MODEL": MODEL}
        got = subprocess.run(command, cwd=shop.ROOT, env=environment, capture_output=True, text=True, check=False)
        assert "--- PASS: TestRegisteredBundleLoads" in got.stdout, got.stdout + got.stderr


@pytest.mark.parametrize(
    ("model", "plots", "measures"),
    [
        ("power_prediction_model", {"predicted", "residuals", "importance"}, {"rmse", "mae", "r2"}),
        ("server_anomaly_model", {"roc", "scores", "importance"}, {"auc", "recall", "alarm_rate"}),
    ],
)
def test_models_of_servers_are_registered_like_any_other(
    model: str, plots: set[str], measures: set[str], mlflow: str, datacenter: str, sink: Sink,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setenv("DATABASE_URL", datacenter)
    monkeypatch.setenv("K_EVENT_PATH", str(tmp_path))
    client = MlflowClient(mlflow, mlflow)
    for number in ("1", "2"):
        asked = events.Event(
            number, "/millrace/train-trigger", events.REQUESTED, time=servers.START,
            data={"model": model, "trials": 1, "bootstrap": 20, "max_rows": 3000},
        )  # fmt: skip
        (tmp_path / "event").write_text(asked.structured())
        assert cli.main([]) == 0
        headers, body = sink.got[-1]
        told = json.loads(body)
        assert (headers["ce-subject"], told["model"], told["version"]) == (model, model, number)
        client.set_registered_model_alias(model, "current", number)
    assert told["champion"]["version"] == "1"
    assert told["metrics"]["champion_gain"]["value"] == 0
    version = client.get_model_version(model, "2")
    assert version.tags["digest"] == told["digest"]
    assert set(json.loads(version.tags["metrics"])) == measures
    drawn = {Path(f.path).stem for f in client.list_artifacts(told["run_id"], "plots")}
    assert drawn == plots
    assert "bundle/model.txt" in {f.path for f in client.list_artifacts(told["run_id"], "bundle")}


def test_a_registry_that_is_away_is_told_of_as_transient(
    warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # and not listening
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{s.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("DATABASE_URL", warehouse)
        assert cli.main(FAST) == 1
    told = json.loads(sink.got[-1][1])
    assert (told["reason"], told["transient"]) == ("registry_error", True)

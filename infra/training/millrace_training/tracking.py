"""MLflow: one run and one registered version for each model that was trained."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from millrace_training.failure import TrainingError

# A registry that is away is told of within a minute and not, as by default, in many.
# They are read when the package is loaded.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import Metric as LoggedMetric
from mlflow.entities import Param, RunStatus, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

log = logging.getLogger(__name__)

EXPERIMENT = "millrace-training"
ALIAS = "current"
REQUEST_TAG = "training_request"
_BUNDLE = "bundle"
_MOST_METRICS = 1000  # of one request


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except MlflowException as e:
        raise TrainingError("registry_error", f"the registry: {str(e).partition(chr(10))[0]}") from e
    except OSError as e:
        raise TrainingError("registry_error", f"the registry: {e}") from e


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    version: str
    run_id: str
    source: str  # where the bundle is


@dataclass(frozen=True)
class Result:
    """What of a run goes into the registry."""

    bundle: Path
    plots: dict[str, bytes]
    report: dict[str, Any]
    parameters: dict[str, Any]
    metrics: dict[str, float]
    history: dict[str, list[float]]
    tags: dict[str, str]  # of the version


class Registry:
    """An MLflow server. All its errors are TrainingError, registry_error."""

    def __init__(self, uri: str, model: str, description: str) -> None:
        """Name the server and the model; nothing is sent."""
        self._client = MlflowClient(uri, uri)
        self._model = model
        self._description = description

    def find(self, request: str) -> tuple[Registered, dict[str, Any]] | None:
        """Find the version that a request has given already, and its report."""
        with _told():
            found = self._client.search_model_versions(f"name='{self._model}' and tags.{REQUEST_TAG}='{request}'")
            if not found:
                return None
            v: ModelVersion = found[0]
            with tempfile.TemporaryDirectory() as folder:
                path = self._client.download_artifacts(v.run_id, "report.json", folder)
                report: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            return Registered(str(v.version), v.run_id, v.source), report

    def champion(self, folder: Path) -> str | None:
        """Download the bundle that the alias names, and give its version; None without one."""
        try:
            v = self._client.get_model_version_by_alias(self._model, ALIAS)
        except MlflowException as e:
            if e.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            with _told():
                raise
        with _told():
            artifacts = self._client.get_run(v.run_id).info.artifact_uri.rstrip("/")
            below = str(v.source).removeprefix(artifacts).removeprefix(f"runs:/{v.run_id}").strip("/")
            for file in self._client.list_artifacts(v.run_id, below):
                if not file.is_dir:
                    path = self._client.download_artifacts(v.run_id, file.path, str(folder))
                    Path(path).rename(folder / Path(path).name)
        return str(v.version)

    def register(self, started: datetime, result: Result) -> Registered:
        """Log a run, and make one version of its bundle when all of it is there.

        A run that does not come so far is marked as failed and has no version.
        """
        with _told():
            experiment = self._experiment()
            tags = {"mlflow.source.name": "millrace_training"}
            if request := result.tags.get(REQUEST_TAG):
                tags[REQUEST_TAG] = request
                self._bury(experiment, request)
            run = self._client.create_run(experiment, int(started.timestamp() * 1000), tags=tags)
            run_id = run.info.run_id
            try:
                self._log(run_id, int(started.timestamp() * 1000), result)
                self._client.log_artifacts(run_id, str(result.bundle), _BUNDLE)
                source = f"{run.info.artifact_uri.rstrip('/')}/{_BUNDLE}"
                self._client.set_terminated(run_id)
                # Last, so that what fails before leaves no version.
                self._make_model()
                version = self._client.create_model_version(
                    self._model, source, run_id, tags=result.tags, description=self._description
                )
            except BaseException:
                self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
                raise
        return Registered(str(version.version), run_id, source)

    def _bury(self, experiment: str, request: str) -> None:
        """End the runs that the request has left open, whose processes were killed."""
        query = f"tags.{REQUEST_TAG} = '{request}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], query):
            self._client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))

    def _experiment(self) -> str:
        if found := self._client.get_experiment_by_name(EXPERIMENT):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(EXPERIMENT))
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(EXPERIMENT).experiment_id)

    def _make_model(self) -> None:
        try:
            self._client.create_registered_model(self._model, description=self._description)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _log(self, run_id: str, at: int, result: Result) -> None:
        metrics = [LoggedMetric(name, value, at, 0) for name, value in result.metrics.items()]
        for name, values in result.history.items():
            metrics += [LoggedMetric(name, value, at, step) for step, value in enumerate(values)]
        for i in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(run_id, metrics=metrics[i : i + _MOST_METRICS])
        parameters = [Param(name, str(value)) for name, value in result.parameters.items()]
        tags = [RunTag(name, value) for name, value in result.tags.items()]
        self._client.log_batch(run_id, params=parameters, tags=tags)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "report.json").write_text(json.dumps(result.report, indent=2) + "\n", encoding="utf-8")
            (folder / "plots").mkdir()
            for plot, data in result.plots.items():
                (folder / "plots" / plot).write_bytes(data)
            self._client.log_artifacts(run_id, str(folder))

"""A whole run, from a request to what is told of its end."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from millrace_training import boosting, bundle, data, encoding, interruption, methods, windows
from millrace_training.data import Table
from millrace_training.evaluation import Metric
from millrace_training.fitting import Backend, Examples
from millrace_training.methods import Method, Predict
from millrace_training.request import Request
from millrace_training.spec import Spec
from millrace_training.tracking import REQUEST_TAG, Registry, Result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Environment:
    """Where a run reads from and writes to."""

    database_url: str
    tracking_uri: str = ""  # "": nothing is registered
    output: Path | None = None  # a folder that keeps the bundle
    threads: int = 1
    backend: Literal["local", "ray"] = "local"
    # Of the bundle; "" and None: what the registry and the clock say.
    version: str = ""
    created_at: datetime | None = None


def run(spec: Spec, request: Request, env: Environment, request_id: str = "") -> dict[str, Any]:
    """Train, measure and register one model, and give the data of training.completed.

    With a request_id the same request gives one version, however often it is run.

    Raises:
        TrainingError: there is no model, and nothing was registered.
    """
    started = datetime.now(UTC)
    clock = time.monotonic()
    registry = Registry(env.tracking_uri, request.model, spec.description) if env.tracking_uri else None
    if registry and request_id and (before := registry.find(request_id)):
        registered, told = before
        log.info("the request gave version %s before", registered.version)
        return {**told, "version": registered.version, "run_id": registered.run_id, "source": registered.source}

    as_of = request.as_of or started
    settled = timedelta(seconds=request.settled_seconds)
    table = data.read(env.database_url, spec, as_of, request.since, settled, request.max_rows)
    method = methods.of(spec)
    w = windows.split(table, request, method.classes)
    sizes = [len(x.rows) for x in (w.train, w.validation, w.test)]
    log.info("read %d rows: %d to train, %d to validate, %d to test", len(table), *sizes)

    encoder = encoding.fit(spec, w.train.rows)
    train, validation = (Examples(encoder.matrix(x.rows), x.rows.label) for x in (w.train, w.validation))
    with _backend(env) as backend:
        fitted = method.fit(train, validation, spec.names, request, backend)

    with tempfile.TemporaryDirectory(prefix="millrace-training") as folder:
        champion, champion_report = _champion(request, registry, Path(folder) / "champion", w.test)

        def predict(rows: Table) -> data.Floats:
            return fitted.model.predict(encoder.matrix(rows))

        judged = method.judge(w, fitted, predict, champion, request)
        metrics = judged.metrics
        seen = table.take(table.arrived < w.test.rows.arrived[0])
        out = env.output or Path(folder) / "bundle"
        digest = bundle.write(
            out,
            bundle.Contents(
                request.model, env.version, env.created_at or started, w.train.start, w.test.start,
                fitted.model, encoder, seen, metrics, w.test, request.seed,
                spec.rows == "server_metrics", judged.baseline,
            ),
        )  # fmt: skip
        report: dict[str, Any] = {
            "model": request.model,
            "reason": request.reason,
            "digest": digest,
            "as_of": as_of.isoformat(),
            "windows": {x.name: _window(x, method) for x in (w.train, w.validation, w.test)},
            "rows": len(table),
            "served_rows": int(table.served.sum()),
            "parameters": {k: v for k, v in fitted.parameters.items() if k != "eval_metric"},
            "rounds": fitted.rounds,
            "trials": fitted.trials,
            "pruned_trials": fitted.pruned,
            "metrics": {name: m.json() for name, m in metrics.items()},
            "champion": champion_report,
            "seconds": round(time.monotonic() - clock, 3),
        }
        interruption.check()
        if not registry:
            return {**report, "source": out.resolve().as_uri() if env.output else ""}
        registered = registry.register(
            started,
            Result(
                out,
                judged.draw(),
                report,
                {**report["parameters"], "rounds": fitted.rounds, "trials": fitted.trials, "as_of": report["as_of"]},
                _flat(metrics),
                fitted.history,
                _tags(request_id, started, digest, methods.tag(method.summary(metrics))),
            ),
        )
    log.info("registered %s version %s", request.model, registered.version)
    return {**report, "version": registered.version, "run_id": registered.run_id, "source": registered.source}


@contextmanager
def _backend(env: Environment) -> Iterator[Backend]:
    if env.backend == "local":
        yield replace(boosting.LOCAL, threads=env.threads)
        return
    # It is large, and not everybody has it.
    from millrace_training import distributed  # noqa: PLC0415

    with distributed.backend(env.threads) as backend:
        yield backend


def _champion(
    request: Request, registry: Registry | None, folder: Path, test: windows.Window
) -> tuple[Predict | None, dict[str, Any] | None]:
    """Find the model that is served now.

    One that cannot be read is told of and does not stop the run: a model that could
    replace it is wanted all the more.
    """
    version = None
    if request.champion == "none" or (request.champion == "registry" and registry is None):
        return None, None
    if request.champion == "registry":
        assert registry is not None  # noqa: S101 as said above
        folder.mkdir()
        if (version := registry.champion(folder)) is None:
            return None, None
    else:
        folder = Path(request.champion.removeprefix("file://"))
    try:
        champion = bundle.read(folder)
        champion.predict(test.rows.take(test.rows.arrived == test.rows.arrived[0]))  # as it will be asked to
    except bundle.BundleError as e:
        log.warning("the champion cannot be compared with: %s", e)
        return None, {"version": version, "error": str(e)}
    report = {
        "version": version or champion.version,
        "digest": champion.digest,
        # It has then seen rows that it is judged by, and looks better than it is.
        "saw_test_rows": champion.end > test.start,
    }
    return champion.predict, report


def _window(w: windows.Window, method: Method) -> dict[str, Any]:
    told = {"from": w.start.isoformat(), "to": w.end.isoformat(), "rows": len(w.rows)}
    return told | ({"positives": int(w.rows.label.sum())} if method.classes else {})


def _flat(metrics: dict[str, Metric]) -> dict[str, float]:
    flat = {}
    for name, m in metrics.items():
        flat[name] = m.value
        if m.low is not None and m.high is not None:
            flat[f"{name}.low"], flat[f"{name}.high"] = m.low, m.high
    return flat


def _tags(request_id: str, started: datetime, digest: str, metrics: str) -> dict[str, str]:
    tags = {"training_date": started.date().isoformat(), "metrics": metrics, "digest": digest}
    return tags | ({REQUEST_TAG: request_id} if request_id else {})

"""A whole run, from a request to what is told of its end."""

import logging
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace_training import bundle, data, encoding, evaluation, interruption, plots, search, windows
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
    w = windows.split(table, request)
    sizes = [len(x.rows) for x in (w.train, w.validation, w.test)]
    log.info("read %d rows: %d to train, %d to validate, %d to test", len(table), *sizes)

    encoder = encoding.fit(spec, w.train.rows)
    train, validation = (search.Examples(encoder.matrix(x.rows), x.rows.label) for x in (w.train, w.validation))
    fitted = search.run(train, validation, spec.names, request, env.threads)

    test = w.test.rows
    score = fitted.predict(encoder.matrix(test))
    with tempfile.TemporaryDirectory(prefix="millrace-training") as folder:
        champion_score, champion_report = _champion(request, registry, Path(folder) / "champion", w.test)
        frequency = float(np.mean(train.label))
        metrics = evaluation.evaluate(
            test.label, test.session, score, frequency, champion_score, request.bootstrap, request.seed
        )
        seen = table.take(table.arrived < test.arrived[0])
        out = env.output or Path(folder) / "bundle"
        digest = bundle.write(
            out,
            bundle.Contents(
                request.model, env.version, env.created_at or started, w.train.start, w.test.start,
                fitted.booster, encoder, seen, metrics, w.test,
            ),
        )  # fmt: skip
        report: dict[str, Any] = {
            "model": request.model,
            "reason": request.reason,
            "digest": digest,
            "as_of": as_of.isoformat(),
            "windows": {x.name: _window(x) for x in (w.train, w.validation, w.test)},
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
        scores = {"challenger": score}
        if champion_score is not None:
            scores["champion"] = champion_score
        registered = registry.register(
            started,
            Result(
                out,
                {
                    "roc.png": plots.roc(test.label, scores),
                    "calibration.png": plots.calibration(test.label, scores),
                    "importance.png": plots.importance(fitted.booster, spec.names),
                },
                report,
                {**report["parameters"], "rounds": fitted.rounds, "trials": fitted.trials, "as_of": report["as_of"]},
                _flat(metrics),
                fitted.history,
                _tags(request_id, started, digest, metrics),
            ),
        )
    log.info("registered %s version %s", request.model, registered.version)
    return {**report, "version": registered.version, "run_id": registered.run_id, "source": registered.source}


def _champion(
    request: Request, registry: Registry | None, folder: Path, test: windows.Window
) -> tuple[NDArray[np.float64] | None, dict[str, Any] | None]:
    """Find the model that is served now, and its scores of the test window.

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
        score = champion.predict(test.rows)
    except bundle.BundleError as e:
        log.warning("the champion cannot be compared with: %s", e)
        return None, {"version": version, "error": str(e)}
    report = {
        "version": version or champion.version,
        "digest": champion.digest,
        # It has then seen rows that it is judged by, and looks better than it is.
        "saw_test_rows": champion.end > test.start,
    }
    return score, report


def _window(w: windows.Window) -> dict[str, Any]:
    return {
        "from": w.start.isoformat(), "to": w.end.isoformat(), "rows": len(w.rows),
        "positives": int(w.rows.label.sum()),
    }  # fmt: skip


def _flat(metrics: dict[str, evaluation.Metric]) -> dict[str, float]:
    flat = {}
    for name, m in metrics.items():
        flat[name] = m.value
        if m.low is not None and m.high is not None:
            flat[f"{name}.low"], flat[f"{name}.high"] = m.low, m.high
    return flat


def _tags(request_id: str, started: datetime, digest: str, metrics: dict[str, evaluation.Metric]) -> dict[str, str]:
    tags = {
        "training_date": started.date().isoformat(),
        "metrics": f'{{"rmse": {metrics["brier"].value ** 0.5:.6f}, "auc": {metrics["auc"].value:.6f}}}',
        "digest": digest,
    }
    return tags | ({REQUEST_TAG: request_id} if request_id else {})

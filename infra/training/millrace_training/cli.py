"""The program: an event or flags in, an event out."""

import argparse
import dataclasses
import logging
import os
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from millrace_training import events, interruption
from millrace_training.failure import TrainingError
from millrace_training.request import Request, kind, parse, parse_time
from millrace_training.spec import named

log = logging.getLogger("millrace_training")

_ABOUT = """Train a model on what the database has stored, and register one version of it.

What is wanted is read from a CloudEvent of type dev.millrace.training.requested.v1, in
JSON: --event, or the file or folder that K_EVENT_PATH names; flags overrule it.

environment:
  DATABASE_URL         the database
  MLFLOW_TRACKING_URI  the registry; without it nothing is registered
  K_SINK               where dev.millrace.training.completed.v1 or .failed.v1 is posted;
                       without it it is printed
  TRAINING_THREADS     of XGBoost, 1 by default; another number may give another model
  TRAINING_BACKEND     what --backend is when it is not given
  RAY_ADDRESS, TRAINING_WORKERS, TRAINING_STORAGE
                       see millrace_training.distributed

exit status: 0 a model was made, 1 there is none, and the failure was told, 2 the end of
the run could not be told.
"""


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="millrace-training", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--event", type=Path, help="a file with the event, or a folder that has it as the file event")
    p.add_argument("--output", type=Path, help="keep the bundle in this folder")
    p.add_argument(
        "--bundle-version", default="", help="the version that the bundle says it is, where no registry does"
    )
    p.add_argument("--created-at", type=parse_time, help="the time that the bundle says it was made")
    p.add_argument(
        "--backend", choices=("local", "ray"), default=os.environ.get("TRAINING_BACKEND", "local"),
        help="one process, or a Ray cluster (local)",
    )  # fmt: skip
    for f in dataclasses.fields(Request):
        want = kind(f)
        default = "" if f.default is None or f.default == "" else f" ({f.default})"
        p.add_argument(
            f"--{f.name.replace('_', '-')}", type=str if want is datetime else want, help=f.metadata["about"] + default
        )
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the program and give its exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    args = _parser().parse_args(argv)
    interruption.watch()
    now = datetime.now(UTC).isoformat()
    asked = events.Event(str(uuid.uuid4()), "/millrace/training/flags", events.REQUESTED, time=now)
    subject = Request().model
    data: dict[str, Any]
    try:
        path = args.event or (Path(p) if (p := os.environ.get("K_EVENT_PATH")) else None)
        request_id = ""
        if path:
            asked = events.read(path)
            request_id = events.reply_id(asked.source, asked.id, "training")
        request = _request(args, asked)
        subject = request.model
        data = _train(args, request, request_id)
        type_ = events.COMPLETED
    except TrainingError as e:
        log.error("no model: %s: %s", e.reason, e)
        data = {"model": subject, "reason": e.reason, "message": str(e), "transient": e.transient}
        type_ = events.FAILED
    except Exception as e:
        log.exception("no model")
        data = {"model": subject, "reason": "internal_error", "message": f"{type(e).__name__}: {e}", "transient": False}
        type_ = events.FAILED
    data["request"] = {"source": asked.source, "id": asked.id}
    try:
        events.send(events.reply(asked, type_, subject, data))
    except events.DeliveryError:
        log.exception("the end of the run was not told")
        return 2
    return 0 if type_ == events.COMPLETED else 1


def _request(args: argparse.Namespace, asked: events.Event) -> Request:
    flags = {f.name: getattr(args, f.name) for f in dataclasses.fields(Request)}
    values = {**asked.data, **{name: v for name, v in flags.items() if v is not None}}
    request = parse(values)
    if request.as_of is None and asked.time:
        try:
            request = dataclasses.replace(request, as_of=parse_time(asked.time))
        except ValueError as e:
            raise TrainingError("bad_request", f"the event's time: {e}") from e
    return request


def _train(args: argparse.Namespace, request: Request, request_id: str) -> dict[str, Any]:
    spec = named(request.model)
    url = os.environ.get("DATABASE_URL", "")
    if not url:
        raise TrainingError("bad_request", "DATABASE_URL is required")
    try:
        threads = int(os.environ.get("TRAINING_THREADS", "1"))
    except ValueError as e:
        raise TrainingError("bad_request", f"TRAINING_THREADS: {e}") from e
    # The libraries take seconds to load, which a bad request need not wait for.
    from millrace_training import training  # noqa: PLC0415

    env = training.Environment(
        database_url=url,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
        output=args.output,
        threads=max(1, threads),
        backend=args.backend,
        version=args.bundle_version,
        created_at=args.created_at,
    )
    return training.run(spec, request, env, request_id)

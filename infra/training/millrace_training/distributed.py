"""Does the work on Ray: Ray Tune for the search, Ray's XGBoost trainer for the final fit.

Trials run beside each other, so that which of them end early depends on the moment; and
boosted trees are grown from the rows of all workers, which sum in another order. So the
same seed gives like models here, not the same bytes. What is not boosted is fitted by
one process all the same: it takes seconds.

environment:
  RAY_ADDRESS       the cluster; without it one is started on this machine, for the run
  TRAINING_WORKERS  processes that grow the final model, and trials at a time (2)
  TRAINING_STORAGE  a folder or an address (s3://...) that all nodes reach, where trials and
                    the final model are left; a folder of this machine without it
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# They are read when the package is loaded.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Workers that do not start in half a minute are given up by default, and more are started.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")

import numpy as np
import optuna
import ray
import ray.train
import xgboost as xgb
from ray import tune
from ray.train.xgboost import XGBoostTrainer
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from millrace_training import boosting, interruption, tuning
from millrace_training.failure import TrainingError
from millrace_training.fitting import Backend, Examples, History

log = logging.getLogger(__name__)

_OBJECTS = 1 << 30  # bytes of rows on this machine
_MODEL, _HISTORY = "model.ubj", "history.json"


class _Interruption(tune.Callback):  # type: ignore[misc]
    """Looks, while trials run, whether the run is told to end."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ANN401, ARG002
        interruption.check()


def _trial(config: dict[str, Any], objective: tuning.Objective, grace: int) -> None:
    """Run one trial; only at the rungs of successive halving is there something to decide."""
    rungs = {grace * tuning.REDUCTION**i for i in range(20)}

    def report(step: int, loss: float) -> None:
        if step in rungs:
            tune.report({"step": step, "loss": loss})

    loss = objective(config, report)
    tune.report({"step": max(rungs), "loss": loss, "final": loss})


def _distributions(space: tuning.Space) -> dict[str, optuna.distributions.BaseDistribution]:
    return {
        name: optuna.distributions.IntDistribution(int(r.low), int(r.high), log=r.log)
        if r.whole
        else optuna.distributions.FloatDistribution(r.low, r.high, log=r.log)
        for name, r in space.items()
    }


def search(
    workers: int, storage: str, objective: tuning.Objective, space: tuning.Space, trials: int, grace: int, seed: int
) -> tuning.Found:
    """Try parameters, some at a time; see ``tuning.search``.

    Raises:
        TrainingError: internal_error, when a trial fails.
    """
    drawn = OptunaSearch(space=_distributions(space), metric="loss", mode="min", seed=seed)
    # The last report is beyond all rungs, and not to be stopped before.
    halving = ASHAScheduler(
        time_attr="step", max_t=grace * tuning.REDUCTION**20, grace_period=grace, reduction_factor=tuning.REDUCTION
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, objective=objective, grace=grace), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", search_alg=ConcurrencyLimiter(drawn, max_concurrent=workers),
            scheduler=halving, num_samples=trials,
        ),
        run_config=tune.RunConfig(name="search", storage_path=storage, verbose=0, callbacks=[_Interruption()]),
    )  # fmt: skip
    results = tuner.fit()
    if results.errors:
        raise TrainingError(
            "internal_error", f"a trial failed on Ray: {str(results.errors[0]).strip().splitlines()[-1]}"
        )
    complete = [r for r in results if r.metrics and "final" in r.metrics]
    best = min(complete, key=lambda r: r.metrics["final"])
    return tuning.Found(best.config, best.metrics["final"], len(results), len(results) - len(complete))


def _share(rows: Examples, rank: int, workers: int) -> Examples:
    part = np.array_split(np.arange(len(rows.label)), workers)[rank]
    return Examples(rows.matrix[part], rows.label[part])


def _grow(config: dict[str, Any]) -> None:
    """Grow trees with the other workers, each from its rows; the first keeps the model."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    names, threads = config["names"], config["parameters"]["nthread"]
    train, validation = (
        boosting.matrix(_share(ray.get(config[name]), rank, workers), names, threads)
        for name in ("train", "validation")
    )
    booster, history = boosting.grow(
        config["parameters"], train, {"train": train, "validation": validation}, config["rounds"], config["stop"]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        booster.save_model(folder / _MODEL)
        (folder / _HISTORY).write_text(json.dumps(history), encoding="utf-8")
        kept = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"trees": booster.num_boosted_rounds()}, checkpoint=kept)


def boost(
    count: int,
    storage: str,
    parameters: dict[str, Any],
    train: Examples,
    validation: Examples,
    names: list[str],
    rounds: int,
    stop: int,
) -> tuple[xgb.Booster, History]:
    """Grow the final model, by several workers; see ``boosting.boost``.

    Raises:
        TrainingError: internal_error, when a worker fails.
    """
    interruption.check()
    config = {
        "parameters": parameters, "names": names, "rounds": rounds, "stop": stop,
        "train": ray.put(train), "validation": ray.put(validation),
    }  # fmt: skip
    trainer = XGBoostTrainer(
        _grow,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=count, resources_per_worker={"CPU": parameters["nthread"]}),
        run_config=ray.train.RunConfig(name="final", storage_path=storage),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as e:
        raise TrainingError("internal_error", f"the final fit failed on Ray: {str(e).strip().splitlines()[-1]}") from e
    if result.checkpoint is None:
        raise TrainingError("internal_error", "the final fit left no model on Ray")
    with result.checkpoint.as_directory() as folder:
        booster = xgb.Booster()
        booster.load_model(Path(folder) / _MODEL)
        history: History = json.loads((Path(folder) / _HISTORY).read_text(encoding="utf-8"))
    return booster, history


@contextmanager
def backend(threads: int) -> Iterator[Backend]:
    """Connect to a cluster, or start one, and leave it as it was found.

    Raises:
        TrainingError: bad_request, when the environment is wrong.
    """
    text = os.environ.get("TRAINING_WORKERS", "2")
    if not text.isdecimal() or int(text) < 1:
        raise TrainingError("bad_request", f"TRAINING_WORKERS: must be a whole number from 1, not {text!r}")
    workers = int(text)
    found = ray.is_initialized()
    if not found:
        address = os.environ.get("RAY_ADDRESS")
        own = {} if address else {
            "num_cpus": workers * threads, "include_dashboard": False, "object_store_memory": _OBJECTS,
            "_node_ip_address": "127.0.0.1",  # nobody else is to reach it
        }  # fmt: skip
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **own)
    try:
        with tempfile.TemporaryDirectory(prefix="millrace-ray") as folder:
            storage = os.environ.get("TRAINING_STORAGE") or folder
            yield Backend(partial(search, workers, storage), partial(boost, workers, storage), threads)
    finally:
        if not found:
            ray.shutdown()

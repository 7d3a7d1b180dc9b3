"""The program on a local Ray cluster."""

import json
from pathlib import Path

import pytest

from millrace_training import bundle, cli, models
from tests.conftest import AS_OF, Sink

pytest.importorskip("ray")


def test_the_same_is_made_on_ray(warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", warehouse)
    monkeypatch.setenv("TRAINING_WORKERS", "2")
    flags = ["--backend", "ray", "--as-of", AS_OF, "--trials", "3", "--rounds", "70", "--bootstrap", "20"]
    assert cli.main([*flags, "--output", str(tmp_path / "b")]) == 0
    told = json.loads(sink.got[-1][1])
    assert told["trials"] == 3
    assert told["metrics"]["auc"]["value"] > 0.6  # which trials end early is not the same each time
    # What the workers made together is a bundle like any other.
    read = bundle.read(tmp_path / "b")
    assert isinstance(read.model, models.Boosted)
    assert read.model.booster.num_boosted_rounds() == told["rounds"] > 1
    assert read.digest == told["digest"]


def test_workers_must_be_a_number(warehouse: str, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", warehouse)
    monkeypatch.setenv("TRAINING_WORKERS", "many")
    assert cli.main(["--backend", "ray", "--as-of", AS_OF]) == 1
    told = json.loads(sink.got[-1][1])
    assert (told["reason"], told["message"]) == (
        "bad_request", "TRAINING_WORKERS: must be a whole number from 1, not 'many'",
    )  # fmt: skip

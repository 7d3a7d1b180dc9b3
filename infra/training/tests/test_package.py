"""What importing the package does."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "want"), [({}, "True"), ({"MLFLOW_DISABLE_TELEMETRY": "false"}, "False")])
def test_mlflow_reports_nothing_unless_told_to(given: dict[str, str], want: str) -> None:
    # These turn it off, too.
    env = {k: v for k, v in os.environ.items() if k not in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")} | given
    script = """
import millrace_training.tracking
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
print(MLFLOW_DISABLE_TELEMETRY.get())
"""
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == want

"""Makes the starter model: python -m testbed.starter FOLDER, in infra/training.

The generator's seed, start and number of events decide the model, with the versions of
requirements.txt; the bundle's times are the events' own, so that the same files come
out again.
"""

import os
import sys

from millrace_training.cli import main
from testbed import postgres, shop

# Eight weeks, so that every weekday comes several times.
EVENTS = 400_000
FLAGS = ["-seed", "1", "-start", "2019-10-01", "-density", "0.0827", "-rate", "0", "-count", str(EVENTS)]
CREATED_AT = "2019-11-26T00:00:00Z"


def run(folder: str) -> int:
    """Make the bundle and give the trainer's exit status."""
    with postgres.server() as url:
        shop.migrate(url)
        shop.fill(url, shop.simulate(FLAGS))
        os.environ["DATABASE_URL"] = url
        for name in ("MLFLOW_TRACKING_URI", "K_SINK", "K_EVENT_PATH"):
            os.environ.pop(name, None)
        return main([
            "--output", folder, "--bundle-version", "starter", "--created-at", CREATED_AT, "--as-of", CREATED_AT,
            "--settled-seconds", "3600", "--champion", "none", "--trials", "30",
        ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))

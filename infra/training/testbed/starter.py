"""Makes the starter models: python -m testbed.starter purchase|power|anomaly FOLDER, in infra/training.

The generators' seeds, starts and numbers decide the models, with the versions of
requirements.txt; the bundles' times are the rows' own, so that the same files come out
again.
"""

import os
import sys

from millrace_training.cli import main
from testbed import postgres, servers, shop

# Eight weeks, so that every weekday comes several times.
EVENTS = 400_000
SHOP = ["-seed", "1", "-start", "2019-10-01", "-density", "0.0827", "-rate", "0", "-count", str(EVENTS)]
SHOP_CREATED_AT = "2019-11-26T00:00:00Z"
# The generator's own seed is 1: the same servers as in the present that it simulates.
SERVERS = ["-config", "dev", "-seed", "1", "-backfill-days", "14"]

FLAGS = {
    "purchase": ["--as-of", SHOP_CREATED_AT, "--created-at", SHOP_CREATED_AT, "--settled-seconds", "3600"],
    "power": ["--model", "power_prediction_model", "--as-of", servers.START, "--created-at", servers.START],
    "anomaly": ["--model", "server_anomaly_model", "--as-of", servers.START, "--created-at", servers.START],
}


def run(model: str, folder: str) -> int:
    """Make a bundle and give the trainer's exit status."""
    with postgres.server() as url:
        shop.migrate(url)
        if model == "purchase":
            shop.fill(url, shop.simulate(SHOP))
        else:
            servers.fill(url, servers.simulate(SERVERS))
        os.environ["DATABASE_URL"] = url
        for name in ("MLFLOW_TRACKING_URI", "K_SINK", "K_EVENT_PATH", "TRAINING_BACKEND"):
            os.environ.pop(name, None)
        return main([
            "--output", folder, "--bundle-version", "starter", "--champion", "none", "--trials", "30", *FLAGS[model],
        ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2]))

"""Fills server_metrics with readings of the simulated datacenter, as if each had come at once."""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from testbed import shop

COLUMNS = (
    "timestamp", "server_id", "rack_id", "datacenter_zone", "cpu_usage_percent", "memory_usage_percent",
    "memory_available_gb", "disk_usage_percent", "disk_read_mbps", "disk_write_mbps", "network_rx_mbps",
    "network_tx_mbps", "cpu_temperature_celsius", "power_consumption_watts",
)  # fmt: skip

START = "2026-01-05T00:00:00Z"
"""Where the simulated history ends."""


def simulate(flags: list[str]) -> Iterator[dict[str, Any]]:
    """Let the load generator make history, and give what servers report in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        command = [shop.LOADGEN, "datacenter", *flags, "-rate", "0", "-start", START, "-to", path]
        subprocess.run(command, check=True, capture_output=True)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                reading = json.loads(line)
                if reading["type"] == "server_metric":
                    yield reading


def fill(url: str, readings: Iterable[dict[str, Any]]) -> None:
    """Store readings."""
    with (
        psycopg.connect(url) as db,
        db.cursor().copy(f"COPY server_metrics ({', '.join(COLUMNS)}, created_at) FROM STDIN") as copy,
    ):
        for r in readings:
            copy.write_row((*(r[c] for c in COLUMNS), r["timestamp"]))

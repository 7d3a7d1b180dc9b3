"""Fills server_metrics with the readings of simulated servers."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg

COLUMNS = (
    "timestamp", "server_id", "rack_id", "datacenter_zone", "cpu_usage_percent", "memory_usage_percent",
    "memory_available_gb", "disk_usage_percent", "disk_read_mbps", "disk_write_mbps", "network_rx_mbps",
    "network_tx_mbps", "cpu_temperature_celsius", "power_consumption_watts",
)  # fmt: skip

Row = tuple[object, ...]
START = datetime(2026, 1, 5, tzinfo=UTC)


def draw(
    seed: int, servers: int, readings: int, faults: float = 0.0, step: timedelta = timedelta(minutes=5)
) -> Iterator[Row]:
    """Draw readings of servers whose power follows their load and their day.

    Args:
        seed: of everything.
        servers: how many there are.
        readings: of each.
        faults: share of the readings in which a metric is several times what it should be.
        step: time between two readings.
    """
    rng = np.random.default_rng(seed)
    base = rng.uniform([20, 30, 40, 45, 200], [40, 50, 70, 55, 300], (servers, 5))
    for i in range(readings):
        at = START + i * step
        day = 1 + 0.25 * np.sin(2 * np.pi * (at.hour + at.minute / 60 - 9) / 24)
        cpu = np.clip(base[:, 0] * day + rng.normal(0, 3, servers), 1, 99)
        memory = np.clip(base[:, 1] * (1 + (day - 1) / 3) + rng.normal(0, 1, servers), 5, 99)
        heat = base[:, 3] + 0.25 * (cpu - base[:, 0]) + rng.normal(0, 1, servers)
        power = base[:, 4] * (1 + 0.012 * (cpu - base[:, 0])) + rng.normal(0, 4, servers)
        disk, network = cpu / 15 * rng.uniform(5, 20, (2, servers)), cpu / 10 * rng.uniform(10, 100, (2, servers))
        faulty, kind = rng.uniform(size=servers) < faults, rng.integers(0, 4, servers)
        power = np.where(faulty & (kind == 0), power * 2.5, power)
        cpu = np.where(faulty & (kind == 1), np.minimum(99, cpu * 3), cpu)
        heat = np.where(faulty & (kind == 2), np.minimum(95, heat * 1.7), heat)
        network = np.where(faulty & (kind == 3), network * 4, network)
        for s in range(servers):
            yield (
                at, f"srv-{s + 1:03d}", f"R{s % 5 + 1:02d}", f"marseille-{s % 2 + 1}", round(float(cpu[s]), 2),
                round(float(memory[s]), 2), round(float(64 * (1 - memory[s] / 100)), 2), round(float(base[s, 2]), 2),
                round(float(disk[0, s]), 2), round(float(disk[1, s]), 2), round(float(network[0, s]), 2),
                round(float(network[1, s]), 2), round(float(heat[s]), 1), round(float(power[s]), 1),
            )  # fmt: skip


def fill(url: str, rows: Iterator[Row]) -> None:
    """Store readings, each as if it had come at once."""
    with (
        psycopg.connect(url) as db,
        db.cursor().copy(f"COPY server_metrics ({', '.join(COLUMNS)}, created_at) FROM STDIN") as copy,
    ):
        for r in rows:
            copy.write_row((*r, r[0]))

"""Fills a warehouse with the events of the simulated shop, as if they had come by Kafka."""

import csv
import gzip
import hashlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

ROOT = Path(__file__).resolve().parents[3]
MIGRATIONS = ROOT / "shared" / "warehouse" / "migrations"
LOADGEN = ROOT / ".local" / "bin" / "loadgen"


@dataclass(frozen=True)
class Row:
    """An event that arrived when it happened."""

    event_time: str  # "2019-10-01 00:00:00 UTC"
    event_type: str
    product_id: int
    category_id: int
    category_code: str | None
    brand: str | None
    price: float
    user_id: int
    user_session: str

    @property
    def record_hash(self) -> bytes:
        """The event's natural key."""
        parts = (self.product_id, self.event_time, self.user_id, self.event_type, self.user_session)
        return hashlib.sha256("|".join(map(str, parts)).encode()).digest()


def simulate(flags: list[str]) -> Iterator[Row]:
    """Let the load generator make events."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.csv.gz"
        subprocess.run([LOADGEN, "shop", *flags, "-to-csv", path], check=True, capture_output=True)
        yield from read(path)


def read(path: Path) -> Iterator[Row]:
    """Read events in the columns of the public clickstream."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
        for r in csv.DictReader(f):
            yield Row(
                r["event_time"],
                r["event_type"],
                int(r["product_id"]),
                int(r["category_id"]),
                r["category_code"] or None,
                r["brand"] or None,
                float(r["price"]),
                int(r["user_id"]),
                r["user_session"],
            )


def migrate(url: str) -> None:
    """Make the warehouse's tables, views and functions."""
    with psycopg.connect(url) as db:
        for path in sorted(MIGRATIONS.glob("*.sql")):
            db.execute(path.read_text(encoding="utf-8"))


def fill(url: str, rows: Iterable[Row]) -> None:
    """Put events into bronze and gold: each arrives at its time, in the order given.

    The features are the warehouse's own (feature_store.recomputed_features). What gold
    computes of silver is computed here of events that come once and in order.
    """
    with psycopg.connect(url) as db:
        with db.cursor().copy(
            "COPY bronze.events (load_id, kafka_offset, kafka_timestamp, product_id, category_id, user_id, price,"
            " event_time, kafka_partition, checksum, line, event_type, record_hash, user_session, category_code, brand,"
            " ce_id) FROM STDIN"
        ) as copy:
            for i, r in enumerate(rows):
                at = datetime.strptime(r.event_time, "%Y-%m-%d %H:%M:%S UTC")
                copy.write_row((
                    1, i, f"{at.isoformat()}Z", r.product_id, r.category_id, r.user_id, r.price, at.isoformat(),
                    0, i, 1, r.event_type, r.record_hash, r.user_session, r.category_code, r.brand, f"0/{i}",
                ))  # fmt: skip
        db.execute("""
            INSERT INTO dwh.fact_events (event_id, position, version, user_id, product_id, category_id, price,
                event_timestamp, event_date, event_hour, events_in_session, activity_count, event_type, record_hash,
                user_session, category_code, brand)
            SELECT ('x' || encode(substr(record_hash, 1, 8), 'hex'))::bit(64)::bigint, kafka_offset, 1, user_id,
                product_id, category_id, price, event_time, event_time::date, extract(hour FROM event_time)::int,
                count(*) OVER (PARTITION BY user_session),
                row_number() OVER (PARTITION BY user_session ORDER BY kafka_offset),
                event_type, record_hash, user_session, category_code, brand
            FROM bronze.events WHERE kafka_partition = 0""")
        db.commit()
        db.autocommit = True
        db.execute("ANALYZE")

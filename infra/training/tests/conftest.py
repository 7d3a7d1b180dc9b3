"""A server with a shop in it, made once, and copies of it for tests that change things."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import pytest

from testbed import postgres, servers, shop

AS_OF = "2019-11-01T00:00:00Z"
"""A time after all of the shop's events."""

FAST = ["--as-of", AS_OF, "--trials", "4", "--rounds", "60", "--bootstrap", "50"]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    try:
        with postgres.server() as url:
            yield url
    except postgres.Unavailable as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def warehouse(server: str) -> str:
    """A warehouse with six days of a shop, not to be changed."""
    url = postgres.database(server, "shop")
    shop.migrate(url)
    shop.fill(url, shop.simulate(["-seed", "3", "-density", "0.08", "-rate", "0", "-count", "40000"]))
    return url


@pytest.fixture(scope="session")
def datacenter(server: str) -> str:
    """A warehouse with four days of five servers, not to be changed."""
    url = postgres.database(server, "datacenter")
    shop.migrate(url)
    servers.fill(url, servers.simulate(["-config", "dev", "-seed", "3", "-backfill-days", "4"]))
    return url


_numbers = itertools.count(1)


def _copy(server: str, template: str, statements: tuple[str, ...]) -> str:
    name = f"{template}{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    url = server.replace("@/postgres?", f"@/{name}?")
    with psycopg.connect(url) as db:
        for s in statements:
            db.execute(s)
    return url


@pytest.fixture
def changed(server: str, warehouse: str) -> Callable[..., str]:
    """Copy the warehouse, change it by statements, and give its address."""
    assert warehouse
    return lambda *statements: _copy(server, "shop", statements)


@pytest.fixture
def changed_datacenter(server: str, datacenter: str) -> Callable[..., str]:
    """Copy the datacenter's warehouse, change it by statements, and give its address."""
    assert datacenter
    return lambda *statements: _copy(server, "datacenter", statements)


@dataclass
class Sink:
    """A receiver of events that answers as it is told to, and then 202."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    """The receiver that K_SINK names."""
    s = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            s.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(s.answers.pop(0) if s.answers else 202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    s.url = f"http://127.0.0.1:{http.server_port}/"
    monkeypatch.setenv("K_SINK", s.url)
    yield s
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "K_SINK",
        "K_EVENT_PATH",
        "MLFLOW_TRACKING_URI",
        "DATABASE_URL",
        "TRAINING_THREADS",
        "TRAINING_BACKEND",
    ):
        monkeypatch.delenv(name, raising=False)

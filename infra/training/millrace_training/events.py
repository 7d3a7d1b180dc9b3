"""CloudEvents: the one that asks for a run, and the one that tells of its end."""

import hashlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from millrace_training.failure import TrainingError

log = logging.getLogger(__name__)

REQUESTED = "dev.millrace.training.requested.v1"
COMPLETED = "dev.millrace.training.completed.v1"
FAILED = "dev.millrace.training.failed.v1"

SOURCE = "/millrace/training"
_CARRIED = ("partitionkey", "traceparent", "tracestate")
_TRIES = 6
_TIMEOUT = 10.0  # seconds an attempt


@dataclass(frozen=True)
class Event:
    """A CloudEvent with JSON data."""

    id: str
    source: str
    type: str
    subject: str = ""
    time: str = ""
    extensions: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def attributes(self) -> dict[str, str]:
        """Give all attributes by name."""
        known = {"specversion": "1.0", "id": self.id, "source": self.source, "type": self.type}
        more = {"subject": self.subject, "time": self.time, **self.extensions}
        return known | {name: value for name, value in more.items() if value}

    def structured(self) -> str:
        """Give the event in JSON, on one line."""
        return json.dumps({**self.attributes(), "datacontenttype": "application/json", "data": self.data})


def read(path: Path) -> Event:
    """Read an event in JSON from a file, or from the file ``event`` of a folder.

    Raises:
        TrainingError: bad_request.
    """
    if path.is_dir():
        path /= "event"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise TrainingError("bad_request", f"reading the event in {path}: {e}") from e
    if not isinstance(raw, dict):
        raise TrainingError("bad_request", f"the event in {path} is not a JSON object")
    for name in ("id", "source", "type"):
        if not isinstance(raw.get(name), str) or not raw[name]:
            raise TrainingError("bad_request", f"the event in {path}: attribute {name} is required")
    if raw["type"] != REQUESTED:
        raise TrainingError("bad_request", f"the event is of type {raw['type']}, want {REQUESTED}")
    data = raw.get("data", {})
    if not isinstance(data, dict):
        raise TrainingError("bad_request", "the event's data must be a JSON object")
    extensions = {name: raw[name] for name in _CARRIED if isinstance(raw.get(name), str)}
    return Event(
        raw["id"], raw["source"], raw["type"], str(raw.get("subject", "")), str(raw.get("time", "")), extensions, data
    )


def reply_id(source: str, event_id: str, function: str) -> str:
    """Give the id of a reply: the same for every delivery of an event.

    It is the rule of all functions: 32 hex digits of the SHA-256 over the three parts,
    each preceded by its length.
    """
    digest = hashlib.sha256()
    for part in (source, event_id, function):
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()[:32]


def reply(request: Event, type_: str, subject: str, data: dict[str, Any]) -> Event:
    """Make the event that tells of a run's end.

    A run that failed may be run again and complete: the two have different ids.
    """
    name = "training" if type_ == COMPLETED else "training-failed"
    return Event(
        reply_id(request.source, request.id, name), SOURCE, type_, subject, request.time, request.extensions, data
    )


class DeliveryError(Exception):
    """An event was not taken."""


def send(event: Event) -> None:
    """Post an event to K_SINK, or print it where there is none.

    What the receiver may answer differently later is tried again, for about a minute.

    Raises:
        DeliveryError: it was not taken.
    """
    sink = os.environ.get("K_SINK", "")
    if not sink:
        print(event.structured(), flush=True)
        return
    if urlsplit(sink).scheme not in ("http", "https"):
        raise DeliveryError("K_SINK must be an http or https address")
    headers = {f"ce-{name}": quote(value, safe=" !#$&'()*+,/:;=?@[]-._~") for name, value in event.attributes().items()}
    headers["content-type"] = "application/json"
    body = json.dumps(event.data).encode()
    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(min(2.0**attempt, 16.0))
        request = urllib.request.Request(sink, body, headers, method="POST")  # noqa: S310 checked above
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT):  # noqa: S310
                return
        except urllib.error.HTTPError as e:
            problem = f"answered {e.code}"
            if e.code not in (404, 408, 409, 429) and e.code < 500:
                break
        except OSError as e:
            problem = str(e)
        log.warning("the sink did not take the event: %s", problem)
    raise DeliveryError(f"the sink did not take event {event.type}: {problem}")
